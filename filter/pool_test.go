package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// serveToys answers whatever comes, in its order.
func serveToys(s *filtertest.Server, b []byte) int {
	for _, l := range lines(b) {
		s.Send([]byte("res " + strings.Fields(l)[1] + " m ok\n"))
	}
	return len(b)
}

// sayMany sends n requests of ids from 0.
func (e *toyEnv) sayMany(n int) {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "req %d m -\n", i)
	}
	e.c.Send([]byte(b.String()))
}

// answerAll answers what the servers have got.
func (e *toyEnv) answerAll() {
	for _, s := range e.up.Servers() {
		serveToys(s, s.Take())
	}
	e.Settle()
}

func TestAPoolGrowsAndShrinksWithItsLoad(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "upstream": {"target_in_flight": 10, "max_connections": 4, "min_connections": 2, "idle_timeout": "5s"}`)
	e.say("req 0 m -")
	require.Len(t, e.up.Servers(), 2, "min_connections")
	e.answerAll()
	for _, step := range []struct{ inFlight, conns int }{{20, 2}, {21, 3}, {30, 3}, {31, 4}, {100, 4}} {
		e.c.Take()
		e.sayMany(step.inFlight)
		require.Len(t, e.up.Servers(), step.conns, "for %d requests", step.inFlight)
		e.Advance(time.Second)
		require.Len(t, e.up.Servers(), step.conns, "for %d requests", step.inFlight)
		e.answerAll()
		require.Len(t, lines(e.c.Take()), step.inFlight)
	}
	for range 10 { // less load needs fewer
		e.sayMany(25)
		e.Advance(100 * time.Millisecond)
		e.answerAll()
	}
	require.Len(t, lines(e.c.Take()), 250)
	require.Len(t, e.up.Servers(), 3)
	e.Advance(time.Second)
	require.Len(t, e.up.Servers(), 2)
	e.up.Servers()[0].Close()
	e.Advance(200 * time.Millisecond)
	require.Len(t, e.up.Servers(), 2, "one that is lost is replaced")
	e.Advance(5 * time.Second)
	require.Empty(t, e.up.Servers(), "idle_timeout")
	e.counts(map[string]int64{"local_response_business_exception": 0, "upstream_connect_fail": 0})
}

// TestAGrownPoolsConnectionsAllServe: what is opened because of the load takes
// its share of it.
func TestAGrownPoolsConnectionsAllServe(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "upstream": {"target_in_flight": 10, "max_connections": 4}`)
	e.sayMany(40)
	e.answerAll()
	e.sayMany(40)
	servers := e.up.Servers()
	require.Len(t, servers, 4)
	for _, s := range servers {
		require.Len(t, lines(s.Take()), 10)
	}
}

func TestExclusiveConnectionsGoAgainWhenTheyAreNotNeeded(t *testing.T) {
	e := newToyEnv(t, "toy.exclusive", `, "upstream": {"min_connections": 2, "idle_timeout": "8s"}`)
	e.sayMany(10)
	require.Len(t, e.up.Servers(), 10)
	e.answerAll()
	require.Len(t, lines(e.c.Take()), 10)
	e.up.Serve = serveToys
	for range 12 { // one after the other, for which two do
		e.say("req 1 m -")
		e.Advance(time.Second)
	}
	require.Len(t, lines(e.c.Take()), 12)
	require.Len(t, e.up.Servers(), 2)
}

// failing makes attempts to connect fail and counts them.
func (e *toyEnv) failing(r host.CloseReason) *int {
	n := 0
	e.up.Fail = func() (host.CloseReason, bool) { n++; return r, true }
	return &n
}

// TestFailedAttemptsToConnectBackOff: however many requests come, there is one
// attempt at a time, with pauses up to connect_backoff_max, less up to half.
func TestFailedAttemptsToConnectBackOff(t *testing.T) {
	for _, tc := range []struct {
		name, more string
		hosts      int
		most       time.Duration
	}{
		{"as by default", "", 1, time.Second},
		{"connect_backoff_max", `, "connect_backoff_max": "0.2s"`, 1, 200 * time.Millisecond},
		{"min_connections", `, "min_connections": 5`, 1, time.Second},
		{"many hosts", ``, 8, time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newToyEnv(t, "toy.byid", `, "upstream": {"max_connections": 8`+tc.more+`}`)
			e.up.SetHosts(strings.Fields("h1 h2 h3 h4 h5 h6 h7 h8")[:tc.hosts]...)
			n := e.failing(host.ConnectFailed)
			const during = 30 * time.Second
			asked := 0
			for range during / (10 * time.Millisecond) {
				e.say("req 1 m -")
				asked++
				e.Advance(10 * time.Millisecond)
			}
			steps := 8 // in which the pause becomes the longest one
			require.LessOrEqual(t, *n, int(during/(tc.most/2))+2*steps)
			require.GreaterOrEqual(t, *n, int(during/tc.most)-1)
			e.Advance(tc.most)
			got := lines(e.c.Take())
			require.Len(t, got, asked)
			for _, l := range got {
				require.Equal(t, "err 1 - upstream connect failure in cluster up", l)
			}
			e.up.Fail, e.up.Serve = nil, serveToys
			e.counts(map[string]int64{"upstream_connect_fail": int64(*n), "request_timeout": 0, "request_active": 0})

			e.say("req 1 m -")
			e.Advance(tc.most)
			require.Equal(t, "res 1 m a=2;ok\n", e.got(), "the next attempt succeeds")
		})
	}
}

// TestALimitThatNobodyWaitedForDoesNotDelay: attempts that only keep a connection
// ready back off, and a request does not wait for the next of them first.
func TestALimitThatNobodyWaitedForDoesNotDelay(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	n := e.failing(host.Overflow)
	for range 20 {
		e.say("req 1 m -")
		e.Advance(1100 * time.Millisecond)
		require.Equal(t, "err 1 - upstream connection limit reached\n", e.got())
		before := *n
		e.Advance(3700 * time.Millisecond)
		require.LessOrEqual(t, *n-before, 12)
	}
}

// TestAnAttemptThatWaitsForAConnectionOfAnotherPool: some hosts do not say that a circuit breaker
// allows no more, and have the attempt wait until a connection ends.
func TestAnAttemptThatWaitsForAConnectionOfAnotherPool(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	up.Serve = answer
	cfg := h.MustLoad(sourced)
	first, second := h.DialFrom(cfg, "10.1.0.1"), h.DialFrom(cfg, "10.1.0.2")
	first.Send(req(1))
	one(t, first)
	held := up.Servers()[0]
	up.Hang = true
	second.Send(req(1))
	h.Advance(time.Second)
	require.True(t, held.Open(), "the attempt may be a slow one")
	up.Queue()
	h.Advance(time.Second)
	require.False(t, held.Open())
	require.Empty(t, second.Take())
	up.Admit()
	require.EqualValues(t, 20, one(t, second).Status)

	up.Queue() // nobody waits any more
	h.Advance(time.Second)
	require.Len(t, up.Servers(), 1)
	up.Hang = false
}

// TestAttemptsThatFailTogetherAreOneFailure: a server that restarts is found
// soon, though a pool has begun with many attempts.
func TestAttemptsThatFailTogetherAreOneFailure(t *testing.T) {
	e := newToyEnv(t, "toy.byid", `, "upstream": {"max_connections": 8}`)
	e.up.SetHosts("h1", "h2")
	n := e.failing(host.ConnectFailed)
	e.say("req 1 m -")
	require.Equal(t, 8, *n)
	require.Empty(t, e.got(), "there are two hosts: it is tried once more")
	e.up.Fail, e.up.Serve = nil, serveToys
	e.say("req 2 m -")
	e.Advance(32 * time.Millisecond) // 25 ms, and what timers may be late
	require.ElementsMatch(t, []string{"res 1 m a=2;ok", "res 2 m a=2;ok"}, lines(e.c.Take()))
}

// TestASuccessEndsTheBackOff: the next failure starts with the shortest pause.
func TestASuccessEndsTheBackOff(t *testing.T) {
	e := newToyEnv(t, "toy.byid", "")
	e.failing(host.ConnectFailed)
	for range 500 {
		e.say("req 1 m -")
		e.Advance(10 * time.Millisecond)
	}
	e.up.Fail, e.up.Serve = nil, serveToys
	e.Advance(time.Second)
	e.c.Take()
	s := e.server(0)
	n := e.failing(host.ConnectFailed)
	s.Reset()
	e.Advance(100 * time.Millisecond)
	e.say("req 1 m -")
	e.Advance(32 * time.Millisecond)
	require.GreaterOrEqual(t, *n, 2)
	require.LessOrEqual(t, *n, 6)
}

// TestConnectionsAreReplacedWithinLimits: those that get old do not count as refused by the
// circuit breaker that forbids a second one.
func TestConnectionsAreReplacedWithinLimits(t *testing.T) {
	for _, codec := range []string{"toy.exclusive", "toy.byid"} {
		e := newPolicyEnv(t, codec, "", breaking(`"max_connections": 1`), "", "h1", "h2")
		served := map[string]int{}
		e.up.Serve = func(s *filtertest.Server, b []byte) int {
			served[s.Host] += len(lines(b))
			return serveToys(s, b)
		}
		const calls = 4000
		for i := range calls {
			e.say(fmt.Sprintf("req %d m -", i))
			e.Advance(50 * time.Millisecond)
		}
		require.Len(t, lines(e.c.Take()), calls)
		if codec == "toy.exclusive" {
			require.Len(t, served, 2)
			require.Zero(t, e.count("breaker_max_connections"))
		} else { // which more than one would have been made for the first call
			require.LessOrEqual(t, e.count("breaker_max_connections"), int64(1))
		}
	}
}
