package filter

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
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
	open  bool   // the server has answered
	early []byte // frames that the client sent before

	clientDone, serverDone bool // that side has nothing more to say

	paused  bool // the server is not read, as the client does not read
	blocked bool // the client is not read, as the server does not read

	last time.Duration // a frame came
	idle timer.Timer
}

// openStream takes a StreamInit.
func (c *connection) openStream(m *Message) {
	cfg := c.cfg
	if c.proto.streamer == nil {
		cfg.count(requestUnserved, 1)
		c.sh.freeMessage(m)
		return
	}
	cfg.count(request, 1)
	cfg.count(requestStream, 1)
	st := &stream{m: m, last: c.lastUse}
	st.idle.Fire = st.onIdle
	m.stream = st
	c.link(m)
	refuse := func(e codecs.ErrorType, reason string) {
		cfg.count(streamRefused, 1)
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
		cfg.gauge(streamActive, 1)
		m.runRequest()
	}
}

// streamFrame takes a further frame of the client. Behind its own end window
// updates still come.
func (c *connection) streamFrame(md *codecs.Metadata) {
	st := c.streams[md.StreamID]
	if st == nil {
		c.cfg.count(streamStray, 1)
		return
	}
	m := st.m
	st.last = c.lastUse
	over := md.Type == codecs.StreamCloseTwoWay
	st.clientDone = st.clientDone || over || md.Type == codecs.StreamCloseOneWay
	switch {
	case st.sent:
		m.call.Write(md.Raw)
		if over || st.serverDone && st.clientDone {
			if !st.open {
				m.cfg.count(requestAbandoned, 1)
			}
			m.end()
		}
	case over: // before anybody else has heard of it
		m.call.Abandon()
		m.cfg.count(requestAbandoned, 1)
		m.end()
	case len(st.early)+len(md.Raw) > maxEarlyBytes:
		m.call.Abandon()
		m.Reply(codecs.OverLimit, "too much was sent before the stream was open")
		m.answerLocally()
	default:
		st.early = append(st.early, md.Raw...)
	}
}

// opening appends what the client has sent behind the opening frame.
func (st *stream) opening(dst []byte) []byte {
	dst = append(dst, st.early...)
	st.sent, st.early = true, nil
	return dst
}

// Streamed implements upstream.Owner: a frame of the server.
func (m *Message) Streamed(md *codecs.Metadata) {
	st, c, cfg := m.stream, m.conn, m.cfg
	defer m.sh.barrier(c)
	answer := md.Type == codecs.Response || md.Type == codecs.Error
	if !answer && md.StreamID != m.req.StreamID {
		cfg.count(streamStray, 1)
		return
	}
	st.last = m.sh.w.Now()
	size := md.HeaderSize + md.BodySize
	buf := c.buffer(size)
	n := len(buf.B)
	if st.open {
		buf.B = append(buf.B, md.Raw...)
	} else {
		cfg.count(responseDecodingSuccess, 1)
		m.mutateByRoute()
		mut := &m.respMut
		if len(mut.Entries()) == 0 {
			mut = nil
		}
		b, err := guard.Append(buf.B, func(dst []byte) ([]byte, error) { return m.encode(dst, md, mut) })
		if err != nil {
			m.codecPanicked(err)
			buf.B = b[:n]
			m.call.EndStream()
			m.Reply(cannotEncode(err))
			m.answerLocally()
			return
		}
		buf.B = b
		cfg.countResponse(md)
		if !answer {
			st.open = true
			m.sh.timers.Start(&st.idle, st.last+cfg.Limits.StreamIdleTimeout)
		}
	}
	st.serverDone = st.serverDone || md.Type == codecs.StreamCloseOneWay
	if answer || md.Type == codecs.StreamCloseTwoWay || st.serverDone && st.clientDone {
		m.end()
	} else if c.blocked {
		st.pause(true)
	}
}

// lost ends an open stream that cannot go on, and tells the client.
func (st *stream) lost(e codecs.ErrorType, reason string) {
	m := st.m
	cfg := m.cfg
	cfg.count(streamReset, 1)
	m.local, m.replied = codecs.LocalError{Type: e, Message: reason}, true
	c := m.conn
	buf := c.buffer(256 + len(reason))
	n := len(buf.B)
	b, err := guard.Append(buf.B, func(dst []byte) ([]byte, error) {
		return m.proto.streamer.EncodeReset(dst, &m.req, &m.local)
	})
	if err != nil {
		m.codecPanicked(err)
		buf.B = b[:n]
		m.sh.w.Logf(host.Warn, "meltemi: stat_prefix %q: reset of a stream cannot be encoded: %v", cfg.StatPrefix, err)
		m.end()
		c.finish() // the client would wait for ever
		return
	}
	buf.B = b
	m.end()
}

func (st *stream) onIdle() {
	limit := st.m.cfg.Limits.StreamIdleTimeout
	if at := st.last + limit; st.m.sh.w.Now() < at {
		st.m.sh.timers.Start(&st.idle, at)
		return
	}
	defer st.m.sh.barrier(st.m.conn)
	st.m.cfg.count(streamIdleTimeout, 1)
	st.m.call.EndStream()
	st.lost(codecs.Timeout, "stream idle timeout")
}

// pause stops or resumes the reading of the server.
func (st *stream) pause(pause bool) {
	if st.open && st.paused != pause {
		st.paused = pause
		st.m.call.ReadDisable(pause)
	}
}

// Blocked implements upstream.Owner: the server does not take bytes, or does
// again. Meanwhile its client is not read.
func (m *Message) Blocked(blocked bool) {
	st, c := m.stream, m.conn
	if st.blocked == blocked {
		return
	}
	if st.blocked = blocked; blocked {
		c.stalled++
		c.d.ReadDisable(true)
	} else {
		c.stalled--
		c.goOn()
	}
}

// end takes the stream off its connections.
func (st *stream) end() {
	m := st.m
	c := m.conn
	m.sh.timers.Stop(&st.idle)
	m.call.EndStream()
	if c.streams[m.req.StreamID] == st {
		delete(c.streams, m.req.StreamID)
		m.cfg.gauge(streamActive, -1)
	}
	if st.blocked {
		st.blocked = false
		c.stalled--
		if !c.closed {
			c.goOn()
		}
	}
}
