package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// mirrored adds mirrors to a route.
func mirrored(route envoytest.M, policies ...any) envoytest.M {
	route["route"].(envoytest.M)["request_mirror_policies"] = policies
	return route
}

// TestTheGuidesMirrorOfRealCalls: the configuration of docs/traffic.md, between real
// providers and consumers.
func TestTheGuidesMirrorOfRealCalls(t *testing.T) {
	t.Parallel()
	config := fromTraffic(t, "Mirroring")
	once(t, func(t *testing.T, v variant) {
		v1 := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "v1"})
		next := peers.Java.Provider(t, peers.ProviderOptions{Name: "next"})
		e := v.start(t, config, envoytest.Cluster("v1", envoytest.At(v1.Port)...), envoytest.Cluster("next", envoytest.At(next.Port)...))
		for _, lib := range []peers.Library{peers.DubboGo, peers.Java} {
			c := lib.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{})
			s := c.Load(peers.Command{Method: "who", Count: 150, Concurrency: 8}) // a mirror that has just begun is slow
			require.Equal(t, map[string]int{"v1": 150}, s.Values, "%s: %v", lib, s.Errors)
		}
		var told map[string]int64 // at one time
		require.True(t, eventually(patience, func() bool {
			told = e.Stats("^" + regexp.QuoteMeta(stats) + "mirror")
			return told[stats+"mirror_active"] == 0 && told[stats+"mirror"] > 0 && told[stats+"mirror_same"]+told[stats+"mirror_failed"] == told[stats+"mirror"]
		}), "%v", &told)
		require.InDelta(t, 75, told[stats+"mirror"], 50)
		for _, name := range []string{"mirror_different", "mirror_overflow", "upstream_stray_response"} {
			require.Zero(t, e.Stat(stats+name), name)
		}
		checkCounters(t, e)
	})
}

// TestCopiesHaveTheirOwnIDs, and are what the client has sent, or what it has become.
func TestCopiesHaveTheirOwnIDs(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		var mu sync.Mutex
		got := map[string]map[uint64]string{"before": {}, "after": {}}
		record := func(name string) *scripted.Server {
			return scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
				mu.Lock()
				got[name][uint64(c.Nth)<<32|req.ID] = string(req.Body)
				mu.Unlock()
				scripted.Answer("of the mirror")(c, req)
			})
		}
		one, before, after := scripted.Serve(t, scripted.Answer("one")), record("before"), record("after")
		route := mirrored(envoytest.Route("one", nil),
			envoytest.M{"cluster": "before"}, envoytest.M{"cluster": "after", "after_mutation": true}, envoytest.M{"cluster": "unknown"})
		route["request_mutation"] = []any{envoytest.M{"key": "added", "value": "by the route"}}
		e := v.start(t, envoytest.Dubbo("test", route), envoytest.Cluster("one", envoytest.At(one.Port)...),
			envoytest.Cluster("before", envoytest.At(before.Port)...), envoytest.Cluster("after", envoytest.At(after.Port)...))
		const n = 20
		for i := range n {
			c := scripted.Dial(t, e.Port("dubbo"))
			c.Ask(77, dubbotest.Request{Argument: fmt.Sprintf("argument %d.", i), Oneway: i%2 == 1})
			if i%2 == 0 {
				require.Equal(t, "one", c.Read().Text())
			}
		}
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(got["before"]) == n && len(got["after"]) == n && one.Requests() == n
		}, patience, tick)
		for name, added := range map[string]bool{"before": false, "after": true} {
			all := ""
			for _, body := range got[name] {
				require.Equal(t, added, strings.Contains(body, "by the route"))
				all += body
			}
			for i := range n {
				require.Equal(t, 1, strings.Count(all, fmt.Sprintf("argument %d.", i)))
			}
		}
		e.WaitStat(stats+"mirror", envoytest.Exactly(2*n))
		e.WaitStat(stats+"mirror_failed", envoytest.Exactly(n))
		e.WaitStat(stats+"mirror_active", envoytest.Exactly(0))
		require.Zero(t, e.Stat(stats+"upstream_connect_fail"))
	})
}

// TestAMirrorOfRealThriftCalls: every kind of call is what it is without one, Go's
// oneways in disguise included.
func TestAMirrorOfRealThriftCalls(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		for _, w := range []peers.Wire{{Transport: "framed", Protocol: "strict"}, {Transport: "header", Protocol: "compact", Zlib: true}} {
			for _, lib := range thriftLibraries {
				t.Run(fmt.Sprintf("%s, %s", lib, w), func(t *testing.T) {
					s1, next := peers.ThriftGo.Server(t, "s1", w), peers.ThriftPython.Server(t, "next", w)
					config := envoytest.Protocol("thrift", "test", mirrored(envoytest.Route("s1", nil), envoytest.M{"cluster": "next", "compare": true}))
					config["request_timeout"] = "3s" // the end of Go's oneways
					e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s1.Port)...), envoytest.Cluster("next", envoytest.At(next.Port)...))
					calls.Thrift(t, w, lib.Client(t, e.Port("thrift"), w, 0), "s1")
					e.WaitStat(thriftStats+"mirror_active", envoytest.Exactly(0))
					same, different := e.Stat(thriftStats+"mirror_same"), e.Stat(thriftStats+"mirror_different")
					require.Greater(t, same, int64(10))
					require.LessOrEqual(t, different, int64(1), "one has no name for what the other declares")
					checkCountersOf(t, e, thriftStats)
				})
			}
		}
	})
}

// TestAMirrorThatNeverReads costs clients nothing, and the process a bounded memory.
// Neither does one that does not answer, or is not there.
func TestAMirrorThatNeverReads(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		one := scripted.Serve(t, scripted.Answer("one"))
		stuck := make(chan struct{})
		deaf := scripted.ServeBytes(t, func(_ *scripted.Conn, b []byte) []byte { <-stuck; return b[len(b):] })
		t.Cleanup(func() { close(stuck) })
		mute := scripted.Serve(t, scripted.Never)
		dead := scripted.Serve(t, scripted.Never)
		dead.Close()
		var policies []any
		clusters := []envoytest.Resource{envoytest.Cluster("one", envoytest.At(one.Port)...)}
		for name, port := range map[string]int{"deaf": deaf.Port, "mute": mute.Port, "dead": dead.Port} {
			policies = append(policies, envoytest.M{"cluster": name, "timeout": "1s"})
			clusters = append(clusters, envoytest.Cluster(name, envoytest.At(port)...))
		}
		e := v.start(t, envoytest.Dubbo("test", mirrored(envoytest.Route("one", nil), policies...)), clusters...)
		const clients, each = 8, 500
		load := func() {
			var done sync.WaitGroup
			for range clients {
				done.Go(func() {
					c := scripted.Dial(t, e.Port("dubbo"))
					argument := strings.Repeat("x", 60<<10)
					for i := range each {
						c.Ask(uint64(i), dubbotest.Request{Argument: argument})
						if text := c.Read().Text(); text != "one" {
							t.Errorf("answered with %q", text)
						}
					}
				})
			}
			done.Wait()
		}
		load()
		before := e.RSS()
		load() // 240 MB for each mirror
		require.Less(t, e.RSS()-before, int64(300<<20))
		e.WaitStat(stats+"response_success", envoytest.Exactly(2*clients*each))
		e.WaitStat(stats+"mirror_active", envoytest.Exactly(0))
		require.NotZero(t, e.Stat(stats+"mirror_overflow"))
		require.NotZero(t, e.Stat(stats+"mirror_failed"))
		require.EqualValues(t, 2*clients*each, one.Requests())
		for _, name := range []string{"upstream_connect_fail", "upstream_reset", "request_timeout", "local_response_business_exception"} {
			require.Zero(t, e.Stat(stats+name), name)
		}
		checkCounters(t, e)
	})
}

// TestAMirroredListenerIsReplacedUnderLoad: its gauge ends at 0.
func TestAMirroredListenerIsReplacedUnderLoad(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		one, mute := scripted.Serve(t, scripted.Answer("one")), scripted.Serve(t, scripted.Never)
		config := func(timeout string) envoytest.M {
			return envoytest.Dubbo("test", mirrored(envoytest.Route("one", nil), envoytest.M{"cluster": "mute", "timeout": timeout}))
		}
		o := v.options()
		socket := envoytest.Socket()
		listeners := func(timeout string) []envoytest.Resource {
			return []envoytest.Resource{envoytest.Loopback(socket), envoytest.Listener("dubbo", envoytest.Proxy(config(timeout)))}
		}
		o.Listeners = listeners("600s")
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(one.Port)...), envoytest.Cluster("mute", envoytest.At(mute.Port)...)}
		e := envoytest.Start(t, o)
		c := scripted.Dial(t, e.Port("dubbo"))
		for i := range 5 {
			c.Ask(uint64(i), dubbotest.Request{})
			require.Equal(t, "one", c.Read().Text())
		}
		e.WaitStat(stats+"mirror_active", envoytest.Exactly(5))
		require.True(t, e.SetListeners(listeners("1s")...))
		e.WaitStat(stats+"mirror_active", envoytest.Exactly(0))
		c = scripted.Dial(t, e.Port("dubbo"))
		c.Ask(9, dubbotest.Request{})
		require.Equal(t, "one", c.Read().Text())
		e.WaitStat(stats+"mirror_failed", envoytest.AtLeast(1))
		e.WaitStat(stats+"mirror_active", envoytest.Exactly(0))
	})
}
