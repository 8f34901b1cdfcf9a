package upstream

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
)

// RequestTimeout is the reason of a failure of type [codecs.Timeout], as Envoy says it.
const RequestTimeout = "upstream request timeout"

// Call is one request on its way to a cluster and back. It is embedded in the
// message that owns it and used again and again.
type Call struct {
	owner  Owner
	pool   *Pool
	line   *Line // nil: none
	conn   *conn // nil while it waits
	id     uint64
	size   int
	oneway bool
	muted  bool // its answer is for nobody
	unsure bool // it may get none
	lease  codecs.Lease
	// absent: it stands in for a call that nobody waits for any more, and keeps
	// its place in the order of answers.
	absent bool
	// probe is the right to try the ejected host that it goes to.
	probe   outlier.Probe
	counted *breaker.Gauge // among those that wait; nil: not
	judged  bool           // what a stream says of its host has been noted
	// released: its connection takes others meanwhile; see Release.
	released bool
	written  bool         // it has been handed to a connection
	host     string       // that it was sent to last
	server   *host.Server // what else is known of it; nil: nothing
	avoid    string       // the host that it had better not go to
	named    string       // the host that it had better go to, "": any
	strict   bool         // … or not at all
	hopeless bool         // it cannot go there
	sought   int          // so many connections have been opened as they might lead to another, or lead to its hash's
	round    uint64       // of its pool's looks at what waits, the last one that it was passed over in
	hash     uint64       // what its host is chosen by, if it is hashed
	hashed   bool
	sent     time.Duration
	due      time.Duration
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

// Host returns the address of the host that the call was sent to last, "" if it
// was sent to none, or that is unknown.
func (c *Call) Host() string { return c.host }

// Server returns what the host of the pipeline knows of that host, nil if nothing yet. It
// does not change.
func (c *Call) Server() *host.Server { return c.server }

// Due returns when the call fails, on the worker's clock.
func (c *Call) Due() time.Duration { return c.due }

// SentAt returns when it was sent there, on the worker's clock.
func (c *Call) SentAt() time.Duration { return c.sent }

// fail ends what the call was made for.
func (c *Call) fail(e codecs.ErrorType, reason string) {
	c.failed(&Failure{Type: e, Reason: reason, Written: c.written})
}

// failed is fail for more than a reason. If the call was to begin a lease, to go on
// with one or to end it, the lease is lost: what its client says next relies on it.
func (c *Call) failed(f *Failure) {
	c.probe.Free()
	l := c.line
	lost := f.Answer == nil && l != nil && (c.lease == codecs.LeaseHeld || l.held)
	if c.owner.Failed(f); lost {
		l.lost(f.Type, f.Reason)
	}
}

func (c *Call) expire() {
	p, cn := c.pool, c.conn
	if cn == nil {
		c.end()
		c.fail(codecs.Timeout, "timeout while waiting for an upstream connection")
		p.kick()
		return
	}
	cn.describe(c)
	cn.timedOut(c)
	c.fail(codecs.Timeout, RequestTimeout)
}

// Cancel ends a call whose answer nobody wants any more. Its owner hears no more of
// it.
func (c *Call) Cancel() {
	switch cn := c.conn; {
	case !c.Active():
	case cn == nil:
		c.end()
		c.pool.kick()
	default:
		cn.cancel(c)
	}
}

// Forget ends a call that has been sent and whose answer will not come. Should
// it come after all it is a stray one.
func (c *Call) Forget() {
	cn := c.conn
	if cn == nil || !c.pool.byID() {
		c.Cancel()
		return
	}
	cn.giveUp(c)
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
	cn.keepUntil = c.pool.m.now() + onewayTime
	cn.inFlight--
	c.pool.inFlight--
	cn.rest()
	c.pool.freed(cn)
	return true
}

// Waiting reports whether the call still waits for a connection.
func (c *Call) Waiting() bool { return c.Active() && c.conn == nil }

// Pool returns the pool that the call was sent to last.
func (c *Call) Pool() *Pool { return c.pool }

// Grow counts n bytes more that a waiting call holds. It reports false if they
// are too many for the pool: the call is better given up.
func (c *Call) Grow(n int) bool {
	if c.pool.pendingBytes+n > 2*c.pool.opts.MaxPendingBytes {
		return false
	}
	c.size += n
	c.pool.pendingBytes += n
	return true
}

// Opened ends the deadline of a stream.
func (c *Call) Opened() { c.pool.m.timers.Stop(&c.deadline) }

// Write sends a further frame of a stream that has a connection.
func (c *Call) Write(frame []byte) {
	buf := c.conn.buffer(len(frame))
	buf.B = append(buf.B, frame...)
}

// ReadDisable(true) asks the server of a stream to send no more for now: what
// is under way still comes. ReadDisable(false) has it go on, however often it was
// asked before.
func (c *Call) ReadDisable(disable bool) {
	if c.conn != nil {
		c.conn.pausedAt = c.pool.m.now()
		c.conn.stop(&c.conn.paused, disable)
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

// unlist takes a call that may be waiting out of what it waits in.
func (c *Call) unlist() {
	if c.list == nil {
		return
	}
	c.list.remove(c)
	p := c.pool
	p.pending--
	p.pendingBytes -= c.size
	if c.counted != nil {
		c.counted.Free()
		c.counted = nil
	}
	if l := c.line; l != nil {
		if l.head == c {
			l.head = nil
		}
		if l.waiter != nil && l.waiting.n <= crowded/2 {
			l.waiter.resume()
		}
	}
	p.resumeWaiters()
}

// end takes c out of whatever it is in.
func (c *Call) end() {
	p, l := c.pool, c.line
	p.m.timers.Stop(&c.deadline)
	cn := c.conn
	if cn == nil {
		if c.unlist(); l != nil {
			l.next()
		}
		return
	}
	c.list.remove(c)
	c.probe.Free()
	if !c.released {
		cn.inFlight--
		p.inFlight--
	}
	c.released = false
	if p.byID() {
		p.ids.drop(c.id)
	}
	if c.absent {
		cn.absent--
		p.absent--
	}
	if c.conn = nil; cn.inFlight == 0 {
		cn.rest()
	}
	if l != nil {
		l.ended(cn)
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
