package metrics

import (
	"slices"
	"sync/atomic"
)

// bounds are those of Values, for numbers of whatever unit: 1, 2 and 5 of each power of
// ten up to a billion.
var bounds = func() (b [28]uint64) {
	for i, power := 0, uint64(1); i < len(b); power *= 10 {
		for _, n := range []uint64{1, 2, 5} {
			if i < len(b) {
				b[i] = n * power
				i++
			}
		}
	}
	return b
}()

// Values are those that a histogram was given, over all workers. The zero value has
// none. Any goroutine may use it.
type Values struct {
	sum     atomic.Uint64
	buckets [len(bounds) + 1]atomic.Uint64
}

// Add adds vs.
func (v *Values) Add(vs []uint64) {
	sum := uint64(0)
	for _, n := range vs {
		i, _ := slices.BinarySearch(bounds[:], n)
		v.buckets[i].Add(1)
		sum += n
	}
	v.sum.Add(sum)
}

// Told returns how many values there are, their sum, and how many are up to each bound.
// What comes meanwhile may be in the sum and not among them, or the other way round.
func (v *Values) Told() (count uint64, sum float64, upTo map[float64]uint64) {
	upTo = make(map[float64]uint64, len(bounds))
	for i := range v.buckets {
		count += v.buckets[i].Load()
		if i < len(bounds) {
			upTo[float64(bounds[i])] = count
		}
	}
	return count, float64(v.sum.Load()), upTo
}
