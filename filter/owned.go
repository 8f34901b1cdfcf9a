package filter

import (
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

type kind uint8

const (
	counter kind = iota
	gauge
	histogram
)

// own is a metric that a filter has defined, in one configuration.
type own struct {
	name  string
	kind  kind
	id    host.MetricID
	place int // in the owned metrics of its listener
	state *ownState
}

// ownState is what the process knows of a metric beside what workers have gathered. All
// versions of a configuration have the same, so that a gauge goes on where it was.
type ownState struct {
	value    atomic.Int64 // of a gauge; of a counter what was added and not reported
	reported atomic.Int64 // of a gauge
	users    int          // configurations; the main thread's
}

// Counter counts what happens to a filter's messages.
type Counter own

// Add adds n, which must not be negative. Any goroutine may call it; the host is told
// when it is told of the listener's traffic the next time. For what happens to a message
// there is [Message.Count].
func (c *Counter) Add(n int64) { c.state.value.Add(n) }

// Gauge is a number that goes up and down. Any goroutine may use it; the host is told
// when it is told of the listener's traffic the next time. Gauges of one name are one,
// also those of a listener's next version.
type Gauge own

// Add adds n.
func (g *Gauge) Add(n int64) { g.state.value.Add(n) }

// Set sets the gauge.
func (g *Gauge) Set(n int64) { g.state.value.Store(n) }

// Histogram gathers values.
type Histogram own

// Count adds n, which must not be negative, to a counter of the filter's.
func (m *Message) Count(c *Counter, n int64) { m.cfg.countOwn(c, n) }

// Record adds a value to a histogram of the filter's.
func (m *Message) Record(h *Histogram, v uint64) { m.cfg.recordOwn(h, v) }

// maxOwnValues of a histogram are gathered; older ones of a listener without a
// connection are lost.
const maxOwnValues = 4096

// ownBatch is what a worker has gathered of a listener's owned metrics.
type ownBatch struct {
	counts []int64
	values [][]uint64
	dirty  bool
}

func (wl *workerListener) ownBatch() *ownBatch {
	b := &wl.owns
	if n := len(wl.owned); len(b.counts) < n {
		b.counts, b.values = make([]int64, n), make([][]uint64, n)
	}
	wl.mark()
	b.dirty = true
	return b
}

func (wl *workerListener) countOwn(c *Counter, n int64) { wl.ownBatch().counts[c.place] += n }

func (wl *workerListener) recordOwn(h *Histogram, v uint64) {
	vs := &wl.ownBatch().values[h.place]
	if len(*vs) >= maxOwnValues && !wl.report() {
		*vs = (*vs)[:0]
	}
	wl.owns.dirty = true
	*vs = append(*vs, v)
}

// report hands over what was gathered, and what others have added, by one of the
// listener's connections.
func (b *ownBatch) report(owned []*own, d host.Downstream) {
	for _, o := range owned {
		switch o.kind {
		case counter:
			n := o.state.value.Swap(0)
			if b.dirty {
				n += b.counts[o.place]
				b.counts[o.place] = 0
			}
			if n > 0 {
				d.Count(o.id, n)
			}
		case gauge:
			for v := o.state.value.Load(); v != o.state.reported.Load(); v = o.state.value.Load() {
				if was := o.state.reported.Swap(v); was != v {
					d.Add(o.id, v-was)
				}
			}
		case histogram:
			if b.dirty && len(b.values[o.place]) > 0 {
				d.Record(o.id, b.values[o.place])
				b.values[o.place] = b.values[o.place][:0]
			}
		}
	}
	b.dirty = false
}

// bequeath leaves what was counted and not reported to who has the metrics beside the
// listener, which has no connection any more.
func (b *ownBatch) bequeath(owned []*own) {
	for i, n := range b.counts {
		if n > 0 {
			owned[i].state.value.Add(n)
			b.counts[i] = 0
		}
	}
}

// own returns the state of a metric for one more configuration.
func (mod *Module) own(name string) *ownState {
	st := mod.owns[name]
	if st == nil {
		st = &ownState{}
		mod.owns[name] = st
	}
	st.users++
	return st
}

// disown lets go of the metrics of a configuration that the host forgets, and with the
// last one of a name forgets it.
func (mod *Module) disown(owned []*own) {
	for _, o := range owned {
		if o.state.users--; o.state.users == 0 {
			delete(mod.owns, o.name)
		}
	}
}
