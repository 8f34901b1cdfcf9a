package export

import (
	"math"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/filter/internal/protofield"
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

// traces is a request of OTLP's TraceService, which has the fields of TracesData. It is
// written as it goes: OTLP's messages of a span would be tens of objects for the garbage
// collector, whose work is that of the whole process.
func traces(spans []*tracing.Span, resource []*commonpb.KeyValue) []byte {
	size := 0
	for _, s := range spans {
		size += sizeOf(s)
	}
	its, err := proto.Marshal(&resourcepb.Resource{Attributes: resource})
	if err != nil {
		panic(err) // all texts are UTF-8
	}
	b := make([]byte, 0, size+len(its)+spanBytes)
	b, whole := protofield.Open(b, 1)                                              // ResourceSpans
	b = protowire.AppendBytes(protowire.AppendTag(b, 1, protowire.BytesType), its) // Resource
	b, scope := protofield.Open(b, 2)                                              // ScopeSpans
	b = append(b, scopeField...)                                                   // InstrumentationScope
	for _, s := range spans {
		var at int
		b, at = protofield.Open(b, 2)
		b = protofield.Shut(appendSpan(b, s), at)
	}
	return protofield.Shut(protofield.Shut(b, scope), whole)
}

// appendSpan appends the fields of OTLP's Span.
func appendSpan(b []byte, s *tracing.Span) []byte {
	kind, flags := tracepb.Span_SPAN_KIND_SERVER, tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
	if s.Kind == tracing.Client {
		kind = tracepb.Span_SPAN_KIND_CLIENT
	}
	if s.Sampled {
		flags |= 1 // W3C's
	}
	b = protowire.AppendBytes(protowire.AppendTag(b, 1, protowire.BytesType), s.ID[:])
	b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), s.Span[:])
	b = appendText(b, 3, s.State)
	if s.Parent != [8]byte{} {
		b = protowire.AppendBytes(protowire.AppendTag(b, 4, protowire.BytesType), s.Parent[:])
		flags |= tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
	}
	b = appendText(b, 5, s.Name)
	b = protowire.AppendVarint(protowire.AppendTag(b, 6, protowire.VarintType), uint64(kind))
	b = appendTime(b, 7, s.Start)
	b = appendTime(b, 8, s.End)
	b = appendAttributes(b, 9, s.Attributes)
	for i := range s.Events {
		e := &s.Events[i]
		var at int
		b, at = protofield.Open(b, 11)
		b = appendText(appendTime(b, 1, e.Time), 2, e.Name)
		b = protofield.Shut(appendAttributes(b, 3, e.Attributes), at)
	}
	if s.Failed {
		var at int
		b, at = protofield.Open(b, 15)
		b = appendText(b, 2, s.Description)
		b = protofield.Shut(protowire.AppendVarint(protowire.AppendTag(b, 3, protowire.VarintType), uint64(tracepb.Status_STATUS_CODE_ERROR)), at)
	}
	return protowire.AppendFixed32(protowire.AppendTag(b, 16, protowire.Fixed32Type), uint32(flags))
}

// appendAttributes appends KeyValues, each a field of that number.
func appendAttributes(b []byte, number protowire.Number, kvs []attribute.KeyValue) []byte {
	for i := range kvs {
		var pair, value int
		b, pair = protofield.Open(b, number)
		b, value = protofield.Open(appendText(b, 1, string(kvs[i].Key)), 2)
		b = protofield.Shut(protofield.Shut(appendValue(b, kvs[i].Value), value), pair)
	}
	return b
}

// appendValue appends the field of an AnyValue.
func appendValue(b []byte, v attribute.Value) []byte {
	switch v.Type() {
	case attribute.STRING:
		return appendString(b, v.AsString())
	case attribute.BOOL:
		return appendBool(b, v.AsBool())
	case attribute.INT64:
		return appendInt(b, v.AsInt64())
	case attribute.FLOAT64:
		return appendFloat(b, v.AsFloat64())
	case attribute.STRINGSLICE:
		return appendList(b, v.AsStringSlice(), appendString)
	case attribute.BOOLSLICE:
		return appendList(b, v.AsBoolSlice(), appendBool)
	case attribute.INT64SLICE:
		return appendList(b, v.AsInt64Slice(), appendInt)
	case attribute.FLOAT64SLICE:
		return appendList(b, v.AsFloat64Slice(), appendFloat)
	default: // of kinds that are newer than spans
		return appendString(b, v.String())
	}
}

// Fields of AnyValue, which are there also if they are 0.

func appendString(b []byte, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), utf8(s))
}

func appendBool(b []byte, v bool) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.VarintType), protowire.EncodeBool(v))
}

func appendInt(b []byte, n int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, 3, protowire.VarintType), uint64(n))
}

func appendFloat(b []byte, f float64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, 4, protowire.Fixed64Type), math.Float64bits(f))
}

func appendList[T any](b []byte, all []T, value func([]byte, T) []byte) []byte {
	b, list := protofield.Open(b, 5)
	for _, v := range all {
		var at int
		b, at = protofield.Open(b, 1)
		b = protofield.Shut(value(b, v), at)
	}
	return protofield.Shut(b, list)
}

// appendText appends a string that is left out if it is empty.
func appendText(b []byte, number protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), utf8(s))
}

func appendTime(b []byte, number protowire.Number, t time.Time) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, number, protowire.Fixed64Type), uint64(t.UnixNano()))
}

// utf8 is s as protobuf wants it: clients have their say in much of it.
func utf8(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

func attr(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: utf8(key), Value: text(value)}
}

func text(s string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: utf8(s)}}
}
