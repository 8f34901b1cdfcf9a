package filter

import (
	"errors"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/inbox"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

// stallTime is how long a client may send nothing of its unfinished frame while
// others are not read because of such frames.
const stallTime = time.Second

// intake is what has come of a client and is no message yet.
type intake struct {
	in      inbox.Inbox
	partial inbox.Frame
	dec     codecs.Decoder // nil before the first bytes
	// leaveAt is how long a frame may be of which what has come stays in the host's
	// buffer. What is longer is taken out: the host stops reading when its buffer is
	// full, and the frame would never be whole.
	leaveAt      int
	frameStarted time.Duration
	eof          bool // the client sends no more
}

// Data implements host.DownstreamEvents.
func (c *connection) Data(bufs [][]byte, total int, end bool) int {
	if c.finishing || c.closed {
		return total
	}
	c.lastUse = c.sh.w.Now()
	c.eof = c.eof || end
	consumed := 0
	if c.in.Skipping() {
		var left int
		if bufs, left = c.in.Skipped(bufs, total); !c.in.Skipping() {
			c.frameStarted = 0
		}
		consumed = total - left
	}
	switch {
	case c.plain != nil:
		c.plain.fromClient(bufs, total)
		consumed = total
	case !c.stopped():
		if total > consumed {
			consumed += c.data(bufs, total-consumed)
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
	if !c.eof || c.stopped() || c.closed || c.finishing || c.plain != nil {
		return
	}
	if c.proto == nil && c.in.Buffered() > 0 && c.cfg.Passthrough != "" { // no codec will recognise it any more
		c.passOn(c.in.Bytes())
		c.forgetPartial()
		c.frameStarted = 0
		return
	}
	if c.in.Buffered() > 0 || c.in.Skipping() {
		c.cfg.count(metrics.RequestDecodingError, 1)
		c.sh.warn(c.cfg, "client %s ended in the middle of a frame", c.d.RemoteAddress())
	}
	c.finish()
}

func (c *connection) data(bufs [][]byte, total int) (consumed int) {
	held := c.in.Buffered() > 0
	if held && !c.eof && !c.partial.MayGrow(c.in.Growth(total)) {
		return 0
	}
	another := false // frame than the one that had begun
	counted := c.partial.Counted()
	b, whole := c.in.Add(bufs, total, &c.sh.scratch)
	if whole {
		before := len(b)
		var need int
		b, need = c.decode(b)
		if c.closed || c.finishing {
			return total
		}
		if another = len(b) < before; another {
			c.partial.Passed()
		}
		switch {
		case held || c.eof || need > c.leaveAt && c.partial.MayGrow(len(b)):
			c.in.Keep(b, need)
			consumed = total
		default:
			c.in.Wait(need)
			consumed = before - len(b)
		}
	} else if held {
		consumed = total
	} else if c.eof || c.in.Need() > c.leaveAt && c.partial.MayGrow(total) { // there was no room before
		c.in.Take(bufs)
		consumed = total
	}
	if c.in.Size() > 0 || counted || c.partial.Counted() {
		c.keeps(another)
	}
	if c.in.Need() == 0 && !c.in.Skipping() {
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
		case c.cfg.Passthrough != "":
			c.passOn(b)
			return nil, 0
		default:
			c.cfg.count(metrics.RequestDecodingError, 1)
			c.sh.warn(c.cfg, "client %s: no codec recognises the protocol that starts with %q", c.d.RemoteAddress(), b[:min(len(b), 16)])
			c.finish()
			return nil, 0
		}
	}
	if c.dec == nil && len(b) > 0 {
		c.begin()
	}
	for len(b) > 0 && !c.stopped() {
		m := c.sh.newMessage(c)
		n, err := guard.Decode(c.dec, b, &m.req)
		if err != nil {
			if size := c.tooLarge(m, err); size > 0 {
				if c.closed || c.finishing {
					return nil, 0
				}
				c.in.Skip(size - len(b))
				b = b[min(size, len(b)):]
				continue
			}
			c.sh.freeMessage(m)
			if c.panicked(err) {
				return b, 0
			}
			c.cfg.count(metrics.RequestDecodingError, 1)
			c.sh.warn(c.cfg, "client %s: %v", c.d.RemoteAddress(), err)
			c.finish()
			return nil, 0
		}
		if n > len(b) {
			c.sh.freeMessage(m)
			return b, n
		}
		if m.req.Malformed == "" {
			c.cfg.count(metrics.RequestDecodingSuccess, 1)
		} else {
			c.cfg.count(metrics.RequestDecodingError, 1)
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

// tooLarge handles a frame that is only too large, whose length it returns: that
// many bytes are to be passed over. It returns 0 where err ends the connection.
func (c *connection) tooLarge(m *Message, err error) int {
	var e *codecs.TooLarge
	if !errors.As(err, &e) || e.Size <= e.Limit {
		return 0
	}
	request := false // or what belongs to an open stream
	switch m.req.Type {
	case codecs.Request, codecs.Oneway, codecs.Quiet, codecs.Muted, codecs.StreamInit,
		codecs.StreamData, codecs.StreamCloseOneWay, codecs.StreamCloseTwoWay:
		request = true
	}
	far := e.Size/inbox.MaxOver > e.Limit
	if far && !request {
		return 0
	}
	c.cfg.count(metrics.RequestDecodingError, 1)
	c.sh.warn(c.cfg, "client %s: %v", c.d.RemoteAddress(), err)
	if !request {
		c.sh.freeMessage(m)
		return e.Size
	}
	if m.req.Malformed = e.Error(); !far {
		m.receivedBytes = int64(e.Size - m.req.HeaderSize - m.req.BodySize) // the rest comes, and is passed over
	}
	c.message(m)
	if far && !c.closed {
		c.finish()
	}
	return e.Size
}

func (c *connection) message(m *Message) {
	cfg := c.cfg
	switch m.req.Type {
	case codecs.StreamInit:
		c.openStream(m)
		return
	case codecs.StreamData, codecs.StreamCloseOneWay, codecs.StreamCloseTwoWay:
		if c.streamFrame(m) {
			return
		}
	case codecs.Request, codecs.Oneway, codecs.Quiet, codecs.Muted:
		cfg.count(metrics.Request, 1)
		m.counted = c.sh.telemetry.Begin(cfg.Protocol, &m.req)
		m.traced()
		if m.oneway = m.req.Type == codecs.Oneway || m.req.Type == codecs.Muted; m.oneway {
			cfg.count(metrics.RequestOneway, 1)
		} else {
			cfg.count(metrics.RequestTwoway, 1)
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
		m.begin()
		return
	case codecs.Heartbeat:
		cfg.count(metrics.RequestEvent, 1)
		c.heartbeat(m)
		return
	case codecs.GoAway, codecs.Ignored:
		cfg.count(metrics.RequestEvent, 1)
	case codecs.Goodbye:
		cfg.count(metrics.RequestEvent, 1)
		c.heartbeat(m)
		c.finish()
		return
	default:
		cfg.count(metrics.RequestUnserved, 1)
	}
	c.sh.freeMessage(m)
}

// beats reports whether the proxy itself answers m with success.
func (m *Message) beats() bool {
	return m.req.Type == codecs.Heartbeat || m.req.Type == codecs.Goodbye
}

// heartbeat answers m, if it wants to be: at once, or, where answers are told by
// their order, in its turn.
func (c *connection) heartbeat(m *Message) {
	hb, ok := c.proto.codec.(codecs.Heartbeater)
	if !ok || !m.req.ExpectsReply {
		m.logBeat()
		c.sh.freeMessage(m)
		return
	}
	size := m.req.HeaderSize + m.req.BodySize
	encode := func(dst []byte) ([]byte, error) {
		b, err := hb.EncodeHeartbeat(dst, &m.req)
		if err == nil {
			c.cfg.count(metrics.LocalResponseSuccess, 1)
		}
		return b, err
	}
	if c.ordered && c.oldest() != nil {
		c.link(m)
		if c.cfg.keepsRequest && c.cfg.logs != nil {
			m.detach(&m.req)
		}
		m.write(size, encode)
		return
	}
	buf := c.buffer(size)
	before := len(buf.B)
	var err error
	if buf.B, err = guard.Append(buf.B, encode); err != nil && !c.panicked(err) {
		c.cfg.count(metrics.LocalResponseError, 1)
		c.sh.warn(c.cfg, "client %s: its heartbeat cannot be answered: %v", c.d.RemoteAddress(), err)
	}
	m.sentBytes = int64(len(buf.B) - before)
	m.logBeat()
	c.sh.freeMessage(m)
}

// Starve implements inbox.Peer. What the host has read stays in its buffer.
func (c *connection) Starve(starve bool) {
	if !starve {
		c.goOn()
		return
	}
	c.cfg.count(metrics.PartialFrameWait, 1)
	c.d.ReadDisable(true)
}

// Held implements inbox.Peer: a client is not read for many reasons, and for its
// own not reading it is not excused for long.
func (c *connection) Held() bool {
	return c.stopped() && (!c.blocked || c.sh.w.Now() < c.unread.taken+4*stallTime)
}

// Stalled implements inbox.Peer.
func (c *connection) Stalled() {
	c.cfg.count(metrics.PartialFrameOverflow, 1)
	c.sh.warn(c.cfg, "client %s sends no more of a frame of which it has sent %d bytes, with too many such frames on this worker",
		c.d.RemoteAddress(), c.in.Buffered())
	c.finish()
}

// keeps notes what the inbox holds after an event.
func (c *connection) keeps(another bool) {
	if c.in.Buffered() == 0 {
		c.in.Wait(c.in.Need()) // an idle connection keeps nothing
	}
	c.partial.Kept(another)
}

// forgetPartial gives up the frame that has begun.
func (c *connection) forgetPartial() {
	c.in.Wait(0)
	c.partial.Forget()
}
