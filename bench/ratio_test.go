package main

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestARatioIsWithinItsInterval of targets whose rounds drift by half, whose processes
// differ by a hundredth, one by much more, and whose turns differ by five, one of ten by much more.
func TestARatioIsWithinItsInterval(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	within := 0
	const tries, truth = 40, 1.03
	for range tries {
		a, b := &series{}, &series{}
		for life := range 10 {
			p, q := truth*(1+0.01*rnd.NormFloat64()), 1+0.01*rnd.NormFloat64()
			if life == 0 {
				p *= 4 // something went wrong with the process
			}
			var of, to []turn
			for i := range 15 {
				drift := 10 * (1 + float64(i)/30)
				noise := func() float64 {
					if rnd.IntN(10) == 0 {
						return 2
					}
					return 1 + 0.05*rnd.NormFloat64()
				}
				of = append(of, turn{cpu: p * drift * noise()})
				to = append(to, turn{cpu: q * drift * noise()})
			}
			a.lives, b.lives = append(a.lives, of), append(b.lives, to)
		}
		r := ratioOf(a, b, func(t turn) float64 { return t.cpu })
		require.InDelta(t, truth, r.is, 0.04)
		require.Less(t, r.high-r.low, 0.12)
		if r.low <= truth && truth <= r.high {
			within++
		}
	}
	require.GreaterOrEqual(t, within, 34, "of %d", tries)
}
