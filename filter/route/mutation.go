package route

import (
	"errors"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// maxMutations are the entries of one mutation.
const maxMutations = 1000

// Mutation is what a route changes in messages of one direction: changes that are
// made one after the other. It is immutable.
type Mutation []change

type change struct {
	action action
	key    string
	value  string
	format Format // in place of value; nothing is set if nothing comes of it
}

type action uint8

const (
	set action = iota
	add        // to the value that there is, or set
	setIfAbsent
	setIfThere
	remove
)

// Apply adds the changes to mu, where those of filters may be already, for the
// message md. Nothing is allocated but the strings that are made. It returns the
// first error of Source.Check; what that is about is left out.
func (m Mutation) Apply(mu *codecs.Mutation, md *codecs.Metadata, s Source) (err error) {
	for i := range m {
		c := &m[i]
		if c.action == set && c.format == nil {
			mu.Set(c.key, c.value)
		} else if e := c.apply(mu, md, s); err == nil {
			err = e
		}
	}
	return err
}

func (c *change) apply(mu *codecs.Mutation, md *codecs.Metadata, s Source) error {
	if c.action == remove {
		mu.Remove(c.key)
		return nil
	}
	var room [256]byte
	b := room[:0]
	if c.action != set {
		entry, property, there := current(mu, md, c.key)
		switch {
		case c.action == setIfAbsent && there, c.action == setIfThere && !there:
			return nil
		case c.action == add && there:
			b = append(append(append(b, entry...), Enough(property)...), ',')
		}
	}
	before := len(b)
	if c.format != nil {
		if b = c.format.Append(b, s); len(b) == before {
			return nil
		}
	} else if before == 0 {
		mu.Set(c.key, c.value)
		return nil
	} else {
		b = append(b, c.value...)
	}
	value := string(b)
	err := s.Check(c.key, value)
	if err == nil {
		mu.Set(c.key, value)
	}
	return err
}

// current is the value that key has with the changes of mu: what an entry sets, or
// a property that the message came with. Of several servers take the last.
func current(mu *codecs.Mutation, md *codecs.Metadata, key string) (entry string, property []byte, there bool) {
	for _, kv := range mu.Entries() {
		if kv.Key == key {
			return kv.Value, nil, true
		}
	}
	props := md.Properties()
	for i := len(props) - 1; i >= 0; i-- {
		if p := &props[i]; string(p.Name) == key && !mu.Removes(p.Name) {
			return "", p.Value, true
		}
	}
	return "", nil, false
}

// changes are what a table, a route or a weighted cluster says of messages.
type changes struct{ request, response Mutation }

func (c *changes) any() bool { return len(c.request)+len(c.response) > 0 }

// level is where changes are configured.
type level interface {
	GetRequestMutation() []*routev1alpha.KeyValue
	GetResponseMutation() []*routev1alpha.KeyValue
	GetRequestKeysToRemove() []string
	GetResponseKeysToRemove() []string
}

// changes compiles those of a table or a route. What is removed is removed first.
func (c *compiler) changes(l level, path string) (cs changes) {
	cs.request = c.removals(codecs.ClientToServer, l.GetRequestKeysToRemove(), path+"request_keys_to_remove")
	cs.request = append(cs.request, c.mutation(codecs.ClientToServer, l.GetRequestMutation(), path+"request_mutation")...)
	cs.response = c.removals(codecs.ServerToClient, l.GetResponseKeysToRemove(), path+"response_keys_to_remove")
	cs.response = append(cs.response, c.mutation(codecs.ServerToClient, l.GetResponseMutation(), path+"response_mutation")...)
	return cs
}

// headers compiles the changes of a weighted cluster, which are of Envoy's own
// messages.
func (c *compiler) headers(w *routev3.WeightedCluster_ClusterWeight, path string) (cs changes) {
	cs.request = c.removals(codecs.ClientToServer, w.GetRequestHeadersToRemove(), path+".request_headers_to_remove")
	cs.request = append(cs.request, c.options(codecs.ClientToServer, w.GetRequestHeadersToAdd(), path+".request_headers_to_add")...)
	cs.response = c.removals(codecs.ServerToClient, w.GetResponseHeadersToRemove(), path+".response_headers_to_remove")
	cs.response = append(cs.response, c.options(codecs.ServerToClient, w.GetResponseHeadersToAdd(), path+".response_headers_to_add")...)
	return cs
}

// most refuses lists that are too long.
func (c *compiler) most(n int, path string) {
	if n > maxMutations {
		c.refuse(path, "at most %d entries, has %d", maxMutations, n)
	}
}

func (c *compiler) removals(d codecs.Direction, keys []string, path string) (m Mutation) {
	c.most(len(keys), path)
	for i, key := range keys {
		at := element(path, i)
		if n := len(key); n == 0 || n > codecs.MaxText {
			c.refuse(at, "must have 1 to %d bytes, has %d", codecs.MaxText, n)
			continue
		}
		m = append(m, change{action: remove, key: key})
		if c.env.Mutator == nil {
			continue
		}
		err := errors.New("the codec cannot remove anything from messages")
		if r, ok := c.env.Mutator.(codecs.Remover); ok {
			err = r.CheckRemoval(d, key)
		}
		if err != nil {
			c.refuse(at, "%s", strings.TrimPrefix(err.Error(), "key: "))
		}
	}
	return m
}

var actions = map[routev1alpha.KeyValue_AppendAction]action{
	routev1alpha.KeyValue_OVERWRITE_IF_EXISTS_OR_ADD: set,
	routev1alpha.KeyValue_APPEND_IF_EXISTS_OR_ADD:    add,
	routev1alpha.KeyValue_ADD_IF_ABSENT:              setIfAbsent,
	routev1alpha.KeyValue_OVERWRITE_IF_EXISTS:        setIfThere,
}

func (c *compiler) mutation(d codecs.Direction, kvs []*routev1alpha.KeyValue, path string) (m Mutation) {
	c.most(len(kvs), path)
	for i, kv := range kvs {
		at := element(path, i)
		action, known := actions[kv.GetAppendAction()]
		if !known {
			c.refuse(at+".append_action", "unknown value %d", kv.GetAppendAction())
		}
		ch := change{action: action, key: kv.GetKey(), value: kv.GetValue()}
		if kv.GetFormat() == "" {
			c.entry(d, ch.key, ch.value, at+".key", at+".value")
			m = append(m, ch)
			continue
		}
		if kv.GetValue() != "" {
			c.refuse(at+".format", "there is a value, too")
		}
		if c.format(&ch, d, kv.GetFormat(), at+".key", at+".format") {
			m = append(m, ch)
		}
	}
	return m
}

var headerActions = map[corev3.HeaderValueOption_HeaderAppendAction]action{
	corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:    add,
	corev3.HeaderValueOption_ADD_IF_ABSENT:              setIfAbsent,
	corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD: set,
	corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:        setIfThere,
}

func (c *compiler) options(d codecs.Direction, hs []*corev3.HeaderValueOption, path string) (m Mutation) {
	c.most(len(hs), path)
	for i, h := range hs {
		at := element(path, i)
		c.only(h.ProtoReflect(), at, "header", "append_action", "keep_empty_value")
		c.only(h.GetHeader().ProtoReflect(), at+".header", "key", "value")
		action, known := headerActions[h.GetAppendAction()]
		if !known {
			c.refuse(at+".append_action", "unknown value %d", h.GetAppendAction())
		}
		ch := change{action: action, key: h.GetHeader().GetKey()}
		sets := c.format(&ch, d, h.GetHeader().GetValue(), at+".header.key", at+".header.value")
		if !sets && h.GetKeepEmptyValue() {
			ch.format, sets = nil, true
		}
		if sets {
			m = append(m, ch)
		}
	}
	return m
}

// format gives ch what s makes, and reports whether that can be anything.
func (c *compiler) format(ch *change, d codecs.Direction, s, key, path string) (sets bool) {
	if n := len(s); n > codecs.MaxText {
		c.refuse(path, "must have at most %d bytes, has %d", codecs.MaxText, n)
		return false
	}
	f, err := ParseFormat(s, d)
	if err != nil {
		c.refuse(path, "%v", err)
		return false
	}
	text, constant := f.constant()
	if constant {
		ch.value = text
		c.entry(d, ch.key, text, key, path)
		return text != ""
	}
	ch.format = f
	c.entry(d, ch.key, "", key, "")
	return true
}

// entry refuses what cannot be set in a message. Without a path of a value that is
// not known yet.
func (c *compiler) entry(d codecs.Direction, k, v, key, value string) {
	sound := true
	if n := len(k); n == 0 || n > codecs.MaxText {
		c.refuse(key, "must have 1 to %d bytes, has %d", codecs.MaxText, n)
		sound = false
	}
	if n := len(v); n > codecs.MaxText {
		c.refuse(value, "must have at most %d bytes, has %d", codecs.MaxText, n)
		sound = false
	}
	if c.env.Mutator == nil || !sound {
		return
	}
	err := c.env.Mutator.CheckMutation(d, k, v)
	if err == nil {
		return
	}
	// Codecs say which of the two it is.
	path := strings.TrimSuffix(key, ".key")
	reason := err.Error()
	if field, rest, ok := strings.Cut(reason, ": "); ok && field == "key" {
		path, reason = key, rest
	} else if ok && field == "value" {
		path, reason = value, rest
	}
	if path != "" {
		c.refuse(path, "%s", reason)
	}
}
