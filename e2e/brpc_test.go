package e2e

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// brpcStats begins the names of the counters of the listener brpcTo makes.
const brpcStats = "meta_protocol.brpc.test."

// brpcPairing is who calls whom.
type brpcPairing struct{ client, server peers.BRPC }

func (p brpcPairing) String() string { return fmt.Sprintf("%s to %s", p.client, p.server) }

var brpcPairings = []brpcPairing{
	{peers.JProtobuf, peers.BRPCJava},
	{peers.BRPCJava, peers.JProtobuf},
	{peers.BRPCJava, peers.BRPCJava},
	{peers.JProtobuf, peers.JProtobuf},
}

func brpcCall(method string, args ...any) peers.Command {
	return peers.Command{Method: method, Args: args}
}

// brpcTo is a configuration that sends everything to one cluster.
func brpcTo(cluster string) envoytest.M {
	return envoytest.Protocol("brpc", "test", envoytest.Route(cluster, nil))
}

// TestBRPCDirect proves the peers and the table of calls without any proxy
// between them, so that a failure elsewhere is the proxy's.
func TestBRPCDirect(t *testing.T) {
	t.Parallel()
	for _, p := range brpcPairings {
		t.Run(p.String(), func(t *testing.T) {
			s := p.server.Server(t, "s1")
			calls.BRPC(t, p.client, p.server, p.client.Client(t, s.Port, peers.BRPCOptions{}), "s1")
		})
	}
}

// TestBRPCPairings makes calls of every kind between real clients and servers.
func TestBRPCPairings(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		pairings, connections := brpcPairings, []int{0}
		switch {
		case *matrix == "full":
			connections = []int{0, 1}
		case v != newest:
			pairings = pairings[:1]
		}
		for _, p := range pairings {
			for _, n := range connections {
				t.Run(fmt.Sprintf("%s, connections %d", p, n), func(t *testing.T) {
					s := p.server.Server(t, "s1")
					e := v.start(t, brpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
					c := p.client.Client(t, e.Port("brpc"), peers.BRPCOptions{Connections: n})
					calls.BRPC(t, p.client, p.server, c, "s1")
					business, failed := int64(1), int64(2) // a code of its own; no such method and service
					if p.server == peers.BRPCJava {
						business, failed = 0, 1 // which has no codes for exceptions
					}
					e.WaitStat(brpcStats+"response_business_exception", envoytest.Exactly(business))
					e.WaitStat(brpcStats+"response_error", envoytest.Exactly(failed))
					checkCountersOf(t, e, brpcStats)
				})
			}
		}
	})
}

// TestBRPCRoutes routes real calls on everything that they carry, and changes
// what the server sees.
func TestBRPCRoutes(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		clusters := []envoytest.Resource{envoytest.Cluster("decoy")}
		for _, name := range []string{"plain", "canary", "audit", "logged"} {
			s := peers.JProtobuf.Server(t, name)
			clusters = append(clusters, envoytest.Cluster(name, envoytest.At(s.Port)...))
		}
		mutating := envoytest.Route("canary", map[string]string{"tenant": "acme"})
		mutating["request_mutation"] = []any{
			envoytest.M{"key": "added", "value": "by the route"}, envoytest.M{"key": "tenant", "value": "ACME"},
		}
		e := v.start(t, envoytest.Protocol("brpc", "test",
			envoytest.Route("decoy", map[string]string{"service": "meltemi.test.Greete"}),
			envoytest.Route("decoy", map[string]string{"service": "meltemi.test.Audit", "method": "Wh"}),
			envoytest.Route("decoy", map[string]string{"tenant": "acm"}),
			envoytest.Route("decoy", map[string]string{"log_id": "7"}),
			mutating,
			envoytest.Route("logged", map[string]string{"log_id": "77", "service": "meltemi.test.Greeter"}),
			envoytest.Route("audit", map[string]string{"service": "meltemi.test.Audit"}),
			envoytest.Route("plain", map[string]string{"method": "Who"}),
			envoytest.Route("plain", map[string]string{"method": "Metadata"}),
			envoytest.Route("decoy", map[string]string{"method": "Who"}),
		), clusters...)

		for _, lib := range []peers.BRPC{peers.BRPCJava, peers.JProtobuf} {
			t.Run(string(lib), func(t *testing.T) {
				c := lib.Client(t, e.Port("brpc"), peers.BRPCOptions{})
				who := func(cmd peers.Command) any {
					t.Helper()
					cmd.Method = "Who"
					a := c.Call(cmd)
					require.Empty(t, a.Error)
					return a.Value
				}
				require.Equal(t, "plain", who(peers.Command{}))
				require.Equal(t, "audit", who(peers.Command{Interface: "meltemi.test.Audit"}))
				require.Equal(t, "audit", who(peers.Command{Interface: "meltemi.test.Audit", LogID: 77}))
				require.Equal(t, "logged", who(peers.Command{LogID: 77}))
				require.Equal(t, "plain", who(peers.Command{LogID: 78}))
				require.Equal(t, "canary", who(peers.Command{Attachments: map[string]any{"tenant": "acme"}}))
				require.Equal(t, "plain", who(peers.Command{Attachments: map[string]any{"tenant": "other"}}))

				meta := brpcCall("Metadata")
				meta.Attachments = map[string]any{"tenant": "acme", "kept": "as is"}
				got := calls.BRPCMetadata(t, c.Call(meta))
				delete(got, "log_id") // the libraries make one up
				require.Equal(t, map[string]string{"tenant": "ACME", "kept": "as is", "added": "by the route"}, got)
				meta.Attachments = map[string]any{"kept": "as is"}
				got = calls.BRPCMetadata(t, c.Call(meta))
				delete(got, "log_id")
				require.Equal(t, map[string]string{"kept": "as is"}, got)
				require.Contains(t, c.Call(brpcCall("SayHello", "x")).Error, "no route")
			})
		}
		require.Zero(t, e.Stat(brpcStats+"mutation_skipped"))
		checkCountersOf(t, e, brpcStats)
	})
}

// TestBRPCUserFields does it with the fields of C++ clients and servers, in both
// directions.
func TestBRPCUserFields(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		seen := make(chan brpctest.Parsed, 10)
		behaviour := func(name string) func(*scripted.Conn, brpctest.Parsed) {
			return func(c *scripted.Conn, f brpctest.Parsed) {
				seen <- f
				c.Write(brpctest.Response{ID: f.ID, Body: []byte(name), UserFields: [][2]string{{"served-by", name}}}.Bytes())
			}
		}
		plain, canary := scripted.ServeBRPC(t, behaviour("plain")), scripted.ServeBRPC(t, behaviour("canary"))
		mutating := envoytest.Route("canary", map[string]string{"tenant": "acme", "timeout_ms": "500"})
		mutating["request_mutation"] = []any{
			envoytest.M{"key": "added", "value": "by the route"}, envoytest.M{"key": "tenant", "value": "ACME"},
		}
		mutating["response_mutation"] = []any{envoytest.M{"key": "served-by", "value": "somebody"}}
		e := v.start(t, envoytest.Protocol("brpc", "test", mutating, envoytest.Route("plain", nil)),
			envoytest.Cluster("plain", envoytest.At(plain.Port)...), envoytest.Cluster("canary", envoytest.At(canary.Port)...))
		c := scripted.DialBRPC(t, e.Port("brpc"))

		r := brpctest.Request{ID: 5, TimeoutMS: 500, UserFields: [][2]string{{"tenant", "acme"}, {"kept", "as is"}}, Body: []byte("b"), Attachment: []byte("a")}
		c.Send(r.Bytes())
		got, answer := <-seen, c.Read()
		require.Equal(t, map[string]string{"tenant": "ACME", "kept": "as is", "added": "by the route"}, got.UserFields)
		require.Equal(t, "ba", string(got.Payload))
		require.Equal(t, "canary", string(answer.Payload))
		require.EqualValues(t, 5, answer.ID)
		require.Equal(t, map[string]string{"served-by": "somebody"}, answer.UserFields)

		r.TimeoutMS = 501
		c.Send(r.Bytes())
		got, answer = <-seen, c.Read()
		require.Equal(t, map[string]string{"tenant": "acme", "kept": "as is"}, got.UserFields)
		require.Equal(t, map[string]string{"served-by": "plain"}, answer.UserFields)
		checkCountersOf(t, e, brpcStats)
	})
}

// TestBRPCLocalErrors proves that real clients report Meltemi's own errors with
// their code and Meltemi's text, and go on with the same connection.
func TestBRPCLocalErrors(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := peers.JProtobuf.Server(t, "s1")
		config := envoytest.Protocol("brpc", "test",
			envoytest.Route("never-defined", map[string]string{"method": "SayHello"}),
			envoytest.Route("dead", map[string]string{"method": "Metadata"}),
			envoytest.Route("s1", map[string]string{"method": "Sleep"}),
			envoytest.Route("s1", map[string]string{"method": "Who"}),
		)
		config["request_timeout"] = "3s" // Java's first call takes its time
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...), envoytest.Cluster("dead"))
		for _, lib := range []peers.BRPC{peers.BRPCJava, peers.JProtobuf} {
			t.Run(string(lib), func(t *testing.T) {
				const listener = "listener.127.0.0.1_0.downstream_cx_total"
				before := e.Stat(listener)
				c := lib.Client(t, e.Port("brpc"), peers.BRPCOptions{Connections: 1})
				require.Equal(t, "s1", c.Call(brpcCall("Who")).Value)
				for _, tc := range []struct {
					cmd  peers.Command
					code int
					text string
				}{
					{brpcCall("Fail", "x"), 1001, "no route"},
					{brpcCall("SayHello", "x"), 1001, "never-defined"},
					{brpcCall("Metadata"), 112, "no healthy upstream"},
					{brpcCall("Sleep", 8000), 1008, "timeout"},
				} {
					a := c.Call(tc.cmd)
					require.Equal(t, calls.BRPCError(lib, tc.code), a.ErrorType, a.Error)
					require.Contains(t, a.Error, tc.text)
					require.Less(t, a.LatencyUS, int64(7_000_000))
					require.Equal(t, "s1", c.Call(brpcCall("Who")).Value)
				}
				require.Equal(t, before+1, e.Stat(listener), "still the first connection")
			})
		}
		checkCountersOf(t, e, brpcStats)
	})
}

// TestBRPCChunks: a call in chunks, which are frames of one id, is refused once,
// and its connection goes on.
func TestBRPCChunks(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := peers.JProtobuf.Server(t, "s1")
		e := v.start(t, brpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		c := peers.JProtobuf.Client(t, e.Port("brpc"), peers.BRPCOptions{Connections: 1, Chunk: 1000})
		for range 3 {
			require.Equal(t, "s1: hello x", c.Call(brpcCall("SayHello", "x")).Value)
			a := c.Call(brpcCall("SayHello", strings.Repeat("x", 10_000)))
			require.Equal(t, calls.BRPCError(peers.JProtobuf, 1003), a.ErrorType, a.Error)
			require.Contains(t, a.Error, "chunks")
		}
		require.EqualValues(t, 1, e.Stat("listener.127.0.0.1_0.downstream_cx_total"))
		checkCountersOf(t, e, brpcStats)
	})
}

// TestBRPCUnknownMethodOfBRPCJava: brpc-java's servers say of the answer to a
// call that they do not know that it is for call 0. It is nobody's: the call's
// deadline ends it, and others are not disturbed.
func TestBRPCUnknownMethodOfBRPCJava(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := peers.BRPCJava.Server(t, "s1")
		config := brpcTo("s1")
		config["request_timeout"] = "5s"
		config["upstream"] = envoytest.M{"max_connections": 1}
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
		for _, lib := range []peers.BRPC{peers.BRPCJava, peers.JProtobuf} {
			t.Run(string(lib), func(t *testing.T) {
				before := e.Stat(brpcStats + "upstream_stray_response")
				c := lib.Client(t, e.Port("brpc"), peers.BRPCOptions{})
				unknown := c.Go(brpcCall("NoSuch"))
				all := brpcCall("SayHello", "x")
				all.Count, all.Concurrency = 500, 10
				require.Equal(t, map[string]int{"s1: hello x": 500}, c.Load(all).Values)
				a := unknown.Answers()[0]
				require.Equal(t, calls.BRPCError(lib, 1008), a.ErrorType, a.Error)
				e.WaitStat(brpcStats+"upstream_stray_response", envoytest.Exactly(before+1))
			})
		}
		checkCountersOf(t, e, brpcStats)
	})
}

// TestBRPCServerKilled kills a server during calls, and starts it again.
func TestBRPCServerKilled(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		port := peers.RestartPort(t)
		s := peers.JProtobuf.ServerIn(t, peers.Place{}, "s1", port)
		e := v.start(t, brpcTo("s1"), envoytest.Cluster("s1", envoytest.At(port)...))
		clients := map[peers.BRPC]*peers.Consumer{}
		pending := map[peers.BRPC]*peers.Pending{}
		for _, lib := range []peers.BRPC{peers.BRPCJava, peers.JProtobuf} {
			clients[lib] = lib.Client(t, e.Port("brpc"), peers.BRPCOptions{Timeout: 10 * time.Second})
			require.Equal(t, "s1", clients[lib].Call(brpcCall("Who")).Value)
		}
		for lib, c := range clients { // whose time begins when all are there
			pending[lib] = c.Go(brpcCall("Sleep", 60_000))
		}
		s.Asleep(len(clients))
		s.Kill()
		for lib, p := range pending {
			a := p.Answers()[0]
			require.Equal(t, calls.BRPCError(lib, 1009), a.ErrorType, a.Error)
			require.Contains(t, a.Error, "upstream connection ended")
			require.Less(t, a.LatencyUS, int64(9_000_000), "nobody waits for the client's own timeout")
			a = clients[lib].Call(brpcCall("Who"))
			require.Equal(t, calls.BRPCError(lib, 1009), a.ErrorType, a.Error)
		}
		peers.JProtobuf.ServerIn(t, peers.Place{}, "again", port)
		for lib, c := range clients {
			require.Eventually(t, func() bool { return c.Call(brpcCall("Who")).Value == "again" }, patience, tick, lib)
		}
		checkCountersOf(t, e, brpcStats)
	})
}

// TestBRPCSharedConnection: clients with the same ids share connections, and
// answers in any order find them.
func TestBRPCSharedConnection(t *testing.T) {
	t.Parallel()
	const n = 16
	everywhere(t, func(t *testing.T, v variant) {
		var (
			mu      sync.Mutex
			waiting []func()
		)
		// Calls are answered when all have come, the last one first.
		s := scripted.ServeBRPC(t, func(c *scripted.Conn, f brpctest.Parsed) {
			mu.Lock()
			defer mu.Unlock()
			waiting = append(waiting, func() { scripted.BRPCEcho(c, f) })
			if len(waiting) == n {
				for _, answer := range slices.Backward(waiting) {
					answer()
				}
				waiting = nil
			}
		})
		config := brpcTo("s1")
		config["upstream"] = envoytest.M{"max_connections": 1}
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
		ids := []uint64{0, 1, 1<<63 - 1, 1 << 63, 1<<64 - 1, 300}
		clients := make([]*scripted.BRPCClient, n)
		for i := range clients {
			clients[i] = scripted.DialBRPC(t, e.Port("brpc"))
		}
		for round, id := range ids {
			for i, c := range clients {
				c.Send(brpctest.Request{ID: id, Body: []byte(fmt.Sprint(round, " of ", i))}.Bytes())
			}
			for i, c := range clients {
				f := c.Read()
				require.Equal(t, id, f.ID)
				require.Equal(t, fmt.Sprint(round, " of ", i), string(f.Payload))
			}
		}
		require.LessOrEqual(t, s.Connections(), int64(v.workers))

		checkCountersOf(t, e, brpcStats)
	})
	once(t, func(t *testing.T, v variant) {
		for _, p := range brpcPairings[:2] {
			t.Run(p.String(), func(t *testing.T) {
				s := p.server.Server(t, "s1")
				config := brpcTo("s1")
				config["upstream"] = envoytest.M{"max_connections": 1}
				e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
				clients := [2]*peers.Consumer{}
				for i := range clients {
					clients[i] = p.client.Client(t, e.Port("brpc"), peers.BRPCOptions{})
				}
				for range 10 { // more at a time, and the Java sides alone need longer than they wait
					pending := make([]*peers.Pending, n)
					for i := range pending {
						pending[i] = clients[i%len(clients)].Go(brpcCall("SayHello", fmt.Sprint(i)))
					}
					for i, p := range pending {
						a := p.Answers()[0]
						require.Empty(t, a.Error)
						require.Equal(t, fmt.Sprint("s1: hello ", i), a.Value)
					}
				}
				v.shares(t, e, "s1")
				checkCountersOf(t, e, brpcStats)
			})
		}
	})
}

// TestBRPCGarbage: a client that does not speak baidu_std is closed and counted.
func TestBRPCGarbage(t *testing.T) {
	t.Parallel()
	whole := brpctest.Request{ID: 1}.Bytes()
	garbage := map[string][]byte{
		"HTTP":                     []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"two gigabytes":            []byte("PRPC\x7f\xff\xff\xff\x00\x00\x00\x10" + strings.Repeat("\x00", 16)), // whose meta tells no id
		"a meta larger than all":   []byte("PRPC\x00\x00\x00\x10\x00\x00\x00\x11"),
		"a frame and then garbage": append(slices.Clone(whole), []byte(strings.Repeat("x", 100))...),
	}
	once(t, func(t *testing.T, v variant) {
		s := scripted.ServeBRPC(t, scripted.BRPCEcho)
		e := v.start(t, brpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		honest := scripted.DialBRPC(t, e.Port("brpc"))
		for name, b := range garbage {
			t.Run(name, func(t *testing.T) {
				before := e.Stat(brpcStats + "request_decoding_error")
				c := scripted.DialBRPC(t, e.Port("brpc"))
				c.Send(b)
				for {
					if _, err := c.TryRead(); err != nil {
						break
					}
				}
				c.Closed()
				e.WaitStat(brpcStats+"request_decoding_error", envoytest.AtLeast(before+1))
				honest.Send(whole)
				require.EqualValues(t, 1, honest.Read().ID)
			})
		}
		before := e.Stat(brpcStats + "request_decoding_error")
		honest.Send(append(brpctest.Frame("STRM", nil, nil), whole...)) // of no stream, but it has an end
		require.EqualValues(t, 1, honest.Read().ID)
		e.WaitStat(brpcStats+"request_decoding_error", envoytest.Exactly(before+1))
		checkCountersOf(t, e, brpcStats)
	})
}
