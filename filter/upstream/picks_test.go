package upstream

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAPeriodShowsWhenPicksRepeat(t *testing.T) {
	for _, tc := range []struct{ name, picks, want string }{
		{"nothing yet", "abcd", ""},
		{"one host", "aa", "a"},
		{"round robin", "abcdabcd", "abcd"},
		{"round robin, stopped in between", "abcdabcda", "bcda"},
		{"weighted", "hhlhhhlhh", "hlhh"},
		{"after a disturbance", "xababcdabcdabcdabcdabcd", "abcd"},
		{"two hosts", "abababababababababab", "ab"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var ps picks
			for i, h := range strings.Split(tc.picks, "") {
				ps.add(i, h)
			}
			require.Equal(t, tc.want, hostsOf(ps.period()))
		})
	}
}

func hostsOf(period []pickOf) (hosts string) {
	for _, p := range period {
		hosts += p.host
	}
	return hosts
}

// TestPicksAreInTheOrderOfTheAttempts: which connection of several becomes ready
// first says nothing about the load balancer.
func TestPicksAreInTheOrderOfTheAttempts(t *testing.T) {
	var ps picks
	for _, attempt := range []int{2, 0, 1, 5, 3, 4, 7} { // the sixth failed
		ps.add(attempt, string(rune('a'+attempt%2)))
	}
	require.Equal(t, "abababb", hostsOf(ps.last))
	require.Empty(t, ps.period())

	ps.forget()
	for i := range 2 * maxPicked {
		ps.add(i^1, string(rune('a'+i%2))) // 1, 0, 3, 2, …
	}
	require.Len(t, ps.last, maxPicked)
	require.Equal(t, "ba", hostsOf(ps.period()))
}

func TestRandomPicksShowNoPeriodForLong(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var ps picks
	found := 0
	for i := range 10000 {
		ps.add(i, string(rune('a'+rng.IntN(4))))
		if i > 16 && ps.period() != nil {
			found++
		}
	}
	require.Less(t, found, 10)
	require.Len(t, ps.last, maxPicked)
}

// TestAPeriodThatLacksAHostIsNone: else the host got no calls, while its first
// connection takes longer than those of others.
func TestAPeriodThatLacksAHostIsNone(t *testing.T) {
	hosts, shares := []string{"a", "b"}, make([]float64, 2)
	var ps picks
	require.False(t, ps.shares(hosts, shares))
	for i, h := range []string{"a", "a", "", "a", "", "b", "a"} {
		if h == "" { // not ready yet
			continue
		}
		ps.add(i, h)
		require.False(t, ps.shares(hosts, shares), "%s", hostsOf(ps.last))
	}
	ps.forget()
	for i := range 8 {
		ps.add(i, "baaa"[i%4:][:1])
	}
	require.True(t, ps.shares(hosts, shares))
	require.Equal(t, []float64{0.75, 0.25}, shares)

	// After so many it has been replaced.
	for i := range enoughPicked {
		ps.add(8+i, "ca"[i%2:][:1])
	}
	shares = make([]float64, 3)
	require.True(t, ps.shares([]string{"a", "b", "c"}, shares))
	require.Equal(t, []float64{0.5, 0, 0.5}, shares)
}

func TestSharesAreEqualUnlessCountsSayOtherwise(t *testing.T) {
	for _, tc := range []struct {
		counts []float64
		want   []float64
		within float64
	}{
		{[]float64{0, 0}, []float64{0.5, 0.5}, 0},
		{[]float64{1, 0}, []float64{0.5, 0.5}, 0},
		{[]float64{6, 2}, []float64{0.5, 0.5}, 0},
		{[]float64{38, 26}, []float64{0.5, 0.5}, 0},
		{[]float64{75, 25}, []float64{0.75, 0.25}, 0.05},
		{[]float64{384, 128}, []float64{0.75, 0.25}, 0.01},
		{[]float64{3, 2, 0, 3}, []float64{0.25, 0.25, 0.25, 0.25}, 0},
		{[]float64{200, 30, 26}, []float64{0.78, 0.12, 0.10}, 0.03},
		{ // one light host of many
			[]float64{1, 57, 58, 55, 60, 56, 54, 59, 57, 55},
			[]float64{0.01, 0.11, 0.11, 0.11, 0.11, 0.11, 0.11, 0.11, 0.11, 0.11},
			0.01,
		},
	} {
		got := slices.Clone(tc.counts)
		estimate(got)
		require.InDeltaSlice(t, tc.want, got, tc.within, "%v", tc.counts)
		sum := 0.0
		for _, s := range got {
			require.Positive(t, s)
			sum += s
		}
		require.InDelta(t, 1, sum, 1e-9)
	}
}

// TestRandomPicksOfEqualHosts: what 64 random picks make of two equal hosts.
func TestRandomPicksOfEqualHosts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const runs = 10000
	off := 0
	for range runs {
		counts := make([]float64, 2)
		for range 64 {
			counts[rng.IntN(2)]++
		}
		estimate(counts)
		if math.Abs(counts[0]-0.5) > 0.1 {
			off++
		}
	}
	require.Less(t, off, runs/100)
}

func TestIDsFindTheirCallAndNoOther(t *testing.T) {
	for _, maxID := range []uint64{1<<64 - 1, 1<<32 - 1, 1<<31 - 1, 255} {
		var table ids
		table.init(maxID)
		cn, other := &conn{}, &conn{}
		seen := map[uint64]int{}
		var held []*Call
		for i := range 20000 {
			c := &Call{conn: cn}
			id, ok := table.take(c)
			if !ok {
				require.Less(t, maxID, uint64(20000))
				break
			}
			c.id = id
			require.LessOrEqual(t, id, maxID)
			require.Same(t, c, table.find(id, cn))
			require.Nil(t, table.find(id, other))
			require.Nil(t, table.find(id^1<<table.bits, cn), "another generation")
			if last, again := seen[id]; again {
				require.GreaterOrEqual(t, i-last, int(min(maxID, 1<<14)/4), "an id comes back too soon")
			}
			seen[id] = i
			held = append(held, c)
			if len(held) > 20 {
				table.drop(held[0].id)
				require.Nil(t, table.find(held[0].id, cn))
				held = held[1:]
			}
		}
		require.Nil(t, table.find(1<<63, cn))
	}
}
