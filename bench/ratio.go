package main

import (
	"fmt"
	"math"
	"slices"
)

// ratio is what one target takes of what another does, with its interval of 95 % confidence.
type ratio struct{ is, low, high float64 }

func (r ratio) String() string { return fmt.Sprintf("%.3f (%.3f to %.3f)", r.is, r.low, r.high) }

// ratioOf pairs the turns of two targets that were in one round. Of a life their median
// counts, as other things that the machine did make some of them worthless, and of lives the
// mean, without the highest and the lowest if there are five: by how much they differ tells
// how far it can be trusted (Yuen's trimmed mean).
func ratioOf(a, b *series, what func(turn) float64) ratio {
	var lives []float64 // logarithms, so that b to a is the reverse
	for i := range min(len(a.lives), len(b.lives)) {
		var pairs []float64
		for k := range min(len(a.lives[i]), len(b.lives[i])) {
			pairs = append(pairs, math.Log(what(a.lives[i][k])/what(b.lives[i][k])))
		}
		if len(pairs) > 0 {
			lives = append(lives, median(pairs))
		}
	}
	if len(lives) == 0 {
		return ratio{math.NaN(), math.NaN(), math.NaN()}
	}
	slices.Sort(lives)
	n, trimmed := len(lives), lives
	if n >= 5 {
		trimmed = lives[1 : n-1]
	}
	h, mean, squares := len(trimmed), 0.0, 0.0
	for _, v := range trimmed {
		mean += v / float64(h)
	}
	for _, v := range lives { // Winsorized
		v = min(max(v, trimmed[0]), trimmed[h-1])
		squares += (v - mean) * (v - mean)
	}
	margin := math.Inf(1) // of one life
	if n > 1 {
		margin = student[min(h, len(student)-1)] * math.Sqrt(squares/float64(n-1)*float64(n)) / float64(h)
	}
	return ratio{math.Exp(mean), math.Exp(mean - margin), math.Exp(mean + margin)}
}

// student are the quantiles of Student's distribution for 95 %, by the number of values.
var student = [...]float64{2: 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20}

// median is NaN of nothing.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
