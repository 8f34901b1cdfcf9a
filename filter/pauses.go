package filter

import (
	"math"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// maxStanding is how many there may be of pauses.
const maxStanding = 1 << 16

// pauses are the messages of a listener on a worker that stand still before they go
// upstream, or to their clients: filters hold them, there are no routes yet, or they must
// not overtake others.
type pauses struct {
	n, bytes int
	// clients are those that are not read, as there are too many bytes and some are
	// theirs.
	clients upstream.Waiters
}

// stand has m, which so is one of those, outlive this event. It reports false if that has
// ended m: there are too many, which is told to its client.
func (m *Message) stand(tooMany string) bool {
	wl := m.cfg
	p, size, limit := &wl.pauses, m.size(), wl.Upstream.MaxPendingBytes
	switch {
	case p.n >= maxStanding || p.n > 0 && p.bytes+size > 2*limit:
		m.overflows(tooMany)
		return false
	case !m.hold():
		m.Reply(codecs.Unspecified, guard.Text)
		m.answerLocally()
		return false
	}
	m.stands, m.weight = true, size
	p.n++
	p.bytes += size
	if m.conn.standing++; p.bytes > limit {
		m.conn.stopForPauses()
	}
	return true
}

// overflows ends a message that is one too many.
func (m *Message) overflows(text string) {
	m.cfg.count(metrics.RequestOverflow, 1)
	m.Reply(codecs.OverLimit, text)
	m.answerLocally()
}

// size is how many bytes of m are kept while it stands: its frame, or that of its answer,
// the payload in place of the one there, and what has come of its stream.
func (m *Message) size() int {
	md, mut := &m.req, m.ofRequest()
	if m.phase == inResponse {
		md, mut = m.resp, m.ofResponse()
	}
	payload, _ := mut.Payload()
	return len(md.Raw) + len(payload.Bytes) + m.stream.size()
}

// heavier counts n bytes more of m, which stands. It reports false if they are too many.
func (m *Message) heavier(n int) bool {
	p := &m.cfg.pauses
	if p.bytes+n > 2*m.cfg.Upstream.MaxPendingBytes {
		return false
	}
	m.weight += n
	p.bytes += n
	return true
}

// leaves is called when m stands no more. A client of which nothing else stands is read
// again, however many bytes are others'.
func (m *Message) leaves() {
	p, c := &m.cfg.pauses, m.conn
	p.n--
	p.bytes -= m.weight
	m.stands, m.weight = false, 0
	if c.standing--; c.standing == 0 && c.pausing {
		c.relief.Cancel()
		c.relief.Resume()
	}
	for p.bytes <= m.cfg.Upstream.MaxPendingBytes/2 && p.clients.Resume() {
	}
}

// pause has m stand until its filter has it go on, or, while it is a request, its time is
// over.
func (m *Message) pause() {
	if !m.stand("filters hold too many requests") {
		return
	}
	m.paused = true
	if m.phase == inRequest {
		if m.delayed.gen != m.gen { // a Resumer alone, that nobody may ever use
			m.Delay(math.MaxInt64, (*Message).outOfTime)
		}
		m.conn.halt()
	}
}
