package filter

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/forward"
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
	if m.stream != nil && !m.stream.showUnseen() {
		return
	}
	m.trace.Read(&m.req)
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
		if !m.stand("too many requests wait for those before them") {
			c.turn.Cancel()
			return
		}
		c.turn.Resume = func() {
			defer c.sh.barrier(c)
			m.leaves()
			c.unhalt(m.send)
		}
		c.halt()
		return
	}
	if !m.admit(p) {
		return
	}
	line := c.lines.To(p)
	var how upstream.Send
	m.how(&how, line)
	policy := m.policy()
	// What has not been held has come in this event.
	if m.held || policy != nil && policy.Timeout > 0 {
		if how.Timeout = m.timeLeft(policy); how.Timeout <= 0 {
			m.overdue()
			if !m.silent(codecs.Timeout, deadlineSpent, metrics.Counters) {
				m.Reply(codecs.Timeout, deadlineSpent)
				m.answerLocally()
			}
			return
		}
	}
	if m.route != nil && m.route.Mirrors != nil {
		m.mirror()
	}
	expects := forward.NoAnswer
	if policy != nil || m.repeatable {
		expects = m.expects()
	}
	m.exchange.Watched = m.cfg.attemptFilters > 0
	m.exchange.Start(p, &how, policy, expects, m.repeatable)
	// The message may have ended by now.
	if p.Full(line) {
		c.stopFor(p, line)
	}
}

// how tells s, which is empty, how the request is sent over a line.
func (m *Message) how(s *upstream.Send, line *upstream.Line) {
	size := m.req.HeaderSize + m.req.BodySize + m.stream.size()
	if p, ok := m.ofRequest().Payload(); ok {
		size += len(p.Bytes)
	}
	s.Host, s.Strict = m.host, m.strict
	m.host = ""
	s.Line, s.Size = line, size
	s.Oneway, s.Muted, s.Lease = m.req.Type == codecs.Oneway, m.req.Type == codecs.Muted, m.req.Lease
	s.Unsure, s.Timeout = m.unsure, m.cfg.RequestTimeout
	s.Hash, s.Hashing = m.hash, m.hashing
}

// policy is that of the request's route, nil if nothing but one attempt is wanted.
func (m *Message) policy() *forward.Policy {
	if m.route == nil || m.stream != nil {
		return nil
	}
	return m.route.Policy
}

// timeLeft is how long the client's answer may still take: the shortest of the limits of
// the listener, the route, and the client itself rules. p may be nil.
func (m *Message) timeLeft(p *forward.Policy) time.Duration {
	limit := m.cfg.RequestTimeout
	if p != nil && p.Timeout > 0 {
		limit = min(limit, p.Timeout)
		if d := m.proto.deadliner; d != nil && m.req.Raw != nil {
			switch t := d.Timeout(&m.req); {
			case t < 0:
				return 0
			case t > 0:
				limit = min(limit, t)
			}
		}
	}
	return m.start + limit - m.sh.w.Now()
}

const deadlineSpent = "the deadline of the request has passed before it could be sent"

// overdue tells that the time of m is over and it has not been sent.
func (m *Message) overdue() {
	m.cfg.count(metrics.RequestDeadlineSpent, 1)
	m.debug(deadlineSpent)
}

// outOfTime ends the pause of a request whose time is over.
func (m *Message) outOfTime() Verdict {
	m.overdue()
	return m.Reply(codecs.Timeout, deadlineSpent)
}

// expects is what is known of the answer, as far as it counts for further attempts.
func (m *Message) expects() forward.Expects {
	if m.req.Type != codecs.Request || m.req.Retried {
		return forward.NoAnswer
	}
	if !m.mayBeOneway() {
		return forward.AnAnswer
	}
	switch m.way() {
	case answeredWay:
		return forward.AnAnswer
	case onewayWay:
		return forward.NoAnswer
	}
	return forward.PerhapsAnAnswer
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
func (o *caller) Encode(dst []byte, id uint64, left time.Duration, retry int) ([]byte, error) {
	m := (*Message)(o)
	mut := m.ofRequest()
	if m.exchange.Watched {
		mut = &m.sh.attemptMut
	} else if left > 0 || retry > 0 {
		mut = m.MutateRequest()
	}
	if mut != nil {
		mut.Timeout, mut.Retry = left, retry
	}
	if m.proto.rewritesIDs && m.stream == nil && !m.req.FixedID {
		m.req.ID = id
	}
	before := len(dst)
	dst, err := m.encode(dst, &m.req, mut)
	m.req.ID = m.clientID
	if m.stream != nil && err == nil {
		dst = append(dst, m.stream.early...)
	}
	m.writtenBytes = int64(len(dst) - before)
	if m.mayBeOneway() {
		m.goes()
	}
	return dst, err
}

// Keep implements forward.Owner.
func (o *caller) Keep() {
	m := (*Message)(o)
	m.sent = true
	if !m.held {
		m.frame = append(m.frame[:0], m.req.Raw...)
		m.held = true
	}
	if !m.cfg.keepsRequest {
		m.req.Release()
		m.req.Return(&m.sh.spare)
	}
	m.req.Raw = m.frame
}

// letGo is Release of what was kept.
func (m *Message) letGo() {
	if m.held {
		m.req.Raw = nil
		m.dropFrame()
	}
}

// Again implements forward.Owner.
func (o *caller) Again() (p *upstream.Pool, s upstream.Send) {
	m := (*Message)(o)
	p = m.exchange.Call().Pool()
	if p.Gone() {
		p = m.cfg.pool(m)
	}
	m.how(&s, nil)
	return p, s
}

// happened are the counters of what has become of attempts, and how logs say it.
var happened = [...]struct {
	counter metrics.Counter
	text    string
}{
	forward.Retried:        {metrics.RequestRetry, "sent again"},
	forward.RetrySucceeded: {metrics.RequestRetrySuccess, "answered after a retry"},
	forward.RetryLimit:     {metrics.RequestRetryLimitExceeded, "not sent again, as there are no more retries"},
	forward.RetryOverflow:  {metrics.RequestRetryOverflow, "not sent again, as the cluster's budget for retries is spent"},
	forward.PerTryTimeout:  {metrics.RequestPerTryTimeout, "not answered within per_try_timeout"},
	forward.Hedged:         {metrics.RequestHedge, "sent to a second host"},
	forward.HedgeWon:       {metrics.RequestHedgeWon, "answered by the second host first"},
}

// Happened implements forward.Owner.
func (o *caller) Happened(e forward.Event, why forward.Conditions) {
	m := (*Message)(o)
	h := &happened[e]
	m.cfg.count(h.counter, 1)
	m.spanTells(e, why)
	if e == forward.RetryLimit {
		m.flags |= facts.UpstreamRetryLimitExceeded
	}
	if why != 0 {
		m.debug("%s (%s)", h.text, why)
	} else {
		m.debug("%s", h.text)
	}
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
	if mut := m.ofRequest(); mut.Replaces() {
		mut.DropPayload()
	}
	m.dropFrame()
}

// Sent implements forward.Owner.
func (o *caller) Sent() {
	m := (*Message)(o)
	m.letGo()
	if m.req.Type == codecs.Quiet {
		m.cfg.count(metrics.RequestUnanswered, 1)
	}
	m.end()
}

// Answered implements forward.Owner.
func (o *caller) Answered(resp *codecs.Metadata) {
	m := (*Message)(o)
	defer m.sh.barrier(m.conn)
	if m.exchange.Keeps() {
		m.keepRequest()
	} else {
		m.letGo()
		m.settle(answeredAs(resp)) // else when it is not repeated
	}
	m.cfg.count(metrics.ResponseDecodingSuccess, 1)
	m.heard(resp)
	if m.conn.closed { // counted as abandoned
		m.end()
		return
	}
	m.resp, m.phase = resp, inResponse
	m.answeredAt, m.answerBytes = m.sh.w.Now(), resp.HeaderSize+resp.BodySize
	m.status, m.code, m.failure = resp.Status, resp.Code, resp.Failure
	m.held = false
	m.mutateByRoute(resp)
	m.pos = m.seen - 1
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
	m.letGo()
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
	if m.awaits {
		m.cfg.awaiting.remove(m)
	}
	m.flags |= facts.DownstreamConnectionTermination
	if m.details == "" && !m.conn.hungUp {
		m.details = "downstream_local_disconnect"
	}
	m.sentBytes -= int64(len(m.reply)) // it waited for its turn
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
		m.cfg.left++
		m.exchange.Abandon()
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
