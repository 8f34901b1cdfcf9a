package filter

import (
	"errors"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Route judges a route that a filter has in its own configuration, for
// [Message.SetRoute]: all that routes have but a match. The error's paths are those
// within r. Only in Parse and ParseRoute.
func (e *Env) Route(r *routev1alpha.Route) (*route.Route, error) {
	var env route.Env
	if e.l != nil {
		env = route.Env{Mutator: e.l.mutator, Filters: ownFilters{e.l}}
	}
	to, errs := route.CompileRoute(r, env)
	return to, joined(errs)
}

// joined is all errs as one, nil if there are none.
func joined(errs []*route.Error) error {
	all := make([]error, len(errs))
	for i, e := range errs {
		all[i] = e
	}
	return errors.Join(all...)
}

// SetRoute gives the request a route that its table does not have, made by [Env.Route]:
// from now on [Message.Route] returns that, what it says of filters counts for those
// behind, and the router follows it. Policies of clusters are the table's all the same.
// Only in OnRequest.
func (m *Message) SetRoute(r *route.Route) {
	if m.phase == inRequest {
		m.ClearRoute()
		m.route, m.routed = r, true
	}
}

// Follow does what a route says: it sends the request to the route's cluster, with
// the changes that the route makes behind those of filters, or answers it. The
// filter returns what it returns.
func (m *Message) Follow(r *route.Route) Verdict {
	if d := r.Direct; d != nil {
		m.cfg.count(metrics.RequestDirectResponse, 1)
		m.sh.log(host.Debug, m.cfg.StatPrefix, "", "client %s: route %q answers itself: %s: %s", m.ClientAddress(), r.Name, d.Type, d.Message)
		m.SetDetails("direct_response")
		return m.ReplyWith(*d) // without a flag: nothing is out of the ordinary
	}
	if r.Success != nil {
		m.cfg.count(metrics.RequestDirectResponse, 1)
		m.debug("route %q answers itself", r.Name)
		md := m.sh.newMetadata() // it says nothing of its own
		m.mutate(r.Response, codecs.ServerToClient, md)
		m.sh.freeResponse(md)
		return m.Answer(*r.Success)
	}
	t, err := m.picked, error(nil)
	if t == nil || r != m.route {
		t, err = m.pick(r)
	}
	if err != nil {
		m.cfg.count(metrics.RequestNoCluster, 1)
		m.sh.log(host.Debug, m.cfg.StatPrefix, "", "client %s: route %q leads to no cluster: %v", m.ClientAddress(), r.Name, err)
		return m.Reply(codecs.ClusterNotFound, err.Error())
	}
	m.target = t
	m.Forward(t.Cluster)
	m.mutate(t.Request, codecs.ClientToServer, &m.req)
	return stopped
}

// mutateByRoute adds the route's changes of the answer md.
func (m *Message) mutateByRoute(md *codecs.Metadata) {
	switch {
	case m.target != nil:
		m.mutate(m.target.Response, codecs.ServerToClient, md)
	case m.route != nil: // a filter has sent it elsewhere
		m.mutate(m.route.Response, codecs.ServerToClient, md)
	}
}

// mutate adds changes of a route to those of the message md, which travels in direction d.
func (m *Message) mutate(changes route.Mutation, d codecs.Direction, md *codecs.Metadata) {
	if len(changes) > 0 {
		m.apply(changes, d, md)
	}
}

func (m *Message) apply(changes route.Mutation, d codecs.Direction, md *codecs.Metadata) {
	mut := m.MutateRequest()
	if d == codecs.ServerToClient {
		mut = m.MutateResponse()
	}
	s := &m.sh.source
	*s = source{m, d, md}
	err := changes.Apply(mut, md, s)
	*s = source{}
	if err != nil {
		m.cfg.count(metrics.MutationSkipped, 1)
		m.sh.warn(m.cfg, "%s mutated in part: %v", md.Type, err)
	}
}

// AppendFormat appends what f makes of the request. Only in OnRequest.
func (m *Message) AppendFormat(dst []byte, f route.Format) []byte {
	s := &m.sh.source
	*s = source{m, codecs.ClientToServer, &m.req}
	dst = f.Append(dst, s)
	*s = source{}
	return dst
}

// SetAttribute has the message that the hook sees, the request or its answer, say value
// under key when it goes out, and what it has under that key in other cases no more, if
// the codec can remove. If the codec cannot set that it counts as mutation_skipped, and
// nothing changes.
func (m *Message) SetAttribute(key, value string) {
	d, mut, md := m.outgoing()
	s := &m.sh.source
	*s = source{m, d, md}
	err := s.Check(key, value)
	*s = source{}
	if err != nil {
		m.cfg.count(metrics.MutationSkipped, 1)
		m.sh.warn(m.cfg, "%s mutated in part: %v", md.Type, err)
		return
	}
	m.RemoveAttribute(key)
	mut.Set(key, value)
}

// RemoveAttribute has the message that the hook sees go out without what it says under
// key, in any case of it, if the codec can remove that.
func (m *Message) RemoveAttribute(key string) {
	d, mut, _ := m.outgoing()
	if r := m.proto.remover; r != nil && r.CheckRemoval(d, key) == nil {
		mut.Remove(key)
	}
}

// outgoing is the message that the hook which runs now sees, its direction, and what
// changes in it.
func (m *Message) outgoing() (codecs.Direction, *codecs.Mutation, *codecs.Metadata) {
	if m.phase == inResponse {
		return codecs.ServerToClient, m.MutateResponse(), m.resp
	}
	return codecs.ClientToServer, m.MutateRequest(), &m.req
}

// source is a message as its route's mutation sees it: route.Source.
type source struct {
	m   *Message
	dir codecs.Direction
	md  *codecs.Metadata
}

func (s *source) Request() *codecs.Metadata {
	if s.dir == codecs.ClientToServer {
		return s.md
	}
	return nil
}

func (s *source) Response() *codecs.Metadata {
	if s.dir == codecs.ServerToClient {
		return s.md
	}
	return nil
}

func (s *source) RemoteAddress() string { return s.m.ClientAddress() }

func (s *source) LocalAddress() string {
	if s.m.conn.closed {
		return ""
	}
	return s.m.conn.d.LocalAddress()
}

func (s *source) Direction() corev3.TrafficDirection { return s.m.cfg.Direction }

func (s *source) TLS() *host.TLS {
	if s.m.conn.closed {
		return nil
	}
	return s.m.conn.d.TLS()
}

func (s *source) SourceField(name string) string { return s.m.source.Field(name) }

func (s *source) RouteName() string {
	if s.m.route == nil {
		return ""
	}
	return s.m.route.Name
}

func (s *source) Cluster() string { return s.m.cluster }

// Check judges what formats make of a message, as configurations are judged when
// they are loaded.
func (s *source) Check(key, value string) error {
	mutator, ok := s.m.proto.codec.(codecs.Mutator)
	switch {
	case !ok:
		return fmt.Errorf("codec %s cannot change messages", s.m.proto.name)
	case len(value) > codecs.MaxText:
		return fmt.Errorf("value: that of key %.40q is longer than %d bytes", key, codecs.MaxText)
	}
	return mutator.CheckMutation(s.dir, key, value)
}
