package filter

import (
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

type kind uint8

const (
	counter kind = iota
	gauge
	histogram
	vector // of counters
)

func (k kind) String() string {
	return [...]string{"counter", "gauge", "histogram", "counter by traffic"}[k]
}

// own is a metric that a filter has defined, in one configuration.
type own struct {
	key   ownKey
	stat  string // to the host
	kind  kind
	id    host.MetricID
	place int // in the owned metrics of its listener
	state *ownState
}

// ownKey is what a metric has in common with that of other versions of its listener.
type ownKey struct {
	metricsKey
	family *family
	filter string
	values string // of the labels
}

// ownState is what the process knows of a metric beside what workers have gathered. All
// versions of a configuration have the same, so that it goes on where it was.
type ownState struct {
	value    atomic.Int64   // of a gauge; of a counter what was added and not reported
	reported atomic.Int64   // of a gauge
	total    atomic.Int64   // of a counter
	recorded metrics.Values // of a histogram
	values   []string       // of the labels
	users    int            // configurations; under mod.mu
}

// told reports whether there is anything to tell of one that no configuration has.
func (st *ownState) told() bool {
	n, _, _ := st.recorded.Told()
	return n > 0 || st.total.Load() > 0
}

// add counts.
func (st *ownState) add(n int64) {
	st.value.Add(n)
	st.total.Add(n)
}

// Counter counts what happens to a filter's messages.
type Counter own

// Add adds n, which must not be negative. Any goroutine may call it; the host is told
// when it is told of the listener's traffic the next time. For what happens to a message
// there is [Message.Count].
func (c *Counter) Add(n int64) { c.state.add(n) }

// Gauge is a number that goes up and down. Any goroutine may use it; the host is told
// when it is told of the listener's traffic the next time. It goes on in the listener's
// next version.
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

// maxOwnValues of a histogram are gathered; of older ones of a listener without a
// connection the host is not told.
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
		h.state.recorded.Add(*vs)
		*vs = (*vs)[:0]
	}
	wl.owns.dirty = true
	*vs = append(*vs, v)
}

// settle adds what was gathered to what the process knows. Recorded values stay, for the
// host.
func (b *ownBatch) settle(owned []*own) {
	if !b.dirty {
		return
	}
	for _, o := range owned {
		switch n := &b.counts[o.place]; {
		case *n > 0:
			o.state.add(*n)
			*n = 0
		case o.kind == histogram:
			o.state.recorded.Add(b.values[o.place])
		}
	}
	b.dirty = false
}

// report hands over what was gathered, and what others have added, by one of the
// listener's connections.
func (b *ownBatch) report(owned []*own, d host.Downstream) {
	gathered := b.dirty
	b.settle(owned)
	for _, o := range owned {
		switch o.kind {
		case counter:
			if n := o.state.value.Swap(0); n > 0 {
				d.Count(o.id, n)
			}
		case gauge:
			for v := o.state.value.Load(); v != o.state.reported.Load(); v = o.state.value.Load() {
				if was := o.state.reported.Swap(v); was != v {
					d.Add(o.id, v-was)
				}
			}
		case histogram:
			if gathered && len(b.values[o.place]) > 0 {
				d.Record(o.id, b.values[o.place])
				b.values[o.place] = b.values[o.place][:0]
			}
		}
	}
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
func (mod *Module) own(k ownKey, values []string) *ownState {
	st := mod.owns[k]
	if st == nil {
		st = &ownState{values: values}
		mod.owns[k] = st
	}
	st.users++
	return st
}

// disown lets go of the metrics of a configuration that the host forgets. Gauges are
// forgotten with the last one; the others have counted for good.
func (mod *Module) disown(owned []*own) {
	for _, o := range owned {
		if o.state.users--; o.state.users == 0 && o.kind == gauge {
			delete(mod.owns, o.key)
		}
	}
}
