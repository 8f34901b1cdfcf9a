package loopback

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var client = netip.MustParseAddr("192.0.2.7")

func TestAnOrderIsDialledUntilItsWorkerHasIt(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		o := Order{1, client}
		l.d.Serve("@here")
		l.d.Order(o, 1)
		l.settle()
		require.Len(t, l.sockets, 1)
		h := l.sockets[0].header(t)
		require.Equal(t, netip.AddrPortFrom(client, 2), h.source)
		require.Equal(t, netip.AddrPortFrom(localhost, 2), h.destination)
		for i := range 3 { // each on a worker that has not ordered it
			c := l.arrive(l.sockets[i], 2)
			require.Equal(t, 1, c.Worker())
			require.Equal(t, client, c.Source())
			l.settle()
			require.Len(t, l.sockets, i+2)
			require.True(t, l.d.Ordered())
		}
		require.NotNil(t, l.arrive(l.sockets[3], 1))
		l.advance(time.Minute)
		require.Len(t, l.sockets, 4)
		require.False(t, l.d.Ordered())
		for _, s := range l.sockets {
			require.False(t, s.ended, "those that went astray are the workers', which close them")
		}
	})
}

// TestOneAtATimeWhileTheyGoAstray: more would only be more ballast.
func TestOneAtATimeWhileTheyGoAstray(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		o := Order{1, client}
		l.d.Serve("@here")
		l.d.Order(o, 40)
		l.settle()
		require.Len(t, l.sockets, maxUnborn)
		l.arrive(l.sockets[0], 2)
		l.settle()
		require.Len(t, l.sockets, maxUnborn)
		for _, s := range l.sockets[1:] {
			l.arrive(s, 2)
		}
		l.settle()
		require.Len(t, l.sockets, maxUnborn+1)
		l.arrive(l.sockets[maxUnborn], 1)
		l.settle()
		require.Len(t, l.sockets, 2*maxUnborn+1, "they find their way")
	})
}

// TestAWorkerThatTakesNone: after many that went astray there are pauses, for its
// orders alone.
func TestAWorkerThatTakesNone(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.Serve("@here")
		l.d.Order(Order{1, client}, 1)
		l.settle()
		n := 0
		for ; n <= maxAstray; n++ {
			require.Len(t, l.sockets, n+1)
			l.arrive(l.sockets[n], 2)
			l.settle()
		}
		require.Len(t, l.sockets, n, "none before a pause")
		l.d.Order(Order{3, client}, 1)
		l.settle()
		require.Len(t, l.sockets, n+1, "another worker's order does not wait")
		require.NotNil(t, l.arrive(l.sockets[n], 3))
		l.advance(holdTime - time.Millisecond)
		require.Len(t, l.sockets, n+1)
		l.advance(time.Millisecond)
		require.Len(t, l.sockets, n+2)
		l.arrive(l.sockets[n+1], 2)
		l.advance(holdTime)
		require.Len(t, l.sockets, n+3, "one a pause")
		require.NotNil(t, l.arrive(l.sockets[n+2], 1))
		require.Zero(t, l.d.orders.ways[1].astray)
	})
}

// TestOrdersThatTheHostCloses, maybe as original_src cannot bind to the address.
func TestOrdersThatTheHostCloses(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.accepted = func(s *socket) { s.Close() }
		l.d.Serve("@here")
		l.d.Order(Order{0, client}, 1)
		l.advance(10*holdTime + time.Millisecond)
		require.Len(t, l.sockets, 11, "one a second")
		l.accepted = nil
		l.d.Want(1, 1)
		l.settle()
		require.NotNil(t, l.arrive(l.sockets[11], 1), "plain ones do not wait")
		require.Empty(t, l.log.all())
	})
}

func TestAWithdrawnOrder(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		o := Order{1, client}
		l.d.Serve("@here")
		l.d.Order(o, 0)
		require.False(t, l.d.Ordered())
		// While it is being dialled.
		l.on = func(string) error {
			l.d.Order(o, 0)
			return nil
		}
		l.d.Order(o, 1)
		l.settle()
		require.Len(t, l.sockets, 1)
		require.True(t, l.sockets[0].ended)
		require.Empty(t, l.sockets[0].received, "not even the token was sent")
		require.Empty(t, l.d.conns)
		require.False(t, l.d.Ordered())
		// When it is on its way.
		l.on = nil
		l.d.Order(o, 1)
		l.settle()
		require.Len(t, l.sockets, 2)
		l.d.Order(o, 0)
		require.True(t, l.d.Ordered(), "one is on its way")
		require.NotNil(t, l.arrive(l.sockets[1], 1), "the worker closes it")
		require.False(t, l.d.Ordered())
		require.Zero(t, l.d.orders.ways[1].unborn)
		l.advance(time.Minute)
		require.Len(t, l.sockets, 2)
	})
}

// TestWorkersShareNothingOfTheirOrders: not the source either.
func TestWorkersShareNothingOfTheirOrders(t *testing.T) {
	virtually(t, func(t *testing.T, l *listener) {
		l.d.Serve("@here")
		l.d.Order(Order{0, client}, 20)
		l.d.Order(Order{1, client}, 3)
		l.d.Order(Order{1, localhost}, 2)
		l.settle()
		got := map[Order]int{}
		for _, s := range l.sockets {
			id, _ := l.d.nonce.id([]byte(s.header(t).token))
			o := l.d.conns[id].from
			require.Equal(t, o.Source, s.header(t).source.Addr())
			got[o]++
		}
		require.Equal(t, map[Order]int{{0, client}: maxUnborn, {1, client}: 3, {1, localhost}: 2}, got)
	})
}
