package filter

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// caller is a message as its exchange sees it; filters see none of these methods.
// It implements forward.Owner.
type caller Message

// send gives the request to the pool of its cluster.
func (m *Message) send() {
	c := m.conn
	if m.cfg.keepsRequest && !m.held {
		raw := m.req.Raw
		if !m.detach(&m.req) {
			m.Reply(codecs.Unspecified, guard.Text)
			m.answerLocally()
			return
		}
		m.req.Raw = raw
	}
	m.phase, m.clientID = inUpstream, m.req.ID
	if m.mayBeOneway() {
		m.identify()
	}
	if m.leases() && c.unleased {
		m.Reply(codecs.UpstreamReset, "the upstream connection that the client had leased has ended")
		m.answerLocally()
		return
	}
	p := m.cfg.pool(m)
	if c.lines.Wait(p, &c.turn) {
		m.phase = inRequest
		m.hold()
		c.turn.Resume = func() {
			defer c.sh.barrier(c)
			c.unhalt(m.send)
		}
		c.halt()
		return
	}
	line := c.lines.To(p)
	m.exchange.Start(p, upstream.Send{
		Line: line, Size: m.req.HeaderSize + m.req.BodySize + m.stream.size(),
		Oneway: m.req.Type == codecs.Oneway, Muted: m.req.Type == codecs.Muted, Lease: m.req.Lease,
		Timeout: m.cfg.RequestTimeout,
	})
	// The message may have ended by now.
	if p.Full(line) {
		c.stopFor(p, line)
	}
}

// Hold implements forward.Owner. Properties are no longer needed, or known.
func (o *caller) Hold() {
	m := (*Message)(o)
	m.hold()
	if m.stream != nil {
		m.stream.stall(false)
	}
}

// Request implements forward.Owner.
func (o *caller) Request() *codecs.Metadata { return &o.req }

// Encode implements forward.Owner.
func (o *caller) Encode(dst []byte, id uint64) ([]byte, error) {
	m := (*Message)(o)
	if m.proto.rewritesIDs && m.stream == nil && !m.req.FixedID {
		m.req.ID = id
	}
	dst, err := m.encode(dst, &m.req, &m.reqMut)
	m.req.ID = m.clientID
	if m.stream != nil && err == nil {
		dst = append(dst, m.stream.early...)
	}
	return dst, err
}

// Release implements forward.Owner.
func (o *caller) Release() {
	m := (*Message)(o)
	m.sent = true
	if m.stream != nil {
		m.stream.opening()
	}
	if m.cfg.keepsRequest {
		m.req.Raw = nil
	} else {
		m.req.Release()
		m.req.Return(&m.sh.spare)
	}
	m.dropFrame()
}

// Sent implements forward.Owner.
func (o *caller) Sent() {
	m := (*Message)(o)
	if m.req.Type == codecs.Quiet {
		m.cfg.count(metrics.RequestUnanswered, 1)
	}
	m.end()
}

// Answered implements forward.Owner.
func (o *caller) Answered(resp *codecs.Metadata) {
	m := (*Message)(o)
	defer m.sh.barrier(m.conn)
	m.cfg.count(metrics.ResponseDecodingSuccess, 1)
	m.heard(resp)
	if m.conn.closed { // counted as abandoned
		m.end()
		return
	}
	m.resp, m.phase = resp, inResponse
	m.answeredAt, m.answerBytes = m.sh.w.Now(), resp.HeaderSize+resp.BodySize
	m.held = false
	m.mutateByRoute(resp)
	m.pos = len(m.cfg.chain) - 1
	if m.cfg.respFilters == 0 {
		m.pos = -1
	}
	m.runResponse()
}

// heard notes that the server has answered.
func (m *Message) heard(resp *codecs.Metadata) {
	if m.mayBeOneway() {
		m.wasAnswered(resp)
	}
}

// Failed implements forward.Owner.
func (o *caller) Failed(f *upstream.Failure) {
	m := (*Message)(o)
	defer m.sh.barrier(m.conn)
	if f.Panic != nil {
		m.req.ID = m.clientID // Encode had changed it
		m.codecPanicked(f.Panic)
	}
	if f.Answer != nil {
		m.heard(f.Answer)
	}
	if m.stream != nil && m.stream.open {
		m.stream.lost(f.Type, f.Reason)
		return
	}
	if m.req.Type == codecs.Quiet && f.Type == codecs.Timeout { // as it may be
		(*caller)(m).Sent()
		return
	}
	counter := metrics.Counters // none
	switch f.Type {
	case codecs.Timeout:
		counter = metrics.RequestTimeout
	case codecs.UpstreamReset, codecs.BadResponse:
		counter = metrics.UpstreamReset
	case codecs.OverLimit:
		counter = metrics.RequestOverflow
	}
	if m.silent(f.Type, f.Reason, counter) {
		return
	}
	if counter < metrics.Counters {
		m.cfg.count(counter, 1)
	}
	m.Reply(f.Type, f.Reason)
	m.answerLocally()
}

// Blocked implements forward.Owner: the server of a stream does not take bytes, or
// does again. Meanwhile its client is not read.
func (o *caller) Blocked(blocked bool) { o.stream.stall(blocked) }

// clientGone is called when the client's connection has ended, or its stream may
// not go on.
func (m *Message) clientGone() {
	if m.phase != answered {
		m.flags |= DownstreamConnectionTermination
	}
	switch {
	case m.phase == inUpstream && !m.leases() && (m.oneway || m.mayBeOneway() && m.exchange.Waiting()):
		// It waits for a connection, and is delivered all the same. It is active
		// no more: when it ends, no connection may be left by which a gauge
		// could be told.
		if !m.oneway {
			m.cfg.count(metrics.RequestAbandoned, 1)
		}
		m.cfg.gauge(metrics.RequestActive, -1)
		m.conn.unlink(m)
		m.left = true
		return
	case m.oneway:
		m.cfg.count(metrics.OnewayDropped, 1)
		m.exchange.Cancel()
	case m.phase == answered: // and counted
	default:
		if m.stream != nil && m.stream.open { // it has had its answer
			m.cfg.count(metrics.StreamAbandoned, 1)
		} else {
			m.cfg.count(metrics.RequestAbandoned, 1)
		}
		m.exchange.Cancel()
	}
	m.end()
}
