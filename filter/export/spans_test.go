package export

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meltemi-mesh/meltemi/filter/export/exporttest"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/tracing"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func parse(t *testing.T, typed string) (Provider, []string) {
	t.Helper()
	m := &tracev3.Tracing_Http{}
	require.NoError(t, protojson.Unmarshal([]byte(`{"name": "n", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.`+typed+`}}`), m))
	p, err := ParseProvider(m, "p")
	var said []string
	fields.Each(err, func(e *fields.Error) { said = append(said, e.Error()) })
	return p, said
}

func TestProviders(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "a=b, zone = eu%201 ,,=x")
	t.Setenv("MELTEMI_TEST_TOKEN", "s3cret")
	otel, said := parse(t, `OpenTelemetryConfig", "grpc_service": {"envoy_grpc": {"cluster_name": "c"}}, "service_name": "shop"`)
	require.Empty(t, said)
	require.Equal(t, []bool{false, true, false, false, true}, []bool{otel.Zipkin, otel.TraceID128, otel.SharedSpan, otel.B3, otel.W3C})
	require.Equal(t, "cluster c", otel.String())
	require.Equal(t, 1024, otel.spans)
	require.Equal(t, "shop", exporttest.Attribute(otel.resource, "service.name"))
	require.Equal(t, "go", exporttest.Attribute(otel.resource, "telemetry.sdk.language"))

	all, said := parse(t, `OpenTelemetryConfig", "http_service": {"http_uri": {"cluster": "c", "uri": "https://h/v1/traces", "timeout": "3s"},
		"request_headers_to_add": [{"header": {"key": "x-token", "value": "%%%ENVIRONMENT(MELTEMI_TEST_TOKEN)%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]},
		"max_cache_size": 7, "set_telemetry_sdk_resource_attributes": false, "set_service_name_resource_attribute": false, "resource_detectors": [
		{"typed_config": {"@type": "type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig", "attributes": {"a": "x", "c": "d"}}},
		{"typed_config": {"@type": "type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig"}}]`)
	require.Empty(t, said)
	require.Equal(t, 7, all.spans)
	require.Equal(t, "http://h/v1/traces", all.service.url.String())
	require.Equal(t, 3*time.Second, all.service.timeout)
	require.Equal(t, http.Header{"X-Token": {"%s3cret"}}, all.service.header)
	require.Len(t, all.resource, 3)
	for k, v := range map[string]string{"a": "b", "c": "d", "zone": "eu 1"} {
		require.Equal(t, v, exporttest.Attribute(all.resource, k))
	}
	require.NotEqual(t, otel.Key(), all.Key())

	zipkin, said := parse(t, `ZipkinConfig", "collector_cluster": "z", "collector_endpoint": "/api/v2/spans", "collector_endpoint_version": "HTTP_JSON"`)
	require.Empty(t, said)
	require.Equal(t, []bool{true, false, true, true, false}, []bool{zipkin.Zipkin, zipkin.TraceID128, zipkin.SharedSpan, zipkin.B3, zipkin.W3C})
	require.Equal(t, "http://z/api/v2/spans", zipkin.service.url.String())
	other, said := parse(t, `ZipkinConfig", "collector_service": {"http_uri": {"uri": "http://127.0.0.1:9411/s"}}, "trace_context_option": "USE_B3_WITH_W3C_PROPAGATION",
		"collector_endpoint_version": "HTTP_JSON", "trace_id_128bit": true, "shared_span_context": false`)
	require.Empty(t, said)
	require.Equal(t, []bool{true, true, false, true, true}, []bool{other.Zipkin, other.TraceID128, other.SharedSpan, other.B3, other.W3C})
	require.Equal(t, "127.0.0.1:9411", other.String())
}

func TestProvidersThatAreRefused(t *testing.T) {
	for config, want := range map[string][]string{
		`SkyWalkingConfig"`:    {"p.typed_config.type_url: envoy.config.trace.v3.SkyWalkingConfig is not supported: want OpenTelemetryConfig or ZipkinConfig of Envoy's"},
		`OpenTelemetryConfig"`: {"p.typed_config: want grpc_service or http_service"},
		`OpenTelemetryConfig", "grpc_service": {}, "sampler": {"name": "x"}, "http_service": {}`: {
			"p.typed_config.sampler: not supported", "p.typed_config: only one of grpc_service and http_service can be",
		},
		`OpenTelemetryConfig", "grpc_service": {"google_grpc": {"target_uri": "x:1"}}, "max_cache_size": 0, "resource_detectors": [{"typed_config":
			{"@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig"}}]`: {
			"p.typed_config.max_cache_size: must be between 1 and 1048576, is 0",
			"p.typed_config.resource_detectors[0].typed_config.type_url: envoy.config.trace.v3.ZipkinConfig is not supported: want EnvironmentResourceDetectorConfig or StaticConfigResourceDetectorConfig of Envoy's",
		},
		`OpenTelemetryConfig", "http_service": {"http_uri": {"uri": "https://h/p", "timeout": "-1s"}, "request_headers_to_add": [
			{"header": {"key": "host", "value": "%REQ(x)%"}, "append_action": "ADD_IF_ABSENT"}, {"header": {"key": "a", "value": "b\n"}, "keep_empty_value": true}]}`: {
			"p.typed_config.http_service.http_uri.timeout: must be at least 0s, is -1s",
			`p.typed_config.http_service.http_uri.uri: without a cluster, want http://HOST:PORT/PATH, is "https://h/p": TLS is a cluster's`,
			"p.typed_config.http_service.request_headers_to_add[0].header.value: only %ENVIRONMENT(X)% is supported, and %% for a percent sign",
			"p.typed_config.http_service.request_headers_to_add[0].header.value: only %ENVIRONMENT(X)% is supported, and %% for a percent sign",
			`p.typed_config.http_service.request_headers_to_add[0].header.key: cannot be set: "host"`,
			"p.typed_config.http_service.request_headers_to_add[0].append_action: ADD_IF_ABSENT is not supported",
			"p.typed_config.http_service.request_headers_to_add[1].keep_empty_value: not supported",
			"p.typed_config.http_service.request_headers_to_add[1].header.value: has what no header can have",
		},
		`OpenTelemetryConfig", "http_service": {"http_uri": {"uri": "http://h%ff/p"}}`: {`p.typed_config.http_service.http_uri.uri: is no URL: "http://h%ff/p"`},
		`ZipkinConfig", "split_spans_for_request": true`: {
			"p.typed_config.split_spans_for_request: not supported",
			"p.typed_config.collector_endpoint_version: want HTTP_JSON, is DEPRECATED_AND_UNAVAILABLE_DO_NOT_USE",
			"p.typed_config.collector_cluster: required", "p.typed_config.collector_endpoint: required",
		},
		`ZipkinConfig", "collector_endpoint_version": "HTTP_PROTO", "collector_service": {}`: {
			"p.typed_config.collector_endpoint_version: want HTTP_JSON, is HTTP_PROTO", "p.typed_config.collector_service.http_uri: required",
		},
	} {
		_, said := parse(t, config)
		require.Equal(t, want, said, config)
	}
	_, err := ParseProvider(nil, "p")
	require.EqualError(t, err, "p.typed_config: required")
}

var start = time.Date(2026, 11, 30, 1, 2, 3, 4_005_000, time.UTC)

func aSpan() *tracing.Span {
	s := &tracing.Span{
		Parent: [8]byte{9}, State: "v=1", Name: "com.Greeter/hello\xff", Kind: tracing.Client, Start: start, End: start.Add(1500 * time.Microsecond),
		Failed: true, Description: "no \xfe", Shared: true,
		Attributes: []attribute.KeyValue{
			attribute.String("s", "x\xff"), attribute.Int64("n", -7), attribute.Bool("b", true), attribute.Float64("f", 1.5),
			attribute.StringSlice("ss", []string{"a", "b"}), attribute.Int64Slice("ns", []int64{1}), attribute.BoolSlice("bs", []bool{true}),
			attribute.Float64Slice("fs", []float64{2}), attribute.String("network.peer.address", "::ffff:10.0.0.1"), attribute.Int("network.peer.port", 80),
		},
		Events: []tracing.Event{{Name: "attempt", Time: start.Add(time.Millisecond), Attributes: []attribute.KeyValue{attribute.String("host", "h")}}},
	}
	s.Trace = facts.Trace{ID: [16]byte{15: 1}, Span: [8]byte{2}, Sampled: true}
	return s
}

// served is a collector with the ways to it: a cluster of gRPC, one of HTTP.
func served(t *testing.T) (*exporttest.Collector, *life) {
	t.Helper()
	c := &exporttest.Collector{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := c.Server()
	go s.Serve(l)
	t.Cleanup(s.Stop)
	h := httptest.NewServer(c)
	t.Cleanup(h.Close)
	return c, newLife(func(ctx context.Context, cluster string) (net.Conn, error) {
		address := l.Addr().String()
		if cluster != "grpc" {
			address = h.Listener.Addr().String()
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	})
}

const otelGRPC = `OpenTelemetryConfig", "grpc_service": {"envoy_grpc": {"cluster_name": "grpc"}, "initial_metadata": [{"key": "tenant", "value": "t"}]}, "service_name": "shop"`

const otelHTTP = `OpenTelemetryConfig", "http_service": {"http_uri": {"cluster": "http", "uri": "http://collector.example/v1/traces"},
	"request_headers_to_add": [{"header": {"key": "tenant", "value": "t"}}]}, "service_name": "shop"`

// TestSpansOfOpenTelemetry come as they are, by gRPC and HTTP.
func TestSpansOfOpenTelemetry(t *testing.T) {
	for config, path := range map[string]string{otelGRPC: exportTraces, otelHTTP: "/v1/traces"} {
		c, l := served(t)
		p, said := parse(t, config)
		require.Empty(t, said)
		pool := &Pool{}
		sink := pool.Open(p, l)
		sink.Offer(aSpan())
		plain := &tracing.Span{Name: "x", Start: start, End: start}
		plain.ID[0], plain.Span[0] = 1, 1
		sink.Offer(plain)
		l.over()
		require.Empty(t, l.said())
		seen := c.Seen()
		require.Equal(t, path, seen.Path)
		require.Equal(t, "t", seen.Header.Get("Tenant"))
		require.Equal(t, "shop", exporttest.Attribute(seen.Resource.GetAttributes(), "service.name"))
		require.Len(t, seen.Spans, 2)
		want := &tracepb.Span{}
		require.NoError(t, protojson.Unmarshal([]byte(`{"traceId": "AAAAAAAAAAAAAAAAAAAAAQ==", "spanId": "AgAAAAAAAAA=", "parentSpanId": "CQAAAAAAAAA=", "traceState": "v=1",
			"name": "com.Greeter/hello\ufffd", "kind": "SPAN_KIND_CLIENT", "startTimeUnixNano": "1796000523004005000", "endTimeUnixNano": "1796000523005505000", "flags": 769,
			"status": {"code": "STATUS_CODE_ERROR", "message": "no \ufffd"},
			"attributes": [{"key": "s", "value": {"stringValue": "x\ufffd"}}, {"key": "n", "value": {"intValue": "-7"}}, {"key": "b", "value": {"boolValue": true}},
				{"key": "f", "value": {"doubleValue": 1.5}}, {"key": "ss", "value": {"arrayValue": {"values": [{"stringValue": "a"}, {"stringValue": "b"}]}}},
				{"key": "ns", "value": {"arrayValue": {"values": [{"intValue": "1"}]}}}, {"key": "bs", "value": {"arrayValue": {"values": [{"boolValue": true}]}}},
				{"key": "fs", "value": {"arrayValue": {"values": [{"doubleValue": 2}]}}}, {"key": "network.peer.address", "value": {"stringValue": "::ffff:10.0.0.1"}},
				{"key": "network.peer.port", "value": {"intValue": "80"}}],
			"events": [{"name": "attempt", "timeUnixNano": "1796000523005005000", "attributes": [{"key": "host", "value": {"stringValue": "h"}}]}]}`), want))
		require.Equal(t, protojson.Format(want), protojson.Format(seen.Spans[0]))
		require.Equal(t, tracepb.Span_SPAN_KIND_SERVER, seen.Spans[1].GetKind())
		require.Empty(t, seen.Spans[1].GetParentSpanId())
		require.EqualValues(t, 256, seen.Spans[1].GetFlags())
	}
}

// TestSpansOfZipkin come as its JSON.
func TestSpansOfZipkin(t *testing.T) {
	t.Setenv("ISTIO_META_WORKLOAD_NAME", "cart")
	t.Setenv("POD_NAMESPACE", "shop")
	c, l := served(t)
	p, said := parse(t, `ZipkinConfig", "collector_cluster": "http", "collector_endpoint": "/api/v2/spans", "collector_endpoint_version": "HTTP_JSON", "collector_hostname": "zip.kin"`)
	require.Empty(t, said)
	sink := new(Pool).Open(p, l)
	sink.Offer(aSpan())
	short := &tracing.Span{Start: start, End: start}
	short.ID[0], short.Span[0] = 1, 1
	sink.Offer(short)
	l.over()
	seen := c.Seen()
	require.Equal(t, "/api/v2/spans", seen.Path)
	require.Equal(t, "zip.kin", seen.Header.Get("Host"))
	require.Equal(t, []map[string]any{
		{
			"traceId": "0000000000000001", "id": "0200000000000000", "parentId": "0900000000000000", "name": "com.Greeter/hello\ufffd", "kind": "CLIENT",
			"timestamp": 1796000523004005., "duration": 1500., "shared": true,
			"localEndpoint": map[string]any{"serviceName": "cart.shop"}, "remoteEndpoint": map[string]any{"ipv4": "10.0.0.1", "port": 80.},
			"annotations": []any{map[string]any{"timestamp": 1796000523005005., "value": "attempt host=h"}},
			"tags": map[string]any{
				"s": "x\ufffd", "n": "-7", "b": "true", "f": "1.5", "ss": `["a","b"]`, "ns": "[1]", "bs": "[true]", "fs": "[2]",
				"network.peer.address": "::ffff:10.0.0.1", "network.peer.port": "80", "error": "no \ufffd",
			},
		},
		{
			"traceId": "01000000000000000000000000000000", "id": "0100000000000000", "kind": "SERVER",
			"timestamp": 1796000523004005., "duration": 1., "localEndpoint": map[string]any{"serviceName": "cart.shop"},
		},
	}, seen.Zipkin)
}

// TestAnswersOfCollectors are judged as OTLP says.
func TestAnswersOfCollectors(t *testing.T) {
	for _, tt := range []struct {
		config string
		refuse int
		err    error
		again  bool
		after  time.Duration
		said   string
	}{
		{otelGRPC, 0, nil, false, 0, ""},
		{otelGRPC, 2, nil, false, 0, "2 refused: too old"},
		{otelGRPC, 0, status.Error(codes.Unavailable, "away"), true, 0, "Unavailable: away"},
		{otelGRPC, 0, status.Error(codes.InvalidArgument, "no"), false, 0, "InvalidArgument: no"},
		{otelGRPC, 0, status.Error(codes.ResourceExhausted, "no"), false, 0, "ResourceExhausted: no"},
		{otelGRPC, 0, delayed(codes.ResourceExhausted, 9*time.Second), true, 9 * time.Second, "ResourceExhausted: later"},
		{otelHTTP, 0, nil, false, 0, ""},
		{otelHTTP, 2, nil, false, 0, "2 refused: too old"},
		{otelHTTP, 0, &exporttest.Status{Code: 503, Header: http.Header{"Retry-After": {"9"}}}, true, 9 * time.Second, "HTTP status 503 Service Unavailable"},
		{otelHTTP, 0, &exporttest.Status{Code: 429}, true, 0, "HTTP status 429 Too Many Requests"},
		{otelHTTP, 0, &exporttest.Status{Code: 500}, false, 0, "HTTP status 500 Internal Server Error"},
		{otelHTTP, 0, &exporttest.Status{Code: 302, Header: http.Header{"Location": {"/x"}}}, false, 0, "HTTP status 302 Found"},
	} {
		c, l := served(t)
		c.Answer = func(int) (int, error) { return tt.refuse, tt.err }
		p, _ := parse(t, tt.config)
		e := new(Pool).newSpans(p, l)
		refused, err := e.upload(t.Context(), []*tracing.Span{aSpan(), aSpan(), aSpan()})
		require.Equal(t, tt.refuse, refused)
		if tt.said == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, tt.said)
		}
		if f, is := err.(*failure); is { //nolint:errorlint // it is none that wraps another
			require.Equal(t, []any{tt.again, tt.after}, []any{f.again, f.after}, tt.said)
			require.Error(t, tt.err)
		} else {
			require.NoError(t, tt.err)
		}
		e.closed()
		l.over()
	}
}

// TestAnswersThatAreNoAnswers: what is cut off counts as far as it goes, and what is too
// much is no more than a failure.
func TestAnswersThatAreNoAnswers(t *testing.T) {
	for _, tt := range []struct {
		headers int
		refused int
		fails   bool
	}{{0, 2, false}, {2 * maxAnswer, 0, true}} {
		h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", tt.headers))
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte{1<<3 | 2, 2, 1 << 3, 2}) // rejected_spans of partial_success
		}))
		l := newLife(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", h.Listener.Addr().String())
		})
		p, _ := parse(t, otelHTTP)
		e := new(Pool).newSpans(p, l)
		refused, err := e.upload(t.Context(), []*tracing.Span{aSpan(), aSpan(), aSpan()})
		f := (*failure)(nil)
		require.Equal(t, []any{tt.refused, tt.fails}, []any{refused, errors.As(err, &f)}, err)
		e.closed()
		l.over()
		h.Close()
	}
}

func delayed(c codes.Code, d time.Duration) error {
	s, err := status.New(c, "later").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
	if err != nil {
		panic(err)
	}
	return s.Err()
}

// TestABatchIsOneObject for the garbage collector, however many spans it has.
func TestABatchIsOneObject(t *testing.T) {
	all := make([]*tracing.Span, 500)
	for i := range all {
		all[i] = &tracing.Span{Name: "s/m", Start: start, End: start, Attributes: []attribute.KeyValue{attribute.String("s", "text"), attribute.Int("n", i)}}
	}
	few := raced.AllocsPerRun(t, 10, func() { traces(all[:1], nil) })
	require.LessOrEqual(t, raced.AllocsPerRun(t, 10, func() { traces(all, nil) }), few+1)
}
