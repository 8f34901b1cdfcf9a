package metrics

import "github.com/meltemi-mesh/meltemi/filter/host"

const (
	// A batch keeps the memory of so many times, reports when it has so many, and
	// drops them when it has a multiple and nobody to report to.
	keepTimes   = 4096
	reportTimes = 1024
	maxTimes    = 1 << 16
)

// Batch is what a worker has gathered for a listener. The zero value is empty.
type Batch struct {
	counts [Counters]int64
	gauges [Gauges]int64
	times  []uint64
	dirty  bool
}

// Count adds n, which is positive, to a counter.
func (b *Batch) Count(c Counter, n int64) {
	b.counts[c] += n
	b.dirty = true
}

// Gauge adds n to a gauge.
func (b *Batch) Gauge(g Gauge, n int64) {
	b.gauges[g] += n
	b.dirty = true
}

// Record adds a time in milliseconds to the histogram. It reports whether there are
// so many that they should be reported.
func (b *Batch) Record(ms uint64) (full bool) {
	if len(b.times) >= maxTimes {
		b.times = b.times[:0]
	}
	b.times = append(b.times, ms)
	b.dirty = true
	return len(b.times) >= reportTimes
}

// Inherit takes over what o has gathered for counters and gauges.
func (b *Batch) Inherit(o *Batch) {
	for i, n := range o.counts {
		b.counts[i] += n
	}
	for i, n := range o.gauges {
		b.gauges[i] += n
	}
	b.dirty = b.dirty || o.dirty
	*o = Batch{}
}

// Dirty reports whether there is anything to report.
func (b *Batch) Dirty() bool { return b.dirty }

// Report hands all over by one of the listener's connections.
func (b *Batch) Report(s *Set, d host.Downstream) {
	for i, n := range b.counts {
		if n != 0 {
			d.Count(s.counters[i], n)
			s.totals.counters[i].Add(n)
			b.counts[i] = 0
		}
	}
	for i, n := range b.gauges {
		if n != 0 {
			s.totals.gauges[i].Add(n)
			b.gauges[i] = 0
		}
		if t := &s.totals.untold[i]; t.Load() != 0 {
			n += t.Swap(0)
		}
		if n != 0 {
			d.Add(s.gauges[i], n)
		}
	}
	if len(b.times) > 0 {
		d.Record(s.time, b.times)
		if b.times = b.times[:0]; cap(b.times) > keepTimes {
			b.times = nil
		}
	}
	b.dirty = false
}
