// Package raced tells tests whether the race detector is at work. It makes what they do
// about ten times as slow, and has little to find where there is one goroutine: such
// tests do less of it then, and all of it without the detector.
package raced

import "testing"

// Of returns n without the detector, and a part of it with it.
func Of(n int) int {
	if Detector {
		return max(1, n/10)
	}
	return n
}

// Skip skips a test of one goroutine that takes long with the detector.
func Skip(t testing.TB) {
	t.Helper()
	if Detector {
		t.Skip("one goroutine, and much to do: without the race detector")
	}
}

// AllocsPerRun is testing.AllocsPerRun, without the detector only: with it a sync.Pool, such
// as fmt's, drops at random what it is given, and so how often anything allocates is chance.
func AllocsPerRun(t testing.TB, runs int, f func()) float64 {
	t.Helper()
	if Detector {
		t.Skip("allocations are counted without the race detector")
	}
	return testing.AllocsPerRun(runs, f)
}
