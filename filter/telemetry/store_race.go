//go:build race

package telemetry

import "sync/atomic"

// store is what the race detector takes for what it is.
func store(n *uint64, v uint64) { atomic.StoreUint64(n, v) }
