//go:build race

package raced

// Detector says that the race detector is at work.
const Detector = true
