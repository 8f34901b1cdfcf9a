package process

import (
	"math"
	"os"
	"os/signal"
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

	// spareProcs is how many processors Go has beyond one for each worker, for
	// background work.
	spareProcs = 2
	// memoryShare is the part of the machine's memory that is the limit.
	memoryShare = 4
	leastMemory = 64 << 20
)

// limits are those of Go's runtime.
type limits struct {
	procs  int
	memory int64 // bytes
}

// SetUp fits Go's runtime into the process, which has that many workers, and starts
// giving back memory that a burst has left: before it does it calls trim, which may
// take time to come into effect. It is called once.
//
// A worker that enters Go must never wait for a processor that a background
// goroutine holds, so there are more of them than workers, whatever GOMAXPROCS
// says: that is meant for the container, as is GOMEMLIMIT. The variables
// MELTEMI_GOMAXPROCS and MELTEMI_GOMEMLIMIT set them.
//
// SIGPIPE is ignored, as Envoy does: Go's handler, which every shared object installs,
// would end the process when nobody reads its standard output or error any longer and
// something of ours is written there, such as an access log.
func SetUp(workers int, log Log, trim func()) {
	signal.Ignore(syscall.SIGPIPE)
	l := choose(workers, physicalMemory(), os.Getenv, log)
	runtime.GOMAXPROCS(l.procs)
	debug.SetMemoryLimit(l.memory)
	go upkeep(trim)
	log(host.Info, "meltemi: GOMAXPROCS %d, Go memory limit %d MiB", l.procs, l.memory>>20)
}

// Workers makes sure that there are processors for so many workers. It is for hosts that
// do not know at first how many they have, and may be called by any goroutine.
func Workers(n int, log Log) {
	if os.Getenv(procsEnv) != "" {
		return
	}
	growing.Lock()
	defer growing.Unlock()
	if want := n + spareProcs; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
		log(host.Info, "meltemi: GOMAXPROCS %d", want)
	}
}

var growing sync.Mutex

// choose returns the limits for a machine with that much memory.
func choose(workers int, memory int64, env func(string) string, log Log) limits {
	l := limits{procs: max(workers, 1) + spareProcs, memory: max(memory/memoryShare, leastMemory)}
	if s := env(procsEnv); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n >= 1 {
			l.procs = n
		} else {
			log(host.Warn, "meltemi: %s=%q is not a positive number: using %d", procsEnv, s, l.procs)
		}
	}
	if s := env(memoryEnv); s != "" {
		if n, ok := parseBytes(s); ok {
			l.memory = n
		} else {
			log(host.Warn, "meltemi: %s=%q is no size such as 512MiB: using %d bytes", memoryEnv, s, l.memory)
		}
	}
	return l
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
