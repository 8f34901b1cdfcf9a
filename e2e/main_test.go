package e2e

import "time"

const (
	patience = 20 * time.Second
	tick     = 20 * time.Millisecond
)
