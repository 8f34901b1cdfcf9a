package e2e

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// startDraining runs an Envoy whose listener is replaced by replace.
func startDraining(t *testing.T, v variant, drain time.Duration, cluster envoytest.Resource) (e *envoytest.Envoy, port int, replace func()) {
	t.Helper()
	port = peers.RestartPort(t) // one that stays, so that Envoy updates the listener in place
	o := v.options()
	o.Drain = drain
	o.Clusters = []envoytest.Resource{cluster}
	loopback := envoytest.Loopback(envoytest.Socket())
	listener := func(timeout string) envoytest.Resource {
		config := toOne(cluster["name"].(string))
		config["request_timeout"] = timeout
		return envoytest.Listener("dubbo", envoytest.Proxy(config)).On(port)
	}
	o.Listeners = []envoytest.Resource{loopback, listener("60s")}
	e = envoytest.Start(t, o)
	require.Equal(t, port, e.Port("dubbo"))
	return e, port, func() {
		t.Helper()
		require.True(t, e.SetListeners(loopback, listener("61s")))
		e.WaitStat("listener_manager.total_filter_chains_draining", envoytest.AtLeast(1))
	}
}

// isEvent reports whether a frame is one that tells of the server, the read-only
// event for instance.
func isEvent(f dubbotest.Parsed) bool { return f.Flags&0x20 != 0 }

// answers leaves out the events, which it counts.
func answers(frames []dubbotest.Parsed) (rest []dubbotest.Parsed, events int) {
	rest = slices.DeleteFunc(slices.Clone(frames), isEvent)
	return rest, len(frames) - len(rest)
}

// TestARequestIsAnsweredWhileItsListenerDrains, and its connection is closed
// only then.
func TestARequestIsAnsweredWhileItsListenerDrains(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		h := newHeld()
		s := scripted.Serve(t, h.behaviour)
		e, port, replace := startDraining(t, v, time.Minute, envoytest.Cluster("held", envoytest.At(s.Port)...))
		busy, idle := scripted.Dial(t, port), scripted.Dial(t, port)
		busy.Ask(1, dubbotest.Request{})
		<-h.arrived
		e.WaitStat(fmt.Sprintf("listener.127.0.0.1_%d.downstream_cx_active", port), envoytest.Exactly(2)) // one that is accepted later is its successor's
		replace()
		require.Empty(t, idle.Closed(), "what is idle leaves")
		e.WaitStat(stats+"drain_closed", envoytest.Exactly(1))
		e.WaitStat(stats+"request_active", envoytest.Exactly(1))
		close(h.release)
		frames, told := answers(busy.Closed())
		require.Equal(t, 1, told)
		require.Len(t, frames, 1)
		require.EqualValues(t, statusOK, frames[0].Status)
		require.Equal(t, "held", frames[0].Text())
		e.WaitStat(stats+"drain_closed", envoytest.Exactly(2))
		e.WaitStat("listener_manager.total_filter_chains_draining", envoytest.Exactly(1)) // Envoy's own time is not over
		require.Zero(t, e.Stat(stats+"cx_destroy_local_with_active_rq"))

		next := scripted.Dial(t, port)
		next.Ask(1, dubbotest.Request{})
		require.Equal(t, "held", next.Read().Text())
		checkCounters(t, e)
	})
}

// TestARequestThatOutlastsTheDrainEndsWithIt: Envoy closes the connection.
func TestARequestThatOutlastsTheDrainEndsWithIt(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		h := newHeld()
		s := scripted.Serve(t, h.behaviour)
		e, port, replace := startDraining(t, v, 2*time.Second, envoytest.Cluster("held", envoytest.At(s.Port)...))
		c := scripted.Dial(t, port)
		c.Ask(1, dubbotest.Request{})
		<-h.arrived
		begin := time.Now()
		replace()
		frames, _ := answers(c.Closed())
		require.Empty(t, frames)
		require.Greater(t, time.Since(begin), time.Second)
		e.WaitStat(stats+"cx_destroy_local_with_active_rq", envoytest.Exactly(1))
		e.WaitStat(stats+"request_abandoned", envoytest.Exactly(1))
		e.WaitStat(stats+"request_active", envoytest.Exactly(0))
		require.Zero(t, e.Stat(stats+"drain_closed"))

		// Its late answer disturbs nobody.
		close(h.release)
		next := scripted.Dial(t, port)
		next.Ask(1, dubbotest.Request{})
		require.Equal(t, "held", next.Read().Text())
		next.Quiet()
		checkCounters(t, e)
	})
}

// TestIdleConnectionsOfADrainingListenerLeaveOneByOne: well before Envoy's own
// end of the drain, and spread, so that clients do not all come back at once.
func TestIdleConnectionsOfADrainingListenerLeaveOneByOne(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		e, port, replace := startDraining(t, v, time.Minute, envoytest.Cluster("one", envoytest.At(s.Port)...))
		const n = 200
		left := make(chan time.Time, n)
		clients := make([]*scripted.Client, n)
		for i := range clients {
			clients[i] = scripted.Dial(t, port)
			clients[i].Ask(1, dubbotest.Request{})
			require.Equal(t, "here", clients[i].Read().Text())
		}
		for _, c := range clients {
			go func() {
				c.TryRead()
				left <- time.Now()
			}()
		}
		replace()
		seconds := map[int64]int{}
		first, last := time.Time{}, time.Time{}
		for range n {
			select {
			case at := <-left:
				if first.IsZero() {
					first = at
				}
				last = at
				seconds[at.Sub(first).Milliseconds()/1000]++
			case <-time.After(patience):
				t.Fatal("a connection stays")
			}
		}
		// Over five seconds by chance: forty in each.
		require.Greater(t, last.Sub(first), 3*time.Second)
		for second, n := range seconds {
			require.Less(t, n, 100, "in second %d of %v", second, seconds)
		}
		e.WaitStat(stats+"drain_closed", envoytest.Exactly(n))
		require.EqualValues(t, 1, e.Stat("listener_manager.total_filter_chains_draining"), "Envoy's own time is not over")
		checkCounters(t, e)
	})
}

// TestClientsThatHeedTheReadOnlyEventLoseNothing: they are told that their listener
// is replaced, and go elsewhere, however busy they are.
func TestClientsThatHeedTheReadOnlyEventLoseNothing(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		e, port, replace := startDraining(t, v, time.Minute, envoytest.Cluster("one", envoytest.At(s.Port)...))
		var clients sync.WaitGroup
		var answered, moved atomic.Int64
		for range 16 {
			c := scripted.Dial(t, port)
			clients.Go(func() {
				leaves := false
				for id := uint64(1); !leaves; id++ {
					c.Ask(id, dubbotest.Request{})
					f := c.Read()
					if isEvent(f) { // before the answer, or in its place in the stream
						require.Equal(t, dubbotest.ReadOnly(0), dubbotest.Frame(f.Flags, f.Status, f.ID, f.Body))
						leaves = true
						f = c.Read()
					}
					require.Equal(t, id, f.ID)
					require.Equal(t, "here", f.Text())
					answered.Add(1)
				}
				require.Empty(t, c.Closed(), "all has been answered")
				next := scripted.Dial(t, port)
				next.Ask(1, dubbotest.Request{})
				require.Equal(t, "here", next.Read().Text())
				moved.Add(1)
			})
		}
		e.WaitStat(stats+"response", envoytest.AtLeast(500))
		replace()
		clients.Wait()
		t.Logf("%d calls before %d clients went elsewhere", answered.Load(), moved.Load())
		require.EqualValues(t, 16, moved.Load())
		require.Zero(t, e.Stat(stats+"cx_destroy_local_with_active_rq"))
		checkCounters(t, e)
	})
}
