package e2e

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// TestIdleConnectionsStayByHeartbeats leaves real peers idle for several of
// their periods. They close a connection whose heartbeats are not answered.
func TestIdleConnectionsStayByHeartbeats(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		for _, p := range pairings {
			t.Run(p.String(), func(t *testing.T) {
				provider := p.provider.Provider(t, peers.ProviderOptions{Name: "p1", Heartbeat: time.Second})
				e := v.start(t, toOne("providers"), envoytest.Cluster("providers", envoytest.At(provider.Port)...))
				c := p.consumer.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{Heartbeat: time.Second, Connections: 1})
				who := peers.Command{Method: "who"}
				require.Equal(t, "p1", c.Call(who).Value)
				connections := func() int64 {
					for name, n := range e.Stats("^listener[.]127[0-9._]*[.]downstream_cx_total$") {
						require.NotZero(t, n, name)
						return n
					}
					return 0
				}
				opened := connections()
				events := e.Stat(stats + "request_event")
				e.WaitStat(stats+"request_event", envoytest.AtLeast(events+5))
				require.Equal(t, "p1", c.Call(who).Value)
				require.Equal(t, opened, connections(), "the client has connected again")
				checkCounters(t, e)
			})
		}
	})
}

func TestServersHeartbeatsWithTheIDsOfRequests(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			c.Write(dubbotest.Heartbeat(req.ID))
			scripted.Answer("answered")(c, req)
		})
		e := v.start(t, toOne("beating"), envoytest.Cluster("beating", envoytest.At(s.Port)...))
		c := scripted.Dial(t, e.Port("dubbo"))
		for id := uint64(1); id <= 20; id++ {
			c.Ask(id, dubbotest.Request{})
		}
		for _, a := range c.Answers(20) {
			require.Equal(t, "answered", a.Text())
		}
		require.Eventually(t, func() bool { return s.Heartbeats() >= 20 }, patience, tick, "the server's heartbeats are answered")
		c.Quiet()
		checkCounters(t, e)
	})
}

func TestClientsHeartbeatsWithTheIDsOfRequests(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		h := newHeld()
		s := scripted.Serve(t, h.behaviour)
		e := v.start(t, toOne("held"), envoytest.Cluster("held", envoytest.At(s.Port)...))
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(7, dubbotest.Request{})
		<-h.arrived
		c.Send(dubbotest.Heartbeat(7)...)
		f := c.Read()
		require.EqualValues(t, 7, f.ID)
		require.EqualValues(t, 0x20, f.Flags&0x20, "an answer to the heartbeat")
		close(h.release)
		f = c.Read()
		require.EqualValues(t, 7, f.ID)
		require.Equal(t, "held", f.Text())
		c.Quiet()
		checkCounters(t, e)
	})
}

func TestServerThatAnnouncesItsLeavingGetsNoNewRequest(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		var mu sync.Mutex
		leaving, late := map[*scripted.Conn]bool{}, 0
		s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			mu.Lock()
			defer mu.Unlock()
			if leaving[c] {
				late++
			}
			leaving[c] = true
			c.Write(append(dubbotest.ReadOnly(1), dubbotest.Response(req.ID, "bye")...))
		})
		e := v.start(t, toOne("leaving"), envoytest.Cluster("leaving", envoytest.At(s.Port)...))
		c := scripted.Dial(t, e.Port("dubbo"))
		for id := uint64(1); id <= 30; id++ {
			c.Ask(id, dubbotest.Request{})
			require.Equal(t, "bye", c.Read().Text())
		}
		mu.Lock()
		defer mu.Unlock()
		require.Zero(t, late, "requests on connections that were announced to end")
		checkCounters(t, e)
	})
}
