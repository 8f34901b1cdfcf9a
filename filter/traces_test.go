package filter_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/tracing"
)

// spans is a tracing.Sink that keeps them.
type spans struct{ all []*tracing.Span }

func (s *spans) Offer(sp *tracing.Span) { s.all = append(s.all, sp) }

func (s *spans) take() []*tracing.Span {
	all := s.all
	s.all = nil
	return all
}

const (
	openTelemetry = `"provider": {"name": "envoy.tracers.opentelemetry", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
		"grpc_service": {"envoy_grpc": {"cluster_name": "collector"}}, "service_name": "s"}}`
	zipkin = `"provider": {"name": "envoy.tracers.zipkin", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
		"collector_cluster": "collector", "collector_endpoint": "/api/v2/spans", "collector_endpoint_version": "HTTP_JSON"}}`
)

// traced is the tracing of a listener, to OpenTelemetry unless it says otherwise.
func traced(more string) string {
	if !strings.Contains(more, `"provider"`) {
		more += "," + openTelemetry
	}
	return `, "tracing": {` + strings.TrimPrefix(more, ",") + `}`
}

// newTracedEnv is a host whose spans are kept, with a listener.
func newTracedEnv(t *testing.T, config string) (e *env, s *spans) {
	t.Helper()
	mod := filter.NewModule()
	mod.Seed(1)
	s = &spans{}
	mod.SinkTo(s)
	h := filtertest.NewWith(t, mod, 1)
	e = &env{Host: h, t: t, v1: h.Cluster("v1", "10.0.0.3:20880"), v2: h.Cluster("v2", "10.0.0.4:20880", "10.0.0.5:20880")}
	e.v1.Serve, e.v2.Serve = answer, answer
	e.cfg = h.MustLoad(config)
	e.c = h.DialAt(e.cfg, "10.0.0.9:20880")
	return e, s
}

// told are the attributes that the server of a codec has got, by their names.
func told(t *testing.T, codec string, frame []byte) map[string]string {
	t.Helper()
	newCodec, ok := codecs.Lookup("aeraki.meta_protocol.codec." + codec)
	require.True(t, ok)
	c, err := newCodec(nil, codecs.Limits{})
	require.NoError(t, err)
	md := new(codecs.Metadata)
	n, err := c.NewDecoder(codecs.ClientToServer).Decode(frame, md)
	require.NoError(t, err)
	require.Equal(t, len(frame), n)
	require.Empty(t, md.Malformed)
	all := map[string]string{}
	for _, p := range md.Properties() {
		require.NotContains(t, all, string(p.Name))
		all[string(p.Name)] = string(p.Value)
	}
	return all
}

// thriftCall is a call of hello behind the header of a transport; "" is that of framed.
func thriftCall(transport string, kvs [][2]string) []byte {
	call := append([]byte{0x80, 1, 0, 1, 0, 0, 0, 5}, "hello\x00\x00\x00\x07\x00"...)
	if transport == "framed" {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(call))), call...)
	}
	magic, number := uint32(0x0fff0000), func(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)) }
	if transport == "ttheader" {
		magic, number = 0x10000000, func(b []byte, n int) []byte { return binary.BigEndian.AppendUint16(b, uint16(n)) }
	}
	header := []byte{0, 0}
	if len(kvs) > 0 {
		header = number(append(header, 1), len(kvs))
		for _, kv := range kvs {
			header = append(number(header, len(kv[0])), kv[0]...)
			header = append(number(header, len(kv[1])), kv[1]...)
		}
	}
	for len(header)%4 != 0 {
		header = append(header, 0)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(10+len(header)+len(call)))
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint32(b, 7)
	b = binary.BigEndian.AppendUint16(b, uint16(len(header)/4))
	return append(append(b, header...), call...)
}

// carriers are how requests of each protocol say what goes from hop to hop.
var carriers = []struct {
	name, codec, prefix string
	request             func(kvs [][2]string) []byte
}{
	{"dubbo", "dubbo", "", func(kvs [][2]string) []byte { return dubbotest.Request{ID: 7, Attachments: kvs}.Bytes() }},
	{"trpc", "trpc", "", func(kvs [][2]string) []byte { return trpctest.Request{ID: 7, TransInfo: kvs}.Bytes() }},
	{"brpc", "brpc", "", func(kvs [][2]string) []byte { return brpctest.Request{ID: 7, UserFields: kvs}.Bytes() }},
	{"THeader", "thrift", "", func(kvs [][2]string) []byte { return thriftCall("header", kvs) }},
	{"TTHeader", "thrift", "RPC_TRANSIT_", func(kvs [][2]string) []byte { return thriftCall("ttheader", kvs) }},
}

func tracedListener(codec, more string) string {
	return `{"stat_prefix": "t", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.` + codec + `"}},
		"route_config": {"routes": [{"name": "all", "route": {"cluster": "v1"}}]}` + more + `}`
}

const (
	traceID  = "0af7651916cd43dd8448eb211c80319c"
	halfID   = "8448eb211c80319c"
	spanID   = "b7ad6b7169203331"
	uuid     = "00000000-7b3c-4a5e-8f6d-000000000000" // of each share
	lateUUID = "0000270f-7b3c-4a5e-8f6d-000000000000" // of none but the whole
)

// TestWhereARequestStandsGoesFromHopToHop, in what each protocol has for it.
func TestWhereARequestStandsGoesFromHopToHop(t *testing.T) {
	type kvs = [][2]string
	for _, tc := range []struct {
		name, tracing string
		says          kvs
		trace, parent string // of the span; "": new, and none
		state         string
		sampled       bool
		// told to the server, with SPAN and TRACE for what is new; "-" is nothing.
		told map[string]string
	}{
		{
			name: "nothing", sampled: true,
			told: map[string]string{"traceparent": "00-TRACE-SPAN-01", "x-request-id": "UUID9", "b3": "-", "x-b3-traceid": "-"},
		},
		{
			name: "W3C", says: kvs{{"traceparent", "00-" + traceID + "-" + spanID + "-01"}, {"tracestate", "a=1"}, {"baggage", "k=v"}},
			trace: traceID, parent: spanID, state: "a=1", sampled: true,
			told: map[string]string{"traceparent": "00-TRACE-SPAN-01", "tracestate": "a=1", "baggage": "k=v"},
		},
		{
			name: "W3C, not sampled, and no request id", says: kvs{{"traceparent", "00-" + traceID + "-" + spanID + "-00"}},
			trace: traceID, told: map[string]string{"traceparent": "00-TRACE-SPAN-00", "x-request-id": "UUID4"},
		},
		{
			name: "the request id counts, not W3C's flag", says: kvs{{"traceparent", "00-" + traceID + "-" + spanID + "-00"}, {"x-request-id", uuid}},
			trace: traceID, parent: spanID, sampled: true,
			told: map[string]string{"traceparent": "00-TRACE-SPAN-01", "x-request-id": "00000000-7b3c-9a5e-8f6d-000000000000"},
		},
		{
			name: "the request id is of no share", tracing: `"random_sampling": {"value": 99.99}`, says: kvs{{"traceparent", "00-" + traceID + "-" + spanID + "-01"}, {"x-request-id", lateUUID}},
			trace: traceID, told: map[string]string{"traceparent": "00-TRACE-SPAN-00", "x-request-id": lateUUID},
		},
		{
			name: "an id that is none of Envoy's decides nothing", says: kvs{{"x-request-id", "abc"}},
			told: map[string]string{"traceparent": "00-TRACE-SPAN-00", "x-request-id": "abc"},
		},
		{
			name: "nor does it in a trace", says: kvs{{"x-request-id", "abc"}, {"traceparent", "00-" + traceID + "-" + spanID + "-01"}},
			trace: traceID, parent: spanID, sampled: true, told: map[string]string{"traceparent": "00-TRACE-SPAN-01", "x-request-id": "abc"},
		},
		{
			name: "forced", tracing: `"random_sampling": {"value": 0}`, says: kvs{{"x-envoy-force-trace", "1"}, {"x-request-id", uuid}},
			sampled: true, told: map[string]string{"x-request-id": "00000000-7b3c-aa5e-8f6d-000000000000"},
		},
		{
			name: "asked for", tracing: `"random_sampling": {"value": 0}`, says: kvs{{"x-client-trace-id", "c-1"}, {"x-request-id", uuid}},
			sampled: true, told: map[string]string{"x-request-id": "00000000-7b3c-ba5e-8f6d-000000000000", "x-client-trace-id": "c-1"},
		},
		{
			name: "capped", tracing: `"overall_sampling": {"value": 0}`, says: kvs{{"x-request-id", "00000000-7b3c-9a5e-8f6d-000000000000"}},
			told: map[string]string{"x-request-id": uuid, "traceparent": "00-TRACE-SPAN-00"},
		},
		{
			name: "a bad traceparent begins a trace", says: kvs{{"traceparent", "00-" + traceID + "-" + spanID}, {"tracestate", "a=1"}},
			sampled: true, told: map[string]string{"traceparent": "00-TRACE-SPAN-01", "tracestate": "-"},
		},
		{
			name: "B3 in one", says: kvs{{"b3", halfID + "-" + spanID + "-1"}},
			trace: "0000000000000000" + halfID, parent: spanID, sampled: true,
			told: map[string]string{"traceparent": "00-TRACE-SPAN-01", "b3": halfID + "-SPAN-1-" + spanID, "x-b3-traceid": "-"},
		},
		{
			name: "B3 in several", says: kvs{{"x-b3-traceid", traceID}, {"x-b3-spanid", spanID}, {"x-b3-sampled", "1"}},
			trace: traceID, parent: spanID, sampled: true,
			told: map[string]string{"traceparent": "00-TRACE-SPAN-01", "x-b3-traceid": "TRACE", "x-b3-spanid": "SPAN", "x-b3-parentspanid": spanID, "x-b3-sampled": "1", "b3": "-"},
		},
		{
			name: "B3 that is none begins a trace, without its parent", says: kvs{{"x-b3-traceid", "00"}, {"x-b3-spanid", spanID}, {"x-b3-parentspanid", spanID}},
			sampled: true,
			told:    map[string]string{"traceparent": "00-TRACE-SPAN-01", "x-b3-traceid": "TRACE", "x-b3-spanid": "SPAN", "x-b3-parentspanid": "-", "x-b3-sampled": "1"},
		},
		{
			name: "B3 says only that it is not sampled", says: kvs{{"b3", "0"}},
			told: map[string]string{"traceparent": "00-TRACE-SPAN-00", "b3": "TRACE-SPAN-0", "x-request-id": "UUID4"},
		},
		{
			name: "W3C goes before B3", says: kvs{{"b3", halfID + "-00f067aa0ba902b7-1"}, {"traceparent", "00-" + traceID + "-" + spanID + "-01"}},
			trace: traceID, parent: spanID, sampled: true,
			told: map[string]string{"traceparent": "00-TRACE-SPAN-01", "b3": "TRACE-SPAN-1-" + spanID},
		},
		{
			name: "of Zipkin B3 goes before W3C", tracing: zipkin,
			says:  kvs{{"x-b3-traceid", halfID}, {"x-b3-spanid", spanID}, {"x-b3-parentspanid", "00f067aa0ba902b7"}, {"traceparent", "00-" + traceID + "-00f067aa0ba902b7-01"}, {"tracestate", "a=1"}},
			trace: "0000000000000000" + halfID, parent: "00f067aa0ba902b7", sampled: true,
			told: map[string]string{"traceparent": "00-TRACE-" + spanID + "-01", "x-b3-traceid": halfID, "x-b3-spanid": spanID, "tracestate": "-"},
		},
		{
			name: "of Zipkin B3 in one becomes several, too", tracing: zipkin, says: kvs{{"b3", traceID + "-" + spanID + "-1-00f067aa0ba902b7"}},
			trace: traceID, parent: "00f067aa0ba902b7", sampled: true,
			told: map[string]string{"b3": "TRACE-SPAN-1-00f067aa0ba902b7", "x-b3-traceid": "TRACE", "x-b3-spanid": spanID, "x-b3-sampled": "1", "traceparent": "-"},
		},
		{
			name: "nothing, to Zipkin", tracing: zipkin, sampled: true,
			told: map[string]string{"traceparent": "-", "x-b3-traceid": "HALF", "x-b3-spanid": "SPAN", "x-b3-parentspanid": "-", "x-b3-sampled": "1"},
		},
		{
			name: "names of another case are replaced", says: kvs{{"TraceParent", "00-" + traceID + "-" + spanID + "-01"}, {"X-Request-ID", uuid}},
			trace: traceID, parent: spanID, sampled: true,
			told: map[string]string{"traceparent": "00-TRACE-SPAN-01", "TraceParent": "-", "X-Request-ID": "-", "x-request-id": "00000000-7b3c-9a5e-8f6d-000000000000"},
		},
	} {
		for _, p := range carriers {
			t.Run(tc.name+"/"+p.name, func(t *testing.T) {
				e, s := newTracedEnv(t, tracedListener(p.codec, traced(tc.tracing)))
				e.v1.Serve = nil
				var says [][2]string
				for _, kv := range tc.says {
					says = append(says, [2]string{p.prefix + kv[0], kv[1]})
				}
				e.c.Send(p.request(says))
				got := told(t, p.codec, e.v1.Servers()[0].Take())
				e.c.Close()
				e.Settle()
				all := s.take()
				var trace, span string
				if tc.sampled {
					require.Len(t, all, 1)
					trace, span = hex.EncodeToString(all[0].ID[:]), hex.EncodeToString(all[0].Span[:])
					require.NotEqual(t, tc.parent, span)
					require.Equal(t, tc.state, all[0].State)
					require.True(t, all[0].Sampled)
					if tc.trace != "" {
						require.Equal(t, tc.trace, trace)
					}
					if tc.parent == "" {
						require.Zero(t, all[0].Parent)
					} else {
						require.Equal(t, tc.parent, hex.EncodeToString(all[0].Parent[:]))
					}
				} else {
					require.Empty(t, all)
					f := strings.Split(got[p.prefix+"traceparent"], "-")
					trace, span = f[1], f[2]
					require.NotEqual(t, spanID, span)
					if tc.trace != "" {
						require.Equal(t, tc.trace, trace)
					}
				}
				require.Len(t, span, 16)
				names := strings.NewReplacer("TRACE", trace, "HALF", trace[16:], "SPAN", span)
				for k, v := range tc.told {
					value, has := got[p.prefix+k]
					switch {
					case v == "-":
						require.False(t, has, "%s: %s", k, value)
					case strings.HasPrefix(v, "UUID"):
						require.Len(t, value, 36, k)
						require.Equal(t, v[4:], value[14:15], k)
					default:
						require.Equal(t, names.Replace(v), value, k)
					}
				}
			})
		}
	}
}

// TestRequestsThatCannotCarryATraceHaveOneOfTheirOwn, and are sent on as they came.
func TestRequestsThatCannotCarryATraceHaveOneOfTheirOwn(t *testing.T) {
	fastjson := dubbotest.Request{ID: 7}.Bytes()
	fastjson[2] = 0xc0 | 23
	for codec, request := range map[string][]byte{"thrift": thriftCall("framed", nil), "dubbo": fastjson} {
		e, s := newTracedEnv(t, tracedListener(codec, traced("")))
		e.v1.Serve = nil
		e.c.Send(request)
		require.Len(t, e.v1.Servers()[0].Take(), len(request))
		require.Zero(t, e.cfg.Counter("p.t.mutation_skipped"))
		e.c.Close()
		e.Settle()
		all := s.take()
		require.Len(t, all, 1)
		require.Zero(t, all[0].Parent)
		require.NotZero(t, all[0].ID)
	}
}

// TestBRPCsOwnIDs are where a request stands if it says nothing else, and are told to
// servers if it is sampled, as they would trace it otherwise.
func TestBRPCsOwnIDs(t *testing.T) {
	r := brpctest.Request{ID: 7, TraceID: 0x1234, SpanID: 0x56, ParentID: 0x78}
	e, s := newTracedEnv(t, tracedListener("brpc", traced("")))
	e.v1.Serve = nil
	e.c.Send(r.Bytes())
	got := told(t, "brpc", e.v1.Servers()[0].Take())
	e.c.Close()
	e.Settle()
	sp := s.take()[0]
	require.Equal(t, "00000000000000000000000000001234", hex.EncodeToString(sp.ID[:]))
	require.Equal(t, "0000000000000056", hex.EncodeToString(sp.Parent[:]))
	own := strconv.FormatInt(int64(binary.BigEndian.Uint64(sp.Span[:])), 10)
	require.Equal(t, []string{"4660", own, "86"}, []string{got["trace_id"], got["span_id"], got["parent_span_id"]})
	require.Equal(t, "00-"+hex.EncodeToString(sp.ID[:])+"-"+hex.EncodeToString(sp.Span[:])+"-01", got["traceparent"])

	e, s = newTracedEnv(t, tracedListener("brpc", traced(`"random_sampling": {"value": 0}`)))
	e.v1.Serve = nil
	e.c.Send(r.Bytes(), brpctest.Request{ID: 8}.Bytes())
	sent := e.v1.Servers()[0].Take()
	frames, _ := brpctest.Parse(sent)
	require.Len(t, frames, 2)
	e.c.Close()
	require.Empty(t, s.take())
	got = told(t, "brpc", sent[:firstFrame(sent)])
	require.Equal(t, "86", got["span_id"])
	require.NotContains(t, told(t, "brpc", sent[firstFrame(sent):]), "trace_id")
}

// firstFrame is the length of the first frame of bRPC in b.
func firstFrame(b []byte) int { return 12 + int(binary.BigEndian.Uint32(b[4:])) }

// spanText is a span for comparison, with P for a parent, without what is random.
func spanText(s *tracing.Span) string {
	kind := "server"
	if s.Kind == tracing.Client {
		kind = "client"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %v", kind, s.Name, s.End.Sub(s.Start))
	if s.Failed {
		fmt.Fprintf(&b, " FAILED %q", s.Description)
	}
	for _, kv := range s.Attributes {
		if kv.Key != "guid:x-request-id" {
			fmt.Fprintf(&b, "\n%s=%s", kv.Key, kv.Value.String())
		}
	}
	for _, e := range s.Events {
		fmt.Fprintf(&b, "\n+%v %s", e.Time.Sub(s.Start), e.Name)
		for _, kv := range e.Attributes {
			fmt.Fprintf(&b, " %s=%s", kv.Key, kv.Value.String())
		}
	}
	return b.String()
}

// has checks that a span tells what it should, line by line; "!key" is not told.
func has(t *testing.T, s *tracing.Span, lines ...string) {
	t.Helper()
	got := strings.Split(spanText(s), "\n")
	for _, l := range lines {
		if key, not := strings.CutPrefix(l, "!"); not {
			require.False(t, slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, key) }), "%s in\n%s", l, spanText(s))
		} else {
			require.Contains(t, got, l, spanText(s))
		}
	}
}

const usual = `"random_sampling": {"value": 100}`

// TestASpanOfAnAnswer is all that it tells.
func TestASpanOfAnAnswer(t *testing.T) {
	t.Setenv("A_SPANS_ZONE", "north")
	e, s := newTracedEnv(t, listener(twoRoutes, `, "traffic_direction": "OUTBOUND"`+traced(`"verbose": true, "custom_tags": [
		{"tag": "literal", "literal": {"value": "l"}}, {"tag": "zone", "environment": {"name": "A_SPANS_ZONE"}},
		{"tag": "none", "environment": {"name": "A_SPANS_NOTHING"}}, {"tag": "other", "environment": {"name": "A_SPANS_NOTHING", "default_value": "o"}},
		{"tag": "tenant", "request_header": {"name": "Tenant"}}, {"tag": "absent", "request_header": {"name": "absent"}},
		{"tag": "team", "metadata": {"kind": {"request": {}}, "metadata_key": {"key": "x", "path": [{"key": "team"}]}, "default_value": "none"}},
		{"tag": "component", "literal": {"value": "mine"}}]`)))
	e.c.Send(req(1, acme, [2]string{"x-client-trace-id", "c"}))
	require.Len(t, s.all, 1)
	sp := s.take()[0]
	require.NotContains(t, spanText(sp), "FAILED")
	size := len(req(1, acme, [2]string{"x-client-trace-id", "c"}))
	require.Equal(t, fmt.Sprintf(`client org.example.Greeter/sayHello 0s
rpc.system.name=dubbo
rpc.method=org.example.Greeter/sayHello
rpc.status_code=OK
server.address=10.0.0.4
server.port=20880
network.peer.address=10.0.0.4
network.peer.port=20880
component=mine
upstream_cluster=v2
upstream_cluster.name=v2
response_flags=-
peer.address=10.0.0.2
guid:x-client-trace-id=c
request_size=%d
response_size=32
literal=l
zone=north
other=o
tenant=acme
team=none
+0s first_upstream_tx_byte_sent
+0s first_upstream_rx_byte_received
+0s last_downstream_tx_byte_sent`, size), spanText(sp))
	for _, kv := range sp.Attributes {
		if kv.Key == "guid:x-request-id" {
			require.Len(t, kv.Value.AsString(), 36)
			return
		}
	}
	t.Fatal("no request id")
}

// TestSpansOfAllEnds: whatever the end, there is one span, which has failed in the eyes of
// those to whom OpenTelemetry says so.
func TestSpansOfAllEnds(t *testing.T) {
	exception := dubbotest.Frame(0x02, 20, 0, append([]byte{0x90}, 'N'))
	with := func(frame []byte) func(s *filtertest.Server, b []byte) int {
		return func(s *filtertest.Server, b []byte) int {
			requests, rest := dubbotest.Parse(b)
			for _, r := range requests {
				f := slices.Clone(frame)
				binary.BigEndian.PutUint64(f[4:], r.ID)
				s.Send(f)
			}
			return len(b) - len(rest)
		}
	}
	for _, tc := range []struct {
		name    string
		request []byte
		serve   func(s *filtertest.Server, b []byte) int
		then    func(e *env)
		// Of a client's span, and of a server's.
		failed, serverFailed bool
		lines                []string
	}{
		{"answered", req(1), answer, nil, false, false, []string{"rpc.status_code=OK", "!error.type"}},
		{"an exception", req(1), with(exception), nil, true, false, []string{"rpc.status_code=OK", "response_flags=-"}},
		{"an error of the server", req(1), with(dubbotest.ErrorResponse(0, 80, "x")), nil, true, true, []string{"rpc.status_code=SERVER_ERROR", "error.type=SERVER_ERROR"}},
		{"an error of the client", req(1), with(dubbotest.ErrorResponse(0, 60, "x")), nil, true, false, []string{"rpc.status_code=SERVICE_NOT_FOUND"}},
		{"no route", dubbotest.Request{ID: 1, Method: "other"}.Bytes(), answer, nil, true, true, []string{"error.type=route_not_found", "response_flags=NR", "!upstream_cluster"}},
		{"malformed", dubbotest.Frame(0xc2, 0, 1, []byte("garbage")), answer, nil, true, false, []string{"response_flags=DPE", "rpc.method=_OTHER"}},
		{"timeout", req(1), nil, func(e *env) { e.Advance(20 * time.Second) }, true, true, []string{"error.type=timeout", "response_flags=UT", "upstream_cluster=v1"}},
		{"the client has gone", req(1), nil, func(e *env) { e.Advance(3 * time.Second); e.c.Close() }, true, false, []string{"response_flags=DC", "!rpc.status_code"}},
		{"the server has gone", req(1), nil, func(e *env) { e.v1.Servers()[0].Reset() }, true, true, []string{"error.type=upstream_reset", "response_flags=UC"}},
		{"a oneway", dubbotest.Request{ID: 1, Oneway: true}.Bytes(), nil, nil, false, false, []string{"meltemi.message_type=oneway", "!error.type", "!rpc.status_code", "response_flags=-"}},
	} {
		for _, direction := range []string{"OUTBOUND", "INBOUND", "UNSPECIFIED"} {
			t.Run(tc.name+" "+direction, func(t *testing.T) {
				e, s := newTracedEnv(t, listener(twoRoutes, `, "traffic_direction": "`+direction+`"`+traced(usual)))
				e.v1.Serve = tc.serve
				e.c.Send(tc.request)
				if tc.then != nil {
					tc.then(e)
				}
				e.Settle()
				all := s.take()
				require.Len(t, all, 1)
				lines := tc.lines
				if direction == "OUTBOUND" {
					require.Equal(t, tracing.Client, all[0].Kind)
					require.Equal(t, tc.failed, all[0].Failed, spanText(all[0]))
				} else {
					require.Equal(t, tracing.Server, all[0].Kind)
					require.Equal(t, tc.serverFailed, all[0].Failed, spanText(all[0]))
					lines = append(slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.HasPrefix(l, "error.type") && !tc.serverFailed }),
						"server.address=10.0.0.9", "server.port=20880", "network.peer.address=10.0.0.2")
				}
				has(t, all[0], lines...)
				if !all[0].Failed {
					has(t, all[0], "!error.type")
				}
				require.False(t, all[0].End.Before(all[0].Start))
			})
		}
	}
}

// TestSpansTellOfAttempts, as events.
func TestSpansTellOfAttempts(t *testing.T) {
	route := func(action string) string {
		return `{"name": "r", "routes": [{"route": {"cluster": "v2"` + action + `}}]}`
	}
	t.Run("retry", func(t *testing.T) {
		e, s := newTracedEnv(t, listener(route(`, "retry_policy": {"retry_on": "overloaded", `+quick+`}`), traced(usual)))
		var sent []string
		e.v2.Serve = func(sv *filtertest.Server, b []byte) int {
			sent = append(sent, told(t, "dubbo", slices.Clone(b))["traceparent"])
			frames, rest := dubbotest.Parse(b)
			if len(sent) == 1 {
				sv.Send(dubbotest.ErrorResponse(frames[0].ID, 100, "full"))
				return len(b) - len(rest)
			}
			return answer(sv, b)
		}
		e.c.Send(req(1))
		e.Advance(time.Second)
		all := s.take()
		require.Len(t, all, 1, "one span covers the retries")
		require.Len(t, all[0].Events, 2)
		require.Equal(t, "retry", all[0].Events[0].Name)
		require.Equal(t, "overloaded", all[0].Events[0].Attributes[0].Value.AsString())
		require.Equal(t, "retry_success", all[0].Events[1].Name)
		require.Len(t, sent, 2)
		require.Equal(t, sent[0], sent[1])
		require.Contains(t, sent[0], hex.EncodeToString(all[0].Span[:]))
	})
	t.Run("hedge", func(t *testing.T) {
		e, s := newTracedEnv(t, listener(route(`, "idempotent": true, "hedge_policy": {"hedge_delay": "0.05s"}`), traced(usual)))
		warm := e.Dial(e.cfg)
		for i := range 4 {
			warm.Send(req(uint64(i)))
		}
		e.Advance(time.Second)
		s.take()
		asked := 0
		e.v2.Serve = func(sv *filtertest.Server, b []byte) int {
			if asked++; asked == 1 {
				return len(b)
			}
			return answer(sv, b)
		}
		e.c.Send(req(9))
		e.Advance(time.Second)
		all := s.take()
		require.Len(t, all, 1)
		require.Equal(t, []string{"hedge", "hedge_won"}, []string{all[0].Events[0].Name, all[0].Events[1].Name})
		require.Positive(t, all[0].Events[0].Time.Sub(all[0].Start))
	})
	t.Run("mirror", func(t *testing.T) {
		e, s := newTracedEnv(t, listener(route(`, "request_mirror_policies": [{"cluster": "v1", "after_mutation": true}]`), traced(usual)))
		e.v1.Serve = nil
		e.v1.Hang = true
		e.c.Send(req(1))
		all := s.take()
		require.Len(t, all, 1)
		has(t, all[0], "+0s mirror upstream_cluster=v1")
		e.c.Send(req(2)) // in the memory of the first, whose copy waits for a connection
		e.v1.Hang = false
		e.v1.Admit()
		e.Settle()
		frames, _ := dubbotest.Parse(e.v1.Servers()[0].Take())
		require.Len(t, frames, 2)
		require.Contains(t, string(frames[0].Body), hex.EncodeToString(all[0].ID[:]))
		require.Contains(t, string(frames[1].Body), hex.EncodeToString(s.take()[0].ID[:]))
	})
}

// TestASpanOfAStreamIsAsLongAsIt, with the frames of both sides.
func TestASpanOfAStreamIsAsLongAsIt(t *testing.T) {
	e, s := newTracedEnv(t, tracedListener("trpc", traced(usual)))
	e.v1.Serve = nil
	e.c.Send(trpctest.Request{ID: 7}.Init())
	sv := e.v1.Servers()[0]
	got := told(t, "trpc", sv.Take())
	sv.Send(trpctest.Response{ID: 7}.Init())
	e.Advance(3 * time.Minute)
	e.c.Send(trpctest.StreamFrame(trpctest.Data, 7, []byte("x")))
	e.Advance(time.Minute)
	require.Empty(t, s.all)
	sv.Send(trpctest.CloseFrame(7, true, 0, ""))
	e.Settle()
	all := s.take()
	require.Len(t, all, 1)
	require.GreaterOrEqual(t, all[0].End.Sub(all[0].Start), 4*time.Minute)
	has(t, all[0], "meltemi.message_type=stream", "rpc.system.name=trpc")
	require.Contains(t, got["traceparent"], hex.EncodeToString(all[0].Span[:]))
}

// TestTwoSpansOfAHop: the server is told of the one within.
func TestTwoSpansOfAHop(t *testing.T) {
	e, s := newTracedEnv(t, listener(twoRoutes, traced(`"spawn_upstream_span": true`)))
	var parent string
	e.v1.Serve = func(sv *filtertest.Server, b []byte) int {
		parent = told(t, "dubbo", slices.Clone(b))["traceparent"]
		return answer(sv, b)
	}
	e.c.Send(req(1))
	e.c.Send(dubbotest.Request{ID: 2, Method: "other"}.Bytes())
	all := s.take()
	require.Len(t, all, 3)
	require.Equal(t, []tracing.Kind{tracing.Server, tracing.Client, tracing.Server}, []tracing.Kind{all[0].Kind, all[1].Kind, all[2].Kind})
	require.Equal(t, all[0].Span, all[1].Parent)
	require.Equal(t, all[0].ID, all[1].ID)
	require.Contains(t, parent, hex.EncodeToString(all[1].Span[:]))
	has(t, all[0], "server.address=10.0.0.9")
	has(t, all[1], "server.address=10.0.0.3")
}

// TestFiltersTellTheirPartOfASpan: if it is sampled, and within bounds.
func TestFiltersTellTheirPartOfASpan(t *testing.T) {
	var seen []facts.Trace
	current = &testFilter{
		onRequest: func(m *filter.Message) filter.Verdict {
			require.Len(t, string(must(m.Request().Get("x-request-id"))), 36, "as the server gets it")
			m.Span().SetTag("checked", "no")
			m.Span().SetTag("checked", "yes\xff")
			m.Span().AddEvent("asked")
			if _, many := m.Request().Get("many"); many {
				for i := range 1000 {
					m.Span().SetTag("k"+strconv.Itoa(i), strings.Repeat("x", 1000))
					m.Span().AddEvent("e")
				}
			}
			return filter.Continue
		},
		onEnd: func(m *filter.Message) { seen = append(seen, m.Facts().Trace) },
	}
	filters := `, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`
	e, s := newTracedEnv(t, listener(twoRoutes, filters+traced("")))
	e.c.Send(req(1), req(2, [2]string{"many", ""}))
	all := s.take()
	require.Len(t, all, 2)
	has(t, all[0], "checked=yes\uFFFD", "+0s asked")
	require.Len(t, all[1].Events, 64)
	require.Less(t, len(all[1].Attributes), 100)
	require.Contains(t, spanText(all[1]), "k0="+strings.Repeat("x", 256)+"\n")
	require.Equal(t, []facts.Trace{all[0].Trace, all[1].Trace}, seen)

	seen = nil
	e, s = newTracedEnv(t, listener(twoRoutes, filters+traced(`"random_sampling": {"value": 0}`)))
	e.c.Send(req(1))
	require.Empty(t, s.take())
	require.NotZero(t, seen[0].ID, "a log tells it all the same")
	require.False(t, seen[0].Sampled)

	seen = nil
	current.onRequest = func(m *filter.Message) filter.Verdict {
		require.False(t, m.Span().Recorded())
		m.Span().SetTag("a", "b")
		m.Span().AddEvent("c")
		return filter.Continue
	}
	e, _ = newTracedEnv(t, listener(twoRoutes, filters))
	e.c.Send(req(1))
	require.Equal(t, []facts.Trace{{}}, seen)
}

func must(b []byte, _ bool) []byte { return b }
