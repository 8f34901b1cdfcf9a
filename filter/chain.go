package filter

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

// guard runs a hook; a panic in it ends this message only.
func (m *Message) guard(hook func() Verdict) (v Verdict) {
	defer func() {
		if r := recover(); r != nil {
			v = m.panicked(r)
		}
	}()
	return hook()
}

func (m *Message) panicked(r any) Verdict {
	m.cfg.count(metrics.FilterPanic, 1)
	m.sh.logPanic(m.cfg.StatPrefix, " in filter "+m.cfg.chain[min(m.pos, len(m.cfg.chain)-1)].name, guard.New(r))
	return m.Reply(codecs.Unspecified, guard.Text)
}

func (m *Message) onRequest(f Filter) (v Verdict) {
	m.gen++
	defer func() {
		if r := recover(); r != nil {
			v = m.panicked(r)
		}
	}()
	return f.OnRequest(m)
}

func (m *Message) onResponse(f ResponseFilter) (v Verdict) {
	m.gen++
	defer func() {
		if r := recover(); r != nil {
			v = m.panicked(r)
		}
	}()
	return f.OnResponse(m)
}

// after carries out a verdict and reports whether the next filter shall run.
func (m *Message) after(v Verdict) bool {
	switch {
	case m.replied:
		m.answerLocally()
	case m.forward && m.phase == inRequest:
		m.send()
	case v == Pause:
		m.paused = true
		if !m.hold() {
			m.paused = false
			m.Reply(codecs.Unspecified, guard.Text)
			m.answerLocally()
		} else if m.phase == inRequest {
			m.conn.halt()
		}
	default:
		return true
	}
	return false
}

func (m *Message) runRequest() {
	for ; m.pos < len(m.cfg.chain); m.pos++ {
		m.seen = max(m.seen, m.pos+1)
		if !m.after(m.onRequest(m.cfg.chain[m.pos].Filter)) {
			return
		}
	}
	m.Reply(codecs.Unspecified, "no filter forwarded the request")
	m.answerLocally()
}

func (m *Message) runResponse() {
	for ; m.pos >= 0; m.pos-- {
		if f := m.cfg.chain[m.pos].resp; f != nil && !m.after(m.onResponse(f)) {
			return
		}
	}
	if m.shadows != nil {
		m.tellShadows(1 + outcome(m.resp.Status))
	}
	m.resp.ID = m.clientID
	m.write(m.resp.HeaderSize+m.resp.BodySize, func(b []byte) (_ []byte, err error) {
		if !m.resp.Silent {
			b, err = m.encode(b, m.resp, &m.respMut)
		}
		if err == nil {
			m.cfg.countResponse(m.resp)
		}
		return b, err
	})
}

// end takes leave of the message.
func (m *Message) end() {
	c := m.cfg
	m.settle(m.unanswered())
	for i := m.seen - 1; i >= 0 && c.endFilters > 0; i-- {
		if f := c.chain[i].end; f != nil {
			m.pos = i
			m.onEnd(f)
		}
	}
	if m.stream != nil {
		m.stream.end()
	} else if !m.oneway && !m.beats() && (!m.aside || m.resp != nil) {
		ms := (m.sh.w.Now() - m.start).Milliseconds()
		c.record(uint64(ms))
	}
	switch {
	case m.aside:
		m.conn.takeBack(m)
	case !m.left:
		c.gauge(metrics.RequestActive, -1)
		m.conn.unlink(m)
	}
	if m.shadows != nil {
		m.tellShadows(0)
	}
	m.sh.freeMessage(m)
}

func (m *Message) onEnd(f EndFilter) {
	defer func() {
		if r := recover(); r != nil {
			m.panicked(r)
		}
	}()
	f.OnEnd(m)
}
