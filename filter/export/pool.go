// Package export brings what is seen of requests to collectors: spans as OpenTelemetry's
// or Zipkin's, records of access logs and metrics as OpenTelemetry's. A collector that is
// slow or gone costs a bounded memory, and what is dropped is counted.
package export

import (
	"context"
	"maps"
	"net"
	"sync"
	"time"
	"weak"

	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/tracing"
)

// scopeName is what exports, as collectors see it.
const scopeName = "meltemi"

// Life is as long as a configuration is used; a *filter.Life is one. Dial and Logf do
// their work behind its end, too.
type Life interface {
	Go(f func(ctx context.Context))
	Dial(ctx context.Context, cluster string) (net.Conn, error)
	Logf(level host.Level, format string, args ...any)
}

// Pool is the exporters of a process. Its zero value has none. It may be used by several
// goroutines. It implements prometheus.Collector: what was exported and dropped.
type Pool struct {
	connections grpcclient.Pool

	mu      sync.Mutex
	spans   exporters[*tracing.Span]
	records exporters[[]byte]
	counted map[countsKey]*counts
}

// exporters that somebody has, by what they depend on.
type exporters[T any] map[string]weak.Pointer[exporter[T]]

// get returns the exporter of that key, which make makes if there is none.
func (es *exporters[T]) get(key string, make func() *exporter[T]) *exporter[T] {
	maps.DeleteFunc(*es, func(_ string, e weak.Pointer[exporter[T]]) bool { return e.Value() == nil })
	if e := (*es)[key].Value(); e != nil {
		return e
	}
	e := make()
	if *es == nil {
		*es = exporters[T]{}
	}
	(*es)[key] = weak.Make(e)
	return e
}

// Open returns where the spans of a configuration go, whose life that is. Configurations
// whose providers have one key share it. What is left at the end of the last one has a
// few seconds to be sent.
func (p *Pool) Open(to Provider, life Life) tracing.Sink {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.spans.get(to.Key(), func() *exporter[*tracing.Span] { return p.newSpans(to, life) })
	e.use(life)
	return spanSink{e}
}

func (p *Pool) newSpans(to Provider, life Life) *exporter[*tracing.Span] {
	c := &client{service: to.service, method: exportTraces, dial: life.Dial, pool: &p.connections}
	upload := func(ctx context.Context, spans []*tracing.Span) (int, error) {
		return c.otlp(ctx, traces(spans, to.resource))
	}
	if to.Zipkin {
		upload = func(ctx context.Context, spans []*tracing.Span) (int, error) { return 0, c.zipkin(ctx, spans, to.name) }
	}
	return newExporter(&exporter[*tracing.Span]{
		limits: limits{weight{to.spans, maxBytes}, weight{512, maxBatchBytes / 2}, time.Second},
		state:  state{what: "traces to " + to.String(), logf: life.Logf}, items: "spans",
		upload: upload, closed: c.close, counts: p.countsOf("traces", to.String()),
	})
}

// spanSink implements [tracing.Sink].
type spanSink struct{ *exporter[*tracing.Span] }

// Offer implements [tracing.Sink].
func (s spanSink) Offer(span *tracing.Span) { s.offer(span, weight{1, sizeOf(span)}) }
