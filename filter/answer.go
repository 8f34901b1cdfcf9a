package filter

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

// encode appends md with the changes of mut, if there are any, or without those that it
// cannot carry and that are not required, counted. The caller catches the codec's panics.
func (m *Message) encode(dst []byte, md *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	b, skipped, err := m.proto.encode(dst, md, mut)
	if skipped != nil {
		m.tellSkipped(md.Type.String(), skipped, err)
	}
	return b, err
}

// tellSkipped tells of a message, what, that cannot carry its changes for the reason
// skipped; err is what came of those that are required.
func (m *Message) tellSkipped(what string, skipped, err error) {
	if skips(err) {
		m.cfg.count(metrics.MutationRefused, 1)
		m.sh.warn(m.cfg, "%s not sent, as it cannot carry what is required: %v", what, err)
		return
	}
	m.cfg.count(metrics.MutationSkipped, 1)
	m.sh.warn(m.cfg, "%s not mutated: %v", what, skipped)
}

// codecPanicked ends the client's connection if err is a panic of the codec.
func (m *Message) codecPanicked(err error) { m.conn.panicked(err) }

// cannotEncode is the local reply in place of an answer.
func cannotEncode(err error) (codecs.ErrorType, string) {
	if guard.In(err) != nil {
		return codecs.Unspecified, guard.Text
	}
	return codecs.BadResponse, "response cannot be encoded: " + err.Error()
}

// answerLocally ends the message with its local reply.
func (m *Message) answerLocally() {
	m.trace.Read(&m.req)
	if m.oneway || !m.conn.closed && m.phase == inRequest && m.knownOneway() {
		m.cfg.count(metrics.OnewayDropped, 1)
		m.end()
		return
	}
	if m.conn.closed {
		m.end()
		return
	}
	m.resp = nil
	if m.cfg.localFilters > 0 {
		m.replies()
	}
	m.leaveRequest()
	m.write(256+len(m.local.Message), func(dst []byte) ([]byte, error) {
		b, err := m.proto.codec.EncodeError(dst, &m.req, &m.local)
		if err == nil {
			m.cfg.count(metrics.LocalResponseBusinessException, 1)
		}
		return b, err
	})
}

// leaveRequest is called when a local reply ends a request that has not been
// encoded: hooks that come may ask for its properties, nobody for its frame.
func (m *Message) leaveRequest() {
	switch {
	case m.phase != inRequest || m.held: // they are its own already
		m.req.Raw = nil
	case m.cfg.keepsRequest && (m.seen > 0 || m.cfg.logs != nil):
		m.detach(&m.req)
	default:
		m.req.Release()
	}
}

// write appends the answer to what goes to the client, in its turn where the
// protocol has an order, and ends the message.
func (m *Message) write(size int, encode func(dst []byte) ([]byte, error)) {
	c := m.conn
	inTurn := !c.ordered || m.stream != nil || m.aside || c.isNext(m)
	var buf *host.Buffer
	dst := m.sh.answer[:0]
	if inTurn {
		buf = c.buffer(size)
		dst = buf.B
	} else if !m.keepResponse() {
		m.Reply(codecs.Unspecified, guard.Text)
		m.answerLocally()
		return
	}
	b, err := guard.Append(dst, encode)
	if err == nil && !inTurn && !m.replied && !c.mayPark(len(b)) {
		if m.beats() {
			m.sh.answer = b[:0]
			c.overflow("sends too many heartbeats behind a request")
			return
		}
		c.cfg.count(metrics.DownstreamOverflow, 1)
		m.Reply(codecs.OverLimit, "too many bytes of answers wait for the one before")
		m.answerLocally()
		return
	}
	if err != nil {
		m.codecPanicked(err)
		if m.made {
			m.made, m.details = false, ""
		}
		if !m.replied && !m.beats() { // an answer that cannot be encoded: say so
			m.Reply(cannotEncode(err))
			m.answerLocally()
			return
		}
		// Not even that: without an answer the client would hang.
		m.cfg.count(metrics.LocalResponseError, 1)
		m.sh.warn(m.cfg, "local reply cannot be encoded: %v", err)
		m.end()
		c.finish()
		return
	}
	m.sentBytes += int64(len(b) - len(dst))
	if !inTurn {
		if m.ownResp != nil && !m.held {
			m.ownResp.Raw = nil // gone when hooks see it
		}
		m.sh.answer = b[:0]
		m.phase = answered
		c.park(m, b)
		return
	}
	buf.B = b
	m.end()
}

// keepResponse makes the answer the message's own if hooks will see it after this
// event. It reports false if that made the codec panic.
func (m *Message) keepResponse() bool {
	if m.resp == nil || m.held || m.cfg.endFilters == 0 {
		return true
	}
	raw := m.resp.Raw
	ok := m.detach(m.takeResponse())
	m.resp.Raw = raw
	return ok
}
