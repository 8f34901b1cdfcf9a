package filter

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestTheWallClockIsLookedAtNowAndThen, and between tells what the worker's does.
func TestTheWallClockIsLookedAtNowAndThen(t *testing.T) {
	var w wall
	before := time.Now()
	first := w.at(3*time.Second, 5*time.Second)
	require.WithinRange(t, first.Add(2*time.Second), before.Round(0), time.Now().Round(0))
	require.Equal(t, first.Add(time.Second), w.at(4*time.Second, 5*time.Second+wallTime-1))
	w.zero = w.zero.Add(time.Hour) // as if it had been set meanwhile
	require.Equal(t, first.Add(time.Hour), w.at(3*time.Second, 5*time.Second+wallTime-1))
	require.True(t, w.at(3*time.Second, 5*time.Second+wallTime).Before(first.Add(time.Minute)))
}
