package tokenbucket_test

import (
	"math"
	"math/big"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/tokenbucket"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func bucket(most, perFill uint32, interval time.Duration) *tokenbucket.Bucket {
	return tokenbucket.New(tokenbucket.NewRate(tokenbucket.Limit{Max: most, PerFill: perFill, Interval: interval}))
}

// takes takes single tokens until there is none, and returns how many there were.
func takes(b *tokenbucket.Bucket, now time.Duration) (n int) {
	for b.Take(now, 1) {
		n++
	}
	return n
}

// TestAnHourOfEightWorkers: each has a time of its own, a little behind, and they want
// far more than there is. They get all of it, and nothing else.
func TestAnHourOfEightWorkers(t *testing.T) {
	for _, start := range []time.Duration{0, time.Hour, 3 * 365 * 24 * time.Hour} {
		b := bucket(5, 5, time.Second)
		rng := rand.New(rand.NewPCG(1, 2))
		granted := 0
		for at := time.Duration(0); at <= time.Hour; at += 10 * time.Millisecond {
			for range 8 {
				behind := time.Duration(rng.Int64N(int64(20 * time.Millisecond)))
				if b.Take(start+max(0, at-behind), 1) {
					granted++
				}
			}
		}
		granted += takes(b, start+time.Hour)
		require.Equal(t, 5+5*3600, granted)
	}
}

// TestRatesThatDoNotDivide: what comes in a long time is exact, whatever the rate.
func TestRatesThatDoNotDivide(t *testing.T) {
	for _, l := range []tokenbucket.Limit{
		{Max: 3, PerFill: 3, Interval: time.Second},
		{Max: 2, PerFill: 1, Interval: 24 * time.Hour},
		{Max: 7, PerFill: 7_000_001, Interval: time.Hour},
		{Max: 1000, PerFill: 999_999_937, Interval: 365 * 24 * time.Hour},
		{Max: 100_000, PerFill: 17, Interval: 13 * time.Second},
		{Max: math.MaxUint32, PerFill: 1<<20 + 1, Interval: 20 * time.Millisecond},
	} {
		b := tokenbucket.New(tokenbucket.NewRate(l))
		require.True(t, b.Take(0, l.Max))
		require.False(t, b.Take(0, 1))
		// What comes fits into the bucket, again and again.
		at, granted, came := time.Duration(0), new(big.Int), new(big.Int)
		step := max(1, time.Duration(float64(l.Interval)/float64(l.PerFill)*float64(l.Max-1)*0.9))
		for range 2000 {
			at += step
			for n := l.Max; n > 0; n /= 2 {
				for b.Take(at, n) {
					granted.Add(granted, big.NewInt(int64(n)))
				}
			}
		}
		came.Mul(big.NewInt(int64(at)), big.NewInt(int64(l.PerFill)))
		came.Div(came, big.NewInt(int64(l.Interval)))
		behind := came.Sub(came, granted).Int64()
		require.True(t, behind == 0 || behind == 1, "%+v: %d behind", l, behind)
		if behind == 1 {
			require.True(t, b.Take(at+1, 1), "%+v: later than a nanosecond", l)
		}
	}
}

// TestFill is when an emptied bucket is full, give or take what is rounded.
func TestFill(t *testing.T) {
	for _, l := range []tokenbucket.Limit{
		{Max: 3, PerFill: 3, Interval: time.Second},
		{Max: 2, PerFill: 1, Interval: 24 * time.Hour},
		{Max: 7, PerFill: 7_000_001, Interval: time.Hour},
		{Max: 100_000, PerFill: 17, Interval: 13 * time.Second},
		{Max: math.MaxUint32, PerFill: 1<<20 + 1, Interval: 20 * time.Millisecond},
	} {
		r := tokenbucket.NewRate(l)
		b := tokenbucket.New(r)
		require.True(t, b.Take(0, l.Max))
		require.InEpsilon(t, float64(l.Max)*float64(l.Interval)/float64(l.PerFill), float64(r.Fill()), 1e-6, "%+v", l)
		require.False(t, b.Full(r.Fill()-5), "%+v", l)
		require.True(t, b.Full(r.Fill()+5), "%+v", l)
	}
	require.EqualValues(t, math.MaxInt64, tokenbucket.NewRate(tokenbucket.Limit{Max: 1}).Fill())
	require.Zero(t, tokenbucket.NewRate(tokenbucket.Limit{PerFill: 1, Interval: time.Second}).Fill())
}

func TestIdleTimeFillsNoMoreThanTheBucket(t *testing.T) {
	b := bucket(5, 5, time.Second)
	require.Equal(t, 5, takes(b, 0))
	for _, idle := range []time.Duration{time.Second, time.Minute, 1000 * time.Hour} {
		require.Equal(t, 5, takes(b, idle), "after %v", idle)
		require.Equal(t, 0, takes(b, idle+200*time.Millisecond-1), "what comes next takes as long as ever")
		require.Equal(t, 1, takes(b, idle+200*time.Millisecond))
	}
}

// TestNeverEarly: a token takes 1000 ns and a little more.
func TestNeverEarly(t *testing.T) {
	b := bucket(1, 1009, 1009*1000+1)
	for at := time.Duration(0); at < time.Second; at += 99_991 {
		require.True(t, b.Take(at, 1))
		require.False(t, b.Take(at+1000, 1))
		require.True(t, b.Take(at+1002, 1))
	}
}

// TestTokensComeEvenly, not all at the end of an interval, and halves are kept.
func TestTokensComeEvenly(t *testing.T) {
	b := bucket(2, 2, 30*time.Second)
	require.Equal(t, 2, takes(b, 0))
	require.Equal(t, 0, takes(b, 15*time.Second-1))
	require.Equal(t, 1, takes(b, 22*time.Second))
	require.Equal(t, 1, takes(b, 30*time.Second))
	require.Equal(t, 0, takes(b, 45*time.Second-1))
}

func TestSeveralAtOnce(t *testing.T) {
	b := bucket(10, 10, time.Second)
	require.False(t, b.Take(0, 11), "more than it ever holds")
	require.True(t, b.Take(0, 7))
	require.False(t, b.Take(0, 4))
	require.True(t, b.Take(0, 3))
	require.False(t, b.Full(time.Second-1))
	require.True(t, b.Full(time.Second))
	b.Return(3)
	require.Equal(t, 3, takes(b, 0))
	b.Return(10)
	require.True(t, b.Full(0))
	require.Equal(t, 10, takes(b, time.Second), "what was given back is in it only once")
}

func TestNothingAndEverything(t *testing.T) {
	for _, at := range []time.Duration{0, time.Hour, math.MaxInt64} {
		require.False(t, bucket(0, 5, time.Second).Take(at, 1), "none")
		require.Equal(t, 3, takes(bucket(3, 0, time.Second), at), "once")
		require.Equal(t, 3, takes(bucket(3, 1, 0), at), "once")
	}
	b := bucket(math.MaxUint32, math.MaxUint32, time.Millisecond)
	for at := range time.Duration(1000) {
		require.True(t, b.Take(at*5*time.Second, math.MaxUint32))
	}
	require.False(t, b.Take(999*5*time.Second+999, 1000), "a token a nanosecond")
	require.True(t, b.Take(999*5*time.Second+1000, 1000))
	require.True(t, bucket(1, 1, math.MaxInt64).Take(math.MinInt64, 1))
}

// TestAClockThatIsPutBack: nothing is granted twice, and the time until the clock would
// have come again is not waited for.
func TestAClockThatIsPutBack(t *testing.T) {
	const now = 5 * time.Hour
	b := bucket(5, 5, time.Second)
	require.Equal(t, 5, takes(b, now))
	require.Equal(t, 0, takes(b, now-time.Second), "a worker that is late")
	require.Equal(t, 0, takes(b, now-10*time.Second))
	require.Equal(t, 1, takes(b, now+200*time.Millisecond), "which takes nothing from the others")

	require.Equal(t, 0, takes(b, 2*time.Hour), "the clock is put back")
	require.Equal(t, 1, takes(b, 2*time.Hour+200*time.Millisecond))
	require.Equal(t, 5, takes(b, 3*time.Hour))
	require.Equal(t, 0, takes(b, -time.Hour))
	require.Equal(t, 5, takes(b, 0))
	require.Equal(t, 5, takes(b, now), "the clock is put forward")

	require.False(t, b.Full(time.Hour))
	require.True(t, b.Full(time.Hour+time.Second), "who looks only does not wait either")
}

// model is the same in fractions.
type model struct {
	l      tokenbucket.Limit
	tokens *big.Rat
	at     time.Duration
}

func (m *model) pass(now time.Duration) {
	came := new(big.Rat).Mul(big.NewRat(int64(m.l.PerFill), int64(m.l.Interval)), big.NewRat(int64(now-m.at), 1))
	m.at = now
	if m.tokens.Add(m.tokens, came); m.tokens.Cmp(big.NewRat(int64(m.l.Max), 1)) > 0 {
		m.tokens.SetInt64(int64(m.l.Max))
	}
}

// TestAgainstAModel: what is granted is there, and what is refused is not, or would not
// have been a nanosecond earlier.
func TestAgainstAModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	pick := func(bits int) uint32 { return 1 + uint32(rng.Uint64N(1<<(1+rng.IntN(bits)))) }
	for range 300 {
		l := tokenbucket.Limit{Max: pick(31), PerFill: pick(24), Interval: time.Millisecond * time.Duration(pick(30))}
		if rng.IntN(2) == 0 { // that of people
			l = tokenbucket.Limit{Max: pick(6), PerFill: pick(3), Interval: time.Second * time.Duration(pick(6))}
		}
		if float64(l.PerFill) > float64(l.Interval) {
			continue
		}
		now := time.Duration(rng.Int64N(int64(1000 * time.Hour)))
		b, m := tokenbucket.New(tokenbucket.NewRate(l)), &model{l, big.NewRat(int64(l.Max), 1), now}
		each := float64(l.Interval) / float64(l.PerFill)
		for range 200 {
			switch rng.IntN(4) {
			case 0:
				now += time.Duration(rng.Float64() * min(each*float64(l.Max)*2, 1e15))
			case 1:
				now += time.Duration(math.Ceil(each))
			case 2:
				now += time.Duration(rng.Float64() * each)
			}
			m.pass(now)
			n := 1 + uint32(rng.Uint64N(1<<rng.IntN(20)))
			want := big.NewRat(int64(n), 1)
			if b.Take(now, n) {
				require.GreaterOrEqual(t, m.tokens.Cmp(want), 0, "%+v: %d of %v", l, n, m.tokens)
				m.tokens.Sub(m.tokens, want)
			} else if n <= l.Max {
				early := new(big.Rat).Sub(m.tokens, big.NewRat(int64(l.PerFill), int64(l.Interval)))
				require.Negative(t, early.Cmp(want), "%+v: not %d of %v", l, n, m.tokens)
			}
		}
	}
}

// TestTakenAtOnce by goroutines at the same time, all of which return some.
func TestTakenAtOnce(t *testing.T) {
	b := bucket(1000, 1000, time.Second)
	var now, granted atomic.Int64
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(w)))
			for range 20_000 {
				at := time.Duration(now.Add(int64(20 * time.Microsecond))) // nobody is 10 s late
				n := 1 + rng.Uint32N(3)
				if !b.Take(at, n) {
					continue
				}
				if rng.IntN(4) == 0 {
					b.Return(n)
				} else {
					granted.Add(int64(n))
				}
			}
		})
	}
	wg.Wait()
	end := time.Duration(now.Load())
	rest := takes(b, end)
	most := 1000 + int64(end/time.Millisecond)
	total := granted.Load() + int64(rest)
	require.LessOrEqual(t, total, most)
	require.GreaterOrEqual(t, total, most-1000, "all but what came while it was full")
}

func TestTakingAllocatesNothing(t *testing.T) {
	b, now := bucket(5, 7_000_001, time.Hour), time.Duration(0)
	require.Zero(t, raced.AllocsPerRun(t, 1000, func() {
		now += 300 * time.Microsecond
		b.Take(now, 1)
		b.Full(now)
	}))
}

func BenchmarkTake(b *testing.B) {
	for name, l := range map[string]tokenbucket.Limit{
		"granted": {Max: math.MaxUint32, PerFill: 1_000_000_000, Interval: time.Second},
		"refused": {Max: 1, PerFill: 1, Interval: time.Hour},
		"uneven":  {Max: math.MaxUint32, PerFill: 999_999_937, Interval: time.Second},
	} {
		b.Run(name, func(b *testing.B) {
			bucket, now := tokenbucket.New(tokenbucket.NewRate(l)), time.Duration(0)
			for b.Loop() {
				now += 100
				bucket.Take(now, 1)
			}
		})
	}
}

func BenchmarkTakeInParallel(b *testing.B) {
	bucket := bucket(math.MaxUint32, 1_000_000_000, time.Second)
	b.RunParallel(func(pb *testing.PB) {
		for now := time.Duration(0); pb.Next(); now += 100 {
			bucket.Take(now, 1)
		}
	})
}
