package property

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// names of which each two differ: n of them, alike but for what stands in their
// midst.
func names(n, size int) (names [][]byte) {
	pad := strings.Repeat("x", size/2)
	for i := range n {
		names = append(names, []byte(fmt.Sprintf("%s%04d%s", pad, i, pad)))
	}
	return names
}

func TestTheLastEntryOfEachNameIsTheOne(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	mixed := append(names(few+2, 2), names(5, 2*long)...)
	mixed = append(mixed, nil, []byte("A"), []byte("a"), mixed[0][:1])
	for name, from := range map[string][][]byte{
		"one": names(1, 0), "two": names(2, 4), "one less than few": names(few-1, 4), "few": names(few, 4),
		"one more than few": names(few+1, 4), "as many as there may be": names(MaxEntries, 4),
		"long": names(few-1, 2*long), "short and long": mixed,
	} {
		t.Run(name, func(t *testing.T) {
			for _, order := range []func(i int) int{
				func(i int) int { return i % len(from) },
				func(i int) int { return len(from) - 1 - i%len(from) },
				func(i int) int { return i / 2 % len(from) },
				func(int) int { return rnd.IntN(len(from)) },
			} {
				for _, n := range []int{1, len(from), MaxEntries} {
					var m codecs.Metadata
					m.Put(from[0], []byte("the codec's own"))
					e := EntriesOf(&m)
					want := map[string]string{}
					for i := range n {
						key, value := from[order(i)], fmt.Sprint(i)
						_, had := want[string(key)]
						require.Equal(t, had, e.Find(key, false) != None)
						e.Put(key, []byte(value))
						want[string(key)] = value
					}
					e.Close()
					got := map[string]string{}
					for _, p := range m.Properties()[1:] {
						got[string(p.Name)] = string(p.Value)
					}
					require.Equal(t, want, got)
					require.Len(t, m.Properties(), 1+len(want))
					require.Equal(t, "the codec's own", string(m.Properties()[0].Value))
				}
			}
		})
	}
}

func TestEntriesDoNotAllocate(t *testing.T) {
	for _, from := range [][][]byte{names(3, 4), names(few+1, 4), names(MaxEntries/2, 4), names(2, 2*long)} {
		var m codecs.Metadata
		require.Zero(t, raced.AllocsPerRun(t, 100, func() {
			m.Reset()
			e := EntriesOf(&m)
			for range 2 {
				for _, name := range from {
					e.Put(name, name)
				}
			}
			e.Close()
		}))
	}
}

func BenchmarkEntries(b *testing.B) {
	for _, tc := range []struct{ n, size int }{{3, 8}, {10, 8}, {few, 8}, {MaxEntries, 8}, {few, 32 << 10}, {MaxEntries, 1 << 10}} {
		b.Run(fmt.Sprintf("%d of %d bytes", tc.n, tc.size), func(b *testing.B) {
			from := names(tc.n, tc.size)
			var m codecs.Metadata
			b.ReportAllocs()
			for b.Loop() {
				m.Reset()
				e := EntriesOf(&m)
				for _, name := range from {
					e.Put(name, name)
				}
				e.Close()
			}
		})
	}
}
