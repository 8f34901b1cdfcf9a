// Package waker is how other goroutines reach a worker of a host that has no way to
// do so but by way of its connections.
package waker

import (
	"sync"
	"sync/atomic"
	"time"
)

// timerSlack is how late the timer may be. While events come by themselves they do
// what is due before it fires.
const timerSlack = 5 * time.Millisecond

// Filter is one of a worker's filters, as the host has it. Filters can be compared.
type Filter interface {
	// Scheduler makes a scheduler that schedules events on the filter.
	Scheduler() Scheduler
}

// Scheduler schedules events on the worker. It is lost without a word when its
// filter dies.
type Scheduler interface {
	// Commit schedules one. Any goroutine may call it.
	Commit()
	// Delete gives the scheduler back. Nothing is called after it.
	Delete()
}

// Waker is the one way by which other goroutines reach a worker: an event scheduled
// on a filter that is alive. Events of a filter that dies are lost, so when it does
// another one takes over, and is woken again.
//
// Wake and what After brings may come from any goroutine; the other methods are the
// worker's.
type Waker struct {
	mu      sync.Mutex
	sched   Scheduler
	pending atomic.Bool
	timer   *time.Timer
	filter  Filter // whose scheduler it is
}

// Wake asks for an event. Until Taken is called it asks for one only.
func (k *Waker) Wake() {
	if k.pending.Swap(true) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sched != nil {
		k.sched.Commit()
	}
}

// After has Wake called after d, in place of what an earlier call asked for; if d is
// negative, never.
func (k *Waker) After(d time.Duration) {
	if d >= 0 {
		d += timerSlack
	}
	switch {
	case k.timer == nil && d >= 0:
		k.timer = time.AfterFunc(d, k.Wake)
	case k.timer == nil:
	case d < 0:
		k.timer.Stop()
	default:
		k.timer.Reset(d)
	}
}

// Taken is called when the event has come.
func (k *Waker) Taken() { k.pending.Store(false) }

// Due reports whether an event is pending that no filter can bring.
func (k *Waker) Due() bool { return k.filter == nil && k.pending.Load() }

// Filter returns the filter that brings the events, nil when there is none.
func (k *Waker) Filter() Filter { return k.filter }

// Use has f bring the events, unless another one does.
func (k *Waker) Use(f Filter) {
	if k.filter != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.filter, k.sched = f, f.Scheduler()
	if k.pending.Load() {
		k.sched.Commit()
	}
}

// Gone is told that f has died. It reports whether another one is needed: f brought
// the events.
func (k *Waker) Gone(f Filter) bool {
	if k.filter != f {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sched.Delete()
	k.filter, k.sched = nil, nil
	return true
}
