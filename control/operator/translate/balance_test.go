package translate_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// rule is a DestinationRule of an age in minutes.
func rule(namespace, name string, age int, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: %s, namespace: %s, creationTimestamp: \"2026-01-01T00:%02d:00Z\"}\nspec: {%s}\n",
		name, namespace, 59-age, spec)
}

// by has calls be hashed by a property.
func by(key string) string { return "loadBalancer: {consistentHash: {httpHeaderName: " + key + "}}" }

var hashedBy = regexp.MustCompile(`hash_policies:\n\s+- metadata:\n\s+name: (\w+)`)

// keys are those by which routes to orders.shop have calls hashed.
func keys(t *testing.T, text string) (keys []string) {
	t.Helper()
	out, filters := translated(t, text)
	require.Empty(t, out.Faults)
	for _, m := range hashedBy.FindAllStringSubmatch(filters["outbound"], -1) {
		keys = append(keys, m[1])
	}
	half := len(keys) / 2 // once for the proxies of each form
	require.Equal(t, keys[:half], keys[half:])
	return keys[:half]
}

// TestTheRuleThatCountsIsIstios of several for the host.
func TestTheRuleThatCountsIsIstios(t *testing.T) {
	of := func(namespace, host string, age int, more ...string) string {
		key := strings.NewReplacer("*", "any", ".", "_", "-", "_").Replace(fmt.Sprintf("%s_%s_%d", namespace, host, age))
		return rule(namespace, strings.ToLower(strings.ReplaceAll(key, "_", "-")), age, "host: '"+host+"', trafficPolicy: {"+by(key)+"}"+strings.Join(more, ""))
	}
	for name, tc := range map[string]struct{ rules, want string }{
		"the host's before an older one of its domain": {of("shop", "*.shop.svc.cluster.local", 9) + of("shop", "orders", 1), "shop_orders_1"},
		"a small domain before an older large one":     {of("shop", "*.cluster.local", 9) + of("shop", "*.shop.svc.cluster.local", 1), "shop_any_shop_svc_cluster_local_1"},
		"a part of a name before its domain":           {of("shop", "*.shop.svc.cluster.local", 9) + of("shop", "*ers.shop.svc.cluster.local", 1), "shop_anyers_shop_svc_cluster_local_1"},
		"all hosts":                                    {of("shop", "*", 1), "shop_any_1"},
		"all hosts, of the mesh":                       {of("istio-system", "*", 1), "istio_system_any_1"},
		"all hosts behind some":                        {of("shop", "*", 9) + of("shop", "*.local", 1), "shop_any_local_1"},
		"all hosts of a namespace before one of the mesh's": {
			of("istio-system", "orders.shop.svc.cluster.local", 9) + of("shop", "*", 1), "shop_any_1",
		},
		"the older one":                     {of("shop", "orders", 9) + of("shop", "orders", 1), "shop_orders_9"},
		"the older one, as it is written":   {of("shop", "orders", 9) + of("shop", "orders.shop.svc.cluster.local", 1), "shop_orders_9"},
		"that of all clients before others": {of("shop", "orders", 9, ", exportTo: [web]") + of("shop", "orders", 1), "shop_orders_1"},
		"that of all workloads":             {of("shop", "orders", 9, ", workloadSelector: {matchLabels: {app: web}}") + of("shop", "orders", 1), "shop_orders_1"},
		"none of a namespace without a say": {of("web", "orders.shop.svc.cluster.local", 9) + of("shop", "*", 1), "shop_any_1"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, []string{tc.want}, keys(t, shop+tc.rules)) })
	}
}

// TestRulesOfAHostAreJoined as Istio joins them: all subsets, and the first policy.
func TestRulesOfAHostAreJoined(t *testing.T) {
	const routes = `routes: [
  {match: {attributes: {a: {exact: "1"}}}, route: [{destination: {host: orders, subset: v1}}]},
  {match: {attributes: {a: {exact: "2"}}}, route: [{destination: {host: orders, subset: v2}}]},
  {route: [{destination: {host: orders}}]}]`
	subset := func(name, key string) string {
		return "{name: " + name + ", labels: {version: " + name + "}, trafficPolicy: {" + by(key) + "}}"
	}
	first := rule("shop", "first", 9, "host: orders, subsets: ["+subset("v1", "first1")+"]")
	for name, tc := range map[string]struct {
		rules string
		want  []string
	}{
		"subsets and policies": {
			first + rule("shop", "second", 8, "host: orders.shop.svc.cluster.local, subsets: ["+subset("v2", "second2")+", "+subset("v1", "second1")+"], trafficPolicy: {"+by("second")+"}") +
				rule("shop", "third", 7, "host: orders, trafficPolicy: {"+by("third")+"}"),
			[]string{"first1", "second2", "second"},
		},
		"not those of other hosts":  {first + rule("shop", "second", 8, "host: '*', trafficPolicy: {"+by("second")+"}"), []string{"first1"}},
		"not those of other places": {first + rule("istio-system", "second", 8, "host: orders.shop.svc.cluster.local, trafficPolicy: {"+by("second")+"}"), []string{"first1"}},
		"not those of other clients": {
			first + rule("shop", "second", 8, "host: orders, exportTo: [web], trafficPolicy: {"+by("second")+"}") +
				rule("shop", "third", 7, "host: orders, workloadSelector: {matchLabels: {app: web}}, trafficPolicy: {"+by("third")+"}"),
			[]string{"first1"},
		},
		"those for more clients": {
			rule("shop", "first", 9, "host: orders, exportTo: [web], subsets: ["+subset("v1", "first1")+"]") +
				rule("shop", "second", 8, "host: orders, exportTo: [web, admin], trafficPolicy: {"+by("second")+"}"),
			[]string{"first1", "second", "second"},
		},
		"of the same workloads": {
			rule("shop", "first", 9, "host: orders, workloadSelector: {matchLabels: {app: web}}, subsets: ["+subset("v1", "first1")+"]") +
				rule("shop", "second", 8, "host: orders, exportTo: [web], workloadSelector: {matchLabels: {app: web}}, trafficPolicy: {"+by("second")+"}"),
			[]string{"first1", "second", "second"},
		},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, keys(t, shop+router("shop", routes)+tc.rules)) })
	}

	out, _ := translated(t, shop+router("shop", routes)+first+
		rule("shop", "second", 8, "host: orders, subsets: [{name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 1s}}}}}]"))
	require.Equal(t, []string{"spec.subsets[0].trafficPolicy.loadBalancer.consistentHash: calls have no cookies and no query parameters: want httpHeaderName or useSourceIp"}, reasons(out))
	require.Equal(t, "DestinationRule shop/second", out.Faults[0].String())
}
