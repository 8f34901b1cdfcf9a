package filter

import (
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/forward"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/tracing"
)

// Span is the message's span, for what a filter wants to tell of it. It may be nil, and
// often is not told of: its methods do nothing then, and Recorded says so to those for
// whom making a value costs something. It ends with the message.
func (m *Message) Span() *tracing.Live { return m.trace }

// traced decides whether a request that has just come is traced.
func (m *Message) traced() {
	if m.cfg.Tracing != nil {
		m.beginTrace()
	}
}

func (m *Message) beginTrace() {
	wl := m.cfg
	if m.req.Shape() == nil { // else nothing is to be loaded
		if err := guard.Do(func() { m.req.Properties() }); err != nil {
			m.codecPanicked(err)
		}
	}
	m.trace = m.sh.traces.Begin(wl.Tracing, &m.req, m.proto.carrier(&m.req), m.MutateRequest())
	if m.trace.Recorded() {
		m.trace.Between(m.conn.d.RemoteAddress(), m.conn.d.LocalAddress())
	}
}

// carrier is how the request md carries what goes from hop to hop.
func (p *protocol) carrier(md *codecs.Metadata) tracing.Carrier {
	c := tracing.Carrier{Carries: p.mutates && md.Malformed == "", Removes: p.remover != nil}
	if c.Carries && p.contexts != nil {
		c.Prefix, c.Carries = p.contexts.ContextPrefix(md)
	}
	if c.HasOwn = c.Carries && p.traces != nil; c.HasOwn {
		c.Own = p.traces.Trace(md)
	}
	return c
}

// endSpan tells of the span, which is recorded, of a message that has ended.
func (m *Message) endSpan(f *Facts) {
	e := tracing.Ending{Facts: f, System: m.proto.system, Failure: m.failure, Time: time.Now()}
	if f.Answered > 0 || f.Code != 0 {
		e.Code = m.proto.codeName(f.Code)
	}
	m.trace.End(&e, m.cfg.spans)
}

func (p *protocol) codeName(code int32) string {
	if p.codes != nil {
		if name := p.codes.CodeName(code); name != "" {
			return name
		}
	}
	return strconv.Itoa(int(code))
}

// spanEvents are what has become of attempts, as spans tell of it.
var spanEvents = [...]string{
	forward.Retried: "retry", forward.RetrySucceeded: "retry_success", forward.RetryLimit: "retry_limit_exceeded",
	forward.RetryOverflow: "retry_overflow", forward.PerTryTimeout: "per_try_timeout", forward.Hedged: "hedge", forward.HedgeWon: "hedge_won",
}

// spanTells has the span tell of an attempt.
func (m *Message) spanTells(e forward.Event, why forward.Conditions) {
	if !m.trace.Recorded() {
		return
	}
	var attributes []attribute.KeyValue
	if why != 0 {
		attributes = append(attributes, attribute.String("reason", why.String()))
	}
	if host, _ := m.exchange.Host(); host != "" {
		attributes = append(attributes, attribute.String("upstream_host", host))
	}
	m.trace.AddEvent(spanEvents[e], attributes...)
}
