// Package exporttest is a collector for tests: it takes OTLP by gRPC and HTTP, and
// Zipkin's spans by HTTP, and decodes them with OpenTelemetry's own messages.
package exporttest

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Collector takes what is exported to it. Its zero value takes all.
type Collector struct {
	// Answer, if set, judges an upload of n spans, records or data points: how many of
	// them are refused, or, as a gRPC status or a [Status] of HTTP, why all are.
	Answer func(n int) (refused int, err error)

	mu sync.Mutex
	Received
}

// Received is what a collector has taken.
type Received struct {
	Spans   []*tracepb.Span
	Records []*logspb.LogRecord
	Metrics []*metricspb.Metric
	// Zipkin are spans of Zipkin's.
	Zipkin []map[string]any
	// Resource is that of the last upload, its attributes in their order.
	Resource *resourcepb.Resource
	// Header are HTTP's, or gRPC's metadata, of the last upload.
	Header http.Header
	Path   string
	// Uploads, those that were refused included.
	Uploads int
}

// Status is an answer of HTTP's.
type Status struct {
	Code   int
	Header http.Header
}

func (s *Status) Error() string { return http.StatusText(s.Code) }

// Seen is what has come so far.
func (c *Collector) Seen() Received {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Received
}

// Server returns a server of gRPC that is the collector.
func (c *Collector) Server() *grpc.Server {
	return grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(s)
		md, _ := metadata.FromIncomingContext(s.Context())
		header := http.Header{}
		for k, v := range md {
			header[http.CanonicalHeaderKey(k)] = v
		}
		var b []byte
		if err := s.RecvMsg(&raw{&b}); err != nil {
			return err
		}
		answer, err := c.take(method, header, b)
		if err != nil {
			return err
		}
		return s.SendMsg(&raw{&answer})
	}), grpc.ForceServerCodec(codec{}))
}

// ServeHTTP implements http.Handler.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	header := r.Header.Clone()
	header.Set("Host", r.Host)
	answer, err := c.take(r.URL.Path, header, b)
	var s *Status
	switch {
	case errors.As(err, &s):
		for k, v := range s.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(s.Code)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		_, _ = w.Write(answer)
	}
}

// take decodes an upload and answers it.
func (c *Collector) take(path string, header http.Header, b []byte) ([]byte, error) {
	got, n := Received{Header: header, Path: path}, 0
	var err error
	switch p := strings.ToLower(path); {
	case header.Get("Content-Type") == "application/json":
		err = json.Unmarshal(b, &got.Zipkin)
		n = len(got.Zipkin)
	case strings.Contains(p, "trace"):
		m := &tracepb.TracesData{}
		err = proto.Unmarshal(b, m)
		for _, r := range m.GetResourceSpans() {
			got.Resource = r.GetResource()
			for _, s := range r.GetScopeSpans() {
				got.Spans = append(got.Spans, s.GetSpans()...)
			}
		}
		n = len(got.Spans)
	case strings.Contains(p, "logs"):
		m := &logspb.LogsData{}
		err = proto.Unmarshal(b, m)
		for _, r := range m.GetResourceLogs() {
			got.Resource = r.GetResource()
			for _, s := range r.GetScopeLogs() {
				got.Records = append(got.Records, s.GetLogRecords()...)
			}
		}
		n = len(got.Records)
	case strings.Contains(p, "metrics"):
		m := &metricspb.MetricsData{}
		err = proto.Unmarshal(b, m)
		for _, r := range m.GetResourceMetrics() {
			got.Resource = r.GetResource()
			for _, s := range r.GetScopeMetrics() {
				got.Metrics = append(got.Metrics, s.GetMetrics()...)
			}
		}
		n = len(got.Metrics)
	}
	if err != nil {
		return nil, err
	}
	refused := 0
	if c.Answer != nil {
		refused, err = c.Answer(n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Uploads++
	c.Resource, c.Header, c.Path = got.Resource, got.Header, got.Path
	switch {
	case err != nil:
		return nil, err
	case n == len(got.Spans): // which of them are refused is not told
		got.Spans = got.Spans[:n-refused]
	case n == len(got.Records):
		got.Records = got.Records[:n-refused]
	}
	c.Spans, c.Records, c.Zipkin = append(c.Spans, got.Spans...), append(c.Records, got.Records...), append(c.Zipkin, got.Zipkin...)
	if got.Metrics != nil {
		c.Metrics = got.Metrics
	}
	return answer(refused), nil
}

// answer is one of OTLP's, of whatever signal.
func answer(refused int) []byte {
	if refused == 0 {
		return nil
	}
	partial := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(refused))
	partial = protowire.AppendString(protowire.AppendTag(partial, 2, protowire.BytesType), "too old")
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), partial)
}

// Attribute is the value of a key as a text, "" if there is none.
func Attribute(kvs []*commonpb.KeyValue, key string) string {
	for _, kv := range kvs {
		if kv.GetKey() == key {
			return kv.GetValue().GetStringValue()
		}
	}
	return ""
}

// raw is a message that is not decoded.
type raw struct{ b *[]byte }

type codec struct{}

func (codec) Name() string                  { return "proto" }
func (codec) Marshal(v any) ([]byte, error) { return *v.(*raw).b, nil }
func (codec) Unmarshal(b []byte, v any) error {
	*v.(*raw).b = append([]byte(nil), b...)
	return nil
}
