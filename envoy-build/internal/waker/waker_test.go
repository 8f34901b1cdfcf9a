package waker

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// filter is one whose events are counted.
type filter struct {
	t  *testing.T
	mu sync.Mutex
	// made, deleted and events are how many schedulers, and their events.
	made, deleted, events int
}

func (f *filter) Scheduler() Scheduler { f.made++; return f }
func (f *filter) Delete()              { f.deleted++ }
func (f *filter) Commit() {
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Greater(f.t, f.made, f.deleted, "an event is lost that a dead filter is to bring")
	f.events++
}

func TestOneEventWhateverIsAskedFor(t *testing.T) {
	var k Waker
	f := &filter{t: t}
	require.Nil(t, k.Filter())
	k.Use(f)
	require.Equal(t, Filter(f), k.Filter())
	require.Zero(t, f.events)
	k.Wake()
	k.Wake()
	require.Equal(t, 1, f.events)
	require.False(t, k.Due(), "the filter brings it")
	k.Taken()
	k.Wake()
	require.Equal(t, 2, f.events)
}

// TestAnotherFilterTakesOver: also what the one that died was to bring.
func TestAnotherFilterTakesOver(t *testing.T) {
	var k Waker
	a, b, c := &filter{t: t}, &filter{t: t}, &filter{t: t}
	k.Wake()
	require.True(t, k.Due(), "nobody can bring it: the next event does what is due")
	k.Use(a)
	require.False(t, k.Due())
	require.Equal(t, 1, a.events)
	k.Use(b)
	require.Zero(t, b.made, "one is enough")
	require.False(t, k.Gone(b))
	require.True(t, k.Gone(a))
	require.Equal(t, 1, a.deleted)
	require.True(t, k.Due())
	k.Use(c)
	require.Equal(t, 1, c.events)
	k.Taken()
	require.True(t, k.Gone(c))
	require.False(t, k.Due())
	require.False(t, k.Gone(c))
	k.Use(b)
	require.Zero(t, b.events, "nothing is asked for")
}

func TestATimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k Waker
		f := &filter{t: t}
		k.Use(f)
		advance := func(d time.Duration) int {
			time.Sleep(d)
			synctest.Wait()
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.events
		}
		k.After(-1) // of none
		k.After(time.Second)
		require.Equal(t, 0, advance(time.Second+timerSlack-1))
		require.Equal(t, 1, advance(1))
		k.Taken()
		k.After(time.Second)
		k.After(time.Minute) // in its place
		require.Equal(t, 1, advance(2*time.Second))
		k.After(0)
		require.Equal(t, 2, advance(timerSlack))
		k.Taken()
		k.After(time.Second)
		k.After(-1)
		require.Equal(t, 2, advance(time.Hour))
	})
}

// TestWakingWhileFiltersComeAndGo: an event that was asked for comes, or is due.
func TestWakingWhileFiltersComeAndGo(t *testing.T) {
	var k Waker
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 1000 {
				k.Wake()
			}
		})
	}
	for range 1000 {
		f := &filter{t: t}
		k.Use(f)
		k.Taken()
		require.True(t, k.Gone(f))
	}
	all.Wait()
	k.Wake()
	require.True(t, k.Due())
}
