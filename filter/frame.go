package filter

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
)

// maxFrameKept is how much memory for a frame a message keeps that needs none.
const maxFrameKept = 1 << 10

// hold keeps the frame beyond this event. It reports false if the codec has panicked
// over properties that nobody had asked for before: some are missing.
func (m *Message) hold() bool {
	md := &m.req
	if m.held {
		return true
	}
	if m.phase == inResponse {
		md = m.takeResponse()
	}
	m.frame = append(m.frame[:0], md.Raw...)
	ok := m.detach(md)
	md.Raw = m.frame
	m.held = true
	return ok
}

// detach gives md memory of its own, and reports as hold does.
func (m *Message) detach(md *codecs.Metadata) bool {
	err := guard.Do(md.Detach)
	if err != nil {
		m.codecPanicked(err)
		md.Detach() // what could be read
	}
	return err == nil
}

// takeResponse makes the answer's metadata the message's own.
func (m *Message) takeResponse() *codecs.Metadata {
	own := m.sh.newMetadata()
	*own, *m.resp = *m.resp, *own
	m.resp, m.ownResp = own, own
	return own
}

func (m *Message) dropFrame() {
	// Thousands of messages may be waiting for answers, each with its buffer.
	if m.held = false; cap(m.frame) > maxFrameKept {
		m.frame = nil
	}
	if cap(m.kept) > maxFrameKept && !m.exchange.Keeps() {
		m.kept = nil
	}
}
