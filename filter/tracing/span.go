// Package tracing decides which requests are traced, carries that from hop to hop in
// what each protocol has for it, and makes spans of requests.
package tracing

import (
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/meltemi-mesh/meltemi/filter/facts"
)

// Kind is the side of a call that a span tells of.
type Kind uint8

// The kinds.
const (
	// Server spans are of proxies in front of the called workload.
	Server Kind = iota
	// Client spans are of proxies of the calling one.
	Client
)

// Span is one request that has ended. It is immutable once it is given to a [Sink].
type Span struct {
	facts.Trace
	// Parent is the id of the caller's span, all 0 if there is none.
	Parent [8]byte
	// State is W3C's tracestate, "" if there is none.
	State string
	// Name is what was called.
	Name string
	Kind Kind
	// Start and End are wall clock times; End is never before Start.
	Start, End time.Time
	// Attributes are OpenTelemetry's, as its semantic conventions name them.
	Attributes []attribute.KeyValue
	// Events within it, such as attempts.
	Events []Event
	// Failed says that the request has, as the conventions judge that for the kind,
	// and Description why.
	Failed      bool
	Description string
	// Shared says that the caller's client span has the same id and Parent, as Zipkin
	// has it.
	Shared bool
}

// Event is something within a span.
type Event struct {
	Name       string
	Time       time.Time
	Attributes []attribute.KeyValue
}

// Sink takes spans on their way to a collector.
type Sink interface {
	// Offer takes a span, from any goroutine and without waiting, or counts it as
	// dropped.
	Offer(s *Span)
}
