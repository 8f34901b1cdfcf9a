package dynamicmodules

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// upkeepTick is how often memory is looked at that nobody may need any more.
	upkeepTick = 10 * time.Second
	// upkeepRest is for how many ticks it is not when there was none.
	upkeepRest = 2
	// worthwhile is how much of it is worth the work of giving it back.
	worthwhile = 32 << 20
)

// upkeep gives back to the system what a burst has left behind. Go would collect
// it when as much has been allocated again, or in two minutes, and give it back
// little by little.
func upkeep() {
	var last memory
	rest := 0
	for range time.Tick(upkeepTick) {
		m := readMemory()
		busy := m.allocated-last.allocated > m.held()/4 // and needs it again
		last = m
		if rest > 0 {
			rest--
			continue
		}
		if busy || m.held() < worthwhile {
			continue
		}
		for i := range workers {
			if w := workers[i].Load(); w != nil {
				w.carriers.post(w.trim)
			}
		}
		runtime.GC() // what is garbage is known now only
		if readMemory().free >= worthwhile {
			debug.FreeOSMemory()
		} else {
			rest = upkeepRest
		}
	}
}

// memory is Go's heap in bytes.
type memory struct {
	allocated uint64 // ever
	objects   uint64 // live, or garbage that is yet to be found
	free      uint64 // neither in use nor given back
}

func (m memory) held() uint64 { return m.objects + m.free }

func readMemory() memory {
	s := [...]metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s[:])
	return memory{s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Uint64()}
}
