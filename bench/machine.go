package main

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// watched is what the machine had done when something began.
type watched struct {
	begin     time.Time
	all, self time.Duration
}

func watch() watched { return watched{time.Now(), machineCPU(), cpuOf(unix.CLOCK_PROCESS_CPUTIME_ID)} }

// others returns which part of the machine's processors has since then not been this
// process's, nor idle, nor theirs who used so much: other processes', or other machines'.
// The machine counts in ticks.
func (w watched) others(used time.Duration) float64 {
	took := machineCPU() - w.all - (cpuOf(unix.CLOCK_PROCESS_CPUTIME_ID) - w.self) - used
	return max(0, took.Seconds()/time.Since(w.begin).Seconds()/float64(runtime.NumCPU()))
}

// machineCPU returns for how long the machine's processors have not been idle.
func machineCPU() (busy time.Duration) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	for i, f := range bytes.Fields(line) {
		n, _ := strconv.ParseInt(string(f), 10, 64)
		switch i {
		case 1, 2, 3, 6, 7, 8: // user, nice, system, irq, softirq, steal; each in hundredths
			busy += time.Duration(n) * time.Second / 100
		}
	}
	return busy
}

// cpuOf returns what a clock of processor time says.
func cpuOf(clock int32) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
