package consistent

import (
	"cmp"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// maglev has the host of each of its places.
type maglev []uint32

const free = ^uint32(0)

// newMaglev has the hosts take the free places of a table in turn, each along its own
// permutation, and those of less weight as much less often.
func newMaglev(hosts []Host, shares []float64, size uint32) maglev {
	if len(hosts) == 1 {
		return maglev{0}
	}
	type candidate struct {
		host         uint32
		place, skip  uint64
		share, turns float64 // the next turn is due when share × iterations reaches turns
	}
	n := uint64(size)
	most := slices.Max(shares)
	seeded := xxhash.NewWithSeed(1)
	cs := make([]candidate, len(hosts))
	for i := range hosts {
		seeded.ResetWithSeed(1)
		_, _ = seeded.WriteString(hosts[i].Key) // never fails
		cs[i] = candidate{
			host: uint32(i), share: shares[i],
			place: xxhash.Sum64String(hosts[i].Key) % n, skip: seeded.Sum64()%(n-1) + 1,
		}
	}
	slices.SortStableFunc(cs, func(a, b candidate) int { return cmp.Compare(hosts[a.host].Key, hosts[b.host].Key) })
	table := make(maglev, size)
	for i := range table {
		table[i] = free
	}
	for taken, iteration := uint64(0), 1; taken < n; iteration++ {
		for i := range cs {
			c := &cs[i]
			if float64(iteration)*c.share < c.turns {
				continue
			}
			c.turns += most
			for table[c.place] != free {
				c.place = (c.place + c.skip) % n
			}
			table[c.place] = c.host
			if taken++; taken == n {
				break
			}
		}
	}
	return table
}

// pick has each further attempt look at another place, far from the one before it.
func (m maglev) pick(hash uint64, attempt uint32) uint32 {
	if attempt > 0 {
		hash ^= -uint64(attempt)
	}
	return m[hash%uint64(len(m))]
}
