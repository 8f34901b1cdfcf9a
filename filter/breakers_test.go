package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

func breaking(fields string) string {
	return `, "clusters": [{"name": "up", "circuit_breakers": {` + fields + `}}]`
}

// breakerEnv has two workers.
type breakerEnv struct {
	*toyEnv
	clients []*filtertest.Client // each has sent a request
}

const brief = `, "request_timeout": "1s", "delivery": "ECDS"`

func newBreakerEnv(t *testing.T, codec, fields, more string) *breakerEnv {
	t.Helper()
	mod := filter.NewModule()
	mod.Seed(1)
	h := filtertest.NewWith(t, mod, 2)
	e := &breakerEnv{toyEnv: &toyEnv{Host: h, t: t, up: h.Cluster("up", "h1", "h2")}}
	e.cfg = h.MustLoad(policyConfig(codec, "", breaking(fields), brief+more))
	e.c = h.Dial(e.cfg)
	return e
}

// asks sends n requests of a method, each from a client of its own, over both workers
// in turn, and returns why some have been refused at once.
func (e *breakerEnv) asks(n int, method string) (refused []string) {
	e.t.Helper()
	for i := range n {
		c := e.DialOn(e.cfg, i%2)
		e.clients = append(e.clients, c)
		say(c, "req 1 "+method+" -")
		if f := strings.SplitN(strings.TrimSpace(string(c.Take())), " ", 4); f[0] == "err" {
			refused = append(refused, f[3])
		}
	}
	return refused
}

// leave has all clients go that have asked.
func (e *breakerEnv) leave() {
	for _, c := range e.clients {
		c.Close()
	}
	e.clients = nil
	e.Settle()
}

// answersAs has the servers answer what they have got.
func (e *breakerEnv) answersAs(typ string) {
	for _, s := range e.up.Servers() {
		for _, l := range lines(s.Take()) {
			f := strings.Fields(l)
			s.Send([]byte(typ + " " + f[1] + " " + f[2] + " ok\n"))
		}
	}
	e.Settle()
}

// TestACircuitBreakerBoundsRequests of all workers, however they end.
func TestACircuitBreakerBoundsRequests(t *testing.T) {
	const reason = "circuit breaker of cluster up: max_requests"
	for _, codec := range []string{"toy.byid", "toy.inorder", "toy.exclusive"} {
		for name, end := range map[string]func(e *breakerEnv){
			"answered":      func(e *breakerEnv) { e.answersAs("res") },
			"failed":        func(e *breakerEnv) { e.answersAs("fail") },
			"timeout":       func(e *breakerEnv) { e.Advance(1100 * time.Millisecond) },
			"clients leave": (*breakerEnv).leave,
			"reset": func(e *breakerEnv) {
				for _, s := range e.up.Servers() {
					s.Reset()
				}
				e.Advance(100 * time.Millisecond)
			},
			"no server": func(e *breakerEnv) {
				e.Advance(3 * time.Second)
				e.up.SetHosts()
				for _, s := range e.up.Servers() {
					s.Reset()
				}
				e.Advance(100 * time.Millisecond)
				require.NotContains(e.t, e.asks(4, "m"), reason)
				e.Advance(3 * time.Second)
				e.up.SetHosts("h1", "h2")
			},
		} {
			t.Run(codec+" "+name, func(t *testing.T) {
				e := newBreakerEnv(t, codec, `"max_requests": 4`, "")
				for range 3 {
					require.Equal(t, []string{reason, reason}, e.asks(6, "m"))
					end(e)
					e.Advance(200 * time.Millisecond)
				}
				e.counts(map[string]int64{"request_active": 0, "breaker_max_requests": 6, "request_overflow": 6})
			})
		}
	}
}

// TestOnewaysAndStreamsCount as long as they are under way.
func TestOnewaysAndStreamsCount(t *testing.T) {
	e := newBreakerEnv(t, "toy.byid", `"max_requests": 2`, "")
	for range 5 { // once they are sent, they are not
		e.say("one 1 m -", "one 2 m -")
	}
	e.counts(map[string]int64{"breaker_max_requests": 0, "oneway_dropped": 0})
	e.up.Hang = true
	for _, s := range e.up.Servers() {
		s.Reset()
	}
	e.Settle()
	e.say("one 1 m -", "one 2 m -", "one 3 m -")
	e.counts(map[string]int64{"breaker_max_requests": 1, "oneway_dropped": 1})
	e.up.Admit()
	e.counts(map[string]int64{"request_active": 0})

	e = newBreakerEnv(t, "toy.byid", `"max_requests": 2`, "")
	for range 3 {
		e.c = e.Dial(e.cfg)
		e.say("init 1 m -", "init 2 m -", "init 3 m -")
		e.answersAs("init")
		require.Contains(t, e.got(), "err 3 - circuit breaker of cluster up: max_requests\n")
		e.say("data 1 m -", "data 2 m -", "init 4 m -")
		require.Contains(t, e.got(), "err 4 - circuit breaker of cluster up: max_requests\n", "they are open")
		e.c.Close()
		e.Settle()
	}
}

// TestACircuitBreakerBoundsRequestsThatWait for a connection, of all workers.
func TestACircuitBreakerBoundsRequestsThatWait(t *testing.T) {
	e := newBreakerEnv(t, "toy.byid", `"max_pending_requests": 3`, "")
	for range 3 {
		e.up.Hang = true
		reason := "circuit breaker of cluster up: max_pending_requests"
		require.Equal(t, []string{reason, reason}, e.asks(5, "m"))
		e.up.Hang = false
		e.up.Admit()
		require.Empty(t, e.asks(10, "m"), "none waits")
		e.answersAs("res")
		for _, s := range e.up.Servers() {
			s.Reset()
		}
		e.Advance(50 * time.Millisecond)
		for _, s := range e.up.Servers() {
			s.Reset()
		}
		e.Settle()
		e.up.Hang = true
		e.asks(3, "m")
		e.Advance(1100 * time.Millisecond) // they time out
		e.up.Admit()
		for _, s := range e.up.Servers() {
			s.Reset()
		}
		e.Settle()
	}
	e.counts(map[string]int64{"request_active": 0})
}

// TestACircuitBreakerBoundsConnections of all workers, that take turns.
func TestACircuitBreakerBoundsConnections(t *testing.T) {
	for codec, limit := range map[string]int{"toy.byid": 1, "toy.exclusive": 3} {
		e := newBreakerEnv(t, codec, fmt.Sprintf(`"max_connections": %d`, limit), `, "upstream": {"min_connections": 2}`)
		e.up.Serve = serveToys
		failed, served := map[string]int{}, 0
		clients := []*filtertest.Client{e.c, e.DialOn(e.cfg, 1)}
		for i := range 300 {
			for _, c := range clients {
				say(c, fmt.Sprintf("req %d m -", 1000+i))
			}
			e.Advance(20 * time.Millisecond)
			require.LessOrEqual(t, len(e.up.Servers()), limit)
			for _, c := range clients {
				for _, l := range lines(c.Take()) {
					if strings.HasPrefix(l, "res") {
						served++
					} else {
						failed[strings.SplitN(l, " ", 3)[2]]++
					}
				}
			}
		}
		e.Advance(2 * time.Second)
		require.Empty(t, failed, codec)
		require.Greater(t, served, 550)
		require.Positive(t, e.count("breaker_max_connections"))
		e.Advance(3 * time.Minute) // the pools go
		require.Empty(t, e.up.Servers())
	}
}

// TestAKeysBreakerOpens for its method only, and closes behind a request that works.
func TestAKeysBreakerOpens(t *testing.T) {
	const open = "circuit breaker of cluster up: keys[0]: open"
	e := newBreakerEnv(t, "toy.byid", `"keys": [{"names": ["method"], "error_percent": 50, "minimum_requests": 4, "open_time": "5s"}]`, "")
	require.Empty(t, e.asks(4, "bad"))
	e.answersAs("fail")
	require.Len(t, e.asks(4, "bad"), 4)
	require.Empty(t, e.asks(4, "good"))
	e.answersAs("res")
	e.counts(map[string]int64{"breaker_opened": 1, "breaker_key_open": 4, "request_overflow": 4})
	require.Contains(t, strings.Join(e.Log(), "\n"), "cluster up: circuit breaker keys[0] has opened for a key")

	e.Advance(5 * time.Second)
	require.Equal(t, []string{open, open, open}, e.asks(4, "bad"), "one is let through")
	e.answersAs("fail")
	require.Len(t, e.asks(4, "bad"), 4)
	e.Advance(5 * time.Second)
	require.Empty(t, e.asks(1, "bad"))
	e.Advance(1100 * time.Millisecond) // it times out
	require.Contains(t, string(e.clients[len(e.clients)-1].Take()), "upstream request timeout")
	require.Len(t, e.asks(4, "bad"), 4)
	e.counts(map[string]int64{"breaker_opened": 3})

	e.Advance(5 * time.Second)
	for range 3 {
		leaving := e.Dial(e.cfg)
		say(leaving, "req 1 bad -")
		require.Len(t, e.asks(4, "bad"), 4)
		leaving.Close() // then another is let through
		e.Settle()
	}
	require.Empty(t, e.asks(1, "bad"))
	require.Len(t, e.asks(4, "bad"), 4)
	e.answersAs("res")
	require.Empty(t, e.asks(4, "bad"))
	e.answersAs("res")
	e.counts(map[string]int64{"breaker_opened": 3, "request_active": 0})
}

func TestAKeysBreakerSeesSlowAnswers(t *testing.T) {
	e := newBreakerEnv(t, "toy.byid", `"keys": [{"names": ["method"], "slow_percent": 100, "slow_threshold": "0.1s", "minimum_requests": 2, "open_time": "5s"}]`, "")
	for range 4 {
		require.Empty(t, e.asks(2, "m"))
		e.Advance(90 * time.Millisecond)
		e.answersAs("fail") // errors do not count
	}
	e.Advance(10 * time.Second)
	require.Empty(t, e.asks(2, "m"))
	e.Advance(110 * time.Millisecond)
	e.answersAs("res")
	require.Len(t, e.asks(2, "m"), 2)
}

// TestRoutesChangeWhileRequestsAreUnderWay: each gives back what it took, where it took
// it, and other limits hold for what is counted already.
func TestRoutesChangeWhileRequestsAreUnderWay(t *testing.T) {
	keys := func(names string, most int) string {
		return fmt.Sprintf(`"max_requests": %d, "keys": [{"names": [%s], "max_requests": %d}]`, 2*most, names, most)
	}
	e := newBreakerEnv(t, "toy.byid", keys(`"method"`, 4), "")
	load := func(table string) {
		e.MustLoad(policyConfig("toy.byid", "", table, brief))
	}
	require.Len(t, e.asks(6, "m"), 2)
	load(breaking(keys(`"method"`, 6)))
	require.Len(t, e.asks(4, "m"), 2)
	load(breaking(keys(`"method", "x"`, 3))) // other keys
	require.Len(t, e.asks(4, "m"), 4, "six are under way to the cluster")
	load("")
	require.Empty(t, e.asks(10, "m"))
	load(breaking(keys(`"method"`, 6)))
	require.Empty(t, e.asks(2, "n"))
	e.answersAs("res")
	for range 3 {
		require.Len(t, e.asks(8, "m"), 2)
		e.answersAs("res")
	}
	require.Len(t, e.asks(7, "n"), 1)
	require.Len(t, e.asks(7, "m"), 1)
	e.answersAs("res")
}
