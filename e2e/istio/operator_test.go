package istio

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// operated is a shop whose port is named so that the operator governs it.
type operated struct {
	*shop
	operator *mesh.Operator
}

func operator(t *testing.T) *mesh.Operator {
	t.Helper()
	root := peers.Root()
	return world.Operator(t, filepath.Join(root, "build", "meltemi-operator"), mesh.CRDs(root))
}

func openOperated(t *testing.T) *operated {
	t.Helper()
	o := &operated{operator: operator(t)}
	o.shop = openShop(t, "v1", "v2")
	t.Cleanup(func() { o.Kubectl("", "delete", "metarouters", "--all", "-n", o.Name) })
	o.Apply(strings.ReplaceAll(greeterService, "tcp-dubbo", "tcp-metaprotocol-dubbo"))
	pods := []*mesh.Pod{o.servers["v1"], o.servers["v2"]}
	o.Endpoints("greeter", map[string]int{"tcp-metaprotocol-dubbo": targetPort}, pods...)
	o.Eventually("the endpoints", func() bool { return o.clusterHas(o.client, pods...) })
	return o
}

// metaRouter applies one for the shop's service.
func (o *operated) metaRouter(spec string) {
	o.t.Helper()
	before := o.reloads(o.client)
	o.Apply(router("greeter", o.host(), spec))
	o.Eventually("the new routes", func() bool { return o.reloads(o.client) > before && settled(o.client) })
	o.conditions("greeter", "Accepted=True Programmed=True")
}

func router(name, host, spec string) string {
	return fmt.Sprintf(`
apiVersion: metaprotocol.aeraki.io/v1alpha1
kind: MetaRouter
metadata: {name: %s}
spec:
  hosts: [%s]
%s`, name, host, spec)
}

// conditions waits until a router has some.
func conditions(n *mesh.Namespace, name, want string) {
	n.Eventually("condition "+want+" of "+name, func() bool {
		got, err := n.Kubectl("", "get", "metarouter", name, "-n", n.Name, "-o",
			`jsonpath={range .status.conditions[*]}{.type}={.status} {end}{.metadata.generation}`)
		if err != nil {
			return false
		}
		generations, err := n.Kubectl("", "get", "metarouter", name, "-n", n.Name, "-o", `jsonpath={.status.conditions[*].observedGeneration}`)
		i := strings.LastIndexByte(got, ' ')
		if err != nil || i < 0 {
			return false
		}
		for _, g := range strings.Fields(generations) {
			if g != got[i+1:] {
				return false
			}
		}
		return strings.TrimSpace(got[:i]) == want
	})
}

func (o *operated) conditions(name, want string) {
	o.t.Helper()
	conditions(o.Namespace, name, want)
}

// to is a route's destination.
func (o *operated) to(subset string) string {
	return fmt.Sprintf("destination: {host: %s, subset: %s}", o.host(), subset)
}

// TestOperatorRoutesCalls is a MetaRouter's way into calls: by version, by share, by
// attribute. Open connections follow.
func TestOperatorRoutesCalls(t *testing.T) {
	o := openOperated(t)
	o.Eventually("the filters without a router", func() bool {
		return settled(o.client) && serving(o.servers["v1"], "meltemi-inbound") && serving(o.servers["v2"], "meltemi-inbound")
	})
	c := o.consumer(peers.DubboGo, peers.ConsumerOptions{})
	answers(t, c, 100, "v1", "v2")
	// M2
	for _, version := range []string{"v1", "v2"} {
		o.metaRouter("  routes: [{name: all, route: [{" + o.to(version) + "}]}]\n")
		answers(t, c, 50, version)
	}
	// M3
	o.metaRouter(fmt.Sprintf("  routes: [{route: [{%s, weight: 20}, {%s, weight: 80}]}]\n", o.to("v1"), o.to("v2")))
	got := answers(t, c, 2000, "v1", "v2")
	require.InDelta(t, 400, got["v1"], 150)
	// M4
	hello := peers.Command{Method: "sayHello", Args: []any{"x"}}
	for _, match := range []string{"exact: sayHello", "prefix: say", `regex: "^s.*o$"`} {
		o.metaRouter(fmt.Sprintf(`  routes:
  - {match: {attributes: {method: {exact: decoy}}}, route: [{%[1]s}]}
  - {match: {attributes: {method: {%[3]s}}}, route: [{%[2]s}]}
  - {route: [{%[1]s}]}
`, o.to("v1"), o.to("v2"), match))
		for range 5 {
			a := c.Call(hello)
			require.Empty(t, a.Error)
			require.Contains(t, a.Value, "v2", match)
		}
		answers(t, c, 5, "v1")
	}
}

// TestOperatorLimitsCalls is M6: the servers' proxies let pass what the buckets have.
// Limits hold for connections that are opened from then on.
func TestOperatorLimitsCalls(t *testing.T) {
	o := openOperated(t)
	o.Apply(router("greeter", o.host(), fmt.Sprintf(`  routes: [{route: [{%s}]}]
  localRateLimit:
    tokenBucket: {maxTokens: 5, tokensPerFill: 5, fillInterval: 3600s}
    conditions: [{match: {attributes: {method: {exact: sayHello}}}, tokenBucket: {maxTokens: 2, tokensPerFill: 2, fillInterval: 3600s}}]
`, o.to("v1"))))
	o.conditions("greeter", "Accepted=True Programmed=True")
	has := func(p *mesh.Pod, text string) bool {
		return strings.Contains(p.Admin("/config_dump?resource=ecds_filters"), text)
	}
	o.Eventually("the limits", func() bool {
		return has(o.client, o.cluster("v1")) && has(o.servers["v1"], "local_ratelimit") && settled(o.client) && serving(o.servers["v1"], "meltemi-inbound")
	})
	c := o.consumer(peers.DubboGo, peers.ConsumerOptions{})
	served := func(cmd peers.Command) (n int) {
		for range 10 {
			if c.Call(cmd).Error == "" {
				n++
			}
		}
		return n
	}
	require.Equal(t, 2, served(peers.Command{Method: "sayHello", Args: []any{"x"}}))
	require.Equal(t, 5, served(who))
}

// TestOperatorKeepsObjects: what is written, and when, and what becomes of it.
func TestOperatorKeepsObjects(t *testing.T) {
	op := operator(t)
	n := world.Namespace(t)
	t.Cleanup(func() { n.Kubectl("", "delete", "metarouters", "--all", "-n", n.Name) })
	host := "greeter." + n.Name + ".svc.cluster.local"
	n.Apply(strings.ReplaceAll(greeterService, "tcp-dubbo", "tcp-metaprotocol-dubbo"))
	outbound, inbound := "istio-system/meltemi-outbound-greeter."+n.Name+"-20880", n.Name+"/meltemi-inbound-greeter."+n.Name+"-20881"
	const loopback, older = "istio-system/meltemi-loopback", "istio-system/meltemi-loopback-golang"
	made := func(what string, want ...string) {
		t.Helper()
		n.Eventually(what, func() bool {
			got := strings.Fields(op.Made())
			return len(got) == len(want) && strings.Join(got, " ") == strings.Join(want, " ") || func() bool {
				for _, w := range want {
					if !strings.Contains("\n"+op.Made()+"\n", "\n"+w+"\n") {
						return false
					}
				}
				return len(got) == len(want)
			}()
		})
	}
	made("filters of a service", loopback, older, outbound, inbound)

	t.Run("an older router wins", func(t *testing.T) {
		n.Apply(router("z-older", host, "  routes: [{route: [{destination: {host: "+host+", subset: v1}}]}]\n"))
		conditions(n, "z-older", "Accepted=True Programmed=True")
		// Their ages are told in seconds.
		created, err := n.Kubectl("", "get", "metarouter", "z-older", "-n", n.Name, "-o", "jsonpath={.metadata.creationTimestamp}")
		require.NoError(t, err)
		at, err := time.Parse(time.RFC3339, created)
		require.NoError(t, err)
		n.Eventually("another second", func() bool { return time.Now().Unix() > at.Unix() })
		n.Apply(router("a-younger", "greeter", "  routes: [{route: [{destination: {host: greeter, subset: v2}}]}]\n"))
		conditions(n, "a-younger", "Accepted=False Programmed=False")
		n.Delete("metarouter", "z-older")
		conditions(n, "a-younger", "Accepted=True Programmed=True")
	})
	spec := func(object string) string {
		ns, name, _ := strings.Cut(object, "/")
		out, err := n.Kubectl("", "get", "envoyfilter", name, "-n", ns, "-o", "jsonpath={.metadata.generation} {.spec}")
		require.NoError(t, err)
		return out
	}
	require.Contains(t, spec(outbound), "|v2|")

	t.Run("nothing is written without a change", func(t *testing.T) {
		before := op.Metrics()
		n.Kubectl("", "annotate", "service", "greeter", "-n", n.Name, "x=y")
		n.Kubectl("", "annotate", "metarouter", "a-younger", "-n", n.Name, "x=y")
		n.Kubectl("", "annotate", "envoyfilter", "meltemi-loopback", "-n", "istio-system", "x=y")
		reconciled := func(m string) string {
			return metric(m, `controller_runtime_reconcile_total{controller="hosts",result="success"}`)
		}
		n.Eventually("a look at it", func() bool { return reconciled(op.Metrics()) != reconciled(before) })
		require.Equal(t, metric(before, "meltemi_operator_writes_total"), metric(op.Metrics(), "meltemi_operator_writes_total"))
	})
	t.Run("what hands change is taken back", func(t *testing.T) {
		_, name, _ := strings.Cut(outbound, "/")
		_, before, _ := strings.Cut(spec(outbound), " ")
		for _, patch := range []string{
			`{"spec":{"configPatches":[]}}`,
			`{"spec":{"workloadSelector":{"labels":{"a":"b"}}}}`,
			`{"metadata":{"labels":{"app.kubernetes.io/managed-by":"somebody"}}}`,
		} {
			_, err := n.Kubectl("", "patch", "envoyfilter", name, "-n", "istio-system", "--type=merge", "-p", patch)
			require.NoError(t, err)
			n.Eventually("the spec as it was", func() bool {
				_, after, _ := strings.Cut(spec(outbound), " ")
				return after == before && strings.Contains(op.Made(), name)
			})
		}
		_, err := n.Kubectl("", "delete", "envoyfilter", name, "-n", "istio-system")
		require.NoError(t, err)
		made("the filter again", loopback, older, outbound, inbound)
	})
	t.Run("exportTo", func(_ *testing.T) {
		n.Apply(router("a-younger", host, "  exportTo: [., default]\n  routes: [{route: [{destination: {host: "+host+"}}]}]\n"))
		name := "/meltemi-outbound-greeter." + n.Name + "-20880"
		made("filters of namespaces", loopback, older, n.Name+name, "default"+name, inbound)
	})
	t.Run("a bad field is told", func(t *testing.T) {
		before := spec(inbound)
		n.Apply(router("a-younger", host, "  outbound: {upstream: {max_conections: 3}}\n  routes: [{route: [{destination: {host: "+host+"}}]}]\n"))
		conditions(n, "a-younger", "Accepted=False Programmed=False")
		out, err := n.Kubectl("", "get", "metarouter", "a-younger", "-n", n.Name, "-o", `jsonpath={.status.conditions[0].message}`)
		require.NoError(t, err)
		require.Equal(t, "spec.outbound.upstream.max_conections: unknown field", out)
		require.Equal(t, before, spec(inbound), "what was before stays")
	})
	t.Run("what is not needed goes", func(_ *testing.T) {
		n.Delete("service", "greeter")
		made("nothing")
		conditions(n, "a-younger", "Accepted=True Programmed=False")
		n.Delete("metarouter", "a-younger")
	})
	t.Run("what has gone while it was away", func(_ *testing.T) {
		n.Apply(strings.ReplaceAll(greeterService, "tcp-dubbo", "tcp-metaprotocol-dubbo"))
		made("filters", loopback, older, outbound, inbound)
		op.Kill()
		n.Delete("service", "greeter")
		op.Start()
		made("nothing")
	})
}

// metric are the lines of a metric.
func metric(text, name string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, name) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// TestOperatorsObjectsAreJudged: by the API server, each by a rule of the schema.
func TestOperatorsObjectsAreJudged(t *testing.T) {
	operator(t)
	n := world.Namespace(t)
	t.Cleanup(func() { n.Kubectl("", "delete", "metarouters", "--all", "-n", n.Name) })
	const route = "route: [{destination: {host: a.b}}]"
	limit := func(bucket string) string { return "  localRateLimit: {tokenBucket: " + bucket + "}\n" }
	matching := func(m string) string { return "  routes: [{match: {attributes: {a: " + m + "}}, " + route + "}]\n" }
	for name, tc := range map[string]struct{ spec, want string }{
		"nothing":                {"", "says nothing"},
		"no hosts":               {"  hosts: []\n", "hosts"},
		"two hosts":              {"  hosts: [a.b, c.d]\n  routes: [{" + route + "}]\n", "hosts"},
		"a host that is none":    {"  hosts: [a_b]\n  routes: [{" + route + "}]\n", "hosts"},
		"namespaces twice":       {"  exportTo: [a, a]\n  routes: [{" + route + "}]\n", "exportTo"},
		"all and one":            {"  exportTo: [a, '*']\n  routes: [{" + route + "}]\n", "* and ~ must be alone"},
		"no destination":         {"  routes: [{route: []}]\n", "route"},
		"neither":                {"  routes: [{name: x}]\n", "want route or directResponse"},
		"weights":                {"  routes: [{route: [{destination: {host: a.b}, weight: 50}, {destination: {host: a.b}, weight: 49}]}]\n", "the weights must be 100 together"},
		"a weight":               {"  routes: [{route: [{destination: {host: a.b}, weight: 101}]}]\n", "weight"},
		"a percentage alone":     {"  routes: [{" + route + ", mirrorPercentage: {value: 1}}]\n", "mirrorPercentage needs mirror"},
		"no percentage":          {"  routes: [{" + route + ", mirror: {host: a.b}, mirrorPercentage: {value: 0}}]\n", "must be more than 0"},
		"an empty regex":         {matching("{regex: ''}"), "regex"},
		"a regex *":              {matching("{regex: '*'}"), "regex"},
		"two matchers":           {matching("{exact: a, prefix: b}"), "want one of exact, prefix, regex and present"},
		"a mutation of nothing":  {"  routes: [{" + route + ", requestMutation: [{key: '', value: a}]}]\n", "key"},
		"a mutation to nothing":  {"  routes: [{" + route + ", responseMutation: [{key: a, value: ''}]}]\n", "value"},
		"no tokens":              {limit("{maxTokens: 0, tokensPerFill: 1, fillInterval: 1s}"), "maxTokens"},
		"no interval":            {limit("{maxTokens: 1, tokensPerFill: 1}"), "fillInterval"},
		"an interval of nothing": {limit("{maxTokens: 1, tokensPerFill: 1, fillInterval: 0s}"), "at least 1ms"},
		"no limit":               {"  localRateLimit: {}\n", "want tokenBucket or conditions"},
		"a condition of nothing": {"  localRateLimit: {conditions: [{tokenBucket: {maxTokens: 1, tokensPerFill: 1, fillInterval: 1s}}]}\n", "match"},
		"no domain":              {"  globalRateLimit: {rateLimitService: x, descriptors: [{property: a, descriptorKey: b}]}\n", "domain"},
		"no descriptors":         {"  globalRateLimit: {domain: d, rateLimitService: x, descriptors: []}\n", "descriptors"},
		"a subset of two":        {"  routes: [{route: [{destination: {host: a.b, subset: 'a|b'}}]}]\n", "subset"},
	} {
		t.Run(name, func(t *testing.T) {
			text := router("x", "a.b", tc.spec)
			if strings.HasPrefix(tc.spec, "  hosts") {
				text = strings.Replace(text, "  hosts: [a.b]\n", "", 1)
			}
			require.ErrorContains(t, n.TryApply(text), tc.want)
		})
	}
	for name, spec := range map[string]string{
		"presence":                matching("{exact: ''}"),
		"presence by nothing":     matching("{}"),
		"tokens by default":       limit("{maxTokens: 1, fillInterval: 0.5s}"),
		"a limit without timeout": "  globalRateLimit: {domain: d, rateLimitService: x, descriptors: [{property: a, descriptorKey: b}]}\n",
	} {
		t.Run(name, func(t *testing.T) { require.NoError(t, n.TryApply(router("x", "a.b", spec))) })
	}
}
