//go:build !linux

package cputime

import "time"

var started = time.Now()

// Used is the time that has passed: there is no portable clock of a thread.
func Used() time.Duration { return time.Since(started) }
