package filter

import (
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// shadow is the copy of a request that a mirror policy sends elsewhere: a call of its
// own, over connections of its own, that nobody waits for. It implements
// upstream.Owner, and is used again and again.
type shadow struct {
	sh    *shard
	call  upstream.Call
	req   codecs.Metadata // what outlives the frame, and that until it has been encoded
	mut   codecs.Mutation
	frame []byte // backs req.Raw when held

	shadowUse
}

// shadowUse is what a shadow knows of the one copy that it is now.
type shadowUse struct {
	policy *route.Mirror
	cfg    *workerListener
	proto  *protocol
	era    uint64 // see shadows
	sent   int    // bytes to the server

	// Where copies are logged:
	conn  *connection // nil: they are not
	route string
	begun time.Duration

	// Where answers are compared:
	request *Message // that is not answered yet, nil if it is, or has ended
	next    *shadow  // of the same request
	theirs  outcome  // of the request …
	ours    outcome  // … and of its copy
	over    bool     // the copy's own way is
}

// outcome is how a request was answered: 0 not at all, or 1 + its codecs.Status.
type outcome uint8

var outcomes = [...]string{"nothing", "success", "a business exception", "an error"}

// shadows is what a listener has on a worker of copies.
type shadows struct {
	pools map[poolKey]*upstream.Pool
	// active is what the gauge says. When the last connection goes by which it could
	// be told, a new era begins: those of an earlier one are not in it.
	active int64
	era    uint64
}

// mirrors reports whether requests of the protocol can be copied. Where their order
// counts copies would come in another, or keep the request waiting.
func (p *protocol) mirrors() bool { return p.requests.Mode != upstream.InOrder }

// CheckMirror tells whether requests of any of the protocols can be copied.
func (ps anyOf) CheckMirror() error {
	for _, p := range ps {
		if p.mirrors() {
			return nil
		}
	}
	return errors.New("codec " + ps[0].name + " cannot be mirrored: servers execute a connection's requests in their order")
}

// mirror sends copies of the request as the policies of its route say. Its frame is
// valid.
func (m *Message) mirror() {
	if m.stream != nil || !m.proto.mirrors() {
		return
	}
	for i := range m.route.Mirrors {
		switch p := &m.route.Mirrors[i]; {
		case !p.Picks(m.sh.rand):
		case m.copySize(p) > p.MaxRequestBytes:
			m.cfg.mirrorOverflow(p.Cluster, "the request is larger than max_request_bytes")
		case m.sh.shadows[p.Cluster] >= p.MaxRequests:
			m.cfg.mirrorOverflow(p.Cluster, "max_requests are in flight")
		default:
			m.sh.newShadow().start(m, p)
			if m.trace.Recorded() {
				m.trace.AddEvent("mirror", attribute.String("upstream_cluster", p.Cluster))
			}
		}
	}
}

// copySize is how many bytes a copy of the request takes.
func (m *Message) copySize(p *route.Mirror) int {
	n := len(m.req.Raw)
	if p.AfterMutation {
		payload, _ := m.ofRequest().Payload()
		n += len(payload.Bytes)
	}
	return n
}

func (wl *workerListener) mirrorOverflow(cluster, why string) {
	wl.count(metrics.MirrorOverflow, 1)
	wl.sh.log(host.Debug, wl.StatPrefix, cluster, "mirror: no copy for cluster %s: %s", cluster, why)
}

func (s *shadow) start(m *Message, p *route.Mirror) {
	s.policy, s.cfg, s.proto, s.era = p, m.cfg, m.proto, m.cfg.shadows.era
	s.req.SetOutline(&m.req)
	s.logs(m)
	s.req.Raw = m.req.Raw
	if p.AfterMutation {
		s.mut.Assign(m.MutateRequest())
		if m.trace != nil {
			s.mut.Own() // some of it is the trace's
		}
	}
	if p.Compare && !m.oneway {
		s.request, s.next, m.shadows = m, m.shadows, s
	}
	s.sh.shadows[p.Cluster]++
	s.cfg.shadows.active++
	s.cfg.gauge(metrics.MirrorActive, 1)
	// A known oneway in disguise is none here.
	known := m.mayBeOneway() && s.proto.rewritesIDs && !m.req.FixedID && m.way() == onewayWay
	m.cfg.mirrorPool(m, p.Cluster).Send(&s.call, &upstream.Send{
		Size:   m.copySize(p),
		Oneway: m.req.Type == codecs.Oneway || known, Muted: m.req.Type == codecs.Muted,
		Timeout: p.Timeout,
	})
}

// mirrorPool returns the pool for copies of m.
func (wl *workerListener) mirrorPool(m *Message, cluster string) *upstream.Pool {
	opts := &m.proto.requests
	if m.req.FixedID {
		opts = &m.proto.fixed
	}
	k := poolKey{cluster, m.proto, m.req.Variant, opts.Mode}
	if p := wl.shadows.pools[k]; p != nil && !p.Gone() {
		p.Observe((*mirrorObserver)(wl))
		return p
	}
	own := *opts
	own.Linger = 0 // one that does not read is not waited for
	p := wl.sh.up.Pool(upstream.Key{
		Scope: wl.StatPrefix, Cluster: cluster, Mirror: true,
		Profile: m.proto.profile, Variant: k.variant, Mode: k.mode,
	}, m.proto.codec, &own, (*mirrorObserver)(wl))
	if wl.shadows.pools == nil {
		wl.shadows.pools = map[poolKey]*upstream.Pool{}
	}
	wl.shadows.pools[k] = p
	return p
}

// Hold implements upstream.Owner.
func (s *shadow) Hold() {
	s.frame = append(s.frame[:0], s.req.Raw...)
	s.req.Raw = s.frame
}

// Request implements upstream.Owner.
func (s *shadow) Request() *codecs.Metadata { return &s.req }

// Encode implements upstream.Owner.
func (s *shadow) Encode(dst []byte, id uint64) ([]byte, error) {
	if s.proto.rewritesIDs && !s.req.FixedID {
		s.req.ID = id
	}
	b, _, err := s.proto.encode(dst, &s.req, &s.mut) // what is skipped the request itself has told
	if err == nil {
		s.sent = len(b) - len(dst)
		s.cfg.count(metrics.Mirror, 1)
		s.dropFrame()
	}
	return b, err
}

func (s *shadow) dropFrame() {
	if s.req.Raw = nil; cap(s.frame) > maxFrameKept {
		s.frame = nil
	}
	s.mut.DropPayload()
}

// Sent implements upstream.Owner.
func (s *shadow) Sent() { s.end(nil, nil) }

// Answered implements upstream.Owner.
func (s *shadow) Answered(resp *codecs.Metadata) {
	s.ours = 1 + outcome(resp.Status)
	s.end(resp, nil)
}

// Failed implements upstream.Owner.
func (s *shadow) Failed(f *upstream.Failure) {
	if p := f.Panic; p != nil && !p.Logged {
		p.Logged = true
		s.sh.logPanic(s.cfg.StatPrefix, "", p)
	}
	if cluster := s.policy.Cluster; f.Type == codecs.OverLimit {
		s.cfg.mirrorOverflow(cluster, f.Reason)
	} else {
		s.cfg.count(metrics.MirrorFailed, 1)
		s.sh.log(host.Debug, s.cfg.StatPrefix, cluster, "mirror: a copy for cluster %s has failed: %s", cluster, f.Reason)
	}
	s.end(nil, f)
}

// Streamed and Blocked implement upstream.Owner: streams are not copied.
func (*shadow) Streamed(*codecs.Metadata) {}
func (*shadow) Blocked(bool)              {}

// end is called when the copy's way is over, by an answer, a failure, or neither.
func (s *shadow) end(resp *codecs.Metadata, f *upstream.Failure) {
	if s.conn != nil {
		s.log(resp, f)
		defer s.cfg.endIfDone()
	}
	if n := s.sh.shadows; n[s.policy.Cluster] > 1 {
		n[s.policy.Cluster]--
	} else {
		delete(n, s.policy.Cluster)
	}
	if w := &s.cfg.shadows; s.era == w.era {
		w.active--
		s.cfg.gauge(metrics.MirrorActive, -1)
	}
	s.dropFrame()
	if s.over = true; s.request == nil {
		s.compare()
	}
}

// compare is called when both ways are over.
func (s *shadow) compare() {
	switch {
	case s.ours == 0 || s.theirs == 0:
	case s.ours == s.theirs:
		s.cfg.count(metrics.MirrorSame, 1)
	default:
		s.cfg.count(metrics.MirrorDifferent, 1)
		s.sh.log(host.Debug, s.cfg.StatPrefix, s.policy.Cluster, "mirror: cluster %s answers with %s what was answered with %s",
			s.policy.Cluster, outcomes[s.ours], outcomes[s.theirs])
	}
	s.sh.freeShadow(s)
}

// tellShadows tells the copies whose answers are compared how the request was
// answered.
func (m *Message) tellShadows(o outcome) {
	for s := m.shadows; s != nil; s = m.shadows {
		m.shadows, s.next = s.next, nil
		s.request, s.theirs = nil, o
		if s.over {
			s.compare()
		}
	}
}

// endEra has the gauge say that there are no copies, as it can be told for the last
// time.
func (wl *workerListener) endEra() {
	if w := &wl.shadows; w.active > 0 {
		wl.gauge(metrics.MirrorActive, -w.active)
		w.active = 0
		w.era++
	}
}

func (s *shard) newShadow() *shadow {
	if n := len(s.freeShadows); n > 0 {
		o := s.freeShadows[n-1]
		s.freeShadows = s.freeShadows[:n-1]
		return o
	}
	if s.shadows == nil {
		s.shadows = map[string]int{}
	}
	o := &shadow{sh: s}
	o.call.Init(o)
	return o
}

func (s *shard) freeShadow(o *shadow) {
	o.req.Reset()
	o.mut.Reset()
	o.shadowUse = shadowUse{}
	if len(s.freeShadows) < maxFree {
		s.freeShadows = append(s.freeShadows, o)
	}
}

// mirrorObserver is what a listener hears of the connections of its copies. They are
// not in what it counts of upstream: that is of its requests.
type mirrorObserver workerListener

// Stray implements upstream.Observer.
func (*mirrorObserver) Stray(*codecs.Metadata) {}

// Event implements upstream.Observer.
func (*mirrorObserver) Event() {}

// Unserved implements upstream.Observer.
func (*mirrorObserver) Unserved() {}

// Starves implements upstream.Observer.
func (*mirrorObserver) Starves() {}

// DecodingError implements upstream.Observer.
func (o *mirrorObserver) DecodingError(cluster, addr string, err error, _ bool) {
	o.sh.warnOf(cluster, (*workerListener)(o), "mirror: cluster %s: host %s: %v", cluster, addr, err)
}

// Closes implements upstream.Observer.
func (o *mirrorObserver) Closes(cluster, addr, reason string) {
	o.sh.warnOf(cluster, (*workerListener)(o), "mirror: cluster %s: host %s: connection closed: %s", cluster, addr, reason)
}

// Panicked implements upstream.Observer.
func (o *mirrorObserver) Panicked(p *guard.Panic) { (*workerListener)(o).Panicked(p) }

// ConnectFailed implements upstream.Observer.
func (o *mirrorObserver) ConnectFailed(cluster string, r host.CloseReason, why string) {
	o.sh.warnOf(cluster+" "+r.String(), (*workerListener)(o), "mirror: cluster %s: no connection: %s", cluster, why)
}

// Breaks, Ejects, Probes, Ejected, Readmits and Detoured implement upstream.Observer:
// copies have neither breakers, nor watched hosts, nor hashes.
func (*mirrorObserver) Breaks(string, breaker.Limit)             {}
func (*mirrorObserver) Ejects(string, string, outlier.Ejection)  {}
func (*mirrorObserver) Probes(string, string)                    {}
func (*mirrorObserver) Ejected(int)                              {}
func (*mirrorObserver) Readmits(string, string)                  {}
func (*mirrorObserver) Detoured(string, string, upstream.Detour) {}
