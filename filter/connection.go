package filter

import (
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
	// leaveAt is how much of an unfinished frame stays in the host's buffer.
	// What is longer is taken out: the host stops reading when its buffer is
	// full, and the frame would never be whole.
	leaveAt = 32 << 10
	// drainSpread is the time over which idle connections of a replaced
	// listener are closed.
	drainSpread = 5 * time.Second
)

// connection is one client connection.
type connection struct {
	sh  *shard
	cfg *configShard
	d   host.Downstream
	in  inbox.Inbox
	out *host.Buffer

	proto   *protocol // nil until the first bytes have told
	dec     codecs.Decoder
	ordered bool // answers go out in the order of their requests

	// Of requests that may be oneways in disguise.
	answers       uint64
	parked        []*Message
	withheld      []withheld
	withheldBytes int

	first, last *Message // in flight, in the order of arrival
	inFlight    int
	requests    uint64     // that have come
	address     netip.Addr // of the client, see source
	streams     map[uint64]*stream
	stalled     int // streams whose servers do not take bytes

	closed    bool
	eof       bool // the client sends no more
	releasing bool
	finishing bool // reads no more, closes after the last answer
	ending    bool // close was asked for
	draining  bool
	waiting   bool // for room in a pool
	crowded   bool // has too many requests in flight
	broken    bool // a panic is about to end it
	pipelines bool // has sent a request before the answer to another
	blocked   bool // the client does not take bytes
	backlog   int  // bytes written since it does not
	lastUse   time.Duration

	timer        timer.Timer // idle, or an unfinished frame
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
	switch {
	case !c.stopped():
		if total > 0 {
			consumed = c.data(bufs, total)
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
	if !c.eof || c.stopped() || c.closed || c.finishing {
		return
	}
	if c.in.Buffered() > 0 {
		c.cfg.count(requestDecodingError, 1)
		c.sh.warn(c.cfg, "client %s ended in the middle of a frame", c.d.RemoteAddress())
	}
	c.finish()
}

func (c *connection) data(bufs [][]byte, total int) (consumed int) {
	held := c.in.Buffered() > 0
	another := false // frame than the one that had begun
	b, whole := c.in.Add(bufs, total, &c.sh.scratch)
	if whole {
		before := len(b)
		var need int
		b, need = c.decode(b)
		if c.closed || c.finishing {
			return total
		}
		another = len(b) < before
		switch {
		case held || c.eof || need > leaveAt || len(b) > leaveAt && !c.stopped():
			c.in.Keep(b, need)
			consumed = total
		default:
			c.in.Wait(need)
			consumed = before - len(b)
		}
	} else if held {
		consumed = total
	} else if c.eof {
		c.in.Take(bufs)
		consumed = total
	}
	if c.in.Need() == 0 {
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
			n := len(buf.B)
			b, err := guard.Append(buf.B, func(dst []byte) ([]byte, error) { return hb.EncodeHeartbeat(dst, &m.req) })
			if err != nil {
				c.panicked(err)
				b = b[:n]
			}
			buf.B = b
			c.wrote(len(b) - n)
		}
	case codecs.GoAway, codecs.Ignored:
		cfg.count(requestEvent, 1)
	default:
		cfg.count(requestUnserved, 1)
	}
	c.sh.freeMessage(m)
}

// link takes m on: it is in flight from now on.
func (c *connection) link(m *Message) {
	c.cfg.gauge(requestActive, 1)
	c.requests++
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
		if c.finishing {
			c.end()
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
		out := c.buffer(len(m.reply.B))
		out.B = append(out.B, m.reply.B...)
		c.wrote(len(m.reply.B))
		m.end()
	}
	c.releasing = false
}

// stopped reports whether no more requests are taken for now. Reading is
// disabled once for each reason.
func (c *connection) stopped() bool {
	return c.waiting || c.crowded || c.blocked || c.stalled > 0 || c.broken
}

// stopFor stops reading until p has room again.
func (c *connection) stopFor(p *upstream.Pool) {
	if !c.waiting && !c.closed {
		c.waiting = true
		c.d.ReadDisable(true)
		p.Wait(c)
	}
}

// Resume implements upstream.Waiter.
func (c *connection) Resume() {
	if c.closed {
		return
	}
	c.waiting = false
	c.goOn()
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
}

// WriteBlocked implements host.DownstreamEvents.
func (c *connection) WriteBlocked(blocked bool) {
	if c.closed || c.blocked == blocked {
		return
	}
	c.blocked = blocked
	for _, st := range c.streams {
		st.pause(blocked)
	}
	if blocked {
		c.backlog = 0
		c.d.ReadDisable(true)
	} else {
		c.goOn()
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

func (c *connection) wrote(n int) {
	if !c.blocked {
		return
	}
	if c.backlog += n; c.backlog > c.cfg.Limits.MaxWriteBufferBytes && !c.ending {
		c.cfg.count(downstreamOverflow, 1)
		c.sh.warn(c.cfg, "client %s does not read its answers: closed with %d bytes waiting",
			c.d.RemoteAddress(), c.backlog)
		c.finishing, c.ending = true, true
		c.d.Close(false)
	}
}

func (c *connection) flush() {
	if b := c.out; b != nil {
		c.out = nil
		if len(b.B) == 0 || c.closed {
			b.Free()
		} else {
			c.d.Write(b, false)
		}
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
	c.in.Wait(0)
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

// end closes the connection after what was written.
func (c *connection) end() {
	if !c.ending && !c.closed {
		c.ending = true
		c.sh.ending = append(c.sh.ending, c)
	}
}

// arm makes the timer fire at at or earlier.
func (c *connection) arm(at time.Duration) {
	if !c.timer.Running() || at < c.wakeAt() {
		c.sh.timers.Start(&c.timer, at)
	}
}

// wakeAt is when the timer has something to look at.
func (c *connection) wakeAt() time.Duration {
	at := time.Duration(1<<63 - 1)
	if c.cfg.IdleTimeout > 0 {
		at = min(at, c.lastUse+c.cfg.IdleTimeout)
	}
	if c.frameStarted > 0 {
		at = min(at, c.frameStarted+c.cfg.Limits.PartialFrameTimeout)
	}
	return at
}

func (c *connection) onTimer() {
	defer c.sh.barrier(c)
	now := c.sh.w.Now()
	idle := c.inFlight == 0
	switch {
	case c.closed || c.ending:
		return
	case c.frameStarted > 0 && now >= c.frameStarted+c.cfg.Limits.PartialFrameTimeout && !c.stopped():
		c.cfg.count(partialFrameTimeout, 1)
		c.sh.warn(c.cfg, "client %s: a frame was not complete after %v", c.d.RemoteAddress(), c.cfg.Limits.PartialFrameTimeout)
		c.finish()
		return
	case c.cfg.IdleTimeout > 0 && idle && now >= c.lastUse+c.cfg.IdleTimeout:
		c.cfg.count(idleTimeout, 1)
		c.finish()
		return
	case c.draining && idle && c.frameStarted == 0:
		c.cfg.count(drainClosed, 1)
		c.finish()
		return
	}
	next := c.wakeAt()
	if c.draining {
		// It was busy when its turn came: look again soon, between requests.
		next = min(next, now+drainSpread/10)
	}
	if next < 1<<63-1 {
		// What cannot be acted on yet, as requests are in flight or reading is
		// stopped, is looked at again, but not all the time.
		c.sh.timers.Start(&c.timer, max(next, now+100*time.Millisecond))
	}
}

// drain closes the connection at some moment of the next seconds in which it
// is idle.
func (c *connection) drain() {
	if !c.draining && !c.closed {
		c.draining = true
		c.sh.timers.Start(&c.timer, c.sh.w.Now()+time.Duration(c.sh.rand.Int64N(int64(drainSpread))))
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
	for m := c.first; m != nil; m = c.first {
		m.clientGone()
	}
	for len(c.parked) > 0 {
		c.parked[0].discard()
	}
	c.withheld, c.withheldBytes = nil, 0
	c.sh.timers.Stop(&c.timer)
	if c.out != nil {
		c.out.Free()
		c.out = nil
	}
	c.in.Wait(0)
	c.cfg.remove(c)
}
