package filter

import "github.com/meltemi-mesh/meltemi/filter/metrics"

// turns are the messages in flight of a connection, in the order in which they came,
// and their answers that wait for each other.
type turns struct {
	ordered     bool // answers go out in the order of their requests
	releasing   bool
	variant     uint8 // of the last request
	first, last *Message
	inFlight    int
	requests    uint64 // that have come
	parked      int    // bytes of answers that wait for their turn
}

// link takes m on: it is in flight from now on.
func (c *connection) link(m *Message) {
	c.cfg.gauge(metrics.RequestActive, 1)
	c.push(m)
	if c.inFlight >= c.cfg.Limits.MaxRequestsInFlight && !c.crowded {
		c.crowded = true
		c.d.ReadDisable(true)
	}
}

// unlink takes m off when it has ended.
func (c *connection) unlink(m *Message) {
	c.remove(m)
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

// push takes m in behind all others.
func (t *turns) push(m *Message) {
	t.requests++
	t.variant, m.number = m.req.Variant, t.requests
	if m.prev = t.last; m.prev == nil {
		t.first = m
	} else {
		m.prev.next = m
	}
	t.last = m
	t.inFlight++
}

// remove takes m out, and its answer if that still waits.
func (t *turns) remove(m *Message) {
	if m.prev == nil {
		t.first = m.next
	} else {
		m.prev.next = m.next
	}
	if m.next == nil {
		t.last = m.prev
	} else {
		m.next.prev = m.prev
	}
	m.next, m.prev = nil, nil
	t.inFlight--
	t.parked -= len(m.reply)
}

// oldest is the request whose answer is next on an ordered connection. Streams
// have no place in the order, as one may be open for long, nor have oneways, which get
// no answer.
func (t *turns) oldest() *Message {
	m := t.first
	for m != nil && (m.stream != nil || m.oneway) {
		m = m.next
	}
	return m
}

// isNext reports whether it is the turn of the answer to m.
func (c *connection) isNext(m *Message) bool {
	o := c.oldest()
	for o != nil && o != m && o.givesWay() {
		o = c.oldest()
	}
	return o == m
}

// release writes the answers whose turn has come.
func (c *connection) release() {
	if c.releasing {
		return
	}
	c.releasing = true
	for m := c.oldest(); m != nil; m = c.oldest() {
		if m.phase == answered {
			out := c.buffer(len(m.reply))
			out.B = append(out.B, m.reply...)
			m.end()
		} else if m.number == c.requests || !m.givesWay() {
			break
		}
	}
	c.releasing = false
}

// mayPark reports whether an answer of n bytes may wait for its turn.
func (c *connection) mayPark(n int) bool {
	return c.parked == 0 || c.parked+n <= c.cfg.Limits.MaxWriteBufferBytes
}

// park keeps the answer to m until its turn has come.
func (c *connection) park(m *Message, b []byte) {
	m.reply = make([]byte, len(b))
	copy(m.reply, b)
	c.parked += len(b)
	c.sh.held += len(b)
	c.sh.shed(max(c.cfg.Limits.MaxUnreadBytes, len(b)))
}
