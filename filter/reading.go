package filter

import "github.com/meltemi-mesh/meltemi/filter/upstream"

// reading are the reasons for which a client is not read. The host is told of each
// once when it comes, and once when it goes.
type reading struct {
	waiting   bool // for room in a pool or its line
	halted    bool // a request has not gone upstream that must not be overtaken
	routeless bool // a request waits for routes
	crowded   bool // has too many requests in flight
	pausing   bool // too many bytes of messages stand, some of its
	blocked   bool // the client does not take bytes; if its own are carried plainly the host is not told
	broken    bool // a panic is about to end it
	resting   bool // to become idle; the host is not told
	stalled   int  // streams whose frames nobody takes for now

	standing int // of its messages

	room   upstream.Waiter // for what is waited for
	turn   upstream.Waiter // of the request that halts it
	relief upstream.Waiter // from what stands
}

// stopped reports whether no more requests are taken for now. Reading is
// disabled once for each reason.
func (r *reading) stopped() bool {
	return r.waiting || r.halted || r.routeless || r.crowded || r.pausing || r.blocked || r.stalled > 0 || r.broken || r.resting
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

// stopForPauses stops reading until fewer bytes stand, or none of this client's.
func (c *connection) stopForPauses() {
	if c.pausing || c.closed {
		return
	}
	c.pausing = true
	c.d.ReadDisable(true)
	c.relief.Resume = func() {
		c.pausing = false
		if !c.closed {
			c.goOn()
		}
	}
	c.cfg.pauses.clients.Add(&c.relief)
}

// halt takes no more requests, as others would overtake the one that halts here,
// where servers are to get them in their order.
func (c *connection) halt() {
	if c.proto.requests.Mode == upstream.InOrder && !c.halted {
		c.halted = true
		c.d.ReadDisable(true)
	}
}

// unhalt has the request that halts go on, by f. It may have to halt again.
func (c *connection) unhalt(f func()) {
	halted := c.halted
	c.halted = false
	f()
	if halted && !c.closed {
		c.goOn()
	}
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
	if c.overtaken {
		c.lookBack()
	}
	if (c.broken || c.leaving) && !c.closed {
		c.finish()
	}
	if c.resting {
		c.takeTurn(true)
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
