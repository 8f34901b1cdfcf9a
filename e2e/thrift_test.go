package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// thriftStats begins the names of the counters of the listener thriftTo makes.
const thriftStats = "meta_protocol.thrift.test."

// The wire forms that both libraries have. A header has its binary always with
// a version.
var thriftWires = []peers.Wire{
	{Transport: "framed", Protocol: "strict"},
	{Transport: "framed", Protocol: "lax"},
	{Transport: "framed", Protocol: "compact"},
	{Transport: "unframed", Protocol: "strict"},
	{Transport: "unframed", Protocol: "lax"},
	{Transport: "unframed", Protocol: "compact"},
	{Transport: "header", Protocol: "strict"},
	{Transport: "header", Protocol: "compact"},
	{Transport: "header", Protocol: "strict", Zlib: true},
	{Transport: "header", Protocol: "compact", Zlib: true},
}

var thriftLibraries = []peers.Thrift{peers.ThriftGo, peers.ThriftPython}

// thriftClients make calls of every kind in a wire form.
func thriftClients(w peers.Wire) []peers.Thrift {
	if w.Zlib {
		return thriftLibraries
	}
	return append(slices.Clip(thriftLibraries), peers.ThriftCpp)
}

func thriftCall(method string, args ...any) peers.Command {
	return peers.Command{Method: method, Args: args}
}

// TestThriftDirect proves the peers and the table of calls without any proxy
// between them, so that a failure elsewhere is the proxy's.
func TestThriftDirect(t *testing.T) {
	t.Parallel()
	for _, server := range thriftLibraries {
		for _, w := range thriftWires {
			s := server.Server(t, "s1", w)
			for _, client := range thriftClients(w) {
				t.Run(fmt.Sprintf("%s to %s, %s", client, server, w), func(t *testing.T) {
					calls.Thrift(t, w, client.Client(t, s.Port, w, 0), "s1")
				})
			}
		}
	}
}

// thriftTo is a configuration that sends everything to one cluster.
func thriftTo(cluster string) envoytest.M {
	return envoytest.Protocol("thrift", "test", envoytest.Route(cluster, nil))
}

// startThrifts runs an Envoy with a listener and a cluster for each of several
// servers, all named alike; config makes a listener's configuration of the name
// of its cluster.
func (v variant) startThrifts(t *testing.T, servers map[string]int, config func(name string) envoytest.M) *envoytest.Envoy {
	t.Helper()
	o := v.options()
	o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket())}
	for name, port := range servers {
		o.Clusters = append(o.Clusters, envoytest.Cluster(name, envoytest.At(port)...))
		c := config(name)
		c["stat_prefix"] = name
		o.Listeners = append(o.Listeners, envoytest.Listener(name, envoytest.Proxy(c)))
	}
	return envoytest.Start(t, o)
}

func thriftName(w peers.Wire) string { return strings.ReplaceAll(w.String(), " ", "-") }

// TestThriftPairings makes calls of every kind between real clients and servers,
// in every wire form.
func TestThriftPairings(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		for _, server := range thriftLibraries {
			servers := map[string]int{}
			for _, w := range thriftWires {
				servers[thriftName(w)] = server.Server(t, "s1", w).Port
			}
			e := v.startThrifts(t, servers, func(name string) envoytest.M {
				c := thriftTo(name)
				c["request_timeout"] = "3s" // the end of Go's oneways
				return c
			})
			for _, w := range thriftWires {
				for _, client := range thriftClients(w) {
					t.Run(fmt.Sprintf("%s to %s, %s", client, server, w), func(t *testing.T) {
						calls.Thrift(t, w, client.Client(t, e.Port(thriftName(w)), w, 0), "s1")
					})
				}
			}
			for _, w := range thriftWires {
				checkCountersOf(t, e, "meta_protocol.thrift."+thriftName(w)+".")
			}
		}
	})
}

// TestThriftEverywhere is a part of TestThriftPairings.
func TestThriftEverywhere(t *testing.T) {
	t.Parallel()
	pairings := []struct {
		client, server peers.Thrift
		wire           peers.Wire
	}{
		{peers.ThriftGo, peers.ThriftPython, peers.Wire{Transport: "header", Protocol: "compact"}},
		{peers.ThriftPython, peers.ThriftGo, peers.Wire{Transport: "framed", Protocol: "strict"}},
		{peers.ThriftGo, peers.ThriftGo, peers.Wire{Transport: "unframed", Protocol: "strict"}},
	}
	everywhere(t, func(t *testing.T, v variant) {
		for _, p := range pairings {
			t.Run(fmt.Sprintf("%s to %s, %s", p.client, p.server, p.wire), func(t *testing.T) {
				s := p.server.Server(t, "s1", p.wire)
				config := thriftTo("s1")
				config["request_timeout"] = "3s" // the end of Go's oneways
				e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
				calls.Thrift(t, p.wire, p.client.Client(t, e.Port("thrift"), p.wire, 0), "s1")
				e.WaitStat(thriftStats+"response_business_exception", envoytest.Exactly(1)) // what the service declares
				e.WaitStat(thriftStats+"response_error", envoytest.Exactly(2))              // what it does not, and no such method
				checkCountersOf(t, e, thriftStats)
			})
		}
	})
}

// TestThriftWiresOfOneListener: clients of all wire forms call one server that
// understands them, through one listener. It answers each in its own form, so
// they must not meet on a connection.
func TestThriftWiresOfOneListener(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		for _, multiplexing := range []bool{false, true} {
			t.Run(fmt.Sprintf("multiplexing %v", multiplexing), func(t *testing.T) {
				s := peers.ThriftGo.Server(t, "s1", peers.Wire{Transport: "header", Protocol: "strict"})
				config := thriftTo("s1")
				config["protocol"].(envoytest.M)["multiplexing"] = multiplexing
				e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
				cmd := thriftCall("echo", "x")
				cmd.Count, cmd.Concurrency, cmd.Summary = 300, 3, true
				var all []*peers.Pending
				for _, w := range thriftWires {
					// Nobody detects binary without a version.
					if w.Protocol != "lax" {
						for _, client := range thriftLibraries {
							all = append(all, client.Client(t, e.Port("thrift"), w, 0).Go(cmd))
						}
					}
				}
				for _, p := range all {
					sum := p.Summary()
					require.Empty(t, sum.Errors)
					require.Equal(t, map[string]int{"s1: x": 300}, sum.Values)
				}
				checkCountersOf(t, e, thriftStats)
			})
		}
	})
}

// TestThriftRoutes routes real calls on everything that they carry, and changes
// headers in both directions.
func TestThriftRoutes(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		header := peers.Wire{Transport: "header", Protocol: "strict"}
		clusters := map[string]int{}
		for i, name := range []string{"plain", "audit", "canary", "decoy"} {
			// A server of headers understands clients without them too.
			clusters[name] = thriftLibraries[i%2].Server(t, name, header).Port
		}
		mutating := envoytest.Route("canary", map[string]string{"tenant": "acme"})
		mutating["request_mutation"] = []any{envoytest.M{"key": "added", "value": "by the route"}, envoytest.M{"key": "tenant", "value": "ACME"}}
		mutating["response_mutation"] = []any{envoytest.M{"key": "via", "value": "meltemi"}, envoytest.M{"key": "served-by", "value": "somebody"}}
		alsoMutating := envoytest.Route("plain", map[string]string{"method": "echo"})
		alsoMutating["request_mutation"] = mutating["request_mutation"]
		alsoMutating["response_mutation"] = mutating["response_mutation"]
		o := v.options()
		for name, port := range clusters {
			o.Clusters = append(o.Clusters, envoytest.Cluster(name, envoytest.At(port)...))
		}
		o.Listeners = []envoytest.Resource{
			envoytest.Loopback(envoytest.Socket()),
			envoytest.Listener("thrift", envoytest.Proxy(envoytest.Protocol("thrift", "test",
				mutating,
				envoytest.Route("decoy", map[string]string{"service": "audit", "method": "wh"}),
				envoytest.Route("decoy", map[string]string{"tenant": "acm"}),
				envoytest.Route("audit", map[string]string{"service": "Audit"}),
				alsoMutating,
				envoytest.Route("plain", map[string]string{"method": "who"}),
				envoytest.Route("plain", map[string]string{"method": "headers"}),
				envoytest.Route("decoy", map[string]string{"method": "who"}),
			))),
		}
		e := envoytest.Start(t, o)

		for _, client := range thriftLibraries {
			for _, w := range []peers.Wire{
				header,
				{Transport: "header", Protocol: "compact", Zlib: true},
				{Transport: "framed", Protocol: "strict"},
				{Transport: "unframed", Protocol: "compact"},
			} {
				t.Run(fmt.Sprintf("%s, %s", client, w), func(t *testing.T) {
					c := client.Client(t, e.Port("thrift"), w, 0)
					call := func(cmd peers.Command) peers.Answer {
						t.Helper()
						a := c.Call(cmd)
						require.Empty(t, a.Error)
						return a
					}
					require.Equal(t, "plain", call(thriftCall("who")).Value)
					audit := thriftCall("who")
					audit.Interface = "Audit"
					require.Equal(t, "audit", call(audit).Value)
					require.Contains(t, c.Call(thriftCall("told")).Error, "no route")
					require.Equal(t, "plain", call(thriftCall("who")).Value, "after the local error")

					tenant := thriftCall("who")
					tenant.Attachments = map[string]any{"tenant": "acme"}
					skipped := e.Stat(thriftStats + "mutation_skipped")
					if w.Transport != "header" {
						require.Equal(t, "plain", call(tenant).Value, "headers that are not sent")
						// It passes unchanged, in both directions.
						require.Equal(t, "plain: x", call(thriftCall("echo", "x")).Value)
						e.WaitStat(thriftStats+"mutation_skipped", envoytest.Exactly(skipped+2))
						return
					}
					require.Equal(t, "canary", call(tenant).Value)
					tenant.Attachments = map[string]any{"tenant": "other"}
					require.Equal(t, "plain", call(tenant).Value)

					mutated := thriftCall("headers")
					mutated.Attachments = map[string]any{"tenant": "acme", "kept": "as is"}
					a := call(mutated)
					require.Equal(t, map[string]any{"tenant": "ACME", "kept": "as is", "added": "by the route"}, a.Value)
					require.Equal(t, map[string]any{"served-by": "somebody", "via": "meltemi"}, a.Attachments)
					require.Equal(t, map[string]any{"served-by": "plain"}, call(thriftCall("headers")).Attachments)
					// A message without headers gets some.
					a = call(thriftCall("echo", "x"))
					require.Equal(t, map[string]any{"served-by": "somebody", "via": "meltemi"}, a.Attachments)
					require.Equal(t, skipped, e.Stat(thriftStats+"mutation_skipped"))
				})
			}
		}
		checkCountersOf(t, e, thriftStats)
	})
}

// TestThriftLocalErrors proves that real clients report Meltemi's own errors as
// the exceptions that they are, with Meltemi's text, and go on with the same
// connection.
func TestThriftLocalErrors(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		servers := map[string]int{}
		for _, w := range thriftWires {
			servers[thriftName(w)] = peers.ThriftGo.Server(t, "s1", w).Port
		}
		e := v.startThrifts(t, servers, func(name string) envoytest.M {
			c := envoytest.Protocol("thrift", "test",
				envoytest.Route("never-defined", map[string]string{"method": "echo"}),
				envoytest.Route(name, map[string]string{"method": "slow"}),
				envoytest.Route(name, map[string]string{"method": "who"}),
			)
			c["request_timeout"] = "0.3s"
			return c
		})
		multiplexed := func(cmd peers.Command) peers.Command {
			cmd.Interface = "Echo"
			return cmd
		}
		for _, w := range thriftWires {
			clients := thriftClients(w)
			if !w.Zlib {
				clients = append(clients, peers.ThriftCppShared)
			}
			if w.Transport != "header" {
				clients = append(clients, peers.ThriftNode, peers.ThriftJava)
			}
			for _, client := range clients {
				t.Run(fmt.Sprintf("%s, %s", client, w), func(t *testing.T) {
					const listeners = "listener.127.0.0.1_0.downstream_cx_total" // of all together
					before := e.Stat(listeners)
					c := client.Client(t, e.Port(thriftName(w)), w, 0)
					for _, tc := range []struct {
						cmd  peers.Command
						text string
					}{
						{thriftCall("add", 1, 2), "no route"},
						{multiplexed(thriftCall("add", 1, 2)), "no route"},
						{thriftCall("echo", "x"), "never-defined"},
						{multiplexed(thriftCall("slow", 2000)), "timeout"},
					} {
						a := c.Call(tc.cmd)
						require.True(t, strings.HasPrefix(a.ErrorType, "TApplicationException "), "%s: %s", a.ErrorType, a.Error)
						require.Contains(t, a.Error, tc.text)
						require.Less(t, a.LatencyUS, int64(1_500_000))
						who := thriftCall("who")
						who.Interface = tc.cmd.Interface
						next := c.Call(who)
						for strings.Contains(next.Error, "timeout") { // a busy machine
							next = c.Call(who)
						}
						require.Equal(t, "s1", next.Value, next.Error)
					}
					connections := before + 1
					if client == peers.ThriftNode {
						connections++ // one for each service
					}
					require.Equal(t, connections, e.Stat(listeners), "still the first connection")
					checkCountersOf(t, e, "meta_protocol.thrift."+thriftName(w)+".")
				})
			}
		}
	})
}

// TestThriftUnreachable asks a cluster whose server has gone, and one that dies
// during a call.
func TestThriftUnreachable(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		w := thriftWires[0]
		port := peers.RestartPort(t)
		s := peers.ThriftGo.ServerAt(t, "s1", w, port)
		e := v.start(t, thriftTo("s1"), envoytest.Cluster("s1", envoytest.At(port)...))
		clients := map[peers.Thrift]*peers.Consumer{}
		pending := map[peers.Thrift]*peers.Pending{}
		for _, lib := range thriftLibraries {
			clients[lib] = lib.Client(t, e.Port("thrift"), w, 10*time.Second)
			require.Equal(t, "s1", clients[lib].Call(thriftCall("who")).Value)
			pending[lib] = clients[lib].Go(thriftCall("slow", 60_000))
		}
		s.Asleep(len(clients))
		s.Kill()
		for lib, p := range pending {
			a := p.Answers()[0]
			require.Equal(t, calls.ThriftInternalError, a.ErrorType, "%s: %s", lib, a.Error)
			require.Contains(t, a.Error, "upstream connection ended")
			require.Less(t, a.LatencyUS, int64(9_000_000), "nobody waits for the client's own timeout")
			a = clients[lib].Call(thriftCall("who"))
			require.Equal(t, calls.ThriftInternalError, a.ErrorType, "%s: %s", lib, a.Error)
		}
		peers.ThriftGo.ServerAt(t, "again", w, port)
		for _, lib := range thriftLibraries {
			require.Eventually(t, func() bool { return clients[lib].Call(thriftCall("who")).Value == "again" }, patience, tick, lib)
		}
		checkCountersOf(t, e, thriftStats)
	})
}

// meeting answers calls when as many as it waits for have come, the last one
// first.
type meeting struct {
	of int

	mu      sync.Mutex
	waiting []func()
	on      map[*scripted.Conn]int
	most    int // at once on one connection
}

func newMeeting(of int) *meeting { return &meeting{of: of, on: map[*scripted.Conn]int{}} }

func (m *meeting) behaviour(c *scripted.Conn, req scripted.ThriftMessage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on[c]++
	m.most = max(m.most, m.on[c])
	m.waiting = append(m.waiting, func() {
		m.on[c]--
		scripted.ThriftEcho(c, req)
	})
	if len(m.waiting) == m.of {
		for _, answer := range slices.Backward(m.waiting) {
			answer()
		}
		m.waiting = nil
	}
}

// connections is how many were used, and how many calls were in flight on one of
// them at most.
func (m *meeting) connections() (used, most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.on), m.most
}

// TestThriftConnections: as long as the configuration does not say otherwise,
// calls in flight have a connection each. With multiplexing they share some, and
// answers in any order find their clients.
func TestThriftConnections(t *testing.T) {
	t.Parallel()
	const n = 16
	everywhere(t, func(t *testing.T, v variant) {
		for _, multiplexing := range []bool{false, true} {
			t.Run(fmt.Sprintf("multiplexing %v", multiplexing), func(t *testing.T) {
				m := newMeeting(n)
				s := scripted.ServeThrift(t, m.behaviour)
				config := thriftTo("meeting")
				if multiplexing {
					config["protocol"].(envoytest.M)["multiplexing"] = true
					config["upstream"] = envoytest.M{"max_connections": 1}
				}
				e := v.start(t, config, envoytest.Cluster("meeting", envoytest.At(s.Port)...))
				check := func() {
					t.Helper()
					used, most := m.connections()
					if multiplexing {
						require.LessOrEqual(t, used, v.workers)
						require.GreaterOrEqual(t, most, n/v.workers)
					} else {
						require.Equal(t, n, used)
						require.Equal(t, 1, most)
					}
				}
				// All have the same sequence id, as Python's clients do.
				clients := make([]*scripted.ThriftClient, n)
				for i := range clients {
					clients[i] = scripted.DialThrift(t, e.Port("thrift"))
				}
				for round := range 3 {
					for i, c := range clients {
						c.Ask(0, "echo", fmt.Sprint(round, " of ", i))
					}
					for i, c := range clients {
						require.Equal(t, scripted.ThriftMessage{Type: scripted.ThriftReply, Method: "echo", Text: fmt.Sprint(round, " of ", i)}, c.Read())
					}
					check()
				}

				// Real clients, the one with its sequence ids and the one without.
				for _, lib := range thriftLibraries {
					c := lib.Client(t, e.Port("thrift"), thriftWires[0], 0)
					pending := make([]*peers.Pending, n)
					for i := range pending {
						pending[i] = c.Go(thriftCall("echo", fmt.Sprint(lib, i)))
					}
					for i, p := range pending {
						a := p.Answers()[0]
						require.Empty(t, a.Error)
						require.Equal(t, fmt.Sprint(lib, i), a.Value)
					}
				}
				checkCountersOf(t, e, thriftStats)
			})
		}
	})
}

// TestThriftOnewayOfALeavingClient: what a client that closes right after a
// oneway has sent is delivered, the first one on a new connection too.
func TestThriftOnewayOfALeavingClient(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		for _, multiplexing := range []bool{false, true} {
			for _, lib := range thriftLibraries {
				t.Run(fmt.Sprintf("%s, multiplexing %v", lib, multiplexing), func(t *testing.T) {
					w := thriftWires[0]
					s := peers.ThriftGo.Server(t, "s1", w)
					config := thriftTo("s1")
					config["protocol"].(envoytest.M)["multiplexing"] = multiplexing
					config["request_timeout"] = "3s" // the end of Go's oneways
					e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
					tell := thriftCall("tell", "x")
					tell.Close, tell.Count, tell.Concurrency = true, 50, 5
					c := lib.Client(t, e.Port("thrift"), w, 0)
					require.Zero(t, c.Load(tell).Failed())
					direct := lib.Client(t, s.Port, w, 0)
					require.Eventually(t, func() bool { return direct.Call(thriftCall("told")).Value == 50.0 }, patience, tick)
					checkCountersOf(t, e, thriftStats)
				})
			}
		}
	})
}

// TestThriftOnewayLikeACall: Go's clients send oneways as calls, which no answer
// ever ends. Their deadline does, without a word to the client: it would take it
// for the answer to its next call.
func TestThriftOnewayLikeACall(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		for _, multiplexing := range []bool{false, true} {
			t.Run(fmt.Sprintf("multiplexing %v", multiplexing), func(t *testing.T) {
				w := thriftWires[0]
				s := peers.ThriftGo.Server(t, "s1", w)
				config := thriftTo("s1")
				config["protocol"].(envoytest.M)["multiplexing"] = multiplexing
				config["request_timeout"] = "2s"
				e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
				c := peers.ThriftGo.Client(t, e.Port("thrift"), w, 0)
				const n = 20
				for range n {
					require.Empty(t, c.Call(thriftCall("tell", "x")).Error)
					a := c.Call(thriftCall("who"))
					require.Equal(t, "s1", a.Value, a.Error)
				}
				require.Eventually(t, func() bool { return c.Call(thriftCall("told")).Value == float64(n) }, patience, tick)
				e.WaitStat(thriftStats+"oneway_presumed", envoytest.Exactly(n))
				require.Zero(t, e.Stat(thriftStats+"request_timeout"))
				require.Equal(t, "s1", c.Call(thriftCall("who")).Value)
				require.EqualValues(t, 1, e.Stat("listener.127.0.0.1_0.downstream_cx_total"), "one client connection for all")
				if !multiplexing {
					// No connection is kept for an answer that does not come.
					require.Eventually(t, func() bool { return e.Stat("cluster.s1.upstream_cx_active") <= int64(2*v.workers) }, patience, tick)
				}
				// By now the method is known for what it is, and many of them keep
				// neither connections nor places.
				before := e.Stat("cluster.s1.upstream_cx_total")
				many := thriftCall("tell", "x")
				many.Count = 5000
				require.Zero(t, c.Load(many).Failed())
				require.Eventually(t, func() bool { return c.Call(thriftCall("told")).Value == float64(n+5000) }, patience, tick)
				require.LessOrEqual(t, e.Stat("cluster.s1.upstream_cx_total"), before+int64(2*v.workers))
				e.WaitStat(thriftStats+"oneway_presumed", envoytest.Exactly(n+5000))
				require.Zero(t, e.Stat(thriftStats+"upstream_stray_response"))
				checkCountersOf(t, e, thriftStats)
			})
		}
	})
}

// TestThriftPipelining: a client that sends many calls at once looks like one that
// sends oneways as calls, and gets every answer and every error all the same.
func TestThriftPipelining(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		w := thriftWires[0]
		s := peers.ThriftGo.Server(t, "s1", w)
		config := thriftTo("s1")
		config["request_timeout"] = "2s"
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
		libraries := []peers.Thrift{peers.ThriftNode, peers.ThriftCppShared}
		for _, lib := range libraries {
			c := lib.Client(t, e.Port("thrift"), w, 10*time.Second)
			require.Equal(t, "s1", c.Call(thriftCall("who")).Value)
			hangs := c.Go(thriftCall("slow", 4000))
			many := thriftCall("who")
			many.Count, many.Concurrency = 50, 50
			sum := c.Load(many)
			require.Equal(t, map[string]int{"s1": 50}, sum.Values, lib)
			a := hangs.Answers()[0]
			require.Equal(t, calls.ThriftInternalError, a.ErrorType, a.Error)
			require.Contains(t, a.Error, "timeout")
			require.Equal(t, "s1", c.Call(thriftCall("who")).Value, lib)
		}
		// Others' calls of the method are what they were.
		for _, lib := range append(slices.Clip(libraries), thriftLibraries...) {
			other := lib.Client(t, e.Port("thrift"), w, 10*time.Second)
			slow, who := other.Go(thriftCall("slow", 50)), other.Go(thriftCall("who"))
			require.Equal(t, "s1", slow.Answers()[0].Value)
			require.Equal(t, "s1", who.Answers()[0].Value)
		}
		e.WaitStat(thriftStats+"request_timeout", envoytest.Exactly(int64(len(libraries))))
		require.Zero(t, e.Stat(thriftStats+"oneway_presumed"))
		checkCountersOf(t, e, thriftStats)
	})
}

// TestThriftInPieces: Go's clients may send the length of a frame apart from the
// rest, and networks cut anywhere.
func TestThriftInPieces(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.ServeThrift(t, func(c *scripted.Conn, req scripted.ThriftMessage) {
			req.Type = scripted.ThriftReply
			b := req.Bytes()
			if strings.HasPrefix(req.Text, "whole") {
				c.Write(b)
				return
			}
			for i := range b {
				c.Write(b[i : i+1])
			}
		})
		e := v.start(t, thriftTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		c, other := scripted.DialThrift(t, e.Port("thrift")), scripted.DialThrift(t, e.Port("thrift"))
		id := int32(0)
		// between makes a call on another connection: meanwhile what was sent
		// before has been read.
		between := func() {
			t.Helper()
			id++
			other.Ask(id, "echo", "whole")
			require.Equal(t, id, other.Read().SeqID)
		}
		m := scripted.ThriftMessage{Type: scripted.ThriftCall, Method: "echo", SeqID: 7, Text: "in pieces"}
		b := m.Bytes()
		want := m
		want.Type = scripted.ThriftReply
		for at := 1; at < len(b); at++ {
			c.Send(b[:at]...)
			between()
			c.Send(b[at:]...)
			require.Equal(t, want, c.Read(), at)
		}
		for i := range b {
			c.Send(b[i])
		}
		require.Equal(t, want, c.Read())
		checkCountersOf(t, e, thriftStats)
	})
}

// TestThriftGarbage: a client that does not speak Thrift is closed and counted,
// one that speaks it at first too.
func TestThriftGarbage(t *testing.T) {
	t.Parallel()
	garbage := map[string][]byte{
		"HTTP":                []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"TLS":                 {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 1, 2, 3, 4},
		"Dubbo":               {0xda, 0xbb, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 'N'},
		"ones":                bytes.Repeat([]byte{0xff}, 64),
		"a gigabyte framed":   {0x3f, 0xff, 0xff, 0xff, 0x80, 1, 0, 1, 0, 0, 0, 1, 'x', 0, 0, 0, 1, 0},
		"a gigabyte unframed": {0x80, 1, 0, 1, 0, 0, 0, 1, 'x', 0, 0, 0, 1, 11, 0, 1, 0x3f, 0xff, 0xff, 0xff, 'x'},
	}
	once(t, func(t *testing.T, v variant) {
		s := scripted.ServeThrift(t, scripted.ThriftEcho)
		e := v.start(t, thriftTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		honest := scripted.DialThrift(t, e.Port("thrift"))
		for _, name := range slices.Sorted(maps.Keys(garbage)) {
			for _, when := range []string{"at once", "after a call"} {
				t.Run(name+" "+when, func(t *testing.T) {
					before := e.Stat(thriftStats + "request_decoding_error")
					c := scripted.DialThrift(t, e.Port("thrift"))
					if when != "at once" {
						c.Ask(1, "echo", "x")
						require.Equal(t, "x", c.Read().Text)
					}
					c.Send(garbage[name]...)
					c.Closed()
					e.WaitStat(thriftStats+"request_decoding_error", envoytest.AtLeast(before+1))
					honest.Ask(1, "echo", "x")
					require.Equal(t, "x", honest.Read().Text)
				})
			}
		}
		checkCountersOf(t, e, thriftStats)
	})
}
