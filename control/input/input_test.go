package input

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/control/source"
)

const (
	host  = "host: a.b.svc.cluster.local\n"
	ports = "ports: [{port: 1, protocol: dubbo}]\n"
	vip   = "addresses: [10.0.0.1]\n"
)

const (
	shared = "the listener of services without an address is shared with others, and with what is passed through: " +
		"name the addresses to which clients connect, such as 10.1.1.1/32 or 10.1.0.0/16, or give the service one"
	older = "proxies before Istio 1.31 do not know it, and would let pass what is denied: golang: {proxyVersion: none} leaves them out"
	sni   = "required: those by which TLS connections to the service are told from others at this port, or [] if it leads to this service alone"
)

// TestRefused: what is no description is told, field by field, with its line.
func TestRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want string // of the errors, one a line
	}{
		"no YAML":          {"host: [", "1: did not find expected node content"},
		"nothing":          {"", "want one document, there are 0"},
		"two documents":    {"a: 1\n---\nb: 1\n", "3: want one document, there are 2"},
		"no object":        {"- a\n", "1: want an object"},
		"unknown fields":   {host + "hosts: []\nports:\n- prot: 1\n", "2: hosts: unknown field; there are: host, name, namespace, addresses, headless, ports, observed, protocol, routes, loadBalancer, server, clients, gateways, authorization, telemetry, outbound, inbound, delivery, initialFetchTimeout, proxyMetadata, proxyVersion, golang, module, socket, adminAddress\n4: ports[0].prot: unknown field; there are: port, targetPort, protocol, codec, routes"},
		"wrong kinds":      {"host: 1\nheadless: maybe\nports:\n- port: http\naddresses: {}\n", "1: host: want a string\n2: headless: want true or false\n4: ports[0].port: want a number\n5: addresses: want a list"},
		"no load balancer": {host + vip + ports + "loadBalancer: {}\n", "4: loadBalancer: want simple or consistentHash"},
		"two of them":      {host + vip + ports + "loadBalancer: {simple: ROUND_ROBIN, consistentHash: {useSourceIp: true}}\n", "4: loadBalancer.simple: there is consistentHash too"},
		"one of Envoy's":   {host + vip + ports + "loadBalancer: {simple: RANDOM}\n", "4: loadBalancer.simple: want ROUND_ROBIN or LEAST_REQUEST"},
		"no key": {
			host + vip + ports + "loadBalancer:\n  consistentHash:\n    maglev: {tableSize: 100}\n",
			"5: loadBalancer.consistentHash: want one of metadata, httpHeaderName and useSourceIp: true\n6: loadBalancer.consistentHash.maglev.tableSize: must be a prime up to 5000011, is 100",
		},
		"keys of HTTP": {host + vip + ports + "loadBalancer: {consistentHash: {httpCookie: {}}}\n", "4: loadBalancer.consistentHash.httpCookie: unknown field; there are: metadata, httpHeaderName, useSourceIp, ringHash, maglev"},
		"two tables": {
			host + vip + ports + "loadBalancer:\n  consistentHash: {metadata: a, ringHash: {minimumRingSize: 8388609}, maglev: {}}\n",
			"5: loadBalancer.consistentHash.maglev: there is ringHash too\n5: loadBalancer.consistentHash.ringHash.minimumRingSize: must be between 1 and 8388608, is 8388609",
		},
		"a load balancer and headless": {host + "headless: true\n" + ports + "loadBalancer: {simple: ROUND_ROBIN}\n", "4: loadBalancer: a headless service has none: its clients have chosen the endpoint"},
		"given twice":                  {host + host, "2: host: given twice"},
		"everything is missing": {
			"name: x\n",
			"1: host: required\n1: addresses: required, unless the service is headless\n1: ports: required\n1: clients[0].namespace: required",
		},
		"a short host":                   {"host: greeter\nnamespace: x\n" + vip + ports, "1: host: want the full name of one service, such as greeter.demo.svc.cluster.local"},
		"a wildcard":                     {"host: '*.b.svc.cluster.local'\nnamespace: b\n" + vip + ports, "1: host: want the full name of one service, such as greeter.demo.svc.cluster.local"},
		"a long name":                    {"host: a" + strings.Repeat("b", 62) + ".c.svc.cluster.local\n" + vip + ports, "1: name: required, because that of the host has more than 63 bytes"},
		"no namespace":                   {"host: rates.example.com\n" + vip + ports, "1: namespace: required\n1: clients[0].namespace: required"},
		"no addresses":                   {host + ports, "1: addresses: required, unless the service is headless"},
		"headless with some":             {host + vip + "headless: true\n" + ports, "2: addresses: a headless service has none"},
		"addresses that are not":         {host + ports + "addresses:\n- x\n- 10.0.0.1\n- 10.0.0.1\n", "4: addresses[0]: \"x\" is no IP address and no range\n6: addresses[2]: given twice"},
		"an address of nobody":           {host + ports + "addresses:\n- 0.0.0.0\n- '::'\n- 0.0.0.0/0\n", "4: addresses[0]: " + shared + "\n5: addresses[1]: " + shared + "\n6: addresses[2]: " + shared},
		"no range":                       {host + ports + "addresses: [10.1.1.1/24]\n", "3: addresses[0]: is not the first address of its range, which is 10.1.1.0/24"},
		"IPv4 within IPv6":               {host + ports + "addresses: ['::ffff:10.1.0.0/112']\n", "3: addresses[0]: connections to IPv4 addresses are in no range of IPv6: want one of IPv4"},
		"another spelling":               {host + ports + "addresses: ['2001:DB8::1', '2001:db8:0::1']\n", "3: addresses[1]: given twice"},
		"a key twice":                    {host + vip + ports + "outbound: {a: 1, a: 2}\n", "4: outbound.a: given twice"},
		"an empty codec":                 {host + vip + "ports:\n- port: 1\n  codec:\n", "4: ports[0].protocol: required"},
		"another kind of thing":          {host + vip + "ports:\n- port: 1\n  codec: 5\nroutes: {}\noutbound: []\n", "5: ports[0].codec: want an object\n6: routes: want a list\n7: outbound: want an object"},
		"all at once":                    {"host: x\n" + vip + ports + "namespace: b\nroutes: [{route: {subset: ''}}]\ninbound: {a: {b: 1, b: 2}}\n", "1: host: want the full name of one service, such as greeter.demo.svc.cluster.local\n5: routes[0].route.subset: want the name of a subset\n6: inbound.a.b: given twice"},
		"ports out of range":             {host + vip + "ports:\n- {port: 0, protocol: dubbo}\n- {port: 1, targetPort: 65536, protocol: dubbo}\n", "4: ports[0].port: must be between 1 and 65535, is 0\n4: ports[0].targetPort: must be between 1 and 65535, is 0\n5: ports[1].targetPort: must be between 1 and 65535, is 65536"},
		"authorization without a server": {host + vip + ports + "authorization:\n- {}\n", "4: authorization: needs server: its proxies are those that see to it"},
		"authorization by what is not there": {
			host + ports + vip + "server: {selector: {a: b}}\nauthorization:\n- rules:\n  - to: [{operation: {hosts: [x]}}]\n",
			"7: authorization[0].rules[0].to[0].operation.hosts: unknown field; there are: methods, notMethods, paths, notPaths, ports, notPorts",
		},
		"authorization that cannot be": {
			host + ports + vip + "server: {selector: {a: b}}\nauthorization:\n- name: x\n  action: CUSTOM\n- name: x\n  action: LOG\n- action: AUDIT\n  dryRun: true\n- rules:\n" +
				"  - from:\n    - source: {}\n    - {}\n    - source:\n        principals: ['', 'a*b', '*a*']\n        ipBlocks: [x, '::ffff:10.0.0.0/104']\n" +
				"    to:\n    - operation:\n        methods: [POST]\n        paths: ['/a/{*}']\n        ports: [http, '0']\n    when:\n    - key: request.auth.claims[a]\n      values: [a]\n    - key: source.ip\n    - key: destination.port\n      notValues: ['65536']\n",
			`7: authorization[0].action: CUSTOM is not supported here: put a filter ext_authz into inbound
8: authorization[1].name: given twice
9: authorization[1].action: want ALLOW, DENY or AUDIT
11: authorization[2].dryRun: does not go with AUDIT, which refuses nothing anyway
14: authorization[3].rules[0].from[0].source: says nothing
15: authorization[3].rules[0].from[1].source: says nothing
17: authorization[3].rules[0].from[2].source.principals[0]: must not be empty
17: authorization[3].rules[0].from[2].source.principals[1]: may have one *, at its beginning or its end
17: authorization[3].rules[0].from[2].source.principals[2]: may have one *, at its beginning or its end
17: authorization[3].rules[0].from[2].source.principals: ` + older + `
18: authorization[3].rules[0].from[2].source.ipBlocks[0]: "x" is no IP address and no range
18: authorization[3].rules[0].from[2].source.ipBlocks[1]: connections of IPv4 addresses are in no range of IPv6: want one of IPv4
21: authorization[3].rules[0].to[0].operation.methods[0]: a method is one of the service's here; that of HTTP, which gRPC's calls have, is left out
22: authorization[3].rules[0].to[0].operation.paths[0]: templates are not supported
23: authorization[3].rules[0].to[0].operation.ports[0]: want a port between 1 and 65535
23: authorization[3].rules[0].to[0].operation.ports[1]: want a port between 1 and 65535
25: authorization[3].rules[0].when[0].key: "request.auth.claims[a]" is not supported, want source.principal, source.namespace, source.ip, remote.ip, destination.port, connection.sni or request.headers[NAME]
27: authorization[3].rules[0].when[1]: says nothing
29: authorization[3].rules[0].when[2].notValues[0]: want a port between 1 and 65535`,
		},
		"ports twice":           {host + vip + "protocol: dubbo\nports:\n- port: 1\n- port: 1\n  protocol: thrift\n", "6: ports[1].port: given twice\n6: ports[1].targetPort: ports[0] leads there too, with another protocol"},
		"no protocol":           {host + vip + "ports:\n- port: 1\n", "4: ports[0].protocol: required"},
		"protocol and codec":    {host + vip + "ports:\n- port: 1\n  protocol: dubbo\n  codec: {name: x}\n", "6: ports[0].codec: there is protocol too"},
		"a headless targetPort": {host + "headless: true\nports: [{port: 1, targetPort: 2, protocol: dubbo}]\n", "3: ports[0].targetPort: clients of a headless service connect to its endpoints at the service's port: it must be the same"},
		"a headless subset":     {host + "headless: true\n" + ports + "routes:\n- route:\n    subset: v1\n", "6: routes[0].route.subset: a headless service has none: its clients have chosen the endpoint. Name the host of one with an address"},
		"labels that are none":  {host + vip + ports + "server: {selector: {'a b': c, d: 'e f'}}\n", "4: server.selector.a b: \"a b\" is no label\n4: server.selector.d: \"e f\" is no label's value"},
		"a server for all":      {host + vip + ports + "server: {}\n", "4: server.selector: required: other workloads of the namespace may listen at the same port"},
		"clients alike":         {host + vip + ports + "clients:\n- {selector: {a: b}}\n- {selector: {a: c}}\n", "6: clients[1].name: another one of namespace b has this name"},
		"clients of a range": {
			host + "addresses: [10.1.1.0/24]\n" + ports + "clients:\n- {selector: {a: b}}\n- {selector: {a: c}, name: c}\n- {selector: {d: e}, name: d}\n",
			"7: clients[2]: clients[0] may have the same proxies, and Envoy refuses a listener that has a range of addresses twice\n7: clients[2]: clients[1] may have the same proxies, and Envoy refuses a listener that has a range of addresses twice",
		},
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
		"callers whom older proxies do not know": {
			host + vip + ports + "server: {selector: {a: b}}\nauthorization:\n- action: DENY\n  rules:\n  - from: [{source: {principals: [a]}}, {source: {notNamespaces: [b]}}]\n    when:\n    - {key: connection.sni, values: [c]}\n    - {key: source.ip, values: [10.0.0.1]}\n",
			"8: authorization[0].rules[0].from[0].source.principals: " + older + "\n8: authorization[0].rules[0].from[1].source.notNamespaces: " + older + "\n10: authorization[0].rules[0].when[0].key: " + older,
		},
		"no proxies":            {host + vip + ports + "proxyVersion: none\ngolang: {proxyVersion: none}\n", "5: golang.proxyVersion: nothing is left to be done: proxyVersion is none, too"},
		"proxies with both":     {host + vip + ports + "proxyVersion: ^1\\.30\n", "1: golang.proxyVersion: proxies of Istio 1.30.0 match proxyVersion, too"},
		"expressions of golang": {host + vip + ports + "golang:\n  proxyVersion: '('\n", "5: golang.proxyVersion: error parsing regexp: missing closing ): `(`"},
		"paths of golang":       {host + vip + ports + "golang:\n  libraryPath: lib/x.so\n  socket: '@x'\n", "5: golang.libraryPath: want an absolute path\n6: golang.socket: want an absolute path: who can connect has all clusters of the proxy, and to an abstract socket all of the pod can"},
		"a module's path":       {host + vip + ports + "module: /lib/x.so\nsocket: x\n", "4: module: want a name, not a path\n5: socket: want an abstract socket, such as @meltemi, or an absolute path"},
		"an admin name":         {host + vip + ports + "adminAddress: localhost:1\n", "4: adminAddress: want unix:/PATH, IP:PORT, or none"},
		"a port of Istio's":     {host + vip + ports + "adminAddress: 127.0.0.1:15020\n", "4: adminAddress: the port is Istio's own"},
		"hosts of two": {
			host + vip + "protocol: dubbo\nports: [{port: 1}, {port: 2}]\ngateways:\n" +
				"- {port: 1, servicePort: 1, namespace: i, selector: {a: b}, sniHosts: [a.b, c.d]}\n" +
				"- {name: x, port: 1, servicePort: 2, namespace: i, selector: {a: b}, sniHosts: [e.f, c.d]}\n" +
				"- {name: y, port: 1, servicePort: 2, namespace: i, selector: {a: c}, sniHosts: [c.d]}\n" +
				"- {name: z, port: 1, servicePort: 2, namespace: i, selector: {a: c}, sniHosts: []}\n",
			"7: gateways[1].sniHosts: gateways[0] has the same connections\n9: gateways[3].sniHosts: gateways[2] has the same connections",
		},
		"routes to nowhere": {
			host + vip + ports + "routes:\n- route: {cluster: x, subset: v1}\n- route: {host: short}\n- route: {subset: ''}\n- route: {port: 65536}\n- 1\n- route: 1\n",
			"5: routes[0].route.subset: there is cluster too\n6: routes[1].route.host: want the full name of one service, such as greeter.demo.svc.cluster.local\n7: routes[2].route.subset: want the name of a subset\n8: routes[3].route.port: want a port between 1 and 65535\n9: routes[4]: want an object\n10: routes[5].route: want an object",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, errs := Load([]byte(tc.text))
			require.Equal(t, tc.want, errs.Error())
		})
	}
}

// TestEmptyFieldsAreNone: a name with nothing behind its colon is no field.
func TestEmptyFieldsAreNone(t *testing.T) {
	const server = "server: {selector: {a: b}}\n"
	want, _, errs := Load([]byte(host + vip + ports + server))
	require.Empty(t, errs)
	for _, empty := range []string{"inbound:\n", "outbound:\n", "outbound: ~\nroutes:\n"} {
		got, _, errs := Load([]byte(host + vip + ports + server + empty))
		require.Empty(t, errs, empty)
		require.Equal(t, want, got, empty)
	}
}

// TestWhatIsWritten: every field comes to the service, destinations typed and the
// rest as it is; what ports have of the service they have each.
func TestWhatIsWritten(t *testing.T) {
	s, _, errs := Load([]byte(`
host: a.example.com
name: a
namespace: b
addresses: [10.0.0.1, 10.1.0.0/16]
ports:
- {port: 1, targetPort: 2, protocol: "x , y.z"}
- {port: 3, codec: {name: c}, routes: [{route: {host: d.example.com, subset: s, port: 5}}, {name: only}]}
- {port: 4}
protocol: auto
routes:
- route: {weightedClusters: {clusters: [{subset: v1, weight: 1.5}, {name: outbound|1||d.example.com}]}}
server: {namespace: sn, selector: {k: v}, preserveSource: true}
clients: [{namespace: cn, selector: {k: w}, name: n}]
gateways: [{namespace: gn, selector: {g: g}, name: gg, port: 7, servicePort: 3, sniHosts: ["*.h"]}]
authorization:
- name: n
  action: DENY
  dryRun: true
  rules:
  - from: [{source: {principals: [a], notPrincipals: [b], namespaces: [c], notNamespaces: [d], ipBlocks: [10.0.0.1], notIpBlocks: [10.0.0.2], remoteIpBlocks: [10.0.0.3], notRemoteIpBlocks: [10.0.0.4]}}]
    to: [{operation: {methods: [e], notMethods: [f], paths: [g], notPaths: [h], ports: ["1"], notPorts: ["2"]}}]
    when: [{key: source.namespace, values: [i], notValues: [j]}]
- {}
telemetry: {istioStats: false, metrics: {otlp: {interval: 5s}}, tracing: {verbose: true}, accessLog: [{name: l}]}
outbound: {requestTimeout: 5s}
inbound: {limits: {x: [~, true, -1, 18446744073709551615]}}
delivery: LISTENER
initialFetchTimeout: 1m
proxyMetadata: {M: "1"}
proxyVersion: ^2
golang: {proxyVersion: none, libraryPath: /l.so, socket: /g, connect: false}
module: m
socket: /s
adminAddress: unix:/a
`))
	require.Empty(t, errs)
	routes := []ir.Object{{"route": ir.Object{"weightedClusters": ir.Object{"clusters": []any{
		ir.Object{"name": ir.Destination{Subset: "v1"}, "weight": 1.5}, ir.Object{"name": "outbound|1||d.example.com"},
	}}}}}
	require.Equal(t, &ir.Service{
		Host: "a.example.com", Name: "a", Namespace: "b",
		Addresses: []string{"10.0.0.1", "10.1.0.0/16"},
		Ports: []ir.Port{
			{Port: 1, TargetPort: 2, Protocol: []string{"x", "y.z"}, Routes: routes},
			{Port: 3, TargetPort: 3, Codec: ir.Object{"name": "c"}, Routes: []ir.Object{
				{"route": ir.Object{"cluster": ir.Destination{Host: "d.example.com", Subset: "s", Port: 5}}}, {"name": "only"},
			}},
			{Port: 4, TargetPort: 4, Protocol: []string{"auto"}, Routes: routes},
		},
		Server:   &ir.Server{Namespace: "sn", Selector: map[string]string{"k": "v"}, PreserveSource: true},
		Clients:  []ir.Workloads{{Namespace: "cn", Selector: map[string]string{"k": "w"}, Name: "n"}},
		Gateways: []ir.Gateway{{Namespace: "gn", Selector: map[string]string{"g": "g"}, Name: "gg", Port: 7, ServicePort: 3, SNIHosts: []string{"*.h"}}},
		Authorization: []ir.Authorization{{Name: "n", Action: ir.Deny, DryRun: true, Rules: []ir.AuthorizationRule{{
			From: []ir.Source{{
				Principals: []string{"a"}, NotPrincipals: []string{"b"}, Namespaces: []string{"c"}, NotNamespaces: []string{"d"},
				IPBlocks: []string{"10.0.0.1"}, NotIPBlocks: []string{"10.0.0.2"}, RemoteIPBlocks: []string{"10.0.0.3"}, NotRemoteIPBlocks: []string{"10.0.0.4"},
			}},
			To:   []ir.Operation{{Methods: []string{"e"}, NotMethods: []string{"f"}, Paths: []string{"g"}, NotPaths: []string{"h"}, Ports: []string{"1"}, NotPorts: []string{"2"}}},
			When: []ir.Condition{{Key: "source.namespace", Values: []string{"i"}, NotValues: []string{"j"}}},
		}}}, {Name: "1", Action: ir.Allow}},
		Telemetry: ir.Telemetry{
			NoIstioStats: true, Metrics: ir.Object{"otlp": ir.Object{"interval": "5s"}},
			Tracing: ir.Object{"verbose": true}, AccessLog: []any{ir.Object{"name": "l"}},
		},
		Outbound:            ir.Object{"requestTimeout": "5s"},
		Inbound:             ir.Object{"limits": ir.Object{"x": []any{nil, true, int64(-1), uint64(18446744073709551615)}}},
		Delivery:            ir.Listener,
		InitialFetchTimeout: time.Minute,
		ProxyMetadata:       map[string]string{"M": "1"}, ProxyVersion: "^2",
		Golang: ir.Golang{ProxyVersion: "none", LibraryPath: "/l.so", Socket: "/g", NoConnect: true}, Module: "m", Socket: "/s", Admin: "unix:/a",
	}, s)
}

// TestFaultsAreLocated: at the field, at what is around one that is not written,
// and once at the service's that several ports have.
func TestFaultsAreLocated(t *testing.T) {
	_, places, errs := Load([]byte("host: a.b.svc.cluster.local\naddresses: [10.0.0.1]\nprotocol: dubbo\nports:\n- port: 1\n- port: 2\n  routes:\n  - name: x\n- port: 3\nroutes:\n- name: y\n"))
	require.Empty(t, errs)
	var faults fault.List
	faults.Add("inbound.limits", "not written")
	for _, path := range []string{"ports[0]", "ports[1]", "ports[2]"} {
		faults.Add(path+".routes[0].name", "bad")
		faults.Add(path+".protocol", "bad")
		faults.Add(path+".targetPort", "bad")
	}
	require.Equal(t, `1: inbound.limits: not written
3: protocol: bad
5: ports[0].targetPort: bad
6: ports[1].targetPort: bad
8: ports[1].routes[0].name: bad
9: ports[2].targetPort: bad
11: routes[0].name: bad`, places.Locate(faults).Error())
	require.Equal(t, source.Errors(nil), places.Locate(nil))
}
