package timer

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTimersFireInTimeAndOnce(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	now := 7 * time.Hour
	w := New(now)
	type probe struct {
		Timer
		at      time.Duration
		fired   int
		stopped bool
	}
	var all []*probe
	for step := 0; step < 3000; step++ {
		p := &probe{at: now + time.Duration(rng.Int64N(int64(40*time.Second)))}
		p.Fire = func() {
			p.fired++
			require.GreaterOrEqual(t, now, p.at, "early")
			require.LessOrEqual(t, now-p.at, 60*time.Millisecond+granularity, "late")
		}
		w.Start(&p.Timer, p.at)
		all = append(all, p)
		if q := all[rng.IntN(len(all))]; rng.IntN(3) == 0 && q.Running() {
			w.Stop(&q.Timer)
			q.stopped = true
		}
		if q := all[rng.IntN(len(all))]; rng.IntN(3) == 0 && q.Running() {
			q.at = now + time.Duration(rng.Int64N(int64(20*time.Second)))
			w.Start(&q.Timer, q.at)
		}
		now += time.Duration(rng.Int64N(int64(50 * time.Millisecond)))
		if next, ok := w.Next(); ok {
			for _, q := range all {
				if q.Running() {
					require.GreaterOrEqual(t, q.at+granularity, next-granularity, "Next is too late")
				}
			}
		}
		w.Advance(now)
	}
	now += time.Minute
	for _, p := range all {
		if p.Running() {
			p.Fire = func() { p.fired++ }
		}
	}
	w.Advance(now)
	for _, p := range all {
		want := 1
		if p.stopped {
			want = 0
		}
		require.Equal(t, want, p.fired)
	}
	_, ok := w.Next()
	require.False(t, ok)
}

func TestATimerStartedInFireWaitsForTheNextAdvance(t *testing.T) {
	w := New(0)
	n := 0
	var tm Timer
	tm.Fire = func() {
		n++
		w.Start(&tm, 0)
	}
	w.Start(&tm, time.Millisecond)
	w.Advance(granularity)
	require.Equal(t, 1, n)
	w.Advance(granularity)
	require.Equal(t, 1, n)
	w.Advance(2 * granularity)
	require.Equal(t, 2, n)
}

func TestFireMayStopItsNeighbour(t *testing.T) {
	w := New(0)
	var a, b Timer
	fired := ""
	a.Fire = func() { fired += "a"; w.Stop(&b) }
	b.Fire = func() { fired += "b"; w.Stop(&a) }
	w.Start(&a, time.Millisecond)
	w.Start(&b, time.Millisecond)
	w.Advance(time.Second)
	require.Equal(t, "a", fired)
}

// TestAPanicInFireStopsNoOtherTimer: those that were due fire at the next Advance.
func TestAPanicInFireStopsNoOtherTimer(t *testing.T) {
	w := New(0)
	fired := 0
	var ts [3]Timer
	for i := range ts {
		ts[i].Fire = func() {
			if fired++; i == 0 {
				panic("boom")
			}
		}
		w.Start(&ts[i], time.Second)
	}
	require.Panics(t, func() { w.Advance(time.Second) })
	require.Equal(t, 1, fired)
	at, ok := w.Next()
	require.True(t, ok)
	require.LessOrEqual(t, at, time.Second+granularity)
	w.Advance(at)
	w.Advance(time.Second + granularity)
	require.Equal(t, 3, fired)
	_, ok = w.Next()
	require.False(t, ok)
}
