package filter

import (
	"errors"
	"net/netip"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/inbox"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

const (
	// drainSpread is the time over which idle connections of a replaced
	// listener are closed.
	drainSpread = 5 * time.Second
	// quietTime is how long a client has sent nothing before its connection is
	// closed at a moment of our choice.
	quietTime = 100 * time.Millisecond
	// goAwayTime is how long a client has to go elsewhere when it has been told.
	goAwayTime = 500 * time.Millisecond
	// lingerTime is how long a client may take nothing of the answers behind which
	// its connection is to be closed.
	lingerTime = 30 * time.Second
)

// connection is one client connection.
type connection struct {
	sh  *shard
	cfg *configShard
	d   host.Downstream
	in  inbox.Inbox
	out *host.Buffer

	partial inbox.Frame

	proto *protocol // nil until the first bytes have told
	dec   codecs.Decoder
	// leaveAt is how long a frame may be of which what has come stays in the host's
	// buffer. What is longer is taken out: the host stops reading when its buffer is
	// full, and the frame would never be whole.
	leaveAt int
	ordered bool // answers go out in the order of their requests

	// Of requests that may be oneways in disguise.
	answers       uint64     // that the client has got
	aside         []*Message // known oneways that may still be answered
	withheld      []withheld
	withheldBytes int

	first, last *Message // in flight, in the order of arrival
	inFlight    int
	requests    uint64     // that have come
	variant     uint8      // of the last of them
	address     netip.Addr // of the client, see source
	streams     map[uint64]*stream
	plain       *passthrough // nil while it speaks, or may speak, a protocol
	stalled     int          // streams whose frames nobody takes for now
	paused      []*stream    // whose servers are not read, while the client does not read

	closed     bool
	eof        bool // the client sends no more
	releasing  bool
	finishing  bool // reads no more, closes after the last answer
	ending     bool // close was asked for
	draining   bool
	saidGoAway bool
	leaveAfter time.Duration // when it drains
	waiting    bool          // for room in a pool or its line
	crowded    bool          // has too many requests in flight
	broken     bool          // a panic is about to end it
	pipelines  bool          // has sent a request before the answer to another
	blocked    bool          // the client does not take bytes
	dropped    bool          // closed, as too much waits for it
	lastUse    time.Duration
	unread     backlog
	parked     int // bytes of answers that wait for their turn

	lines upstream.Lines
	room  upstream.Waiter

	timer        timer.Timer // see wakeAt
	armed        time.Duration
	frameStarted time.Duration

	next, prev *connection // all of the configShard
}

// source is the client's IP address, the zero value if it has none.
func (c *connection) source() netip.Addr {
	if !c.address.IsValid() {
		if ap, err := netip.ParseAddrPort(c.d.RemoteAddress()); err == nil {
			c.address = ap.Addr().Unmap().WithZone("")
		}
	}
	return c.address
}

// speaks settles the protocol of the connection.
func (c *connection) speaks(p *protocol) {
	c.proto, c.ordered = p, p.ordered
	c.dec = p.codec.NewDecoder(codecs.ClientToServer)
}

// Data implements host.DownstreamEvents.
func (c *connection) Data(bufs [][]byte, total int, end bool) int {
	if c.finishing || c.closed {
		return total
	}
	c.lastUse = c.sh.w.Now()
	c.eof = c.eof || end
	consumed := 0
	if c.in.Skipping() {
		var left int
		if bufs, left = c.in.Skipped(bufs, total); !c.in.Skipping() {
			c.frameStarted = 0
		}
		consumed = total - left
	}
	switch {
	case c.plain != nil:
		c.plain.fromClient(bufs, total)
		consumed = total
	case !c.stopped():
		if total > consumed {
			consumed += c.data(bufs, total-consumed)
		}
		c.checkEnd()
	case end:
		// Reading was disabled while these bytes were under way, and the host
		// does not bring them again after an end of stream.
		c.in.Take(bufs)
		consumed = total
	}
	return consumed
}

// checkEnd finishes the connection when the client has sent all it will.
func (c *connection) checkEnd() {
	if !c.eof || c.stopped() || c.closed || c.finishing || c.plain != nil {
		return
	}
	if c.in.Buffered() > 0 || c.in.Skipping() {
		c.cfg.count(requestDecodingError, 1)
		c.sh.warn(c.cfg, "client %s ended in the middle of a frame", c.d.RemoteAddress())
	}
	c.finish()
}

func (c *connection) data(bufs [][]byte, total int) (consumed int) {
	held := c.in.Buffered() > 0
	if held && !c.eof && !c.partial.MayGrow(c.in.Growth(total)) {
		return 0
	}
	another := false // frame than the one that had begun
	counted := c.partial.Counted()
	b, whole := c.in.Add(bufs, total, &c.sh.scratch)
	if whole {
		before := len(b)
		var need int
		b, need = c.decode(b)
		if c.closed || c.finishing {
			return total
		}
		if another = len(b) < before; another {
			c.partial.Passed()
		}
		switch {
		case held || c.eof || need > c.leaveAt && c.partial.MayGrow(len(b)):
			c.in.Keep(b, need)
			consumed = total
		default:
			c.in.Wait(need)
			consumed = before - len(b)
		}
	} else if held {
		consumed = total
	} else if c.eof || c.in.Need() > c.leaveAt && c.partial.MayGrow(total) { // there was no room before
		c.in.Take(bufs)
		consumed = total
	}
	if c.in.Size() > 0 || counted || c.partial.Counted() {
		c.keeps(another)
	}
	if c.in.Need() == 0 && !c.in.Skipping() {
		c.frameStarted = 0
	} else if c.frameStarted == 0 || another {
		c.frameStarted = c.lastUse
		c.arm(c.lastUse + c.cfg.Limits.PartialFrameTimeout)
	}
	return consumed
}

// decode handles the whole frames of b and returns the rest, with the length
// that the frame at its start must reach.
func (c *connection) decode(b []byte) (rest []byte, need int) {
	if c.proto == nil && len(b) > 0 {
		var p *protocol
		var more bool
		err := guard.Do(func() { p, more = c.cfg.sniff(b) })
		switch {
		case err != nil:
			c.panicked(err)
			return b, 0
		case p != nil:
			c.speaks(p)
		case more:
			return b, len(b) + 1
		case c.cfg.Passthrough != "":
			c.passOn(b)
			return nil, 0
		default:
			c.cfg.count(requestDecodingError, 1)
			c.sh.warn(c.cfg, "client %s: no codec recognises the protocol that starts with %q", c.d.RemoteAddress(), b[:min(len(b), 16)])
			c.finish()
			return nil, 0
		}
	}
	for len(b) > 0 && !c.stopped() {
		m := c.sh.newMessage(c)
		n, err := guard.Decode(c.dec, b, &m.req)
		if err != nil {
			if size := c.tooLarge(m, err); size > 0 {
				if c.closed || c.finishing {
					return nil, 0
				}
				c.in.Skip(size - len(b))
				b = b[min(size, len(b)):]
				continue
			}
			c.sh.freeMessage(m)
			if c.panicked(err) {
				return b, 0
			}
			c.cfg.count(requestDecodingError, 1)
			c.sh.warn(c.cfg, "client %s: %v", c.d.RemoteAddress(), err)
			c.finish()
			return nil, 0
		}
		if n > len(b) {
			c.sh.freeMessage(m)
			return b, n
		}
		if m.req.Malformed == "" {
			c.cfg.count(requestDecodingSuccess, 1)
		} else {
			c.cfg.count(requestDecodingError, 1)
			c.sh.warn(c.cfg, "client %s: %s", c.d.RemoteAddress(), m.req.Malformed)
		}
		c.message(m)
		if c.closed || c.finishing {
			return nil, 0
		}
		b = b[n:]
	}
	return b, 0
}

// tooLarge handles a frame that is only too large, whose length it returns: that
// many bytes are to be passed over. It returns 0 where err ends the connection.
func (c *connection) tooLarge(m *Message, err error) int {
	var e *codecs.TooLarge
	if !errors.As(err, &e) || e.Size <= e.Limit {
		return 0
	}
	request := false // or what belongs to an open stream
	switch m.req.Type {
	case codecs.Request, codecs.Oneway, codecs.StreamInit,
		codecs.StreamData, codecs.StreamCloseOneWay, codecs.StreamCloseTwoWay:
		request = true
	}
	far := e.Size/inbox.MaxOver > e.Limit
	if far && !request {
		return 0
	}
	c.cfg.count(requestDecodingError, 1)
	c.sh.warn(c.cfg, "client %s: %v", c.d.RemoteAddress(), err)
	if !request {
		c.sh.freeMessage(m)
		return e.Size
	}
	m.req.Malformed = e.Error()
	c.message(m)
	if far && !c.closed {
		c.finish()
	}
	return e.Size
}

func (c *connection) message(m *Message) {
	cfg := c.cfg
	switch m.req.Type {
	case codecs.StreamInit:
		c.openStream(m)
		return
	case codecs.StreamData, codecs.StreamCloseOneWay, codecs.StreamCloseTwoWay:
		c.streamFrame(&m.req)
	case codecs.Request, codecs.Oneway:
		cfg.count(request, 1)
		if m.oneway = m.req.Type == codecs.Oneway; m.oneway {
			cfg.count(requestOneway, 1)
		} else {
			cfg.count(requestTwoway, 1)
		}
		if len(c.withheld) > 0 {
			c.review()
		}
		if o := c.last; o != nil && o.stream == nil && !o.wentOn() && o.sameID(m) {
			// Answers to requests with the same id are told apart by their order.
			c.ordered = true
		}
		c.link(m)
		if m.req.Malformed != "" {
			m.Reply(codecs.BadRequest, "malformed request: "+m.req.Malformed)
			m.answerLocally()
			return
		}
		m.runRequest()
		return
	case codecs.Heartbeat:
		cfg.count(requestEvent, 1)
		if hb, ok := c.proto.codec.(codecs.Heartbeater); ok && m.req.ExpectsReply {
			buf := c.buffer(m.req.HeaderSize + m.req.BodySize)
			var err error
			buf.B, err = guard.Append(buf.B, func(dst []byte) ([]byte, error) { return hb.EncodeHeartbeat(dst, &m.req) })
			if err != nil && !c.panicked(err) {
				cfg.count(localResponseError, 1)
				c.sh.warn(cfg, "client %s: its heartbeat cannot be answered: %v", c.d.RemoteAddress(), err)
			}
		}
	case codecs.GoAway, codecs.Ignored:
		cfg.count(requestEvent, 1)
	case codecs.Goodbye:
		cfg.count(requestEvent, 1)
		c.finish()
	default:
		cfg.count(requestUnserved, 1)
	}
	c.sh.freeMessage(m)
}

// link takes m on: it is in flight from now on.
func (c *connection) link(m *Message) {
	c.cfg.gauge(requestActive, 1)
	c.requests++
	c.variant = m.req.Variant
	m.number = c.requests
	if m.prev = c.last; m.prev == nil {
		c.first = m
	} else {
		m.prev.next = m
	}
	c.last = m
	c.inFlight++
	if c.inFlight >= c.cfg.Limits.MaxRequestsInFlight && !c.crowded {
		c.crowded = true
		c.d.ReadDisable(true)
	}
}

// unlink takes m off when it has ended.
func (c *connection) unlink(m *Message) {
	if m.prev == nil {
		c.first = m.next
	} else {
		m.prev.next = m.next
	}
	if m.next == nil {
		c.last = m.prev
	} else {
		m.next.prev = m.prev
	}
	m.next, m.prev = nil, nil
	c.inFlight--
	c.parked -= len(m.reply)
	c.sh.held -= len(m.reply)
	if c.closed {
		return
	}
	if c.ordered {
		c.release()
	}
	if c.crowded && c.inFlight <= c.cfg.Limits.MaxRequestsInFlight/2 {
		c.crowded = false
		c.goOn()
	}
	if c.inFlight == 0 {
		c.lastUse = c.sh.w.Now()
		switch {
		case c.finishing:
			c.end()
		case c.draining && c.lastUse >= c.leaveAfter:
			c.sh.later = append(c.sh.later, c) // more may have come with what was answered
		}
	}
}

// oldest is the request whose answer is next on an ordered connection. Streams
// have no place in the order: one may be open for long.
func (c *connection) oldest() *Message {
	m := c.first
	for m != nil && m.stream != nil {
		m = m.next
	}
	return m
}

// release writes the answers whose turn has come.
func (c *connection) release() {
	if c.releasing {
		return
	}
	c.releasing = true
	for m := c.oldest(); m != nil && m.phase == answered; m = c.oldest() {
		out := c.buffer(len(m.reply))
		out.B = append(out.B, m.reply...)
		m.end()
	}
	c.releasing = false
}

// stopped reports whether no more requests are taken for now. Reading is
// disabled once for each reason.
func (c *connection) stopped() bool {
	return c.waiting || c.crowded || c.blocked || c.stalled > 0 || c.broken
}

// stopFor stops reading until p, or the client's line to it, has room again.
func (c *connection) stopFor(p *upstream.Pool, l *upstream.Line) {
	if c.waiting || c.closed {
		return
	}
	c.waiting = true
	c.d.ReadDisable(true)
	c.room.Resume = func() {
		c.waiting = false
		c.goOn()
	}
	p.Wait(&c.room, l)
}

// goOn takes up reading again after one reason to stop has gone.
func (c *connection) goOn() {
	c.d.ReadDisable(false)
	// What waits in the host's buffer the host brings again by itself; what
	// waits here is taken up when the event that runs now is over.
	if !c.stopped() && (c.in.Buffered() > 0 || c.eof) {
		c.sh.later = append(c.sh.later, c)
	}
}

// takeUp decodes what the inbox itself holds.
func (c *connection) takeUp() {
	if c.broken && !c.closed {
		c.finish()
	}
	if c.closed || c.finishing || c.stopped() {
		return
	}
	if c.in.Buffered() > 0 {
		c.data(nil, 0)
	}
	c.checkEnd()
	c.takeTurn(true)
}

// WriteBlocked implements host.DownstreamEvents.
func (c *connection) WriteBlocked(blocked bool) {
	if c.closed || c.blocked == blocked {
		return
	}
	c.blocked = blocked
	c.holds(blocked)
	if blocked {
		c.unread.taken = c.sh.w.Now()
		c.d.ReadDisable(true)
		return
	}
	if c.handOver(); c.unread.size == 0 {
		c.resumeServers()
	}
	c.goOn()
}

// behind reports whether the client takes less than there is for it: servers that
// send it what nobody has asked for one by one are not read meanwhile.
func (c *connection) behind() bool { return c.blocked || c.unread.size > 0 }

// resumeServers has them read again.
func (c *connection) resumeServers() {
	c.resumeStreams()
	if c.plain != nil {
		c.plain.resume()
	}
}

// buffer returns the outgoing buffer with room for size bytes and a bit.
func (c *connection) buffer(size int) *host.Buffer {
	const slack = 64
	if c.out != nil && cap(c.out.B)-len(c.out.B) < size+slack && len(c.out.B) > 0 {
		c.flush()
	}
	if c.out == nil {
		c.out = c.sh.w.Buffer(size + slack)
		c.sh.touched = append(c.sh.touched, c)
	}
	return c.out
}

func (c *connection) flush() {
	b := c.out
	if b == nil {
		return
	}
	c.out = nil
	switch {
	case len(b.B) == 0 || c.closed || c.dropped:
		b.Free()
	case c.behind():
		c.keep(b.B)
		b.Free()
	default:
		c.d.Write(b)
	}
}

// finish reads no more, and closes when the last answer has been written.
// Streams end: their servers would wait for frames that cannot come, and with a
// client that has closed nobody would notice before a stream is idle for long.
func (c *connection) finish() {
	if c.finishing {
		return
	}
	c.finishing = true
	c.forgetPartial()
	// It sends no more calls whose answers they could be taken for.
	c.tell(func(*withheld) bool { return true })
	for _, st := range c.streams {
		st.m.clientGone()
	}
	for m := c.first; m != nil; {
		if m.wentOn() {
			m = c.first // others may have ended with it
		} else {
			m = m.next
		}
	}
	if c.inFlight == 0 {
		c.end()
	}
}

// end closes the connection after what was written, as long as the client reads.
func (c *connection) end() {
	if c.unread.size > 0 {
		c.arm(c.unread.taken + lingerTime)
	} else if !c.ending && !c.closed {
		c.ending = true
		c.sh.ending = append(c.sh.ending, c)
	}
}

// closeBehind is end, when all that was to be written has been handed over.
func (c *connection) closeBehind() {
	switch {
	case c.closed || c.dropped:
	case c.unread.size > 0:
		c.ending = false
		c.end()
	default:
		c.d.Close(true)
	}
}

// arm makes the timer fire at at or earlier.
func (c *connection) arm(at time.Duration) {
	if !c.timer.Running() || at < c.armed {
		c.armed = at
		c.sh.timers.Start(&c.timer, at)
	}
}

// wakeAt is when the timer has something to look at.
func (c *connection) wakeAt() time.Duration {
	at := time.Duration(1<<63 - 1)
	if idle := c.idleTimeout(); idle > 0 {
		at = min(at, c.lastUse+idle)
	}
	if c.frameStarted > 0 {
		at = min(at, c.frameStarted+c.cfg.Limits.PartialFrameTimeout)
	}
	if c.finishing && c.unread.size > 0 {
		at = min(at, c.unread.taken+lingerTime)
	}
	if c.unread.since > c.unread.bound {
		at = min(at, c.unread.taken+slowTime)
	}
	if c.draining && c.plain == nil {
		at = min(at, c.leaveAfter)
	}
	return at
}

// idleTimeout is 0 if there is none.
func (c *connection) idleTimeout() time.Duration {
	if c.plain != nil && c.cfg.IdleTimeout == 0 {
		return plainIdleTimeout
	}
	return c.cfg.IdleTimeout
}

func (c *connection) onTimer() {
	defer c.sh.barrier(c)
	now := c.sh.w.Now()
	idle := c.inFlight == 0
	switch {
	case c.closed || c.ending:
		return
	case c.unread.since > c.unread.bound && now >= c.unread.taken+slowTime:
		c.doesNotRead()
		return
	case c.finishing:
		if at := c.unread.taken + lingerTime; idle && c.unread.size > 0 {
			if now >= at {
				c.drop()
			} else {
				c.arm(at)
			}
		}
		return
	case c.frameStarted > 0 && now >= c.frameStarted+c.cfg.Limits.PartialFrameTimeout && !c.stopped():
		c.cfg.count(partialFrameTimeout, 1)
		c.sh.warn(c.cfg, "client %s: a frame was not complete after %v", c.d.RemoteAddress(), c.cfg.Limits.PartialFrameTimeout)
		c.finish()
		return
	case c.idleTimeout() > 0 && idle && now >= c.lastUse+c.idleTimeout():
		c.cfg.count(idleTimeout, 1)
		c.finish()
		return
	}
	c.takeTurn(now >= c.lastUse+quietTime)
	if next := c.wakeAt(); next < 1<<63-1 && !c.finishing {
		// What cannot be acted on yet, as requests are in flight or reading is
		// stopped, is looked at again, but not all the time.
		c.arm(max(next, now+quietTime))
	}
}

// drain has the connection leave at some moment of the next seconds, or soon after
// it: its client is told so if the protocol can, and it is closed when it is idle.
func (c *connection) drain() {
	if !c.draining && !c.closed && c.plain == nil { // else there is no moment between requests
		c.draining = true
		c.leaveAfter = c.sh.w.Now() + time.Duration(c.sh.rand.Int64N(int64(drainSpread)))
		c.arm(c.leaveAfter)
	}
}

// takeTurn has a draining connection leave if its turn has come. The client is told
// first, and has a while; behind that the moment must be good.
func (c *connection) takeTurn(good bool) {
	now := c.sh.w.Now()
	switch {
	case !c.draining || c.plain != nil || now < c.leaveAfter:
	case c.sayGoAway():
		c.leaveAfter = now + goAwayTime
		c.arm(c.leaveAfter)
	case good:
		c.depart()
	}
}

// sayGoAway tells the client, once, that it shall send no new requests, and reports
// whether it did.
func (c *connection) sayGoAway() bool {
	if c.requests == 0 || c.saidGoAway {
		return false
	}
	c.saidGoAway = true
	l, ok := c.proto.codec.(codecs.Leaver)
	if !ok {
		return false
	}
	buf := c.buffer(0)
	n := len(buf.B)
	var err error
	buf.B, err = guard.Append(buf.B, func(dst []byte) ([]byte, error) { return l.EncodeGoAway(dst, c.variant) })
	if err != nil && !c.panicked(err) {
		c.sh.warn(c.cfg, "client %s cannot be told that its listener has been replaced: %v", c.d.RemoteAddress(), err)
	}
	return len(buf.B) > n
}

// depart closes a draining connection whose turn has come, if it is idle now. That
// is a good moment right behind an answer, as the client hears of the end together
// with it, and when the client has sent nothing for a while; at any other a request
// may be on its way.
func (c *connection) depart() {
	if c.inFlight == 0 && c.frameStarted == 0 && !c.stopped() && !c.finishing && !c.closed {
		c.cfg.count(drainClosed, 1)
		c.finish()
	}
}

// Closed implements host.DownstreamEvents.
func (c *connection) Closed(remote bool) {
	if c.closed {
		return
	}
	if c.inFlight > 0 {
		if remote {
			c.cfg.count(cxDestroyRemoteWithActiveRq, 1)
		} else {
			c.cfg.count(cxDestroyLocalWithActiveRq, 1)
		}
	}
	c.leave()
}

// panicked reports whether err is a panic. It ends the connection when the event
// that runs now is over, after the answers to what is in flight.
func (c *connection) panicked(err error) bool {
	p := guard.In(err)
	if p == nil {
		return false
	}
	c.cfg.Panicked(p)
	if !c.broken && !c.closed {
		c.broken = true
		c.sh.later = append(c.sh.later, c)
	}
	return true
}

// Failed implements host.DownstreamEvents: the pipeline has panicked.
func (c *connection) Failed() {
	if c.closed {
		return
	}
	c.cfg.Panicked(nil)
	if c.inFlight > 0 {
		c.cfg.count(cxDestroyLocalWithActiveRq, 1)
	}
	c.leave()
}

func (c *connection) leave() {
	c.closed = true
	c.room.Cancel()
	for m := c.first; m != nil; m = c.first {
		m.clientGone()
	}
	if c.plain != nil {
		c.plain.clientGone()
	}
	for len(c.aside) > 0 {
		c.aside[0].discard()
	}
	c.withheld, c.withheldBytes = nil, 0
	c.sh.timers.Stop(&c.timer)
	if c.out != nil {
		c.out.Free()
		c.out = nil
	}
	c.forgetPartial()
	c.forgetUnread()
	c.cfg.remove(c)
}
