package filter

import (
	"net/netip"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

const (
	// quietTime is how long a client has sent nothing before its connection is
	// closed at a moment of our choice.
	quietTime = 100 * time.Millisecond
	// lingerTime is how long a client may take nothing of the answers behind which
	// its connection is to be closed.
	lingerTime = 30 * time.Second
)

// connection is one client connection. What it does with bytes that come, with
// messages in flight and with bytes that go is its parts'.
type connection struct {
	sh  *shard
	cfg *workerListener
	d   host.Downstream

	proto *protocol // nil until the first bytes have told
	intake
	reading
	turns
	output
	suspicion
	departure
	lines   upstream.Lines
	place   place // among those whose requests wait for routes
	streams map[uint64]*stream
	paused  []*stream    // whose servers are not read, while the client does not read
	plain   *passthrough // nil while it speaks, or may speak, a protocol

	states []any // of filters, by their place in the chain

	closed  bool
	hungUp  bool // closed, by the client
	dropped bool // closed, as too much waits for it
	// unleased: what it had leased is lost, and with it what its requests rely on.
	unleased  bool
	leaving   bool // a filter wants it closed
	finishing bool // reads no more, closes after the last answer
	ending    bool // close was asked for
	lastUse   time.Duration
	where     *whereabouts // see located
	timer     timer.Timer  // see wakeAt
	armed     time.Duration

	next, prev *connection // all of the workerListener
}

// whereabouts are the ends of a connection, zero values where they have no IP address,
// and how the host writes them.
type whereabouts struct {
	remote, direct netip.Addr
	local          netip.AddrPort
	from, by, to   string
	id             uint64
}

// located asks where the connection comes from and leads to, once.
func (c *connection) located() *whereabouts {
	if c.where == nil {
		w := &whereabouts{from: c.d.RemoteAddress(), by: c.d.DirectRemoteAddress(), to: c.d.LocalAddress(), id: c.d.ID()}
		w.remote, w.direct, w.local = parsed(w.from).Addr(), parsed(w.by).Addr(), parsed(w.to)
		c.where = w
	}
	return c.where
}

func parsed(address string) netip.AddrPort {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// source is the client's IP address, the zero value if it has none.
func (c *connection) source() netip.Addr { return c.located().remote }

// speaks settles the protocol of the connection.
func (c *connection) speaks(p *protocol) {
	c.proto, c.ordered = p, p.ordered
}

// begin makes the decoder, which a connection that is silent does without.
func (c *connection) begin() {
	c.dec = c.proto.codec.NewDecoder(codecs.ClientToServer)
	if l, ok := c.dec.(codecs.Learner); ok {
		l.Learn(c.cfg.shapesOf(c.proto))
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
	for _, st := range c.streams {
		st.m.clientGone()
	}
	c.lookBack()
	if c.inFlight == 0 {
		c.end()
	}
}

// end closes the connection after what was written, as long as the client reads.
func (c *connection) end() {
	if len(c.withheld) > 0 {
		c.tellLast()
	}
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
		c.cfg.count(metrics.PartialFrameTimeout, 1)
		c.sh.warn(c.cfg, "client %s: a frame was not complete after %v", c.d.RemoteAddress(), c.cfg.Limits.PartialFrameTimeout)
		c.finish()
		return
	case c.idleTimeout() > 0 && idle && now >= c.lastUse+c.idleTimeout():
		c.cfg.count(metrics.IdleTimeout, 1)
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

// Closed implements host.DownstreamEvents.
func (c *connection) Closed(remote bool) {
	if c.closed {
		return
	}
	c.hungUp = remote || c.eof
	if c.inFlight > 0 {
		if remote {
			c.cfg.count(metrics.CxDestroyRemoteWithActiveRq, 1)
		} else {
			c.cfg.count(metrics.CxDestroyLocalWithActiveRq, 1)
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

// Aborted implements host.DownstreamEvents: the pipeline has panicked.
func (c *connection) Aborted() {
	if c.closed {
		return
	}
	c.cfg.Panicked(nil)
	if c.inFlight > 0 {
		c.cfg.count(metrics.CxDestroyLocalWithActiveRq, 1)
	}
	c.leave()
}

func (c *connection) leave() {
	if c.inFlight > 0 || len(c.aside) > 0 { // what ends later is judged, and logged, by who has sent it
		c.located()
		c.d.TLS()
	}
	c.closed = true
	c.room.Cancel()
	c.turn.Cancel()
	c.relief.Cancel()
	// The last one first: what waits for one before it must not be sent now.
	for m := c.last; m != nil; m = c.last {
		m.clientGone()
	}
	if c.plain != nil {
		c.plain.clientGone()
	}
	c.lines.Leave()
	for len(c.aside) > 0 {
		c.aside[0].discard()
	}
	c.takeOff(func(*withheld) bool { return true })
	c.sh.timers.Stop(&c.timer)
	if c.out != nil {
		c.out.Free()
		c.out = nil
	}
	c.forgetPartial()
	c.forgetUnread()
	c.disconnect()
	c.cfg.remove(c)
}
