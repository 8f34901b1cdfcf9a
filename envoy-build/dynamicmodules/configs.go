package dynamicmodules

import (
	"sync"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// configTable is configurations by their ids. They are made and destroyed on the main
// thread and looked up by workers.
type configTable struct {
	mu   sync.RWMutex
	last uint32
	m    map[uint32]*filterConfig
}

// filterConfig is one configuration of either filter.
type filterConfig struct {
	proxy     host.FilterConfig // nil for the carrier filter
	carrier   config.Carrier    // unless there is that
	scheduler unsafe.Pointer
}

// add returns the id of fc: later ones have higher ids.
func (t *configTable) add(fc *filterConfig) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[uint32]*filterConfig{}
	}
	t.last++
	t.m[t.last] = fc
	return t.last
}

// get returns nil when there is none.
func (t *configTable) get(id uint32) *filterConfig {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[id]
}

func (t *configTable) remove(id uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.m, id)
}
