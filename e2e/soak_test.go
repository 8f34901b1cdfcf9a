package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

var soakTime = flag.Duration("soak", 15*time.Second, "how long TestSoak goes on")

// TestSoak mixes load with faults and updates of endpoints and configuration.
// Every request is accounted for, and what Envoy holds does not grow.
func TestSoak(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		names := []string{"a", "b", "c", "d"}
		all, at := servers(t, names...)
		loopback := envoytest.Loopback(envoytest.Socket())
		config := func(generation int) envoytest.M {
			c := envoytest.Dubbo("test",
				envoytest.Route("four", map[string]string{"method": "generation" + strconv.Itoa(generation)}), envoytest.Route("four", nil))
			c["upstream"] = envoytest.M{"max_connection_age": "2s"}
			c["request_timeout"] = "1s"
			return c
		}
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("four", at...)}
		o.Listeners = []envoytest.Resource{loopback, envoytest.Listener("dubbo", envoytest.Proxy(config(0)))}
		e := envoytest.Start(t, o)
		port := e.Port("dubbo")

		stop := make(chan struct{})
		var load sync.WaitGroup
		var answered, failed, lost atomic.Int64
		for i := range uint64(8) {
			load.Go(func() {
				rng := rand.New(rand.NewPCG(i, 9))
				for !isClosed(stop) {
					a, f, l := session(rng, port)
					answered.Add(a)
					failed.Add(f)
					lost.Add(l)
				}
			})
		}

		rng := rand.New(rand.NewPCG(5, 5))
		type level struct{ rss, files int64 }
		var levels []level
		begin := time.Now()
		for generation := 1; time.Since(begin) < *soakTime; generation++ {
			switch generation % 5 {
			case 0:
				all[rng.IntN(len(all))].Disconnect()
			case 1:
				e.SetEndpoints("four", at[:2+rng.IntN(3)]...)
			case 2:
				s := all[rng.IntN(len(all))]
				s.Set(scripted.Never)
				time.Sleep(50 * time.Millisecond)
				s.Set(scripted.Garbage)
				time.Sleep(50 * time.Millisecond)
				s.Set(scripted.Answer("x"))
			case 3:
				require.True(t, e.SetListeners(loopback, envoytest.Listener("dubbo", envoytest.Proxy(config(generation)))))
			case 4:
				time.Sleep(500 * time.Millisecond)
				levels = append(levels, level{e.RSS(), files(t, e.Pid())})
			}
		}
		close(stop)
		load.Wait()
		t.Logf("answered %d, failed %d, lost with their connection %d; memory and open files over time: %s",
			answered.Load(), failed.Load(), lost.Load(), fmt.Sprint(levels))
		require.Greater(t, answered.Load(), int64(1000))
		checkCounters(t, e)
		// What clients know of and what Envoy counted is the same, but for
		// requests that Envoy may not have seen before it closed a connection.
		told := answered.Load() + failed.Load()
		require.GreaterOrEqual(t, e.Stat(stats+"request"), told)
		require.LessOrEqual(t, e.Stat(stats+"request"), told+lost.Load())
		require.Less(t, lost.Load(), told/1000+100, "lost with their connection")
		if n := len(levels); n >= 8 {
			early, late := levels[n/4], levels[n-1]
			require.Less(t, late.rss, early.rss+early.rss/2, "memory")
			require.Less(t, late.files, early.files+100, "open files")
		}
	})
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// session is one client connection with some hundred requests. lost are those
// without an answer when Envoy closed the connection, as a drained listener
// may while none is in flight: at most those that were on the way right then.
func session(rng *rand.Rand, port int) (answered, failed, lost int64) {
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return 0, 0, 0
	}
	defer c.Close()
	buf := make([]byte, 0, 1<<16)
	id := uint64(0)
	for range 1 + rng.IntN(200) {
		together := 1 + rng.IntN(20)
		var out []byte
		waiting := map[uint64]bool{}
		for range together {
			id++
			waiting[id] = true
			out = append(out, dubbotest.Request{ID: id, Method: "generation" + strconv.Itoa(rng.IntN(9))}.Bytes()...)
		}
		if _, err := c.Write(out); err != nil {
			return answered, failed, lost + int64(len(waiting))
		}
		for len(waiting) > 0 {
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				panic(err)
			}
			n, err := c.Read(buf[len(buf):cap(buf)])
			if err != nil {
				if os.IsTimeout(err) {
					panic("a request hangs")
				}
				return answered, failed, lost + int64(len(waiting))
			}
			frames, rest := dubbotest.Parse(buf[:len(buf)+n])
			for _, f := range frames {
				if !waiting[f.ID] {
					panic("an answer that nobody waits for")
				}
				delete(waiting, f.ID)
				if f.Status == statusOK {
					answered++
				} else {
					failed++
				}
			}
			buf = buf[:copy(buf[:cap(buf)], rest)]
		}
	}
	return answered, failed, lost
}

func files(t *testing.T, pid int) int64 {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	return int64(len(entries))
}
