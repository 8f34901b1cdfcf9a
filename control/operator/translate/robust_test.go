package translate_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
)

const (
	shop = `apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.0.0.1, selector: {app: orders}, ports: [{name: tcp-metaprotocol-dubbo, port: 20880}]}
`
	onlyWeb = `---
apiVersion: dubbo.aeraki.io/v1alpha1
kind: DubboAuthorizationPolicy
metadata: {name: only-web, namespace: shop}
spec: {rules: [{from: [{source: {namespaces: [web]}}]}]}
`
)

// router is one for orders.shop.
func router(namespace, spec string) string {
	return "---\napiVersion: metaprotocol.aeraki.io/v1alpha1\nkind: MetaRouter\nmetadata: {name: r, namespace: " + namespace + "}\n" +
		"spec: {hosts: [orders.shop.svc.cluster.local], " + spec + "}\n"
}

// translated is what becomes of orders.shop, its EnvoyFilters as text, by their components.
func translated(t *testing.T, text string) (*translate.Output, map[string]string) {
	t.Helper()
	out := translate.Translate(hosts(decode(t, []byte(text)))["orders.shop.svc.cluster.local"])
	filters := map[string]string{}
	for _, f := range out.Filters {
		b, err := envoyfilter.YAML([]*envoyfilter.Filter{f})
		require.NoError(t, err)
		filters[f.Labels[translate.Component]] += string(b)
	}
	return out, filters
}

func reasons(out *translate.Output) (all []string) {
	for _, f := range out.Faults {
		all = append(all, f.Error())
	}
	return all
}

// TestPoliciesHoldWhateverTheCodecIsCalled: by its short name or its long one, with options
// or found out by the bytes of a connection.
func TestPoliciesHoldWhateverTheCodecIsCalled(t *testing.T) {
	const options = `, codecConfig: {"@type": type.googleapis.com/aeraki.meta_protocol.codec.DubboCodec}`
	for _, codec := range []string{
		"dubbo", "dubbo" + options, "aeraki.meta_protocol.codec.dubbo", "aeraki.meta_protocol.codec.dubbo" + options,
		"auto", "aeraki.meta_protocol.codec.auto",
	} {
		protocol := "---\napiVersion: metaprotocol.aeraki.io/v1alpha1\nkind: ApplicationProtocol\nmetadata: {name: own}\nspec: {protocol: own, codec: " + codec + "}\n"
		out, filters := translated(t, strings.Replace(shop, "metaprotocol-dubbo", "metaprotocol-own", 1)+protocol+onlyWeb)
		require.Empty(t, out.Faults, codec)
		require.Contains(t, filters["inbound"], "shop/only-web[0]", codec)
	}
}

// TestServersHeedTheirOwnNamespace: whoever may write MetaRouters somewhere else could let
// all pass that the namespace's own policies refuse.
func TestServersHeedTheirOwnNamespace(t *testing.T) {
	const spec = `trafficPolicy: {timeout: 7s}, authorization: [{name: everybody, rules: [{}]}], inbound: {idle_timeout: 77s},
  localRateLimit: {tokenBucket: {maxTokens: 777, fillInterval: 1s}}`
	for _, namespace := range []string{"shop", "istio-system"} {
		out, filters := translated(t, shop+onlyWeb+router(namespace, spec))
		require.Empty(t, out.Faults)
		for _, of := range []string{"7s", "everybody[0]", "77s", "777"} {
			require.Contains(t, filters["inbound"], of)
		}
	}
	out, filters := translated(t, shop+onlyWeb+router("elsewhere", spec))
	const say = ": is for the proxies of Service shop/orders, of which a MetaRouter of its own namespace or of istio-system says it"
	require.Equal(t, []string{"spec.authorization" + say, "spec.inbound" + say, "spec.localRateLimit" + say}, reasons(out))
	require.True(t, out.Complete, "what is for clients counts")
	require.Contains(t, filters["outbound"], "7s")
	require.Contains(t, filters["inbound"], "shop/only-web[0]")
	for _, of := range []string{"7s", "everybody", "77s", "777"} {
		require.NotContains(t, filters["inbound"], of)
	}
}

// TestLimitsKnowWhoCalls: clients' proxies tell servers' what these ask.
func TestLimitsKnowWhoCalls(t *testing.T) {
	const who, exchange = "match: {sourceLabels: {app: web}}", "filters.metadata_exchange"
	for _, limit := range []string{
		"localRateLimit: {conditions: [{" + who + ", tokenBucket: {maxTokens: 1, fillInterval: 1s}}]}",
		"globalRateLimit: {domain: d, rateLimitService: c, descriptors: [{property: a, descriptorKey: b}], " + who + "}",
	} {
		out, filters := translated(t, shop+router("shop", limit))
		require.Empty(t, out.Faults)
		require.Contains(t, filters["outbound"], exchange)
		inbound := filters["inbound"]
		require.Contains(t, inbound, exchange)
		require.Less(t, strings.Index(inbound, exchange), strings.Index(inbound, "ratelimit"), "it stands before")
	}
}

// TestOwnFieldsStay: what a router has of MetaProtocolProxy's own is not replaced without a
// word by what else it says.
func TestOwnFieldsStay(t *testing.T) {
	const limit = "localRateLimit: {tokenBucket: {maxTokens: 1, fillInterval: 1s}}"
	out, _ := translated(t, shop+router("shop", limit+", inbound: {meta_protocol_filters: {name: x}}"))
	require.Len(t, out.Faults, 1)
	require.Contains(t, out.Faults[0].Path, "meta_protocol_filters")

	const breakers = "trafficPolicy: {circuitBreakers: {maxRequests: 77}}, outbound: {route_config: {clusters: [{name: NAME, circuit_breakers: {max_requests: 66}}]}}"
	out, filters := translated(t, shop+router("shop", strings.Replace(breakers, "NAME", "other", 1)))
	require.Empty(t, out.Faults)
	require.Contains(t, filters["outbound"], "77")
	require.Contains(t, filters["outbound"], "66")
	out, _ = translated(t, shop+router("shop", strings.Replace(breakers, "NAME", `"*"`, 1)))
	require.Equal(t, []string{`spec.trafficPolicy: outbound.route_config.clusters says it of "*", too`}, reasons(out))
}

// TestFiltersEndWithTheRouter: no filters are the router alone, also behind others.
func TestFiltersEndWithTheRouter(t *testing.T) {
	out, filters := translated(t, shop+router("shop", "inbound: {meta_protocol_filters: []}, outbound: {meta_protocol_filters: []}, localRateLimit: {tokenBucket: {maxTokens: 1, fillInterval: 1s}}"))
	require.Empty(t, out.Faults)
	for _, side := range []string{"inbound", "outbound"} {
		require.Contains(t, filters[side], "name: aeraki.meta_protocol.filters.router")
	}
}

// TestDurations: of all that the schema takes.
func TestDurations(t *testing.T) {
	out, filters := translated(t, shop+router("shop", "trafficPolicy: {timeout: 1118ms}"))
	require.Empty(t, out.Faults)
	require.Contains(t, filters["outbound"], "request_timeout: 1.118s")
	out, filters = translated(t, shop+router("shop", "globalRateLimit: {domain: d, rateLimitService: c, requestTimeout: 99999999h, descriptors: [{property: a, descriptorKey: b}]}"))
	require.Empty(t, out.Faults)
	require.Contains(t, filters["inbound"], "timeout: 9223372036.854775807s")
}

// TestNoRetriesAreNoDefault: who wants none does not get those of the host.
func TestNoRetriesAreNoDefault(t *testing.T) {
	const never = `retries: {attempts: 0, retryOn: "reset", backoff: 1s}`
	out, filters := translated(t, shop+router("shop", "trafficPolicy: {retries: {attempts: 3}}, routes: [{route: [{destination: {host: orders}}], "+never+"}]"))
	require.Empty(t, out.Faults)
	require.Regexp(t, `cluster: \S+\n\s+retry_policy:\n\s+num_retries: 0\n`, filters["outbound"])
	require.NotContains(t, filters["outbound"], "retry_on", "it would need idempotent")

	out, filters = translated(t, shop+router("shop", "trafficPolicy: {"+never+"}"))
	require.Empty(t, out.Faults)
	require.Contains(t, filters["outbound"], "num_retries: 0")
}

// TestFaultsHaveAnOrder: a status that says the same is not written again.
func TestFaultsHaveAnOrder(t *testing.T) {
	text := strings.Replace(shop, "selector: {app: orders}, ", "", 1) + router("shop", `localRateLimit: {tokenBucket: {maxTokens: 1, fillInterval: 1s}},
  authorization: [{rules: [{}]}], globalRateLimit: {domain: d, rateLimitService: c, descriptors: [{property: a, descriptorKey: b}]}`)
	first, _ := translated(t, text)
	require.Len(t, first.Faults, 3)
	for range 20 {
		out, _ := translated(t, text)
		require.Equal(t, first.Faults, out.Faults)
	}
}

// TestAZeroWeightIsNoOtherRoutes: a fault is told of the destination that has it.
func TestAZeroWeightIsNoOtherRoutes(t *testing.T) {
	out, _ := translated(t, shop+router("shop", `routes: [{route: [{destination: {host: a}}, {destination: {host: b, subset: "x|y"}, weight: 100}]}]`))
	require.Len(t, out.Faults, 1)
	require.Equal(t, "spec.routes[0].route[1].destination", out.Faults[0].Path)
}

// TestAllServicesBeforeAGatewayCount: in whatever order they are known.
func TestAllServicesBeforeAGatewayCount(t *testing.T) {
	text := shop + router("shop", "gateways: [edge]") + `---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {selector: {istio: edge}, servers: [{port: {number: 20880, name: tcp-metaprotocol-dubbo, protocol: TCP}, hosts: ["*"]}]}
---
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: edges}
spec: {clusterIP: 10.0.0.2, selector: {istio: edge}, ports: [{name: tcp, port: 20880, targetPort: 8001}]}
---
apiVersion: v1
kind: Service
metadata: {name: edge-too, namespace: edges}
spec: {clusterIP: 10.0.0.3, selector: {istio: edge}, ports: [{name: tcp, port: 20880, targetPort: 8002}]}
`
	_, filters := translated(t, text)
	require.Contains(t, filters["gateway"], "portNumber: 8001")
	require.Contains(t, filters["gateway"], "portNumber: 8002")
	objects := strings.Split(text, "\n---\n")
	slices.Reverse(objects)
	_, again := translated(t, strings.Join(objects, "\n---\n"))
	require.Equal(t, filters, again)
}

// TestNamesAreNobodyElses: two hosts, or two gateways, do not write one object.
func TestNamesAreNobodyElses(t *testing.T) {
	name := func(host string) string { return translate.Name(host, "cluster.local") }
	long := strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + ".svc.cluster.local"
	for _, host := range []string{"example.com", long, strings.Repeat("c.", 40) + "example.com"} {
		require.LessOrEqual(t, len(name(host)), 63)
		require.NotEqual(t, name(host), name(name(host)), "a host that is called as the objects are")
		require.NotEqual(t, name(host), name(name(host)+".svc.cluster.local"))
	}
	require.NotEqual(t, name("a.b.svc.cluster.local"), name("a.b"))

	virtualServices := func(gateways ...string) (names []string) {
		text := shop + router("shop", "gateways: ["+strings.Join(gateways, ", ")+"]")
		for i, g := range gateways {
			text += "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: " + g + ", namespace: shop}\n" +
				"spec: {selector: {istio: edge" + string(rune('0'+i)) + "}, servers: [{port: {number: 20880, name: tcp-metaprotocol-dubbo, protocol: TCP}, hosts: [\"*\"]}]}\n"
		}
		out, _ := translated(t, text)
		require.Empty(t, out.Faults)
		for _, v := range out.VirtualServices {
			names = append(names, v.Name)
		}
		return names
	}
	end := strings.Repeat("x", 70)
	names := virtualServices("a.b", "a-b", "one-"+end, "two-"+end)
	slices.Sort(names)
	require.Len(t, slices.Compact(names), 4)
}
