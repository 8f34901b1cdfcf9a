package upstream

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestClientsThatWaitForRoomAreResumedInTurnUnlessTheyHaveLeft(t *testing.T) {
	p := &Pool{opts: &Options{MaxPending: 4, MaxPendingBytes: 100}, pending: 4}
	var resumed []int
	ws := make([]Waiter, 6)
	for i := range ws {
		ws[i].Resume = func() { resumed = append(resumed, i) }
		p.Wait(&ws[i], nil)
	}
	for _, i := range []int{0, 3, 5} { // the first, one between, the last
		ws[i].Cancel()
		ws[i].Cancel()
	}
	p.resumeWaiters()
	require.Empty(t, resumed)
	p.pending = 2
	p.resumeWaiters()
	p.resumeWaiters()
	require.Equal(t, []int{1, 2, 4}, resumed)
	require.Zero(t, p.waiters)
	ws[1].Cancel()

	l := &Line{pool: p}
	p.Wait(&ws[0], l)
	ws[0].Cancel()
	require.Nil(t, l.waiter)
}

// TestAPoolGoesOnAfterAPanic while it sent what had waited.
func TestAPoolGoesOnAfterAPanic(t *testing.T) {
	p := &Pool{opts: &Options{Shared: true, MaxPending: 4, MaxPendingBytes: 100}}
	p.ready = []*conn{{}} // it belongs to no pool
	p.queue.push(&Call{pool: p})
	p.pending = 1
	require.Panics(t, p.kick)
	require.Panics(t, func() { p.queue.push(&Call{pool: p}); p.kick() }, "it tries again")
}

// TestWhatIsKnownOfClustersGoes some time after the last pool to them.
func TestWhatIsKnownOfClustersGoes(t *testing.T) {
	s := NewShared()
	kept := s.cluster("kept", 0)
	for i := range 1000 {
		now := time.Duration(i) * time.Second
		name := fmt.Sprint(i)
		ci := s.cluster(name, now)
		require.Same(t, ci, s.cluster(name, now))
		s.release(name, now)
		s.release(name, now+time.Second)
		require.Same(t, ci, s.cluster(name, now+2*time.Second), "it may be used again soon")
		s.release(name, now+2*time.Second)
		require.LessOrEqual(t, len(s.clusters), 100)
	}
	require.Same(t, kept, s.cluster("kept", time.Hour))
}

func TestIDsThatComeAgainSoon(t *testing.T) {
	for maxID, scarce := range map[uint64]bool{
		1<<64 - 1: false, 1<<32 - 1: false, 1<<31 - 1: false, 1<<24 - 1: true, 1<<16 - 1: true, 255: true, 0: true,
	} {
		var table ids
		table.init(maxID)
		require.Equal(t, scarce, table.scarce(), maxID)
		if !scarce { // a worker's pools share them
			require.Equal(t, uint(20), table.bits, maxID)
			require.GreaterOrEqual(t, (table.genMask+1)*uint64(table.rest), uint64(1)<<25, maxID)
		}
	}
}

// TestManyPoolsRestFewIDs: as many as one would.
func TestManyPoolsRestFewIDs(t *testing.T) {
	m := &Manager{ids: map[idsKey]*ids{}}
	cn, c := &conn{}, &Call{}
	c.conn = cn
	for range 100 {
		table := m.idsOf(idsKey{max: 1<<31 - 1})
		for range 1<<14 + 1 {
			id, ok := table.take(c)
			require.True(t, ok)
			table.drop(id)
		}
		require.LessOrEqual(t, len(table.slots), 1<<14+1)
	}
	require.Len(t, m.ids, 1)
}

// TestMissingHostsAreFoundByConnections: a call with a hash asks for many hosts, so they are
// not walked through.
func TestMissingHostsAreFoundByConnections(t *testing.T) {
	p := &Pool{opts: &Options{Shared: true, MaxConnections: 8}}
	p.usable = make([]*endpoint, 1000)
	to := func(n int) (eps []*endpoint) {
		for range n {
			eps = append(eps, &endpoint{weight: 1})
		}
		return eps
	}
	eps := to(3)
	gone, old := &endpoint{}, to(1)[0]
	for _, tc := range []struct {
		conns   []*conn
		missing int
	}{
		{nil, 8},
		{[]*conn{{state: ready, to: eps[0]}, {state: ready, to: eps[1], wanted: eps[2]}}, 6},
		{[]*conn{{state: ready, to: eps[0]}, {state: ready, to: eps[0]}}, 7},
		{[]*conn{{wanted: eps[0]}, {state: greeting, to: eps[1], wanted: eps[2]}, {}}, 6},
		{[]*conn{{state: ready, to: old, stale: true}, {state: ready, to: gone}}, 8},
		{[]*conn{{state: ready, to: old, aging: true}, {wanted: old}}, 7},
	} {
		p.conns = tc.conns
		require.Equal(t, tc.missing, p.missing())
		require.Equal(t, tc.missing, p.missing())
	}
}
