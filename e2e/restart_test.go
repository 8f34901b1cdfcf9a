package e2e

import (
	"fmt"
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

// load are clients that ask one request after the other, and dial again when
// their connection has ended.
type load struct {
	stop     atomic.Bool
	answered atomic.Int64
	refused  atomic.Int64 // got an error
	wrong    atomic.Int64 // got another request's answer
	ended    atomic.Int64 // connections
	done     sync.WaitGroup
}

func startLoad(t *testing.T, port, clients int) *load {
	l := &load{}
	for range clients {
		l.done.Go(func() {
			var c *scripted.Client
			for id := uint64(0); !l.stop.Load(); id++ {
				if c == nil {
					var err error
					if c, err = scripted.TryDial(t, port); err != nil {
						return // nobody listens any more
					}
				}
				_, err := c.Write(dubbotest.Request{ID: id}.Bytes())
				if err == nil {
					var f dubbotest.Parsed
					for f, err = c.TryRead(); err == nil && isEvent(f); {
						f, err = c.TryRead() // it is told that the listener goes
					}
					if err == nil {
						switch {
						case f.ID != id:
							l.wrong.Add(1)
						case f.Status == statusOK:
							l.answered.Add(1)
						default:
							t.Logf("status %d: %s", f.Status, f.Text())
							l.refused.Add(1)
						}
					}
				}
				if err != nil {
					l.ended.Add(1)
					c.Close()
					c = nil
				}
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) end() { l.stop.Store(true); l.done.Wait() }

// more waits until n more requests have been answered.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	before := l.answered.Load()
	require.Eventually(t, func() bool { return l.answered.Load() >= before+n }, patience, tick)
}

// TestAHotRestart: the new process serves new connections, the old one's go on
// until it ends, and no request is answered wrongly.
func TestAHotRestart(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		port := peers.RestartPort(t) // sockets are handed over by their address
		o := v.options()
		o.HotRestart = true
		// More clusters than there are parked carriers.
		routes := []any{}
		for i := range 5 {
			name := fmt.Sprint("c", i)
			o.Clusters = append(o.Clusters, envoytest.Cluster(name, envoytest.At(s.Port)...))
			routes = append(routes, envoytest.Route(name, map[string]string{"method": name}))
		}
		o.Clusters = append(o.Clusters, envoytest.Cluster("one", envoytest.At(s.Port)...))
		config := envoytest.Dubbo("test", append(routes, envoytest.Route("one", nil))...)
		config["request_timeout"] = "2s"
		o.Listeners = []envoytest.Resource{
			envoytest.Loopback(envoytest.Socket()),
			envoytest.Listener("dubbo", envoytest.Proxy(config)).On(port),
		}
		older := envoytest.Start(t, o)
		require.Equal(t, port, older.Port("dubbo"))
		staying := scripted.Dial(t, port)
		staying.Ask(1, dubbotest.Request{})
		require.Equal(t, "here", staying.Read().Text())
		l := startLoad(t, port, 8)
		l.more(t, 1000)

		o.Replaces = older
		newer := envoytest.Start(t, o)
		staying.Ask(2, dubbotest.Request{})
		require.Equal(t, "here", staying.Read().Text(), "the old process still serves its connections")
		l.more(t, 1000)
		for id := range uint64(5) {
			staying.Ask(10+id, dubbotest.Request{Method: fmt.Sprint("c", id)})
		}
		opened := 0
		for _, a := range staying.Answers(5) {
			if a.Text() == "here" {
				opened++
			} else {
				require.Contains(t, a.Text(), "timeout while waiting for an upstream connection")
			}
		}
		if v.golang {
			require.Equal(t, 5, opened, "tunnels go by the new process's listener")
		} else {
			require.Less(t, opened, 5, "the loopback listener belongs to the new process")
			require.Contains(t, older.Log(), "the socket belongs to process")
		}
		older.WaitExit()
		staying.Closed()
		l.more(t, 1000)
		l.end()
		require.Zero(t, l.wrong.Load())
		// Each client has lost the connection to the old process once, some of
		// them one more, which the old one took up just before. What was in
		// flight at its end was lost with it.
		require.LessOrEqual(t, l.ended.Load(), int64(16))
		require.LessOrEqual(t, l.refused.Load(), int64(8))
		newer.WaitStat(stats+"request_active", envoytest.Exactly(0))
		require.NotZero(t, newer.Stat(stats+"response_success"))
	})
}

// TestTerminationUnderLoad: what is in flight then is lost, with an error or
// its connection; nothing is answered wrongly, and Envoy leaves without a crash.
func TestTerminationUnderLoad(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		e := v.start(t, toOne("one"), envoytest.Cluster("one", envoytest.At(s.Port)...))
		l := startLoad(t, e.Port("dubbo"), 16)
		l.more(t, 2000)
		begin := time.Now()
		e.Terminate()
		e.WaitExit()
		require.Less(t, time.Since(begin), 10*time.Second)
		l.end()
		require.Zero(t, l.wrong.Load())
	})
}
