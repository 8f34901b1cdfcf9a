package codecs

// ContextCarrier is implemented by Mutators of whose requests not all carry what goes
// from hop to hop (traceparent, x-request-id) under its own name, or at all. Requests of
// other Mutators do.
type ContextCarrier interface {
	// ContextPrefix returns what stands before the names of such attributes in the
	// request m, which is not malformed. It reports false if m carries none.
	ContextPrefix(m *Metadata) (prefix string, carries bool)
}

// Trace is where a request stands in a trace, as protocols of before W3C's trace context
// tell it. A number is 0 if there is none.
type Trace struct{ ID, Span, Parent uint64 }

// TraceCarrier is implemented by codecs whose protocol has places of its own for a Trace
// (bRPC). Their Encode writes that of a [Mutation].
type TraceCarrier interface {
	// Trace returns what the request m says there; its ID is 0 if it does not.
	Trace(m *Metadata) Trace
}
