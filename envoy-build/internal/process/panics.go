package process

import (
	"runtime/debug"
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Panics are those that were caught. Any goroutine may use them.
type Panics struct {
	log     Log
	lines   Sometimes
	untaken atomic.Uint64
}

// NewPanics returns none. Each that is caught is logged by log, or, when there are
// many, counted in what it logs.
func NewPanics(log Log) *Panics { return &Panics{log: log} }

// Caught records a panic. It is called on the stack that panicked, with what
// recover returned.
func (p *Panics) Caught(doing string, r any) {
	p.untaken.Add(1)
	p.lines.Logf(p.log, host.Error, "meltemi: panic while %s: %v\n%s", doing, r, debug.Stack())
}

// Guard runs what may panic, and reports whether it did not.
func (p *Panics) Guard(doing string, f func()) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			p.Caught(doing, r)
		}
	}()
	f()
	return true
}

// Any reports whether there are panics that were not taken.
func (p *Panics) Any() bool { return p.untaken.Load() > 0 }

// Take returns how many panics there were since the last Take.
func (p *Panics) Take() uint64 { return p.untaken.Swap(0) }
