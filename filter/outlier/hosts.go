package outlier

import (
	"sync"
	"sync/atomic"
	"time"
)

// Hosts are those of one cluster to which connections lead. The zero value is ready
// for use.
type Hosts struct {
	version  atomic.Uint32
	panicked atomic.Bool

	mu      sync.Mutex
	all     map[string]*Host
	size    int // of the cluster; 0: unknown
	ejected int
	bad     int    // those, and those that would be if it were allowed
	numbers uint64 // of ejections and probes
}

// Use returns the host at an address, for a connection that leads there. Leave ends
// that.
func (hs *Hosts) Use(addr string, now time.Duration) *Host {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.all[addr]
	if h == nil {
		hs.sweep(now)
		h = &Host{hosts: hs, addr: addr}
		if hs.all == nil {
			hs.all = map[string]*Host{}
		}
		hs.all[addr] = h
	}
	h.users++
	return h
}

// Version changes whenever [Host.Out] may tell something else of a host.
func (hs *Hosts) Version() uint32 { return hs.version.Load() }

// Resize tells how many hosts the cluster has that can be used.
func (hs *Hosts) Resize(n int) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.size != n {
		hs.size = n
		hs.changed()
	}
}

// Out reports whether the host at an address is to be left out.
func (hs *Hosts) Out(addr string) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.all[addr]
	return h != nil && h.Out()
}

// Due returns the address of an ejected host that waits for somebody who tries it, "" if
// none does.
func (hs *Hosts) Due(now time.Duration) string {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.ejected > 0 {
		for _, h := range hs.all {
			if h.due(now) {
				return h.addr
			}
		}
	}
	return ""
}

// Sweep forgets hosts that have left the cluster: no connection leads to them, and
// none has led to an ejected one for long since it could be tried.
func (hs *Hosts) Sweep(now time.Duration) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.sweep(now)
}

func (hs *Hosts) sweep(now time.Duration) {
	for addr, h := range hs.all {
		if h.users > 0 || now < h.forgetAt {
			continue
		}
		if h.out.Load() {
			h.comeBack(now)
		}
		delete(hs.all, addr)
	}
}

func (hs *Hosts) count() int {
	if hs.size > 0 {
		return hs.size
	}
	return len(hs.all)
}

// room reports whether another host may be ejected.
func (hs *Hosts) room(p *Policy) bool {
	n := hs.count()
	return hs.ejected < min(max(1, n*p.MaxEjectionPercent/100), n-1)
}

// changed is called when a host is ejected, is back, is bad, or is not any more. If
// all are bad, leaving out those that happened to be the first would only put their
// load on the others.
func (hs *Hosts) changed() {
	hs.panicked.Store(hs.bad > 0 && hs.bad >= hs.count())
	hs.version.Add(1)
}
