package filter_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
	_ "github.com/meltemi-mesh/meltemi/filters/adaptiveconcurrency"
	_ "github.com/meltemi-mesh/meltemi/filters/connectionlimit"
	_ "github.com/meltemi-mesh/meltemi/filters/consumer"
	_ "github.com/meltemi-mesh/meltemi/filters/extauthz"
	_ "github.com/meltemi-mesh/meltemi/filters/fault"
	_ "github.com/meltemi-mesh/meltemi/filters/istiostats"
	_ "github.com/meltemi-mesh/meltemi/filters/localratelimit"
	_ "github.com/meltemi-mesh/meltemi/filters/lua"
	_ "github.com/meltemi-mesh/meltemi/filters/ratelimit"
	_ "github.com/meltemi-mesh/meltemi/filters/ratelimitquota"
	_ "github.com/meltemi-mesh/meltemi/filters/rbac"
	_ "github.com/meltemi-mesh/meltemi/filters/setmetadata"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// bareHost is a host that allocates nothing: one worker, one client, one
// upstream connection.
type bareHost struct {
	now     time.Duration
	members *host.Members // of all clusters
	free    []*host.Buffer
	up      host.UpstreamEvents
	sent    []byte // to the server
	// The same of the cluster "mirror".
	mirror host.UpstreamEvents
	copied []byte
	got    []byte // by the client
	shard  host.Shard
	down   host.DownstreamEvents

	request [][]byte
}

func (h *bareHost) DefineCounter(string) (host.MetricID, error)   { return 0, nil }
func (h *bareHost) DefineGauge(string) (host.MetricID, error)     { return 0, nil }
func (h *bareHost) DefineHistogram(string) (host.MetricID, error) { return 0, nil }
func (h *bareHost) Background() host.Background                   { return nil }
func (h *bareHost) Logf(host.Level, string, ...any)               {}
func (h *bareHost) Now() time.Duration                            { return h.now }
func (h *bareHost) SetTimer(time.Duration)                        {}
func (h *bareHost) Wake()                                         {}
func (h *bareHost) ClusterMembers(string) *host.Members           { return h.members }
func (h *bareHost) ClusterHosts(string) (host.Hosts, bool, bool) {
	return host.Hosts{Total: 1, Healthy: 1, Preferred: 1}, true, true
}

func (h *bareHost) Connect(t host.Target, ev host.UpstreamEvents) host.Upstream {
	if t.Cluster == "mirror" {
		if h.mirror == nil {
			h.mirror = ev
		}
		return bareMirror{bareUpstream{h}}
	}
	if h.up == nil { // a replacement of the first one never comes up
		h.up = ev
	}
	return bareUpstream{h}
}

func (h *bareHost) Buffer(n int) *host.Buffer {
	if l := len(h.free); l > 0 {
		b := h.free[l-1]
		h.free = h.free[:l-1]
		return b
	}
	return &host.Buffer{B: make([]byte, 0, max(n, 4096)), Host: h}
}

func (h *bareHost) Recycle(b *host.Buffer) {
	b.B = b.B[:0]
	h.free = append(h.free, b)
}

type bareUpstream struct{ h *bareHost }

func (bareUpstream) ReadDisable(bool) {}

func (u bareUpstream) Write(b *host.Buffer) { u.h.sent = append(u.h.sent[:0], b.B...); u.h.Recycle(b) }
func (u bareUpstream) Close(bool)           {}

type bareMirror struct{ bareUpstream }

func (u bareMirror) Write(b *host.Buffer) {
	u.h.copied = append(u.h.copied[:0], b.B...)
	u.h.Recycle(b)
}

type bareDownstream struct{ h *bareHost }

func (d bareDownstream) Write(b *host.Buffer) {
	d.h.got = append(d.h.got[:0], b.B...)
	d.h.Recycle(b)
}
func (d bareDownstream) Close(bool)                     {}
func (d bareDownstream) ReadDisable(bool)               {}
func (d bareDownstream) BufferLimit() int               { return 1 << 20 }
func (d bareDownstream) ID() uint64                     { return 1 }
func (d bareDownstream) LocalAddress() string           { return "" }
func (d bareDownstream) RemoteAddress() string          { return "" }
func (d bareDownstream) DirectRemoteAddress() string    { return "" }
func (d bareDownstream) TLS() *host.TLS                 { return nil }
func (d bareDownstream) Count(host.MetricID, int64)     {}
func (d bareDownstream) Add(host.MetricID, int64)       {}
func (d bareDownstream) Record(host.MetricID, []uint64) {}

const byAttributes = `{"name": "r", "routes": [
  {"match": {"metadata": [{"name": "interface", "string_match": {"exact": "org.example.Greeter"}},
    {"name": "method", "string_match": {"exact": "sayHello"}}, {"name": "tenant", "string_match": {"exact": "acme"}}]},
   "route": {"cluster": "v1"}}]}`

// withPolicies is byAttributes with all policies of requests.
const withPolicies = `{"name": "r", "routes": [
  {"match": {"metadata": [{"name": "interface", "string_match": {"exact": "org.example.Greeter"}}]},
   "route": {"cluster": "v1", "hash_policies": [{"metadata": {"name": "tenant"}}, {"source_ip": true}], "timeout": "1s", "idempotent": true, "hedge_policy": {"hedge_percentile": {"value": 95}},
    "retry_policy": {"retry_on": "connect-failure,refused,reset,timeout,server-error", "per_try_timeout": "0.5s"}}}],
  "clusters": [{"name": "*", "outlier_detection": {"failure_percentage_threshold": 85, "silence": "2s"}, "circuit_breakers": {
   "max_requests": 1000, "keys": [{"names": ["method"], "max_requests": 100, "error_percent": 50}]}}]}`

// newRoundTrip returns a function that sends one request and its answer through
// the whole pipeline.
func newRoundTrip(t testing.TB) (roundTrip func(), h *bareHost) {
	return newRoundTripBy(t, byAttributes)
}

// newRoundTripBy is newRoundTrip with other routes.
func newRoundTripBy(t testing.TB, routes string) (roundTrip func(), h *bareHost) {
	return newRoundTripTo(t, routes, nil)
}

// newRoundTripTo is newRoundTripBy to a cluster that tells its hosts, unless they are nil.
func newRoundTripTo(t testing.TB, routes string, members *host.Members) (roundTrip func(), h *bareHost) {
	return newRoundTripOf(t, listener(routes, ""), members)
}

// filtered is a filter with a part for the worker that uses what costs nothing.
type filtered struct {
	count *filter.Counter
	size  *filter.Histogram
	limit int
}

type filteredConfig struct{ limit int }

func init() {
	p := &probe{
		parseRoute: func(*anypb.Any) (filter.Config, error) { return &filteredConfig{3}, nil },
		build: func(_ filter.Config, s *filter.Scope) (filter.Filter, error) {
			c, err := s.Counter("count")
			if err != nil {
				return nil, err
			}
			size, err := s.Histogram("size")
			f := &split{}
			f.worker = func(*filter.Worker) filter.Filter { return &filtered{count: c, size: size} }
			return f, err
		},
	}
	probes["probe.filtered"] = p
	filter.Register("probe.filtered", builder("probe.filtered"))
}

func (f *filtered) OnRequest(m *filter.Message) filter.Verdict {
	f.limit = m.RouteConfig().(*filteredConfig).limit
	m.Count(f.count, 1)
	m.Record(f.size, uint64(m.Request().BodySize))
	m.SetState(f)
	m.SetValue(f, f)
	m.SetHost("h1", true)
	if _, has := m.Request().Get("tenant"); !has {
		return m.Reply(codecs.Denied, "no tenant")
	}
	return filter.Continue
}

func (f *filtered) OnResponse(m *filter.Message) filter.Verdict {
	if m.State() != f || m.Value(f) != f {
		return m.Reply(codecs.Unspecified, "something is lost")
	}
	return filter.Continue
}

func (f *filtered) OnAttempt(_ *filter.Message, a *filter.Attempt) { a.Mutate().Set("host", a.Host) }

func (f *filtered) OnAttemptEnd(m *filter.Message, a *filter.Attempt) {
	if a.Response != nil {
		m.Count(f.count, 1)
	}
}

func (f *filtered) OnEnd(m *filter.Message) { m.Count(f.count, 1) }

func (f *filtered) OnLocalReply(*filter.Message, *codecs.LocalError) {}

func newFilteredRoundTrip(t testing.TB) (roundTrip func()) {
	roundTrip, _ = newRoundTripOf(t, strings.Replace(listener(strings.Replace(byAttributes, `"route": {`,
		`"typed_per_filter_config": {"probe.filtered": {"@type": "type.googleapis.com/google.protobuf.Empty"}}, "route": {`, 1), ""), `"route_config"`,
		`"meta_protocol_filters": [
			{"name": "probe.filtered", "match": {"metadata": [{"name": "tenant", "exact_match": "acme"}]}},
			{"name": "probe.c", "disabled": true}, {"name": "aeraki.meta_protocol.filters.router"}], "route_config"`, 1), nil)
	return roundTrip
}

// bodied is a filter that looks into messages and changes them.
type bodied struct{ answers bool }

func init() {
	for name, f := range map[string]bodied{"probe.bodied": {}, "probe.answering": {true}} {
		probes[name] = built(func(*filter.Scope) filter.Filter { return f })
		filter.Register(name, builder(name))
	}
}

func (f bodied) OnRequest(m *filter.Message) filter.Verdict {
	p, err := m.Payload()
	if f.answers {
		return m.Answer(p)
	}
	if err == nil {
		err = m.SetPayload(p)
	}
	if err != nil {
		return m.Reply(codecs.Denied, err.Error())
	}
	m.AllowRepeat()
	return filter.Continue
}

func (bodied) OnResponse(m *filter.Message) filter.Verdict {
	p, err := m.Payload()
	if err == nil {
		err = m.SetPayload(p)
	}
	if err != nil {
		return m.Reply(codecs.Denied, err.Error())
	}
	return filter.Continue
}

// newBodiedRoundTrip changes payloads of requests and answers.
func newBodiedRoundTrip(t testing.TB) (roundTrip func()) {
	roundTrip, h := newRoundTripOf(t, strings.Replace(listener(byAttributes, ""), `"route_config"`,
		`"meta_protocol_filters": [{"name": "probe.bodied"}, {"name": "aeraki.meta_protocol.filters.router"}], "route_config"`, 1), nil)
	require.EqualValues(t, 20, h.got[3])
	return roundTrip
}

// newAnsweringRoundTrip has filters answer, and one before that changes the answer.
func newAnsweringRoundTrip(t testing.TB) (roundTrip func()) {
	h := &bareHost{now: time.Hour}
	m := filter.NewModule()
	cfg, err := m.NewConfig(h, []byte(strings.Replace(listener(byAttributes, ""), `"route_config"`,
		`"meta_protocol_filters": [{"name": "probe.bodied"}, {"name": "probe.answering"}, {"name": "aeraki.meta_protocol.filters.router"}], "route_config"`, 1)))
	require.NoError(t, err)
	h.shard = m.NewWorker(h)
	h.down = h.shard.Accept(cfg, bareDownstream{h})
	in := [][]byte{dubbotest.Request{ID: 77, Argument: "x"}.Bytes()}
	h.request = in
	return func() {
		h.got = h.got[:0]
		h.down.Data(in, len(in[0]), false)
		h.shard.EndHook()
		if len(h.got) < 16 || h.got[3] != 20 {
			t.Fatalf("the answer is %x", h.got)
		}
	}
}

// guarded is a listener with what guards a service, none of which refuses anything: a
// limit, access control by 100 policies, properties that are set, and faults for none;
// and 1,000 routes, of which the last changes the request.
func guarded() string {
	var policies, routes []string
	for i := range 100 {
		policies = append(policies, fmt.Sprintf(`"p%02d": {
			"permissions": [{"url_path": {"path": {"exact": "/org.example.Greeter%d/sayHello"}}}, {"url_path": {"path": {"prefix": "/org.example.Clock%d/"}}}],
			"principals": [{"header": {"name": "tenant", "string_match": {"exact": "acme"}}}]}`, i, i, i))
	}
	policies[50] = strings.ReplaceAll(policies[50], "Greeter50", "Greeter")
	for i := range 1000 {
		routes = append(routes, fmt.Sprintf(`{"name": "r%d", "match": {"metadata": [{"name": "interface", "string_match": {"exact": "org.example.Greeter%d"}},
			{"name": "method", "string_match": {"exact": "sayHello"}}, {"name": "team", "string_match": {"exact": "greeters"}}]},
			"route": {"cluster": "v1"}, "request_mutation": [{"key": "x-by", "value": "meltemi"}, {"key": "x-route", "value": "r%d"}]}`, i, i, i))
	}
	routes[999] = strings.Replace(routes[999], "Greeter999", "Greeter", 1)
	return strings.NewReplacer("POLICIES", strings.Join(policies, ","), "ROUTES", strings.Join(routes, ",")).Replace(`{
		"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [
			{"name": "aeraki.meta_protocol.filters.local_ratelimit", "config": {
				"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.local_ratelimit.v1alpha.LocalRateLimit",
				"stat_prefix": "all", "token_bucket": {"max_tokens": 1, "fill_interval": "3600s"},
				"conditions": [{"match": {"metadata": [{"name": "method", "string_match": {"exact": "sayHello"}}]},
					"token_bucket": {"max_tokens": 1000000, "tokens_per_fill": 1000000, "fill_interval": "1s"}}]}},
			{"name": "aeraki.meta_protocol.filters.rbac", "config": {
				"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.rbac.v1alpha.RBAC",
				"rules": {"policies": {POLICIES}}}},
			{"name": "aeraki.meta_protocol.filters.set_metadata", "config": {
				"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.set_metadata.v1alpha.SetMetadata",
				"entries": [{"name": "team", "value": "greeters"}, {"name": "x-what", "format": "%OPERATION%"}]}},
			{"name": "aeraki.meta_protocol.filters.fault", "match": {"metadata": [{"name": "x-what", "string_match": {"prefix": "org.example."}}]}, "config": {
				"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.fault.v1alpha.Fault",
				"delay": {"fixed_delay": "2s", "percentage": {"numerator": 0}}, "abort": {"reply": {"status": "OVER_LIMIT"}, "percentage": {"numerator": 0}}}},
			{"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"name": "r", "routes": [ROUTES]}}`)
}

func newGuardedRoundTrip(t testing.TB) (roundTrip func()) {
	roundTrip, h := newRoundTripOf(t, guarded(), nil)
	for _, s := range []string{"x-by\ameltemi", "x-route\x04r999"} {
		require.Contains(t, string(h.sent), s)
	}
	return roundTrip
}

// newUntracedRoundTrip is newRoundTrip with tracing, of which the request is no part. It
// is told so to the server.
func newUntracedRoundTrip(t testing.TB) (roundTrip func()) {
	roundTrip, h := newRoundTripOf(t, listener(byAttributes, traced(`"random_sampling": {"value": 0}`)), nil)
	require.Contains(t, string(h.sent), "traceparent")
	require.Contains(t, string(h.sent), "x-request-id")
	return roundTrip
}

// newCountedRoundTrip is newRoundTrip that is counted as Istio's metrics, by two sources
// in turn.
func newCountedRoundTrip(t testing.TB) (roundTrip func()) {
	m := filter.NewModule()
	m.Observe()
	sources, n := [2]filter.Workload{{Name: "a"}, {Name: "b"}}, 0
	probes["probe.source"] = &probe{build: func(filter.Config, *filter.Scope) (filter.Filter, error) {
		return tells(func(m *filter.Message) { n++; m.SetSource(&sources[n%2]) }), nil
	}}
	roundTrip, _ = newRoundTripIn(t, m, strings.Replace(listener(byAttributes, ""), `"route_config"`, `"meta_protocol_filters": [
		{"name": "aeraki.meta_protocol.filters.istio_stats"}, {"name": "probe.source"}, {"name": "aeraki.meta_protocol.filters.router"}], "route_config"`, 1), nil)
	return roundTrip
}

// newObservedRoundTrip is newRoundTrip with all that tells of requests: Istio's metrics and
// those of methods, a line in JSON, and spans of a share of them, in percent.
func newObservedRoundTrip(t testing.TB, share int) (roundTrip func()) {
	m := filter.NewModule()
	m.Observe()
	config := strings.Replace(listener(byAttributes, observing(share)),
		`"route_config"`, `"meta_protocol_filters": [
		{"name": "aeraki.meta_protocol.filters.istio_stats"}, {"name": "aeraki.meta_protocol.filters.router"}], "route_config"`, 1)
	roundTrip, _ = newRoundTripIn(t, m, config, nil)
	return roundTrip
}

// observing is what a listener has that tells of requests, behind its other fields.
func observing(share int) string {
	return `, "traffic_direction": "INBOUND"` + traced(fmt.Sprintf(`"random_sampling": {"value": %d}`, share)) + `, "access_log": [{"name": "f", "typed_config": {
		"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/null", "log_format": {"json_format": {
			"start": "%START_TIME%", "call": "%REQ(:PATH)%", "tenant": "%REQ(tenant)%", "code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%",
			"details": "%RESPONSE_CODE_DETAILS%", "ms": "%DURATION%", "received": "%BYTES_RECEIVED%", "sent": "%BYTES_SENT%",
			"client": "%DOWNSTREAM_REMOTE_ADDRESS%", "host": "%UPSTREAM_HOST%", "cluster": "%UPSTREAM_CLUSTER%", "trace": "%TRACE_ID%"}}}}]`
}

// newEverythingRoundTrip is of policies, of all that guards a service, and of all that
// tells of requests.
func newEverythingRoundTrip(t testing.TB, share int) (roundTrip func()) {
	var policies struct {
		Routes []struct {
			Route json.RawMessage `json:"route"`
		} `json:"routes"`
		Clusters json.RawMessage `json:"clusters"`
	}
	require.NoError(t, json.Unmarshal([]byte(withPolicies), &policies))
	config := strings.NewReplacer(
		`"route": {"cluster": "v1"}`, `"route": `+string(policies.Routes[0].Route),
		`"meta_protocol_filters": [`, `"meta_protocol_filters": [{"name": "aeraki.meta_protocol.filters.istio_stats"},`,
		`"route_config": {`, `"route_config": {"clusters": `+string(policies.Clusters)+`,`,
	).Replace(guarded())
	m := filter.NewModule()
	m.Observe()
	roundTrip, h := newRoundTripIn(t, m, strings.TrimSuffix(config, "}")+observing(share)+"}", nil)
	for _, s := range []string{"x-by\ameltemi", "x-route\x04r999"} {
		require.Contains(t, string(h.sent), s)
	}
	return roundTrip
}

// tells is a filter that tells something of each message, and looks at no request behind.
type tells func(m *filter.Message)

func (f tells) OnRequest(m *filter.Message) filter.Verdict { f(m); return filter.Continue }

func init() { filter.Register("probe.source", builder("probe.source")) }

func newRoundTripOf(t testing.TB, config string, members *host.Members) (roundTrip func(), h *bareHost) {
	return newRoundTripIn(t, filter.NewModule(), config, members)
}

// newRoundTripIn is newRoundTripOf in a module.
func newRoundTripIn(t testing.TB, m *filter.Module, config string, members *host.Members) (roundTrip func(), h *bareHost) {
	h = &bareHost{now: time.Hour, members: members}
	m.SinkTo(&spans{})
	cfg, err := m.NewConfig(h, []byte(config))
	require.NoError(t, err)
	h.shard = m.NewWorker(h)
	h.down = h.shard.Accept(cfg, bareDownstream{h})
	req := dubbotest.Request{ID: 77, Argument: string(make([]byte, 128)), Attachments: [][2]string{
		{"path", "org.example.Greeter"}, {"interface", "org.example.Greeter"}, {"version", "1.0.0"}, {"tenant", "acme"}, {"timeout", "3000"},
	}}.Bytes()
	resp := dubbotest.Response(0, string(make([]byte, 128)), [2]string{"k", "v"})
	in, out := [][]byte{req}, [][]byte{resp}
	h.request = in
	h.down.Data(in, len(req), false)
	h.shard.EndHook()
	h.up.Ready("h1")
	h.shard.EndHook()
	answer := func() {
		binary.BigEndian.PutUint64(resp[4:], binary.BigEndian.Uint64(h.sent[4:]))
		h.up.Data(out, len(resp))
		h.shard.EndHook()
		if id := binary.BigEndian.Uint64(h.got[4:]); id != 77 {
			t.Fatalf("the answer has the id %d", id)
		}
	}
	answer()
	return func() {
		h.now += 20 * time.Microsecond
		if n := h.down.Data(in, len(req), false); n != len(req) {
			t.Fatalf("%d of %d bytes consumed", n, len(req))
		}
		h.shard.EndHook()
		answer()
	}, h
}

// newMirroredRoundTrip is newRoundTrip with a copy, which is answered too, and the
// answers compared.
func newMirroredRoundTrip(t testing.TB) (roundTrip func()) {
	primary, h := newRoundTripBy(t, strings.Replace(byAttributes, `"route": {`,
		`"route": {"request_mirror_policies": [{"cluster": "mirror", "compare": true, "after_mutation": true, "runtime_fraction": {"default_value": {"numerator": 99}}}], `, 1))
	for h.mirror == nil { // the first were not of the share
		primary()
	}
	h.mirror.Ready("m1")
	h.shard.EndHook()
	resp := dubbotest.Response(0, "x")
	out := [][]byte{resp}
	return func() {
		h.copied = h.copied[:0]
		primary()
		if len(h.copied) == 0 { // not of the share
			return
		}
		copy(resp[4:12], h.copied[4:])
		h.mirror.Data(out, len(resp))
		h.shard.EndHook()
	}
}

// plainCodec is a protocol without ids of frames of eight bytes: the type, "q" or "m"
// of a request that is muted, or "a" of an answer, and a key.
type plainCodec struct{}

var (
	plainTypes  = map[byte]codecs.MessageType{'q': codecs.Request, 'm': codecs.Muted, 'a': codecs.Response}
	plainMethod = []byte("method")
)

func init() {
	codecs.Register("plain.inorder", func(*anypb.Any, codecs.Limits) (codecs.Codec, error) { return plainCodec{}, nil })
}

func (plainCodec) Traits() codecs.Traits {
	return codecs.Traits{Correlation: codecs.InOrder, ShareByDefault: true}
}
func (plainCodec) NewDecoder(codecs.Direction) codecs.Decoder { return plainCodec{} }

func (plainCodec) Decode(b []byte, m *codecs.Metadata) (int, error) {
	if len(b) < 8 {
		return 8, nil
	}
	m.Raw, m.BodySize = b[:8], 8
	m.Type = plainTypes[b[0]]
	m.Scratch[0] = binary.BigEndian.Uint32(b[4:])
	m.ReplyInfo = append(m.ReplyInfo, b[4:8]...)
	m.Put(plainMethod, b[2:3])
	return 8, nil
}

func (c plainCodec) DecodeAnswer(b []byte, m, req *codecs.Metadata) (int, error) {
	n, err := c.Decode(b, m)
	if err == nil && n <= len(b) && (req == nil || m.Scratch[0] != req.Scratch[0]) {
		err = errBad
	}
	return n, err
}

func (plainCodec) Encode(dst []byte, m *codecs.Metadata, _ *codecs.Mutation) ([]byte, error) {
	return append(dst, m.Raw...), nil
}

func (plainCodec) EncodeError(dst []byte, req *codecs.Metadata, _ *codecs.LocalError) ([]byte, error) {
	return append(append(dst, "a-m-"...), req.ReplyInfo...), nil
}

// newPlainHost returns a host with a client of a protocol without ids, of which
// nothing has come yet.
func newPlainHost(t testing.TB) (*bareHost, *filter.Module) {
	h := &bareHost{now: time.Hour}
	m := filter.NewModule()
	cfg, err := m.NewConfig(h, []byte(`{"stat_prefix": "t", "protocol": {"name": "plain", "codec": {"name": "plain.inorder"}},
	"route_config": {"name": "r", "routes": [{"match": {"metadata": [{"name": "method", "exact_match": "m"}]}, "route": {"cluster": "up"}}]}}`))
	require.NoError(t, err)
	h.shard = m.NewWorker(h)
	h.down = h.shard.Accept(cfg, bareDownstream{h})
	return h, m
}

// newPipelinedRoundTrip is newRoundTrip of four requests without ids at once.
func newPipelinedRoundTrip(t testing.TB) (roundTrip func()) {
	h, _ := newPlainHost(t)
	req, resp := []byte("q-m-aaaaq-m-bbbbq-m-ccccq-m-dddd"), []byte("a-m-aaaaa-m-bbbba-m-cccca-m-dddd")
	in, out := [][]byte{req}, [][]byte{resp}
	h.down.Data(in, len(req), false)
	h.shard.EndHook()
	h.up.Ready("h1")
	h.shard.EndHook()
	answer := func() {
		h.up.Data(out, len(resp))
		h.shard.EndHook()
		if !bytes.Equal(h.sent, req) || !bytes.Equal(h.got, resp) {
			t.Fatalf("%q is sent, and %q answered", h.sent, h.got)
		}
	}
	answer()
	return func() {
		h.now += 20 * time.Microsecond
		h.down.Data(in, len(req), false)
		h.shard.EndHook()
		answer()
	}
}

func TestARequestAllocatesNothing(t *testing.T) {
	byID, _ := newRoundTrip(t)
	policies, _ := newRoundTripBy(t, withPolicies)
	told, _ := newRoundTripTo(t, withPolicies, &host.Members{Hosts: []host.Member{{Address: "h1", Weight: 1, Healthy: true}}})
	for name, roundTrip := range map[string]func(){
		"by id": byID, "in order": newPipelinedRoundTrip(t), "with policies": policies, "told": told, "mirrored": newMirroredRoundTrip(t),
		"filtered": newFilteredRoundTrip(t), "bodies": newBodiedRoundTrip(t), "answers": newAnsweringRoundTrip(t), "guarded": newGuardedRoundTrip(t),
		"not traced": newUntracedRoundTrip(t), "counted": newCountedRoundTrip(t), "observed": newObservedRoundTrip(t, 0), "everything": newEverythingRoundTrip(t, 0),
		"thrift": newThriftRoundTrip(t, "framed", false, 1, 1), "ttheader": newThriftRoundTrip(t, "ttheader", true, 1, 4),
		"bRPC": wires[0].newRoundTrip(t, 16, true), "tRPC": wires[1].newRoundTrip(t, 16, true),
	} {
		t.Run(name, func(t *testing.T) {
			for range 5000 { // free lists and slots fill up
				roundTrip()
			}
			require.Zero(t, raced.AllocsPerRun(t, 5000, roundTrip))
		})
	}
}

// TestAMutedRequestThatIsSentLateHasADeadline, though its own is over: the worker had
// other things to do.
func TestAMutedRequestThatIsSentLateHasADeadline(t *testing.T) {
	h, mod := newPlainHost(t)
	req := []byte("m-m-aaaa")
	h.down.Data([][]byte{req}, len(req), false)
	h.shard.EndHook()
	h.now += time.Minute
	h.up.Ready("h1")
	h.shard.EndHook()
	require.Equal(t, req, h.sent)
	h.now += 10 * time.Second
	h.shard.Run()
	require.NotContains(t, mod.Left(), "1 in flight")
}

func BenchmarkPipeline(b *testing.B) {
	for name, routes := range map[string]string{"plain": byAttributes, "policies": withPolicies} {
		b.Run(name, func(b *testing.B) {
			roundTrip, _ := newRoundTripBy(b, routes)
			b.ReportAllocs()
			for b.Loop() {
				roundTrip()
			}
		})
	}
}

// BenchmarkPipelineFiltered is of a filter with a condition, a route's configuration and
// hooks of all kinds, and one that is disabled.
func BenchmarkPipelineFiltered(b *testing.B) {
	roundTrip := newFilteredRoundTrip(b)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip()
	}
}

// BenchmarkPipelineGuarded is of all that guards a service at once.
func BenchmarkPipelineGuarded(b *testing.B) {
	roundTrip := newGuardedRoundTrip(b)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip()
	}
}

// BenchmarkPipelineObserved is of all that tells of requests at once.
func BenchmarkPipelineObserved(b *testing.B) {
	roundTrip := newObservedRoundTrip(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip()
	}
}

// BenchmarkPipelineEverything is of that and all that guards a service, with policies.
func BenchmarkPipelineEverything(b *testing.B) {
	roundTrip := newEverythingRoundTrip(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip()
	}
}

func BenchmarkPipelineUntraced(b *testing.B) {
	roundTrip := newUntracedRoundTrip(b)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip()
	}
}

func BenchmarkPipelineMirrored(b *testing.B) {
	roundTrip := newMirroredRoundTrip(b)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip()
	}
}

// BenchmarkPipelineInOrder is of four requests at once over a shared connection whose
// answers are looked at with their requests.
func BenchmarkPipelineInOrder(b *testing.B) {
	roundTrip := newPipelinedRoundTrip(b)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip()
	}
}
