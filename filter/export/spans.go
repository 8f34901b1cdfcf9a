package export

import (
	"strings"

	"go.opentelemetry.io/otel/attribute"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/filter/tracing"
)

// spanBytes is what a span costs beside its texts, and attributeBytes what an attribute
// does.
const (
	spanBytes      = 256
	attributeBytes = 96
)

// sizeOf is about what a span costs.
func sizeOf(s *tracing.Span) int {
	n := spanBytes + len(s.State) + len(s.Name) + len(s.Description) + attributesSize(s.Attributes)
	for i := range s.Events {
		n += attributeBytes + len(s.Events[i].Name) + attributesSize(s.Events[i].Attributes)
	}
	return n
}

func attributesSize(kvs []attribute.KeyValue) (n int) {
	for i := range kvs {
		n += attributeBytes + len(kvs[i].Key)
		switch kvs[i].Value.Type() {
		case attribute.STRING:
			n += len(kvs[i].Value.AsString())
		case attribute.STRINGSLICE:
			for _, s := range kvs[i].Value.AsStringSlice() {
				n += attributeBytes + len(s)
			}
		}
	}
	return n
}

// traces is a request of OTLP's TraceService.
func traces(spans []*tracing.Span, resource []*commonpb.KeyValue) []byte {
	all := make([]*tracepb.Span, len(spans))
	for i, s := range spans {
		all[i] = span(s)
	}
	b, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{ // whose fields are the request's
		Resource:   &resourcepb.Resource{Attributes: resource},
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: scopeName}, Spans: all}},
	}}})
	if err != nil {
		panic(err) // all texts are UTF-8
	}
	return b
}

func span(s *tracing.Span) *tracepb.Span {
	p := &tracepb.Span{
		TraceId: s.ID[:], SpanId: s.Span[:], TraceState: utf8(s.State), Name: utf8(s.Name), Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: uint64(s.Start.UnixNano()), EndTimeUnixNano: uint64(s.End.UnixNano()),
		Attributes: attributes(s.Attributes), Flags: uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK),
	}
	if s.Sampled {
		p.Flags |= 1 // W3C's
	}
	if s.Kind == tracing.Client {
		p.Kind = tracepb.Span_SPAN_KIND_CLIENT
	}
	if s.Parent != [8]byte{} {
		p.ParentSpanId = s.Parent[:]
		p.Flags |= uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
	}
	if s.Failed {
		p.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: utf8(s.Description)}
	}
	for i := range s.Events {
		e := &s.Events[i]
		p.Events = append(p.Events, &tracepb.Span_Event{Name: utf8(e.Name), TimeUnixNano: uint64(e.Time.UnixNano()), Attributes: attributes(e.Attributes)})
	}
	return p
}

// utf8 is s as protobuf wants it: clients have their say in much of it.
func utf8(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

func attr(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: utf8(key), Value: text(value)}
}

func text(s string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: utf8(s)}}
}

func attributes(kvs []attribute.KeyValue) []*commonpb.KeyValue {
	all := make([]*commonpb.KeyValue, len(kvs))
	for i, kv := range kvs {
		all[i] = &commonpb.KeyValue{Key: utf8(string(kv.Key)), Value: anyValue(kv.Value)}
	}
	return all
}

func anyValue(v attribute.Value) *commonpb.AnyValue {
	switch v.Type() {
	case attribute.BOOL:
		return boolean(v.AsBool())
	case attribute.INT64:
		return integer(v.AsInt64())
	case attribute.FLOAT64:
		return float(v.AsFloat64())
	case attribute.STRING:
		return text(v.AsString())
	case attribute.BOOLSLICE:
		return list(v.AsBoolSlice(), boolean)
	case attribute.INT64SLICE:
		return list(v.AsInt64Slice(), integer)
	case attribute.FLOAT64SLICE:
		return list(v.AsFloat64Slice(), float)
	case attribute.STRINGSLICE:
		return list(v.AsStringSlice(), text)
	default: // of kinds that are newer than spans
		return text(v.String())
	}
}

func boolean(b bool) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: b}}
}

func integer(n int64) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: n}}
}

func float(f float64) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: f}}
}

func list[T any](all []T, value func(T) *commonpb.AnyValue) *commonpb.AnyValue {
	l := &commonpb.ArrayValue{}
	for _, v := range all {
		l.Values = append(l.Values, value(v))
	}
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: l}}
}
