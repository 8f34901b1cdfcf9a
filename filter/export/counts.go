package export

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// reason is why something was dropped.
type reason uint8

const (
	// full: as much waits as may, or is on its way.
	full reason = iota
	// refused: the collector does not want it.
	refused
	// unavailable: the collector could not be reached for too long.
	unavailable
	// atTheEnd: nobody exports there any longer.
	atTheEnd
	reasons
)

var reasonNames = [reasons]string{"queue_full", "refused", "unavailable", "shutdown"}

// counts tell of one collector. What was offered is sent, dropped or waiting.
type counts struct {
	sent    atomic.Int64
	waiting atomic.Int64
	failed  atomic.Int64 // uploads
	dropped [reasons]atomic.Int64
}

func (c *counts) drop(why reason, n int) {
	if n > 0 {
		c.dropped[why].Add(int64(n))
	}
}

func (c *counts) lost() (n int64) {
	for i := range c.dropped {
		n += c.dropped[i].Load()
	}
	return n
}

// countsKey is what counts are told apart by.
type countsKey struct{ signal, collector string }

var (
	sentDesc    = prometheus.NewDesc("meltemi_export_sent_total", "What was exported, and acknowledged: spans of traces, records of logs.", []string{"signal", "collector"}, nil)
	waitingDesc = prometheus.NewDesc("meltemi_export_waiting", "What waits for the collector, or is on its way.", []string{"signal", "collector"}, nil)
	failedDesc  = prometheus.NewDesc("meltemi_export_upload_failures_total", "Uploads that came to nothing, those that are tried again included.", []string{"signal", "collector"}, nil)
	droppedDesc = prometheus.NewDesc("meltemi_export_dropped_total", "What was not exported, or not acknowledged.", []string{"signal", "collector", "reason"}, nil)
)

// Describe implements prometheus.Collector.
func (p *Pool) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sentDesc, waitingDesc, failedDesc, droppedDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p *Pool) Collect(ch chan<- prometheus.Metric) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, c := range p.counted {
		tell := func(d *prometheus.Desc, t prometheus.ValueType, n int64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, t, float64(n), append([]string{k.signal, k.collector}, labels...)...)
		}
		tell(sentDesc, prometheus.CounterValue, c.sent.Load())
		tell(waitingDesc, prometheus.GaugeValue, c.waiting.Load())
		tell(failedDesc, prometheus.CounterValue, c.failed.Load())
		for r := range c.dropped {
			tell(droppedDesc, prometheus.CounterValue, c.dropped[r].Load(), reasonNames[r])
		}
	}
}

// countsOf are kept for good, as counters only grow. p.mu is held.
func (p *Pool) countsOf(signal, collector string) *counts {
	k := countsKey{signal, collector}
	c := p.counted[k]
	if c == nil {
		c = &counts{}
		if p.counted == nil {
			p.counted = map[countsKey]*counts{}
		}
		p.counted[k] = c
	}
	return c
}
