package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// trpcStats begins the names of the counters of the listener trpcTo makes.
const trpcStats = "meta_protocol.trpc.test."

// trpcClients are a pool with one call at a time on a connection, and one
// connection for all.
var trpcClients = map[string]peers.TRPCClientOptions{
	"pooled":      {},
	"multiplexed": {Multiplexed: 1},
}

func trpcCall(method string, args ...any) peers.Command {
	return peers.Command{Method: method, Args: args}
}

// trpcTo is a configuration that sends everything to one cluster.
func trpcTo(cluster string) envoytest.M {
	return envoytest.Protocol("trpc", "test", envoytest.Route(cluster, nil))
}

// TestTRPCDirect proves the peers and the table of calls without any proxy
// between them, so that a failure elsewhere is the proxy's.
func TestTRPCDirect(t *testing.T) {
	t.Parallel()
	for _, serial := range []bool{false, true} {
		s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1", Streams: serial})
		for name, o := range trpcClients {
			t.Run(fmt.Sprintf("%s, streams %v", name, serial), func(t *testing.T) {
				c := peers.TRPCClient(t, s.Port, o)
				calls.TRPC(t, c, "s1", serial)
				if serial {
					checkTRPCStreams(t, c, "s1", 1000)
				}
			})
		}
	}
}

// TestTRPCPairings makes calls of every kind between real clients and servers.
func TestTRPCPairings(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		for _, serial := range []bool{false, true} {
			s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1", Streams: serial})
			for name, o := range trpcClients {
				t.Run(fmt.Sprintf("%s, streams %v", name, serial), func(t *testing.T) {
					e := v.start(t, trpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
					calls.TRPC(t, peers.TRPCClient(t, e.Port("trpc"), o), "s1", serial)
					e.WaitStat(trpcStats+"request_oneway", envoytest.Exactly(10))
					e.WaitStat(trpcStats+"response_business_exception", envoytest.Exactly(1)) // func_ret
					e.WaitStat(trpcStats+"response_error", envoytest.Exactly(2))              // ret
					checkCountersOf(t, e, trpcStats)
				})
			}
		}
	})
}

// TestTRPCRoutes routes real calls and streams on everything that they carry,
// and changes what the other side sees.
func TestTRPCRoutes(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		clusters := []envoytest.Resource{envoytest.Cluster("decoy")}
		for _, name := range []string{"plain", "canary", "audit"} {
			s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: name, Streams: true})
			clusters = append(clusters, envoytest.Cluster(name, envoytest.At(s.Port)...))
		}
		mutating := envoytest.Route("canary", map[string]string{"tenant": "acme"})
		mutating["request_mutation"] = []any{
			envoytest.M{"key": "added", "value": "by the route"}, envoytest.M{"key": "tenant", "value": "ACME"},
		}
		mutating["response_mutation"] = []any{
			envoytest.M{"key": "served-by", "value": "somebody"}, envoytest.M{"key": "via", "value": "meltemi"},
		}
		e := v.start(t, envoytest.Protocol("trpc", "test",
			envoytest.Route("decoy", map[string]string{"callee": "meltemi.test.Greete"}),
			envoytest.Route("decoy", map[string]string{"func": "/meltemi.test.Greeter/Wh"}),
			envoytest.Route("decoy", map[string]string{"tenant": "acm"}),
			mutating,
			envoytest.Route("audit", map[string]string{"callee": "meltemi.test.Audit"}),
			envoytest.Route("plain", map[string]string{"callee": "meltemi.test.Greeter", "func": "/meltemi.test.Greeter/Who"}),
			envoytest.Route("plain", map[string]string{"func": "/meltemi.test.Greeter/Metadata"}),
			envoytest.Route("audit", map[string]string{"func": "/meltemi.test.Streamer/Chat"}),
			envoytest.Route("plain", map[string]string{"callee": "meltemi.test.Streamer"}),
			envoytest.Route("decoy", map[string]string{"func": "/meltemi.test.Greeter/Who"}),
		), clusters...)

		for name, o := range trpcClients {
			t.Run(name, func(t *testing.T) {
				c := peers.TRPCClient(t, e.Port("trpc"), o)
				call := func(cmd peers.Command) peers.Answer {
					t.Helper()
					a := c.Call(cmd)
					require.Empty(t, a.Error)
					return a
				}
				who := trpcCall("Who")
				require.Equal(t, "plain", call(who).Value)
				who.Attachments = map[string]any{"tenant": "acme"}
				require.Equal(t, "canary", call(who).Value)
				who.Attachments = map[string]any{"tenant": "other"}
				require.Equal(t, "plain", call(who).Value)
				// No server has that service: audit says so.
				a := c.Call(peers.Command{Interface: "meltemi.test.Audit", Method: "Who"})
				require.Equal(t, "callee 12", a.ErrorType, a.Error)
				require.Contains(t, a.Error, "/meltemi.test.Audit/Who")
				require.Contains(t, c.Call(trpcCall("SayHello", "x")).Error, "no route")

				meta := trpcCall("Metadata")
				meta.Attachments = map[string]any{"tenant": "acme", "kept": "as is"}
				a = call(meta)
				require.Equal(t, map[string]any{"tenant": "ACME", "kept": "as is", "added": "by the route"}, a.Value)
				require.Equal(t, "somebody", a.Attachments["served-by"])
				require.Equal(t, "meltemi", a.Attachments["via"])
				// A message without trans_info gets some.
				who.Attachments = map[string]any{"tenant": "acme"}
				require.Equal(t, "meltemi", call(who).Attachments["via"])

				// Streams.
				stream := func(method string, attachments map[string]any) *peers.Stream {
					t.Helper()
					s, a := c.Open(peers.Command{Method: method, Attachments: attachments})
					require.Empty(t, a.Error)
					return s
				}
				upload := stream("Upload", map[string]any{"tenant": "acme", "kept": "as is"})
				count := upload.Do("close", peers.Command{}).Received(t)
				require.Equal(t, "canary", count.Name)
				require.Equal(t, map[string]string{"tenant": "ACME", "kept": "as is", "added": "by the route"}, count.Metadata)
				upload = stream("Upload", nil)
				require.Equal(t, "plain", upload.Do("close", peers.Command{}).Received(t).Name)
				for want, attachments := range map[string]map[string]any{"audit": nil, "canary": {"tenant": "acme"}} {
					chat := stream("Chat", attachments)
					require.Empty(t, chat.Do("send", items(1, 10)).Error)
					require.Equal(t, map[string]int{want: 1}, chat.Do("receive", items(1, 0)).Received(t).Names)
					require.Empty(t, chat.Do("close", peers.Command{}).Error)
					require.True(t, chat.Do("receive", peers.Command{}).Received(t).End)
				}
			})
		}
		// A server's INIT has no trans_info: two streams went through that route.
		e.WaitStat(trpcStats+"mutation_skipped", envoytest.Exactly(int64(2*len(trpcClients))))
		checkCountersOf(t, e, trpcStats)
	})
}

// TestTRPCLocalErrors proves that real clients report Meltemi's own errors with
// their code and Meltemi's text.
func TestTRPCLocalErrors(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1"})
		config := envoytest.Protocol("trpc", "test",
			envoytest.Route("never-defined", map[string]string{"func": "/meltemi.test.Greeter/SayHello"}),
			envoytest.Route("dead", map[string]string{"func": "/meltemi.test.Greeter/Metadata"}),
			envoytest.Route("s1", map[string]string{"func": "/meltemi.test.Greeter/Sleep"}),
			envoytest.Route("s1", map[string]string{"func": "/meltemi.test.Greeter/Who"}),
		)
		config["request_timeout"] = "1s"
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...), envoytest.Cluster("dead"))
		for name, o := range trpcClients {
			t.Run(name, func(t *testing.T) {
				const listener = "listener.127.0.0.1_0.downstream_cx_total"
				before := e.Stat(listener)
				c := peers.TRPCClient(t, e.Port("trpc"), o)
				require.Equal(t, "s1", c.Call(trpcCall("Who")).Value)
				for _, tc := range []struct {
					cmd  peers.Command
					kind string
					text string
				}{
					{trpcCall("Fail", "x"), "callee 11", "no route"},
					{trpcCall("SayHello", "x"), "callee 11", "never-defined"},
					{trpcCall("Metadata"), "callee 111", "no healthy upstream"},
					{trpcCall("Sleep", 5000), "callee 21", "timeout"},
				} {
					a := c.Call(tc.cmd)
					require.Equal(t, tc.kind, a.ErrorType, a.Error)
					require.Contains(t, a.Error, tc.text)
					require.Less(t, a.LatencyUS, int64(4_500_000), "the server is slower")
					require.Equal(t, "s1", c.Call(trpcCall("Who")).Value)
				}
				require.Equal(t, before+1, e.Stat(listener), "still the first connection")
			})
		}
		checkCountersOf(t, e, trpcStats)
	})
}

// TestTRPCServerKilled kills a server during calls, and starts it again.
func TestTRPCServerKilled(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		port := peers.RestartPort(t)
		s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1", Port: port})
		e := v.start(t, trpcTo("s1"), envoytest.Cluster("s1", envoytest.At(port)...))
		clients := map[string]*peers.Consumer{}
		pending := map[string]*peers.Pending{}
		for name, o := range trpcClients {
			o.Timeout = 10 * time.Second
			clients[name] = peers.TRPCClient(t, e.Port("trpc"), o)
			require.Equal(t, "s1", clients[name].Call(trpcCall("Who")).Value)
			pending[name] = clients[name].Go(trpcCall("Sleep", 60_000))
		}
		s.Asleep(len(clients))
		s.Kill()
		for name, p := range pending {
			a := p.Answers()[0]
			require.Contains(t, a.Error, "upstream connection ended", name)
			require.Less(t, a.LatencyUS, int64(9_000_000), "nobody waits for the client's own timeout")
			require.NotEmpty(t, clients[name].Call(trpcCall("Who")).Error)
		}
		peers.TRPCServer(t, peers.TRPCServerOptions{Name: "again", Port: port})
		for name, c := range clients {
			require.Eventually(t, func() bool { return c.Call(trpcCall("Who")).Value == "again" }, patience, tick, name)
		}
		checkCountersOf(t, e, trpcStats)
	})
}

// TestTRPCSharedConnection: clients with the same ids share a connection for
// each worker, and nothing is mixed up.
func TestTRPCSharedConnection(t *testing.T) {
	t.Parallel()
	const n = 500
	once(t, func(t *testing.T, v variant) {
		s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1"})
		config := trpcTo("s1")
		config["upstream"] = envoytest.M{"max_connections": 1}
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
		var clients []*peers.Consumer
		for _, o := range trpcClients {
			clients = append(clients, peers.TRPCClient(t, e.Port("trpc"), o), peers.TRPCClient(t, e.Port("trpc"), o))
		}
		pending := make([]*peers.Pending, n*len(clients))
		for i := range pending {
			pending[i] = clients[i%len(clients)].Go(trpcCall("SayHello", fmt.Sprint(i)))
		}
		for i, p := range pending {
			a := p.Answers()[0]
			require.Empty(t, a.Error)
			require.Equal(t, fmt.Sprint("s1: hello ", i), a.Value)
		}
		v.shares(t, e, "s1")
		checkCountersOf(t, e, trpcStats)
	})
}

// TestTRPCGarbage: a client that does not speak tRPC is closed and counted.
func TestTRPCGarbage(t *testing.T) {
	t.Parallel()
	garbage := map[string][]byte{
		"HTTP":            []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"four gigabytes":  {0x09, 0x30, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1, 1, 0},
		"shorter than it": {0x09, 0x30, 0, 0, 0, 0, 0, 15, 0, 0, 0, 0, 0, 1, 1, 0},
		"no length":       {0x09, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0},
	}
	once(t, func(t *testing.T, v variant) {
		s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1"})
		e := v.start(t, trpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		honest := peers.TRPCClient(t, e.Port("trpc"), peers.TRPCClientOptions{Multiplexed: 1})
		require.Equal(t, "s1", honest.Call(trpcCall("Who")).Value)
		for name, b := range garbage {
			t.Run(name, func(t *testing.T) {
				before := e.Stat(trpcStats + "request_decoding_error")
				c := e.Dial("trpc")
				_, err := c.Write(b)
				require.NoError(t, err)
				c.SetReadDeadline(time.Now().Add(patience))
				answer, err := io.ReadAll(c)
				require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
				// A frame that is only too large says whose it is.
				require.Equal(t, name == "four gigabytes", len(answer) > 0)
				e.WaitStat(trpcStats+"request_decoding_error", envoytest.AtLeast(before+1))
				require.Equal(t, "s1", honest.Call(trpcCall("Who")).Value)
			})
		}
		// Where the frame ends is known: that costs a call.
		c := e.Dial("trpc")
		c.SetReadDeadline(time.Now().Add(patience))
		for range 2 {
			before := e.Stat(trpcStats + "request_decoding_error")
			_, err := c.Write([]byte{0x09, 0x30, 0, 0, 0, 0, 0, 16, 0, 9, 0, 0, 0, 1, 1, 0})
			require.NoError(t, err)
			answer := make([]byte, 16)
			_, err = io.ReadFull(c, answer)
			require.NoError(t, err)
			_, err = io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(answer[4:]))-16)
			require.NoError(t, err)
			e.WaitStat(trpcStats+"request_decoding_error", envoytest.AtLeast(before+1))
		}
		checkCountersOf(t, e, trpcStats)
	})
}
