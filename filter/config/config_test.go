package config

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

const typeURL = "type.googleapis.com/aeraki.meta_protocol_proxy.v1alpha.MetaProtocolProxy"

const good = `{
  "stat_prefix": "t",
  "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo",
    "config": {"@type": "type.googleapis.com/aeraki.meta_protocol.codec.DubboCodec"}}, "multiplexing": true},
  "meta_protocol_filters": [{"name": "aeraki.meta_protocol.filters.router",
    "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.router.v1alpha.Router"}}],
  "idle_timeout": "60s",
  "route_config": {"name": "r", "routes": [
    {"match": {"metadata": [{"name": "method", "string_match": {"exact": "m"}}]}, "route": {"cluster": "a"}},
    {"route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 90}, {"name": "b", "weight": 10.0}]}},
     "request_mutation": [{"key": "k", "value": "v"}]}]}}`

func fromJSON(t testing.TB, s string) *proxyv1alpha.MetaProtocolProxy {
	t.Helper()
	m := new(proxyv1alpha.MetaProtocolProxy)
	require.NoError(t, protojson.Unmarshal([]byte(s), m))
	return m
}

func toStruct(t testing.TB, s string) *structpb.Struct {
	t.Helper()
	v := new(structpb.Struct)
	require.NoError(t, protojson.Unmarshal([]byte(s), v))
	return v
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	require.NoError(t, err)
	return b
}

func TestAllFormsLoadAlike(t *testing.T) {
	m := fromJSON(t, good)
	camel, err := protojson.Marshal(m)
	require.NoError(t, err)
	asStruct, err := protojson.Marshal(toStruct(t, good))
	require.NoError(t, err)
	xds := &xdsv3.TypedStruct{TypeUrl: typeURL, Value: toStruct(t, good)}
	xdsJSON, err := protojson.Marshal(xds)
	require.NoError(t, err)
	for name, raw := range map[string][]byte{
		"snake case": []byte(good), "camel case": camel, "as a Struct": asStruct,
		"xds TypedStruct": marshal(t, xds), "udpa TypedStruct": marshal(t, &udpav1.TypedStruct{TypeUrl: typeURL, Value: toStruct(t, string(camel))}),
		"TypedStruct as JSON": xdsJSON, "TypedStruct as JSON, snake case": []byte(`{"type_url": "` + typeURL + `", "value": ` + good + `}`),
		"serialized": marshal(t, m),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(raw)
			require.NoError(t, err)
			require.True(t, proto.Equal(m, got))
			p, err := Load(raw)
			require.NoError(t, err)
			require.True(t, proto.Equal(m.GetRouteConfig(), p.RouteConfig))
			require.Equal(t, Shared, p.ConnectionMode)
			require.Equal(t, time.Minute, p.IdleTimeout)
			require.Equal(t, 15*time.Second, p.RequestTimeout)
			require.Equal(t, "t", p.TableScope)
			require.Equal(t, 8, p.Upstream.MaxConnections)
		})
	}
}

func TestDeprecatedFieldsCountWhereTheNewOnesAreEmpty(t *testing.T) {
	p, err := Load([]byte(`{"statPrefix": "t", "applicationProtocol": "dubbo", "codec": {"name": "c"}, "routeConfig": {"name": "r"}}`))
	require.NoError(t, err)
	require.Equal(t, "dubbo", p.Protocol)
	require.Equal(t, "c", p.Codecs[0].Name)
	require.Equal(t, []Filter{{Extension: Extension{Name: RouterName}}}, p.Filters)
	p, err = Load([]byte(`{"stat_prefix": "t", "application_protocol": "old", "codec": {"name": "old"},
		"protocol": {"name": "new", "codec": {"name": "new"}}, "route_config": {}}`))
	require.NoError(t, err)
	require.Equal(t, "new", p.Protocol)
	require.Equal(t, "new", p.Codecs[0].Name)
}

// TestNumbersAreExact: of 64 bits as far as a Struct can hold them, and beyond
// that as strings.
func TestNumbersAreExact(t *testing.T) {
	for _, end := range []string{`9007199254740991`, `9.007199254740991e15`, `"9007199254740991"`, `"9223372036854775807"`} {
		cfg := strings.Replace(good, `"string_match": {"exact": "m"}`, `"range_match": {"start": -9007199254740991, "end": `+end+`}`, 1)
		p, err := Load([]byte(cfg))
		require.NoError(t, err)
		r := p.RouteConfig.GetRoutes()[0].GetMatch().GetMetadata()[0].GetRangeMatch()
		require.Equal(t, int64(-9007199254740991), r.GetStart())
		want := int64(9007199254740991)
		if strings.Contains(end, "807") {
			want = math.MaxInt64
		}
		require.Equal(t, want, r.GetEnd())
	}
}

func TestBadConfigurationsAreRefusedWithTheirPath(t *testing.T) {
	base := func(more string) string {
		return `{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "c"}}` + more + `}`
	}
	tracing := func(more string) string {
		return base(`, "route_config": {}, "tracing": {` + more + `"provider": {"typed_config": {
			"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig", "grpc_service": {"envoy_grpc": {"cluster_name": "c"}}}}}`)
	}
	routes := func(route string) string {
		return base(`, "route_config": {"routes": [{"route": {"cluster": "c"}}, ` + route + `]}`)
	}
	for _, tc := range []struct{ name, cfg, want string }{
		{"empty", ``, "the configuration is empty"},
		{"no JSON", `{"stat_prefix": `, "JSON: "},
		{"rubbish", "\xff\xff\xff", "neither JSON nor a serialized"},
		{"something behind", good + `{}`, "something follows"},
		{"another type", `{"type_url": "type.googleapis.com/x.Y", "value": {}}`, "type_url: want aeraki.meta_protocol_proxy.v1alpha.MetaProtocolProxy, got x.Y"},
		{
			"the clients' addresses on shared connections", base(`, "route_config": {}, "upstream": {"original_src": true}`),
			`stat_prefix "t": upstream.original_src: needs protocol.connection_mode EXCLUSIVE, as a shared connection has one source and many clients`,
		},
		{"unknown field", base(`, "route_config": {}, "timeouts": {}`), `stat_prefix "t": timeouts: unknown field`},
		{"unknown field deep down", routes(`{"match": {"metadata": [{"name": "m", "exact_mach": "x"}]}}`), `stat_prefix "t": route_config.routes[1].match.metadata[0].exact_mach: unknown field`},
		{"given twice", base(`, "route_config": {}, "table_scope": "a", "table_scope": "b"`), "table_scope: given twice"},
		{"given twice in two spellings", base(`, "route_config": {}, "table_scope": "a", "tableScope": "b"`), "tableScope: given twice, also as table_scope"},
		{"two of a oneof", base(`, "route_config": {}, "rds": {}`), "rds: excludes route_config"},
		{"wrong type", base(`, "route_config": {"routes": {}}`), "route_config.routes: want a list"},
		{"wrong scalar", base(`, "route_config": {"name": 5}`), "route_config.name: invalid value for string"},
		{"fraction for an integer", routes(`{"route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1.5}]}}}`), "route_config.routes[1].route.weighted_clusters.clusters[0].weight: invalid value"},
		{"number that is not exact", routes(`{"route": {"cluster": "c"}, "match": {"metadata": [{"name": "m", "range_match": {"start": 1, "end": 9007199254740992}}]}}`), "match.metadata[0].range_match.end: a number beyond 2^53-1 may have been rounded: write it as a string"},
		{"negative number that is not exact", routes(`{"route": {"cluster": "c"}, "match": {"metadata": [{"name": "m", "range_match": {"start": -9.1e18, "end": 1}}]}}`), "match.metadata[0].range_match.start: a number beyond 2^53-1"},
		{"number beyond 64 bits", routes(`{"route": {"cluster": "c"}, "match": {"metadata": [{"name": "m", "range_match": {"start": 1, "end": 1e300}}]}}`), "match.metadata[0].range_match.end: a number beyond 2^53-1"},
		{"unknown enum value", base(`, "route_config": {}, "delivery": "PIGEON"`), "delivery: invalid value for enum"},
		{"unknown enum number", base(`, "route_config": {}, "delivery": 7`), "delivery: unknown value 7"},
		{"bad duration", base(`, "route_config": {}, "idle_timeout": "fast"`), "idle_timeout: invalid google.protobuf.Duration"},
		{"negative duration", base(`, "route_config": {}, "request_timeout": "-1s"`), "request_timeout: must be at least 1ms"},
		{"zero timeout", base(`, "route_config": {}, "request_timeout": "0s"`), "request_timeout: must be at least 1ms"},
		{"any of unknown type", base(`, "route_config": {}, "meta_protocol_filters": [{"name": "f", "config": {"@type": "type.googleapis.com/no.Such"}}]`), "meta_protocol_filters[0].config.@type: unknown type type.googleapis.com/no.Such"},
		{"unknown field in an any", strings.Replace(good, `DubboCodec"`, `DubboCodec", "x": 1`, 1), "protocol.codec.config.x: unknown field"},
		{"no stat_prefix", `{"protocol": {"name": "d", "codec": {"name": "c"}}, "route_config": {}}`, `stat_prefix: required`},
		{"no protocol", `{"stat_prefix": "t", "codec": {"name": "c"}, "route_config": {}}`, "protocol.name: required"},
		{"no codec", `{"stat_prefix": "t", "protocol": {"name": "d"}, "route_config": {}}`, "protocol.codec: required"},
		{"codec without a name", `{"stat_prefix": "t", "protocol": {"name": "d", "codec": {}}, "route_config": {}}`, "protocol.codec.name: required"},
		{"no routes", base(``), "route_config: required"},
		{"router in the middle", base(`, "route_config": {}, "meta_protocol_filters": [{"name": "aeraki.meta_protocol.filters.router"}, {"name": "f"}]`), "meta_protocol_filters[1]: comes after the router"},
		{"limit out of range", base(`, "route_config": {}, "upstream": {"max_connections": 0}`), "upstream.max_connections: must be between 1 and 1024, is 0"},
		{"minimum above maximum", base(`, "route_config": {}, "upstream": {"max_connections": 2, "min_connections": 3}`), "upstream.min_connections: must be between 1 and 2, is 3"},
		{"access log", base(`, "route_config": {}, "access_log": [{}]`), "access_log[0].typed_config: required"},
		{"tracing", base(`, "route_config": {}, "tracing": {}`), "tracing.provider.typed_config: required"},
		{"tracing: share above the whole", tracing(`"random_sampling": {"value": 100.5},`), "tracing.random_sampling.value: must be between 0 and 100, is 100.5"},
		{"tracing: share below 0", tracing(`"client_sampling": {"value": -1},`), "tracing.client_sampling.value: must be between 0 and 100, is -1"},
		{"tracing: share that is no number", tracing(`"overall_sampling": {"value": "NaN"},`), "tracing.overall_sampling.value: must be between 0 and 100, is NaN"},
		{"tracing: share below the smallest", tracing(`"overall_sampling": {"value": 0.001},`), "tracing.overall_sampling.value: the smallest share is 0.01, is 0.001"},
		{"tracing: length of tags", tracing(`"max_tag_length": 0,`), "tracing.max_tag_length: must be between 1 and 65536, is 0"},
		{"tracing: tag without a name", tracing(`"custom_tags": [{"literal": {"value": "v"}}],`), "tracing.custom_tags[0].tag: required"},
		{"tracing: tag twice", tracing(`"custom_tags": [{"tag": "a", "literal": {"value": "v"}}, {"tag": "a", "literal": {"value": "v"}}],`), "tracing.custom_tags[1].tag: \"a\" is there twice"},
		{"tracing: tag without a value", tracing(`"custom_tags": [{"tag": "a"}],`), "tracing.custom_tags[0]: want literal, environment, request_header or metadata"},
		{"tracing: tag of an empty literal", tracing(`"custom_tags": [{"tag": "a", "literal": {}}],`), "tracing.custom_tags[0].literal.value: required"},
		{"tracing: tag of a format", tracing(`"custom_tags": [{"tag": "a", "value": "%REQ(x)%"}],`), "tracing.custom_tags[0].value: not supported"},
		{"tracing: tag of no header", tracing(`"custom_tags": [{"tag": "a", "request_header": {}}],`), "tracing.custom_tags[0].request_header.name: required"},
		{"tracing: tag of no variable", tracing(`"custom_tags": [{"tag": "a", "environment": {}}],`), "tracing.custom_tags[0].environment.name: required"},
		{"tracing: tag of a cluster's metadata", tracing(`"custom_tags": [{"tag": "a", "metadata": {"kind": {"cluster": {}}, "metadata_key": {"key": "x", "path": [{"key": "y"}]}}}],`), "tracing.custom_tags[0].metadata.kind: only request is supported"},
		{"tracing: tag of a deep path", tracing(`"custom_tags": [{"tag": "a", "metadata": {"metadata_key": {"key": "x", "path": [{"key": "y"}, {"key": "z"}]}}}],`), "tracing.custom_tags[0].metadata.metadata_key.path: want one key, are 2"},
		{"nested too deeply", `{"stat_prefix": ` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, "nested too deeply"},
		{"unknown protobuf field", string(protowire.AppendVarint(protowire.AppendTag(marshal(t, fromJSON(t, good)), 99, protowire.VarintType), 1)), "#99: unknown field of"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Load([]byte(tc.cfg))
			require.ErrorContains(t, err, tc.want)
			var ce *Error
			require.ErrorAs(t, err, &ce)
		})
	}
}

// TestRefusingIsLinear: what is wrong with a configuration costs in proportion to
// it, also where each of many values has a long path. Bytes are counted instead
// of time.
func TestRefusingIsLinear(t *testing.T) {
	key := func(n int) string { return strings.Repeat("k", n) }
	for name, cfg := range map[string]func(n int) string{
		"a list under a long key": func(n int) string { return `{"` + key(n) + `":[` + strings.Repeat("0,", n) + `0]}` },
		"fields under a long key": func(n int) string { return `{"` + key(n) + `":{` + distinct(n/4) + `}}` },
		"unknown fields":          func(n int) string { return `{` + distinct(n/2) + `}` },
		"lists in lists": func(n int) string {
			return `{"` + key(n) + `":` + strings.Repeat("[", 90) + strings.Repeat("0,", n) + "0" + strings.Repeat("]", 90) + `}`
		},
		"bad elements": func(n int) string { return `{"route_config":{"routes":[` + strings.Repeat("0,", n) + `0]}}` },
		"types within types": func(n int) string {
			return strings.Repeat(`{"type_url":"`+typeURL+`","value":`, 45) + `{"` + key(n) + `":0}` + strings.Repeat("}", 45)
		},
		"a serialization": func(n int) string { return serialized(t, key(n), n) },
	} {
		t.Run(name, func(t *testing.T) {
			allocated := func(n int) (bytes, size float64) {
				raw := []byte(cfg(n))
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, err := Load(raw)
				runtime.ReadMemStats(&after)
				require.Error(t, err)
				return float64(after.TotalAlloc - before.TotalAlloc), float64(len(raw))
			}
			less, small := allocated(5_000)
			more, large := allocated(40_000)
			require.Less(t, more/large, 3*less/small+1000, "bytes for each byte of the configuration")
		})
	}
}

func distinct(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"f%d":0`, i)
	}
	return b.String()
}

// serialized is a TypedStruct with an unknown field behind a long list under a
// long key.
func serialized(t *testing.T, key string, n int) string {
	list := &structpb.ListValue{}
	for range n {
		list.Values = append(list.Values, structpb.NewNumberValue(0))
	}
	last := structpb.NewNumberValue(0)
	last.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	list.Values = append(list.Values, last)
	return string(marshal(t, &xdsv3.TypedStruct{TypeUrl: typeURL, Value: &structpb.Struct{
		Fields: map[string]*structpb.Value{key: structpb.NewListValue(list)},
	}}))
}

// FuzzLoad never panics, and what it accepts it accepts again.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(good))                                  // JSON
	f.Add(marshal(f, fromJSON(f, good)))                 // a serialization
	f.Add([]byte(`{"stat_prefix": [[[[[[[[[[`))          // nesting
	f.Add([]byte(`{"type_url": "a/b", "value": {}}`))    // a TypedStruct
	f.Add([]byte("\x0a\x05a/b/c\x12\x00"))               // a serialized TypedStruct
	f.Add([]byte(`{"stat_prefix": "\ud800", "rds": 1}`)) // half a surrogate
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Parse(raw)
		if err != nil {
			return
		}
		b, err := proto.Marshal(m)
		require.NoError(t, err)
		if len(b) == 0 {
			return
		}
		if p, err := Load(raw); err == nil {
			again, err := Load(b)
			require.NoError(t, err)
			requireSame(t, p, again)
		}
	})
}

// requireSame compares all of two configurations, and leaves them without their
// messages.
func requireSame(t *testing.T, want, got *Proxy) {
	t.Helper()
	require.True(t, proto.Equal(want.RouteConfig, got.RouteConfig), "%v\n%v", want.RouteConfig, got.RouteConfig)
	want.RouteConfig, got.RouteConfig = nil, nil
	same := func(want, got *Extension) {
		require.True(t, proto.Equal(want.Config, got.Config), "%v\n%v", want.Config, got.Config)
		want.Config, got.Config = nil, nil
	}
	require.Len(t, got.Codecs, len(want.Codecs))
	for i := range want.Codecs {
		same(&want.Codecs[i], &got.Codecs[i])
	}
	require.Len(t, got.Filters, len(want.Filters))
	for i := range want.Filters {
		w, g := &want.Filters[i], &got.Filters[i]
		same(&w.Extension, &g.Extension)
		require.True(t, proto.Equal(w.Match, g.Match), "%v\n%v", w.Match, g.Match)
		w.Match, g.Match = nil, nil
	}
	require.Equal(t, want, got)
}

func TestALoadBalancersConfiguration(t *testing.T) {
	require.NoError(t, LoadHosts("hosts", nil))
	require.NoError(t, LoadHosts("hosts", []byte(" {}\n")))
	require.EqualError(t, LoadHosts("host", nil), `lb_policy_name: unknown: want hosts`)
	require.EqualError(t, LoadHosts("hosts", []byte(`{"a": 1}`)), `lb_policy_config: must be empty`)
}
