package lightest_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/lightest"
)

func TestPeak(t *testing.T) {
	const decay = time.Second
	var k lightest.Peak
	require.Zero(t, k.Cost(0, 0, decay), "unknown: it is tried")
	require.InDelta(t, math.MaxFloat64, k.Cost(1, 0, decay), 1, "… with one request")
	now := time.Minute
	k.Add(10*time.Millisecond, now, decay)
	require.InDelta(t, 10e6, k.Cost(0, now, decay), 1)
	require.InDelta(t, 30e6, k.Cost(2, now, decay), 1)
	k.Add(100*time.Millisecond, now, decay)
	require.Equal(t, 100*time.Millisecond, k.Average(), "it rises at once")
	now += decay
	require.InDelta(t, 100e6/math.E, k.Cost(0, now, decay), 1, "and is forgotten by and by")
	k.Add(10*time.Millisecond, now, decay)
	require.InDelta(t, 100e6/math.E+10e6*(1-1/math.E), float64(k.Average()), 1)
	for range 100 {
		now += decay / 10
		k.Add(10*time.Millisecond, now, decay)
	}
	require.InDelta(t, 10e6, float64(k.Average()), 1e5)
}
