package dynamicmodules

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// frail panics in each of its events.
type frail struct{ failed int }

func (f *frail) Ready(string)                  { panic("ready") }
func (f *frail) Data([][]byte, int)            { panic("data") }
func (f *frail) WriteBlocked(bool)             { panic("blocked") }
func (f *frail) Closed(host.CloseReason)       { panic("closed") }
func (f *frail) Failed()                       { f.failed++; panic("failed") }
func (f *frail) panics(t *testing.T, n uint64) { require.Equal(t, n, panics.Swap(0)) }

func TestAPanicDoesNotEndTheWorkBehindIt(t *testing.T) {
	w := &worker{}
	w.carriers.w, w.wake.w, w.lingering.w = w, w, w
	panics.Store(0)
	done := 0
	for i := range 4 {
		w.carriers.post(func() {
			if done++; i%2 == 0 {
				panic(i)
			}
		})
	}
	w.carriers.run()
	require.Equal(t, 4, done)
	require.EqualValues(t, 2, panics.Swap(0))

	ev := &frail{}
	c := &carrier{w: w, ev: ev, state: claimed}
	c.closed(false, false)
	require.Equal(t, over, c.state)
	require.Equal(t, 1, ev.failed)
	ev.panics(t, 2)

	ev = &frail{}
	waiting := &carrier{w: w, ev: ev}
	waiting.Close(false)
	w.carriers.run()
	require.Equal(t, 1, ev.failed)
	ev.panics(t, 2)

	down := &frailClient{}
	cl := &client{w: w, ev: down}
	w.lingering.add(cl)
	cl.closed(true, true)
	require.True(t, cl.gone)
	require.Empty(t, w.lingering.clients)
	require.Equal(t, 1, down.failed)
	ev.panics(t, 2)
}

type frailClient struct {
	host.DownstreamEvents
	failed int
}

func (f *frailClient) Closed(bool) { panic("closed") }
func (f *frailClient) Failed()     { f.failed++; panic("failed") }

func TestClosedClientsLeaveNothing(t *testing.T) {
	w := &worker{}
	w.carriers.w, w.wake.w, w.lingering.w = w, w, w
	clients := make([]*client, 5)
	for i := range clients {
		clients[i] = &client{w: w}
		w.lingering.add(clients[i])
		w.lingering.add(clients[i])
	}
	for n, i := range []int{2, 4, 0, 3, 1} {
		w.lingering.remove(clients[i])
		w.lingering.remove(clients[i])
		require.Len(t, w.lingering.clients, len(clients)-1-n)
		for place, c := range w.lingering.clients {
			require.Equal(t, place+1, c.place)
		}
	}
}

func TestBuffersThatAreNotNeededAreDropped(t *testing.T) {
	bs := &buffers{}
	take := func(n int) {
		var got []*host.Buffer
		for range n {
			got = append(got, bs.get(100))
		}
		for _, b := range got {
			b.Free()
		}
	}
	take(100)
	for _, tc := range []struct{ used, left int }{{0, 100}, {30, 30}, {10, 10}, {10, 10}, {0, 0}, {0, 0}} {
		take(tc.used)
		bs.trim()
		require.Len(t, bs.free[0], tc.left, fmt.Sprint(tc))
	}
	runtime.GC() // which complains of what is still pinned
}
