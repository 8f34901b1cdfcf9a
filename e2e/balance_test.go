package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// ask sends n requests on one connection, some at a time, and counts who
// answered.
func ask(t *testing.T, c *scripted.Client, n int) map[string]int {
	t.Helper()
	const together = 50
	by := map[string]int{}
	for range n / together {
		for id := range uint64(together) {
			c.Ask(id, dubbotest.Request{})
		}
		for _, a := range c.Answers(together) {
			require.EqualValues(t, statusOK, a.Status, a.Text())
			by[a.Text()]++
		}
	}
	return by
}

func servers(t *testing.T, names ...string) (all []*scripted.Server, at []envoytest.Endpoint) {
	for _, n := range names {
		s := scripted.Serve(t, scripted.Answer(n))
		all = append(all, s)
		at = append(at, envoytest.Endpoint{Port: s.Port})
	}
	return all, at
}

func TestOneConnectionsRequestsAreSpreadEvenly(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		_, at := servers(t, "a", "b", "c", "d")
		e := v.start(t, toOne("four"), envoytest.Cluster("four", at...))
		c := scripted.Dial(t, e.Port("dubbo"))
		require.True(t, eventually(patience, func() bool { return len(ask(t, c, 50)) == 4 }), "all are connected")
		by := ask(t, c, 10000)
		for _, n := range []string{"a", "b", "c", "d"} {
			require.InDelta(t, 2500, by[n], 300, "%s of %v", n, by)
		}
		checkCounters(t, e)
	})
}

func TestWeightsHold(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		_, at := servers(t, "light", "heavy")
		at[0].Weight, at[1].Weight = 1, 3
		e := v.start(t, toOne("two"), envoytest.Cluster("two", at...))
		c := scripted.Dial(t, e.Port("dubbo"))
		picks := int64(16) // by which the load balancer's period shows
		if v.golang {
			// Tunnels are spread over Envoy's workers, whose load balancers have rounds of their own: so no
			// period shows, and it takes many picks until counts tell weights.
			picks = 130
		}
		require.True(t, eventually(4*patience, func() bool {
			ask(t, c, 50)
			return e.Stat("cluster.two.upstream_cx_total") >= picks
		}))
		by := ask(t, c, 10000)
		require.InDelta(t, 0.75, float64(by["heavy"])/10000, 0.05, "%v", by)
	})
}

func TestTheNextPriorityTakesOver(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		_, at := servers(t, "first", "second")
		at[1].Priority = 1
		config := toOne("two")
		if v.golang { // which is not told: new connections lead elsewhere
			config["upstream"] = envoytest.M{"max_connection_age": "2s"}
		}
		e := v.start(t, config, envoytest.Cluster("two", at...))
		c := scripted.Dial(t, e.Port("dubbo"))
		require.Equal(t, map[string]int{"first": 500}, ask(t, c, 500))
		at[0].Unhealthy = true
		e.SetEndpoints("two", at...)
		require.Eventually(t, func() bool { return ask(t, c, 50)["second"] == 50 }, patience, tick)
		at[0].Unhealthy = false
		e.SetEndpoints("two", at...)
		require.Eventually(t, func() bool { return ask(t, c, 50)["first"] == 50 }, patience, tick)
		checkCounters(t, e)
	})
}

// TestEveryHostGetsItsShareUnderRandomPolicies gives the pools some time to
// learn how the load balancer picks.
func TestEveryHostGetsItsShareUnderRandomPolicies(t *testing.T) {
	t.Parallel()
	learn := 35 * time.Second
	if *matrix == "full" {
		learn = time.Minute
	}
	once(t, func(t *testing.T, v variant) {
		_, at := servers(t, "a", "b", "c", "d")
		least := envoytest.Cluster("least", at...).With(envoytest.M{"lb_policy": "LEAST_REQUEST"})
		random := envoytest.Cluster("random", at...).With(envoytest.M{"lb_policy": "RANDOM"})
		config := envoytest.Dubbo("test", envoytest.Route("least", map[string]string{"method": "least"}), envoytest.Route("random", nil))
		e := v.start(t, config, least, random)
		c := scripted.Dial(t, e.Port("dubbo"))
		by := map[string]map[string]int{"least": {}, "random": {}}
		id := uint64(0)
		run := func(d time.Duration) {
			for _, b := range by {
				clear(b)
			}
			for end := time.Now().Add(d); time.Now().Before(end); {
				for method := range by {
					for range 20 {
						id++
						c.Ask(id, dubbotest.Request{Method: method})
					}
					for _, a := range c.Answers(20) {
						require.EqualValues(t, statusOK, a.Status, a.Text())
						by[method][a.Text()]++
					}
				}
			}
		}
		run(learn)
		run(5 * time.Second)
		for method, b := range by {
			sum := 0
			for _, n := range b {
				sum += n
			}
			for _, host := range []string{"a", "b", "c", "d"} {
				require.InDelta(t, 0.25, float64(b[host])/float64(sum), 0.10, "%s: %v", method, b)
			}
		}
	})
}

// TestAHostIsReplacedWithoutAFailure replaces one host by another, so that
// their count stays the same.
func TestAHostIsReplacedWithoutAFailure(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		_, at := servers(t, "a", "b", "c")
		config := toOne("two")
		config["upstream"] = envoytest.M{"max_connection_age": "2s"}
		e := v.start(t, config, envoytest.Cluster("two", at[0], at[1]))
		c := scripted.Dial(t, e.Port("dubbo"))
		by := ask(t, c, 1000)
		require.Len(t, by, 2)
		e.SetEndpoints("two", at[0], at[2])
		deadline := time.Now().Add(2500 * time.Millisecond)
		for time.Now().Before(deadline) {
			ask(t, c, 50) // none may fail
		}
		by = ask(t, c, 1000)
		require.NotContains(t, by, "b", "it was removed more than the age of a connection ago")
		require.Contains(t, by, "c")
		checkCounters(t, e)
	})
}

// TestFewerConnectionsThanWorkers: a circuit breaker allows one connection,
// and both workers want one.
func TestFewerConnectionsThanWorkers(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		_, at := servers(t, "a")
		e := v.start(t, toOne("one"), envoytest.Cluster("one", at...).With(envoytest.M{
			"circuit_breakers": envoytest.M{"thresholds": []any{envoytest.M{"max_connections": 1}}},
		}))
		// Enough connections that both workers have some.
		var clients []*scripted.Client
		for range 8 {
			clients = append(clients, scripted.Dial(t, e.Port("dubbo")))
		}
		rounds := uint64(20)
		if v.golang { // which learns late that a connection is awaited, and CONNECT's end late, too
			rounds = 3
		}
		late := 0
		for round := range rounds {
			for _, c := range clients {
				c.Ask(round, dubbotest.Request{})
			}
			for _, c := range clients {
				a := c.Read()
				for ; a.Text() == "upstream connection limit reached"; a = c.Read() { // the machine is busy: it was given up late
					late++
					c.Ask(round, dubbotest.Request{})
				}
				require.EqualValues(t, statusOK, a.Status, a.Text())
			}
		}
		require.LessOrEqual(t, late, int(rounds)*len(clients)/10)
		checkCounters(t, e)
	})
}
