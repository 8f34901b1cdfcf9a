package filter

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/route"
)

// maxFilters is how many a chain may have: one bit of Message.skipped each.
const maxFilters = 64

// link is one filter of a chain with the hooks that it has.
type link struct {
	Filter
	name    string
	resp    ResponseFilter
	local   LocalReplyFilter
	stream  StreamFilter
	attempt AttemptFilter
	end     EndFilter
	aside   AsideFilter
	conn    ConnectionFilter

	builder  Builder
	config   Config
	match    *route.Match // which messages it sees, nil: all
	disabled bool         // unless the route says otherwise
	router   bool         // of which routes say nothing
}

// take has the link's hooks be those of f.
func (k *link) take(f Filter) {
	k.Filter = f
	k.resp, _ = f.(ResponseFilter)
	k.local, _ = f.(LocalReplyFilter)
	k.stream, _ = f.(StreamFilter)
	k.attempt, _ = f.(AttemptFilter)
	k.end, _ = f.(EndFilter)
	k.aside, _ = f.(AsideFilter)
	k.conn, _ = f.(ConnectionFilter)
}

// hooks counts the links of a chain that have each hook.
type hooks struct {
	respFilters, localFilters, streamFilters, attemptFilters, endFilters, asideFilters, connFilters int

	keepsRequest bool // properties are wanted after the request hooks
}

func hooksOf(chain []link) (h hooks) {
	for i := range chain {
		k := &chain[i]
		if k.resp != nil {
			h.respFilters++
		}
		if k.local != nil {
			h.localFilters++
		}
		if k.stream != nil {
			h.streamFilters++
		}
		if k.attempt != nil {
			h.attemptFilters++
		}
		if k.end != nil {
			h.endFilters++
		}
		if k.aside != nil {
			h.asideFilters++
		}
		if k.conn != nil {
			h.connFilters++
		}
		_, forgets := k.Filter.(ForgetfulFilter)
		h.keepsRequest = h.keepsRequest || !forgets && (k.resp != nil || k.local != nil || k.stream != nil || k.attempt != nil || k.end != nil || k.aside != nil)
	}
	return h
}

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
	m.cfg.filterPanicked(m.cfg.chain[min(m.pos, len(m.cfg.chain)-1)].name, guard.New(r))
	return m.Reply(codecs.Unspecified, guard.Text)
}

func (m *Message) onRequest(k *link) (v Verdict) {
	m.gen++
	m.spent = 0
	defer func() {
		if r := recover(); r != nil {
			v = m.panicked(r)
		}
	}()
	own := uint64(1) << m.pos
	m.skipped |= own
	if m.passes(k) {
		return Continue
	}
	m.skipped &^= own
	return k.OnRequest(m)
}

func (m *Message) onResponse(f ResponseFilter) (v Verdict) {
	m.gen++
	m.spent = 0
	defer func() {
		if r := recover(); r != nil {
			v = m.panicked(r)
		}
	}()
	return f.OnResponse(m)
}

// replies tells filters of the local reply that m is about to be answered with.
func (m *Message) replies() {
	pos := m.pos
	for i := m.seen - 1; i >= 0; i-- {
		if f := m.cfg.chain[i].local; f != nil && m.saw(i) {
			m.pos = i
			m.onLocalReply(f)
		}
	}
	m.pos = pos
}

func (m *Message) onLocalReply(f LocalReplyFilter) {
	m.spent = 0
	defer func() {
		if r := recover(); r != nil {
			m.panicked(r)
		}
	}()
	f.OnLocalReply(m, &m.local)
}

// passesFrame has filters see a further frame of a stream, and reports whether it may
// be passed on. If not, the stream has ended.
func (m *Message) passesFrame(d codecs.Direction, f *codecs.Metadata) bool {
	pos := m.pos
	at, step := 0, 1
	if d == codecs.ServerToClient {
		at, step = m.seen-1, -1
	}
	for ; at >= 0 && at < m.seen; at += step {
		k := m.cfg.chain[at].stream
		if k == nil || !m.saw(at) {
			continue
		}
		m.pos = at
		m.onStreamFrame(k, d, f)
		if m.succeeds {
			m.Reply(codecs.Unspecified, "a stream cannot be answered with a payload")
		}
		if m.replied {
			m.stream.refused()
			return false
		}
		m.pos = pos
	}
	return true
}

func (m *Message) onStreamFrame(f StreamFilter, d codecs.Direction, md *codecs.Metadata) {
	m.spent = 0
	defer func() {
		if r := recover(); r != nil {
			m.panicked(r)
		}
	}()
	f.OnStreamFrame(m, d, md)
}

// after carries out a verdict and reports whether the next filter shall run.
func (m *Message) after(v Verdict) bool {
	switch {
	case m.replied:
		m.answerLocally()
	case m.succeeds:
		m.succeed()
	case m.repeats:
		return !m.again()
	case m.forward && m.phase == inRequest:
		m.send()
	case v == Pause:
		m.pause()
	default:
		return true
	}
	return false
}

func (m *Message) runRequest() {
	for ; m.pos < len(m.cfg.chain); m.pos++ {
		m.seen = m.pos + 1
		if !m.after(m.onRequest(&m.cfg.chain[m.pos])) {
			return
		}
	}
	m.Reply(codecs.Unspecified, "no filter forwarded the request")
	m.answerLocally()
}

// passes reports whether m goes past a filter without its seeing it.
func (m *Message) passes(k *link) bool {
	disabled := k.disabled
	if o := m.override(k); o != nil {
		disabled = o.Disabled
	}
	if disabled || k.match == nil {
		return disabled
	}
	// What cannot be told is left to the filter: it may be there to refuse it.
	holds, err := m.Matches(k.match)
	return !holds && err == nil
}

// override is what the message's consumer, its route, or its table says of a filter; nil:
// nothing.
func (m *Message) override(k *link) *route.Override {
	if k.router {
		return nil
	}
	o := m.ofRoute(k)
	if m.consumer == nil {
		return o
	}
	return m.ofConsumer(k, o)
}

// ofRoute is override without consumers. The route is asked for only if some route says
// something of the filter.
func (m *Message) ofRoute(k *link) *route.Override {
	if !m.routed {
		if m.phase != inRequest { // and never was
			return nil
		}
		if t := m.cfg.table.Load().Load(); t == nil || !t.Overrides(k.name) {
			return nil
		}
	}
	r := m.Route()
	if r == nil {
		return nil
	}
	if r.Differs() && m.picked == nil && m.phase == inRequest {
		m.picked, _ = m.pick(r) // there is none that the request names
	}
	return r.Override(k.name, m.picked)
}

// saw reports whether the filter at i has seen the request.
func (m *Message) saw(i int) bool { return i < m.seen && m.skipped>>i&1 == 0 }

func (m *Message) runResponse() {
	for ; m.pos >= 0; m.pos-- {
		if f := m.cfg.chain[m.pos].resp; f != nil && m.skipped>>m.pos&1 == 0 && !m.after(m.onResponse(f)) {
			return
		}
	}
	if m.shadows != nil {
		m.tellShadows(1 + outcome(m.resp.Status))
	}
	m.settle(answeredAs(m.resp))
	m.resp.ID = m.clientID
	m.write(m.resp.HeaderSize+m.resp.BodySize, func(b []byte) (_ []byte, err error) {
		if m.made {
			return m.encodeReply(b)
		}
		if !m.resp.Silent {
			b, err = m.encode(b, m.resp, m.ofResponse())
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
	m.endedAt = m.sh.w.Now()
	m.sh.told = nil
	if m.stands {
		m.leaves()
	}
	m.exchange.Over()
	if m.taken != nil {
		m.giveBack(m.unanswered())
	}
	for i := m.seen - 1; i >= 0 && c.endFilters > 0; i-- {
		if f := c.chain[i].end; f != nil && m.saw(i) {
			m.pos = i
			m.onEnd(f)
		}
	}
	switch {
	case m.beats():
		m.logBeat()
	case c.logs != nil || m.counted != nil || m.trace.Recorded():
		m.observe()
	}
	if m.stream != nil {
		m.stream.end()
	} else if !m.oneway && !m.beats() && (!m.aside || m.resp != nil) {
		c.record(uint64((m.endedAt - m.start).Milliseconds()))
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
	if m.left {
		m.leave()
		return
	}
	m.sh.freeMessage(m)
}

// leave is the end of a message whose client had gone.
func (m *Message) leave() {
	c := m.cfg
	c.left--
	defer c.endIfDone()
	m.sh.freeMessage(m)
}

func (m *Message) onEnd(f EndFilter) {
	m.spent = 0
	defer func() {
		if r := recover(); r != nil {
			m.panicked(r)
		}
	}()
	f.OnEnd(m)
}
