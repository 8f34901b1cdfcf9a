package adaptiveconcurrency

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// stripes is how many workers count in memory of their own. Beyond that some share one.
const stripes = 8

// Times are counted in buckets, eight for each power of two from 1 µs to 2 min.
const (
	perPower = 8
	buckets  = 26 * perPower
	unitBits = 10 // of nanoseconds, which do not matter
)

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0)) >> unitBits
	if v < perPower {
		return int(v)
	}
	e := bits.Len64(v) - 4
	return min((e+1)*perPower+int(v>>e)%perPower, buckets-1)
}

// boundsOf returns the least time of a bucket and how much it spans, in nanoseconds.
func boundsOf(i int) (from, width float64) {
	if i < perPower {
		return float64(i << unitBits), 1 << unitBits
	}
	e := i/perPower - 1 + unitBits
	return float64(int64(perPower+i%perPower) << e), float64(int64(1) << e)
}

// stripe is what a worker has seen of a limit's requests since somebody looked.
type stripe struct {
	times              [buckets]atomic.Uint32
	congested, refused atomic.Uint32
	served, held       atomic.Int64
}

// stripe returns that of a worker.
func (l *limit) stripe(worker int) *stripe {
	p := &l.stripes[worker%stripes]
	if s := p.Load(); s != nil {
		return s
	}
	p.CompareAndSwap(nil, new(stripe))
	return p.Load()
}

// add notes the end of a request that servers had for took, and that has held its place
// for held.
func (s *stripe) add(o outcome, took, held time.Duration) {
	switch o {
	case answered:
		s.times[bucketOf(took)].Add(1)
	case congested:
		s.congested.Add(1)
	}
	s.served.Add(int64(took))
	s.held.Add(int64(held))
}

// drain moves all of it to w.
func (s *stripe) drain(w *window) {
	for i := range s.times {
		if s.times[i].Load() > 0 {
			n := int(s.times[i].Swap(0))
			w.times[i] += n
			w.answers += n
		}
	}
	w.congested += int(s.congested.Swap(0))
	w.refused += int(s.refused.Swap(0))
	w.served += s.served.Swap(0)
	w.held += s.held.Swap(0)
}

// window is what is known of the requests that have ended in it.
type window struct {
	times                       [buckets]int
	answers, congested, refused int
	served, held                int64 // of all: time with servers, and in place; in ns
}

func (w *window) reset() { *w = window{} }

// percentile returns the time, in nanoseconds, that the part q of the answers has not
// exceeded; 0 if there are none.
func (w *window) percentile(q float64) float64 {
	rank := q * float64(w.answers)
	for i, n := range w.times {
		if n > 0 && rank <= float64(n) {
			from, width := boundsOf(i)
			return from + width*rank/float64(n)
		}
		rank -= float64(n)
	}
	return 0
}

// limited reports whether a limit of most has mattered in a window of this length: half
// as many were with servers on average, or requests were refused, and that not for places
// of which most were held by requests on their way to servers, delayed by filters.
func (w *window) limited(most float64, length time.Duration) bool {
	return float64(w.served) >= float64(length)*most/2 || w.refused > 0 && w.served >= w.held/2
}
