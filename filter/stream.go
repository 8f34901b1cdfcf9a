package filter

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// maxEarlyBytes is what a client may send of a stream before the stream has a
// connection upstream.
const maxEarlyBytes = 1 << 20

// stream is the rest of the life of a message that opens one. The message
// itself goes through the request filters and the router as a request does;
// then it has an upstream connection of its own, on which further frames of
// both sides are carried as they are.
type stream struct {
	m     *Message
	sent  bool   // the opening frame has gone to the server
	open  bool   // the server has accepted it
	early []byte // frames that the client sent before it has gone there
	// unseen are frames that came while filters held the opening one: those behind
	// have not seen that yet.
	unseen []*Message

	clientDone, serverDone bool // that side has nothing more to say
	over                   bool // a side has closed it both ways

	paused  bool // the server is not read, as the client does not read
	stalled bool // the client is not read, as nobody takes the stream's frames

	last time.Duration // a frame came
	idle timer.Timer
}

// openStream takes a StreamInit.
func (c *connection) openStream(m *Message) {
	cfg := c.cfg
	if c.proto.streamer == nil {
		cfg.count(metrics.RequestUnserved, 1)
		c.sh.freeMessage(m)
		return
	}
	cfg.count(metrics.Request, 1)
	cfg.count(metrics.RequestStream, 1)
	m.counted = c.sh.telemetry.Begin(cfg.Protocol, &m.req)
	m.traced()
	st := &stream{m: m, last: c.lastUse}
	st.idle.Fire = st.onIdle
	m.stream = st
	c.link(m)
	refuse := func(e codecs.ErrorType, reason string) {
		cfg.count(metrics.StreamRefused, 1)
		m.Reply(e, reason)
		m.answerLocally()
	}
	switch {
	case m.req.Malformed != "":
		refuse(codecs.BadRequest, "malformed request: "+m.req.Malformed)
	case c.streams[m.req.StreamID] != nil:
		refuse(codecs.BadRequest, "a stream of this id is open")
	case len(c.streams) >= cfg.Limits.MaxStreams:
		refuse(codecs.OverLimit, "too many open streams on one connection")
	default:
		if c.streams == nil {
			c.streams = map[uint64]*stream{}
		}
		c.streams[m.req.StreamID] = st
		cfg.gauge(metrics.StreamActive, 1)
		m.begin()
	}
}

// streamFrame takes a further frame of the client, which f has as its request, and
// reports whether it keeps f. Behind the client's own end window updates still come.
func (c *connection) streamFrame(f *Message) (kept bool) {
	st := c.streams[f.req.StreamID]
	switch {
	case st == nil:
		c.cfg.count(metrics.StreamStray, 1)
	case f.req.Malformed != "":
		st.refuse("malformed frame of a stream: " + f.req.Malformed)
	case c.cfg.streamFilters > 0 && st.m.phase == inRequest:
		st.heard(f.req.Raw)
		if st.mayHold(f.req.Raw) {
			f.hold()
			st.unseen = append(st.unseen, f)
			st.stall(true)
			return true
		}
	default:
		st.heard(f.req.Raw)
		st.frame(&f.req)
	}
	return false
}

// heard notes that a frame of the client has come.
func (st *stream) heard(frame []byte) {
	st.last = st.m.conn.lastUse
	st.m.receivedBytes += int64(len(frame))
}

// showUnseen is called when all filters have seen the opening frame: what came
// meanwhile follows. It reports whether the stream goes on.
func (st *stream) showUnseen() bool {
	for len(st.unseen) > 0 {
		f := st.unseen[0]
		st.unseen = st.unseen[1:]
		goesOn := st.frame(&f.req)
		st.m.sh.freeMessage(f)
		if !goesOn {
			return false
		}
	}
	return true
}

// frame passes a further frame of the client on, and reports whether the stream goes
// on.
func (st *stream) frame(md *codecs.Metadata) bool {
	if st.m.cfg.streamFilters > 0 && !st.m.passesFrame(codecs.ClientToServer, md) {
		return false
	}
	st.over = st.over || md.Type == codecs.StreamCloseTwoWay
	st.clientDone = st.clientDone || md.Type == codecs.StreamCloseOneWay
	if !st.sent {
		return st.hold(md.Raw)
	}
	st.m.writtenBytes += int64(len(md.Raw))
	st.m.exchange.Call().Write(md.Raw)
	if st.done() {
		st.m.end()
		return false
	}
	return true
}

// done reports whether nothing more is to come. The message that opens a stream
// is a call: it gets its answer, also if the stream has been closed before.
func (st *stream) done() bool {
	return st.open && (st.over || st.serverDone && st.clientDone)
}

// hold keeps a frame until the stream has a connection upstream. It counts as
// part of the request that waits for one. While filters hold that, the client is
// not read. It reports whether the stream goes on.
func (st *stream) hold(frame []byte) bool {
	m, c := st.m, st.m.conn
	if !st.mayHold(frame) {
		return false
	}
	st.early = append(st.early, frame...)
	if !m.exchange.Call().Waiting() {
		st.stall(true)
	} else if p := m.exchange.Call().Pool(); p.Full(nil) {
		c.stopFor(p, nil)
	}
	return true
}

// mayHold reports whether a frame may be kept. If not, the stream has ended.
func (st *stream) mayHold(frame []byte) bool {
	m := st.m
	may := len(st.early)+len(frame) <= maxEarlyBytes
	if call := m.exchange.Call(); m.stands {
		may = may && m.heavier(len(frame))
	} else if call.Waiting() {
		may = may && call.Grow(len(frame))
	}
	if may {
		return true
	}
	m.exchange.Cancel()
	m.Reply(codecs.OverLimit, "too much was sent before the stream was open")
	m.answerLocally()
	return false
}

// size is how many bytes go to the server with the opening frame.
func (st *stream) size() int {
	if st == nil {
		return 0
	}
	n := len(st.early)
	for _, f := range st.unseen {
		n += len(f.frame)
	}
	return n
}

// opening is called when the opening frame has gone to the server, and what the
// client has sent behind it.
func (st *stream) opening() {
	st.sent, st.early = true, nil
	st.stall(false)
}

// Streamed implements forward.Owner: a frame of the server.
func (o *caller) Streamed(md *codecs.Metadata) {
	m := (*Message)(o)
	st, c, cfg := m.stream, m.conn, m.cfg
	defer m.sh.barrier(c)
	answer := md.Type == codecs.Response || md.Type == codecs.Error
	if answer && md.ID != m.req.ID || !answer && md.StreamID != m.req.StreamID {
		cfg.count(metrics.StreamStray, 1)
		return
	}
	st.last = m.sh.w.Now()
	opening := !st.open && (answer || md.Type == codecs.StreamInit)
	if cfg.streamFilters > 0 && !opening && !m.passesFrame(codecs.ServerToClient, md) {
		return
	}
	size := md.HeaderSize + md.BodySize
	buf := c.buffer(size)
	before := len(buf.B)
	if !opening {
		m.streamedBytes += int64(len(md.Raw))
		buf.B = append(buf.B, md.Raw...)
	} else {
		cfg.count(metrics.ResponseDecodingSuccess, 1)
		m.mutateByRoute(md)
		var err error
		buf.B, err = guard.Append(buf.B, func(dst []byte) ([]byte, error) { return m.encode(dst, md, m.ofResponse()) })
		if err != nil {
			m.codecPanicked(err)
			m.exchange.Call().EndStream()
			m.Reply(cannotEncode(err))
			m.answerLocally()
			return
		}
		cfg.countResponse(md)
		m.answeredAt, m.answerBytes = st.last, size
		m.status, m.code, m.failure = md.Status, md.Code, md.Failure
		if !answer {
			st.open = true
			m.exchange.Call().Opened()
			m.sh.timers.Start(&st.idle, st.last+cfg.Limits.StreamIdleTimeout)
		}
	}
	m.sentBytes += int64(len(buf.B) - before)
	st.over = st.over || md.Type == codecs.StreamCloseTwoWay
	st.serverDone = st.serverDone || md.Type == codecs.StreamCloseOneWay
	if answer || st.done() {
		m.end()
	} else if c.behind() {
		c.pauseStreams(st)
	}
}

// refuse ends a stream over a frame of the client that cannot be passed on.
func (st *stream) refuse(reason string) {
	m := st.m
	m.exchange.Call().EndStream()
	(*caller)(m).Failed(&upstream.Failure{Type: codecs.BadRequest, Reason: reason})
}

// refused ends a stream that a filter has refused to go on with.
func (st *stream) refused() {
	m := st.m
	if !st.open {
		m.exchange.Cancel()
		m.answerLocally()
		return
	}
	m.exchange.Call().EndStream()
	st.reset()
}

// lost ends an open stream that cannot go on, and tells the client.
func (st *stream) lost(e codecs.ErrorType, reason string) {
	st.m.Reply(e, reason)
	st.reset()
}

// reset is lost when the local reply tells why.
func (st *stream) reset() {
	m := st.m
	cfg := m.cfg
	cfg.count(metrics.StreamReset, 1)
	c := m.conn
	if cfg.localFilters > 0 {
		m.replies()
	}
	buf := c.buffer(256 + len(m.local.Message))
	before := len(buf.B)
	var err error
	buf.B, err = guard.Append(buf.B, func(dst []byte) ([]byte, error) {
		return m.proto.streamer.EncodeReset(dst, &m.req, &m.local)
	})
	if err != nil {
		m.codecPanicked(err)
		m.sh.warn(cfg, "reset of a stream cannot be encoded: %v", err)
		m.end()
		c.finish() // the client would wait for ever
		return
	}
	m.sentBytes += int64(len(buf.B) - before)
	m.end()
}

func (st *stream) onIdle() {
	limit := st.m.cfg.Limits.StreamIdleTimeout
	if at := st.last + limit; st.m.sh.w.Now() < at {
		st.m.sh.timers.Start(&st.idle, at)
		return
	}
	defer st.m.sh.barrier(st.m.conn)
	st.m.cfg.count(metrics.StreamIdleTimeout, 1)
	st.m.flags |= facts.StreamIdleTimeout
	st.m.exchange.Call().EndStream()
	st.m.ReplyWith(codecs.LocalError{Type: codecs.Timeout, Message: "stream idle timeout"})
	st.reset()
}

// pauseStreams stops the reading of a server that has sent while the client does
// not read, and that of all others too once much is waiting. Those that say
// nothing cost nothing.
func (c *connection) pauseStreams(sender *stream) {
	sender.pause()
	if c.unread.size+len(c.out.B) > c.cfg.Limits.MaxWriteBufferBytes/2 && len(c.paused) < len(c.streams) {
		for _, st := range c.streams {
			st.pause()
		}
	}
}

func (st *stream) pause() {
	if st.sent && !st.paused {
		st.paused = true
		st.m.exchange.Call().ReadDisable(true)
		st.m.conn.paused = append(st.m.conn.paused, st)
	}
}

// resumeStreams has the servers read again that were not.
func (c *connection) resumeStreams() {
	for _, st := range c.paused {
		if st.paused { // else it has ended
			st.paused = false
			st.m.exchange.Call().ReadDisable(false)
		}
	}
	c.paused = nil
}

// stall stops or resumes the reading of the client.
func (st *stream) stall(stall bool) {
	if st.stalled == stall {
		return
	}
	c := st.m.conn
	if st.stalled = stall; stall {
		c.stalled++
		c.d.ReadDisable(true)
	} else {
		c.stalled--
		if !c.closed {
			c.goOn()
		}
	}
}

// end takes the stream off its connections.
func (st *stream) end() {
	m := st.m
	c := m.conn
	m.sh.timers.Stop(&st.idle)
	m.exchange.Call().EndStream()
	if c.streams[m.req.StreamID] == st {
		delete(c.streams, m.req.StreamID)
		m.cfg.gauge(metrics.StreamActive, -1)
	}
	for _, f := range st.unseen {
		m.sh.freeMessage(f)
	}
	st.paused, st.early, st.unseen = false, nil, nil
	st.stall(false)
}
