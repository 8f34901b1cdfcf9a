package upstream

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/inbox"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
)

type connState uint8

const (
	// lingerTime is how long a server may take to close after our end of stream.
	lingerTime = 5 * time.Second
	// onewayTime is how long a server may take to read a oneway. Some drop what
	// they have not read when they see the end of the stream behind it (Kitex's),
	// and no answer tells that they have.
	onewayTime = 5 * time.Second
)

const (
	connecting connState = iota
	ready
	draining // gets no new call, closed when the last one has ended
	closed
)

// conn is one upstream connection of a pool.
type conn struct {
	pool  *Pool
	up    host.Upstream
	dec   codecs.Decoder
	state connState
	host  string
	// attempt numbers the pool's connections in the order in which the load
	// balancer was asked for a host; they may become ready in another.
	attempt int

	calls    callList
	inFlight int
	in       inbox.Inbox
	out      *host.Buffer
	blocked  bool

	born         time.Duration
	lastData     time.Duration
	lastCall     time.Duration
	agingAt      time.Duration // from then on a replacement is looked for
	expireAt     time.Duration // from then on it gets no new call
	keepUntil    time.Duration // a oneway may not have been read before
	aging        bool
	stale        bool          // belongs to a membership that is over
	leavingUntil time.Duration // its host has said that it leaves, which counts until then; 0: it has not
	linger       timer.Timer

	weight, current int64 // smooth weighted round robin
}

// leaving reports whether the connection's host has said that it leaves.
func (cn *conn) leaving() bool { return cn.leavingUntil != 0 }

// send gives c to the connection.
func (cn *conn) send(c *Call) {
	p := cn.pool
	m := p.m
	c.unlist()
	var id uint64
	if p.byID() {
		var ok bool
		if id, ok = p.ids.take(c); !ok {
			m.timers.Stop(&c.deadline)
			c.owner.Failed(codecs.OverLimit, "no request id is free")
			return
		}
		if c.oneway {
			p.ids.drop(id)
		}
	}
	if err := cn.encode(c, id); err != nil {
		if p.byID() && !c.oneway {
			p.ids.drop(id)
		}
		m.timers.Stop(&c.deadline)
		if pc := guard.In(err); pc != nil {
			c.owner.Panicked(pc)
		} else {
			c.owner.Failed(codecs.BadRequest, err.Error())
		}
		return
	}
	cn.lastCall = m.now()
	if c.oneway {
		m.timers.Stop(&c.deadline)
		cn.keepUntil = m.now() + onewayTime
		c.owner.Sent()
		return
	}
	c.conn, c.id, c.sent = cn, id, m.now()
	cn.calls.push(c)
	cn.inFlight++
	p.inFlight++
}

// encode appends the call's frame to what goes out, all of it or nothing.
func (cn *conn) encode(c *Call, id uint64) (err error) {
	defer guard.Catch(&err)
	buf := cn.buffer(c.size)
	n := len(buf.B)
	b, err := c.owner.Encode(buf.B, id)
	if err != nil {
		b = b[:n]
	}
	buf.B = b
	return err
}

// buffer returns the outgoing buffer with room for size bytes and a bit.
func (cn *conn) buffer(size int) *host.Buffer {
	const slack = 512
	if cn.out != nil && cap(cn.out.B)-len(cn.out.B) < size+slack && len(cn.out.B) > 0 {
		cn.flush()
	}
	if cn.out == nil {
		cn.out = cn.pool.m.w.Buffer(size + slack)
		cn.pool.m.touch(cn)
	}
	return cn.out
}

func (cn *conn) flush() {
	if b := cn.out; b != nil {
		cn.out = nil
		if len(b.B) == 0 || cn.state == closed {
			b.Free()
		} else {
			cn.up.Write(b)
		}
	}
}

// Ready implements host.UpstreamEvents.
func (cn *conn) Ready(addr string) {
	if cn.state != connecting {
		return
	}
	cn.host, cn.state = addr, ready
	p := cn.pool
	now := p.m.now()
	cn.lastData = now
	age := p.opts.MaxAge
	// The last fifth of its life is for finding a successor at the same host.
	// Jitter of ±20 % keeps connections that were made together apart.
	life := age - age/5 + time.Duration(p.m.rand.Int64N(int64(age/5)+1))
	cn.agingAt, cn.expireAt = now+life*4/5, now+life
	p.connected(cn)
}

// Data implements host.UpstreamEvents.
func (cn *conn) Data(bufs [][]byte, total int) {
	m := cn.pool.m
	cn.lastData = m.now()
	if cn.state == closed {
		return
	}
	b, whole := cn.in.Add(bufs, total, &m.scratch)
	if !whole {
		if cn.in.Buffered() == 0 {
			cn.in.Take(bufs)
		}
		return
	}
	defer cn.barrier() // one for all the frames
	need := 0
	for len(b) > 0 {
		md := &m.resp
		md.Reset()
		n, err := guard.Took(cn.dec.Decode(b, md))
		if err != nil {
			cn.garbage(err)
			return
		}
		if n > len(b) {
			need = n
			break
		}
		cn.message(md)
		if cn.state == closed {
			return
		}
		b = b[n:]
	}
	cn.in.Keep(b, need)
	m.trimScratch()
}

func (cn *conn) message(md *codecs.Metadata) {
	p := cn.pool
	switch md.Type {
	case codecs.StreamInit, codecs.StreamData, codecs.StreamCloseOneWay, codecs.StreamCloseTwoWay:
		if p.opts.Streams {
			cn.streamed(md)
		} else {
			p.obs.Stray(md)
		}
	case codecs.Response, codecs.Error:
		if p.opts.Streams {
			cn.streamed(md)
			return
		}
		c := p.answered(cn, md)
		if c == nil {
			p.obs.Stray(md)
			if !p.byID() {
				// Whose answer comes next cannot be told any more.
				cn.close(codecs.BadResponse, "upstream sent an answer that nobody asked for")
				p.kick()
			}
			return
		}
		c.end()
		if c.owner != nil { // else its client or its deadline has gone
			c.owner.Answered(md)
		}
		p.freed(cn)
	case codecs.Heartbeat:
		p.obs.Event()
		if hb, ok := p.codec.(codecs.Heartbeater); ok && md.ExpectsReply {
			buf := cn.buffer(md.HeaderSize + md.BodySize)
			n := len(buf.B)
			b, err := hb.EncodeHeartbeat(buf.B, md)
			if err != nil {
				b = b[:n]
			}
			buf.B = b
		}
	case codecs.GoAway:
		p.obs.Event()
		cn.drain()
		p.leaves(cn.host)
		p.kick()
	case codecs.Ignored:
		p.obs.Event()
	default:
		p.obs.Unserved()
	}
}

// streamed hands a frame to the stream whose connection this is.
func (cn *conn) streamed(md *codecs.Metadata) {
	c := cn.calls.first
	if c == nil || c.owner == nil {
		cn.pool.obs.Stray(md)
		return
	}
	cn.pool.m.timers.Stop(&c.deadline)
	c.owner.Streamed(md)
}

// garbage ends a connection whose bytes cannot be understood.
func (cn *conn) garbage(err error) {
	p := cn.pool
	p.obs.DecodingError(p.key.Cluster, cn.host, err)
	cn.close(codecs.BadResponse, "undecodable response: "+err.Error())
	p.kick()
}

// barrier is deferred where what the server has sent is read, and answered.
func (cn *conn) barrier() {
	if r := recover(); r != nil {
		cn.panicked(guard.New(r))
	}
}

// panicked ends a connection over whose bytes the codec has panicked.
func (cn *conn) panicked(p *guard.Panic) {
	cn.pool.obs.Panicked(p)
	cn.close(codecs.Unspecified, guard.Text)
	cn.pool.kick()
}

// close ends the connection now and its calls with e.
func (cn *conn) close(e codecs.ErrorType, reason string) {
	if cn.state == closed {
		return
	}
	cn.leave()
	cn.up.Close(false)
	cn.failCalls(e, reason)
}

// leave takes the connection out of its pool.
func (cn *conn) leave() {
	cn.pool.remove(cn)
	cn.state = closed
	if cn.out != nil {
		cn.out.Free()
		cn.out = nil
	}
}

func (cn *conn) failCalls(e codecs.ErrorType, reason string) {
	for c := cn.calls.first; c != nil; c = cn.calls.first {
		c.end()
		if c.owner != nil {
			c.owner.Failed(e, reason)
		}
	}
}

// drain lets the connection finish its calls and closes it then.
func (cn *conn) drain() {
	switch cn.state {
	case connecting:
		cn.leave()
		cn.up.Close(false)
	case ready:
		cn.state = draining
		cn.pool.remove(cn)
		cn.pool.drainers = append(cn.pool.drainers, cn)
		cn.closeIfDrained()
	}
}

// retire ends a connection that has just lost its only call: the server still
// gets what was written.
func (cn *conn) retire() {
	cn.drain()
	cn.closeIfDrained() // if it was draining before
}

// closeIfDrained ends a drained connection, unless that is still too early: then
// the pool's upkeep does.
func (cn *conn) closeIfDrained() {
	if cn.state == draining && cn.inFlight == 0 && cn.pool.m.now() >= cn.keepUntil {
		cn.flush()
		cn.leave()
		cn.up.Close(true) // what was written last still arrives
		cn.linger.Fire = func() { cn.up.Close(false) }
		cn.pool.m.timers.Start(&cn.linger, cn.pool.m.now()+lingerTime)
	}
}

// timedOut takes a call off whose deadline has passed.
func (cn *conn) timedOut(c *Call) {
	p := cn.pool
	if !cn.abandon(c, false) {
		c.end()
		p.freed(cn)
	}
	if cn.state == ready && cn.lastData < c.sent {
		// Silent since before the call: it may be dead without a word.
		cn.drain()
		p.kick()
	}
}

// abandon ends a call whose answer is still owed. Unless answers have ids and
// the connection is shared, where it does nothing and returns false, the
// connection is not used again. With graceful the server still gets what was
// written.
func (cn *conn) abandon(c *Call, graceful bool) (ended bool) {
	p := cn.pool
	switch {
	case p.byID() && p.opts.Shared, c.released: // others may be under way
		return false
	case cn.calls.n == 1:
		c.end()
		if graceful {
			cn.retire()
		} else {
			cn.close(codecs.Unspecified, "")
		}
	default:
		// Those behind it still get theirs: a stand-in takes its place.
		owed := &Call{pool: p, conn: cn, sent: c.sent, id: c.id}
		cn.calls.replace(c, owed)
		p.m.timers.Stop(&c.deadline)
		c.conn = nil
		cn.drain()
	}
	p.kick()
	return true
}

// WriteBlocked implements host.UpstreamEvents.
func (cn *conn) WriteBlocked(blocked bool) {
	cn.blocked = blocked
	if c := cn.calls.first; cn.pool.opts.Streams && c != nil && c.owner != nil {
		c.owner.Blocked(blocked)
	}
	if !blocked && cn.state == ready {
		cn.pool.kick()
	}
}

// Closed implements host.UpstreamEvents.
func (cn *conn) Closed(r host.CloseReason) {
	p := cn.pool
	switch cn.state {
	case closed:
		p.m.timers.Stop(&cn.linger)
		return
	case connecting:
		cn.leave()
		p.connectFailed(cn.attempt, r)
		return
	case ready, draining:
		cn.leave()
		if r == host.Remote || r == host.Reset {
			p.info.closes(cn.host, p.m.now()+goneTime)
		}
	}
	cn.failCalls(codecs.UpstreamReset, "upstream connection ended before the answer: "+r.String())
	p.kick()
}

// Failed implements host.UpstreamEvents: the pipeline has panicked.
func (cn *conn) Failed() {
	if cn.state == closed {
		return
	}
	cn.pool.obs.Panicked(nil)
	cn.leave()
	cn.failCalls(codecs.Unspecified, guard.Text)
	cn.pool.kick()
}
