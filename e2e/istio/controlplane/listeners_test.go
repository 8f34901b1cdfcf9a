package controlplane

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/pkg/networking/core"
	"istio.io/istio/pkg/config"
)

// TestOnlyTheServicesChainsChange: what istiod makes of the generator's golden
// files, beside other people's services and EnvoyFilters, whichever are newer.
func TestOnlyTheServicesChainsChange(t *testing.T) {
	for _, tc := range []struct {
		golden, mesh string
		version      string // of the proxy
		gateway      bool
		namespace    string // of the proxy, unless it is demo or a gateway's
		port         uint32
		want         []string // listeners, and their chains with their filters
	}{
		{golden: "addressless", mesh: addressless(""), port: 9094, want: []string{
			"0.0.0.0_9094",
			"10.123.16.192/28: tcp_proxy",
			"10.1.1.1/32,10.7.0.0/17,10.7.128.0/17: meltemi-outbound-orders.example.com-9094",
			": tcp_proxy",
		}},
		// Istio has a chain for the same range: it stays, and is not reached.
		{golden: "addressless", mesh: addressless("10.7.0.0/16"), port: 9094, want: []string{
			"0.0.0.0_9094",
			"10.123.16.192/28: tcp_proxy",
			"10.7.0.0/16: tcp_proxy",
			"10.1.1.1/32,10.7.0.0/17,10.7.128.0/17: meltemi-outbound-orders.example.com-9094",
			"PassthroughFilterChain: tcp_proxy",
		}},
		// Somebody's filter stands before ours also in a chain that is ours.
		{golden: "addressless", mesh: addressless("") + limit("0.0.0.0_9094"), port: 9094, want: []string{
			"0.0.0.0_9094",
			"10.123.16.192/28: user.limit tcp_proxy",
			"10.1.1.1/32,10.7.0.0/17,10.7.128.0/17: user.limit meltemi-outbound-orders.example.com-9094",
			": user.limit tcp_proxy",
		}},
		// Each form of the filter in the same places.
		{golden: "both-forms", version: "1.30.0", mesh: service("greeter.demo.svc.cluster.local", "10.96.0.50", 20880) + service("others", "10.3.0.0/16", 20880), port: 20880, want: []string{
			"0.0.0.0_20880",
			"10.3.0.0/16: tcp_proxy",
			"10.97.0.0/32,10.97.0.1/32: meltemi-outbound-greeter.demo-20880",
			"PassthroughFilterChain: tcp_proxy",
			"10.96.0.50_20880",
			": meltemi-outbound-greeter.demo-20880",
		}},
		{golden: "both-forms", version: "1.31.0", mesh: service("greeter.demo.svc.cluster.local", "10.96.0.50", 20880), port: 20880, want: []string{
			"10.96.0.50_20880",
			": meltemi-outbound-greeter.demo-20880",
		}},
		{golden: "both-forms", version: "1.19.0", mesh: service("greeter.demo.svc.cluster.local", "10.96.0.50", 20880), port: 20880, want: []string{
			"10.96.0.50_20880",
			": tcp_proxy",
		}},
		{golden: "gateway-sni", mesh: sni, gateway: true, port: 31400, want: []string{
			"0.0.0.0_31400",
			"greeter.shop.com: meltemi-gateway-greeter.example.com-31400",
			"billing.shop.com: tcp_proxy",
		}},
		{golden: "smallest", mesh: service("greeter.demo.svc.cluster.local", "10.96.0.50", 20880) + limit("10.96.0.50_20880"), port: 20880, want: []string{
			"10.96.0.50_20880",
			": user.limit meltemi-outbound-greeter.demo-20880",
		}},
		// Istio's own filter would count the service's connections as TCP, for which Kiali
		// draws an edge of its own.
		{golden: "smallest", mesh: service("greeter.demo.svc.cluster.local", "10.96.0.50", 20880) + headless("others", "10.9.0.2") + counted, port: 20880, want: []string{
			"10.9.0.2_20880",
			": istio.stats tcp_proxy",
			"10.96.0.50_20880",
			": meltemi-outbound-greeter.demo-20880",
		}},
		{golden: "no-istio-stats", mesh: service("cart.shop.svc.cluster.local", "10.0.0.1", 20880) + counted, port: 20880, namespace: "shop", want: []string{
			"10.0.0.1_20880",
			": istio.stats meltemi-outbound-cart.shop-20880",
		}},
		{golden: "ipv6", mesh: service("six.example.com", `"2001:DB8:0:0::1"`, 9080), port: 9080, want: []string{
			"2001:DB8:0:0::1_9080",
			": meltemi-outbound-six.example.com-9080",
		}},
		{golden: "ipv6", mesh: service("six.example.com", `"2001:db8::1"`, 9080), port: 9080, want: []string{
			"2001:db8::1_9080",
			": meltemi-outbound-six.example.com-9080",
		}},
		// What is passed through at the port of a headless service.
		{golden: "headless", mesh: service("broker.example.com", "10.123.16.192/28", 20880), port: 20880, want: []string{
			"0.0.0.0_20880",
			"10.123.16.192/28: meltemi-outbound-nodes.demo-20880",
			"PassthroughFilterChain: tcp_proxy",
		}},
		// Headless services have a listener for each endpoint, and these differ in
		// nothing but their names, for which a match wants equality.
		{golden: "headless", mesh: headless("nodes", "10.9.0.1") + headless("others", "10.9.0.2"), port: 20880, want: []string{
			"10.9.0.1_20880",
			": meltemi-outbound-nodes.demo-20880",
			"10.9.0.2_20880",
			": meltemi-outbound-nodes.demo-20880",
		}},
		// Where an endpoint's address is known it tells them apart.
		{golden: "smallest", mesh: headless("greeter", "10.96.0.50") + headless("others", "10.9.0.2"), port: 20880, want: []string{
			"10.9.0.2_20880",
			": tcp_proxy",
			"10.96.0.50_20880",
			": meltemi-outbound-greeter.demo-20880",
		}},
	} {
		for _, oursAreNewer := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%t", tc.golden, oursAreNewer), func(t *testing.T) {
				now := time.Unix(1_800_000_000, 0)
				theirs, ours := parse(t, tc.mesh, now), parse(t, read(t, "../../../control/translate/envoyfilter/testdata", tc.golden+".out.yaml"), now.Add(-time.Hour))
				if oursAreNewer {
					ours = parse(t, read(t, "../../../control/translate/envoyfilter/testdata", tc.golden+".out.yaml"), now.Add(time.Hour))
				}
				got := chains(t, append(theirs, ours...), cmp.Or(tc.version, "1.31.0"), tc.gateway, cmp.Or(tc.namespace, "demo"), tc.port)
				if !slices.Equal(got, tc.want) {
					t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
				}
			})
		}
	}
}

func parse(t *testing.T, text string, created time.Time) []config.Config {
	t.Helper()
	all, _, err := crd.ParseInputs(text)
	must(t, err)
	for i := range all {
		all[i].CreationTimestamp = created
	}
	return all
}

// chains are those that a proxy which has the shared object gets for a port, by
// the names of their listeners.
func chains(t *testing.T, all []config.Config, version string, gateway bool, ns string, port uint32) (got []string) {
	t.Helper()
	role := model.SidecarProxy
	if gateway {
		role, ns = model.Router, "istio-system"
	}
	// As in a mesh: the label by which a gateway is found, and the metadata by
	// which a proxy is.
	labels := map[string]string{"istio": "ingressgateway"}
	g := core.NewConfigGenTest(t, core.TestOptions{Configs: all})
	p := g.SetupProxy(&model.Proxy{Type: role, ConfigNamespace: ns, Labels: labels, Metadata: &model.NodeMetadata{
		Namespace: ns, Labels: labels, IstioVersion: version, Raw: map[string]any{"MELTEMI": "true", "NAMESPACE": ns, "ISTIO_VERSION": version},
	}})
	listeners := map[string][]string{}
	for _, l := range g.Listeners(p) {
		if l.GetAddress().GetSocketAddress().GetPortValue() != port {
			continue
		}
		got := []string{l.GetName()}
		for _, fc := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
			if fc == nil {
				continue
			}
			match := fc.GetFilterChainMatch().GetServerNames()
			for _, r := range fc.GetFilterChainMatch().GetPrefixRanges() {
				match = append(match, fmt.Sprintf("%s/%d", r.GetAddressPrefix(), r.GetPrefixLen().GetValue()))
			}
			if len(match) == 0 {
				match = []string{fc.GetName()}
			}
			line := strings.Join(match, ",") + ":"
			for _, f := range fc.GetFilters() {
				line += " " + strings.TrimPrefix(f.GetName(), "envoy.filters.network.")
			}
			got = append(got, line)
		}
		listeners[l.GetName()] = got
	}
	for _, name := range slices.Sorted(maps.Keys(listeners)) {
		got = append(got, listeners[name]...)
	}
	return got
}

func service(host, address string, port int) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[1]s, namespace: demo}
spec:
  hosts: [%[1]s]
  addresses: [%[2]s]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: %[3]d, name: tcp-x, protocol: TCP}]
  endpoints: [{address: 10.1.1.1}]
`, host, address, port)
}

// headless is a service whose clients connect to its endpoint.
func headless(name, endpoint string) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %[1]s, namespace: demo}
spec:
  hosts: [%[1]s.demo.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: NONE
  ports: [{number: 20880, name: tcp-x, protocol: TCP}]
  workloadSelector: {labels: {app: %[1]s}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: %[1]s, namespace: demo}
spec:
  address: %[2]s
  labels: {app: %[1]s}
`, name, endpoint)
}

// addressless is a service whose addresses are those, beside one with a range.
func addressless(addresses string) string {
	return service("broker.example.com", "10.123.16.192/28", 9094) + service("orders.example.com", addresses, 9094)
}

// limit is an EnvoyFilter of somebody else.
func limit(name string) string {
	return `
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: limit, namespace: demo}
spec:
  configPatches:
  - applyTo: NETWORK_FILTER
    match: {context: SIDECAR_OUTBOUND, listener: {name: ` + name + `, filterChain: {filter: {name: envoy.filters.network.tcp_proxy}}}}
    patch: {operation: INSERT_BEFORE, value: {name: user.limit, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: x}}}
`
}

var sni = service("greeter.example.com", "240.240.0.6", 20880) + service("billing.example.com", "240.240.0.7", 20880) + `
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 31400, name: tls, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: [greeter.shop.com, billing.shop.com]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: istio-system}
spec:
  hosts: [greeter.shop.com, billing.shop.com]
  gateways: [gw]
  tls:
  - {match: [{port: 31400, sniHosts: [greeter.shop.com]}], route: [{destination: {host: greeter.example.com, port: {number: 20880}}}]}
  - {match: [{port: 31400, sniHosts: [billing.shop.com]}], route: [{destination: {host: billing.example.com, port: {number: 20880}}}]}
`

// counted is a mesh whose proxies count for Prometheus.
const counted = `---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: istio-system}
spec: {metrics: [{providers: [{name: prometheus}]}]}
`
