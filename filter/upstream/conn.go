package upstream

import (
	"errors"
	"fmt"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/inbox"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
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
	cn.unrest()
	answered := c // the call that gets the answer
	if c.muted {
		answered = cn.owed(c)
		answered.line = c.line
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
	if err := cn.encode(c, id); err != nil {
		if p.byID() && !c.oneway {
			p.ids.drop(id)
		}
		cn.rest()
		m.timers.Stop(&c.deadline)
		f := Failure{Type: codecs.BadRequest, Reason: err.Error()}
		if f.Panic = guard.In(err); f.Panic != nil {
			f.Type, f.Reason = codecs.Unspecified, guard.Text
		}
		c.owner.Failed(&f)
		return
	}
	cn.lastCall = m.now()
	c.written, c.host, c.sent = true, cn.host, cn.lastCall
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
	cn.host, cn.lastData = addr, p.m.now()
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

// Data implements host.UpstreamEvents.
func (cn *conn) Data(bufs [][]byte, total int) {
	m := cn.pool.m
	cn.lastData = m.now()
	if cn.state == closed {
		if cn.trailing += total; cn.trailing > maxTrailing && cn.linger.Fire != nil {
			cn.cut()
		}
		return
	}
	if cn.in.Skipping() {
		if bufs, total = cn.in.Skipped(bufs, total); total == 0 {
			return
		}
	}
	b, whole := cn.in.Add(bufs, total, &m.scratch)
	if !whole {
		cn.keeps(false)
		return
	}
	defer cn.barrier() // one for all the frames
	need, before := 0, len(b)
	for len(b) > 0 {
		md := &m.resp
		md.Reset()
		n, err := cn.decode(b, md)
		if err != nil {
			if n = cn.tooLarge(err, md); n == 0 {
				cn.garbage(err)
				return
			}
			if cn.state == closed {
				return
			}
			cn.in.Skip(n - len(b))
			b = b[min(n, len(b)):]
			continue
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
	cn.keeps(len(b) < before)
	m.trimScratch()
}

// keeps notes what the inbox holds after an event. another says that the frame at
// its start is not the one that was there before.
func (cn *conn) keeps(another bool) {
	f := &cn.partial
	large := cn.in.Need() > inbox.Small
	if (another || !large) && f.Counted() {
		f.Forget()
		cn.stop(&cn.starved, false)
	}
	if large {
		f.MayGrow(cn.in.Size() - f.Size()) // if not, what has come is kept all the same
		f.Kept(false)
	}
}

// Starve implements inbox.Peer.
func (cn *conn) Starve(starve bool) {
	if starve {
		cn.pool.obs.Starves()
	}
	cn.stop(&cn.starved, starve)
}

// Held implements inbox.Peer: for a client that does not read, the server of its
// stream is not excused for long.
func (cn *conn) Held() bool { return cn.paused && cn.pool.m.now() < cn.pausedAt+2*stallTime }

// Stalled implements inbox.Peer.
func (cn *conn) Stalled() {
	p := cn.pool
	defer cn.barrier()
	p.obs.Closes(p.key.Cluster, cn.host, "it sends no more of a frame that has begun, with too many such frames on this worker")
	cn.close(codecs.UpstreamReset, "upstream connection closed: the server sends no more of an answer that has begun")
	p.kick()
}

func (cn *conn) decode(b []byte, md *codecs.Metadata) (int, error) {
	if cn.answers == nil {
		return guard.Took(cn.dec.Decode(b, md))
	}
	for {
		var req *codecs.Metadata
		c := cn.calls.first
		switch {
		case cn.rite != nil:
			req = cn.rite.awaited[0]
		case c != nil:
			req = c.owner.Request()
		}
		n, err := cn.answers.DecodeAnswer(b, md, req)
		if err == nil || !errors.Is(err, codecs.ErrUnanswered) || c == nil || req.Type != codecs.Quiet || c.next == nil {
			return guard.Took(n, err)
		}
		c.end()
		c.owner.Sent()
		md.Reset()
	}
}

// tooLarge fails the call whose answer md is if err says that it is above the
// limit, and returns how many bytes are to be skipped: 0 if that is no way to go
// on.
func (cn *conn) tooLarge(err error, md *codecs.Metadata) (size int) {
	p := cn.pool
	var e *codecs.TooLarge
	if !errors.As(err, &e) || p.opts.Mode == Streams || e.Size <= 0 || e.Size/inbox.MaxOver > e.Limit {
		return 0
	}
	p.obs.DecodingError(p.key.Cluster, cn.host, err, false)
	switch md.Type {
	case codecs.Response, codecs.Error:
		if c := cn.answer(md); c != nil {
			c.owner.Failed(&Failure{Type: codecs.BadResponse, Reason: "response: " + err.Error(), Written: true, Answer: md})
			p.freed(cn)
		}
	default:
		cn.unasked()
	}
	return e.Size
}

// answer takes the call off that md answers, nil if there is none.
func (cn *conn) answer(md *codecs.Metadata) *Call {
	p := cn.pool
	if md.GoesAway || md.NotProcessed {
		cn.leaves()
	}
	c := p.answered(cn, md)
	if c != nil {
		cn.strays = max(0, cn.strays-1)
		c.end()
		return c
	}
	cn.stray(md)
	if !p.byID() {
		// Whose answer comes next cannot be told any more.
		cn.close(codecs.BadResponse, "upstream sent an answer that nobody asked for")
		p.kick()
	}
	return nil
}

// stray takes a message that nobody waits for. Answers to calls that were given up
// are no fault of the server.
func (cn *conn) stray(md *codecs.Metadata) {
	cn.pool.obs.Stray(md)
	if cn.late > 0 && (md.Type == codecs.Response || md.Type == codecs.Error) {
		cn.late--
		return
	}
	cn.unasked()
}

// unasked counts a message that the server was not asked for. One that sends many
// is not read for ever.
func (cn *conn) unasked() {
	p := cn.pool
	if cn.strays++; cn.strays > maxStrays && cn.state != closed {
		p.obs.Closes(p.key.Cluster, cn.host, "it sends messages that nobody asked for")
		cn.close(codecs.UpstreamReset, "upstream connection closed: too many messages that nobody asked for")
		p.kick()
	}
}

// leaves heeds that the connection's host has said over it that it leaves.
func (cn *conn) leaves() {
	if !cn.gone {
		cn.gone = true
		cn.drain()
		cn.pool.leaves(cn.host)
		cn.pool.kick()
	}
}

func (cn *conn) message(md *codecs.Metadata) {
	p := cn.pool
	switch md.Type {
	case codecs.StreamInit, codecs.StreamData, codecs.StreamCloseOneWay, codecs.StreamCloseTwoWay:
		if p.opts.Mode == Streams {
			cn.streamed(md)
		} else {
			cn.stray(md)
		}
	case codecs.Response, codecs.Error:
		if p.opts.Mode == Streams {
			cn.streamed(md)
			return
		}
		if cn.rite != nil {
			cn.rite.answered(md)
			return
		}
		c := cn.answer(md)
		if c == nil {
			return
		}
		if md.NotProcessed {
			c.notProcessed()
		} else {
			c.owner.Answered(md)
		}
		p.freed(cn)
	case codecs.Heartbeat:
		p.obs.Event()
		if hb, ok := p.codec.(codecs.Heartbeater); ok && md.ExpectsReply {
			if cn.blocked {
				if cn.beats++; cn.beats > maxBeats {
					p.obs.Closes(p.key.Cluster, cn.host, "it asks for heartbeats and does not read them")
					cn.close(codecs.UpstreamReset, "upstream connection closed: the server does not read")
					p.kick()
					return
				}
			}
			buf := cn.buffer(md.HeaderSize + md.BodySize)
			b, err := hb.EncodeHeartbeat(buf.B, md)
			if err != nil {
				p.obs.DecodingError(p.key.Cluster, cn.host, fmt.Errorf("its heartbeat cannot be answered: %w", err), false)
				return
			}
			buf.B = b
		}
	case codecs.Push:
		if l := cn.lease; l != nil && l.conn == cn && l.client != nil && (l.held || l.open > 0) {
			p.obs.Event()
			l.client.Pushed(md)
		} else {
			cn.stray(md)
		}
	case codecs.GoAway:
		p.obs.Event()
		cn.leaves()
	case codecs.Ignored:
		p.obs.Event()
	default:
		p.obs.Unserved()
		cn.unasked()
	}
}

// notProcessed fails a call of which the server says that it has not looked at it.
func (c *Call) notProcessed() {
	c.owner.Failed(&Failure{
		Type: codecs.UpstreamReset, Reason: "the server leaves and has not processed the request",
		Written: true, NotProcessed: true,
	})
}

// streamed hands a frame to the stream whose connection this is.
func (cn *conn) streamed(md *codecs.Metadata) {
	c := cn.calls.first
	if md.GoesAway || md.NotProcessed {
		cn.leaves()
	}
	switch {
	case c == nil || c.absent:
		cn.stray(md)
	case md.NotProcessed:
		c.end()
		cn.retire()
		c.notProcessed()
	default:
		c.owner.Streamed(md)
	}
}

// garbage ends a connection whose bytes cannot be understood.
func (cn *conn) garbage(err error) {
	p := cn.pool
	p.obs.DecodingError(p.key.Cluster, cn.host, err, true)
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
	if l := cn.lease; l != nil && l.conn == cn && l.held {
		l.held = false
		l.client.LeaseLost()
	}
}

// rest makes an exclusive connection without a call ready for the next: first for
// the lines that wait for it, then for anybody.
func (cn *conn) rest() {
	p := cn.pool
	if p.opts.Shared || cn.inFlight > 0 || cn.spoilt || cn.state == closed || cn.rite != nil || cn.leased() {
		return
	}
	if cn.resume(); cn.inFlight == 0 && cn.state == ready && !cn.blocked && cn.idle == nil {
		if cn.leaving() {
			p.parting.push(cn)
		} else {
			p.idle.push(cn)
		}
	}
}

// leavesUntil notes until when the connection's host is taken to leave, 0: it stays.
func (cn *conn) leavesUntil(t time.Duration) {
	cn.leavingUntil = t
	if cn.idle != nil {
		cn.unrest()
		cn.rest()
	}
}

// unrest takes an exclusive connection off those that are idle.
func (cn *conn) unrest() {
	if cn.idle != nil {
		cn.idle.remove(cn)
	}
}

// drain lets the connection finish its calls and closes it then.
func (cn *conn) drain() {
	switch cn.state {
	case connecting, greeting:
		cn.leave()
		cn.up.Close(false)
	case ready:
		cn.state = draining
		cn.unrest()
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
// the pool's upkeep does. Answers that nobody waits for are not waited for when
// they are too many: they count as requests in flight.
func (cn *conn) closeIfDrained() {
	p := cn.pool
	if cn.state != draining || cn.inFlight > cn.absent || len(cn.stalled) > 0 || cn.leased() {
		return
	}
	if cn.absent > 0 && p.tooManyAbsent() || cn.absent == 0 && p.m.now() >= cn.keepUntil {
		cn.flush()
		cn.stop(&cn.paused, false) // a server that cannot write may not read either
		cn.stop(&cn.starved, false)
		cn.leave()
		cn.up.Close(true) // what was written last still arrives
		cn.failCalls(codecs.Unspecified, "")
		cn.lastTaken = p.m.now()
		cn.linger.Fire = cn.lingers
		p.lingering++
		p.m.timers.Start(&cn.linger, cn.lastTaken+lingerTime)
	}
}

// lingers looks after a connection on which all has been written: it ends when the
// server closes it, or nothing moves any more.
func (cn *conn) lingers() {
	p := cn.pool
	limit := lingerTime
	if (p.opts.Mode == Streams || cn.blocked) && p.lingering <= p.opts.MaxExclusive {
		limit = max(limit, p.opts.Linger)
	}
	if at := max(cn.lastData, cn.lastTaken) + limit; p.m.now() < at {
		p.m.timers.Start(&cn.linger, at)
		return
	}
	cn.cut()
}

// cut ends a connection that lingers.
func (cn *conn) cut() {
	cn.lingered()
	cn.up.Close(false)
}

// lingered is called when the connection lingers no more.
func (cn *conn) lingered() {
	if cn.linger.Fire != nil {
		cn.pool.m.timers.Stop(&cn.linger)
		cn.linger.Fire = nil
		cn.pool.lingering--
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

// timedOut takes a call off whose deadline has passed.
func (cn *conn) timedOut(c *Call) {
	p := cn.pool
	sent := c.sent
	switch {
	case p.byID() && (p.opts.Shared || c.released):
		cn.giveUp(c)
		p.freed(cn)
	case p.opts.Mode == Leased: // what its client says next may depend on the answer
		cn.spoil(c)
		cn.close(codecs.UpstreamReset, "upstream connection closed: a request before has timed out")
	case p.byID() || cn.calls.n == 1:
		cn.spoil(c)
		cn.close(codecs.Unspecified, "")
	default:
		cn.standIn(c)
		cn.drain()
	}
	if cn.state == ready && cn.lastData < sent {
		// Silent since before the call: it may be dead without a word.
		cn.drain()
	}
	p.kick()
}

// cancel ends a call that nobody waits for and whose answer is still owed.
func (cn *conn) cancel(c *Call) {
	p := cn.pool
	switch {
	case p.byID() && (p.opts.Shared || c.released):
		if p.ids.scarce() { // its id must not come again before the answer
			cn.standIn(c)
		} else {
			cn.giveUp(c)
		}
		p.freed(cn)
	case p.opts.Shared:
		// Other clients lose nothing by it. Should the server hang at it, its
		// deadline tells.
		if cn.standIn(c); p.tooManyAbsent() {
			cn.retire()
		}
	default:
		cn.spoil(c)
		cn.retire() // the server still gets what was written
	}
	p.kick()
}

// giveUp ends a call that has an id of its own. Its answer will find nobody.
func (cn *conn) giveUp(c *Call) {
	cn.late++
	cn.keepUntil = cn.pool.m.now() + onewayTime
	c.end()
}

// spoil ends the connection's only call. The answer that it owes would be taken
// for another's.
func (cn *conn) spoil(c *Call) {
	cn.drain()
	cn.spoilt = true
	c.end()
	cn.resume()
}

// standIn puts another call into the place of c, so that those behind it still get
// their own answers. It keeps what the decoder may ask of the request, and the
// deadline.
func (cn *conn) standIn(c *Call) {
	p := cn.pool
	m := p.m
	m.timers.Stop(&c.deadline)
	if c.absent { // it was one
		return
	}
	if c.released { // its answer is waited for again
		c.released = false
		cn.inFlight++
		p.inFlight++
	}
	owed := cn.owed(c)
	owed.conn, owed.id = cn, c.id
	cn.calls.replace(c, owed)
	if p.byID() {
		p.ids.replace(c.id, owed)
	}
	cn.awaits(owed)
	c.conn = nil
	if c.line != nil {
		c.line.ended(cn)
	}
}

// owed returns a call that can stand in for c.
func (cn *conn) owed(c *Call) *Call {
	owed := &Call{pool: cn.pool, absent: true, sent: c.sent, due: c.due}
	owner := &absent{}
	if cn.answers != nil {
		owner.req = c.owner.Request().Outline()
	}
	owed.Init(owner)
	return owed
}

// awaits counts an owed call that is in the list.
func (cn *conn) awaits(owed *Call) {
	p := cn.pool
	if owed.due > p.m.now() {
		p.m.timers.Start(&owed.deadline, owed.due)
	}
	cn.absent++
	p.absent++
}

// absent is the owner of a call that stands in for another.
type absent struct {
	Owner // none of its other methods is called
	req   *codecs.Metadata
}

func (a *absent) Request() *codecs.Metadata { return a.req }
func (*absent) Answered(*codecs.Metadata)   {}
func (*absent) Failed(*Failure)             {}
func (*absent) Sent()                       {}

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
		p.connectFailed(cn.attempt, r, r.String())
		return
	case greeting:
		cn.leave()
		p.connectFailed(cn.attempt, host.ConnectFailed, "its preface has failed: connection "+r.String())
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
	if cn.state == greeting {
		cn.refused(guard.Text)
		return
	}
	cn.leave()
	cn.failCalls(codecs.Unspecified, guard.Text)
	cn.pool.kick()
}
