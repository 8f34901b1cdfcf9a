package ratelimit

import "testing"

// SetMaxPending changes the bound for a test.
func SetMaxPending(t *testing.T, n int64) {
	was := maxPending
	maxPending = n
	t.Cleanup(func() { maxPending = was })
}
