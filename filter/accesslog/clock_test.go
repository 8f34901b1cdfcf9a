package accesslog

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestTimesOfOneSecondAreWrittenFromIt: they are what package time makes of them.
func TestTimesOfOneSecondAreWrittenFromIt(t *testing.T) {
	f, err := clock("", false, func(e *Entry) time.Time { return e.StartTime })
	require.NoError(t, err)
	var s Second
	at := time.Date(2026, 12, 31, 23, 59, 58, 999_999_999, time.FixedZone("", 3600))
	for _, step := range []time.Duration{0, 1, 7 * time.Millisecond, 993 * time.Millisecond, -time.Second, time.Hour, -100 * 365 * 24 * time.Hour} {
		at = at.Add(step)
		with, _ := f(nil, &Entry{StartTime: at, Second: &s})
		without, _ := f(nil, &Entry{StartTime: at})
		require.Equal(t, string(without), string(with))
	}
}
