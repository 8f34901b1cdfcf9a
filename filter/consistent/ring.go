package consistent

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// ring has entries in the order of their hashes.
type ring []entry

type entry struct {
	hash uint64
	host uint32
}

// newRing gives each host its share of the entries. The least one gets a whole number
// of them; those of others are running sums of fractions. So that they are Envoy's to
// the last one, no two operations on them may become one (a fused multiply-add).
func newRing(hosts []Host, shares []float64, minimum, maximum uint32) ring {
	least := slices.Min(shares)
	scale := min(math.Ceil(least*float64(minimum))/least, float64(maximum))
	r := make(ring, 0, int(math.Ceil(scale)))
	var text []byte
	var target float64
	for i := range hosts {
		target += float64(scale * shares[i])
		text = append(append(text[:0], hosts[i].Key...), '_')
		prefix := len(text)
		for n := 0; float64(len(r)) < target; n++ {
			text = strconv.AppendInt(text[:prefix], int64(n), 10)
			r = append(r, entry{xxhash.Sum64(text), uint32(i)})
		}
	}
	slices.SortFunc(r, func(a, b entry) int { return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.host, b.host)) })
	return r
}

// pick takes the first entry that is not before the hash. Behind the last one the ring
// begins anew.
func (r ring) pick(hash uint64, attempt uint32) uint32 {
	i := sort.Search(len(r), func(i int) bool { return r[i].hash >= hash })
	if i == len(r) {
		i = 0
	}
	return r[(uint64(i)+uint64(attempt))%uint64(len(r))].host
}
