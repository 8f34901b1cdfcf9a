package istiostats

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/telemetry"
)

// maxSeries are the label sets that are told apart in the process.
const maxSeries = 1000

// bounds of all histograms are those that Istio's metrics have in Envoy.
var bounds = [...]float64{
	.5, 1, 5, 10, 25, 50, 100, 250, 500, 1e3, 2.5e3, 5e3, 10e3, 30e3, 60e3, 300e3, 600e3, 1800e3, 3600e3,
}

// histogram is of milliseconds, or of bytes. One goroutine writes, others read.
type histogram struct {
	sum atomic.Uint64 // the bits of a float64
	n   [len(bounds) + 1]atomic.Uint64
}

func (h *histogram) observe(v float64) {
	i := 0
	for i < len(bounds) && v > bounds[i] {
		i++
	}
	h.sum.Store(math.Float64bits(math.Float64frombits(h.sum.Load()) + v))
	h.n[i].Store(h.n[i].Load() + 1)
}

// cell is what one worker counts of one series.
type cell struct{ duration, request, response histogram }

func (c *cell) count(f *filter.Facts) {
	c.duration.observe(float64(max(0, f.End-f.Start)) / float64(time.Millisecond))
	c.request.observe(float64(f.ReceivedBytes))
	c.response.observe(float64(f.SentBytes))
}

// metrics are the process's. It implements prometheus.Collector.
type metrics struct {
	table *telemetry.Table[labels, cell]
}

func newMetrics() *metrics {
	return &metrics{telemetry.NewTable[labels, cell](maxSeries, other)}
}

var (
	requests = prometheus.NewDesc("istio_requests_total", "Requests, oneways and streams that have ended.", names[:], nil)
	duration = prometheus.NewDesc("istio_request_duration_milliseconds", "Time from a request to its end.", names[:], nil)
	received = prometheus.NewDesc("istio_request_bytes", "Bytes from the client.", names[:], nil)
	sent     = prometheus.NewDesc("istio_response_bytes", "Bytes to the client.", names[:], nil)
	overflow = prometheus.NewDesc("meltemi_istio_stats_overflow_total", "Requests whose labels are beyond the limit: those of istio_requests_total with the application_protocol "+telemetry.Other+".", nil, nil)
)

// Describe implements prometheus.Collector.
func (*metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requests, duration, received, sent, overflow} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Workers are not stopped.
func (ms *metrics) Collect(ch chan<- prometheus.Metric) {
	beyond := uint64(0)
	ms.table.Each(func(l labels, workers []*cell) {
		pairs := l.pairs()
		took := newSeries(duration, pairs)
		got, gave := newSeries(received, pairs), newSeries(sent, pairs)
		for _, c := range workers {
			took.add(&c.duration)
			got.add(&c.request)
			gave.add(&c.response)
		}
		if l.protocol == telemetry.Other {
			beyond += took.count
		}
		ch <- &series{desc: requests, pairs: pairs, count: took.count}
		ch <- took
		ch <- got
		ch <- gave
	})
	ch <- prometheus.MustNewConstMetric(overflow, prometheus.CounterValue, float64(beyond))
}

// pairs are the labels as series have them.
func (l *labels) pairs() []*dto.LabelPair {
	values := l.values()
	all := make([]dto.LabelPair, len(names))
	pairs := make([]*dto.LabelPair, len(names))
	for i := range all {
		all[i].Name, all[i].Value = &names[i], &values[i]
		pairs[i] = &all[i]
	}
	return pairs
}

// series is a counter, or a histogram if it has buckets. It implements
// prometheus.Metric.
type series struct {
	desc    *prometheus.Desc
	pairs   []*dto.LabelPair
	count   uint64
	sum     float64
	buckets []uint64
}

func newSeries(d *prometheus.Desc, pairs []*dto.LabelPair) *series {
	return &series{desc: d, pairs: pairs, buckets: make([]uint64, len(bounds))}
}

func (s *series) add(h *histogram) {
	for i := range h.n {
		n := h.n[i].Load()
		if i < len(bounds) {
			s.buckets[i] += n
		}
		s.count += n
	}
	s.sum += math.Float64frombits(h.sum.Load())
}

// Desc implements prometheus.Metric.
func (s *series) Desc() *prometheus.Desc { return s.desc }

// Write implements prometheus.Metric.
func (s *series) Write(m *dto.Metric) error {
	m.Label = s.pairs
	if s.buckets == nil {
		m.Counter = &dto.Counter{Value: proto.Float64(float64(s.count))}
		return nil
	}
	h := &dto.Histogram{SampleCount: proto.Uint64(s.count), SampleSum: proto.Float64(s.sum)}
	n := uint64(0)
	for i := range bounds {
		n += s.buckets[i]
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: &bounds[i], CumulativeCount: proto.Uint64(n)})
	}
	m.Histogram = h
	return nil
}
