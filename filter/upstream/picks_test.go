package upstream

import (
	"math/rand/v2"
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
