//go:build !race

package telemetry

// store has others see v sooner or later, and no word that was never written, as Go's
// memory model has it of words; Envoy's machines have words of 64 bits. An atomic store
// would have the processor wait for all stores before it, ten times for each request.
func store(n *uint64, v uint64) { *n = v }
