package adaptiveconcurrency

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/internal/raced"
	adaptivev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/adaptive_concurrency/v1alpha"
)

const (
	ms   = time.Millisecond
	unit = 10 * ms
)

// usualPolicy is that of a configuration that says nothing.
func usualPolicy(t *testing.T) *policy {
	a, err := anypb.New(&adaptivev1alpha.AdaptiveConcurrency{GradientControllerConfig: &adaptivev1alpha.GradientControllerConfig{}})
	require.NoError(t, err)
	c, err := parse(a, &filter.Env{})
	require.NoError(t, err)
	return &c.(*config).policy
}

// TestGoodput is as good as that of the best limit that one could have set.
func TestGoodput(t *testing.T) {
	for cores, unit := range map[int]time.Duration{2: 5 * ms, 16: 20 * ms, 64: 80 * ms} {
		for _, load := range []float64{0.5, 1.2, 2, 3} {
			t.Run(fmt.Sprintf("%d cores, load %v", cores, load), func(t *testing.T) {
				t.Parallel()
				s := &scenario{
					cores: cores, service: always(unit), load: steady(load), unit: unit, deadline: 10 * unit,
					lasts: 40 * time.Second, warm: 5 * time.Second,
				}
				got, best := s.by(usualPolicy(t)), s.best()
				t.Logf("%.3f of the best; limits %d to %d", float64(got.good)/float64(best), got.low, got.high)
				least := 0.95
				if load == 1.2 { // what is refused in one moment could be served in the next
					least = 0.93
				}
				require.GreaterOrEqual(t, float64(got.good)/float64(best), least)
				if load < 1 {
					require.Less(t, float64(got.refused)/float64(got.good), 0.002)
				}
			})
		}
	}
}

// TestTimesOfServiceChange: the limit finds out that it is no queue.
func TestTimesOfServiceChange(t *testing.T) {
	changes := map[string]func(now time.Duration) time.Duration{
		"twice":       func(now time.Duration) time.Duration { return unit * (1 + min(1, now/(30*time.Second))) },
		"five times":  func(now time.Duration) time.Duration { return unit * (1 + 4*min(1, now/(30*time.Second))) },
		"less":        func(now time.Duration) time.Duration { return unit / (1 + 2*min(1, now/(30*time.Second))) },
		"up and down": func(now time.Duration) time.Duration { return unit * (1 + 2*(now/(20*time.Second)%2)) },
		"a cold server": func(now time.Duration) time.Duration {
			return unit + time.Duration(9*float64(unit)*math.Exp(-now.Seconds()/5))
		},
	}
	for name, service := range changes {
		for _, cores := range []int{8} {
			t.Run(fmt.Sprint(name, " ", cores), func(t *testing.T) {
				t.Parallel()
				s := &scenario{cores: cores, service: service, load: steady(3), unit: unit, deadline: 30 * unit, lasts: 90 * time.Second}
				got, best := s.by(usualPolicy(t)), s.best()
				t.Logf("%.3f of the best; limits %d to %d", float64(got.good)/float64(best), got.low, got.high)
				require.GreaterOrEqual(t, float64(got.good)/float64(best), 0.93, "until the limit has found out")
			})
		}
	}
}

// TestServersThatRefuse keep the limit where they do so.
func TestServersThatRefuse(t *testing.T) {
	raced.Skip(t)
	s := &scenario{cores: 16, service: always(unit), load: steady(2), unit: unit, refuses: 24, deadline: 30 * unit, lasts: time.Minute, warm: 5 * time.Second}
	got := s.by(usualPolicy(t))
	require.GreaterOrEqual(t, float64(got.good)/float64(s.best()), 0.95)
	require.Less(t, got.high, 32)
	require.Greater(t, got.low, 16)
}

// TestTheLimitStaysWhenItIsNotReached, whatever the times, and after a time in which it
// was.
func TestTheLimitStaysWhenItIsNotReached(t *testing.T) {
	raced.Skip(t)
	p := usualPolicy(t)
	for _, load := range []float64{0.001, 0.05, 0.2} {
		got := (&scenario{
			cores: 16, load: steady(load), unit: unit, deadline: time.Minute, lasts: 5 * time.Minute,
			service: func(now time.Duration) time.Duration { return unit * (1 + now/(20*time.Second)%2) },
		}).by(p)
		require.GreaterOrEqual(t, got.low, 20, "load %v", load)
		require.LessOrEqual(t, got.high, 40, "load %v", load)
		require.Less(t, got.refused, 100, "in bursts")
	}
	busy := &scenario{cores: 16, load: steady(2), service: always(unit), unit: unit, deadline: time.Minute, lasts: 30 * time.Second}
	require.Greater(t, int(busy.by(p).limit.estimate), 20)
	busy.lasts = 10 * time.Minute
	busy.load = func(now time.Duration) float64 {
		switch {
		case now < 30*time.Second:
			return 2
		case now < time.Minute:
			return 0.01
		}
		return 0.3
	}
	require.GreaterOrEqual(t, int(busy.by(p).limit.estimate), 20)
}

// TestAServerThatFallsSilent gets little until it answers again.
func TestAServerThatFallsSilent(t *testing.T) {
	raced.Skip(t)
	s := &scenario{
		cores: 16, load: steady(2), unit: unit, deadline: time.Second, lasts: 3 * time.Minute, warm: 20 * time.Second,
		service: func(now time.Duration) time.Duration {
			if now > 30*time.Second && now < 31*time.Second {
				return time.Minute
			}
			return unit
		},
	}
	got := s.by(usualPolicy(t))
	require.Less(t, got.low, 8)
	require.Greater(t, int(got.limit.estimate), 16)
}

// TestTheBaseMayBeFixed.
func TestTheBaseMayBeFixed(t *testing.T) {
	p := usualPolicy(t)
	p.measure, p.fixed = 0, 7*ms
	s := &scenario{cores: 16, load: steady(2), unit: unit, service: always(unit), deadline: 10 * unit, lasts: 20 * time.Second, warm: 5 * time.Second}
	got := s.by(p)
	require.GreaterOrEqual(t, float64(got.good)/float64(s.best()), 0.95)
	require.Zero(t, got.limit.epoch.Load())
}

// bed is a limit whose requests a test ends by hand.
type bed struct {
	limit
	t   *testing.T
	p   *policy
	now time.Duration
}

func newBed(t *testing.T) *bed {
	b := &bed{t: t, p: usualPolicy(t), now: time.Hour}
	b.start(b.p)
	return b
}

// round has n requests answered that the server had for took, and that waited before.
func (b *bed) round(n int, o outcome, waited, took time.Duration) (refused int) {
	var all []*place
	for range n {
		pl := new(place)
		if !b.take(pl, b.p, 0, b.now) {
			refused++
			continue
		}
		all = append(all, pl)
	}
	b.now += waited + took
	for _, pl := range all {
		pl.free(b.now, o, took, func() uint64 { return 0 })
	}
	return refused
}

// TestDelaysOfFiltersAreNoReason for a limit to move: of what has the places the server
// knows nothing.
func TestDelaysOfFiltersAreNoReason(t *testing.T) {
	b := newBed(t)
	refused := 0
	for range 1000 {
		refused += b.round(30, answered, 500*ms, 10*ms)
	}
	require.NotZero(t, refused)
	require.EqualValues(t, 20, b.allowed.Load())
	for range 1000 {
		b.round(30, untold, 0, 10*ms) // aborted behind this filter
	}
	require.EqualValues(t, 20, b.allowed.Load())
	require.Zero(t, b.epoch.Load())
}

// TestAMeasurementThatGetsNoRequests is given up.
func TestAMeasurementThatGetsNoRequests(t *testing.T) {
	b := newBed(t)
	for b.level == 0 {
		b.round(30, answered, 0, 10*ms)
	}
	require.Less(t, b.allowed.Load(), int64(20))
	for range 40 {
		b.now += 10 * time.Second
		b.round(1, answered, 0, 10*ms)
	}
	require.Zero(t, b.level)
	require.GreaterOrEqual(t, b.allowed.Load(), int64(20))
}

// TestRequestsFromBeforeAMeasurement say nothing to it.
func TestRequestsFromBeforeAMeasurement(t *testing.T) {
	b := newBed(t)
	old := new(place)
	require.True(t, b.take(old, b.p, 3, b.now))
	for b.level == 0 {
		b.round(30, answered, 0, 10*ms)
	}
	old.free(b.now, answered, time.Hour, nil)
	b.stripes[3].Load().drain(&b.window)
	require.Zero(t, b.window.answers)
	require.Zero(t, b.inFlight.Load())
}

// TestBounds are those of the policy of the moment.
func TestBounds(t *testing.T) {
	b := newBed(t)
	for range 2000 {
		b.round(100, congested, 0, 10*ms)
	}
	require.LessOrEqual(t, b.allowed.Load(), int64(5))
	low := *b.p
	b.p = &low
	low.most = 2
	require.Equal(t, 8, b.round(10, answered, 0, 10*ms))
	low.most, low.least = 1000, 7
	for range 100 {
		b.round(100, congested, 0, 10*ms)
	}
	require.EqualValues(t, 7, b.allowed.Load())
}

// TestNoMoreThanTheLimit, however many workers take at once.
func TestNoMoreThanTheLimit(t *testing.T) {
	p := usualPolicy(t)
	l := &limit{}
	l.start(p)
	l.nextLook.Store(math.MaxInt64)
	var wg sync.WaitGroup
	for worker := range 12 {
		wg.Go(func() {
			for range 20_000 {
				pl := new(place)
				if !l.take(pl, p, worker, 0) {
					continue
				}
				if n := l.inFlight.Load(); n > 20 {
					t.Errorf("%d are in flight", n)
				}
				pl.free(0, answered, 0, nil)
			}
		})
	}
	wg.Wait()
	require.Zero(t, l.inFlight.Load())
}

// TestWorkersMerge: what any of them has seen counts.
func TestWorkersMerge(t *testing.T) {
	p := usualPolicy(t)
	var wg sync.WaitGroup
	l := &limit{}
	l.start(p)
	l.nextLook.Store(math.MaxInt64)
	for worker := range stripes + 1 {
		wg.Go(func() {
			for i := range 1000 {
				pl := new(place)
				for !l.take(pl, p, worker, 0) {
				}
				pl.free(time.Duration(i), []outcome{answered, congested, untold}[i%3], ms, nil)
			}
		})
	}
	wg.Wait()
	for i := range l.stripes {
		l.stripes[i].Load().drain(&l.window)
		l.stripes[i].Load().drain(&l.window)
	}
	require.Equal(t, (stripes+1)*334, l.window.answers)
	require.Equal(t, (stripes+1)*333, l.window.congested)
	require.EqualValues(t, (stripes+1)*1000*ms, l.window.served)
}

func TestPercentiles(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, mean := range []float64{3e3, 1e6, 50e6, 3e9} {
		s, w := &stripe{}, &window{}
		var all []float64
		for range 10_000 {
			d := time.Duration(rnd.ExpFloat64() * mean)
			s.add(answered, d, d)
			all = append(all, float64(d))
		}
		s.drain(w)
		slices.Sort(all)
		for _, q := range []float64{0.01, 0.5, 0.9, 0.999, 1} {
			want := all[min(len(all)-1, int(q*float64(len(all))))]
			require.InEpsilon(t, want+1024, w.percentile(q)+1024, 0.12)
		}
	}
	w := &window{}
	require.Zero(t, w.percentile(0.5))
	s := &stripe{}
	for _, d := range []time.Duration{-time.Hour, 0, 1, time.Hour, math.MaxInt64} {
		s.add(answered, d, d)
	}
	s.drain(w)
	require.Equal(t, 5, w.answers)
	for i := range buckets - 1 {
		from, width := boundsOf(i)
		require.Equal(t, i, bucketOf(time.Duration(from)))
		require.Equal(t, i, bucketOf(time.Duration(from+width)-1))
	}
}

func TestRequestsAllocateNothing(t *testing.T) {
	p := usualPolicy(t)
	l := &limit{}
	l.start(p)
	now := time.Hour
	pl := new(place)
	random := func() uint64 { return 1 }
	require.Zero(t, raced.AllocsPerRun(t, 10_000, func() {
		now += ms
		l.take(pl, p, 1, now)
		now += ms
		pl.free(now, answered, ms, random)
	}))
}

func BenchmarkRequest(b *testing.B) {
	p := &policy{initial: 20, least: 3, most: 1000, interval: 100 * ms, measure: 30 * time.Second, requests: 50, percentile: 0.5, tolerance: 1.5}
	l := &limit{}
	l.start(p)
	now := time.Hour
	pl := new(place)
	random := func() uint64 { return 1 }
	for b.Loop() {
		l.take(pl, p, 1, now)
		now += 10 * time.Microsecond
		pl.free(now, answered, 10*time.Microsecond, random)
	}
}
