package envoyfilter

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	_ "github.com/meltemi-mesh/meltemi/filter/router"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func generate(text string) (string, error) {
	s, err := Load([]byte(text))
	if err != nil {
		return "", err
	}
	filters, err := s.Generate()
	if err != nil {
		return "", err
	}
	b, err := YAML(filters)
	return string(b), err
}

func filters(t *testing.T, text string) []*Filter {
	t.Helper()
	s, err := Load([]byte(text))
	require.NoError(t, err)
	fs, err := s.Generate()
	require.NoError(t, err)
	return fs
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
	var loopback string
	for _, host := range []string{"a", "b", "c"} {
		for _, f := range filters(t, "host: "+host+".demo.svc.cluster.local\naddresses: [10.0.0.1]\nserver: {selector: {app: "+host+"}}\n"+ports) {
			if f.Name != "meltemi-loopback" {
				require.False(t, own[f.Name], f.Name)
				own[f.Name] = true
				continue
			}
			doc, err := YAML([]*Filter{f})
			require.NoError(t, err)
			if loopback == "" {
				loopback = string(doc)
			}
			require.Equal(t, loopback, string(doc))
		}
	}
	require.Len(t, own, 6)
	require.NotEmpty(t, loopback)
}

// TestGenerate: what comes of each testdata/*.in.yaml is its .out.yaml, every
// time. Istio's own validation of these is a test of e2e/istio.
func TestGenerate(t *testing.T) {
	for _, in := range inputs(t) {
		t.Run(filepath.Base(in), func(t *testing.T) {
			text, err := os.ReadFile(in)
			require.NoError(t, err)
			got, err := generate(string(text))
			require.NoError(t, err)
			golden := strings.TrimSuffix(in, ".in.yaml") + ".out.yaml"
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
			for range 5 {
				again, err := generate(string(text))
				require.NoError(t, err)
				require.Equal(t, got, again, "not the same every time")
			}
		})
	}
}

const (
	host  = "host: a.b.svc.cluster.local\n"
	ports = "ports: [{port: 1, protocol: dubbo}]\n"
	vip   = "addresses: [10.0.0.1]\n"
)

const (
	shared = "the listener of services without an address is shared with others, and with what is passed through: " +
		"name the addresses to which clients connect, such as 10.1.1.1/32 or 10.1.0.0/16, or give the service one"
	sni = "required: those by which TLS connections to the service are told from others at this port, or [] if it leads to this service alone"
)

func TestRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want string // of the errors, one a line
	}{
		"no YAML":        {"host: [", "1: did not find expected node content"},
		"nothing":        {"", "want one document, there are 0"},
		"two documents":  {"a: 1\n---\nb: 1\n", "want one document, there are 2"},
		"no object":      {"- a\n", "1: want an object"},
		"unknown fields": {host + "hosts: []\nports:\n- prot: 1\n", "2: hosts: unknown field; there are: host, name, namespace, addresses, headless, ports, protocol, routes, server, clients, gateways, outbound, inbound, delivery, initialFetchTimeout, proxyMetadata, proxyVersion, module, socket\n4: ports[0].prot: unknown field; there are: port, targetPort, protocol, codec, routes"},
		"wrong kinds":    {"host: 1\nheadless: maybe\nports:\n- port: http\naddresses: {}\n", "1: host: want a string\n2: headless: want true or false\n4: ports[0].port: want a number\n5: addresses: want a list"},
		"given twice":    {host + host, "2: host: given twice"},
		"everything is missing": {
			"name: x\n",
			"1: host: required\n1: addresses: required, unless the service is headless\n1: ports: required\n1: clients[0].namespace: required",
		},
		"a short host":           {"host: greeter\nnamespace: x\n" + vip + ports, "1: host: want the full name of one service, such as greeter.demo.svc.cluster.local"},
		"a wildcard":             {"host: '*.b.svc.cluster.local'\nnamespace: b\n" + vip + ports, "1: host: want the full name of one service, such as greeter.demo.svc.cluster.local"},
		"a long name":            {"host: a" + strings.Repeat("b", 62) + ".c.svc.cluster.local\n" + vip + ports, "1: name: required, because that of the host has more than 63 bytes"},
		"no namespace":           {"host: rates.example.com\n" + vip + ports, "1: namespace: required\n1: clients[0].namespace: required"},
		"no addresses":           {host + ports, "1: addresses: required, unless the service is headless"},
		"headless with some":     {host + vip + "headless: true\n" + ports, "2: addresses: a headless service has none"},
		"addresses that are not": {host + ports + "addresses:\n- x\n- 10.0.0.1\n- 10.0.0.1\n", "4: addresses[0]: \"x\" is no IP address and no range\n6: addresses[2]: given twice"},
		"an address of nobody":   {host + ports + "addresses:\n- 0.0.0.0\n- '::'\n- 0.0.0.0/0\n", "4: addresses[0]: " + shared + "\n5: addresses[1]: " + shared + "\n6: addresses[2]: " + shared},
		"no range":               {host + ports + "addresses: [10.1.1.1/24]\n", "3: addresses[0]: is not the first address of its range, which is 10.1.1.0/24"},
		"IPv4 within IPv6":       {host + ports + "addresses: ['::ffff:10.1.0.0/112']\n", "3: addresses[0]: connections to IPv4 addresses are in no range of IPv6: want one of IPv4"},
		"another spelling":       {host + ports + "addresses: ['2001:DB8::1', '2001:db8:0::1']\n", "3: addresses[1]: given twice"},
		"ports out of range":     {host + vip + "ports:\n- {port: 0, protocol: dubbo}\n- {port: 1, targetPort: 65536, protocol: dubbo}\n", "4: ports[0].port: must be between 1 and 65535, is 0\n4: ports[0].targetPort: must be between 1 and 65535, is 0\n5: ports[1].targetPort: must be between 1 and 65535, is 65536"},
		"ports twice":            {host + vip + "protocol: dubbo\nports:\n- port: 1\n- port: 1\n  protocol: thrift\n", "6: ports[1].port: given twice\n6: ports[1].targetPort: ports[0] leads there too, with another protocol"},
		"no protocol":            {host + vip + "ports:\n- port: 1\n", "4: ports[0].protocol: required"},
		"protocol and codec":     {host + vip + "ports:\n- port: 1\n  protocol: dubbo\n  codec: {name: x}\n", "6: ports[0].codec: there is protocol too"},
		"an unknown codec":       {host + vip + "ports:\n- port: 1\n  protocol: dubo\n", "5: ports[0].protocol: unknown codec \"aeraki.meta_protocol.codec.dubo\" (built in: aeraki.meta_protocol.codec.brpc, aeraki.meta_protocol.codec.dubbo, aeraki.meta_protocol.codec.thrift, aeraki.meta_protocol.codec.trpc)"},
		"an unknown default":     {host + vip + "protocol: x.y\nports:\n- port: 1\n", "3: protocol: unknown codec \"x.y\" (built in: aeraki.meta_protocol.codec.brpc, aeraki.meta_protocol.codec.dubbo, aeraki.meta_protocol.codec.thrift, aeraki.meta_protocol.codec.trpc)"},
		"a headless targetPort":  {host + "headless: true\nports: [{port: 1, targetPort: 2, protocol: dubbo}]\n", "3: ports[0].targetPort: clients of a headless service connect to its endpoints at the service's port: it must be the same"},
		"a headless subset":      {host + "headless: true\n" + ports + "routes:\n- route:\n    subset: v1\n", "6: routes[0].route.subset: a headless service has none: its clients have chosen the endpoint. Name the host of one with an address"},
		"labels that are none":   {host + vip + ports + "server: {selector: {'a b': c, d: 'e f'}}\n", "4: server.selector.a b: \"a b\" is no label\n4: server.selector.d: \"e f\" is no label's value"},
		"a server for all":       {host + vip + ports + "server: {}\n", "4: server.selector: required: other workloads of the namespace may listen at the same port"},
		"clients alike":          {host + vip + ports + "clients:\n- {selector: {a: b}}\n- {selector: {a: c}}\n", "6: clients[1].name: another one of namespace b has this name"},
		"a gateway":              {host + vip + ports + "gateways:\n- {port: 1, servicePort: 2}\n", "5: gateways[0].namespace: required\n5: gateways[0].selector: required\n5: gateways[0].sniHosts: " + sni + "\n5: gateways[0].servicePort: the service has no port 2"},
		"a gateway of two ports": {host + vip + "protocol: dubbo\nports: [{port: 1}, {port: 2}]\ngateways:\n- {port: 1, namespace: i, selector: {a: b}, sniHosts: []}\n", "6: gateways[0].servicePort: required, as the service has several ports"},
		"two on one port":        {host + vip + ports + "gateways:\n- &g {port: 1, namespace: i, selector: {a: b}, sniHosts: []}\n- *g\n", "6: gateways[1].name: another one of namespace i has this name"},
		"hosts that are none":    {host + vip + ports + "gateways:\n- {port: 1, namespace: i, selector: {a: b}, sniHosts: ['*', a.b, a.b]}\n", "5: gateways[0].sniHosts[0]: want a host, such as greeter.example.com or *.example.com\n5: gateways[0].sniHosts[2]: given twice"},
		"nobody":                 {host + ports + "clients: []\n", "3: clients: nothing is left to be done: there are no clients, no server and no gateways"},
		"delivery by mail":       {host + vip + ports + "delivery: MAIL\n", "4: delivery: want ECDS or LISTENER"},
		"waiting for ever":       {host + vip + ports + "initialFetchTimeout: 0s\n", "4: initialFetchTimeout: want a duration of at least 1ms, such as 5s"},
		"for all proxies":        {host + vip + ports + "proxyMetadata: {}\n", "4: proxyMetadata: may not be empty: proxies without the shared object would get what they cannot load"},
		"no expression":          {host + vip + ports + "proxyVersion: '('\n", "4: proxyVersion: error parsing regexp: missing closing ): `(`"},
		"a long expression":      {host + vip + ports + "proxyVersion: " + strings.Repeat("1", 1025) + "\n", "4: proxyVersion: may have at most 1024 bytes"},
		"a module's path":        {host + vip + ports + "module: /lib/x.so\nsocket: x\n", "4: module: want a name, not a path\n5: socket: want an abstract socket, such as @meltemi, or an absolute path"},
		"TPROXY and sharing":     {host + vip + ports + "server:\n  selector: {a: b}\n  preserveSource: true\n", "6: server.preserveSource: needs connections of which each serves one client (inbound: {protocol: {connection_mode: EXCLUSIVE}}), and those to port 1 are shared: the workload sees the proxy's address, as it does in Istio under REDIRECT"},
		"what is generated":      {host + vip + ports + "outbound:\n  stat_prefix: x\n  protocol: {name: y}\n", "5: outbound.stat_prefix: is generated\n6: outbound.protocol.name: is generated"},
		"an impossible option":   {host + vip + ports + "outbound:\n  idle_timeout: 1s\n  request_timeout: -1s\n", "6: outbound.request_timeout: must be at least 1ms, is -1s"},
		"an unknown option":      {host + vip + ports + "inbound: {requestTimeout: 1s, x: 1}\nserver: {selector: {a: b}}\n", "4: inbound.x: unknown field"},
		"hosts of two": {
			host + vip + "protocol: dubbo\nports: [{port: 1}, {port: 2}]\ngateways:\n" +
				"- {port: 1, servicePort: 1, namespace: i, selector: {a: b}, sniHosts: [a.b, c.d]}\n" +
				"- {name: x, port: 1, servicePort: 2, namespace: i, selector: {a: b}, sniHosts: [e.f, c.d]}\n" +
				"- {name: y, port: 1, servicePort: 2, namespace: i, selector: {a: c}, sniHosts: [c.d]}\n" +
				"- {name: z, port: 1, servicePort: 2, namespace: i, selector: {a: c}, sniHosts: []}\n",
			"7: gateways[1].sniHosts: gateways[0] has the same connections\n9: gateways[3].sniHosts: gateways[2] has the same connections",
		},
		"routes": {
			host + vip + ports + "routes:\n- match: {metadata: [{name: x, string_match: {safe_regex: {regex: '('}}}]}\n",
			"5: routes[0].match.metadata[0].string_match.safe_regex.regex: error parsing regexp: missing closing ): `(`",
		},
		"routes of a port": {
			host + vip + "ports:\n- port: 1\n  protocol: dubbo\n  routes:\n  - name: a\n  - name: b\n    route:\n      weighted_clusters:\n        clusters:\n        - {subset: v1}\n",
			"12: ports[0].routes[1].route.weighted_clusters.clusters[0].weight: required",
		},
		"routes to nowhere": {
			host + vip + ports + "routes:\n- route: {cluster: x, subset: v1}\n- route: {host: short}\n- route: {subset: ''}\n- route: {port: 65536}\n- 1\n- route: 1\n",
			"5: routes[0].route.subset: there is cluster too\n6: routes[1].route.host: want the full name of one service, such as greeter.demo.svc.cluster.local\n7: routes[2].route.subset: want the name of a subset\n8: routes[3].route.port: want a port between 1 and 65535\n9: routes[4]: want an object\n10: routes[5].route: want an object",
		},
		"a mutation": {
			host + vip + ports + "routes:\n- request_mutation:\n  - {key: path, value: x}\n",
			"6: routes[0].request_mutation[0].key: \"path\" belongs to the call itself and cannot be changed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := generate(tc.text)
			require.Error(t, err)
			require.Equal(t, tc.want, err.Error())
		})
	}
}

func TestWhatPodsNeed(t *testing.T) {
	patch, err := (*Service)(nil).PodPatch()
	require.NoError(t, err)
	require.Equal(t, `spec:
  template:
    metadata:
      annotations:
        proxy.istio.io/config: |
          proxyMetadata:
            ISTIO_META_MELTEMI: "true"
          proxyStatsMatcher:
            inclusionPrefixes:
              - meta_protocol
`, string(patch))
	s, err := Load([]byte(host + vip + ports + "proxyMetadata: {X: y}\n"))
	require.NoError(t, err)
	patch, err = s.PodPatch()
	require.NoError(t, err)
	require.Contains(t, string(patch), "ISTIO_META_X: \"y\"\n")
}

// TestVersionsOfProxies: those before 1.31 would refuse whole listeners.
func TestVersionsOfProxies(t *testing.T) {
	fits := regexp.MustCompile(defaultVersion).MatchString
	for _, v := range []string{"1.31", "1.31.0", "1.31-dev", "1.31.2-vendor.1", "1.39.1", "1.40.0", "1.99", "1.100.0", "2.0.0", "10.1"} {
		require.True(t, fits(v), v)
	}
	for _, v := range []string{"1.30.9", "1.3", "1.3.1", "1.4.10", "1.29.0-vendor.31", "1.03.1", "0.31", "unknown", "x1.31.0", ""} {
		require.False(t, fits(v), v)
	}
}

// TestKindsOfProxies: those of one namespace that are told by other signs have a
// loopback listener of their own, whichever service brings it.
func TestKindsOfProxies(t *testing.T) {
	names := map[string]bool{}
	for _, other := range []string{"", "proxyMetadata: {MELTEMI: v2}\n", "proxyMetadata: {MELTEMI: v3}\n", "proxyMetadata: {A: b, MELTEMI: v2}\n", "proxyVersion: ^vendor\n"} {
		var name string
		for _, h := range []string{host, "host: c.b.svc.cluster.local\n"} {
			s, err := Load([]byte(h + vip + ports + other))
			require.NoError(t, err)
			filters, err := s.Generate()
			require.NoError(t, err)
			require.Equal(t, "loopback", filters[0].Labels["app.kubernetes.io/component"])
			require.True(t, name == "" || name == filters[0].Name, "the same for all services")
			name = filters[0].Name
		}
		require.False(t, names[name], other)
		names[name] = true
	}
	require.Contains(t, names, "meltemi-loopback")
}

// TestEmptyFieldsAreNone: a name with nothing behind its colon is no field.
func TestEmptyFieldsAreNone(t *testing.T) {
	const server = "server: {selector: {a: b}}\n"
	want, err := generate(host + vip + ports + server)
	require.NoError(t, err)
	for _, empty := range []string{"inbound:\n", "outbound:\n", "outbound: ~\nroutes:\n"} {
		got, err := generate(host + vip + ports + server + empty)
		require.NoError(t, err, empty)
		require.Equal(t, want, got, empty)
	}
	_, err = generate(host + vip + "ports:\n- port: 1\n  codec:\n")
	require.ErrorContains(t, err, "ports[0].protocol: required")
	_, err = generate(host + vip + ports + "outbound: {a: 1, a: 2}\n")
	require.ErrorContains(t, err, "outbound.a: given twice")
}

// TestRangesAreNotCutIntoEqualOnes: Envoy would refuse the listener, which other
// services share.
func TestRangesAreNotCutIntoEqualOnes(t *testing.T) {
	got, err := generate(host + ports + "addresses: [10.1.1.0/31, 10.1.1.1/32, 10.1.1.0/30, 10.1.1.2/31]\n")
	require.NoError(t, err)
	for _, address := range []string{"10.1.1.0", "10.1.1.1", "10.1.1.2", "10.1.1.3"} {
		one := regexp.MustCompile("address_prefix: " + regexp.QuoteMeta(address) + "\n *prefix_len: 32\n")
		require.Len(t, one.FindAllString(got, -1), 1, address)
	}
}

// TestARangeOfOneAddressIsAnAddressToo: Istio names the listener of a ServiceEntry
// that has one by the address, and those without share theirs.
func TestARangeOfOneAddressIsAnAddressToo(t *testing.T) {
	got, err := generate(host + ports + "addresses: [10.1.1.1/32, '2001:DB8::1/128']\n")
	require.NoError(t, err)
	for _, name := range []string{"10.1.1.1_1", "2001:db8::1_1", "0.0.0.0_1"} {
		require.Regexp(t, "name: \"?"+regexp.QuoteMeta(name)+"\"?\n", got)
	}
}
