package accesslog_test

import (
	"context"
	"net"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	logspb "go.opentelemetry.io/proto/otlp/logs/v1"

	"github.com/meltemi-mesh/meltemi/filter/accesslog"
	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/export/exporttest"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// life is that of a configuration whose clusters are all at one address.
type life struct {
	t       *testing.T
	address string
	ctx     context.Context
	running sync.WaitGroup
}

func (l *life) Go(f func(ctx context.Context)) { l.running.Go(func() { f(l.ctx) }) }

func (l *life) Dial(ctx context.Context, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", l.address)
}

func (l *life) Logf(_ host.Level, format string, args ...any) { l.t.Logf(format, args...) }

// exported is what a collector gets of entries.
func exported(t *testing.T, config string, es ...*accesslog.Entry) exporttest.Received {
	t.Helper()
	ls, err := parse(t, `{"typed_config": {`+otlp+config+`}}`)
	require.NoError(t, err, config)
	c := &exporttest.Collector{}
	s := httptest.NewServer(c)
	defer s.Close()
	ctx, end := context.WithCancel(t.Context())
	l := &life{t: t, address: s.Listener.Addr().String(), ctx: ctx}
	var pool export.Pool
	b := accesslog.NewRecordsBuffer(pool.OpenRecords(ls.Loggers[0], l))
	for _, e := range es {
		ls.Write(e, []*accesslog.Buffer{b})
	}
	written, lost := b.Flush()
	require.Zero(t, lost)
	require.EqualValues(t, len(es), written)
	end()
	l.running.Wait()
	return c.Seen()
}

const otlp = `"@type": "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig"`

const byHTTP = `, "http_service": {"http_uri": {"cluster": "c", "uri": "/v1/logs"}}`

// TestRecords are what their configuration says, in OpenTelemetry's own messages.
func TestRecords(t *testing.T) {
	t.Setenv("MELTEMI_TEST_ZONE", "eu-1")
	e, untraced := entry(), entry()
	untraced.Trace = facts.Trace{}
	e.Trace = facts.Trace{ID: [16]byte{1}, Span: [8]byte{2}, Sampled: true}
	seen := exported(t, byHTTP+`, "log_name": "l", "resource_attributes": {"values": [{"key": "region", "value": {"string_value": "north"}}]},
		"body": {"string_value": "%REQ(tenant)% %REQ(none)%"},
		"attributes": {"values": [{"key": "ms", "value": {"string_value": "%DURATION%"}}, {"key": "empty", "value": {"string_value": ""}},
			{"key": "all", "value": {"array_value": {"values": [{"string_value": "%ROUTE_NAME%"}, {"kvlist_value": {"values": [{"key": "k", "value": {"string_value": "v"}}]}}]}}}]},
		"custom_tags": [{"tag": "lit", "literal": {"value": "x"}}, {"tag": "zone", "environment": {"name": "MELTEMI_TEST_ZONE"}},
			{"tag": "none", "environment": {"name": "MELTEMI_TEST_NONE"}}, {"tag": "other", "environment": {"name": "MELTEMI_TEST_NONE", "default_value": "d"}},
			{"tag": "cost", "request_header": {"name": "cost", "default_value": "free"}}, {"tag": "gone", "request_header": {"name": "none"}},
			{"tag": "flags", "value": "is %RESPONSE_FLAGS%"}]`, e, untraced)
	require.Equal(t, "/v1/logs", seen.Path)
	require.Equal(t, "l", exporttest.Attribute(seen.Resource.GetAttributes(), "log_name"))
	require.Equal(t, "north", exporttest.Attribute(seen.Resource.GetAttributes(), "region"))
	require.Len(t, seen.Records, 2)
	want := &logspb.LogRecord{}
	require.NoError(t, protojson.Unmarshal([]byte(`{"timeUnixNano": "1795914123004005006", "flags": 1, "traceId": "AQAAAAAAAAAAAAAAAAAAAA==", "spanId": "AgAAAAAAAAA=",
		"body": {"stringValue": "acme \"x\"\n\u0001\ufffdü -"},
		"attributes": [{"key": "ms", "value": {"stringValue": "41"}}, {"key": "empty", "value": {"stringValue": ""}},
			{"key": "all", "value": {"arrayValue": {"values": [{"stringValue": "r"}, {"kvlistValue": {"values": [{"key": "k", "value": {"stringValue": "v"}}]}}]}}},
			{"key": "lit", "value": {"stringValue": "x"}}, {"key": "zone", "value": {"stringValue": "eu-1"}}, {"key": "other", "value": {"stringValue": "d"}},
			{"key": "cost", "value": {"stringValue": "free"}}, {"key": "flags", "value": {"stringValue": "is DI,URX"}}]}`), want))
	require.Equal(t, protojson.Format(want), protojson.Format(seen.Records[0]))
	require.Empty(t, seen.Records[1].GetTraceId())
}

// TestRecordsOfAllSizes: each length of a length.
func TestRecordsOfAllSizes(t *testing.T) {
	var es []*accesslog.Entry
	var want []int
	for _, n := range []int{0, 1, 80, 127, 128, 16 << 10, 2 << 20} {
		e := entry()
		e.Route = string(make([]byte, n))
		es, want = append(es, e), append(want, max(1, n))
	}
	seen := exported(t, byHTTP+`, "disable_builtin_labels": true, "body": {"string_value": "%ROUTE_NAME%"}`, es...)
	require.Empty(t, seen.Resource.GetAttributes())
	var got []int
	for _, r := range seen.Records {
		got = append(got, len(r.GetBody().GetStringValue()))
	}
	require.Equal(t, want, got)
}

// TestALongRecordIsNotKept when it has been handed over.
func TestALongRecordIsNotKept(t *testing.T) {
	ls, err := parse(t, `{"typed_config": {`+otlp+byHTTP+`, "body": {"string_value": "%ROUTE_NAME%"}}}`)
	require.NoError(t, err)
	heap := func() int {
		runtime.GC()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return int(ms.HeapAlloc)
	}
	ctx, end := context.WithCancel(t.Context())
	l := &life{t: t, ctx: ctx}
	var pool export.Pool
	b := accesslog.NewRecordsBuffer(pool.OpenRecords(ls.Loggers[0], l))
	before := heap()
	e := entry()
	e.Route = strings.Repeat("r", 16<<20) // more than may wait
	ls.Write(e, []*accesslog.Buffer{b})
	_, lost := b.Flush()
	require.EqualValues(t, 1, lost)
	require.Less(t, heap()-before, 1<<20)
	runtime.KeepAlive(b)
	end()
	l.running.Wait()
}

// TestLoggersAreShared, and are behind the files.
func TestLoggersAreShared(t *testing.T) {
	log := func(more string) string { return `{"typed_config": {` + otlp + byHTTP + more + `}}` }
	ls, err := parse(t, log(`, "body": {"string_value": "a"}`), `{"typed_config": {`+file+`}}`, log(`, "body": {"string_value": "b"}`), log(`, "log_name": "x"`))
	require.NoError(t, err)
	require.Len(t, ls.Loggers, 2)
	require.Equal(t, []string{"p"}, ls.Files)
	var pool export.Pool
	ctx, end := context.WithCancel(t.Context())
	l := &life{t: t, ctx: ctx}
	r := pool.OpenRecords(ls.Loggers[0], l)
	var to []*accesslog.Buffer
	for range 3 {
		to = append(to, accesslog.NewRecordsBuffer(r))
	}
	ls.Write(entry(), to)
	end()
	for i, want := range []int64{1, 2, 1} {
		n, lost := to[i].Flush()
		require.Equal(t, want, n+lost)
	}
	l.running.Wait()
}

func TestLoggersThatAreRefused(t *testing.T) {
	for config, want := range map[string][]string{
		``: {"access_log[0].typed_config: want grpc_service or http_service"},
		byHTTP + `, "formatters": [{}], "filter_state_objects_to_log": ["x"], "buffer_flush_interval": "0s", "buffer_size_bytes": 2000000`: {
			"access_log[0].typed_config.formatters: not supported", "access_log[0].typed_config.filter_state_objects_to_log: not supported",
			"access_log[0].typed_config.buffer_flush_interval: must be at least 1ms, is 0s",
			"access_log[0].typed_config.buffer_size_bytes: must be between 0 and 1048576, is 2000000",
		},
		`, "common_config": {"log_name": "x", "grpc_stream_retry_policy": {}, "transport_api_version": "V2", "custom_tags": [{"tag": "a", "value": "%X%"}]}`: {
			"access_log[0].typed_config.common_config.grpc_stream_retry_policy: not supported",
			"access_log[0].typed_config.common_config.transport_api_version: want V3, is V2", "access_log[0].typed_config.common_config: want grpc_service or http_service",
			"access_log[0].typed_config.common_config.custom_tags[0].value: %X%: unknown operator",
		},
		byHTTP + `, "common_config": {"grpc_service": {"envoy_grpc": {"cluster_name": "c"}}}`: {
			"access_log[0].typed_config.common_config.grpc_service: cannot be beside http_service",
		},
		byHTTP + `, "log_name": "x", "common_config": {"log_name": "y"}`: {
			"access_log[0].typed_config.common_config: cannot be beside log_name, grpc_service, buffer_flush_interval and buffer_size_bytes",
		},
		byHTTP + `, "body": {"int_value": 1}, "attributes": {"values": [{"key": "k", "value": {"array_value": {"values": [{"string_value": "%X%"}]}}}]},
			"custom_tags": [{"literal": {"value": "v"}}, {"tag": "m", "metadata": {}}, {"tag": "v", "value": "%X%"}, {"tag": "h", "request_header": {}}]`: {
			"access_log[0].typed_config.body: want string_value, kvlist_value or array_value",
			"access_log[0].typed_config.attributes.values[0].value.array_value.values[0].string_value: %X%: unknown operator",
			"access_log[0].typed_config.custom_tags[0].tag: required", "access_log[0].typed_config.custom_tags[1].metadata: not supported",
			"access_log[0].typed_config.custom_tags[2].value: %X%: unknown operator",
			"access_log[0].typed_config.custom_tags[3].request_header: %REQ%: needs a name in parentheses",
		},
	} {
		_, err := parse(t, `{"typed_config": {`+otlp+config+`}}`)
		var said []string
		fields.Each(err, func(e *fields.Error) { said = append(said, e.Error()) })
		require.Equal(t, want, said, config)
	}
	ls, err := parse(t, `{"typed_config": {`+otlp+`, "common_config": {"log_name": "x", "grpc_service": {"envoy_grpc": {"cluster_name": "c"}}, "transport_api_version": "V3"}}}`)
	require.NoError(t, err)
	require.Len(t, ls.Loggers, 1)
}

func TestARecordAllocatesNothing(t *testing.T) {
	ls, err := parse(t, `{"typed_config": {`+otlp+byHTTP+`, "body": {"string_value": "%START_TIME% %REQ(:PATH)%"},
		"attributes": {"values": [{"key": "c", "value": {"string_value": "%RESPONSE_CODE%"}}, {"key": "t", "value": {"kvlist_value": {"values": [{"key": "h", "value": {"string_value": "%UPSTREAM_HOST%"}}]}}}]},
		"custom_tags": [{"tag": "r", "request_header": {"name": "x"}}]}}`)
	require.NoError(t, err)
	require.Zero(t, allocs(t, ls, entry()))
}
