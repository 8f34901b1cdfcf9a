//go:build !linux

package codectest

import "time"

var started = time.Now()

// cpuTime is the time that has passed: there is no portable clock of a thread.
func cpuTime() time.Duration { return time.Since(started) }
