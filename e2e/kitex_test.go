package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// kitexForms are what a Kitex client can be told to speak, and how.
var kitexForms = []peers.KitexOptions{
	{Transport: "ttheader", Connections: "short"},
	{Transport: "ttheader", Connections: "long"},
	{Transport: "ttheader", Connections: "mux"},
	{Transport: "ttheaderframed", Connections: "short"},
	{Transport: "framed", Connections: "long"},
}

func isTTHeader(o peers.KitexOptions) bool { return o.Transport != "framed" }

// kitexName is the name of a server that a client of that form can call.
func kitexName(o peers.KitexOptions) string {
	if o.Connections == "mux" {
		return "mux"
	}
	return "plain"
}

// checkKitexCalls makes a call of every kind. name is the server's, c may reach
// it directly or through a proxy: nothing of this depends on it.
func checkKitexCalls(t *testing.T, o peers.KitexOptions, c *peers.Consumer, name string) {
	t.Helper()
	ok := func(want any, cmd peers.Command) {
		t.Helper()
		a := c.Call(cmd)
		require.Empty(t, a.Error)
		require.EqualValues(t, want, a.Value)
	}
	told := func() int {
		t.Helper()
		a := c.Call(thriftCall("told"))
		require.Empty(t, a.Error)
		return int(a.Value.(float64))
	}
	ok(name, thriftCall("who"))
	ok(name+": größer 世界 🙂", thriftCall("echo", "größer 世界 🙂"))

	before := told()
	ok(nil, thriftCall("touch", "k"))
	require.Equal(t, before+1, told(), "void")

	a := c.Call(thriftCall("fail", -7))
	require.Equal(t, "Refusal", a.ErrorType, a.Error)
	require.Equal(t, "refused by "+name+" (code -7)", a.Error)
	a = c.Call(thriftCall("crash"))
	require.Equal(t, calls.ThriftInternalError, a.ErrorType, a.Error)
	require.Contains(t, a.Error, "crash in "+name)

	// With short connections the client closes right after each.
	oneway := thriftCall("tell", "x")
	oneway.Count, oneway.Concurrency = 50, 5
	require.Empty(t, c.Load(oneway).Errors)
	require.Eventually(t, func() bool { return told() == before+51 }, patience, tick, "oneway")

	if isTTHeader(o) {
		a = c.Call(thriftCall("business", 404))
		require.Equal(t, "BizStatusError", a.ErrorType, a.Error)
		require.Equal(t, "business of "+name+" (code 404, extra map[k:v])", a.Error)

		cmd := thriftCall("headers")
		cmd.Attachments = map[string]any{"RPC_TRANSIT_tenant": "acme", "RPC_PERSIST_region": "väl ue"}
		a = c.Call(cmd)
		require.Empty(t, a.Error)
		require.Equal(t, cmd.Attachments, a.Value)
		require.Equal(t, map[string]any{"served-by": name}, a.Attachments)
	}

	blob := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("meltemi\x00\xff"), 1<<20/9))
	ok(blob, thriftCall("blob", blob))

	many := thriftCall("echo", "all")
	many.Count, many.Concurrency = 300, 10
	s := c.Load(many)
	require.Empty(t, s.Errors)
	require.Equal(t, map[string]int{name + ": all": 300}, s.Values)

	slow := thriftCall("slow", 1000)
	slow.TimeoutMS = 100
	require.Equal(t, "timeout", c.Call(slow).ErrorType)
	ok(name+": still here", thriftCall("echo", "still here"))

	// Last: the server closes the connection behind this answer, and what is
	// written to it at that moment is lost.
	a = c.Call(thriftCall("noSuch", "x"))
	require.Equal(t, calls.ThriftUnknownMethod, a.ErrorType, a.Error)
}

// kitexServers starts one of each kind.
func kitexServers(t *testing.T) map[string]int {
	t.Helper()
	return map[string]int{
		"plain": peers.KitexServer(t, "plain", false).Port,
		"mux":   peers.KitexServer(t, "mux", true).Port,
	}
}

// TestKitexDirect proves the peers and the table of calls without any proxy
// between them.
func TestKitexDirect(t *testing.T) {
	t.Parallel()
	servers := kitexServers(t)
	for _, o := range kitexForms {
		t.Run(fmt.Sprint(o), func(t *testing.T) {
			checkKitexCalls(t, o, peers.KitexClient(t, servers[kitexName(o)], o), kitexName(o))
		})
	}
}

// TestKitexCalls makes calls of every kind between Kitex clients and servers.
func TestKitexCalls(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		servers := kitexServers(t)
		for _, multiplexing := range []bool{false, true} {
			e := v.startThrifts(t, servers, func(name string) envoytest.M {
				c := thriftTo(name)
				c["protocol"].(envoytest.M)["multiplexing"] = multiplexing
				return c
			})
			for _, o := range kitexForms {
				t.Run(fmt.Sprintf("%v, multiplexing %v", o, multiplexing), func(t *testing.T) {
					name := kitexName(o)
					stats := "meta_protocol.thrift." + name + "."
					business, oneways := e.Stat(stats+"response_business_exception"), e.Stat(stats+"request_oneway")
					checkKitexCalls(t, o, peers.KitexClient(t, e.Port(name), o), name)
					e.WaitStat(stats+"request_oneway", envoytest.Exactly(oneways+50))
					want := business + 1 // the declared exception
					if isTTHeader(o) {
						want++
					}
					e.WaitStat(stats+"response_business_exception", envoytest.Exactly(want))
					checkCountersOf(t, e, stats)
				})
			}
		}
	})
}

// TestKitexAndApache: Kitex without a header and Apache Thrift speak the same.
func TestKitexAndApache(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		w := peers.Wire{Transport: "framed", Protocol: "strict"}
		e := v.startThrifts(t, map[string]int{
			"kitex":  peers.KitexServer(t, "kitex", false).Port,
			"apache": peers.ThriftGo.Server(t, "apache", w).Port,
		}, thriftTo)
		for name, c := range map[string]*peers.Consumer{
			"apache": peers.KitexClient(t, e.Port("apache"), peers.KitexOptions{Transport: "framed", Connections: "long"}),
			"kitex":  peers.ThriftPython.Client(t, e.Port("kitex"), w, 0),
		} {
			require.Equal(t, name+": x", c.Call(thriftCall("echo", "x")).Value)
			require.Equal(t, "Refusal", c.Call(thriftCall("fail", 3)).ErrorType)
			require.Equal(t, calls.ThriftInternalError, c.Call(thriftCall("crash")).ErrorType)
			require.Equal(t, calls.ThriftUnknownMethod, c.Call(thriftCall("noSuch", "x")).ErrorType)
			require.Empty(t, c.Call(thriftCall("tell", "x")).Error)
			require.Eventually(t, func() bool { return c.Call(thriftCall("told")).Value == 1.0 }, patience, tick)
			checkCountersOf(t, e, "meta_protocol.thrift."+name+".")
		}
	})
}

// TestKitexRoutes routes on what is in a TTHeader, and changes it in both
// directions.
func TestKitexRoutes(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		mutating := envoytest.Route("canary", map[string]string{"RPC_TRANSIT_tenant": "acme", "service": "Echo"})
		mutating["request_mutation"] = []any{
			envoytest.M{"key": "RPC_TRANSIT_added", "value": "by the route"}, envoytest.M{"key": "RPC_TRANSIT_tenant", "value": "ACME"},
		}
		mutating["response_mutation"] = []any{envoytest.M{"key": "via", "value": "meltemi"}, envoytest.M{"key": "served-by", "value": "somebody"}}
		alsoMutating := envoytest.Route("plain", map[string]string{"method": "echo"})
		alsoMutating["request_mutation"] = mutating["request_mutation"]
		alsoMutating["response_mutation"] = mutating["response_mutation"]
		var clusters []envoytest.Resource
		for _, name := range []string{"plain", "canary", "decoy"} {
			clusters = append(clusters, envoytest.Cluster(name, envoytest.At(peers.KitexServer(t, name, false).Port)...))
		}
		e := v.start(t, envoytest.Protocol("thrift", "test",
			envoytest.Route("decoy", map[string]string{"RPC_TRANSIT_tenant": "acme", "service": "Unserved"}),
			envoytest.Route("decoy", map[string]string{"RPC_PERSIST_tenant": "acme"}),
			mutating,
			alsoMutating,
			envoytest.Route("plain", map[string]string{"to-method": "touch"}), // a number on the wire
			envoytest.Route("plain", map[string]string{"method": "who"}),
			envoytest.Route("plain", map[string]string{"method": "headers"}),
			envoytest.Route("decoy", map[string]string{"method": "who"}),
		), clusters...)
		for _, o := range []peers.KitexOptions{
			{Transport: "ttheader", Connections: "short"},
			{Transport: "ttheaderframed", Connections: "long"},
			{Transport: "framed", Connections: "long"},
		} {
			t.Run(fmt.Sprint(o), func(t *testing.T) {
				c := peers.KitexClient(t, e.Port("thrift"), o)
				call := func(cmd peers.Command) peers.Answer {
					t.Helper()
					a := c.Call(cmd)
					require.Empty(t, a.Error)
					return a
				}
				require.Equal(t, "plain", call(thriftCall("who")).Value)
				none := c.Call(thriftCall("told"))
				require.Contains(t, none.Error, "no route")
				require.Contains(t, none.ErrorType, "TApplicationException")

				if touched := c.Call(thriftCall("touch", "k")); isTTHeader(o) {
					require.Empty(t, touched.Error)
				} else {
					require.Contains(t, touched.Error, "no route")
				}

				tenant := thriftCall("who")
				tenant.Attachments = map[string]any{"RPC_TRANSIT_tenant": "acme"}
				skipped := e.Stat(thriftStats + "mutation_skipped")
				if !isTTHeader(o) {
					require.Equal(t, "plain", call(tenant).Value, "metainfo that is not sent")
					require.Equal(t, "plain: x", call(thriftCall("echo", "x")).Value)
					e.WaitStat(thriftStats+"mutation_skipped", envoytest.Exactly(skipped+2))
					return
				}
				require.Equal(t, "canary", call(tenant).Value)
				tenant.Method = "headers"
				tenant.Attachments["RPC_PERSIST_region"] = "eu"
				a := call(tenant)
				require.Equal(t, map[string]any{"RPC_TRANSIT_tenant": "ACME", "RPC_TRANSIT_added": "by the route", "RPC_PERSIST_region": "eu"}, a.Value)
				require.Equal(t, map[string]any{"served-by": "somebody", "via": "meltemi"}, a.Attachments)
				require.Equal(t, map[string]any{"served-by": "plain"}, call(thriftCall("headers")).Attachments)
				require.Equal(t, map[string]any{"served-by": "somebody", "via": "meltemi"}, call(thriftCall("echo", "x")).Attachments)
				require.Equal(t, skipped, e.Stat(thriftStats+"mutation_skipped"))
			})
		}
		checkCountersOf(t, e, thriftStats)
	})
}

// TestKitexMux: one connection of a client, one to the server, and the fast calls
// are answered before the slow ones that were sent before them.
func TestKitexMux(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := peers.KitexServer(t, "s1", true)
		config := thriftTo("s1")
		config["protocol"].(envoytest.M)["multiplexing"] = true
		config["upstream"] = envoytest.M{"max_connections": 1}
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
		c := peers.KitexClient(t, e.Port("thrift"), peers.KitexOptions{Connections: "mux"})
		require.Equal(t, "s1", c.Call(thriftCall("who")).Value)

		const slowness = 5 * time.Second
		slow := thriftCall("slow", slowness.Milliseconds())
		slow.Count, slow.Concurrency, slow.Summary, slow.TimeoutMS = 20, 20, true, 30_000
		pending := c.Go(slow)
		e.WaitStat(thriftStats+"request_active", envoytest.Exactly(20))
		fast := thriftCall("echo", "fast")
		fast.Count, fast.Concurrency = 200, 10
		sum := c.Load(fast)
		require.Empty(t, sum.Errors)
		require.Less(t, sum.LatencyUS["max"], slowness.Microseconds())
		e.WaitStat(thriftStats+"request_active", envoytest.Exactly(20)) // the slow ones, which came before
		require.Equal(t, map[string]int{"s1": 20}, pending.Summary().Values)
		require.EqualValues(t, 1, e.Stat("listener.127.0.0.1_0.downstream_cx_total"))
		v.shares(t, e, "s1")
		checkCountersOf(t, e, thriftStats)
	})
}

// TestAKitexServerThatStopsIsLeft: it says so on every connection, and nothing is
// sent to it from then on.
func TestAKitexServerThatStopsIsLeft(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		for _, multiplexing := range []bool{false, true} {
			t.Run(fmt.Sprintf("multiplexing %v", multiplexing), func(t *testing.T) {
				stops, stays := peers.KitexServer(t, "stops", true), peers.KitexServer(t, "stays", true)
				config := thriftTo("both")
				config["protocol"].(envoytest.M)["multiplexing"] = multiplexing
				e := v.start(t, config, envoytest.Cluster("both", envoytest.At(stops.Port, stays.Port)...))
				c := peers.KitexClient(t, e.Port("thrift"), peers.KitexOptions{Connections: "mux"})
				load := thriftCall("slow", 20)
				load.Count, load.Concurrency, load.Summary = 800, 8, true
				pending := c.Go(load)
				e.WaitStat(thriftStats+"request_twoway", envoytest.AtLeast(50))
				require.NoError(t, stops.Terminate(patience))
				sum := pending.Summary()
				// On a busy machine the server itself drops calls that are under way when
				// it stops. What came later went elsewhere.
				require.LessOrEqual(t, sum.Failed(), load.Concurrency, "%v", sum.Errors)
				require.Positive(t, sum.Values["stops"])
				require.Positive(t, sum.Values["stays"])
				require.Positive(t, e.Stat(thriftStats+"upstream_event"))
				checkCountersOf(t, e, thriftStats)
			})
		}
	})
}

// TestKitexLocalErrors: Meltemi's own errors are remote exceptions to Kitex
// clients of every form.
func TestKitexLocalErrors(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		e := v.startThrifts(t, kitexServers(t), func(name string) envoytest.M {
			c := envoytest.Protocol("thrift", "test",
				envoytest.Route("never-defined", map[string]string{"method": "echo"}),
				envoytest.Route(name, map[string]string{"method": "slow"}),
				envoytest.Route(name, map[string]string{"method": "who"}),
			)
			c["request_timeout"] = "1s"
			return c
		})
		for _, o := range kitexForms {
			t.Run(fmt.Sprint(o), func(t *testing.T) {
				name := kitexName(o)
				c := peers.KitexClient(t, e.Port(name), o)
				for _, tc := range []struct {
					cmd  peers.Command
					text string
				}{
					{thriftCall("told"), "no route"},
					{thriftCall("echo", "x"), "never-defined"},
					{thriftCall("slow", 5000), "timeout"},
				} {
					a := c.Call(tc.cmd)
					require.Contains(t, a.ErrorType, "TApplicationException", a.Error)
					require.Contains(t, a.Error, tc.text)
					require.Less(t, a.LatencyUS, int64(4_500_000), "the server is slower")
					require.Equal(t, name, c.Call(thriftCall("who")).Value)
				}
				checkCountersOf(t, e, "meta_protocol.thrift."+name+".")
			})
		}
	})
}
