package telemetry

import (
	"math"
	"sync/atomic"
	"time"
)

// bounds are those of OpenTelemetry's convention for the duration of RPCs, in nanoseconds.
var bounds = [...]time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 75 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, 750 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 7500 * time.Millisecond, 10 * time.Second,
}

const (
	// schema of the native histogram: 2^schema buckets for each doubling.
	schema = 3
	// Exponents of two, in seconds, between which times are told apart: about a
	// microsecond and half an hour.
	least, most = -20, 11
	natives     = (most - least) << schema
)

// histogram is of times. One goroutine writes, others read.
type histogram struct {
	count   Count
	sum     Count // nanoseconds
	classic [len(bounds) + 1]Count
	native  [natives + 1]Count // the last one for what is too long
	// exemplars are there if a traced request was.
	exemplars atomic.Pointer[exemplars]
}

// observe counts a time, and returns its place among the classic ones.
func (h *histogram) observe(d time.Duration) int {
	d = max(d, 0)
	i := 0
	for i < len(bounds) && d > bounds[i] {
		i++
	}
	h.classic[i].Add(1)
	h.native[native(d)].Add(1)
	h.sum.Add(uint64(d))
	h.count.Add(1)
	return i
}

// steps are the upper bounds of the buckets within a doubling, as parts of it in 2^52nds.
var steps = func() (s [1 << schema]uint64) {
	for i := range s {
		s[i] = uint64(math.Exp2(float64(i+1)/(1<<schema)-1) * (1 << 53))
	}
	return s
}()

// native is the bucket of d: i is (2^(least+i/8), 2^(least+(i+1)/8)] seconds; the first
// has what is shorter, too.
func native(d time.Duration) int {
	// In units of 2^least seconds, as a mantissa and an exponent.
	b := math.Float64bits(float64(d) / (float64(time.Second) * (1.0 / (1 << -least))))
	exponent := int(b>>52) - 1023
	if exponent < 0 {
		return 0
	}
	mantissa := b&(1<<52-1) | 1<<52 // [2^52, 2^53)
	i := 0
	for i < len(steps)-1 && mantissa > steps[i] {
		i++
	}
	n := exponent<<schema + i
	if mantissa == 1<<52 { // a power of two is the end of the bucket before
		n = exponent<<schema - 1
	}
	return min(max(n, 0), natives)
}

// counts are what a histogram has counted at some moment.
type counts struct {
	count   uint64
	sum     int64
	classic [len(bounds) + 1]uint64
	native  [natives + 1]uint64
	// exemplars are the newest ones, nil where there is none.
	exemplars [len(bounds) + 1]*exemplar
}

// add adds what h has counted. Its goroutine is not stopped: what does not agree, as a
// value came meanwhile, is read again.
func (c *counts) add(h *histogram) {
	var got counts
	for range 10 {
		got = counts{count: h.count.Load(), sum: int64(h.sum.Load())}
		var classics, nativesum uint64
		for i := range h.classic {
			got.classic[i] = h.classic[i].Load()
			classics += got.classic[i]
		}
		most := 0
		for i := range h.native {
			got.native[i] = h.native[i].Load()
			nativesum += got.native[i]
			if got.native[i] > got.native[most] {
				most = i
			}
		}
		if classics == got.count && nativesum == got.count {
			break
		}
		// Should they never agree: the next values will make up for it.
		got.count = classics
		got.native[most] += classics - nativesum
	}
	c.count += got.count
	c.sum += got.sum
	for i := range c.classic {
		c.classic[i] += got.classic[i]
	}
	for i := range c.native {
		c.native[i] += got.native[i]
	}
	if es := h.exemplars.Load(); es != nil {
		for i := range es {
			if e := es[i].Load(); e != nil && (c.exemplars[i] == nil || e.time.After(c.exemplars[i].time)) {
				c.exemplars[i] = e
			}
		}
	}
}
