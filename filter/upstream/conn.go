package upstream

import (
	"errors"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/inbox"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
)

type connState uint8

const (
	// lingerTime is how long a server may take to close after our end of stream,
	// when nothing is known to be left that it has not read.
	lingerTime = 5 * time.Second
	// maxTrailing is how many bytes a server may send meanwhile.
	maxTrailing = 64 << 20
	// onewayTime is how long a server may take to read a oneway. Some drop what
	// they have not read when they see the end of the stream behind it (Kitex's),
	// and no answer tells that they have.
	onewayTime = 5 * time.Second
	// maxStrays is how many more messages than it was asked for a server may send
	// over a connection.
	maxStrays = 1000
	// doubtTime is how long an exclusive connection rests behind an answer behind which
	// servers close. It does not take them a millisecond, but they have other work. To
	// close it here would use a port up, and one more for each request of that kind.
	doubtTime = 20 * time.Millisecond
	// stallTime is how long a server may send nothing of its unfinished frame while
	// others are not read because of such frames. With its connection, others' calls
	// may end.
	stallTime = 3 * time.Second
	// maxBeats is how many heartbeats of a server are answered that takes no bytes.
	maxBeats = 64
)

const (
	connecting connState = iota
	greeting             // its preface is not answered yet
	ready
	draining // gets no new call, closed when the last one has ended
	closed
)

// conn is one upstream connection of a pool.
type conn struct {
	pool    *Pool
	up      host.Upstream
	dec     codecs.Decoder
	answers codecs.AnswerDecoder // in place of dec; nil: none
	state   connState
	host    string
	server  *host.Server // what else is known of it, for good; nil: nothing yet
	to      *endpoint    // the same; nil: it is not known yet
	wanted  *endpoint    // where it was to lead; nil: to any
	// attempt numbers the pool's connections in the order in which the load
	// balancer was asked for a host; they may become ready in another.
	attempt int

	calls    callList
	inFlight int
	absent   int // of the calls
	in       inbox.Inbox
	partial  inbox.Frame
	out      *host.Buffer
	rite     *rite // it does not serve meanwhile; nil: it does
	lease    *Line // that has had it last, of a client's own connections
	spoilt   bool  // owes an answer for which nothing stands in: gets no call at all
	gone     bool  // its host has said over it that it leaves
	blocked  bool  // the server does not take bytes
	paused   bool  // it is not read, as its stream's client does not read …
	pausedAt time.Duration
	starved  bool // … as there is no room for more of its frame
	trailing int  // bytes that it has sent behind our end of stream

	stalled  []*Line // wait until it takes calls again
	idle     *idleList
	idleAt   int // 1 + the place among the idle ones of its host
	idleNext *conn
	idlePrev *conn
	late     int // answers that may come to calls that have been given up
	strays   int // messages that nobody asked for, less the answers
	beats    int // heartbeats since the server takes no bytes

	born         time.Duration
	lastData     time.Duration
	lastTaken    time.Duration // it was seen to take bytes, or was given an end of stream
	lastCall     time.Duration
	agingAt      time.Duration // from then on a replacement is looked for
	expireAt     time.Duration // from then on it gets no new call
	keepUntil    time.Duration // a request to which no answer is awaited may not have been read before
	owesUntil    time.Duration // the last deadline of answers that it has owed to nobody
	aging        bool
	stale        bool          // belongs to a membership that is over
	ejected      bool          // its host is
	watched      *outlier.Host // nil: it is not
	leavingUntil time.Duration // its host has said that it leaves, which counts until then; 0: it has not
	warned       bool          // it had before the connection was ready
	linger       timer.Timer
	doubt        timer.Timer // runs while its server may be about to close it

	weight, current int64 // smooth weighted round robin
}

// leaving reports whether the connection's host has said that it leaves.
func (cn *conn) leaving() bool { return cn.leavingUntil != 0 }

// shunned reports whether the connection gets calls only if no other can take them.
func (cn *conn) shunned() bool { return cn.leaving() || cn.ejected || cn.unlisted() }

// send gives c to the connection.
func (cn *conn) send(c *Call) {
	p := cn.pool
	m := p.m
	c.unlist()
	if c.named != "" && c.named != cn.host {
		if why := p.misnamed(c, cn.host); c.strict { // the client's order, or lease, leads here
			m.timers.Stop(&c.deadline)
			c.fail(codecs.NoHealthyUpstream, why)
			return
		}
	}
	cn.unrest()
	answered := c // the call that gets the answer
	if c.muted {
		answered = cn.owed(c)
		answered.line, answered.sent, answered.due = c.line, m.now(), max(c.due, m.now()+1)
	}
	var id uint64
	if p.byID() {
		var ok bool
		if id, ok = p.ids.take(answered); !ok {
			cn.rest()
			m.timers.Stop(&c.deadline)
			c.fail(codecs.OverLimit, "no request id is free")
			return
		}
		if c.oneway {
			p.ids.drop(id)
		}
	}
	c.host = cn.host
	if err := cn.encode(c, id); err != nil {
		if p.byID() && !c.oneway {
			p.ids.drop(id)
		}
		cn.rest()
		m.timers.Stop(&c.deadline)
		f := Failure{Type: codecs.BadRequest, Reason: err.Error()}
		if r := (*Refusal)(nil); errors.As(err, &r) {
			f.Type = r.Type
		} else {
			c.host = ""
		}
		if f.Panic = guard.In(err); f.Panic != nil {
			f.Type, f.Reason = codecs.Unspecified, guard.Text
		}
		c.failed(&f)
		return
	}
	cn.lastCall = m.now()
	c.written, c.server, c.sent = true, cn.server, cn.lastCall
	if c.oneway {
		m.timers.Stop(&c.deadline)
		cn.keepUntil = m.now() + onewayTime
		if c.line != nil {
			c.line.sent(c, cn, true)
		}
		cn.rest()
		c.owner.Sent()
		return
	}
	answered.conn, answered.id = cn, id
	cn.calls.push(answered)
	cn.inFlight++
	p.inFlight++
	if c.line != nil {
		c.line.sent(c, cn, false)
	}
	if c.muted {
		m.timers.Stop(&c.deadline)
		cn.awaits(answered)
		c.owner.Sent()
	}
}

// encode appends the call's frame to what goes out, all of it or nothing.
func (cn *conn) encode(c *Call, id uint64) (err error) {
	defer guard.Catch(&err)
	buf := cn.buffer(c.size)
	b, err := c.owner.Encode(buf.B, id)
	if err == nil {
		buf.B = b
	}
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
	p := cn.pool
	cn.host, cn.to, cn.lastData = addr, p.endpoint(addr), p.m.now()
	cn.watch()
	if !cn.greet() {
		cn.begin()
	}
}

// begin takes the connection into use.
func (cn *conn) begin() {
	p := cn.pool
	now := p.m.now()
	cn.state = ready
	age := p.opts.MaxAge
	// The last fifth of its life is for finding a successor at the same host.
	// Jitter of ±20 % keeps connections that were made together apart.
	life := age - age/5 + time.Duration(p.m.rand.Int64N(int64(age/5)+1))
	cn.agingAt, cn.expireAt = now+life*4/5, now+life
	p.connected(cn)
}

// describe has c know what the host knows of the server by now. That is asked for until
// there is an answer, of a host that knows something at all.
func (cn *conn) describe(c *Call) {
	if cn.server == nil {
		cn.server = &host.Server{}
		if d, is := cn.up.(host.Describer); is {
			*cn.server = d.Server()
		}
	}
	c.server = cn.server
}

// close ends the connection now and its calls with e.
func (cn *conn) close(e codecs.ErrorType, reason string) {
	switch cn.state {
	case closed:
	case greeting:
		cn.refused(reason)
	default:
		cn.leave()
		cn.up.Close(false)
		cn.failCalls(e, reason)
	}
}

// leave takes the connection out of its pool.
func (cn *conn) leave() {
	cn.unrest()
	cn.unwatch()
	cn.pool.m.timers.Stop(&cn.doubt)
	cn.pool.breakers.Connections.Free()
	cn.pool.remove(cn)
	cn.state = closed
	if cn.rite != nil {
		cn.rite.end()
	}
	cn.in.Wait(0)
	cn.partial.Forget()
	if cn.out != nil {
		cn.out.Free()
		cn.out = nil
	}
	cn.resume()
}

func (cn *conn) failCalls(e codecs.ErrorType, reason string) {
	for c := cn.calls.first; c != nil; c = cn.calls.first {
		c.end()
		c.fail(e, reason)
	}
	if cn.leased() {
		cn.lease.lost(e, reason)
	}
}

// stop stops the reading of the server for a reason, or ends the reason.
func (cn *conn) stop(reason *bool, stop bool) {
	was := cn.paused || cn.starved
	*reason = stop
	if is := cn.paused || cn.starved; is != was {
		cn.up.ReadDisable(is)
	}
}

// WriteBlocked implements host.UpstreamEvents.
func (cn *conn) WriteBlocked(blocked bool) {
	cn.blocked, cn.lastTaken = blocked, cn.pool.m.now()
	if c := cn.calls.first; cn.pool.opts.Mode == Streams && c != nil && !c.absent {
		c.owner.Blocked(blocked)
	}
	if blocked {
		cn.unrest()
		return
	}
	cn.beats = 0
	cn.resume()
	cn.rest()
	if cn.state == ready {
		cn.pool.kick()
	}
}

// Closed implements host.UpstreamEvents.
func (cn *conn) Closed(r host.CloseReason) {
	p := cn.pool
	switch cn.state {
	case closed:
		cn.lingered()
		return
	case connecting:
		cn.leave()
		p.connectFailed(cn.attempt, cn.wanted, r, r.String())
		return
	case greeting:
		if r != host.Draining {
			cn.failed()
		}
		cn.leave()
		why := "its preface has failed: connection " + r.String()
		if r != host.Draining {
			r = host.ConnectFailed
		}
		p.connectFailed(cn.attempt, cn.wanted, r, why)
		return
	case ready, draining:
		if r == host.ConnectFailed { // as the host has learnt late
			cn.leave()
			p.connectFailed(cn.attempt, cn.wanted, r, r.String())
			cn.failCalls(codecs.ConnectFailure, "upstream connect failure in cluster "+p.key.Cluster)
			p.kick()
			return
		}
		lost := r == host.Remote || r == host.Reset
		if lost && cn.inFlight > 0 {
			cn.failed()
		}
		cn.leave()
		if lost {
			p.info.closes(cn.host, p.m.now()+goneTime)
		}
	}
	cn.failCalls(codecs.UpstreamReset, "upstream connection ended before the answer: "+r.String())
	p.kick()
}

// Aborted implements host.UpstreamEvents: the pipeline has panicked.
func (cn *conn) Aborted() {
	if cn.state == closed {
		return
	}
	cn.pool.obs.Panicked(nil)
	if cn.state == greeting {
		cn.refused(guard.Text)
		return
	}
	cn.leave()
	cn.failCalls(codecs.Unspecified, guard.Text)
	cn.pool.kick()
}
