package telemetry

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestBucketsCountAsFarAsTheirSum: weeks of traffic are more than 32 bits count.
func TestBucketsCountAsFarAsTheirSum(t *testing.T) {
	h := new(histogram)
	for _, d := range []time.Duration{time.Millisecond, time.Second} {
		h.observe(d)
	}
	i := native(time.Millisecond)
	h.count.Set(math.MaxUint32 + 1)
	h.classic[0].Set(math.MaxUint32)
	h.native[i].Set(math.MaxUint32)
	h.observe(time.Millisecond)
	var c counts
	c.add(h)
	require.EqualValues(t, 1<<32, c.native[i])
	require.EqualValues(t, 1, c.native[native(time.Second)])
}
