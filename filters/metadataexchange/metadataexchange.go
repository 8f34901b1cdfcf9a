// Package metadataexchange tells the proxy on the other side which workload this one
// stands before, and learns the same of it.
package metadataexchange

import (
	"encoding/binary"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.metadata_exchange"

// The attributes, as Istio's proxies call them.
const (
	metadataKey = "x-envoy-peer-metadata"
	idKey       = "x-envoy-peer-metadata-id"
)

func init() { filter.Register(Name, builder{}) }

type builder struct{}

// Phase implements filter.PhasedBuilder.
func (builder) Phase() filter.Phase { return filter.Authentication }

// Parse implements filter.Builder.
func (builder) Parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	return parse(config, env)
}

// Build implements filter.Builder.
func (builder) Build(c filter.Config, scope *filter.Scope) (filter.Filter, error) {
	e, err := newExchange(c.(*settings), filter.ProcessEnvironment)
	if err != nil {
		return nil, err
	}
	if e.metadata == "" {
		scope.Life().Logf(host.Warn, "filter %s of stat_prefix %q tells nothing: neither its configuration nor the environment says which workload this is", Name, scope.StatPrefix)
	}
	const name = "metadata_exchange.malformed"
	if e.malformed, err = scope.Counter(name); err != nil {
		return nil, fmt.Errorf("counter %s: %w", name, err)
	}
	return e, nil
}

func newExchange(s *settings, env filter.Environment) (*exchange, error) {
	e := &exchange{direction: s.direction, wanted: s.labels}
	all := s.own
	env.Complete(&all)
	e.own = all
	e.own.Labels = map[string]string{}
	for k, v := range all.Labels {
		if s.labels[k] {
			e.own.Labels[k] = v
		}
	}
	if e.own.ID+e.own.Name+e.own.Namespace+e.own.WorkloadName == "" && len(e.own.Labels) == 0 {
		return e, nil
	}
	var err error
	e.metadata, err = encode(&e.own)
	if n := len(e.metadata); n > maxMetadata {
		return nil, &fields.Error{Path: "workload", Reason: fmt.Sprintf("what is sent of it must have at most %d bytes, has %d", maxMetadata, n)}
	}
	return e, err
}

// exchange is the filter.
type exchange struct {
	direction corev3.TrafficDirection
	own       filter.Workload
	metadata  string // own, on the wire; "": it is not known
	wanted    map[string]bool
	malformed *filter.Counter
}

// ForWorker implements filter.WorkerFilter.
func (e *exchange) ForWorker(*filter.Worker) filter.Filter { return &part{exchange: e} }

// OnRequest implements filter.Filter: it is the workers' parts that are asked.
func (e *exchange) OnRequest(m *filter.Message) filter.Verdict { return e.ForWorker(nil).OnRequest(m) }

// part is a worker's.
type part struct {
	*exchange
	peers peers
}

// ForgetsRequest implements filter.ForgetfulFilter.
func (*part) ForgetsRequest() {}

// asked is the state of a message whose client tells, and so wants to be told.
type asked struct{}

// OnRequest implements filter.Filter.
func (p *part) OnRequest(m *filter.Message) filter.Verdict {
	if p.direction == corev3.TrafficDirection_OUTBOUND {
		m.SetSource(&p.own)
		p.tell(m)
		return filter.Continue
	}
	peer, told := p.learn(m, m.Request())
	if peer != nil {
		m.SetSource(peer)
	}
	if p.direction == corev3.TrafficDirection_INBOUND {
		m.SetDestination(&p.own)
		if told {
			m.SetState(asked{})
		}
	}
	return filter.Continue
}

// OnResponse implements filter.ResponseFilter.
func (p *part) OnResponse(m *filter.Message) filter.Verdict {
	switch {
	case p.direction != corev3.TrafficDirection_INBOUND:
		if peer, _ := p.learn(m, m.Response()); peer != nil {
			m.SetDestination(peer)
		}
	case m.State() != nil:
		p.tell(m)
	}
	return filter.Continue
}

// tell has the message say which the own workload is.
func (p *part) tell(m *filter.Message) {
	if p.metadata == "" {
		return
	}
	m.SetAttribute(metadataKey, p.metadata)
	if p.own.ID != "" {
		m.SetAttribute(idKey, p.own.ID)
	}
}

// learn returns the workload that the message tells of, nil if it does not, or cannot be
// understood, and whether it has told. Where the direction is known the message does not
// go on with it: it is between proxies.
func (p *part) learn(m *filter.Message, md *codecs.Metadata) (peer *filter.Workload, told bool) {
	id, hasID := md.Get(idKey)
	metadata, hasMetadata := md.Get(metadataKey)
	if hasMetadata {
		var known bool
		if peer, known = p.peers.find(id, metadata); !known {
			peer = decode(id, metadata, p.wanted)
			p.peers.add(peer)
		}
		if peer == nil {
			m.Count(p.malformed, 1)
		}
	}
	if p.direction != corev3.TrafficDirection_UNSPECIFIED {
		if hasMetadata {
			m.RemoveAttribute(metadataKey)
		}
		if hasID {
			m.RemoveAttribute(idKey)
		}
	}
	return peer, hasMetadata || hasID
}

// maxPeers are those that a worker knows. Their number is bounded by what there is in
// practice, and their memory by maxID and maxMetadata.
const maxPeers = 500

// peers are what was learnt by the bytes that have told of it, so that each is read once.
type peers struct {
	known map[string]*filter.Workload
	key   []byte
}

// find returns what the bytes tell of, nil if they are malformed. known is false if they
// have not been read yet.
func (ps *peers) find(id, metadata []byte) (w *filter.Workload, known bool) {
	if len(id) > maxID || len(metadata) > maxMetadata {
		ps.key = nil
		return nil, false
	}
	ps.key = binary.BigEndian.AppendUint16(ps.key[:0], uint16(len(id)))
	ps.key = append(append(ps.key, id...), metadata...)
	w, known = ps.known[string(ps.key)]
	return w, known
}

// add notes what the bytes that find has not found tell of.
func (ps *peers) add(w *filter.Workload) {
	switch {
	case ps.key == nil: // too much to be kept
		return
	case ps.known == nil:
		ps.known = map[string]*filter.Workload{}
	case len(ps.known) >= maxPeers:
		clear(ps.known)
	}
	ps.known[string(ps.key)] = w
}
