package carrier

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// fill has each worker park what it wants.
func fill(s *stage) {
	for _, w := range s.workers {
		w.carriers.refill()
	}
	s.settle()
}

func parkedOn(s *stage) (n []int) {
	for _, w := range s.workers {
		n = append(n, len(w.carriers.parked))
	}
	return n
}

// keeps makes sure that a worker has enough parked, and in a while no more: the
// dialer may have been about to dial another when the last one came.
func keeps(s *stage, w *worker) {
	s.t.Helper()
	require.GreaterOrEqual(s.t, len(w.carriers.parked), wantParked)
	s.advance(spareTime + time.Second)
	require.Len(s.t, w.carriers.parked, wantParked)
}

// TestCarriersAreParkedAhead: none is dialled before somebody wants one, then some
// more than that for the next.
func TestCarriersAreParkedAhead(t *testing.T) {
	play(t, 2, func(t *testing.T, s *stage) {
		s.advance(time.Minute)
		require.Zero(t, s.dialled)
		c, _ := s.workers[1].connect(toOne)
		s.settle()
		require.Equal(t, claimed, c.state)
		keeps(s, s.workers[1])
		dialled := s.dialled
		next, _ := s.workers[1].connect(toOne)
		require.Equal(t, claimed, next.state, "at once")
		s.settle()
		require.Greater(t, s.dialled, dialled)
		keeps(s, s.workers[1])
	})
}

func TestTheOneThatHasWaitedLongestComesFirst(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		s.refuse = func() bool { return true }
		var waited []*Carrier
		for range 5 {
			c, _ := s.workers[0].connect(toOne)
			waited = append(waited, c)
		}
		s.settle()
		n := 0
		s.refuse = func() bool { n++; return n > 3 }
		s.advance(100 * time.Millisecond)
		for i, c := range waited {
			require.Equal(t, i < 3, c.state == claimed, i)
		}
		s.refuse = nil
		s.advance(2 * time.Second)
		for _, c := range waited {
			require.Equal(t, claimed, c.state)
		}
		keeps(s, s.workers[0])
	})
}

// TestOnesThatLandElsewhereAreParkedThere, until the balancer comes to the worker
// that wants them; those beyond are closed later.
func TestOnesThatLandElsewhereAreParkedThere(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		c, _ := s.workers[2].connect(toOne)
		s.settle()
		require.Equal(t, claimed, c.state)
		parked := parkedOn(s)
		for i, n := range []int{3, 3, wantParked} {
			require.GreaterOrEqual(t, parked[i], n)
		}
		s.advance(spareTime - 10*time.Millisecond)
		require.Equal(t, parked, parkedOn(s))
		s.advance(time.Second)
		require.Equal(t, []int{wantParked, wantParked, wantParked}, parkedOn(s))
		dialled := s.dialled
		s.advance(time.Minute)
		require.Equal(t, dialled, s.dialled, "nothing more is dialled")
	})
}

// TestCarriersThatNeverCome: what waits goes on to wait, and is served when one does;
// what is closed meanwhile leaves nothing behind.
func TestCarriersThatNeverCome(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		s.refuse = func() bool { return true }
		w := s.workers[0]
		c, ev := w.connect(toOne)
		var given []*upstream
		for i := range 100 {
			g, gev := w.connect(toOne)
			given = append(given, gev)
			s.advance(time.Second)
			g.Close(i%2 == 0)
			g.Close(false)
			require.Empty(t, gev.take(), "not within Close")
		}
		s.settle()
		for _, gev := range given {
			require.Equal(t, []string{"closed"}, gev.take())
		}
		require.Equal(t, []*Carrier{c}, w.carriers.waiting)
		require.Less(t, s.dialled, 2000, "a wrong listener is not dialled in a loop")
		s.refuse = nil
		s.advance(2 * time.Second)
		require.Equal(t, claimed, c.state)
		require.Empty(t, ev.take())
		require.LessOrEqual(t, len(w.carriers.parked), wantParked+1, "nothing was dialled for those that had gone")
	})
}

func TestStrangersAreTurnedAway(t *testing.T) {
	play(t, 2, func(t *testing.T, s *stage) {
		fill(s)
		w := s.workers[0]
		before := parkedOn(s)
		used := w.filters[0]
		for name, token := range map[string][]byte{
			"no token": nil, "an empty one": {}, "another process's": []byte("0123456789abcdef0123456789abcdef:1"),
			"one that was used": used.token,
		} {
			k := &socket{Conn: used.socket.Conn}
			f := &filter{w: w, socket: k, token: token}
			require.Nil(t, w.carriers.Arrived(f), name)
			require.Empty(t, f.done, name)
		}
		require.Equal(t, before, parkedOn(s))
	})
}

// TestParkedOnesOfAnOldListenerAreReplaced, those in use are not.
func TestParkedOnesOfAnOldListenerAreReplaced(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		w := s.workers[0]
		c, f, ev := connected(s)
		keeps(s, w)
		old := slices.Clone(w.carriers.parked)
		w.carriers.Renew(1)
		s.settle()
		require.Equal(t, old, w.carriers.parked, "those of the listener itself stay")
		s.generation = 2
		w.carriers.Renew(2)
		s.settle()
		keeps(s, w)
		for _, p := range w.carriers.parked {
			require.EqualValues(t, 2, p.filter.Generation())
			require.NotContains(t, old, p)
		}
		for _, p := range old {
			require.Equal(t, over, p.state)
			require.True(t, p.filter.Closed())
		}
		require.Equal(t, ready, c.state)
		require.Empty(t, ev.take())
		require.False(t, f.closed)
		w.carriers.Renew(1) // of an older one, late
		require.Len(t, w.carriers.parked, wantParked)
	})
}

// TestAParkedOneThatIsAlive is found, for a worker to be woken through.
func TestAParkedOneThatIsAlive(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		w := s.workers[0]
		require.Nil(t, w.carriers.AnyParked())
		fill(s)
		first := w.carriers.parked[0].filter.(*filter)
		require.Equal(t, Filter(first), w.carriers.AnyParked())
		first.closed = true // and its event is about to come
		require.Equal(t, w.carriers.parked[1].filter, w.carriers.AnyParked())
	})
}

// TestASourceIsDialledForOneConnection, until the worker that wants it gets it: what
// lands elsewhere stays there as ballast, and goes when there are no orders.
func TestASourceIsDialledForOneConnection(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		fill(s)
		s.advance(2 * spareTime)
		parked := parkedOn(s)
		w := s.workers[2]
		// The balancer takes the first of those with the fewest, which are equal.
		c, ev := w.connect(host.Target{Cluster: "one", Source: source})
		s.settle()
		require.Equal(t, claimed, c.state)
		require.Equal(t, source, c.conn.Source())
		require.Len(t, s.workers[0].carriers.ballast, 1)
		require.Len(t, s.workers[1].carriers.ballast, 1)
		require.Empty(t, w.carriers.ballast)
		require.Equal(t, parked, parkedOn(s), "none is parked for it, and none of the parked taken")
		c.filter.(*filter).connect("10.0.0.1:20880")
		require.Equal(t, []string{"ready 10.0.0.1:20880"}, ev.take())
		s.advance(2 * spareTime)
		for _, w := range s.workers {
			require.Empty(t, w.carriers.ballast)
		}
		require.Equal(t, ready, c.state)
	})
}

// TestBallastStaysWhileThereAreOrders: that is what it is for.
func TestBallastStaysWhileThereAreOrders(t *testing.T) {
	play(t, 2, func(t *testing.T, s *stage) {
		s.balance = func() int { return 0 }
		taken := 0
		s.refuse = func() bool { taken++; return taken > 2 }
		c, ev := s.workers[1].connect(host.Target{Cluster: "one", Source: source})
		s.advance(5 * spareTime)
		require.Len(t, s.workers[0].carriers.ballast, 2)
		require.Empty(t, ev.take())
		c.Close(false)
		s.settle()
		require.Equal(t, []string{"closed"}, ev.take())
		require.False(t, s.dialer.Ordered())
		s.advance(2 * spareTime)
		require.Empty(t, s.workers[0].carriers.ballast)
		require.Empty(t, s.workers[0].filters)
	})
}

// TestSourcesAreNotMixedUp: nobody gets a carrier of another's address, nor one that
// is wanted no more.
func TestSourcesAreNotMixedUp(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		w := s.workers[0]
		other := netip.MustParseAddr("2001:db8::7")
		s.refuse = func() bool { return true }
		a, _ := w.connect(host.Target{Cluster: "one", Source: source})
		b, _ := w.connect(host.Target{Cluster: "one", Source: other})
		gone, goneEv := w.connect(host.Target{Cluster: "one", Source: source})
		plain, _ := w.connect(toOne)
		s.settle()
		gone.Close(false)
		s.refuse = nil
		s.advance(3 * time.Second)
		require.Equal(t, []string{"closed"}, goneEv.take())
		require.Nil(t, gone.filter)
		require.Equal(t, source, a.conn.Source())
		require.Equal(t, other, b.conn.Source())
		require.False(t, plain.conn.Source().IsValid())
		for _, c := range []*Carrier{a, b, plain} {
			require.Equal(t, claimed, c.state)
		}
		// Whichever comes first.
		a, _ = w.connect(host.Target{Cluster: "one", Source: source})
		b, _ = w.connect(host.Target{Cluster: "one", Source: other})
		s.wait(0)
		require.Len(t, s.arrived, 2)
		slices.SortFunc(s.arrived, func(a, b *socket) int { return len(b.received) - len(a.received) })
		s.settle()
		require.Equal(t, source, a.conn.Source())
		require.Equal(t, other, b.conn.Source(), "the longer prologue, which came first")
		// One that comes when nobody wants it any more is closed.
		late, _ := w.connect(host.Target{Cluster: "one", Source: source})
		s.wait(0)
		require.Len(t, s.arrived, 1)
		k := s.arrived[0]
		late.Close(false)
		s.settle()
		require.True(t, k.ended)
		require.Empty(t, w.carriers.ballast)
	})
}

// TestBallastThatEnds is forgotten.
func TestBallastThatEnds(t *testing.T) {
	play(t, 2, func(t *testing.T, s *stage) {
		s.balance = func() int { return 0 }
		n := 0
		s.refuse = func() bool { n++; return n > 1 }
		c, _ := s.workers[1].connect(host.Target{Cluster: "one", Source: source})
		s.settle()
		w := s.workers[0]
		require.Len(t, w.carriers.ballast, 1)
		w.filters[0].end(true)
		require.Empty(t, w.carriers.ballast)
		c.Close(false)
		s.advance(2 * spareTime)
	})
}

// TestATunnelIsNoCarrier: its cluster is set, and nobody parks or claims it.
func TestATunnelIsNoCarrier(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		w := s.workers[0]
		s.world.Unlock()
		c, err := s.dialer.Tunnel(t.Context(), "xds")
		s.world.Lock()
		require.NoError(t, err)
		defer c.Close()
		s.wait(0)
		require.Len(t, s.arrived, 1)
		f := &filter{w: w, token: s.arrived[0].token()}
		s.arrived = nil
		require.True(t, w.carriers.Tunnel(f))
		require.Equal(t, map[string]string{stateCluster: "xds"}, f.state)
		require.Empty(t, w.carriers.parked)
		require.False(t, w.carriers.Tunnel(f), "its token is good once")
		require.Nil(t, w.carriers.Arrived(f))
	})
}
