package upstream_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

var (
	byID    = codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<64 - 1}
	inOrder = codecs.Traits{Correlation: codecs.InOrder}
)

// names are "a0", "a1", …
func names(prefix string, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint(prefix, i))
	}
	return names
}

func exclusive(o *upstream.Options) { o.Shared = false }

func TestCallsWaitForAConnectionAndEachGetsItsAnswer(t *testing.T) {
	b := newBed(t, byID, nil)
	cs := b.sends("a", "b", "c")
	require.Equal(t, []string{"waits", "waits", "waits"}, all(cs))
	require.Len(t, b.servers, 1)
	for _, c := range cs {
		require.Equal(t, 1, c.held)
	}
	b.up()
	s := b.servers[0]
	require.Equal(t, []string{"a", "b", "c"}, s.names())
	later := b.send("d", nil, upstream.Send{})
	require.Zero(t, later.held, "it has not waited")
	require.Equal(t, "h0", later.call.Host())
	s.answers(3, 1, 2, 0)
	require.Equal(t, []string{"answered", "answered", "answered", "answered"}, all(append(cs, later)))
	s.answers(0)
	require.Equal(t, 1, b.seen.strays, "nobody waits for it")
	require.Equal(t, "answered", cs[0].is())
}

func TestAPoolHasAsManyConnectionsAsItsLoadWants(t *testing.T) {
	b := newBed(t, byID, func(o *upstream.Options) { o.TargetInFlight, o.MaxConnections = 10, 3 })
	var cs []*caller
	for _, step := range []struct{ calls, conns int }{{1, 1}, {9, 1}, {1, 2}, {9, 2}, {1, 3}, {100, 3}} {
		cs = append(cs, b.sends(names("x", step.calls)...)...)
		b.up()
		require.Len(t, b.open(), step.conns, "for %d calls", len(cs))
	}
	for _, s := range b.open() {
		s.answers(seq(len(s.got))...)
	}
	require.NotContains(t, all(cs), "under way")
	b.pass(time.Second)
	require.Len(t, b.open(), 1, "no load any more")
}

func seq(n int) (seq []int) {
	for i := range n {
		seq = append(seq, i)
	}
	return seq
}

func TestAnExclusiveConnectionHasOneCall(t *testing.T) {
	b := newBed(t, byID, exclusive)
	cs := b.sends(names("x", 6)...)
	b.up()
	require.Len(t, b.servers, 4, "MaxExclusive")
	require.Equal(t, []string{"under way", "under way", "under way", "under way", "waits", "waits"}, all(cs))
	b.servers[2].answers(0)
	require.Equal(t, []string{"x2", "x4"}, b.servers[2].names(), "what has waited longest")
	b.servers[0].ends(host.Reset)
	require.Equal(t, "upstream connection ended before the answer: reset, written true", cs[0].is())
	b.up()
	require.Len(t, b.servers, 5, "another one in its place")
	require.Equal(t, []string{"x5"}, b.servers[4].names())
}

// TestFailedAttemptsBackOff: the pauses double from 25 ms up to BackoffMax, less up to
// half, and begin anew after a success.
func TestFailedAttemptsBackOff(t *testing.T) {
	const most = 200 * time.Millisecond
	b := newBed(t, byID, func(o *upstream.Options) { o.BackoffMax = most })
	fail := func(pause time.Duration) {
		t.Helper()
		n := len(b.servers)
		c := b.send("x", nil, upstream.Send{})
		if pause > 0 {
			require.Len(t, b.servers, n, "it is too early")
			b.pass(pause/2 - 2*time.Millisecond)
			require.Len(t, b.servers, n, "it is too early")
			b.pass(pause/2 + 4*time.Millisecond)
		}
		require.Len(t, b.servers, n+1)
		require.Equal(t, "waits", c.is())
		b.servers[n].ends(host.ConnectFailed)
		require.Equal(t, "upstream connect failure in cluster c, written false", c.is())
		require.Equal(t, codecs.ConnectFailure, c.failures[0].Type)
	}
	for range 2 {
		for _, ms := range []time.Duration{0, 25, 50, 100, 200, 200} {
			fail(ms * time.Millisecond)
		}
		c := b.send("y", nil, upstream.Send{})
		b.pass(most)
		b.up()
		require.Equal(t, "under way", c.is())
		s := b.servers[len(b.servers)-1]
		s.answers(0)
		s.ends(host.Reset)
		// One is kept ready: the pool looks for it by itself, and finds none.
		b.pass(100 * time.Millisecond)
		if s := b.servers[len(b.servers)-1]; s.state == dialled {
			s.ready("h0")
			s.ends(host.Reset)
		}
	}
}

func TestACallThatCannotBeServedIsRefusedAtOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		play func(b *bed)
		want string
		kind codecs.ErrorType
	}{
		"an unknown cluster": {func(b *bed) { b.known = false }, "unknown cluster c, written false", codecs.ClusterNotFound},
		"no host":            {func(b *bed) { b.has(0) }, "no healthy upstream in cluster c, written false", codecs.NoHealthyUpstream},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, byID, nil)
			tc.play(b)
			c := b.send("x", nil, upstream.Send{})
			require.Equal(t, tc.want, c.is())
			require.Equal(t, tc.kind, c.failures[0].Type)
			require.Zero(t, c.held)
			require.Empty(t, b.servers)
		})
	}
}

// TestWhatMayWait: beyond MaxPending, or MaxPendingBytes, clients are not to be read,
// twice as much is refused, and clients are read again when half of it is left.
func TestWhatMayWait(t *testing.T) {
	for name, limit := range map[string]func(o *upstream.Options){
		"calls": func(o *upstream.Options) { o.MaxPending = 10 },
		"bytes": func(o *upstream.Options) { o.MaxPendingBytes = 10 * len("x0") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, byID, limit)
			resumed := 0
			w := &upstream.Waiter{Resume: func() { resumed++ }}
			cs := b.sends(names("x", 9)...)
			require.False(t, b.pool.Full(nil))
			cs = append(cs, b.sends("x9")...)
			require.True(t, b.pool.Full(nil))
			b.pool.Wait(w, nil)
			cs = append(cs, b.sends(names("y", 10)...)...)
			require.Equal(t, slices.Repeat([]string{"waits"}, 20), all(cs))
			over := b.send("zz", nil, upstream.Send{})
			require.Equal(t, "too many requests wait for an upstream connection, written false", over.is())
			require.False(t, name == "bytes" && cs[0].call.Grow(1), "nor may one grow")
			for _, c := range cs[:14] {
				b.cancel(c)
			}
			require.Zero(t, resumed)
			b.cancel(cs[14])
			require.Equal(t, 1, resumed)
			require.False(t, b.pool.Full(nil))
			b.up()
			require.Equal(t, []string{"y5", "y6", "y7", "y8", "y9"}, b.servers[0].names())
		})
	}
}

func TestSoManyRequestsMayBeInFlight(t *testing.T) {
	b := newBed(t, byID, func(o *upstream.Options) { o.MaxRequests = 10 })
	cs := b.sends(names("x", 5)...)
	b.up()
	cs = append(cs, b.sends(names("y", 5)...)...)
	over := b.send("z", nil, upstream.Send{})
	require.Equal(t, "too many requests are in flight, written false", over.is())
	b.servers[0].answers(7)
	require.Equal(t, "answered", cs[7].is())
	require.Equal(t, "under way", b.send("z", nil, upstream.Send{}).is())
}

func TestDeadlines(t *testing.T) {
	b := newBed(t, byID, nil)
	waiting := b.send("w", nil, upstream.Send{Timeout: time.Second})
	longer := b.send("l", nil, upstream.Send{Timeout: 3 * time.Second})
	b.pass(time.Second + 10*time.Millisecond)
	require.Equal(t, "timeout while waiting for an upstream connection, written false", waiting.is())
	b.up()
	require.Equal(t, []string{"l"}, b.servers[0].names())
	b.pass(2 * time.Second)
	require.Equal(t, "upstream request timeout, written true", longer.is())
	require.Equal(t, codecs.Timeout, longer.failures[0].Type)
	b.servers[0].answers(0)
	require.Equal(t, 1, b.seen.strays)
	require.Len(t, longer.failures, 1)
}

// TestACancelledCallsAnswerFindsNobody, and costs its neighbours nothing: where
// answers have no ids, and where ids are few, something keeps its place.
func TestACancelledCallsAnswerFindsNobody(t *testing.T) {
	for name, tc := range map[string]struct {
		traits codecs.Traits
		strays int
	}{
		"ids":      {byID, 1},
		"few ids":  {codecs.Traits{Correlation: codecs.ByID, MaxID: 255}, 0},
		"in order": {inOrder, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, tc.traits, nil)
			cs := b.sends("a", "b", "c")
			b.up()
			b.cancel(cs[1])
			require.Equal(t, []string{"under way", "gone", "under way"}, all(cs))
			more := b.send("d", nil, upstream.Send{})
			b.servers[0].answers(0, 1, 2, 3)
			require.Equal(t, []string{"answered", "gone", "answered"}, all(cs))
			require.Equal(t, "answered", more.is())
			require.Equal(t, tc.strays, b.seen.strays)
			require.Len(t, b.open(), 1)
		})
	}
	t.Run("exclusive", func(t *testing.T) {
		b := newBed(t, inOrder, exclusive)
		c := b.sends("a")[0]
		b.up()
		b.cancel(c)
		require.Empty(t, b.open(), "it would be taken for the next one's")
		b.servers[0].says(b.servers[0].got[0])
		next := b.sends("b")[0]
		b.up()
		require.Len(t, b.servers, 2)
		b.servers[1].answers(0)
		require.Equal(t, "answered", next.is())
	})
}

// TestATimeoutInAnOrderOfAnswers keeps its place, as its answer may come yet. Its
// connection gets no call any more, as its server may hang.
func TestATimeoutInAnOrderOfAnswers(t *testing.T) {
	b := newBed(t, inOrder, nil)
	late := b.send("late", nil, upstream.Send{Timeout: time.Second})
	behind := b.send("behind", nil, upstream.Send{})
	b.up()
	b.pass(time.Second + 10*time.Millisecond)
	require.Equal(t, []string{"upstream request timeout, written true", "under way"}, all([]*caller{late, behind}))
	next := b.send("next", nil, upstream.Send{})
	b.up()
	require.Equal(t, []string{"late", "behind"}, b.servers[0].names())
	require.Equal(t, []string{"next"}, b.servers[1].names())
	b.servers[0].answers(0, 1)
	require.Equal(t, "answered", behind.is())
	require.Len(t, late.failures, 1)
	require.Empty(t, late.answered)
	require.True(t, b.servers[0].ended, "it has nothing to wait for")
	b.servers[1].answers(0)
	require.Equal(t, "answered", next.is())
}

// TestConnectionsOfAServerThatHangsDoNotPileUp: when only answers are owed that nobody waits
// for, oneways have had their time, or more drain than may serve, they end.
func TestConnectionsOfAServerThatHangsDoNotPileUp(t *testing.T) {
	b := newBed(t, inOrder, nil)
	hangs := func() {
		for _, name := range []string{"a", "b"} {
			b.send(name, nil, upstream.Send{Timeout: 200 * time.Millisecond})
		}
		b.up()
		b.pass(300 * time.Millisecond)
	}
	slow := b.send("slow", nil, upstream.Send{Timeout: 30 * time.Second})
	hangs()
	b.pass(5 * time.Second)
	require.False(t, b.servers[0].ended, "an answer is waited for")
	b.servers[0].answers(0)
	require.Equal(t, "answered", slow.is())
	b.pass(100 * time.Millisecond)
	require.True(t, b.servers[0].ended, "the others are 5 s late")

	hangs()
	last := b.open()[0]
	b.pass(4500 * time.Millisecond)
	require.False(t, last.ended)
	b.pass(500 * time.Millisecond)
	require.True(t, last.ended)

	for range 20 {
		hangs()
		require.LessOrEqual(t, len(b.open()), 4+1)
	}
	oneway := b.send("set", nil, upstream.Send{Oneway: true})
	b.up()
	require.Equal(t, "sent", oneway.is())
	last = b.servers[len(b.servers)-1]
	for range 10 {
		hangs()
	}
	require.False(t, last.ended, "it may not have been read yet")
	for range 10 {
		hangs()
	}
	require.True(t, last.ended)
}

// TestADrainedConnectionIsKeptForAnswersThatNobodyWaitsFor until their deadlines, as the
// server may still read what was asked.
func TestADrainedConnectionIsKeptForAnswersThatNobodyWaitsFor(t *testing.T) {
	b := newBed(t, inOrder, nil)
	for range 2 {
		b.send("a", nil, upstream.Send{Muted: true, Timeout: 20 * time.Second})
	}
	b.up()
	b.servers[0].says("away")
	b.pass(24 * time.Second)
	require.False(t, b.servers[0].ended)
	b.pass(1200 * time.Millisecond)
	require.True(t, b.servers[0].ended)
}

// TestAServerThatSaysThatItLeavesOnEachConnection gets them with pauses, which end with one
// to another host. Calls wait meanwhile.
func TestAServerThatSaysThatItLeavesOnEachConnection(t *testing.T) {
	b := newBed(t, byID, nil)
	var cs []*caller
	leaves := func(d time.Duration, host string) {
		for range d / (10 * time.Millisecond) {
			cs = append(cs, b.send("x", nil, upstream.Send{}))
			for _, s := range b.servers {
				if s.state == dialled {
					s.ready(host)
					s.says("away")
				}
			}
			b.pass(10 * time.Millisecond)
		}
	}
	leaves(200*time.Millisecond, "h0")
	require.GreaterOrEqual(t, len(b.servers), 4)
	leaves(5*time.Second, "h0")
	require.LessOrEqual(t, len(b.servers), 18)
	b.pass(time.Second)
	last := b.servers[len(b.servers)-1]
	require.Equal(t, dialled, last.state)
	last.ready("h1")
	require.NotContains(t, all(cs), "waits")
	for _, s := range b.servers {
		s.answers(seq(len(s.got))...)
	}
	for _, c := range cs {
		require.Equal(t, "answered", c.is())
	}
	last.says("away")
	require.Equal(t, "waits", b.send("y", nil, upstream.Send{}).is())
	require.Equal(t, dialled, b.servers[len(b.servers)-1].state, "the first time that this one says it")
}

func TestOnewaysAreSentAndTheirConnectionIsKeptUntilTheyAreRead(t *testing.T) {
	b := newBed(t, byID, nil)
	c := b.send("x", nil, upstream.Send{Oneway: true})
	require.Equal(t, "waits", c.is())
	b.up()
	require.Equal(t, "sent", c.is())
	b.servers[0].says("away")
	b.pass(4 * time.Second)
	require.False(t, b.servers[0].ended)
	b.pass(1200 * time.Millisecond)
	require.True(t, b.servers[0].ended)
}

func TestALostConnectionCostsItsCallsOnly(t *testing.T) {
	b := newBed(t, byID, func(o *upstream.Options) { o.MinConnections = 2 })
	cs := b.sends("a", "b")
	b.up()
	b.pass(200 * time.Millisecond)
	b.up()
	require.Len(t, b.open(), 2)
	cs = append(cs, b.sends("c", "d", "e", "f")...)
	lost := b.servers[0].names()
	b.servers[0].ends(host.Remote)
	b.servers[1].answers(seq(len(b.servers[1].got))...)
	require.NotEmpty(t, lost)
	require.NotEmpty(t, b.servers[1].got)
	for _, c := range cs {
		want := "answered"
		if slices.Contains(lost, c.name) {
			want = "upstream connection ended before the answer: closed by the server, written true"
		}
		require.Equal(t, want, c.is(), c.name)
	}
}

// TestPoolsShareIDsUnlessTheyAreFew: what rests of them is not each pool's.
func TestPoolsShareIDsUnlessTheyAreFew(t *testing.T) {
	for maxID, shared := range map[uint64]bool{1<<32 - 1: true, 1<<31 - 1: true, 255: false} {
		var opts *upstream.Options
		traits := codecs.Traits{Correlation: codecs.ByID, MaxID: maxID}
		b := newBed(t, traits, func(o *upstream.Options) { opts = o })
		var got []string
		for _, cluster := range []string{"c", "d"} {
			b.pool = b.manager.Pool(upstream.Key{Cluster: cluster}, words{traits: traits}, opts, &b.seen)
			c := b.send("x", nil, upstream.Send{})
			b.up()
			s := b.servers[len(b.servers)-1]
			got = append(got, s.got...)
			s.answers(0)
			require.Equal(t, "answered", c.is())
		}
		require.Len(t, got, 2)
		require.Equal(t, shared, got[0] != got[1], "%v of ids up to %d", got, maxID)

		b.pool = b.manager.Pool(upstream.Key{Cluster: "c", Mirror: true}, words{traits: traits}, opts, &b.seen)
		b.send("x", nil, upstream.Send{})
		b.up()
		require.Equal(t, got[0], b.servers[len(b.servers)-1].got[0], "copies have their own")
	}
}
