package consistent_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func ring(minimum, maximum uint32) consistent.Policy {
	return consistent.Policy{Algorithm: consistent.Ring, MinimumRingSize: minimum, MaximumRingSize: maximum}
}

func maglev(size uint32) consistent.Policy {
	return consistent.Policy{Algorithm: consistent.Maglev, TableSize: size}
}

// golden is a table of a stock Envoy 1.40.0, as it logs it at level trace.
type golden struct {
	Name    string
	Hosts   []consistent.Host
	Entries int
	// Table has the entries of a small one: "hash host …" of a ring, a digit for each
	// place of Maglev. SHA256 is of lines "hash host", "host".
	Table, SHA256 string
}

func TestTablesAreEnvoys(t *testing.T) {
	b, err := os.ReadFile("testdata/envoy.json")
	require.NoError(t, err)
	var all []golden
	require.NoError(t, json.Unmarshal(b, &all))
	require.NotEmpty(t, all)
	for _, g := range all {
		t.Run(g.Name, func(t *testing.T) {
			var p consistent.Policy
			switch _, kind, _ := strings.Cut(g.Name, "-"); kind {
			case "ring":
				p = consistent.Default
			case "ring50":
				p = ring(50, 60)
			case "maglev":
				p = maglev(consistent.DefaultTableSize)
			case "maglev251":
				p = maglev(251)
			default:
				t.Fatal(kind)
			}
			table := consistent.Build(p, g.Hosts)
			entries := table.Entries()
			require.Len(t, entries, g.Entries)
			if g.Table != "" && p.Algorithm == consistent.Ring {
				require.Equal(t, g.Table, strings.Join(entries, " "))
			} else if g.Table != "" {
				require.Equal(t, g.Table, strings.Join(entries, ""))
			}
			sum := sha256.Sum256([]byte(strings.Join(entries, "\n") + "\n"))
			require.Equal(t, g.SHA256, hex.EncodeToString(sum[:]))
		})
	}
}

func hosts(n int) (hs []consistent.Host) {
	for i := range n {
		hs = append(hs, consistent.Host{Key: fmt.Sprintf("10.0.0.%d:20880", i+1), Weight: 1})
	}
	return hs
}

// The positions are those of Envoy's own test of a ring of six hosts.
func TestLookup(t *testing.T) {
	var hs []consistent.Host
	for port := range 6 {
		hs = append(hs, consistent.Host{Key: fmt.Sprintf("127.0.0.1:%d", 90+port), Weight: 1})
	}
	r := consistent.Build(ring(12, consistent.MaxRingSize), hs)
	for _, c := range []struct {
		hash    uint64
		attempt uint32
		port    int
	}{
		{0, 0, 94},
		{833437586790550860, 0, 94},
		{833437586790550861, 0, 92},
		{math.MaxUint64, 0, 94}, // behind the last
		{3551244743356806947, 0, 95},
		{3551244743356806948, 0, 93},
		{16117243373044804880, 0, 90},
		{0, 1, 92},
		{0, 2, 90},
		{16117243373044804880, 1, 94},
		{0, 12, 94}, // once around
		{0, math.MaxUint32, 95},
	} {
		require.Equal(t, c.port, 90+r.Pick(c.hash, c.attempt), c)
	}
	m := consistent.Build(maglev(7), hs)
	places := strings.Join(m.Entries(), "")
	for hash := range uint64(20) {
		require.Equal(t, int(places[hash%7]-'0'), m.Pick(hash, 0))
		for attempt := range uint32(3) {
			want := (hash ^ (math.MaxUint64 - uint64(attempt))) % 7 // of attempt 1, 2, 3
			require.Equal(t, int(places[want]-'0'), m.Pick(hash, attempt+1))
		}
	}
}

func TestNoHostAndOne(t *testing.T) {
	require.Nil(t, consistent.Build(consistent.Default, nil))
	for _, p := range []consistent.Policy{consistent.Default, maglev(5)} {
		one := consistent.Build(p, hosts(1))
		require.Zero(t, one.Pick(12345, 0))
		require.Zero(t, one.Pick(12345, 7))
		require.InDelta(t, 1, one.Share(0), 0)
	}
}

// A maximum that is smaller than what the weights want is kept.
func TestBounds(t *testing.T) {
	hs := []consistent.Host{{Key: "a", Weight: 1}, {Key: "b", Weight: 1_000_000}}
	require.Len(t, consistent.Build(ring(1024, 3000), hs).Entries(), 3000)
	require.Len(t, consistent.Build(ring(1, 1), hosts(3)).Entries(), 1)
	require.Len(t, consistent.Build(maglev(2), hosts(3)).Entries(), 2)
}

// keys are 100,000 hashes.
func keys(f func(hash uint64)) {
	for i := range 100_000 {
		f(consistent.Hash(strconv.AppendInt([]byte("user-"), int64(i), 10)))
	}
}

// What moves when one of ten hosts leaves: of Maglev little more than its tenth. Of
// Envoy's ring more, as the number of each host's entries follows from that of hosts.
func TestAHostLeavesAndReturns(t *testing.T) {
	all := hosts(10)
	rest := append(append([]consistent.Host{}, all[:3]...), all[4:]...)
	for _, c := range []struct {
		p           consistent.Policy
		least, most float64 // share of the keys
	}{
		{maglev(consistent.DefaultTableSize), 0.095, 0.11},
		{consistent.Default, 0.16, 0.18},
	} {
		before, after, again := consistent.Build(c.p, all), consistent.Build(c.p, rest), consistent.Build(c.p, hosts(10))
		moved, n := 0.0, 0.0
		keys(func(hash uint64) {
			n++
			was := all[before.Pick(hash, 0)].Key
			if rest[after.Pick(hash, 0)].Key != was {
				moved++
			}
			require.Equal(t, was, all[again.Pick(hash, 0)].Key)
		})
		t.Logf("%d: %.4f", c.p.Algorithm, moved/n)
		assert.GreaterOrEqual(t, moved/n, c.least, c.p.Algorithm)
		assert.LessOrEqual(t, moved/n, c.most, c.p.Algorithm)
	}
}

func TestWeights(t *testing.T) {
	hs := hosts(3)
	for i := range hs {
		hs[i].Weight = uint32(i + 1)
	}
	for _, p := range []consistent.Policy{consistent.Default, maglev(consistent.DefaultTableSize)} {
		table := consistent.Build(p, hs)
		var got [3]float64
		keys(func(hash uint64) { got[table.Pick(hash, 0)] += 1. / 100_000 })
		for i := range got {
			require.InDelta(t, table.Share(i), got[i], 0.04, "%d: %v", p.Algorithm, got)
			require.InDelta(t, float64(i+1)/6, table.Share(i), 1e-9)
		}
	}
}

func TestCombine(t *testing.T) {
	require.Equal(t, uint64(0x3), consistent.Combine(1<<63, 2))
	require.Equal(t, uint64(0x6), consistent.Combine(2, 2))
}

func TestPrimes(t *testing.T) {
	var primes []uint32
	for n := range uint32(50) {
		if consistent.Prime(n) {
			primes = append(primes, n)
		}
	}
	require.Equal(t, []uint32{2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47}, primes)
	require.True(t, consistent.Prime(consistent.DefaultTableSize))
	require.True(t, consistent.Prime(consistent.MaxTableSize))
	require.False(t, consistent.Prime(2237*2237))
}

func TestLookupsAllocateNothing(t *testing.T) {
	for _, p := range []consistent.Policy{consistent.Default, maglev(consistent.DefaultTableSize)} {
		table := consistent.Build(p, hosts(10))
		hash := uint64(0)
		require.Zero(t, raced.AllocsPerRun(t, 100, func() {
			hash += 0x9e3779b97f4a7c15
			table.Pick(hash, 1)
		}))
	}
}

func BenchmarkPick(b *testing.B) {
	for name, p := range map[string]consistent.Policy{"ring": consistent.Default, "maglev": maglev(consistent.DefaultTableSize)} {
		b.Run(name, func(b *testing.B) {
			table := consistent.Build(p, hosts(10))
			hash := uint64(0)
			for b.Loop() {
				hash += 0x9e3779b97f4a7c15
				table.Pick(hash, 0)
			}
		})
		b.Run(name+" build", func(b *testing.B) {
			hs := hosts(10)
			for b.Loop() {
				consistent.Build(p, hs)
			}
		})
	}
}
