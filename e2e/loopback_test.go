package e2e

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// TestTheLoopbackListenerIsReplacedUnderLoad: as a new version of Meltemi may want
// another. Connections that do not live as long as Envoy drains are all renewed in
// time; they live for 30 s, and Envoy drains for 45 s in Istio, 10 minutes by itself.
func TestTheLoopbackListenerIsReplacedUnderLoad(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			time.AfterFunc(10*time.Millisecond, func() { c.Write(dubbotest.Response(req.ID, "here")) })
		})
		loopback := envoytest.Loopback(envoytest.Socket())
		config := toOne("one")
		config["upstream"] = envoytest.M{"max_connection_age": "1s"} // Envoy drains for two
		clients := envoytest.Listener("dubbo", envoytest.Proxy(config))
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{loopback, clients}
		e := envoytest.Start(t, o)
		stop := make(chan struct{})
		var callers sync.WaitGroup
		var others atomic.Pointer[string]
		for range 16 {
			c := scripted.Dial(t, e.Port("dubbo"))
			callers.Go(func() {
				for id := uint64(0); ; id++ {
					select {
					case <-stop:
						return
					default:
					}
					c.Ask(id, dubbotest.Request{})
					if text := c.Read().Text(); text != "here" {
						others.Store(&text)
					}
				}
			})
		}
		loopback["stat_prefix"] = "second"
		require.True(t, e.SetListeners(loopback, clients))
		e.WaitStat("listener_manager.total_listeners_draining", envoytest.Exactly(0))
		e.WaitStat("listener.second.downstream_cx_active", envoytest.AtLeast(1))
		close(stop)
		callers.Wait()
		if text := others.Load(); text != nil {
			t.Errorf("a call ended with %q", *text)
		}
		checkCounters(t, e)
	})
}

// TestParkedCarriersLeaveADrainingListener: one that is claimed late in the drain
// time would be closed with its requests.
func TestParkedCarriersLeaveADrainingListener(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		loopback := envoytest.Loopback(envoytest.Socket()).With(envoytest.M{"stat_prefix": "first"})
		config := toOne("one")
		config["upstream"] = envoytest.M{"idle_timeout": "1s"}
		clients := envoytest.Listener("dubbo", envoytest.Proxy(config))
		o := v.options()
		o.Drain = time.Minute
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{loopback, clients}
		e := envoytest.Start(t, o)
		c := scripted.Dial(t, e.Port("dubbo"))
		ask := func() {
			c.Ask(1, dubbotest.Request{})
			require.Equal(t, "here", c.Read().Text())
		}
		ask()
		e.WaitStat("listener.first.downstream_cx_active", envoytest.AtLeast(2))
		require.True(t, e.SetListeners(loopback.With(envoytest.M{"stat_prefix": "second"}), clients))
		e.WaitStat("listener.first.downstream_cx_active", envoytest.Exactly(0))
		require.EqualValues(t, 1, e.Stat("listener_manager.total_listeners_draining"))
		e.WaitStat("listener.second.downstream_cx_active", envoytest.AtLeast(2))
		ask()
	})
}
