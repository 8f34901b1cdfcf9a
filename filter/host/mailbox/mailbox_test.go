package mailbox_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/host/mailbox"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func TestItemsComeInTheirOrder(t *testing.T) {
	woken := 0
	b := mailbox.New[int](func() { woken++ })
	var got []int
	run := func() { b.Run(func(i int) { got = append(got, i) }) }
	run()
	require.Empty(t, got)
	for i := range 3 {
		b.Post(i)
	}
	require.Equal(t, 1, woken, "the first wakes the worker for all")
	run()
	require.Equal(t, []int{0, 1, 2}, got)
	run()
	require.Equal(t, []int{0, 1, 2}, got, "once")
	b.Post(3)
	require.Equal(t, 2, woken)
	run()
	require.Equal(t, []int{0, 1, 2, 3}, got)
}

// TestWhatIsPostedMeanwhileComesNext: an item that posts itself again does not keep
// the worker for ever.
func TestWhatIsPostedMeanwhileComesNext(t *testing.T) {
	woken, runs := 0, 0
	b := mailbox.New[int](func() { woken++ })
	b.Post(1)
	for range 3 {
		b.Run(func(i int) { runs++; b.Post(i) })
	}
	require.Equal(t, 3, runs)
	require.Equal(t, 4, woken)
}

func TestAPanicLosesNothingBehindIt(t *testing.T) {
	woken := 0
	b := mailbox.New[int](func() { woken++ })
	for i := range 5 {
		b.Post(i)
	}
	var got []int
	run := func() (panicked any) {
		defer func() { panicked = recover() }()
		b.Run(func(i int) {
			if got = append(got, i); i%2 == 1 {
				if i < 5 {
					b.Post(10 + i)
				}
				panic(i)
			}
		})
		return nil
	}
	require.Equal(t, 1, run())
	require.Equal(t, []int{0, 1}, got)
	require.Equal(t, 3, woken, "by what was posted meanwhile, and for what is left")
	require.Equal(t, 3, run())
	require.Equal(t, []int{0, 1, 2, 3}, got)
	require.Equal(t, 11, run())
	require.Equal(t, 13, run())
	require.Nil(t, run())
	require.Equal(t, []int{0, 1, 2, 3, 4, 11, 13}, got, "what came later is behind what was left")
}

func TestAnyGoroutineMayPost(t *testing.T) {
	wake := make(chan struct{}, 1)
	b := mailbox.New[int](func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	const posters, each = 4, 1000
	var all sync.WaitGroup
	for p := range posters {
		all.Go(func() {
			for i := range each {
				b.Post(p*each + i)
			}
		})
	}
	last, n := make([]int, posters), 0
	for n < posters*each {
		<-wake
		b.Run(func(i int) {
			p := i / each
			require.Equal(t, p*each+last[p], i)
			last[p]++
			n++
		})
	}
	all.Wait()
}

func TestRunningAllocatesNothing(t *testing.T) {
	b := mailbox.New[int](func() {})
	sum := 0
	add := func(i int) { sum += i }
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		for i := range 10 {
			b.Post(i)
		}
		b.Run(add)
	}))
}
