package e2e

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

const statusOK = 20

// withTimeout is toOne with a deadline for requests.
func withTimeout(cluster string, d time.Duration) envoytest.M {
	c := toOne(cluster)
	c["request_timeout"] = fmt.Sprintf("%.3fs", d.Seconds())
	return c
}

// TestMisbehavingServer sends several requests at a time to a server that does
// each wrong thing, on a connection whose other requests go to a good one.
func TestMisbehavingServer(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name      string
		behaviour scripted.Behaviour
		answered  bool   // the client gets the server's answer all the same
		prompt    bool   // the error comes before the deadline
		counter   string // moves
	}{
		{"twice", scripted.Twice, true, true, "upstream_stray_response"},
		{"never", scripted.Never, false, false, "request_timeout"},
		{"wrong id", scripted.WrongID, false, false, "upstream_stray_response"},
		{"garbage", scripted.Garbage, false, true, "response_decoding_error"},
		{"half a frame", scripted.HalfFrame, false, false, "request_timeout"},
		{"half a frame and the end", scripted.CloseMidFrame, false, true, "upstream_reset"},
		{"the end", scripted.Close, false, true, "upstream_reset"},
		{"reset", scripted.Reset, false, true, "upstream_reset"},
		{"two gigabytes announced", scripted.HugeLength, false, true, "response_decoding_error"},
		{"too late", scripted.After(4500*time.Millisecond, scripted.Answer("late")), false, false, "upstream_stray_response"},
	}
	once(t, func(t *testing.T, v variant) {
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				bad, good := scripted.Serve(t, tc.behaviour), scripted.Serve(t, scripted.Answer("good"))
				config := envoytest.Dubbo("test", envoytest.Route("bad", map[string]string{"method": "bad"}), envoytest.Route("good", nil))
				deadline := 3 * time.Second
				if tc.prompt {
					deadline = patience // which no answer needs that is none of the deadline's
				}
				config["request_timeout"] = fmt.Sprint(deadline.Seconds(), "s")
				e := v.start(t, config,
					envoytest.Cluster("bad", envoytest.At(bad.Port)...), envoytest.Cluster("good", envoytest.At(good.Port)...))
				c := scripted.Dial(t, e.Port("dubbo"))

				const n = 5
				start := time.Now()
				for id := uint64(1); id <= n; id++ {
					c.Ask(id, dubbotest.Request{Method: "bad"})
					c.Ask(100+id, dubbotest.Request{Method: "good"})
				}
				answers := c.Answers(2 * n)
				took := time.Since(start)
				for id := uint64(1); id <= n; id++ {
					require.Equal(t, "good", answers[100+id].Text())
					if tc.answered {
						require.EqualValues(t, statusOK, answers[id].Status)
						continue
					}
					require.NotEqualValues(t, statusOK, answers[id].Status)
					require.NotEmpty(t, answers[id].Text())
				}
				if tc.prompt {
					require.Less(t, took, deadline)
				} else {
					require.GreaterOrEqual(t, took, deadline)
				}
				e.WaitStat(stats+tc.counter, envoytest.AtLeast(1))
				c.Quiet()

				// The server has come to its senses.
				bad.Set(scripted.Answer("good again"))
				require.Eventually(t, func() bool {
					c.Ask(200, dubbotest.Request{Method: "bad"})
					return c.Read().Text() == "good again"
				}, patience, tick)
				c.Quiet()
				checkCounters(t, e)
			})
		}
	})
}

// TestNoServer asks clusters that cannot be reached: requests fail by their
// reason, whichever way an Envoy tells it.
func TestNoServer(t *testing.T) {
	t.Parallel()
	nowhere := func(*testing.T) []envoytest.Endpoint { return nil }
	served := func(t *testing.T) []envoytest.Endpoint {
		return envoytest.At(scripted.Serve(t, scripted.Answer("never asked")).Port)
	}
	cases := []struct {
		name      string
		endpoints func(*testing.T) []envoytest.Endpoint
		cluster   envoytest.M // besides what all have
		status    int
		text      string
	}{
		{"no endpoint", nowhere, nil, 80, "no healthy upstream in cluster gone"},
		{
			"all unhealthy", func(*testing.T) []envoytest.Endpoint { return []envoytest.Endpoint{{Port: 1, Unhealthy: true}} },
			nil, 80, "no healthy upstream in cluster gone",
		},
		{"connection refused", refused, nil, 80, "upstream connect failure in cluster gone"},
		{"connect timeout", blackhole, nil, 80, "upstream connect failure in cluster gone"},
		{"circuit breaker", served, noConnections, 100, "upstream connection limit reached"},
	}
	everywhere(t, func(t *testing.T, v variant) {
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				cluster := envoytest.Cluster("gone", tc.endpoints(t)...).With(envoytest.M{
					"connect_timeout":  "0.25s",
					"common_lb_config": envoytest.M{"healthy_panic_threshold": envoytest.M{"value": 0}},
				})
				e := v.start(t, withTimeout("gone", time.Minute), cluster.With(tc.cluster))
				c := scripted.Dial(t, e.Port("dubbo"))
				start := time.Now()
				for id := uint64(1); id <= 20; id++ {
					c.Ask(id, dubbotest.Request{})
				}
				for _, a := range c.Answers(20) {
					require.EqualValues(t, tc.status, a.Status, a.Text())
					require.Equal(t, tc.text, a.Text())
				}
				require.Less(t, time.Since(start), 15*time.Second, "not by the deadline")
				c.Quiet()
				checkCounters(t, e)

				// A host appears, or the limit goes.
				s := scripted.Serve(t, scripted.Answer("here"))
				e.SetEndpoints("gone", envoytest.At(s.Port)...)
				if tc.cluster != nil {
					require.True(t, e.SetClusters(envoytest.Cluster("gone", envoytest.At(s.Port)...)))
				}
				require.Eventually(t, func() bool {
					c.Ask(100, dubbotest.Request{})
					return c.Read().Text() == "here"
				}, patience, tick)
				checkCounters(t, e)
			})
		}
		refuses := func(t *testing.T, config envoytest.M, text string) {
			e := v.start(t, config)
			c := scripted.Dial(t, e.Port("dubbo"))
			c.Ask(1, dubbotest.Request{})
			a := c.Read()
			require.EqualValues(t, 60, a.Status)
			require.Equal(t, text, a.Text())
			checkCounters(t, e)
		}
		t.Run("no cluster", func(t *testing.T) { refuses(t, toOne("never-defined"), "unknown cluster never-defined") })
		t.Run("no route", func(t *testing.T) {
			refuses(t, envoytest.Dubbo("test", envoytest.Route("x", map[string]string{"method": "other"})), "no route matches org.example.Greeter/sayHello")
		})
	})
}

// refused is an endpoint at which nobody listens.
func refused(t *testing.T) []envoytest.Endpoint {
	t.Helper()
	return envoytest.At(peers.RestartPort(t))
}

// noConnections are fields of a cluster whose circuit breaker lets no
// connection through.
var noConnections = envoytest.M{
	// The second is the limit of connections by CONNECT, of which a host has one all the same.
	"circuit_breakers": envoytest.M{"thresholds": []any{envoytest.M{"max_connections": 0, "max_pending_requests": 0}}},
}

// blackhole is an endpoint that takes no connection: its backlog is full, so the
// kernel drops what would open one more.
func blackhole(t *testing.T) []envoytest.Endpoint {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	addr, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	port := addr.(*syscall.SockaddrInet4).Port
	for {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 200*time.Millisecond)
		if err != nil {
			return envoytest.At(port)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// TestClientErrorsAreRPCExceptions proves that real clients report Meltemi's own
// errors with Meltemi's text.
func TestClientErrorsAreRPCExceptions(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		e := v.start(t, toOne("gone"), envoytest.Cluster("gone"))
		for _, lib := range []peers.Library{peers.DubboGo, peers.Java} {
			t.Run(string(lib), func(t *testing.T) {
				c := lib.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{Timeout: calls.Patience})
				s := c.Load(peers.Command{Method: "who", Count: 100, Concurrency: 10})
				require.Equal(t, 100, s.Failed())
				for text := range s.Errors {
					require.Contains(t, text, "no healthy upstream")
				}
				require.Less(t, s.LatencyUS["max"], (calls.Patience / 2).Microseconds(), "an error, not the clients' own timeout")
			})
		}
		checkCounters(t, e)
	})
}

// TestProviderKilledUnderLoad kills one of two providers, and both, while
// clients call.
func TestProviderKilledUnderLoad(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		a := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "a"})
		b := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "b", Port: peers.RestartPort(t)})
		e := v.start(t, toOne("providers"), envoytest.Cluster("providers", envoytest.At(a.Port, b.Port)...))
		c := peers.DubboGo.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{})
		load := peers.Command{Method: "sleep", Args: []any{5}, Concurrency: 20, DurationMS: 3000, Summary: true}

		healthy := c.Go(load).Summary()
		require.Empty(t, healthy.Errors)
		require.Len(t, healthy.Values, 2, "%v", healthy.Values)

		pending := c.Go(load)
		e.WaitStat(stats+"response", envoytest.AtLeast(e.Stat(stats+"response")+100))
		b.Kill()
		one := pending.Summary()
		require.Equal(t, one.Calls, one.Succeeded()+one.Failed())
		// What was on its way to b is lost: a call of each caller, on each worker that
		// still had a connection to it. a serves whatever comes later.
		require.LessOrEqual(t, one.Failed(), v.workers*load.Concurrency, "%v", one.Errors)
		for text := range one.Errors {
			require.Contains(t, text, "upstream connection ended before the answer")
		}
		require.NotZero(t, one.Values["a"])
		require.Less(t, one.LatencyUS["max"], int64(2_900_000), "nobody waits for the client's own timeout")

		a.Kill()
		down := c.Go(peers.Command{Method: "who", Count: 50, Concurrency: 10, Summary: true}).Summary()
		require.Equal(t, 50, down.Failed())
		require.Less(t, down.LatencyUS["max"], int64(2_900_000), "%v", down.Errors)

		peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "b", Port: b.Port})
		// Each worker finds out for itself that it is back.
		require.Eventually(t, func() bool {
			return c.Load(peers.Command{Method: "who", Count: 100, Concurrency: load.Concurrency}).Failed() == 0
		}, patience, tick)
		again := c.Load(load)
		require.Empty(t, again.Errors)
		require.Len(t, again.Values, 1, "%v", again.Values)
		require.NotZero(t, again.Values["b"])
		checkCounters(t, e)
	})
}

// TestGracefulLeave terminates a Dubbo Java provider: it announces that it
// leaves, and no request is lost.
func TestGracefulLeave(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		a := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "a"})
		b := peers.Java.Provider(t, peers.ProviderOptions{Name: "b"})
		e := v.start(t, toOne("providers"), envoytest.Cluster("providers", envoytest.At(a.Port, b.Port)...))
		c := peers.DubboGo.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{Timeout: calls.Patience})
		pending := c.Go(peers.Command{Method: "who", Concurrency: 10, DurationMS: 6000, Summary: true})
		e.WaitStat(stats+"response", envoytest.AtLeast(500))
		e.SetEndpoints("providers", envoytest.At(a.Port)...)
		require.NoError(t, b.Terminate(30*time.Second))
		s := pending.Summary()
		require.Empty(t, s.Errors)
		require.NotZero(t, s.Values["b"])
		checkCounters(t, e)
	})
}

// TestAServersReadOnlyEventMovesItsTraffic terminates a Dubbo Java provider whose
// connections are in use: only its event tells that it leaves.
func TestAServersReadOnlyEventMovesItsTraffic(t *testing.T) {
	t.Parallel()
	for name, replaced := range map[string]bool{
		"replaced":                  true, // unnoticed: the number of endpoints stays
		"still among the endpoints": false,
	} {
		t.Run(name, func(t *testing.T) {
			once(t, func(t *testing.T, v variant) {
				if replaced && v.golang {
					t.Skip("not by the golang filter: hosts are those that have been seen, so that a new one is noticed")
				}
				a := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "a"})
				b := peers.Java.Provider(t, peers.ProviderOptions{Name: "b"})
				e := v.start(t, toOne("providers"), envoytest.Cluster("providers", envoytest.At(a.Port, b.Port)...))
				c := peers.DubboGo.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{Timeout: calls.Patience})
				load := func(d time.Duration) *peers.Pending {
					return c.Go(peers.Command{Method: "sleep", Args: []any{20}, Concurrency: 10, DurationMS: int(d.Milliseconds()), Summary: true})
				}
				before := load(2 * time.Second).Summary()
				require.Empty(t, before.Errors)
				require.NotZero(t, before.Values["b"], before.Values)
				if replaced {
					other := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "other"})
					e.SetEndpoints("providers", envoytest.At(a.Port, other.Port)...)
					stays := load(2 * time.Second).Summary()
					require.Empty(t, stays.Errors)
					require.NotZero(t, stays.Values["b"], "the endpoints alone have moved the traffic")
				}
				require.Zero(t, e.Stat(stats+"upstream_event"))

				pending := load(8 * time.Second)
				e.WaitStat(stats+"request_active", envoytest.AtLeast(1))
				terminated := make(chan error, 1)
				go func() { terminated <- b.Terminate(30 * time.Second) }()
				// It lets its connections be for a while behind the event.
				e.WaitStat(stats+"upstream_event", envoytest.AtLeast(1))
				require.True(t, eventually(patience, func() bool { // as other connections, and workers, are told
					gone := load(300 * time.Millisecond).Summary()
					require.Empty(t, gone.Errors)
					return gone.Values["b"] == 0
				}))
				require.Empty(t, terminated, "it ended too soon to tell")
				require.NoError(t, <-terminated)
				require.Empty(t, pending.Summary().Errors)
				checkCounters(t, e)
			})
		})
	}
}

// TestEndpointsComeAndGo changes the endpoints under load; no request fails.
func TestEndpointsComeAndGo(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		name := func(n string) *scripted.Server { return scripted.Serve(t, scripted.Answer(n)) }
		a, b, c := name("a"), name("b"), name("c")
		config := toOne("providers")
		config["upstream"] = envoytest.M{"max_connection_age": "1s"}
		e := v.start(t, config, envoytest.Cluster("providers", envoytest.At(a.Port)...))

		client := scripted.Dial(t, e.Port("dubbo"))
		next := uint64(0)
		// until calls one by one until done, and none fails.
		until := func(what string, done func(text string) bool) {
			t.Helper()
			for deadline := time.Now().Add(patience); ; {
				next++
				client.Ask(next, dubbotest.Request{})
				f := client.Read()
				require.Equal(t, next, f.ID)
				require.EqualValues(t, statusOK, f.Status, f.Text())
				if done(f.Text()) {
					return
				}
				require.False(t, time.Now().After(deadline), "never: %s", what)
			}
		}
		// without calls until a whole age long nobody else has answered.
		without := func(gone string) {
			t.Helper()
			last := time.Now()
			until("traffic without "+gone, func(text string) bool {
				if text == gone {
					last = time.Now()
				}
				return time.Since(last) > 1500*time.Millisecond
			})
		}

		until("a answers", func(s string) bool { return s == "a" })
		e.SetEndpoints("providers", envoytest.At(a.Port, b.Port)...)
		until("b answers", func(s string) bool { return s == "b" })
		e.SetEndpoints("providers", envoytest.At(b.Port)...)
		without("a")
		// The count stays the same.
		e.SetEndpoints("providers", envoytest.At(c.Port)...)
		until("c answers", func(s string) bool { return s == "c" })
		without("b")
		checkCounters(t, e)
	})
}
