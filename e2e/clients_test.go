package e2e

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// held answers requests only when told to.
type held struct{ arrived, release chan struct{} }

func newHeld() held {
	return held{make(chan struct{}, 1000), make(chan struct{})}
}

func (h held) behaviour(c *scripted.Conn, req dubbotest.Parsed) {
	h.arrived <- struct{}{}
	go func() {
		<-h.release
		scripted.Answer("held")(c, req)
	}()
}

func TestClientLeavesWhileItsRequestsAreInFlight(t *testing.T) {
	t.Parallel()
	leave := map[string]func(*scripted.Client){
		"close": func(c *scripted.Client) { c.Close() },
		"reset": func(c *scripted.Client) { c.SetLinger(0); c.Close() },
		"close within a frame": func(c *scripted.Client) {
			b := dubbotest.Request{ID: 9, Argument: strings.Repeat("x", 1000)}.Bytes()
			c.Send(b[:500]...)
			c.Close()
		},
	}
	once(t, func(t *testing.T, v variant) {
		for name, how := range leave {
			t.Run(name, func(t *testing.T) {
				h := newHeld()
				s := scripted.Serve(t, h.behaviour)
				e := v.start(t, toOne("held"), envoytest.Cluster("held", envoytest.At(s.Port)...))
				leaver, stayer := scripted.Dial(t, e.Port("dubbo")), scripted.Dial(t, e.Port("dubbo"))
				for id := uint64(1); id <= 3; id++ {
					leaver.Ask(id, dubbotest.Request{})
					stayer.Ask(id, dubbotest.Request{})
				}
				for range 6 {
					<-h.arrived
				}
				how(leaver)
				// A client that is gone looks like one that only stopped sending,
				// until something is written to it.
				close(h.release)
				for _, a := range stayer.Answers(3) {
					require.Equal(t, "held", a.Text())
				}
				e.WaitStat(stats+"request_active", envoytest.Exactly(0))
				stayer.Ask(4, dubbotest.Request{})
				require.Equal(t, "held", stayer.Read().Text())
				stayer.Quiet()
				checkCounters(t, e)
			})
		}
	})
}

func TestHalfClosedClientGetsItsAnswers(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		h := newHeld()
		s := scripted.Serve(t, h.behaviour)
		e := v.start(t, toOne("held"), envoytest.Cluster("held", envoytest.At(s.Port)...))
		c := scripted.Dial(t, e.Port("dubbo"))
		for id := uint64(1); id <= 5; id++ {
			c.Ask(id, dubbotest.Request{})
			<-h.arrived
		}
		require.NoError(t, c.CloseWrite())
		close(h.release)
		require.Len(t, c.Answers(5), 5)
		require.Empty(t, c.Closed())
		checkCounters(t, e)
	})
}

func TestPipelinedRequestsEndInAnyOrder(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		// The first of ten is answered last.
		s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			n := 10 - int(dubbotestArgument(req)[0]-'0')
			scripted.After(time.Duration(n)*200*time.Millisecond, scripted.Answer(dubbotestArgument(req)))(c, req)
		})
		e := v.start(t, toOne("slow"), envoytest.Cluster("slow", envoytest.At(s.Port)...))
		c := scripted.Dial(t, e.Port("dubbo"))
		var all []byte
		for i := range 10 {
			all = append(all, dubbotest.Request{ID: uint64(1000 + i), Argument: string(rune('0' + i))}.Bytes()...)
		}
		c.Send(all...)
		first := c.Read()
		require.NotEqualValues(t, 1000, first.ID, "the slowest came first")
		answers := c.Answers(9)
		answers[first.ID] = first
		for i := range 10 {
			require.Equal(t, string(rune('0'+i)), answers[uint64(1000+i)].Text())
		}
		c.Quiet()
		checkCounters(t, e)
	})
}

// dubbotestArgument is the string argument of a request as dubbotest makes it.
func dubbotestArgument(req dubbotest.Parsed) string {
	i := strings.Index(string(req.Body), "Ljava/lang/String;") + len("Ljava/lang/String;")
	rest := dubbotest.Parsed{Body: req.Body[i:]}
	return rest.Text()
}

func TestDuplicateAndHostileIDs(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) { scripted.Answer(dubbotestArgument(req))(c, req) })
		e := v.start(t, toOne("echo"), envoytest.Cluster("echo", envoytest.At(s.Port)...))
		ids := []uint64{0, 1, 1<<63 - 1, 1 << 63, 1<<64 - 1, 1 << 32}
		a, b := scripted.Dial(t, e.Port("dubbo")), scripted.Dial(t, e.Port("dubbo"))
		for _, id := range ids {
			a.Ask(id, dubbotest.Request{Argument: "a"})
			b.Ask(id, dubbotest.Request{Argument: "b"})
		}
		for _, f := range a.Answers(len(ids)) {
			require.Equal(t, "a", f.Text())
		}
		for _, f := range b.Answers(len(ids)) {
			require.Equal(t, "b", f.Text())
		}
		// One id for many requests is the client's own affair: as many answers.
		for range 10 {
			a.Ask(7, dubbotest.Request{Argument: "same"})
		}
		for range 10 {
			f := a.Read()
			require.EqualValues(t, 7, f.ID)
			require.Equal(t, "same", f.Text())
		}
		a.Quiet()
		b.Quiet()
		checkCounters(t, e)
	})
}

func TestGarbageFromAClientEndsThatClient(t *testing.T) {
	t.Parallel()
	garbage := map[string][]byte{
		"another protocol":  []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"two gigabytes":     {0xda, 0xbb, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff},
		"a negative length": {0xda, 0xbb, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff},
	}
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("good"))
		e := v.start(t, toOne("good"), envoytest.Cluster("good", envoytest.At(s.Port)...))
		honest := scripted.Dial(t, e.Port("dubbo"))
		for name, b := range garbage {
			t.Run(name, func(t *testing.T) {
				before := e.Stat(stats + "request_decoding_error")
				c := scripted.Dial(t, e.Port("dubbo"))
				c.Ask(1, dubbotest.Request{})
				require.Equal(t, "good", c.Read().Text())
				c.Send(b...)
				c.Closed()
				e.WaitStat(stats+"request_decoding_error", envoytest.AtLeast(before+1))
				honest.Ask(1, dubbotest.Request{})
				require.Equal(t, "good", honest.Read().Text())
			})
		}
	})
}

const mib = 1 << 20

func TestClientThatDoesNotReadIsClosed(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer(strings.Repeat("x", 60_000)))
		config := toOne("big")
		config["limits"] = envoytest.M{"max_write_buffer_bytes": 4 * mib}
		e := v.start(t, config, envoytest.Cluster("big", envoytest.At(s.Port)...))
		honest := scripted.Dial(t, e.Port("dubbo"))
		honest.Ask(1, dubbotest.Request{})
		honest.Read()
		before := e.RSS()

		lazy := scripted.Dial(t, e.Port("dubbo"))
		require.NoError(t, lazy.SetReadBuffer(4096))
		var written atomic.Bool
		go func() {
			defer written.Store(true)
			// All at once: one by one, they might be read only as fast as answers
			// fill Envoy's buffer, and reading stop with few of them in flight.
			var requests []byte
			for id := uint64(1); id <= 9000; id++ { // 540 MB of answers
				requests = append(requests, dubbotest.Request{ID: id}.Bytes()...)
			}
			lazy.Write(requests) // until the connection is closed
		}()
		e.WaitStat(stats+"downstream_overflow", envoytest.Exactly(1))
		honest.Ask(2, dubbotest.Request{})
		require.Len(t, honest.Read().Text(), 60_000)
		// Four times the limit, and thrice as much again of what Go's collector, which
		// may be late, has not come round to.
		require.Less(t, e.RSS()-before, int64(256*mib))
		e.WaitStat(stats+"request_active", envoytest.Exactly(0))
		lazy.Close()
		require.Eventually(t, written.Load, patience, tick)
		honest.Quiet()
		checkCounters(t, e)
	})
}

// TestAClosedClientThatDoesNotReadIsNotKept: Envoy itself would wait for ever
// until what is left has been read.
func TestAClosedClientThatDoesNotReadIsNotKept(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer(strings.Repeat("x", 60_000)))
		config := toOne("big")
		config["idle_timeout"] = "1s"
		config["limits"] = envoytest.M{"max_write_buffer_bytes": 64 * mib}
		e := v.start(t, config, envoytest.Cluster("big", envoytest.At(s.Port)...))
		lazy := scripted.Dial(t, e.Port("dubbo"))
		require.NoError(t, lazy.SetReadBuffer(4096))
		const n = 400 // 24 MB, more than sockets hold
		for id := uint64(1); id <= n; id++ {
			lazy.Ask(id, dubbotest.Request{})
		}
		e.WaitStat(stats+"response", envoytest.Exactly(n))
		connections := func() (n int64) {
			for name, v := range e.Stats("^listener[.]127.*[.]downstream_cx_active$") {
				if !strings.Contains(name, "worker_") {
					n += v
				}
			}
			return n
		}
		require.EqualValues(t, 1, connections())
		begin := time.Now()
		require.Eventually(t, func() bool { return connections() == 0 }, time.Minute, tick)
		require.Greater(t, time.Since(begin), 20*time.Second, "it was given time to read")
	})
}

// TestAClosedClientThatReadsSlowlyGetsEverything: it is closed for lack of progress,
// not for lack of speed.
func TestAClosedClientThatReadsSlowlyGetsEverything(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer(strings.Repeat("x", 60_000)))
		config := toOne("big")
		config["idle_timeout"] = "1s"
		config["limits"] = envoytest.M{"max_write_buffer_bytes": 64 * mib}
		e := v.start(t, config, envoytest.Cluster("big", envoytest.At(s.Port)...))
		slow := scripted.Dial(t, e.Port("dubbo"))
		require.NoError(t, slow.SetReadBuffer(64<<10))
		const n = 400 // 24 MB, more than sockets hold
		for id := uint64(1); id <= n; id++ {
			slow.Ask(id, dubbotest.Request{})
		}
		e.WaitStat(stats+"idle_timeout", envoytest.Exactly(1))
		begin := time.Now()
		for id := range n {
			time.Sleep(time.Until(begin.Add(time.Duration(id) * 45 * time.Second / n)))
			a, err := slow.TryRead()
			require.NoError(t, err, "answer %d after %v", id, time.Since(begin))
			require.Len(t, a.Text(), 60_000)
		}
		require.Empty(t, slow.Closed())
	})
}

// TestFramesPassWhateverTheBufferLimit: per_connection_buffer_limit_bytes.
func TestFramesPassWhateverTheBufferLimit(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		for _, limit := range []int{1, 1 << 10, 16 << 10, 32 << 10, 1 << 20} {
			s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
				c.Write(dubbotest.Response(req.ID, strings.Repeat("x", 60_000)))
			})
			o := v.options()
			o.Clusters = []envoytest.Resource{envoytest.Cluster("s1", envoytest.At(s.Port)...)}
			o.Listeners = []envoytest.Resource{
				envoytest.Loopback(envoytest.Socket()),
				envoytest.Listener("dubbo", envoytest.Proxy(toOne("s1"))).With(envoytest.M{"per_connection_buffer_limit_bytes": limit}),
			}
			e := envoytest.Start(t, o)
			c := scripted.Dial(t, e.Port("dubbo"))
			for _, size := range []int{100, 16_000, 25_000, 32_000, 60_000} {
				b := dubbotest.Request{ID: uint64(size), Argument: strings.Repeat("x", size)}.Bytes()
				c.Send(b[:len(b)-10]...)
				time.Sleep(20 * time.Millisecond) // mostly, Envoy reads that by itself
				c.Send(append(b[len(b)-10:], dubbotest.Request{ID: 1}.Bytes()...)...)
				for id, a := range c.Answers(2) {
					require.Len(t, a.Text(), 60_000, "limit %d, request %d of %d bytes", limit, id, size)
				}
			}
			checkCounters(t, e)
		}
	})
}

// TestRequestsAfterAQuietTimeHaveTheirOwn: those that are taken up as their client
// reads its answers are as old as that event, not as the one before it.
func TestRequestsAfterAQuietTimeHaveTheirOwn(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer(strings.Repeat("x", 60_000)))
		config := toOne("s1")
		config["request_timeout"] = "3s"
		config["upstream"] = envoytest.M{"idle_timeout": "0.1s"}
		config["limits"] = envoytest.M{"max_write_buffer_bytes": 64 * mib, "max_requests_in_flight": 2}
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
		c := scripted.Dial(t, e.Port("dubbo"))
		require.NoError(t, c.SetReadBuffer(128<<10))
		const n = 400
		// A long frame is taken out of Envoy's buffer, and what comes with its end too.
		b := dubbotest.Request{ID: 1, Argument: strings.Repeat("x", 60_000)}.Bytes()
		c.Send(b[:50_000]...)
		time.Sleep(300 * time.Millisecond)
		b = b[50_000:]
		for id := uint64(2); id <= n; id++ {
			b = append(b, dubbotest.Request{ID: id}.Bytes()...)
		}
		go c.Write(b)
		var before int64
		require.Eventually(t, func() bool { // until it is stopped as it does not read
			last := before
			before = e.Stat(stats + "request")
			return before > 10 && before == last && e.Stat(stats+"request_active") == 0
		}, patience, 500*time.Millisecond)
		require.Less(t, before, int64(n))
		time.Sleep(5 * time.Second) // nothing happens, for longer than request_timeout
		for id, a := range c.Answers(n) {
			require.EqualValues(t, 20, a.Status, "request %d", id)
		}
	})
}

// TestMemoryOfABurstIsGivenBack: also when nothing happens afterwards.
func TestMemoryOfABurstIsGivenBack(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		e := v.start(t, toOne("one"), envoytest.Cluster("one", envoytest.At(s.Port)...))
		honest := scripted.Dial(t, e.Port("dubbo"))
		honest.Ask(1, dubbotest.Request{})
		honest.Read()
		before, peak := e.RSS(), int64(0)
		frame := dubbotest.Request{Argument: strings.Repeat("x", 7*mib)}.Bytes()
		clients := make([]*scripted.Client, 64)
		for i := range clients {
			clients[i] = scripted.Dial(t, e.Port("dubbo"))
			clients[i].Write(frame[:len(frame)-1])
			peak = max(peak, e.RSS())
		}
		for _, c := range clients {
			c.Close()
		}
		begin := time.Now()
		require.Eventually(t, func() bool { return e.RSS() < before+64*mib }, time.Minute, tick)
		t.Logf("from %d MiB to %d and back after %v", before/mib, peak/mib, time.Since(begin).Round(time.Second))
		honest.Ask(2, dubbotest.Request{})
		require.Equal(t, "here", honest.Read().Text())
	})
}

func TestClientThatReadsLateGetsEverything(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer(strings.Repeat("x", 60_000)))
		e := v.start(t, toOne("big"), envoytest.Cluster("big", envoytest.At(s.Port)...))
		c := scripted.Dial(t, e.Port("dubbo"))
		const n = 60 // 3.6 MB, below the limit
		for id := uint64(1); id <= n; id++ {
			c.Ask(id, dubbotest.Request{})
		}
		e.WaitStat(stats+"response", envoytest.Exactly(n))
		for _, a := range c.Answers(n) {
			require.Len(t, a.Text(), 60_000)
		}
		c.Quiet()
		checkCounters(t, e)
	})
}

// TestServerThatDoesNotReadCostsBoundedMemory: its clients are not read any
// more, long before they have sent everything.
func TestServerThatDoesNotReadCostsBoundedMemory(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		stuck := make(chan struct{})
		release := sync.OnceFunc(func() { close(stuck) })
		s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			<-stuck // and nothing more is read from this connection
			scripted.Answer("at last")(c, req)
		})
		t.Cleanup(release)
		e := v.start(t, withTimeout("stuck", 5*time.Second), envoytest.Cluster("stuck", envoytest.At(s.Port)...))
		c := scripted.Dial(t, e.Port("dubbo"))
		before := e.RSS()
		const n = 8000 // 480 MB of requests
		var written atomic.Int64
		sent := make(chan error, 1)
		go func() {
			payload := strings.Repeat("x", 60_000)
			for id := uint64(1); id <= n; id++ {
				if _, err := c.Write(dubbotest.Request{ID: id, Argument: payload}.Bytes()); err != nil {
					sent <- err
					return
				}
				written.Add(1)
			}
			sent <- nil
		}()
		// The first answer is an error that comes with the deadline. Until then
		// nothing has held up the client but Envoy, which did not read it.
		first := c.Read()
		require.NotEqualValues(t, statusOK, first.Status)
		require.Contains(t, first.Text(), "timeout")
		require.Less(t, written.Load(), int64(3200))
		require.Less(t, e.RSS()-before, int64(320*mib))

		// Each gets its one answer, also when the server reads again.
		peak := int64(0)
		seen := map[uint64]bool{first.ID: true}
		for len(seen) < n {
			if len(seen) == 100 {
				release()
			}
			f := c.Read()
			require.False(t, seen[f.ID], "%d twice", f.ID)
			if seen[f.ID] = true; len(seen)%100 == 1 {
				peak = max(peak, e.RSS())
			}
		}
		require.NoError(t, <-sent)
		require.Less(t, peak-before, int64(320*mib))
		c.Ask(n+1, dubbotest.Request{})
		require.Equal(t, "at last", c.Read().Text())
		c.Quiet()
		checkCounters(t, e)
	})
}
