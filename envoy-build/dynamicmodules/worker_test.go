package dynamicmodules

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

func TestAPanicDoesNotEndTheWorkBehindIt(t *testing.T) {
	w := newWorker(0, nil)
	panics.Take()
	done := 0
	for i := range 4 {
		w.Post(func() {
			if done++; i%2 == 0 {
				panic(i)
			}
		})
	}
	w.run()
	require.Equal(t, 4, done)
	require.EqualValues(t, 2, panics.Take())

	ev := &frail{}
	c := &client{w: w, ev: ev}
	c.linger = w.lingering.Add(c, c.linger)
	c.closed(true, true)
	require.True(t, c.gone)
	require.NotSame(t, c.linger, w.lingering.Add(c, c.linger), "it lingered no more")
	require.Equal(t, 1, ev.failed)
	require.EqualValues(t, 2, panics.Take())
}

// frail panics in its last events.
type frail struct {
	host.DownstreamEvents
	failed int
}

func (f *frail) Closed(bool) { panic("closed") }
func (f *frail) Aborted()    { f.failed++; panic("failed") }

func TestConfigurationsHaveTheirIDs(t *testing.T) {
	var configs configTable
	require.Nil(t, configs.get(0))
	a, b := &filterConfig{carrier: config.Carrier{Path: "a"}}, &filterConfig{carrier: config.Carrier{Path: "b"}}
	first, second := configs.add(a), configs.add(b)
	require.Greater(t, second, first, "later ones have higher ids")
	configs.remove(first)
	require.Nil(t, configs.get(first))
	require.Same(t, b, configs.get(second))
	require.Greater(t, configs.add(a), second, "also after others have gone")
}

func TestALoadBalancerIsReplaced(t *testing.T) {
	var table balancerTable
	at := clusterOn{cluster: "c"}
	require.Nil(t, table.on(at))
	table.remove(7)
	first, old := table.add(at)
	second, newer := table.add(at)
	require.Same(t, newer, table.on(at), "while the old one is still there")
	require.Same(t, old, table.get(first))
	table.remove(first)
	require.Same(t, newer, table.on(at))
	require.Nil(t, table.get(first))
	require.Nil(t, table.on(clusterOn{cluster: "d"}))
	table.remove(second)
	require.Nil(t, table.on(at))
	require.Empty(t, table.newest)
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
