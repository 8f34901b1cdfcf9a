package accesslog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"unicode/utf8"

	otlpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/internal/protofield"
)

// Fields of OTLP's messages.
const (
	scopeRecords = 2 // ScopeLogs

	recordTime       = 1 // LogRecord
	recordBody       = 5
	recordAttributes = 6
	recordFlags      = 8
	recordTrace      = 9
	recordSpan       = 10

	anyString = 1 // AnyValue
	anyArray  = 5
	anyList   = 6

	listValues = 1 // ArrayValue, KeyValueList
	pairKey    = 1 // KeyValue
	pairValue  = 2
)

// otlp judges a logger whose lines are records of OpenTelemetry's, in the encoding in which
// they are sent.
func (c *compiler) otlp(m *otlpv3.OpenTelemetryAccessLogConfig, path string) (format, export.Logger) {
	to, err := export.ParseLogger(m, path)
	c.AddAll("", err)
	o := &otlpCompiler{compiler: c}
	var body appender
	if m.GetBody() != nil {
		body = o.value(m.GetBody(), path+".body")
	}
	attributes := o.pairs(m.GetAttributes(), recordAttributes, path+".attributes")
	tags, at := m.GetCustomTags(), path+".custom_tags"
	if len(tags) == 0 {
		tags, at = m.GetCommonConfig().GetCustomTags(), path+".common_config.custom_tags" //nolint:staticcheck // Envoy takes it
	}
	for i, t := range tags {
		attributes = append(attributes, o.tag(t, fmt.Sprintf("%s[%d]", at, i)))
	}
	return format{func(dst []byte, e *Entry) []byte {
		dst, record := protofield.Open(dst, scopeRecords)
		dst = protowire.AppendTag(dst, recordTime, protowire.Fixed64Type)
		dst = binary.LittleEndian.AppendUint64(dst, uint64(e.StartTime.UnixNano()))
		if body != nil {
			var at int
			dst, at = protofield.Open(dst, recordBody)
			dst = protofield.Shut(body(dst, e), at)
		}
		for _, a := range attributes {
			dst = a(dst, e)
		}
		if t := &e.Trace; t.ID != [16]byte{} {
			if t.Sampled { // as W3C's flags say it
				dst = protowire.AppendFixed32(protowire.AppendTag(dst, recordFlags, protowire.Fixed32Type), 1)
			}
			dst = protowire.AppendBytes(protowire.AppendTag(dst, recordTrace, protowire.BytesType), t.ID[:])
			dst = protowire.AppendBytes(protowire.AppendTag(dst, recordSpan, protowire.BytesType), t.Span[:])
		}
		return protofield.Shut(dst, record)
	}, o.reads}, to
}

// appender appends fields of a message.
type appender func(dst []byte, e *Entry) []byte

type otlpCompiler struct {
	*compiler
	reads bool
}

// value appends the fields of an AnyValue. Operators are in its strings, and are strings
// themselves, as in Envoy.
func (c *otlpCompiler) value(v *commonpb.AnyValue, path string) appender {
	switch k := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return c.text(k.StringValue, path+".string_value")
	case *commonpb.AnyValue_KvlistValue:
		return enclosed(anyList, joined(c.pairs(k.KvlistValue, listValues, path+".kvlist_value.values")))
	case *commonpb.AnyValue_ArrayValue:
		var all []appender
		for i, v := range k.ArrayValue.GetValues() {
			all = append(all, enclosed(listValues, c.value(v, fmt.Sprintf("%s.array_value.values[%d]", path, i))))
		}
		return enclosed(anyArray, joined(all))
	default:
		c.Add(path, "want string_value, kvlist_value or array_value")
		return joined(nil)
	}
}

// pairs are KeyValues, each as a field of that number.
func (c *otlpCompiler) pairs(l *commonpb.KeyValueList, number protowire.Number, path string) (all []appender) {
	for i, kv := range l.GetValues() {
		at := fmt.Sprintf("%s.values[%d]", path, i)
		all = append(all, enclosed(number, pair(kv.GetKey(), c.value(kv.GetValue(), at+".value"))))
	}
	return all
}

// text is a string in which operators stand.
func (c *otlpCompiler) text(s, path string) appender {
	ps, err := parse(s)
	if err != nil {
		c.Add(path, "%v", err)
	}
	c.reads = c.reads || reads(ps)
	return func(dst []byte, e *Entry) []byte {
		dst, at := protofield.Open(dst, anyString)
		return protofield.Shut(valid(appendText(dst, ps, e, "-"), at), at)
	}
}

// tag is a custom tag, which is left out if it has nothing to say.
func (c *otlpCompiler) tag(t *tracingv3.CustomTag, path string) appender {
	if t.GetTag() == "" {
		c.Add(path+".tag", "required")
	}
	c.Only(t, path, "tag", "literal", "environment", "request_header", "value")
	var ps []piece
	var err error
	otherwise := ""
	switch k := t.GetType().(type) {
	case *tracingv3.CustomTag_Literal_:
		otherwise = k.Literal.GetValue()
	case *tracingv3.CustomTag_Environment_:
		if otherwise = os.Getenv(k.Environment.GetName()); otherwise == "" {
			otherwise = k.Environment.GetDefaultValue()
		}
	case *tracingv3.CustomTag_RequestHeader:
		path += ".request_header"
		otherwise = k.RequestHeader.GetDefaultValue()
		ps, err = parse("%REQ(" + k.RequestHeader.GetName() + ")%")
	case *tracingv3.CustomTag_Value:
		path += ".value"
		ps, err = parse(k.Value)
	}
	if err != nil {
		c.Add(path, "%v", err)
	}
	c.reads = c.reads || reads(ps)
	key := protowire.AppendString(protowire.AppendTag(nil, pairKey, protowire.BytesType), t.GetTag())
	return func(dst []byte, e *Entry) []byte {
		before := len(dst)
		dst, tag := protofield.Open(dst, recordAttributes)
		dst, value := protofield.Open(append(dst, key...), pairValue)
		dst, text := protofield.Open(dst, anyString)
		if dst = appendText(dst, ps, e, ""); len(dst) == text {
			dst = append(dst, otherwise...)
		}
		if len(dst) == text {
			return dst[:before]
		}
		return protofield.Shut(protofield.Shut(protofield.Shut(valid(dst, text), text), value), tag)
	}
}

// pair is a KeyValue.
func pair(key string, value appender) appender {
	k := protowire.AppendString(protowire.AppendTag(nil, pairKey, protowire.BytesType), key)
	value = enclosed(pairValue, value)
	return func(dst []byte, e *Entry) []byte { return value(append(dst, k...), e) }
}

func joined(all []appender) appender {
	return func(dst []byte, e *Entry) []byte {
		for _, a := range all {
			dst = a(dst, e)
		}
		return dst
	}
}

// enclosed has the fields in a message that is a field of that number.
func enclosed(number protowire.Number, fields appender) appender {
	return func(dst []byte, e *Entry) []byte {
		dst, at := protofield.Open(dst, number)
		return protofield.Shut(fields(dst, e), at)
	}
}

// valid is dst with what is no UTF-8 behind at replaced, as collectors refuse it.
func valid(dst []byte, at int) []byte {
	if utf8.Valid(dst[at:]) {
		return dst
	}
	return append(dst[:at], bytes.ToValidUTF8(dst[at:], []byte("\ufffd"))...)
}

func (b *Buffer) flushRecords() (written, lost int64) {
	n := b.lines
	if n == 0 {
		return 0, 0
	}
	data := b.data
	b.data, b.lines = make([]byte, 0, min(len(data), fullBytes)), 0 // about as much will come again
	if b.records.Offer(data, n) {
		return int64(n), 0
	}
	return 0, int64(n)
}
