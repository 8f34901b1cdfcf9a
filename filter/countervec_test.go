package filter_test

import (
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// vectorOf loads a listener whose filter has a counter with labels, and returns that.
func vectorOf(t *testing.T, mod *filter.Module, labels ...string) (v *filter.CounterVec) {
	t.Helper()
	setProbe(t, "probe.a", building(func(s *filter.Scope) (err error) { v, err = s.CounterVec("calls", labels...); return err }))
	filtertest.NewWith(t, mod, 1).MustLoad(toyByID(probed))
	return v
}

func labelValues(values ...string) (bs [][]byte) {
	for _, v := range values {
		bs = append(bs, []byte(v))
	}
	return bs
}

func line(z, a string, n int) string {
	return fmt.Sprintf(`meltemi_filter_calls_total{a="%s",filter="probe.a",listener="t",protocol="toy",z="%s"} %d`, a, z, n)
}

func TestValuesThatComeWithTheTraffic(t *testing.T) {
	mod := filter.NewModule()
	v := vectorOf(t, mod, "z", "a")
	require.Empty(t, scraped(t, mod))
	v.With(labelValues("1", "2")...).Add(3)
	v.With(labelValues("12", "")...).Add(1)
	v.With(labelValues("\xff", "x")...).Add(1)
	v.With(labelValues("\xfe", "x")...).Add(1)
	v.With(labelValues("_OTHER", "_OTHER")...).Add(1)
	require.Equal(t, []string{line("12", "", 1), line("1", "2", 3), line("_OTHER", "_OTHER", 1), line("\uFFFD", "x", 2)}, scraped(t, mod))

	again := vectorOf(t, mod, "z", "a")
	require.Same(t, v, again, "the next version of a listener goes on with it")
	value := labelValues("1", "2")
	require.Zero(t, raced.AllocsPerRun(t, 1000, func() { v.With(value[0], value[1]).Add(1) }))
	require.Panics(t, func() { v.With(value[0]) })
}

// TestSetsOfValuesAreBounded, whoever asks for them.
func TestSetsOfValuesAreBounded(t *testing.T) {
	mod := filter.NewModule()
	v := vectorOf(t, mod, "z", "a")
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := range 1500 {
				v.With(labelValues(strconv.Itoa(i), strconv.Itoa(worker/2))...).Add(1)
			}
		})
	}
	all.Wait()
	lines := scraped(t, mod)
	require.Len(t, lines, 1001)
	require.Contains(t, lines, line("_OTHER", "_OTHER", 4*1500-2*1000))
}

func TestVectorsThatAreRefused(t *testing.T) {
	ask := func(name string, labels ...string) *probe {
		return building(func(s *filter.Scope) error { _, err := s.CounterVec(name, labels...); return err })
	}
	for _, tt := range []struct {
		a, b *probe
		want string
	}{
		{ask("x"), nil, "the metric x needs labels"},
		{ask("x.{l}", "l"), nil, "and no place for them in its name"},
		{ask("x", "L"), nil, `has a label "L"`},
		{ask("x", "l"), counters("x", filter.Label{"l", "v"}), "the metric meltemi_filter_x is a counter here, and meltemi_filter_x is a counter by traffic of filter probe.a"},
		{ask("x", "l"), ask("x", "k"), "they have to be the same"},
	} {
		setProbe(t, "probe.a", tt.a)
		delete(probes, "probe.b")
		if tt.b != nil {
			setProbe(t, "probe.b", tt.b)
		}
		_, err := filtertest.New(t).Load(toyByID(probed))
		require.ErrorContains(t, err, tt.want)
	}
}
