package filter_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/internal/cputime"
)

// TestSoManyRequestsAreInFlight: max_requests, of all clients. More are refused.
func TestSoManyRequestsAreInFlight(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.inorder", "toy.exclusive"} {
		t.Run(codec, func(t *testing.T) {
			e := newToyEnv(t, codec, `, "upstream": {"max_requests": 4}`)
			other := e.Dial(e.cfg)
			e.sayMany(3)
			say(other, "req 1 m -", "req 2 m -", "one 3 m -")
			e.answerAll()
			require.Len(t, lines(e.c.Take()), 3)
			require.ElementsMatch(t, []string{"res 1 m a=2;ok", "err 2 - too many requests are in flight"}, lines(other.Take()))
			e.up.Serve = serveToys
			say(other, "req 4 m -")
			require.Equal(t, "res 4 m a=2;ok\n", string(other.Take()))
			e.counts(map[string]int64{"request_overflow": 2, "request_active": 0})
		})
	}
}

// TestClientsThatLeaveUseNothingUp, however many requests they have sent that no
// server answers: those of others still go out.
func TestClientsThatLeaveUseNothingUp(t *testing.T) {
	for _, codec := range []string{"toy.byid", "toy.inorder"} {
		t.Run(codec, func(t *testing.T) {
			e := newToyEnv(t, codec, `, "upstream": {"max_requests": 1000}`)
			var b strings.Builder
			for i := range 200 {
				fmt.Fprintf(&b, "req %d m -\n", i)
			}
			for range 100 {
				c := e.Dial(e.cfg)
				c.Send([]byte(b.String()))
				c.Close()
				for _, s := range e.up.Servers() {
					s.Take()
				}
				honest := e.Dial(e.cfg)
				say(honest, "req 1 m honest")
				e.serverWith("honest")
				require.Empty(t, honest.Take())
				honest.Close()
				e.Advance(100 * time.Millisecond)
			}
		})
	}
}

// TestALateAnswerReachesNobodyWhereIDsAreFew: there an abandoned request keeps its
// id, until its deadline.
func TestALateAnswerReachesNobodyWhereIDsAreFew(t *testing.T) {
	e := newToyEnv(t, "toy.short", `, "request_timeout": "1s"`)
	gone := e.Dial(e.cfg)
	say(gone, "req 1 m gone")
	s := e.server(0)
	late := ids(s)[0]
	gone.Close()
	const n = 1 << 16
	for range n / 64 { // all ids come round
		e.sayMany(64)
		for _, id := range ids(s) {
			require.NotEqual(t, late, id)
			s.Send([]byte("res " + id + " m ok\n"))
		}
		e.Settle()
		e.c.Take()
	}
	e.answer(s, "res "+late+" m late")
	require.Empty(t, e.got())
	e.counts(map[string]int64{"request_active": 0})
}

// TestAServerThatFloodsIsClosed. Answers that come late, to requests that have timed
// out or whose clients have left, are no flood.
func TestAServerThatFloodsIsClosed(t *testing.T) {
	for name, line := range map[string]string{
		"answers": "res 999 m x", "stream frames": "data 1 m x", "requests": "req 1 m x",
	} {
		t.Run(name, func(t *testing.T) {
			e := newToyEnv(t, "toy.byid", "")
			e.say("req 1 m -")
			s := e.server(0)
			flood := strings.TrimSuffix(strings.Repeat(line+"\n", 1000), "\n")
			e.answer(s, flood)
			require.True(t, s.Open())
			e.answer(s, flood)
			require.False(t, s.Open())
			require.Equal(t, "err 1 - upstream connection closed: too many messages that nobody asked for\n", e.got())
			e.counts(map[string]int64{"upstream_abuse": 1})
			require.Contains(t, strings.Join(e.Log(), "\n"), "connection closed: it sends messages that nobody asked for")
		})
	}
	t.Run("late answers", func(t *testing.T) {
		e := newToyEnv(t, "toy.byid", `, "request_timeout": "1s", "upstream": {"max_connection_age": "600s", "max_connections": 1}`)
		for range 2 {
			for i := range 3000 {
				e.say(fmt.Sprintf("req %d m -", 1000+i))
			}
			gone := e.Dial(e.cfg)
			gone.Send([]byte(strings.Repeat("req 1 m -\n", 3000)))
			gone.Close()
			s := e.server(0)
			late := ids(s)
			e.say("req 1 m alive")
			e.Advance(500 * time.Millisecond)
			e.answer(s, "res "+ids(s)[0]+" m ok")
			e.Advance(600 * time.Millisecond)
			e.say("req 7 m -")
			e.answer(s, "res "+strings.Join(late, " m late\nres ")+" m late")
			require.True(t, s.Open())
			e.c.Take()
			e.answer(s, "res "+ids(s)[0]+" m ok")
			require.Equal(t, "res 7 m a=2;ok\n", e.got())
		}
		e.counts(map[string]int64{"upstream_stray_response": 12000, "upstream_abuse": 0, "request_timeout": 6000})
	})
	t.Run("now and then", func(t *testing.T) {
		e := newToyEnv(t, "toy.byid", `, "upstream": {"max_connection_age": "600s"}`)
		for range 3000 {
			e.say("req 1 m -")
			s := e.server(0)
			id := ids(s)[0]
			e.answer(s, "res "+id+" m ok", "res "+id+" m again")
		}
		require.Len(t, lines(e.c.Take()), 3000)
	})
}

// TestAServerThatAsksForHeartbeatsAndDoesNotRead is closed.
func TestAServerThatAsksForHeartbeatsAndDoesNotRead(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.say("req 1 m -")
	s := e.server(0)
	s.Take()
	for range 100 { // that is no fault of one that reads
		e.answer(s, "hb 1 - x")
	}
	require.Len(t, lines(s.Take()), 100)
	s.Block(true)
	e.say("one 2 m -") // it is blocked from now on
	s.Take()
	for range 64 {
		e.answer(s, "hb 1 - x")
	}
	require.Len(t, lines(s.Take()), 64)
	s.Block(false)
	e.Settle()
	s.Block(true)
	e.say("one 2 m -")
	s.Take()
	e.answer(s, strings.TrimSuffix(strings.Repeat("hb 1 - x\n", 10000), "\n"))
	require.LessOrEqual(t, len(lines(s.Take())), 64)
	require.False(t, s.Open())
	require.Equal(t, "err 1 - upstream connection closed: the server does not read\n", e.got())
	e.counts(map[string]int64{"upstream_abuse": 1})
}

// TestOnewaysForAServerThatDoesNotRead wait, whoever else a connection serves.
func TestOnewaysForAServerThatDoesNotRead(t *testing.T) {
	for _, mode := range []string{"SHARED", "EXCLUSIVE"} {
		for _, codec := range []string{"toy.byid", "toy.inorder"} {
			t.Run(mode+" "+codec, func(t *testing.T) {
				e := newToyEnv(t, codec, "")
				e.cfg = e.MustLoad(toyConfig(`"connection_mode": "`+mode+`", "codec": {"name": "`+codec+`"}`,
					`, "upstream": {"max_connections": 1, "max_exclusive_connections": 1, "max_pending_requests": 10}`))
				c := e.Dial(e.cfg)
				say(c, "one 1 m -")
				s := e.server(0)
				s.Block(true)
				say(c, "one 2 m -")
				require.Len(t, lines(s.Take()), 2)
				for range 1000 {
					say(c, "one 3 m -")
				}
				require.Empty(t, s.Take())
				require.True(t, c.ReadDisabled())
				s.Block(false)
				e.Settle()
				total := 0
				for total < 1000 {
					n := len(lines(s.Take()))
					require.NotZero(t, n)
					total += n
					e.Settle()
				}
				require.False(t, c.ReadDisabled())
			})
		}
	}
}

// TestAnExclusiveConnectionWhoseServerDoesNotRead is none for the next request.
func TestAnExclusiveConnectionWhoseServerDoesNotRead(t *testing.T) {
	e := newToyEnv(t, "toy.exclusive", "")
	e.say("one 1 m -")
	stuck := e.server(0)
	stuck.Block(true)
	e.say("one 2 m -")
	stuck.Take()
	e.say("req 3 m -")
	require.Len(t, e.up.Servers(), 2)
	require.Empty(t, stuck.Take())
	e.answer(e.server(1), "res 0 m ok")
	require.Equal(t, "res 3 m a=2;ok\n", e.got())
	stuck.Block(false)
	e.Settle()
	e.say("req 4 m -", "req 5 m -")
	require.Len(t, e.up.Servers(), 2)
	require.Equal(t, []string{"req 5 m q=1;-"}, lines(stuck.Take()))
}

// TestConnectionsOfAnotherAgeCount for max_exclusive_connections.
func TestConnectionsOfAnotherAgeCount(t *testing.T) {
	t.Run("streams", func(t *testing.T) {
		e := newToyEnv(t, "toy.byid", `, "upstream": {"max_exclusive_connections": 2, "max_connection_age": "1s"}`)
		for i := range 20 {
			e.say(fmt.Sprintf("init %d m -", i))
			for _, s := range e.up.Servers() {
				for range lines(s.Take()) {
					e.answer(s, fmt.Sprintf("init %d - ok", i))
				}
			}
			e.Advance(2 * time.Second)
			require.LessOrEqual(t, len(e.up.Servers()), 2)
		}
		require.Len(t, e.up.Servers(), 2)
		require.Positive(t, e.count("request_timeout"), "others wait")
	})
	t.Run("streams beside old ones", func(t *testing.T) {
		e := newToyEnv(t, "toy.byid", `, "upstream": {"max_connection_age": "1s"}`)
		e.say("init 1 m -", "init 2 m -", "init 3 m -")
		for _, s := range e.up.Servers() {
			e.answer(s, "init "+ids(s)[0]+" - ok")
		}
		e.Advance(900 * time.Millisecond)
		e.say("init 4 m -")
		require.Len(t, e.up.Servers(), 4, "one for the new one")
	})
	t.Run("requests", func(t *testing.T) {
		e := newToyEnv(t, "toy.exclusive", `, "request_timeout": "60s", "upstream": {"max_exclusive_connections": 2, "max_connection_age": "1s"}`)
		var seen []*filtertest.Server
		for i := range 10 {
			c := e.Dial(e.cfg)
			say(c, "req 1 m -", "req 2 m -", "req 3 m -")
			e.Advance(2 * time.Second)
			require.LessOrEqual(t, len(e.up.Servers()), 2)
			for len(c.Received()) < 3*len("res 0 m a=2;ok\n") {
				e.answerAll()
				e.Advance(50 * time.Millisecond)
				require.LessOrEqual(t, len(e.up.Servers()), 2, "round %d", i)
			}
			seen = append(seen, e.up.Servers()...)
		}
		require.NotSame(t, seen[0], seen[len(seen)-1], "they are renewed all the same")
		e.counts(map[string]int64{"response": 30, "request_timeout": 0})
	})
	t.Run("one, and it is renewed", func(t *testing.T) {
		e := newToyEnv(t, "toy.exclusive", `, "upstream": {"max_exclusive_connections": 1, "max_connection_age": "1s"}`)
		e.up.Serve = serveToys
		e.say("req 1 m -")
		s := e.server(0)
		for range 30 {
			e.say("req 1 m -")
			e.Advance(100 * time.Millisecond)
			require.LessOrEqual(t, len(e.up.Servers()), 1)
		}
		require.False(t, s.Open())
		require.Len(t, lines(e.c.Take()), 31)
	})
}

// TestIdleExclusiveConnectionsCostLittle: their upkeep is proportional to their
// number, and so is what a request costs beside them.
func TestIdleExclusiveConnectionsCostLittle(t *testing.T) {
	took := func(n int) time.Duration {
		e := newToyEnv(t, "toy.exclusive", fmt.Sprintf(`, "limits": {"max_requests_in_flight": 100000},
			"upstream": {"max_exclusive_connections": %d, "max_pending_requests": 100000, "max_connection_age": "600s"}`, n))
		e.sayMany(n)
		e.answerAll()
		require.Len(t, lines(e.c.Take()), n)
		best := time.Hour
		for range 5 {
			begin := cputime.Used()
			e.Advance(2 * time.Second)
			best = min(best, cputime.Used()-begin)
		}
		return best
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	took(100)
	few, many := took(500), took(4000)
	require.Less(t, many, 40*few+20*time.Millisecond, "8 times as many")
}

// TestAPoolGoesWithItsCluster, and what a configuration knows of it.
func TestAPoolGoesWithItsCluster(t *testing.T) {
	m := filter.NewModule()
	h := filtertest.NewWith(t, m, 1)
	config := func(cluster string) string {
		return `{"stat_prefix": "t", "protocol": {"name": "toy", "codec": {"name": "toy.byid"}}, "delivery": "ECDS",
			"route_config": {"name": "r", "routes": [{"route": {"cluster": "` + cluster + `"}}]}, "upstream": {"idle_timeout": "1s"}}`
	}
	cfg := h.MustLoad(config("v0"))
	c := h.Dial(cfg)
	for i := range 5 {
		name := fmt.Sprintf("v%d", i)
		h.Cluster(name, "h1").Serve = serveToys
		h.MustLoad(config(name))
		say(c, "req 1 m -")
		require.Equal(t, "res 1 m ok\n", string(c.Take()))
		require.Equal(t, 1, m.Pools())
		h.RemoveCluster(name)
		h.Advance(20 * time.Second)
		require.Zero(t, m.Pools())
	}
}

// TestALiveConfigurationHearsOfItsPools, whichever has made them or used them last.
func TestALiveConfigurationHearsOfItsPools(t *testing.T) {
	for _, last := range []string{"used last", "not used any more"} {
		t.Run(last, func(t *testing.T) {
			h := filtertest.New(t)
			up := h.Cluster("up", "h1")
			h.Cluster("none")
			old := h.MustLoad(toyConfig(`"codec": {"name": "toy.byid"}`, ""))
			oc := h.Dial(old)
			next := h.MustLoad(toyConfig(`"codec": {"name": "toy.byid"}`, ""))
			nc := h.Dial(next)
			up.Serve = serveToys
			say(nc, "req 1 m -")
			say(oc, "req 1 m -")
			if last == "used last" {
				say(nc, "req 1 m -")
			}
			oc.Close()
			old.Destroy()
			h.Advance(time.Second)
			up.Servers()[0].Send([]byte("res 999 m stray\n"))
			h.Advance(time.Second)
			require.EqualValues(t, 1, next.Counter("toy.t.upstream_stray_response"))
		})
	}
}

// TestADeadClusterIsAHandfulOfLines, whether requests go on coming or not; and
// nothing is tried for a pool that nobody waits for.
func TestADeadClusterIsAHandfulOfLines(t *testing.T) {
	logged := func(e *toyEnv) (n int) {
		for _, l := range e.Log() {
			if strings.Contains(l, "no connection") {
				n++
			}
		}
		return n
	}
	t.Run("one request", func(t *testing.T) {
		e := newToyEnv(t, "toy.byid", `, "upstream": {"min_connections": 3}`)
		e.up.SetHosts("h1", "h2")
		n := e.failing(host.ConnectFailed)
		e.say("req 1 m -")
		e.Advance(5 * time.Second)
		tried := *n // in the hope for more requests
		require.LessOrEqual(t, tried, 24)
		e.Advance(55 * time.Second)
		require.Equal(t, tried, *n)
		require.LessOrEqual(t, logged(e), 2)
	})
	t.Run("many", func(t *testing.T) {
		e := newToyEnv(t, "toy.byid", "")
		n := e.failing(host.ConnectFailed)
		for range 600 {
			e.say("req 1 m -")
			e.Advance(100 * time.Millisecond)
		}
		require.GreaterOrEqual(t, *n, 50)
		require.LessOrEqual(t, logged(e), 6)
		require.Contains(t, strings.Join(e.Log(), "\n"), "connect failure (")
		e.failing(host.NoHost)
		e.say("req 1 m -")
		e.Advance(2 * time.Second)
		require.LessOrEqual(t, logged(e), 8)
		require.Contains(t, strings.Join(e.Log(), "\n"), "no healthy upstream", "another reason is news")
	})
	t.Run("one host of two", func(t *testing.T) {
		e := newToyEnv(t, "toy.byid", "")
		e.up.SetHosts("h1", "h2")
		e.up.Serve = serveToys
		turn := 0
		e.up.Fail = func() (host.CloseReason, bool) { turn++; return host.ConnectFailed, turn%2 == 0 }
		e.up.Pick = func([]string) string { return "h1" }
		for range 600 {
			e.say("req 1 m -")
			e.Advance(100 * time.Millisecond)
		}
		require.LessOrEqual(t, logged(e), 6)
	})
}
