package envoyfilter

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/input"
	"github.com/meltemi-mesh/meltemi/control/ir"
	_ "github.com/meltemi-mesh/meltemi/filters"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func load(t *testing.T, text string) *ir.Service {
	t.Helper()
	s, _, errs := input.Load([]byte(text))
	require.Empty(t, errs)
	return s
}

func filters(t *testing.T, text string) []*Filter {
	t.Helper()
	fs, faults := Generate(load(t, text))
	require.Empty(t, faults)
	return fs
}

func generate(t *testing.T, text string) string {
	t.Helper()
	b, err := YAML(filters(t, text))
	require.NoError(t, err)
	return string(b)
}

// inputs are the descriptions of testdata. Every file there is one of them, or
// what comes of one: a golden file whose input has gone tests nothing.
func inputs(t *testing.T) (inputs []string) {
	t.Helper()
	files, err := filepath.Glob("testdata/*")
	require.NoError(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, ".in.yaml") {
			inputs = append(inputs, file)
			continue
		}
		name, ok := strings.CutSuffix(file, ".out.yaml")
		require.True(t, ok, "no test reads %s", file)
		require.FileExists(t, name+".in.yaml", "%s is stale", file)
	}
	require.NotEmpty(t, inputs)
	return inputs
}

// TestNothingIsLostByItsName: kubectl would let the second of two EnvoyFilters
// of one name replace the first.
func TestNothingIsLostByItsName(t *testing.T) {
	for _, in := range inputs(t) {
		text, err := os.ReadFile(in)
		require.NoError(t, err)
		seen := map[string]bool{}
		for _, f := range filters(t, string(text)) {
			name := f.Namespace + "/" + f.Name
			require.False(t, seen[name], "%s: %s", in, name)
			seen[name] = true
		}
		require.NotEmpty(t, seen, in)
	}
}

// TestServicesShareTheLoopbackListener: whichever comes last, what is applied
// is the same, and every other filter is a service's own.
func TestServicesShareTheLoopbackListener(t *testing.T) {
	own := map[string]bool{}
	loopbacks := map[string]string{}
	for _, host := range []string{"a", "b", "c"} {
		for _, f := range filters(t, "host: "+host+".demo.svc.cluster.local\naddresses: [10.0.0.1]\nserver: {selector: {app: "+host+"}}\n"+ports) {
			if f.Labels["app.kubernetes.io/component"] != "loopback" {
				require.False(t, own[f.Name], f.Name)
				own[f.Name] = true
				continue
			}
			doc, err := YAML([]*Filter{f})
			require.NoError(t, err)
			if first, ok := loopbacks[f.Name]; ok {
				require.Equal(t, first, string(doc))
			}
			loopbacks[f.Name] = string(doc)
		}
	}
	require.Len(t, own, 6)
	require.ElementsMatch(t, []string{"meltemi-loopback", "meltemi-loopback-golang"}, slices.Collect(maps.Keys(loopbacks)))
}

// TestGenerate: what comes of each testdata/*.in.yaml is its .out.yaml, every
// time. Istio's own validation of these is a test of e2e/istio.
func TestGenerate(t *testing.T) {
	for _, in := range inputs(t) {
		t.Run(filepath.Base(in), func(t *testing.T) {
			text, err := os.ReadFile(in)
			require.NoError(t, err)
			got := generate(t, string(text))
			golden := strings.TrimSuffix(in, ".in.yaml") + ".out.yaml"
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
			for range 5 {
				require.Equal(t, got, generate(t, string(text)), "not the same every time")
			}
		})
	}
}

const (
	host  = "host: a.b.svc.cluster.local\n"
	ports = "ports: [{port: 1, protocol: dubbo}]\n"
	vip   = "addresses: [10.0.0.1]\n"
	// oneForm has each patch come once.
	oneForm = "golang: {proxyVersion: none}\n"
)

// TestRefused: of what the filter's loader would refuse the fields of the
// description are told that it comes from.
func TestRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want string // of the errors, one a line
	}{
		"an unknown codec":     {host + vip + "ports:\n- port: 1\n  protocol: dubo\n", "5: ports[0].protocol: unknown codec \"aeraki.meta_protocol.codec.dubo\" (built in: aeraki.meta_protocol.codec.brpc, aeraki.meta_protocol.codec.dubbo, aeraki.meta_protocol.codec.thrift, aeraki.meta_protocol.codec.trpc)"},
		"an unknown default":   {host + vip + "protocol: x.y\nports:\n- port: 1\n", "3: protocol: unknown codec \"x.y\" (built in: aeraki.meta_protocol.codec.brpc, aeraki.meta_protocol.codec.dubbo, aeraki.meta_protocol.codec.thrift, aeraki.meta_protocol.codec.trpc)"},
		"TPROXY and sharing":   {host + vip + ports + "server:\n  selector: {a: b}\n  preserveSource: true\n", "6: server.preserveSource: needs connections of which each serves one client (inbound: {protocol: {connection_mode: EXCLUSIVE}}), and those to port 1 are shared: the workload sees the proxy's address, as it does in Istio under REDIRECT"},
		"what is generated":    {host + vip + ports + "outbound:\n  stat_prefix: x\n  protocol: {name: y}\n", "5: outbound.stat_prefix: is generated\n6: outbound.protocol.name: is generated"},
		"an impossible option": {host + vip + ports + "outbound:\n  idle_timeout: 1s\n  request_timeout: -1s\n", "6: outbound.request_timeout: must be at least 1ms, is -1s"},
		"an unknown option":    {host + vip + ports + "inbound: {requestTimeout: 1s, x: 1}\nserver: {selector: {a: b}}\n", "4: inbound.x: unknown field"},
		"routes": {
			host + vip + ports + "routes:\n- match: {metadata: [{name: x, string_match: {safe_regex: {regex: '('}}}]}\n",
			"5: routes[0].match.metadata[0].string_match.safe_regex.regex: error parsing regexp: missing closing ): `(`",
		},
		"routes of a port": {
			host + vip + "ports:\n- port: 1\n  protocol: dubbo\n  routes:\n  - name: a\n  - name: b\n    route:\n      weighted_clusters:\n        clusters:\n        - {subset: v1}\n",
			"12: ports[0].routes[1].route.weighted_clusters.clusters[0].weight: required",
		},
		"authorization and filters": {
			host + vip + ports + "server: {selector: {a: b}}\nauthorization:\n- rules: [{}]\ninbound:\n  meta_protocol_filters:\n  - {name: aeraki.meta_protocol.filters.router, config: {}}\n  - name: x\n",
			"9: inbound.meta_protocol_filters[0].config.@type: missing",
		},
		"telemetry": {
			host + vip + ports + "server: {selector: {a: b}}\noutbound: {tracing: {x: 1}}\ntelemetry:\n  metrics:\n    otlp: {interval: 0.001s, grpc_service: {envoy_grpc: {cluster_name: c}}}\n  tracing:\n    overall_sampling: {value: 101}\n  accessLog:\n  - name: l\n",
			"5: outbound.tracing.x: unknown field\n8: telemetry.metrics.otlp.interval: must be at least 1s, is 1ms\n" +
				"9: telemetry.tracing.provider.typed_config: required\n10: telemetry.tracing.overall_sampling.value: must be between 0 and 100, is 101\n12: telemetry.accessLog[0].typed_config: required",
		},
		"a collector that is none": {
			host + vip + ports + "telemetry:\n  metrics: {otlp: {intervall: 1s}}\n",
			"5: telemetry.metrics: unknown field \"intervall\"",
		},
		"a mutation": {
			host + vip + ports + "routes:\n- request_mutation:\n  - {key: path, value: x}\n",
			"6: routes[0].request_mutation[0].key: \"path\" belongs to the call itself and cannot be changed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, places, errs := input.Load([]byte(tc.text))
			require.Empty(t, errs)
			_, faults := Generate(s)
			errs = places.Locate(faults)
			require.Equal(t, tc.want, errs.Error())
		})
	}
}

func TestWhatPodsNeed(t *testing.T) {
	patch, err := PodPatch(nil)
	require.NoError(t, err)
	require.Equal(t, `spec:
  template:
    metadata:
      annotations:
        prometheus.istio.io/scrape-targets: 15880:/metrics
        proxy.istio.io/config: |
          proxyMetadata:
            ISTIO_META_MELTEMI: "true"
            MELTEMI_PROCESS: '{\"admin_address\":\"127.0.0.1:15880\",\"path\":\"/etc/istio/proxy/meltemi.sock\"}'
          proxyStatsMatcher:
            inclusionPrefixes:
              - meta_protocol
`, string(patch))
	patch, err = PodPatch(load(t, host+vip+ports+"proxyMetadata: {X: y}\n"))
	require.NoError(t, err)
	require.Contains(t, string(patch), "ISTIO_META_X: \"y\"\n")
	patch, err = PodPatch(load(t, host+vip+ports+oneForm))
	require.NoError(t, err)
	require.NotContains(t, string(patch), "MELTEMI_PROCESS")
	for admin, want := range map[string]string{"'[::]:9000'": " 9000:/metrics\n", "unix:/run/admin": "", "none": ""} {
		patch, err = PodPatch(load(t, host+vip+ports+"adminAddress: "+admin+"\n"))
		require.NoError(t, err)
		if want == "" {
			require.NotContains(t, string(patch), "scrape-targets")
		} else {
			require.Contains(t, string(patch), "scrape-targets:"+want)
		}
	}
}

// TestKindsOfProxies: those of one namespace that are told by other signs have a
// loopback listener of their own, whichever service brings it, and so have those with
// another form of the filter. That a service has no use for one of the forms changes
// nothing of the other's: two for one proxy would be refused.
func TestKindsOfProxies(t *testing.T) {
	loopbacks := func(text string) (names []string) {
		for _, f := range filters(t, text) {
			if f.Labels["app.kubernetes.io/component"] == "loopback" {
				names = append(names, f.Name)
			}
		}
		return names
	}
	names := map[string]bool{}
	for _, other := range []string{"", "proxyMetadata: {MELTEMI: v2}\n", "proxyMetadata: {MELTEMI: v3}\n", "proxyMetadata: {A: b, MELTEMI: v2}\n", "proxyVersion: ^vendor\ngolang: {proxyVersion: ^older-vendor}\n"} {
		of := loopbacks(host + vip + ports + other)
		require.Len(t, of, 2, other)
		require.Equal(t, of, loopbacks("host: c.b.svc.cluster.local\n"+vip+ports+other), "the same for all services")
		for _, name := range of {
			require.False(t, names[name], other)
			names[name] = true
		}
	}
	require.Contains(t, names, "meltemi-loopback")
	require.Equal(t, []string{"meltemi-loopback"}, loopbacks(host+vip+ports+oneForm))
	require.Equal(t, []string{"meltemi-loopback-golang"}, loopbacks(host+vip+ports+"proxyVersion: none\n"))
}

// TestEachProxyGetsOneForm: by its version, and of each form all.
func TestEachProxyGetsOneForm(t *testing.T) {
	text, err := os.ReadFile("testdata/both-forms.in.yaml")
	require.NoError(t, err)
	count := map[string]map[string]int{} // what is patched, by versions
	for _, f := range filters(t, string(text)) {
		for _, p := range f.Spec.ConfigPatches {
			v := p.Match.Proxy.ProxyVersion
			if count[v] == nil {
				count[v] = map[string]int{}
			}
			count[v][p.ApplyTo.String()+" "+p.Patch.Operation.String()]++
			typed, err := protojson.Marshal(p.Patch)
			require.NoError(t, err)
			require.Equal(t, v == ir.DefaultProxyVersion && strings.Contains(string(typed), moduleType), strings.Contains(string(typed), moduleType))
			require.Equal(t, v == ir.DefaultGolangVersion && strings.Contains(string(typed), golangType), strings.Contains(string(typed), golangType))
		}
	}
	require.Len(t, count, 2)
	require.Equal(t, count[ir.DefaultProxyVersion], count[ir.DefaultGolangVersion])
	require.NotEmpty(t, count[ir.DefaultGolangVersion])
}

// TestRangesAreNotCutIntoEqualOnes: Envoy would refuse the listener, which other
// services share.
func TestRangesAreNotCutIntoEqualOnes(t *testing.T) {
	got := generate(t, host+ports+oneForm+"addresses: [10.1.1.0/31, 10.1.1.1/32, 10.1.1.0/30, 10.1.1.2/31]\n")
	for _, address := range []string{"10.1.1.0", "10.1.1.1", "10.1.1.2", "10.1.1.3"} {
		one := regexp.MustCompile("address_prefix: " + regexp.QuoteMeta(address) + "\n *prefix_len: 32\n")
		require.Len(t, one.FindAllString(got, -1), 1, address)
	}
}

// TestARangeOfOneAddressIsAnAddressToo: Istio names the listener of a ServiceEntry
// that has one by the address, and those without share theirs.
func TestARangeOfOneAddressIsAnAddressToo(t *testing.T) {
	got := generate(t, host+ports+"addresses: [10.1.1.1/32, '2001:DB8::1/128']\n")
	for _, name := range []string{"10.1.1.1_1", "2001:db8::1_1", "0.0.0.0_1"} {
		require.Regexp(t, "name: \"?"+regexp.QuoteMeta(name)+"\"?\n", got)
	}
}

// TestWhatAListenerCanBeFoundBy: the endpoints of a headless service have
// listeners that differ from others at its port by their names alone, see
// DESIGN.md. When Istio can match by something else the filter can leave those
// others alone.
func TestWhatAListenerCanBeFoundBy(t *testing.T) {
	for _, tc := range []struct {
		match proto.Message
		known []string
	}{
		{&networking.EnvoyFilter_ListenerMatch{}, []string{"filter_chain", "listener_filter", "name", "port_name", "port_number"}},
		{&networking.EnvoyFilter_ListenerMatch_FilterChainMatch{}, []string{"application_protocols", "destination_port", "filter", "name", "sni", "transport_protocol"}},
		{&networking.EnvoyFilter_ListenerMatch_FilterMatch{}, []string{"name", "sub_filter"}},
		{&networking.EnvoyFilter_ProxyMatch{}, []string{"metadata", "proxy_version"}},
	} {
		var got []string
		fields := tc.match.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			got = append(got, string(fields.Get(i).Name()))
		}
		require.ElementsMatch(t, tc.known, got)
	}
}

// TestAServiceNeedsNoFile: one that is made in Go has the same EnvoyFilters as the
// one that is written, its faults have its paths, and it stays as it is.
func TestAServiceNeedsNoFile(t *testing.T) {
	described := func() *ir.Service {
		return &ir.Service{
			Host:      "greeter.demo.svc.cluster.local",
			Addresses: []string{"10.96.0.50"},
			Ports: []ir.Port{{Port: 20880, Protocol: []string{"dubbo"}, Routes: []ir.Object{
				{"route": ir.Object{"cluster": ir.Destination{Subset: "v2"}}, "match": ir.Object{"metadata": []any{
					ir.Object{"name": "uid", "range_match": ir.Object{"start": int64(1 << 60), "end": int64(1<<60 + 1)}},
				}}},
				{"route": ir.Object{"weighted_clusters": ir.Object{"clusters": []any{
					ir.Object{"name": ir.Destination{Host: "spare.demo.svc.cluster.local", Port: 1}, "weight": int64(1)},
					ir.Object{"weight": int64(2)},
				}}}},
			}}},
			Server:  &ir.Server{Selector: map[string]string{"app": "greeter"}},
			Inbound: ir.Object{"limits": ir.Object{"max_streams": int64(7)}},
		}
	}
	const written = `
host: greeter.demo.svc.cluster.local
addresses: [10.96.0.50]
ports: [{port: 20880, protocol: dubbo}]
routes:
- match: {metadata: [{name: uid, range_match: {start: 1152921504606846976, end: 1152921504606846977}}]}
  route: {subset: v2}
- route: {weighted_clusters: {clusters: [{host: spare.demo.svc.cluster.local, port: 1, weight: 1}, {weight: 2}]}}
server: {selector: {app: greeter}}
inbound: {limits: {max_streams: 7}}
`
	s, same := described(), described()
	require.Empty(t, s.Complete())
	require.Empty(t, same.Complete())
	fs, faults := Generate(s)
	require.Empty(t, faults)
	require.Equal(t, same, s)
	got, err := YAML(fs)
	require.NoError(t, err)
	require.Equal(t, generate(t, written), string(got))

	s.Ports[0].Routes[0]["match"].(ir.Object)["metadata"].([]any)[0].(ir.Object)["range_match"] = ir.Object{"start": int64(1), "end": int64(1)}
	s.Inbound["x"] = true
	fs, faults = Generate(s)
	require.Empty(t, fs)
	require.Equal(t, fault.List{
		{Path: "ports[0].routes[0].match.metadata[0].range_match", Reason: "start 1 must be less than end 1"},
		{Path: "inbound.x", Reason: "unknown field"},
	}, faults)
}
