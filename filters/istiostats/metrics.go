package istiostats

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

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
	sum telemetry.Count // the bits of a float64
	n   [len(bounds) + 1]telemetry.Count
}

func (h *histogram) observe(v float64) {
	i := 0
	for i < len(bounds) && v > bounds[i] {
		i++
	}
	h.sum.Set(math.Float64bits(math.Float64frombits(h.sum.Load()) + v))
	h.n[i].Add(1)
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

const (
	requests     = "istio_requests_total"
	requestsHelp = "Requests, oneways and streams that have ended."
	duration     = "istio_request_duration_milliseconds"
	durationHelp = "Time from a request to its end."
	received     = "istio_request_bytes"
	receivedHelp = "Bytes from the client."
	sent         = "istio_response_bytes"
	sentHelp     = "Bytes to the client."
	overflow     = "meltemi_istio_stats_overflow_total"
	overflowHelp = "Requests whose labels are beyond the limit: those of istio_requests_total with the application_protocol " + telemetry.Other + "."
)

var descs = map[string]*prometheus.Desc{
	requests: prometheus.NewDesc(requests, requestsHelp, names[:], nil),
	duration: prometheus.NewDesc(duration, durationHelp, names[:], nil),
	received: prometheus.NewDesc(received, receivedHelp, names[:], nil),
	sent:     prometheus.NewDesc(sent, sentHelp, names[:], nil),
	overflow: prometheus.NewDesc(overflow, overflowHelp, nil, nil),
}

// Describe implements prometheus.Collector.
func (*metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Workers are not stopped.
func (ms *metrics) Collect(ch chan<- prometheus.Metric) { telemetry.Collect(ms, ch, descs) }

// Keep implements telemetry.Keeper.
func (ms *metrics) Keep() telemetry.Page {
	p := &page{
		table: ms.table, requests: telemetry.Family(requests, requestsHelp, dto.MetricType_COUNTER),
		duration: telemetry.Family(duration, durationHelp, dto.MetricType_HISTOGRAM),
		received: telemetry.Family(received, receivedHelp, dto.MetricType_HISTOGRAM), sent: telemetry.Family(sent, sentHelp, dto.MetricType_HISTOGRAM),
	}
	beyond := telemetry.Family(overflow, overflowHelp, dto.MetricType_COUNTER)
	p.overflow = telemetry.Counter(beyond, nil)
	p.families = []*dto.MetricFamily{p.requests, p.duration, p.received, p.sent, beyond}
	return p
}

// page is what the metrics show, kept.
type page struct {
	table                              *telemetry.Table[labels, cell]
	requests, duration, received, sent *dto.MetricFamily
	families                           []*dto.MetricFamily
	overflow                           *float64
	series                             telemetry.Places[*series]
}

// series are those of a label set.
type series struct {
	requests        *float64
	took, got, gave *telemetry.Histogram
}

// Update implements telemetry.Page. Workers are not stopped.
func (p *page) Update() []*dto.MetricFamily {
	beyond := uint64(0)
	p.table.Each(func(i int, l *labels, workers []*cell) {
		at := p.series.At(i)
		if *at == nil {
			*at = p.add(l)
		}
		s := *at
		for _, h := range [...]*telemetry.Histogram{s.took, s.got, s.gave} {
			h.Count, h.Sum = 0, 0
			clear(h.UpTo)
		}
		for _, c := range workers {
			add(s.took, &c.duration)
			add(s.got, &c.request)
			add(s.gave, &c.response)
		}
		*s.requests = float64(s.took.Count)
		if l.protocol == telemetry.Other {
			beyond += s.took.Count
		}
	})
	*p.overflow = float64(beyond)
	return p.families
}

// add makes the series of a label set.
func (p *page) add(l *labels) *series {
	values := l.values()
	pairs := telemetry.Labels(names[:], values[:])
	return &series{
		requests: telemetry.Counter(p.requests, pairs), took: telemetry.AddHistogram(p.duration, pairs, bounds[:]),
		got: telemetry.AddHistogram(p.received, pairs, bounds[:]), gave: telemetry.AddHistogram(p.sent, pairs, bounds[:]),
	}
}

// add adds what a worker has counted.
func add(to *telemetry.Histogram, h *histogram) {
	n := uint64(0)
	for i := range h.n {
		n += h.n[i].Load()
		if i < len(bounds) {
			to.UpTo[i] += n
		}
	}
	to.Count += n
	to.Sum += math.Float64frombits(h.sum.Load())
}
