package balancer_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/balancer"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

const (
	a, b, c, d = "10.0.0.1:1", "[fd00::1]:2", "10.0.0.3:3", "10.0.0.4:4"
)

func hosts() []host.Member {
	return []host.Member{
		{Address: a, Weight: 1},
		{Address: b, Weight: 3, HashKey: "key"},
		{Address: c},
		{Address: d, Weight: 1, Priority: 1},
	}
}

func TestTheHostThatIsWanted(t *testing.T) {
	var lb balancer.Balancer
	_, _, ok := lb.Choose([]byte(a))
	require.False(t, ok, "nothing is known")
	require.Nil(t, lb.Members())
	lb.Update(hosts(), [][]string{{b, c}, {d}})
	for wanted, at := range map[string][2]uint32{b: {0, 0}, c: {0, 1}, d: {1, 0}} {
		p, i, ok := lb.Choose([]byte(wanted))
		require.True(t, ok)
		got := [2]uint32{p, i}
		require.Equal(t, at, got, wanted)
	}
}

// Without a wanted host, or one that is healthy, hosts take turns.
func TestAnyHost(t *testing.T) {
	var lb balancer.Balancer
	lb.Update(hosts(), [][]string{{a, b}, {d}})
	for _, wanted := range []string{"", c, "10.9.9.9:9"} {
		counts := [2]int{}
		for range 40 {
			p, i, ok := lb.Choose([]byte(wanted))
			require.True(t, ok)
			require.Zero(t, p)
			counts[i]++
		}
		require.InDelta(t, 10, counts[0], 1, "a quarter")
	}
	lb.Update(hosts(), [][]string{{}, {d}})
	p, i, ok := lb.Choose(nil)
	require.True(t, ok)
	require.Equal(t, [2]uint32{1, 0}, [2]uint32{p, i}, "of the next priority")
	lb.Update(hosts(), [][]string{{}, {}})
	_, _, ok = lb.Choose([]byte(a))
	require.False(t, ok, "none is healthy: there is no panic mode")
}

func TestMembers(t *testing.T) {
	var lb balancer.Balancer
	lb.Update(hosts(), [][]string{{a, b}, {d}})
	was := lb.Members()
	require.Equal(t, []host.Member{
		{Address: a, Weight: 1, Healthy: true},
		{Address: b, Weight: 3, HashKey: "key", Healthy: true},
		{Address: c, Weight: 1},
		{Address: d, Weight: 1, Priority: 1, Healthy: true},
	}, was.Hosts)
	lb.Update(hosts(), [][]string{{a, b}, {d}})
	require.Same(t, was, lb.Members(), "nothing has changed")
	lb.Update(hosts(), [][]string{{a, b, c}, {d}})
	require.NotSame(t, was, lb.Members())
	lb.Update(append(hosts(), host.Member{Address: "/run/pipe"}), [][]string{{a}})
	require.Nil(t, lb.Members(), "a connection to a pipe does not tell of it")
	lb.Update(nil, nil)
	require.Empty(t, lb.Members().Hosts)
}

func TestAChoiceAllocatesNothing(t *testing.T) {
	var lb balancer.Balancer
	lb.Update(hosts(), [][]string{{a, b}, {d}})
	wanted := []byte(b)
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		lb.Choose(wanted)
		lb.Choose(nil)
	}))
}
