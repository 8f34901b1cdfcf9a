package upstream

import (
	"errors"
	"fmt"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/inbox"
)

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
	if cn.watched != nil {
		cn.watched.Heard(cn.lastData)
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
	cn.failed()
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
		if cn.watched != nil {
			cn.saw(c, md)
		}
		if md.MayClose && !p.opts.Shared {
			cn.doubts()
		}
		cn.took(c, md.Failure != codecs.NoFailure)
		cn.describe(c)
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
		greets := cn.state == greeting
		cn.drain()
		cn.pool.leaves(cn.host)
		if greets { // else the next one would be made at once, as often as it says so
			cn.pool.connectFailed(cn.attempt, cn.wanted, host.ConnectFailed, "its preface has failed: the server leaves")
		} else if cn.warned {
			cn.pool.turnedAway(cn)
		}
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
		if r := cn.rite; r != nil {
			if md.GoesAway {
				cn.leaves()
			}
			if cn.rite == r {
				r.answered(md)
			}
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
	c.failed(&Failure{
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
		cn.describe(c)
		if cn.watched != nil && !c.judged {
			c.judged = true
			cn.saw(c, md)
		}
		c.owner.Streamed(md)
	}
}

// garbage ends a connection whose bytes cannot be understood.
func (cn *conn) garbage(err error) {
	p := cn.pool
	p.obs.DecodingError(p.key.Cluster, cn.host, err, true)
	cn.failed()
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
