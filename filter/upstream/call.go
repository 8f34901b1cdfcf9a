package upstream

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
)

// Call is one request on its way to a cluster and back. It is embedded in the
// message that owns it and used again and again.
type Call struct {
	owner    Owner
	pool     *Pool
	conn     *conn // nil while it waits
	id       uint64
	size     int
	oneway   bool
	released bool
	sent     time.Duration
	deadline timer.Timer

	list       *callList
	next, prev *Call
}

// Init binds c to its owner for good.
func (c *Call) Init(o Owner) {
	c.owner = o
	c.deadline.Fire = c.expire
}

// Active reports whether the call has been sent to a pool and has not ended.
func (c *Call) Active() bool { return c.list != nil }

// Upstream returns the address of the host that the call was sent to, "" as
// long as there is none.
func (c *Call) Upstream() string {
	if c.conn == nil {
		return ""
	}
	return c.conn.host
}

func (c *Call) expire() {
	p, cn := c.pool, c.conn
	if cn == nil {
		c.end()
		c.owner.Failed(codecs.Timeout, "timeout while waiting for an upstream connection")
		p.resumeWaiters()
		return
	}
	cn.timedOut(c)
	c.owner.Failed(codecs.Timeout, "upstream request timeout")
}

// Abandon is called when the client has gone and nobody wants the answer. It
// reports whether the call has ended. A connection shared by id keeps the id
// until the answer or the deadline, and the owner still hears of it; of others
// the owner hears no more.
func (c *Call) Abandon() (ended bool) {
	switch cn := c.conn; {
	case !c.Active():
		return true
	case cn == nil:
		c.end()
		c.pool.resumeWaiters()
		return true
	default:
		return cn.abandon(c, true)
	}
}

// Forget ends a call that has been sent and whose answer will not come. Should
// it come after all it is a stray one.
func (c *Call) Forget() {
	cn := c.conn
	if cn == nil || !c.pool.byID() {
		c.Abandon()
		return
	}
	c.end()
	c.pool.freed(cn)
}

// Release frees the connection of a call that most likely gets no answer: others
// are sent on it. Should the answer come before the deadline, the owner gets it. It
// reports false where answers have no ids by which they could be told apart, or the
// call is not under way.
func (c *Call) Release() bool {
	cn := c.conn
	if cn == nil || !c.pool.byID() {
		return false
	}
	c.released = true
	cn.inFlight--
	c.pool.inFlight--
	c.pool.freed(cn)
	return true
}

// Waiting reports whether the call still waits for a connection.
func (c *Call) Waiting() bool { return c.Active() && c.conn == nil }

// Write sends a further frame of a stream that has a connection.
func (c *Call) Write(frame []byte) {
	buf := c.conn.buffer(len(frame))
	buf.B = append(buf.B, frame...)
}

// ReadDisable(true) asks the server of a stream to send no more for now: what
// is under way still comes. Each call needs its counterpart.
func (c *Call) ReadDisable(disable bool) {
	if c.conn != nil {
		c.conn.up.ReadDisable(disable)
	}
}

// EndStream ends a stream. Its connection is closed after what was written,
// and not used again: frames of a stream that is over may still come.
func (c *Call) EndStream() {
	if !c.Active() {
		return
	}
	cn := c.conn
	c.end()
	if cn != nil {
		cn.retire()
	}
	c.pool.kick()
}

// unlist takes a waiting call out of the queue.
func (c *Call) unlist() {
	if c.list != nil {
		c.list.remove(c)
		c.pool.pendingBytes -= c.size
	}
}

// end takes c out of whatever it is in.
func (c *Call) end() {
	c.pool.m.timers.Stop(&c.deadline)
	if c.list != nil {
		c.list.remove(c)
	}
	if cn := c.conn; cn != nil {
		if !c.released {
			cn.inFlight--
			c.pool.inFlight--
		}
		c.released = false
		if c.pool.byID() && !c.oneway {
			c.pool.ids.drop(c.id)
		}
		c.conn = nil
	} else {
		c.pool.pendingBytes -= c.size
	}
}

// callList is a list in the order of arrival.
type callList struct {
	first, last *Call
	n           int
}

func (l *callList) push(c *Call) {
	c.list, c.prev, c.next = l, l.last, nil
	if l.last == nil {
		l.first = c
	} else {
		l.last.next = c
	}
	l.last = c
	l.n++
}

func (l *callList) remove(c *Call) {
	if c.prev == nil {
		l.first = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		l.last = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.list, c.prev, c.next = nil, nil, nil
	l.n--
}

// replace puts d into the place of c.
func (l *callList) replace(c, d *Call) {
	d.list, d.prev, d.next = l, c.prev, c.next
	if d.prev == nil {
		l.first = d
	} else {
		d.prev.next = d
	}
	if d.next == nil {
		l.last = d
	} else {
		d.next.prev = d
	}
	c.list, c.prev, c.next = nil, nil, nil
}
