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
