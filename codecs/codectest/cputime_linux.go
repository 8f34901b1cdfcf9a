package codectest

import (
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the processor time that the calling thread has used. Unlike the
// time of day it does not pass while other programs have the processor.
func cpuTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}
