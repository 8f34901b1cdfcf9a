package e2e

import (
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// clientsGone is how many connections of clients have ended, of the only listener.
const clientsGone = "listener.127.0.0.1_0.downstream_cx_destroy"

// logsOff is a server of two as bRPC's in C++ are: from when it stops on, it
// answers ELOGOFF to what it has not looked at.
type logsOff struct {
	*scripted.BRPCServer
	stops   atomic.Bool
	refused atomic.Int64
}

const eLogOff = 2003

// serveBRPCNamed answers calls with a name after a moment, as long as stops is not
// set.
func serveBRPCNamed(t *testing.T, name string) *logsOff {
	s := &logsOff{}
	s.BRPCServer = scripted.ServeBRPC(t, func(c *scripted.Conn, f brpctest.Parsed) {
		if s.stops.Load() {
			s.refused.Add(1)
			c.Write(brpctest.Response{ID: f.ID, Code: eLogOff, Text: "Server is stopping"}.Bytes())
			return
		}
		time.AfterFunc(5*time.Millisecond, func() {
			c.Write(brpctest.Response{ID: f.ID, Body: brpctest.Bytes(nil, 1, name)}.Bytes())
		})
	})
	return s
}

// onePerConnection makes calls in flight use all servers.
func onePerConnection(config envoytest.M) envoytest.M {
	config["upstream"] = envoytest.M{"target_in_flight": 1}
	return config
}

// TestABRPCServerThatStopsIsLeft: what it has refused is answered by an error that
// costs no client its connection, and nothing is sent to it from then on.
func TestABRPCServerThatStopsIsLeft(t *testing.T) {
	t.Parallel()
	const says = "the server leaves and has not processed the request"
	once(t, func(t *testing.T, v variant) {
		for _, lib := range []peers.BRPC{peers.BRPCJava, peers.JProtobuf} {
			t.Run(string(lib), func(t *testing.T) {
				leaves, stays := serveBRPCNamed(t, "leaves"), serveBRPCNamed(t, "stays")
				e := v.start(t, onePerConnection(brpcTo("both")), envoytest.Cluster("both", envoytest.At(leaves.Port, stays.Port)...))
				const clients, callers = 2, 8
				load := brpcCall("Who")
				load.Count, load.Concurrency, load.Summary = 800, callers, true
				var all [clients]*peers.Consumer
				for i := range all {
					all[i] = lib.Client(t, e.Port("brpc"), peers.BRPCOptions{Timeout: patience})
					require.Positive(t, all[i].Load(load).Values["leaves"])
				}
				before := leaves.Requests()
				pending := [clients]*peers.Pending{all[0].Go(load), all[1].Go(load)}
				require.Eventually(t, func() bool { return leaves.Requests() > before+100 }, patience, tick)
				leaves.stops.Store(true)
				failed := 0
				for _, p := range pending {
					sum := p.Summary()
					require.Equal(t, load.Count, sum.Succeeded()+sum.Failed())
					require.Positive(t, sum.Values["stays"])
					for text := range sum.Errors {
						require.Contains(t, text, says)
					}
					failed += sum.Failed()
				}
				// A caller has one call in flight, and what it calls next goes elsewhere.
				refused := leaves.refused.Load()
				require.Positive(t, refused)
				require.LessOrEqual(t, refused, int64(clients*callers))
				require.LessOrEqual(t, failed, int(refused))
				for _, c := range all {
					require.Equal(t, map[string]int{"stays": load.Count}, c.Load(load).Values)
				}
				require.Equal(t, refused, leaves.refused.Load())
				require.Zero(t, e.Stat(clientsGone))
				checkCountersOf(t, e, brpcStats)
			})
		}
	})
	// C++ clients have all calls in flight on one connection, and use no connection
	// more over which they read ELOGOFF.
	everywhere(t, func(t *testing.T, v variant) {
		leaves, stays := serveBRPCNamed(t, "leaves"), serveBRPCNamed(t, "stays")
		e := v.start(t, onePerConnection(brpcTo("both")), envoytest.Cluster("both", envoytest.At(leaves.Port, stays.Port)...))
		c := scripted.DialBRPC(t, e.Port("brpc"))
		const n = 100
		ask := func() (codes map[int32]int) {
			t.Helper()
			var b []byte
			for id := range uint64(n) {
				b = append(b, brpctest.Request{ID: id}.Bytes()...)
			}
			c.Send(b)
			codes, ids := map[int32]int{}, map[uint64]bool{}
			for range n {
				f := c.Read()
				codes[f.Code]++
				ids[f.ID] = true
				if f.Code != 0 {
					require.Contains(t, f.Text, says)
				}
			}
			require.Len(t, ids, n)
			return codes
		}
		require.Equal(t, map[int32]int{0: n}, ask())
		leaves.stops.Store(true)
		require.Subset(t, []int32{0, 1009}, slices.Collect(maps.Keys(ask())))
		refused := leaves.refused.Load()
		require.Positive(t, refused)
		require.Equal(t, map[int32]int{0: n}, ask())
		require.Equal(t, refused, leaves.refused.Load())
		require.Zero(t, e.Stat(clientsGone))
		checkCountersOf(t, e, brpcStats)
	})
}

// TestATRPCServerThatEndsItsConnectionsIsLeft: it has no other way to say that it
// leaves. The calls that were under way there fail, on connections of clients that
// live; all others go elsewhere, or over a new connection.
func TestATRPCServerThatEndsItsConnectionsIsLeft(t *testing.T) {
	t.Parallel()
	serve := func(t *testing.T, name string, ends func(s *scripted.TRPCServer) bool) (s *scripted.TRPCServer) {
		s = scripted.ServeTRPC(t, func(c *scripted.Conn, f trpctest.Parsed) {
			if ends(s) {
				c.Close()
				return
			}
			time.AfterFunc(5*time.Millisecond, func() {
				c.Write(trpctest.Response{ID: f.ID, Body: trpctest.Bytes(nil, 1, name)}.Bytes())
			})
		})
		return s
	}
	never := func(*scripted.TRPCServer) bool { return false }
	nowAndThen := func(s *scripted.TRPCServer) bool { return s.Requests()%20 == 0 }
	for how, ends := range map[string]func(s *scripted.TRPCServer) bool{"all": never, "now and then": nowAndThen} {
		for name, o := range trpcClients {
			t.Run(how+", "+name, func(t *testing.T) {
				once(t, func(t *testing.T, v variant) {
					leaves, stays := serve(t, "leaves", ends), serve(t, "stays", never)
					e := v.start(t, onePerConnection(trpcTo("both")), envoytest.Cluster("both", envoytest.At(leaves.Port, stays.Port)...))
					const callers = 8
					o.Timeout = patience
					c := peers.TRPCClient(t, e.Port("trpc"), o)
					load := trpcCall("Who")
					load.Count, load.Concurrency, load.Summary = 800, callers, true
					pending := c.Go(load)
					require.Eventually(t, func() bool { return leaves.Requests() > 100 }, patience, tick)
					if how == "all" {
						leaves.Close()
					}
					sum := pending.Summary()
					require.Equal(t, load.Count, sum.Succeeded()+sum.Failed())
					require.Positive(t, sum.Values["leaves"])
					require.Positive(t, sum.Values["stays"])
					for text := range sum.Errors {
						require.Contains(t, text, "upstream connection ended")
					}
					require.Less(t, sum.LatencyUS["max"], patience.Microseconds()/2, "nobody waits")
					if how == "all" {
						// They end one after the other: who has failed on one may ask again over
						// another, of which it is not known yet.
						require.LessOrEqual(t, sum.Failed(), callers*int(leaves.Connections()))
						require.Equal(t, map[string]int{"stays": load.Count}, c.Load(load).Values)
					} else {
						require.Positive(t, sum.Failed())
						require.LessOrEqual(t, sum.Failed(), callers*int(leaves.Connections()))
					}
					require.Zero(t, e.Stat(clientsGone))
					checkCountersOf(t, e, trpcStats)
				})
			})
		}
	}
}
