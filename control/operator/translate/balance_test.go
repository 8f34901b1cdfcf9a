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

// TestAClustersPolicyIsIstios: a port's settings are the whole of a policy, and a subset's
// stand for the host's where it has them.
func TestAClustersPolicyIsIstios(t *testing.T) {
	const routes = `routes: [{match: {attributes: {a: {exact: "1"}}}, route: [{destination: {host: orders, subset: v1}}]}, {route: [{destination: {host: orders}}]}]`
	for name, tc := range map[string]struct {
		host, subset string
		want         []string
	}{
		"the host's":                          {by("host"), "outlierDetection: {}", []string{"host", "host"}},
		"the subset's":                        {by("host"), by("subset"), []string{"subset", "host"}},
		"the subset's without one":            {by("host"), "loadBalancer: {simple: RANDOM}", []string{"host"}},
		"the port's":                          {by("host") + ", portLevelSettings: [{port: {number: 20880}, " + by("port") + "}]", "", []string{"port", "port"}},
		"the port's without one":              {by("host") + ", portLevelSettings: [{port: {number: 20880}, outlierDetection: {}}]", "", nil},
		"another port's":                      {by("host") + ", portLevelSettings: [{port: {number: 1}, outlierDetection: {}}]", "", []string{"host", "host"}},
		"the subset's behind the port's":      {by("host") + ", portLevelSettings: [{port: {number: 20880}, outlierDetection: {}}]", by("subset"), []string{"subset"}},
		"the subset's port's":                 {by("host"), by("subset") + ", portLevelSettings: [{port: {number: 20880}, " + by("port") + "}]", []string{"port", "host"}},
		"the subset's port's without one":     {by("host"), by("subset") + ", portLevelSettings: [{port: {number: 20880}, outlierDetection: {}}]", []string{"host"}},
		"the host's behind a subset without":  {by("host"), "", []string{"host", "host"}},
		"the subset's before no other policy": {"", by("subset"), []string{"subset"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := rule("shop", "r", 1, "host: orders, trafficPolicy: {"+tc.host+"}, subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {"+tc.subset+"}}]")
			require.Equal(t, tc.want, keys(t, shop+router("shop", routes)+text))
		})
	}
}

// TestLocalitiesAreRefusedWhereIstioWeighsThem: Envoy refuses clusters that have both them
// and our load balancer, and takes all others.
func TestLocalitiesAreRefusedWhereIstioWeighsThem(t *testing.T) {
	const (
		host       = "spec.trafficPolicy.loadBalancer"
		subset     = "spec.subsets[0].trafficPolicy.loadBalancer"
		ejects     = "outlierDetection: {consecutive5xxErrors: 5}"
		failover   = "failover: [{from: a, to: b}]"
		distribute = "distribute: [{from: a/*, to: {a/*: 100}}]"
	)
	lb := func(setting string) string {
		return "loadBalancer: {consistentHash: {httpHeaderName: a}, " + setting + "}"
	}
	for name, tc := range map[string]struct {
		host, subset, more, mesh string
		service                  string // fields of its spec
		annotation               string
		path, by                 string // "": not refused
	}{
		"outlier detection alone":                  {host: by("a") + ", " + ejects},
		"failover without outlier detection":       {host: lb("localityLbSetting: {" + failover + "}")},
		"failover":                                 {host: lb("localityLbSetting: {"+failover+"}") + ", " + ejects, path: host + ".localityLbSetting", by: "this"},
		"failover that is enabled":                 {host: lb("localityLbSetting: {enabled: true, "+failover+"}") + ", " + ejects, path: host + ".localityLbSetting", by: "this"},
		"failover that is not":                     {host: lb("localityLbSetting: {enabled: false, "+failover+"}") + ", " + ejects},
		"priorities":                               {host: lb("localityLbSetting: {failoverPriority: [a]}") + ", " + ejects, path: host + ".localityLbSetting", by: "this"},
		"shares without outlier detection":         {host: lb("localityLbSetting: {" + distribute + "}"), path: host + ".localityLbSetting", by: "this"},
		"shares that are not enabled":              {host: lb("localityLbSetting: {enabled: false, " + distribute + "}")},
		"zones":                                    {host: lb("zoneAwareLbSetting: {}"), path: host + ".zoneAwareLbSetting", by: "this"},
		"zones that are not enabled":               {host: lb("zoneAwareLbSetting: {enabled: false}"), path: host + ".zoneAwareLbSetting", by: "this"},
		"a subset's outlier detection":             {host: lb("localityLbSetting: {" + failover + "}"), subset: ejects, path: host + ".localityLbSetting", by: "this"},
		"a subset that no route names":             {host: by("a"), subset: "loadBalancer: {simple: RANDOM, localityLbSetting: {" + distribute + "}}", path: subset + ".localityLbSetting", by: "this"},
		"a subset's without the host's failover":   {host: lb("localityLbSetting: {"+failover+"}") + ", portLevelSettings: [{port: {number: 20880}, " + by("a") + "}]", subset: ejects},
		"a port's":                                 {host: by("a") + ", portLevelSettings: [{port: {number: 20880}, " + lb("localityLbSetting: {"+distribute+"}") + "}]", path: "spec.trafficPolicy.portLevelSettings[0].loadBalancer.localityLbSetting", by: "this"},
		"a port that no route leads to":            {host: by("a") + ", portLevelSettings: [{port: {number: 1}, " + lb("localityLbSetting: {"+distribute+"}") + "}]"},
		"a mirror's port":                          {host: by("a") + ", portLevelSettings: [{port: {number: 1}, loadBalancer: {localityLbSetting: {" + distribute + "}}}]", more: router("shop", "routes: [{route: [{destination: {host: orders}}], mirror: {host: orders, port: {number: 1}}}]"), path: "spec.trafficPolicy.portLevelSettings[0].loadBalancer.localityLbSetting", by: "this"},
		"no hashing at all":                        {host: "loadBalancer: {localityLbSetting: {" + distribute + "}}"},
		"the mesh's shares":                        {host: by("a"), mesh: "localityLbSetting: {" + distribute + "}", path: host, by: "localityLbSetting of the mesh config"},
		"the mesh's shares, and the rule's none":   {host: lb("localityLbSetting: {enabled: false}"), mesh: "localityLbSetting: {" + distribute + "}"},
		"the mesh's shares, and the rule's others": {host: lb("localityLbSetting: {enabled: true}"), mesh: "localityLbSetting: {" + distribute + "}"},
		"the mesh's shares at a subset":            {host: lb("localityLbSetting: {enabled: false}"), subset: "loadBalancer: {simple: RANDOM}", mesh: "localityLbSetting: {" + distribute + "}", path: subset, by: "localityLbSetting of the mesh config"},
		"the mesh's shares at a port without more": {host: lb("localityLbSetting: {enabled: false}"), subset: "portLevelSettings: [{port: {number: 20880}}]", mesh: "localityLbSetting: {" + distribute + "}", path: "spec.subsets[0].trafficPolicy.portLevelSettings[0].loadBalancer", by: "localityLbSetting of the mesh config"},
		"the mesh's default":                       {host: by("a") + ", " + ejects, mesh: "localityLbSetting: {enabled: true}"},
		"the mesh's failover":                      {host: by("a") + ", " + ejects, mesh: "localityLbSetting: {" + failover + "}", path: host, by: "localityLbSetting of the mesh config"},
		"the mesh's failover that is not":          {host: by("a") + ", " + ejects, mesh: "localityLbSetting: {enabled: false, " + failover + "}"},
		"the mesh's failover alone":                {host: by("a"), mesh: "localityLbSetting: {" + failover + "}"},
		"the mesh's outlier detection":             {host: lb("localityLbSetting: {" + failover + "}"), mesh: "defaultTrafficPolicy: {" + ejects + "}", path: host + ".localityLbSetting", by: "this"},
		"the mesh's zones":                         {host: by("a"), mesh: "zoneAwareLbSetting: {}", path: host, by: "zoneAwareLbSetting of the mesh config"},
		"the mesh's zones, and the rule's none":    {host: lb("localityLbSetting: {enabled: false}"), mesh: "zoneAwareLbSetting: {}"},
		"a service whose calls stay near":          {host: by("a"), service: "trafficDistribution: PreferClose, ", path: host, by: "trafficDistribution of Service shop/orders"},
		"one whose calls stay on their node":       {host: by("a"), service: "trafficDistribution: PreferSameNode, ", path: host, by: "trafficDistribution of Service shop/orders"},
		"one that says it by an annotation":        {host: by("a"), annotation: "PreferClose", path: host, by: "trafficDistribution of Service shop/orders"},
		"one whose annotation says nothing":        {host: by("a"), annotation: "Any"},
		"one whose rule says none":                 {host: lb("localityLbSetting: {enabled: false}"), service: "trafficDistribution: PreferClose, "},
		"one whose rule says something else":       {host: lb("localityLbSetting: {enabled: true}"), service: "trafficDistribution: PreferSameZone, "},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(shop, "spec: {", "spec: {"+tc.service, 1)
			text = strings.Replace(text, "namespace: shop}", "namespace: shop, annotations: {networking.istio.io/traffic-distribution: '"+tc.annotation+"'}}", 1)
			text += rule("shop", "r", 1, "host: orders, trafficPolicy: {"+tc.host+"}, subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {"+tc.subset+"}}]")
			if tc.mesh != "" {
				text += "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: \"" + tc.mesh + "\"}\n"
			}
			out, _ := translated(t, text+tc.more)
			if tc.path == "" {
				require.Empty(t, out.Faults)
				return
			}
			require.Equal(t, []string{tc.path + ": " + tc.by + " has Istio balance by localities, which Envoy refuses beside consistentHash: want localityLbSetting: {enabled: false}"}, reasons(out))
			require.Equal(t, "DestinationRule shop/r", out.Faults[0].String())
			require.False(t, out.Complete)
		})
	}
}
