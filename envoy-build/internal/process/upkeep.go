package process

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
func upkeep(trim func()) {
	var k keeper
	for range time.Tick(upkeepTick) {
		if !k.idle(readMemory()) {
			continue
		}
		trim()
		runtime.GC() // what is garbage is known now only
		if k.found(readMemory()) {
			debug.FreeOSMemory()
		}
	}
}

// keeper decides when to look for memory to give back.
type keeper struct {
	last memory
	rest int // for so many ticks
}

// idle reports, once a tick, whether much memory is held that seems to be needed
// no more.
func (k *keeper) idle(m memory) bool {
	busy := m.allocated-k.last.allocated > m.held()/4 // and needs it again
	k.last = m
	if k.rest > 0 {
		k.rest--
		return false
	}
	return !busy && m.held() >= worthwhile
}

// found reports whether what is free, now that garbage has been collected, is worth
// giving back. If not the keeper rests.
func (k *keeper) found(m memory) bool {
	if m.free >= worthwhile {
		return true
	}
	k.rest = upkeepRest
	return false
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
