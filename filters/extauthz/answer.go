package extauthz

import (
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/route"
)

const (
	// maxEntries of each kind may be in an answer.
	maxEntries = 64
	// maxText is how much of the service's text a client is told, in bytes.
	maxText = 4096
)

// prefix is that of the properties that tell of an answer's metadata.
const prefix = "ext_authz.metadata."

// decision is a judged answer. It does not change.
type decision struct {
	allowed    bool
	reply      codecs.LocalError // if not
	request    []entry
	removed    []string
	response   []entry
	properties []codecs.KeyValue
	size       int // of it, in bytes
}

// entry is a change of an attribute.
type entry struct {
	codecs.KeyValue
	how change
}

type change uint8

const (
	overwriteOrAdd change = iota
	overwrite
	addIfAbsent
	appendOrAdd
)

// decide judges an answer. The error says why it counts as none.
func (c *config) decide(r *authv3.CheckResponse) (d *decision, err error) {
	d = &decision{allowed: r.GetStatus().GetCode() == 0}
	metadata := r.GetDynamicMetadata()
	switch {
	case d.allowed:
		ok := r.GetOkResponse()
		if old := ok.GetDynamicMetadata(); old != nil { //nolint:staticcheck // services that are older than its successor
			metadata = old
		}
		if d.request, err = d.entries(ok.GetHeaders()); err != nil {
			return nil, err
		}
		if d.response, err = d.entries(ok.GetResponseHeadersToAdd()); err != nil {
			return nil, err
		}
		if d.removed = ok.GetHeadersToRemove(); len(d.removed) > maxEntries {
			return nil, fmt.Errorf("it removes %d properties, more than %d", len(d.removed), maxEntries)
		}
		for _, k := range d.removed {
			d.size += len(k)
		}
	case r.GetErrorResponse() != nil:
		return nil, fmt.Errorf("it says that it has failed: %.200q", r.GetErrorResponse().GetBody())
	default:
		d.reply = c.denial(r.GetDeniedResponse())
		d.size += len(d.reply.Message)
	}
	d.tell(metadata)
	return d, nil
}

// entries are changes by headers. Without "append" they take the place of what there is:
// who trusts in what the service says must not be given what the client has said.
func (d *decision) entries(hs []*corev3.HeaderValueOption) ([]entry, error) {
	if len(hs) > maxEntries {
		return nil, fmt.Errorf("it sets %d properties, more than %d", len(hs), maxEntries)
	}
	all := make([]entry, 0, len(hs))
	for _, h := range hs {
		e := entry{codecs.KeyValue{Key: h.GetHeader().GetKey(), Value: h.GetHeader().GetValue()}, overwriteOrAdd}
		if e.Value == "" {
			e.Value = string(h.GetHeader().GetRawValue())
		}
		d.size += len(e.Key) + len(e.Value)
		switch {
		case h.GetAppend().GetValue(): //nolint:staticcheck // it is what this service's answers have
			e.how = appendOrAdd
		case h.GetAppendAction() == corev3.HeaderValueOption_ADD_IF_ABSENT:
			e.how = addIfAbsent
		case h.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			e.how = overwrite
		}
		all = append(all, e)
	}
	return all, nil
}

// denial is what the client is told: what the service says, and what it leaves open as
// configured.
func (c *config) denial(r *authv3.DeniedHttpResponse) codecs.LocalError {
	e := c.denied
	if code := int(r.GetStatus().GetCode()); code != 0 {
		if t := route.TypeOfHTTP(code); t != e.Type {
			e.Type, e.Code = t, 0
		}
	}
	if body := r.GetBody(); body != "" {
		e.Message = strings.ToValidUTF8(strings.Clone(body[:min(len(body), maxText)]), "?") // of which a cache keeps no more
	}
	return e
}

// tell makes properties of the answer's metadata.
func (d *decision) tell(s *structpb.Struct) {
	for k, v := range s.GetFields() {
		if text, is := fields.Scalar(v); is && len(d.properties) < maxEntries {
			d.properties = append(d.properties, codecs.KeyValue{Key: prefix + k, Value: text})
			d.size += len(k) + len(text)
		}
	}
}

// check tells why the changes of d cannot be made in messages of a codec.
func (d *decision) check(codec codecs.Codec) error {
	if len(d.request)+len(d.response)+len(d.removed) == 0 {
		return nil
	}
	mutator, able := codec.(codecs.Mutator)
	if !able {
		return fmt.Errorf("the protocol's messages cannot be changed")
	}
	for _, e := range d.request {
		if err := mutator.CheckMutation(codecs.ClientToServer, e.Key, e.Value); err != nil {
			return err
		}
	}
	for _, e := range d.response {
		if err := mutator.CheckMutation(codecs.ServerToClient, e.Key, e.Value); err != nil {
			return err
		}
	}
	if len(d.removed) == 0 {
		return nil
	}
	remover, able := codec.(codecs.Remover)
	if !able {
		return fmt.Errorf("nothing can be removed from the protocol's messages")
	}
	for _, k := range d.removed {
		if err := remover.CheckRemoval(codecs.ClientToServer, k); err != nil {
			return err
		}
	}
	return nil
}

// apply changes m as d says, or tells why it cannot: the changes of the request are
// required. Rules see what is removed as empty. Keys are removed before they are set, as the
// client may have them in another case.
func (d *decision) apply(m *filter.Message) error {
	md, mu := m.Request(), m.MutateRequest()
	for _, k := range d.removed {
		mu.Remove(k)
		mu.Require(k)
		if _, has := md.Get(k); has {
			md.Set(k, "")
		}
	}
	for _, e := range d.request {
		old, has := md.Get(e.Key)
		switch {
		case has && e.how == addIfAbsent, !has && e.how == overwrite:
			continue
		case has && e.how == appendOrAdd && len(old) > 0:
			e.Value = string(old) + "," + e.Value
			// check has not seen what the client has said.
			if err := m.Connection().Codec().(codecs.Mutator).CheckMutation(codecs.ClientToServer, e.Key, e.Value); err != nil {
				return err
			}
		}
		if _, able := m.Connection().Codec().(codecs.Remover); able && has {
			mu.Remove(e.Key)
		}
		mu.Set(e.Key, e.Value)
		mu.Require(e.Key)
		md.Set(e.Key, e.Value)
	}
	for _, e := range d.response {
		m.MutateResponse().Set(e.Key, e.Value)
	}
	if len(d.removed)+len(d.request)+len(d.properties) > 0 {
		m.ClearRoute()
	}
	return nil
}
