package e2e

import "time"

const (
	patience = 20 * time.Second
	tick     = 20 * time.Millisecond
)

// eventually tells whether something becomes true within a time.
func eventually(within time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(within); !ok(); time.Sleep(tick) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}
