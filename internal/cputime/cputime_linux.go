// Package cputime tells how much processor time something takes, for tests.
package cputime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Used is the processor time that the calling thread has used: runtime.LockOSThread keeps a
// goroutine on it. Unlike the time of day it does not pass while other programs have the
// processor.
func Used() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}
