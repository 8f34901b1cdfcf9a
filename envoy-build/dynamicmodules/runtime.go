package dynamicmodules

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	procsEnv  = "MELTEMI_GOMAXPROCS"
	memoryEnv = "MELTEMI_GOMEMLIMIT"

	leastMemory = 64 << 20
)

var runtimeOnce sync.Once

// setUpRuntime fits Go's runtime into somebody else's process. A worker that
// enters Go must never wait for a processor that a background goroutine holds,
// so there are more of them than workers, whatever GOMAXPROCS says: that is
// meant for the container, as is GOMEMLIMIT.
func setUpRuntime(concurrency int) {
	runtimeOnce.Do(func() {
		procs := max(concurrency, 1) + 2
		if s := os.Getenv(procsEnv); s != "" {
			n, err := strconv.Atoi(s)
			if err != nil || n < 1 {
				logf(host.Warn, "meltemi: %s=%q is not a positive number: using %d", procsEnv, s, procs)
			} else {
				procs = n
			}
		}
		runtime.GOMAXPROCS(procs)
		limit := max(physicalMemory()/4, leastMemory)
		if s := os.Getenv(memoryEnv); s != "" {
			n, ok := parseBytes(s)
			if !ok {
				logf(host.Warn, "meltemi: %s=%q is no size such as 512MiB: using %d bytes", memoryEnv, s, limit)
			} else {
				limit = n
			}
		}
		debug.SetMemoryLimit(limit)
		go upkeep()
		logf(host.Info, "meltemi: GOMAXPROCS %d, Go memory limit %d MiB", procs, limit>>20)
	})
}

// physicalMemory returns the memory of the cgroup, or of the machine.
func physicalMemory() int64 {
	least := int64(math.MaxInt64)
	var si syscall.Sysinfo_t
	if syscall.Sysinfo(&si) == nil {
		least = int64(si.Totalram) * int64(si.Unit)
	}
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if b, err := os.ReadFile(path); err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
				least = min(least, n)
			}
		}
	}
	return least
}

// parseBytes reads a size as GOMEMLIMIT has it: bytes with an optional suffix.
func parseBytes(s string) (int64, bool) {
	if s == "off" {
		return math.MaxInt64, true
	}
	unit := int64(1)
	for _, u := range []struct {
		suffix string
		n      int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"B", 1}} {
		if strings.HasSuffix(s, u.suffix) {
			s, unit = strings.TrimSuffix(s, u.suffix), u.n
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/unit {
		return 0, false
	}
	return n * unit, true
}
