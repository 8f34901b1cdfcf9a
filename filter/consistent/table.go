// Package consistent maps hashes to hosts, so that a change of the hosts moves few of
// them: ring hash and Maglev, entry for entry as Envoy does it. Tables are built once
// and read by all workers.
package consistent

import (
	"math"

	"github.com/cespare/xxhash/v2"
)

// Host is one of a table's.
type Host struct {
	// Key is what its places in the table follow from: in Envoy the metadata
	// envoy.lb's hash_key, else "ip:port". Not empty.
	Key string
	// Weight is its share, relative to the others'. At least 1; all of a table add up
	// to no more than 2^32-1.
	Weight uint32
}

// Table maps hashes to the hosts of which it was made. It is immutable.
type Table struct {
	hosts  []Host
	slots  slots
	shares []float64 // of the hosts, together 1
}

// slots are what a Table is made of.
type slots interface {
	pick(hash uint64, attempt uint32) uint32
}

// Build makes the table that p wants of some hosts, which stay the table's. The order
// of the hosts matters where weights differ: in Envoy it is that of its endpoints.
// Without hosts the table is nil. What it costs grows with the table: some 100 µs for
// 1024 entries of a ring, some milliseconds for 65537 of Maglev.
func Build(p Policy, hosts []Host) *Table {
	if len(hosts) == 0 {
		return nil
	}
	t := &Table{hosts: hosts, shares: make([]float64, len(hosts))}
	sum := uint64(0)
	for _, h := range hosts {
		sum += uint64(h.Weight)
	}
	for i, h := range hosts {
		t.shares[i] = float64(h.Weight) / float64(sum)
	}
	if p.Algorithm == Maglev {
		t.slots = newMaglev(hosts, t.shares, p.TableSize)
	} else {
		t.slots = newRing(hosts, t.shares, p.MinimumRingSize, p.MaximumRingSize)
	}
	return t
}

// Size returns about how many places the table has that p wants of some hosts.
func Size(p Policy, hosts []Host) int {
	if p.Algorithm == Maglev {
		return int(p.TableSize)
	}
	sum, least := uint64(0), uint64(math.MaxUint32)
	for _, h := range hosts {
		sum += uint64(h.Weight)
		least = min(least, uint64(h.Weight))
	}
	return int(min(max(uint64(p.MinimumRingSize), sum/max(1, least))+uint64(len(hosts)), uint64(p.MaximumRingSize)))
}

// Hosts returns the table's hosts. They must not be changed.
func (t *Table) Hosts() []Host { return t.hosts }

// Share returns the share of host i: its weight by that of all.
func (t *Table) Share(i int) float64 { return t.shares[i] }

// Pick returns the index of the host for a hash, of attempt 0, or of those that follow
// when it cannot take a request. Further attempts may lead to the same host again.
func (t *Table) Pick(hash uint64, attempt uint32) int { return int(t.slots.pick(hash, attempt)) }

// Combine adds the hash of a further property to that of those before it.
func Combine(hash, next uint64) uint64 { return hash<<1 | hash>>63 ^ next }

// Hash is the hash of one value, by which Pick chooses.
func Hash(value []byte) uint64 { return xxhash.Sum64(value) }

// HashString is Hash of a string.
func HashString(value string) uint64 { return xxhash.Sum64String(value) }
