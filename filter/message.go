package filter

import (
	"errors"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

type phase uint8

const (
	inRequest  phase = iota // request filters run
	inUpstream              // on its way to a cluster and back
	inResponse              // response filters run
	answered                // waits for its turn on an ordered connection
)

// Message is one request, from its arrival to its end. Filters get it in their
// hooks and must not keep it; to come back to it later they take a [Resumer].
type Message struct {
	sh    *shard
	cfg   *configShard
	conn  *connection // nil once the client has gone
	proto *protocol
	gen   uint64 // counts the hooks that this Message has been through, in all its uses

	req      codecs.Metadata
	resp     *codecs.Metadata
	ownResp  *codecs.Metadata // resp when it is held
	reqMut   codecs.Mutation
	respMut  codecs.Mutation
	route    *route.Route
	noRoute  error // why it is nil although one might match
	states   []any
	frame    []byte // backs req.Raw, and resp.Raw, when held
	reply    []byte // waits for its turn
	clientID uint64
	number   uint64 // among the requests of its connection
	// What it calls, where that must be known when the request has gone: the
	// operation, the length of its method, and its hash.
	operation []byte
	method    int
	op        uint64
	preceded  uint64 // by so many answers to its client
	stream    *stream

	pos     int
	seen    int // filters whose OnRequest was called
	phase   phase
	oneway  bool
	aside   bool // a oneway in disguise, most likely: not in the list of its connection
	sent    bool
	held    bool
	paused  bool
	routed  bool
	local   codecs.LocalError
	replied bool
	forward bool
	cluster string
	start   time.Duration

	call       upstream.Call
	next, prev *Message // in the connection's list, in the order of arrival
}

// Request returns the request's metadata. After the request hooks Raw is nil,
// and the properties are there only if the chain has response or end filters.
func (m *Message) Request() *codecs.Metadata { return &m.req }

// Response returns the answer's metadata, nil while there is none.
func (m *Message) Response() *codecs.Metadata { return m.resp }

// MutateRequest returns the changes that will be made to the request when it
// goes out. The router adds those of the route, which win.
func (m *Message) MutateRequest() *codecs.Mutation { return &m.reqMut }

// MutateResponse returns the changes that will be made to the answer when it
// goes out. Those of the route are in it when the response filters run.
func (m *Message) MutateResponse() *codecs.Mutation { return &m.respMut }

// Oneway reports whether nobody waits for an answer.
func (m *Message) Oneway() bool { return m.oneway }

// Route returns the first route that matches the request, nil if none does. It
// is looked up at the first call, in the table that is valid then, and stays
// the same for this message.
func (m *Message) Route() *route.Route {
	if !m.routed {
		m.routed, m.noRoute = true, nil
		if t := m.cfg.table.Load().Load(); t != nil {
			if m.route, m.noRoute = t.Find(&m.req); m.noRoute != nil {
				m.cfg.count(requestUnroutable, 1)
				m.sh.warn(m.cfg, "client %s: no route: %v", m.ClientAddress(), m.noRoute)
			}
		}
	}
	return m.route
}

// Unroutable is why Route returned nil although a route might match: the rules
// would have cost too much. nil if that is not so.
func (m *Message) Unroutable() error {
	if !m.routed {
		return nil
	}
	return m.noRoute
}

// Rand returns a random number, for decisions that shall hit a share of the
// messages.
func (m *Message) Rand() uint64 { return m.sh.rand.Uint64() }

// Now is the worker's time, monotonic since an arbitrary point.
func (m *Message) Now() time.Duration { return m.sh.w.Now() }

// Start is when the request was decoded, on the clock of Now.
func (m *Message) Start() time.Duration { return m.start }

// ClientAddress is the client's address, "" when unknown or gone.
func (m *Message) ClientAddress() string {
	if m.conn == nil {
		return ""
	}
	return m.conn.d.RemoteAddress()
}

// LocalError returns the local reply that ended the message, nil if none did.
func (m *Message) LocalError() *codecs.LocalError {
	if !m.replied {
		return nil
	}
	return &m.local
}

// State returns what the filter that runs now has kept with the message, nil
// if nothing.
func (m *Message) State() any {
	if m.pos >= len(m.states) {
		return nil
	}
	return m.states[m.pos]
}

// SetState keeps v with the message for the filter that runs now.
func (m *Message) SetState(v any) {
	for len(m.states) <= m.pos {
		m.states = append(m.states, nil)
	}
	m.states[m.pos] = v
}

// Reply ends the message with a local reply in the client's protocol. The
// filter returns what it returns. A oneway message ends without a word.
func (m *Message) Reply(t codecs.ErrorType, text string) Verdict {
	m.local, m.replied = codecs.LocalError{Type: t, Message: text}, true
	return stopped
}

// Forward sends the request to a cluster and ends the chain. The filter
// returns what it returns.
func (m *Message) Forward(cluster string) Verdict {
	m.cluster, m.forward = cluster, true
	return stopped
}

// Resumer returns a handle with which this message can be resumed, once, from
// any goroutine, when the hook that runs now has paused it.
func (m *Message) Resumer() Resumer { return Resumer{m.sh, m, m.gen} }

// Resumer resumes the pause of one hook. Calling it twice, or after the message
// has ended, or when its hook did not pause, does nothing.
type Resumer struct {
	sh  *shard
	m   *Message
	gen uint64
}

// Continue resumes the message behind the filter that paused it.
func (r Resumer) Continue() { r.sh.post(posted{r: r}) }

// Do runs f on the message's worker, if the message is still paused, and goes
// on as its verdict says.
func (r Resumer) Do(f func(m *Message) Verdict) { r.sh.post(posted{r: r, do: f}) }

func (r Resumer) run(do func(m *Message) Verdict) {
	m := r.m
	if m.gen != r.gen || !m.paused {
		return
	}
	m.paused = false
	m.gen++
	defer m.sh.barrier(m.conn)
	v := Continue
	if do != nil {
		v = m.guard(func() Verdict { return do(m) })
	}
	if m.phase == inResponse {
		if m.after(v) {
			m.pos--
			m.runResponse()
		}
	} else if m.after(v) {
		m.pos++
		m.runRequest()
	}
}

// guard runs a hook; a panic in it ends this message only.
func (m *Message) guard(hook func() Verdict) (v Verdict) {
	defer func() {
		if r := recover(); r != nil {
			v = m.panicked(r)
		}
	}()
	return hook()
}

func (m *Message) panicked(r any) Verdict {
	m.cfg.count(filterPanic, 1)
	m.sh.logPanic(m.cfg.StatPrefix, " in filter "+m.cfg.chain[min(m.pos, len(m.cfg.chain)-1)].name, guard.New(r))
	return m.Reply(codecs.Unspecified, guard.Text)
}

func (m *Message) onRequest(f Filter) (v Verdict) {
	m.gen++
	defer func() {
		if r := recover(); r != nil {
			v = m.panicked(r)
		}
	}()
	return f.OnRequest(m)
}

func (m *Message) onResponse(f ResponseFilter) (v Verdict) {
	m.gen++
	defer func() {
		if r := recover(); r != nil {
			v = m.panicked(r)
		}
	}()
	return f.OnResponse(m)
}

// after carries out a verdict and reports whether the next filter shall run.
func (m *Message) after(v Verdict) bool {
	switch {
	case m.replied:
		m.answerLocally()
	case m.forward && m.phase == inRequest:
		m.send()
	case v == Pause:
		m.paused = true
		if m.hold(); m.replied {
			m.paused = false
			m.answerLocally()
		}
	default:
		return true
	}
	return false
}

func (m *Message) runRequest() {
	for ; m.pos < len(m.cfg.chain); m.pos++ {
		m.seen = max(m.seen, m.pos+1)
		if !m.after(m.onRequest(m.cfg.chain[m.pos].Filter)) {
			return
		}
	}
	m.Reply(codecs.Unspecified, "no filter forwarded the request")
	m.answerLocally()
}

// Hold implements upstream.Owner. Properties are no longer needed, or known.
func (m *Message) Hold() {
	m.hold()
	m.replied = false
	if m.stream != nil {
		m.stream.stall(false)
	}
}

// hold keeps the frame beyond this event. If it cannot, as the codec panics
// over properties that nobody has asked for before, there is a local reply.
func (m *Message) hold() {
	md := &m.req
	if m.held {
		return
	}
	if m.phase == inResponse {
		md = m.takeResponse()
	}
	m.frame = append(m.frame[:0], md.Raw...)
	m.detach(md)
	md.Raw = m.frame
	m.held = true
}

func (m *Message) detach(md *codecs.Metadata) {
	if err := guard.Do(md.Detach); err != nil {
		m.codecPanicked(err)
		md.Detach() // what could be read
		m.Reply(codecs.Unspecified, guard.Text)
	}
}

// takeResponse makes the answer's metadata the message's own.
func (m *Message) takeResponse() *codecs.Metadata {
	own := m.sh.newMetadata()
	*own, *m.resp = *m.resp, *own
	m.resp, m.ownResp = own, own
	return own
}

// send gives the request to the pool of its cluster.
func (m *Message) send() {
	c := m.cfg
	if c.keepsRequest && !m.held {
		raw := m.req.Raw
		if m.detach(&m.req); m.replied {
			m.answerLocally()
			return
		}
		m.req.Raw = raw
	}
	m.phase, m.clientID = inUpstream, m.req.ID
	if m.mayBeOneway() {
		m.identify()
	}
	p := c.pool(m)
	conn := m.conn
	var line *upstream.Line
	if conn != nil {
		line = conn.lines.To(p)
	}
	p.Send(&m.call, line, m.req.HeaderSize+m.req.BodySize+m.stream.size(), m.oneway, c.RequestTimeout)
	// The message may have ended by now.
	if conn != nil && p.Full(line) {
		conn.stopFor(p, line)
	}
}

// Encode implements upstream.Owner.
func (m *Message) Encode(dst []byte, id uint64) ([]byte, error) {
	mut := &m.reqMut
	if len(mut.Entries()) == 0 {
		mut = nil
	}
	if m.proto.rewritesIDs && m.stream == nil && !m.req.FixedID {
		m.req.ID = id
	}
	dst, err := m.encode(dst, &m.req, mut)
	if m.stream != nil && err == nil {
		dst = m.stream.opening(dst)
	}
	m.wasEncoded()
	return dst, err
}

// wasEncoded forgets what only the request's encoding needs.
func (m *Message) wasEncoded() {
	m.sent = true
	m.req.ID = m.clientID
	if m.cfg.keepsRequest {
		m.req.Raw = nil
	} else {
		m.req.Release()
		m.req.Return(&m.sh.spare)
	}
	m.dropFrame()
}

// Panicked implements upstream.Owner.
func (m *Message) Panicked(p *guard.Panic) {
	m.wasEncoded()
	m.codecPanicked(p)
	m.Failed(codecs.Unspecified, guard.Text)
}

// encode appends md with the changes of mut, or without them, counted, when it
// cannot carry any. The caller catches the codec's panics.
func (m *Message) encode(dst []byte, md *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	b, err := m.proto.codec.Encode(dst, md, mut)
	if err != nil && errors.Is(err, codecs.ErrNoMutation) {
		m.cfg.count(mutationSkipped, 1)
		m.sh.warn(m.cfg, "%s not mutated: %v", md.Type, err)
		b, err = m.proto.codec.Encode(dst, md, nil)
	}
	return b, err
}

// codecPanicked ends the client's connection if err is a panic of the codec.
func (m *Message) codecPanicked(err error) {
	if m.conn != nil {
		m.conn.panicked(err)
	} else if p := guard.In(err); p != nil {
		m.cfg.Panicked(p)
	}
}

// cannotEncode is the local reply in place of an answer.
func cannotEncode(err error) (codecs.ErrorType, string) {
	if guard.In(err) != nil {
		return codecs.Unspecified, guard.Text
	}
	return codecs.BadResponse, "response cannot be encoded: " + err.Error()
}

func (m *Message) dropFrame() {
	// Thousands of messages may be waiting for answers, each with its buffer.
	if m.held = false; cap(m.frame) > 1<<10 {
		m.frame = nil
	}
}

// Sent implements upstream.Owner.
func (m *Message) Sent() { m.end() }

// Heard implements upstream.Owner.
func (m *Message) Heard(resp *codecs.Metadata) {
	if m.mayBeOneway() {
		m.wasAnswered(resp)
	}
}

// Answered implements upstream.Owner.
func (m *Message) Answered(resp *codecs.Metadata) {
	defer m.sh.barrier(m.conn)
	c := m.cfg
	c.count(responseDecodingSuccess, 1)
	m.Heard(resp)
	if m.conn == nil { // counted as abandoned
		m.end()
		return
	}
	m.resp, m.phase = resp, inResponse
	m.held = false
	m.mutateByRoute()
	m.pos = len(c.chain) - 1
	if c.respFilters == 0 {
		m.pos = -1
	}
	m.runResponse()
}

func (m *Message) runResponse() {
	for ; m.pos >= 0; m.pos-- {
		if f := m.cfg.chain[m.pos].resp; f != nil && !m.after(m.onResponse(f)) {
			return
		}
	}
	m.resp.ID = m.clientID
	mut := &m.respMut
	if len(mut.Entries()) == 0 {
		mut = nil
	}
	m.write(m.resp.HeaderSize+m.resp.BodySize, func(dst []byte) ([]byte, error) {
		b, err := m.encode(dst, m.resp, mut)
		if err == nil {
			m.cfg.countResponse(m.resp)
		}
		return b, err
	})
}

// mutateByRoute adds the route's changes of the answer.
func (m *Message) mutateByRoute() {
	if m.route != nil {
		for _, kv := range m.route.ResponseMutation {
			m.respMut.Set(kv.Key, kv.Value)
		}
	}
}

// Failed implements upstream.Owner.
func (m *Message) Failed(e codecs.ErrorType, reason string) {
	defer m.sh.barrier(m.conn)
	if m.stream != nil && m.stream.open {
		m.stream.lost(e, reason)
		return
	}
	counter := -1
	switch e {
	case codecs.Timeout:
		counter = requestTimeout
	case codecs.UpstreamReset, codecs.BadResponse:
		counter = upstreamReset
	case codecs.OverLimit:
		counter = requestOverflow
	}
	if m.silent(e, reason, counter) {
		return
	}
	if counter >= 0 {
		m.cfg.count(counter, 1)
	}
	m.Reply(e, reason)
	m.answerLocally()
}

// answerLocally ends the message with its local reply.
func (m *Message) answerLocally() {
	if m.conn == nil || m.oneway {
		if m.oneway {
			m.cfg.count(onewayDropped, 1)
		}
		m.end()
		return
	}
	if m.phase == inRequest && m.knownOneway() {
		m.cfg.count(onewayDropped, 1)
		m.end()
		return
	}
	m.resp = nil
	m.leaveRequest()
	m.write(256+len(m.local.Message), func(dst []byte) ([]byte, error) {
		b, err := m.proto.codec.EncodeError(dst, &m.req, &m.local)
		if err == nil {
			m.cfg.count(localResponseBusinessException, 1)
		}
		return b, err
	})
}

// leaveRequest is called when a local reply ends a request that has not been
// encoded: hooks that come may ask for its properties, nobody for its frame.
func (m *Message) leaveRequest() {
	switch {
	case m.phase != inRequest || m.held: // they are its own already
		m.req.Raw = nil
	case m.cfg.keepsRequest && m.seen > 0:
		m.detach(&m.req)
	default:
		m.req.Release()
	}
}

// write appends the answer to what goes to the client, in its turn where the
// protocol has an order, and ends the message.
func (m *Message) write(size int, encode func(dst []byte) ([]byte, error)) {
	c := m.conn
	inTurn := !c.ordered || m.stream != nil || m.aside || c.oldest() == m
	var buf *host.Buffer
	dst := m.sh.answer[:0]
	if inTurn {
		buf = c.buffer(size)
		dst = buf.B
	} else if m.keepResponse(); m.replied && m.resp != nil {
		m.answerLocally()
		return
	}
	b, err := guard.Append(dst, encode)
	if err == nil && !inTurn && !m.replied && !c.mayPark(len(b)) {
		c.cfg.count(downstreamOverflow, 1)
		m.Reply(codecs.OverLimit, "too many bytes of answers wait for the one before")
		m.answerLocally()
		return
	}
	if err != nil {
		m.codecPanicked(err)
		if !m.replied { // an answer that cannot be encoded: say so
			m.Reply(cannotEncode(err))
			m.answerLocally()
			return
		}
		// Not even that: without an answer the client would hang.
		m.cfg.count(localResponseError, 1)
		m.sh.warn(m.cfg, "local reply cannot be encoded: %v", err)
		m.end()
		c.finish()
		return
	}
	if !inTurn {
		if m.ownResp != nil && !m.held {
			m.ownResp.Raw = nil // gone when hooks see it
		}
		m.sh.answer = b[:0]
		m.phase = answered
		c.park(m, b)
		return
	}
	buf.B = b
	m.end()
}

// keepResponse makes the answer the message's own if hooks will see it after this
// event. If it cannot, as the codec panics, there is a local reply.
func (m *Message) keepResponse() {
	if m.resp == nil || m.held || m.cfg.endFilters == 0 {
		return
	}
	raw := m.resp.Raw
	m.detach(m.takeResponse())
	m.resp.Raw = raw
}

// clientGone is called when the client's connection has ended.
func (m *Message) clientGone() {
	switch {
	case m.phase == inUpstream && (m.oneway || m.mayBeOneway() && m.call.Waiting()):
		// It waits for a connection, and is delivered all the same.
		if !m.oneway {
			m.cfg.count(requestAbandoned, 1)
		}
		m.leaveClient()
		return
	case m.oneway:
		m.cfg.count(onewayDropped, 1)
	case m.phase == answered: // and counted
	default:
		if m.stream != nil && m.stream.open { // it has had its answer
			m.cfg.count(streamAbandoned, 1)
		} else {
			m.cfg.count(requestAbandoned, 1)
		}
		if m.phase == inUpstream && !m.call.Abandon() {
			// Its id stays taken until the answer comes or the deadline passes.
			m.leaveClient()
			return
		}
	}
	m.end()
}

// leaveClient lets the message go on without its client. It is active no more:
// when it ends, no connection may be left by which a gauge could be told.
func (m *Message) leaveClient() {
	m.cfg.gauge(requestActive, -1)
	m.conn.unlink(m)
	m.conn = nil
}

// end takes leave of the message.
func (m *Message) end() {
	c := m.cfg
	for i := m.seen - 1; i >= 0 && c.endFilters > 0; i-- {
		if f := c.chain[i].end; f != nil {
			m.pos = i
			m.onEnd(f)
		}
	}
	if m.stream != nil {
		m.stream.end()
	} else if !m.oneway && (!m.aside || m.resp != nil) {
		ms := (m.sh.w.Now() - m.start).Milliseconds()
		c.record(uint64(ms))
	}
	switch {
	case m.aside:
		m.conn.takeBack(m)
	case m.conn != nil:
		c.gauge(requestActive, -1)
		m.conn.unlink(m)
	}
	m.sh.freeMessage(m)
}

func (m *Message) onEnd(f EndFilter) {
	defer func() {
		if r := recover(); r != nil {
			m.panicked(r)
		}
	}()
	f.OnEnd(m)
}
