package telemetry

import "sync/atomic"

// Count is a number that one goroutine changes, and others read meanwhile.
type Count struct{ n uint64 }

// Add is for the goroutine whose number it is.
func (c *Count) Add(n uint64) { store(&c.n, c.n+n) }

// Set is Add, but that n is all there is.
func (c *Count) Set(n uint64) { store(&c.n, n) }

// Load is for others: they see what was there at some moment.
func (c *Count) Load() uint64 { return atomic.LoadUint64(&c.n) }
