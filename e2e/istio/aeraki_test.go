package istio

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// config is what a proxy has of one of our filters.
func config(t *testing.T, p *mesh.Pod, filter string) map[string]any {
	t.Helper()
	var dump struct {
		Configs []struct {
			Filter struct {
				Name        string
				TypedConfig struct {
					FilterConfig struct{ Value map[string]any } `json:"filter_config"`
				} `json:"typed_config"`
			} `json:"ecds_filter"`
		}
	}
	require.NoError(t, json.Unmarshal([]byte(p.Admin("/config_dump?resource=ecds_filters")), &dump))
	for _, c := range dump.Configs {
		if c.Filter.Name == filter {
			return c.Filter.TypedConfig.FilterConfig.Value
		}
	}
	t.Fatalf("%s has no %s", p.Name, filter)
	return nil
}

// sees has the proxies of a namespace see the services of another one, too.
func sees(n, other *mesh.Namespace) {
	n.Apply(fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default}\nspec: {egress: [{hosts: [\"./*\", \"%s/*\"]}]}\n", other.Name))
}

// TestAerakisRoutesOfClients are those of Aeraki's own scenarios whose rules clients'
// proxies follow, as they are meant.
func TestAerakisRoutesOfClients(t *testing.T) {
	o := openOperated(t)
	abroad, foreign := world.Namespace(t), world.Namespace(t)
	sees(abroad, o.Namespace)
	sees(foreign, o.Namespace)
	o.metaRouter("  routes: [{name: all, route: [{" + o.to("v1") + "}]}]\n")
	o.Eventually("the servers' filters", func() bool {
		return serving(o.servers["v1"], "meltemi-inbound") && serving(o.servers["v2"], "meltemi-inbound")
	})
	c := o.consumer(peers.DubboGo, peers.ConsumerOptions{})

	t.Run("M1 the filters", func(t *testing.T) {
		protocol := map[string]any{"name": "dubbo", "codec": map[string]any{"name": "aeraki.meta_protocol.codec.dubbo"}}
		name := "greeter." + o.Name
		for pod, want := range map[*mesh.Pod]struct{ filter, statPrefix, route, direction string }{
			o.client:        {fmt.Sprintf("meltemi-outbound-%s-%d", name, port), o.cluster(""), o.cluster("v1"), "OUTBOUND"},
			o.servers["v1"]: {fmt.Sprintf("meltemi-inbound-%s-%d", name, targetPort), "inbound|20881||", "inbound|20881||", "INBOUND"},
		} {
			got := config(t, pod, want.filter)
			require.Equal(t, protocol, got["protocol"])
			require.Equal(t, want.statPrefix, got["stat_prefix"])
			require.Equal(t, want.direction, got["traffic_direction"])
			routes := got["route_config"].(map[string]any)["routes"].([]any)
			require.Len(t, routes, 1)
			require.Equal(t, want.route, routes[0].(map[string]any)["route"].(map[string]any)["cluster"])
			filters := got["meta_protocol_filters"].([]any)
			require.Equal(t, "aeraki.meta_protocol.filters.istio_stats", filters[0].(map[string]any)["name"])
			require.Equal(t, "aeraki.meta_protocol.filters.router", filters[1].(map[string]any)["name"])
			require.Len(t, filters, 2)
		}
	})
	t.Run("M10 mutation", func(t *testing.T) {
		o.metaRouter("  routes:\n  - name: mutation\n    route: [{" + o.to("v1") + "}]\n" +
			"    requestMutation: [{key: foo, value: bar}, {key: foo1, value: bar1}]\n")
		a := c.Call(peers.Command{Method: "attachments", Attachments: map[string]any{"foo": "mine", "kept": "k"}})
		require.Empty(t, a.Error)
		got := a.Value.(map[string]any)
		require.Equal(t, "bar", got["foo"])
		require.Equal(t, "bar1", got["foo1"])
		require.Equal(t, "k", got["kept"])
	})
	t.Run("M9 mirror", func(t *testing.T) {
		// Servers count what they are told.
		tell := peers.Command{Method: "tell", Args: []any{"x"}, Concurrency: 4}
		asked := map[string]*peers.Consumer{}
		for _, v := range []string{"v1", "v2"} {
			asked[v] = peers.DubboGo.Consumer(t, targetPort, peers.ConsumerOptions{Place: at(o.servers[v], o.servers[v].IP)})
		}
		told := func(version string) int {
			a := asked[version].Call(peers.Command{Method: "told"})
			require.Empty(t, a.Error)
			return int(a.Value.(float64))
		}
		mirrored := func() (n int) {
			for _, v := range o.client.Stats("outbound.*greeter.*[.]mirror$") {
				n += int(v)
			}
			return n
		}
		mirror := func(percentage string, calls int) (copies int) {
			o.metaRouter("  routes:\n  - route: [{" + o.to("v1") + "}]\n    mirror: " + strings.TrimPrefix(o.to("v2"), "destination: ") + "\n" + percentage)
			before, v1, v2 := mirrored(), told("v1"), told("v2")
			cmd := tell
			cmd.Count = calls
			require.Empty(t, c.Load(cmd).Errors)
			require.Equal(t, calls, told("v1")-v1)
			o.Eventually("all copies", func() bool {
				for _, active := range o.client.Stats("outbound.*greeter.*[.]mirror_active$") {
					if active != 0 {
						return false
					}
				}
				copies = mirrored() - before
				return told("v2")-v2 == copies
			})
			return copies
		}
		require.Equal(t, 50, mirror("", 50), "all")
		require.InDelta(t, 200, mirror("    mirrorPercentage: {value: 50}\n", 400), 90)
	})
	t.Run("M5 consistent hash", func(t *testing.T) {
		o.rule("  subsets:\n" +
			"  - {name: sample, labels: {app: greeter}, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: method}}}}\n" +
			"  - {name: users, labels: {app: greeter}, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: user}}}}\n")
		o.clusters("the subsets", func(dump string) bool { return strings.Contains(dump, o.cluster("users")) })
		o.metaRouter("  routes:\n  - {name: users, match: {attributes: {user: {}}}, route: [{" + o.to("users") + "}]}\n" +
			"  - {name: sample, route: [{" + o.to("sample") + "}]}\n")
		require.Len(t, answers(t, c, 100, "v1", "v2"), 1, "calls of one method")
		of := map[any]int{}
		for i := range 40 {
			cmd := who
			cmd.Attachments = map[string]any{"user": fmt.Sprint("user-", i)}
			first := c.Call(cmd)
			require.Empty(t, first.Error)
			require.Equal(t, first.Value, c.Call(cmd).Value)
			of[first.Value]++
		}
		require.Len(t, of, 2, "all users at one server")
		_, withVersions, _ := strings.Cut(greeterService, "---")
		o.Apply(withVersions)
		o.clusters("the versions", func(dump string) bool { return strings.Contains(dump, o.cluster("v1")) })
	})
	t.Run("M8 exportTo", func(t *testing.T) {
		guest := abroad.Pods(mesh.PodSpec{Name: "guest", Role: mesh.Sidecar})[0]
		stranger := foreign.Pods(mesh.PodSpec{Name: "stranger", Role: mesh.Sidecar})[0]
		o.metaRouter(fmt.Sprintf("  exportTo: [., %s]\n  routes: [{route: [{%s}]}]\n", abroad.Name, o.to("v1")))
		name := fmt.Sprintf("/meltemi-outbound-greeter.%s-%d", o.Name, port)
		o.Eventually("the filters in the namespaces", func() bool {
			made := "\n" + o.operator.Made() + "\n"
			return strings.Contains(made, "\n"+abroad.Name+name+"\n") && strings.Contains(made, "\n"+o.Name+name+"\n") &&
				strings.Count(made, name) == 2 && strings.Count(made, "/meltemi-inbound-greeter."+o.Name) == 1
		})
		o.Eventually("the routes", func() bool {
			return settled(guest) && o.reloads(guest) > 0 && !inListeners(stranger, "meltemi-outbound")
		})
		answers(t, c, 100, "v1")
		answers(t, peers.DubboGo.Consumer(t, port, peers.ConsumerOptions{Place: at(guest, o.vip)}), 100, "v1")
		o.unrouted(stranger)
	})
	t.Run("several hosts of a ServiceEntry", func(t *testing.T) { severalHosts(t, o) })
	t.Run("nothing is left", func(t *testing.T) {
		o.Delete("metarouter", "greeter")
		o.Eventually("routes without a router", func() bool {
			return !strings.Contains(o.client.Admin("/config_dump?resource=ecds_filters"), o.cluster("v1")) && settled(o.client)
		})
		require.Len(t, answers(t, c, 100, "v1", "v2"), 2)
	})
}

// severalHosts: each has an address that Istio has allocated, routes of its own, and
// servers at another port than the one that clients call.
func severalHosts(t *testing.T, o *operated) {
	// Istio tells proxies of allocated addresses that answer the names with them.
	client := o.Pods(mesh.PodSpec{Name: "resolver", Role: mesh.Sidecar, Env: []string{"ISTIO_META_DNS_CAPTURE=true"}})[0]
	hosts := map[string]string{"orders.example.com": "v1", "carts.example.com": "v2"}
	var b strings.Builder
	fmt.Fprintf(&b, `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: several}
spec:
  hosts: [orders.example.com, carts.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 20890, targetPort: %d, name: tcp-metaprotocol-dubbo, protocol: TCP}]
  endpoints:
`, targetPort)
	for _, v := range []string{"v1", "v2"} {
		fmt.Fprintf(&b, "  - {address: %s, labels: {version: %s, security.istio.io/tlsMode: istio}, serviceAccount: default}\n", o.servers[v].IP, v)
	}
	for host, version := range hosts {
		name, _, _ := strings.Cut(host, ".")
		fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[1]s}
spec: {host: %[2]s, subsets: [{name: only, labels: {version: %[3]s}}]}
---%[4]s`, name, host, version, router(name, host, "  routes: [{route: [{destination: {host: "+host+", subset: only}}]}]\n"))
	}
	// Istio's webhook refuses several hosts of one TCP port; installations without it have them.
	require.NoError(t, world.WithoutWebhook(func() { o.Apply(b.String()) }))
	address := func(host string) string {
		out, err := o.Kubectl("", "get", "serviceentry", "several", "-n", o.Name, "-o", fmt.Sprintf(`jsonpath={.status.addresses[?(@.host=="%s")].value}`, host))
		require.NoError(t, err)
		for _, a := range strings.Fields(out) {
			if net.ParseIP(a).To4() != nil {
				return a
			}
		}
		return ""
	}
	for host, version := range hosts {
		name, _, _ := strings.Cut(host, ".")
		o.conditions(name, "Accepted=True Programmed=True")
		client.WaitConfig("ecds_filters", "outbound-"+host)
		o.Eventually("the listener", func() bool { return serving(client, "outbound-"+host) })
		answers(t, peers.DubboGo.Consumer(t, 20890, peers.ConsumerOptions{Place: at(client, address(host))}), 100, version)
	}
	o.Delete("serviceentry", "several")
	o.Eventually("nothing of it", func() bool { return !strings.Contains(o.operator.Made(), "example.com") })
}

// TestWhatServersProxiesSeeTo: DubboAuthorizationPolicies and the global limit. Each
// connection of a client is one to the server's proxy here, as clients' proxies are not
// governed, so that what is new holds for the next one.
func TestWhatServersProxiesSeeTo(t *testing.T) {
	o := openOperated(t)
	abroad := world.Namespace(t)
	sees(abroad, o.Namespace)
	guest := abroad.Pods(mesh.PodSpec{Name: "guest", Role: mesh.Sidecar})[0]
	t.Cleanup(func() {
		for _, ns := range []string{o.Name, mesh.RootNamespace} {
			o.Kubectl("", "delete", "dubboauthorizationpolicies", "--all", "-n", ns)
		}
	})
	o.Apply(router("greeter", o.host(), "  exportTo: [\"~\"]\n  localRateLimit: {tokenBucket: {maxTokens: 100000, fillInterval: 1s}}\n"))
	o.conditions("greeter", "Accepted=True Programmed=True")
	server := o.servers["v1"]
	o.Endpoints("greeter", map[string]int{"tcp-metaprotocol-dubbo": targetPort}, server)
	o.Eventually("the endpoint", func() bool { return o.clusterHas(o.client, server) })
	o.Eventually("plain clients", func() bool {
		return !inListeners(o.client, "meltemi-outbound") && !inListeners(guest, "meltemi-outbound") && serving(server, "meltemi-inbound")
	})
	// who of the two may call a method, each in turn
	may := func(method string) (allowed string) {
		for i, p := range []*mesh.Pod{o.client, guest} {
			c := o.dial(p, fmt.Sprintf("%s:%d", o.vip, port))
			r := hello
			r.Method = method
			c.Ask(1, r)
			a := c.Read()
			c.Close()
			if a.Status == dubbotestOK {
				allowed += []string{"client ", "guest "}[i]
			} else {
				require.Contains(t, a.Text(), "RBAC", "%d", a.Status)
			}
		}
		return strings.TrimSpace(allowed)
	}
	const allow, deny = "ALLOW", "DENY"
	type policy struct{ namespace, name, selector, action, rules string }
	from := func(ns string) string { return fmt.Sprintf("[{from: [{source: {namespaces: [%s]}}]}]", ns) }
	principal := func(ns string) string {
		return fmt.Sprintf("[{from: [{source: {principals: [cluster.local/ns/%s/sa/default]}}]}]", ns)
	}
	for _, tc := range []struct {
		name            string
		policies        []policy
		hello, sayAsync string
	}{
		{"none", nil, "client guest", "client guest"},
		{
			"ALLOW by principal",
			[]policy{{o.Name, "own", "", allow, principal(o.Name)}},
			"client", "client",
		},
		{
			"ALLOW by namespace and method",
			[]policy{{o.Name, "guests", "", allow, strings.Replace(from(abroad.Name), "}}]}]", "}}], to: [{operation: {interfaces: ["+greeter+"], methods: [\"*Async\"]}}]}]", 1)}},
			"", "guest",
		},
		{
			"DENY in the root namespace, before ALLOW",
			[]policy{{mesh.RootNamespace, "everywhere", "", deny, principal(abroad.Name)}, {o.Name, "anybody", "", allow, "[{}]"}},
			"client", "client",
		},
		{
			"selectors",
			[]policy{{o.Name, "others", "{app: somebody}", deny, "[{}]"}, {mesh.RootNamespace, "greeters", "{app: greeter}", allow, from(abroad.Name)}},
			"guest", "guest",
		},
		{
			"DENY of a method",
			[]policy{{o.Name, "no-async", "", deny, "[{to: [{operation: {methods: [sayHelloAsync]}}]}]"}},
			"client guest", "",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, ns := range []string{o.Name, mesh.RootNamespace} {
				_, err := o.Kubectl("", "delete", "dubboauthorizationpolicies", "--all", "-n", ns)
				require.NoError(t, err)
			}
			var names []string
			for _, p := range tc.policies {
				selector := ""
				if p.selector != "" {
					selector = "  selector: {matchLabels: " + p.selector + "}\n"
				}
				require.NoError(t, o.Mesh.Apply(p.namespace, fmt.Sprintf(
					"apiVersion: dubbo.aeraki.io/v1alpha1\nkind: DubboAuthorizationPolicy\nmetadata: {name: %s}\nspec:\n%s  action: %s\n  rules: %s\n",
					p.name, selector, p.action, p.rules)))
				if !strings.Contains(selector, "somebody") {
					names = append(names, p.namespace+"/"+p.name+"[0]")
				}
			}
			inbound := fmt.Sprintf("meltemi-inbound-greeter.%s-%d", o.Name, targetPort)
			o.Eventually("these policies and no others", func() bool {
				b, err := json.Marshal(config(t, server, inbound))
				require.NoError(t, err)
				for _, n := range names {
					if !strings.Contains(string(b), n) {
						return false
					}
				}
				return strings.Count(string(b), "[0]") == len(names)
			})
			require.Equal(t, tc.hello, may("sayHello"), "sayHello")
			require.Equal(t, tc.sayAsync, may("sayHelloAsync"), "sayHelloAsync")
		})
	}
	_, err := o.Kubectl("", "delete", "dubboauthorizationpolicies", "--all", "-n", o.Name)
	require.NoError(t, err)

	t.Run("M7 the global limit", func(t *testing.T) {
		limiter := peers.StartRateLimiter(t, "domain: production\ndescriptors:\n- {key: method, value: who, rate_limit: {unit: year, requests_per_unit: 5}}\n")
		pod := o.Pods(mesh.PodSpec{Name: "ratelimit", Role: mesh.Stranger})[0]
		forward(t, pod, pod.IP+":8081", limiter.Socket)
		o.Apply("apiVersion: v1\nkind: Service\nmetadata: {name: ratelimit}\nspec: {ports: [{name: grpc-ratelimit, port: 8081}]}\n")
		o.Endpoints("ratelimit", map[string]int{"grpc-ratelimit": 8081}, pod)
		cluster := fmt.Sprintf("outbound|8081||ratelimit.%s.svc.cluster.local", o.Name)
		o.Eventually("the service", func() bool { return strings.Contains(server.Admin("/clusters"), cluster+"::"+pod.IP+":8081") })
		o.Apply(router("greeter", o.host(), fmt.Sprintf(`  exportTo: ["~"]
  globalRateLimit:
    domain: production
    match: {attributes: {method: {exact: who}}}
    rateLimitService: %s
    requestTimeout: 10s
    denyOnFail: true
    descriptors: [{property: method, descriptorKey: method}]
`, cluster)))
		o.conditions("greeter", "Accepted=True Programmed=True")
		server.WaitConfig("ecds_filters", `[.]ratelimit"`)
		c := o.consumer(peers.DubboGo, peers.ConsumerOptions{})
		passed := 0
		for range 10 {
			if a := c.Call(who); a.Error == "" {
				passed++
			}
			require.Empty(t, c.Call(peers.Command{Method: "sayHello", Args: []any{"x"}}).Error)
		}
		require.Equal(t, 5, passed)
	})
}

// dubbotestOK is the status of an answer without an error.
const dubbotestOK = 20

// forward takes connections to an address in a pod to a unix socket, until the end of the
// test.
func forward(t *testing.T, p *mesh.Pod, addr, socket string) {
	t.Helper()
	l, err := p.Listen(addr)
	require.NoError(t, err)
	var running sync.WaitGroup
	var mu sync.Mutex
	open := map[io.Closer]bool{}
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	running.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", socket)
			if err != nil {
				in.Close()
				continue
			}
			mu.Lock()
			open[in], open[out] = true, true
			mu.Unlock()
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				running.Go(func() {
					io.Copy(way[0], way[1])
					way[0].Close()
					way[1].Close()
				})
			}
		}
	})
}

// TestAGatewayOfTwoGovernedPorts is G1, and the two ports of one Gateway of which Aeraki
// loses one: what is routed anew is so on open connections. Nobody has opened the ports
// by VirtualServices.
func TestAGatewayOfTwoGovernedPorts(t *testing.T) {
	o := openOperated(t)
	gateway, outside, echoes := o.withEchoes()
	o.Apply(`
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{name: tcp-metaprotocol-thrift, port: 9090, targetPort: rpc}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 20880, name: tcp-metaprotocol-dubbo, protocol: TCP}, hosts: ["*"]}
  - {port: {number: 9090, name: tcp-metaprotocol-thrift, protocol: TCP}, hosts: ["*"]}
`)
	o.Endpoints("echo", map[string]int{"tcp-metaprotocol-thrift": 9091}, echoes...)
	steer := func(greeterVersion, echoVersion string) {
		before := o.reloads(gateway)
		o.Apply(router("greeter", o.host(), "  gateways: [gateway]\n  exportTo: [\"~\"]\n  routes: [{route: [{"+o.to(greeterVersion)+"}]}]\n") +
			"---" + router("echo", "echo", "  gateways: ["+o.Name+"/gateway]\n  exportTo: [\"~\"]\n  routes: [{route: [{destination: {host: echo, subset: "+echoVersion+"}}]}]\n"))
		o.Eventually("both filters at the gateway", func() bool {
			return o.reloads(gateway) >= before+2 && serving(gateway, "meltemi-gateway-echo") && serving(gateway, "meltemi-gateway-greeter")
		})
		for _, r := range []string{"greeter", "echo"} {
			o.conditions(r, "Accepted=True Programmed=True")
		}
	}
	steer("v1", "v2")
	require.Contains(t, o.operator.Made(), "/meltemi-inbound-echo."+o.Name+"-9091")
	dubbo := peers.DubboGo.Consumer(t, port, peers.ConsumerOptions{Place: at(outside, gateway.IP), Connections: 1})
	thrift := peers.ThriftGo.ClientIn(t, at(outside, gateway.IP), 9090, framed, 0)
	raw := o.dial(outside, fmt.Sprintf("%s:%d", gateway.IP, port))
	check := func(greeterVersion, echoVersion string) {
		t.Helper()
		for id := range uint64(5) {
			a := dubbo.Call(who)
			require.Empty(t, a.Error)
			require.Equal(t, greeterVersion, a.Value)
			a = thrift.Call(who)
			require.Empty(t, a.Error)
			require.Equal(t, "echo-"+echoVersion, a.Value)
			raw.Ask(id, hello)
			require.Equal(t, greeterVersion+": hello x", raw.Read().Text())
		}
	}
	check("v1", "v2")
	steer("v2", "v1")
	check("v2", "v1")
}

// TestObjectsComeAndGoInAnyOrder, each time in a namespace that is new: once all are there
// the same is written, and once they have gone nothing is left.
func TestObjectsComeAndGoInAnyOrder(t *testing.T) {
	op := operator(t)
	objects := []struct{ kind, name, text, mark string }{
		{"service", "greeter", `apiVersion: v1
kind: Service
metadata: {name: greeter}
spec: {clusterIP: 10.96.77.77, selector: {app: greeter}, ports: [{name: tcp-metaprotocol-dubbo, port: 20880, targetPort: 20881}, {name: tcp-metaprotocol-own, port: 9090}]}`, "meltemi-inbound-greeter.NS-20881"},
		{"destinationrule", "greeter", `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter}
spec: {host: greeter, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: user}}}}`, "hash_policies"},
		{"metarouter", "greeter", router("greeter", "greeter", "  gateways: [gateway]\n  routes: [{name: theirs, match: {attributes: {a: {exact: b}}}, route: [{destination: {host: entry.example.com, port: {number: 7000}}}]}, {route: [{destination: {host: greeter}}]}]\n"), `"theirs"`},
		{"gateway", "gateway", `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway}
spec: {selector: {istio: any}, servers: [{port: {number: 20880, name: tcp-metaprotocol-dubbo, protocol: TCP}, hosts: ["*"]}]}`, "NS/meltemi-gateway-greeter.NS.gateway-20880"},
		{"serviceentry", "entry", `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: entry}
spec: {hosts: [entry.example.com], addresses: [240.240.77.77], resolution: STATIC, endpoints: [{address: 10.250.0.1}], workloadSelector: null, ports: [{number: 7000, name: tcp-metaprotocol-dubbo, protocol: TCP}]}`, "meltemi-outbound-entry.example.com-7000"},
		{"metarouter", "entry", router("entry", "entry.example.com", "  exportTo: [.]\n  routes: [{directResponse: {status: BAD_REQUEST, body: closed}}]\n"), `"closed"`},
		{"applicationprotocol", "own", "apiVersion: metaprotocol.aeraki.io/v1alpha1\nkind: ApplicationProtocol\nmetadata: {name: own}\nspec: {protocol: own, codec: aeraki.meta_protocol.codec.thrift}", "codec.thrift"},
		{"dubboauthorizationpolicy", "own", "apiVersion: dubbo.aeraki.io/v1alpha1\nkind: DubboAuthorizationPolicy\nmetadata: {name: own}\nspec: {rules: [{to: [{operation: {methods: [sayHello]}}]}]}", "NS/own[0]"},
	}
	made := func(n *mesh.Namespace) string {
		out, err := n.Kubectl("", "get", "envoyfilters,virtualservices", "-A", "-l", "app.kubernetes.io/managed-by=meltemi-operator", "-o",
			`jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {.spec}{"\n"}{end}`)
		require.NoError(t, err)
		return strings.ReplaceAll(out, n.Name, "NS")
	}
	var want string
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			n := world.Namespace(t)
			t.Cleanup(func() {
				for _, o := range objects {
					n.Kubectl("", "delete", o.kind, o.name, "-n", n.Name, "--ignore-not-found")
				}
			})
			for _, i := range random.Perm(len(objects)) {
				n.Apply(objects[i].text)
			}
			var got string
			n.Eventually("what all of the objects say", func() bool {
				got = made(n)
				for _, o := range objects {
					if !strings.Contains(got, o.mark) {
						return false
					}
				}
				return want == "" || got == want
			})
			for _, r := range []string{"greeter", "entry"} {
				conditions(n, r, "Accepted=True Programmed=True")
			}
			want = made(n)
			for _, i := range random.Perm(len(objects)) {
				n.Delete(objects[i].kind, objects[i].name)
			}
			n.Eventually("nothing", func() bool { return op.Made() == "" })
		})
	}
}

// TestZooKeeperIsObserved: Envoy's own filter counts what goes through the sidecars of both
// sides, once, although two services have the workloads. Kafka's, which no proxy here has,
// goes to none.
func TestZooKeeperIsObserved(t *testing.T) {
	operator(t)
	n := world.Namespace(t)
	stats := map[string]any{"proxyStatsMatcher": map[string]any{"inclusionRegexps": []string{".*zookeeper.*"}}}
	pods := n.Pods(
		mesh.PodSpec{Name: "client", Role: mesh.Sidecar, ProxyConfig: stats},
		mesh.PodSpec{Name: "keeper", Role: mesh.Sidecar, ProxyConfig: stats, Labels: map[string]string{"app": "keeper"}},
	)
	client, keeper := pods[0], pods[1]
	serveZooKeeper(t, keeper, keeper.IP+":12181")
	n.Apply(`
apiVersion: v1
kind: Service
metadata: {name: keeper}
spec: {selector: {app: keeper}, ports: [{name: tcp-zookeeper, port: 2181, targetPort: 12181}, {name: tcp-kafka, port: 9092}]}
---
apiVersion: v1
kind: Service
metadata: {name: ensemble}
spec: {clusterIP: None, selector: {app: keeper}, ports: [{name: tcp-zookeeper, port: 12181}]}
`)
	n.Endpoints("keeper", map[string]int{"tcp-zookeeper": 12181, "tcp-kafka": 9092}, keeper)
	n.Endpoints("ensemble", map[string]int{"tcp-zookeeper": 12181}, keeper)
	vip := n.VIP("keeper")
	n.Eventually("the filters", func() bool {
		return serving(client, "outbound|2181||keeper."+n.Name) && serving(client, "outbound|12181||ensemble."+n.Name) && serving(keeper, "zookeeper_proxy")
	})
	nc, err := client.Dial(vip + ":2181")
	require.NoError(t, err)
	defer nc.Close()
	const exists = 3
	for _, request := range [][]byte{
		// protocol version, last zxid, timeout in ms, session, password, whether read-only
		zooFrame(int32(0), int64(0), int32(30000), int64(0), int32(16), make([]byte, 16), false),
		zooFrame(int32(1), int32(exists), int32(2), []byte("/a"), false),
		zooFrame(int32(2), int32(exists), int32(2), []byte("/b"), false),
	} {
		_, err := nc.Write(request)
		require.NoError(t, err)
		_, err = readZooFrame(nc)
		require.NoError(t, err)
	}
	for p, prefix := range map[*mesh.Pod]string{
		client: fmt.Sprintf("outbound|2181||keeper.%s.svc.cluster.local.zookeeper.", n.Name),
		keeper: "inbound|12181||.zookeeper.",
	} {
		got := map[string]int64{}
		for name, v := range p.Stats("zookeeper") {
			if metric, ours := strings.CutPrefix(name, prefix); ours && v != 0 {
				got[metric] = v
			}
		}
		for metric, want := range map[string]int64{"connect_rq": 1, "connect_resp": 1, "exists_rq": 2, "exists_resp": 2, "decoder_error": 0} {
			require.Equal(t, want, got[metric], "%s of %s: %v", metric, p.Name, got)
		}
		require.False(t, inListeners(p, "kafka_broker"), p.Name)
	}
}

// zooFrame is a message of ZooKeeper's: its length, and fields.
func zooFrame(fields ...any) []byte {
	var b bytes.Buffer
	for _, f := range fields {
		binary.Write(&b, binary.BigEndian, f) // into memory
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(b.Len())), b.Bytes()...)
}

func readZooFrame(r io.Reader) ([]byte, error) {
	var length uint32
	if err := binary.Read(r, binary.BigEndian, &length); err != nil {
		return nil, err
	}
	body := make([]byte, min(length, 1<<20))
	_, err := io.ReadFull(r, body)
	return body, err
}

// serveZooKeeper answers connections at an address in a pod as a server does: what begins a
// session with one, and everything else with its number and no error.
func serveZooKeeper(t *testing.T, p *mesh.Pod, addr string) {
	t.Helper()
	l, err := p.Listen(addr)
	require.NoError(t, err)
	var running sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				if _, err := readZooFrame(c); err != nil {
					return
				}
				c.Write(zooFrame(int32(0), int32(30000), int64(7), int32(16), make([]byte, 16), false))
				for {
					request, err := readZooFrame(c)
					if err != nil || len(request) < 4 {
						return
					}
					c.Write(zooFrame(request[:4], int64(1), int32(0), make([]byte, 68))) // a Stat
				}
			})
		}
	})
}
