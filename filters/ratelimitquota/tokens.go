package ratelimitquota

import (
	"math"
	"sync/atomic"
	"time"
)

// tokens is a token bucket that all workers take from without a lock: per fill tokens
// are added behind each interval, counted from the first request. It is exact: of n
// requests, whoever sees them, as many pass as there are tokens.
type tokens struct {
	max, fill uint32
	interval  time.Duration

	start atomic.Int64  // of the first request, in ns of the clock, and 1
	state atomic.Uint64 // intervals that have passed, and tokens in the lower half
}

func newTokens(most, fill uint64, interval time.Duration) *tokens {
	t := &tokens{max: uint32(min(most, math.MaxUint32)), fill: uint32(min(fill, math.MaxUint32)), interval: interval}
	t.state.Store(uint64(t.max))
	return t
}

// take takes a token, if there is one.
func (t *tokens) take(now time.Duration) bool {
	start := t.start.Load()
	if start == 0 {
		t.start.CompareAndSwap(0, int64(now)+1)
		start = t.start.Load()
	}
	passed := uint32(max(0, int64(now)+1-start) / int64(t.interval))
	for {
		s := t.state.Load()
		at, left := uint32(s>>32), uint32(s)
		// The number of intervals may wrap. A worker's clock may be somewhat behind
		// another's, which has filled the bucket already.
		if n := passed - at; n > 0 && n < math.MaxUint32-1<<20 {
			at, left = passed, uint32(min(uint64(t.max), uint64(left)+uint64(n)*uint64(t.fill)))
		}
		if left == 0 {
			return false
		}
		if t.state.CompareAndSwap(s, uint64(at)<<32|uint64(left-1)) {
			return true
		}
	}
}

// refill is how long an empty one takes to become full.
func (t *tokens) refill() time.Duration {
	n := (int64(t.max) + int64(t.fill) - 1) / max(1, int64(t.fill))
	if n > int64(math.MaxInt64/t.interval) {
		return math.MaxInt64
	}
	return time.Duration(n) * t.interval
}
