package telemetry

import (
	"math"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

var (
	names    = []string{"protocol", "service", "method", "route", "cluster", "outcome"}
	requests = prometheus.NewDesc("meltemi_requests_total", "Requests, oneways and streams that have ended.", names, nil)
	duration = prometheus.NewDesc("meltemi_request_duration_seconds", "Time from a request to its end.", names, nil)
	inflight = prometheus.NewDesc("meltemi_requests_in_flight", "Requests, oneways and streams that have not ended.", names[:3], nil)
	overflow = prometheus.NewDesc("meltemi_metrics_overflow_total", "Label sets beyond the limit: requests that began, or ended, under the service "+Other+".", nil, nil)
)

// Describe implements prometheus.Collector.
func (r *Registry) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requests, duration, inflight, overflow} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Workers are not stopped.
func (r *Registry) Collect(ch chan<- prometheus.Metric) {
	r.operations.Each(func(o operation, workers []*inFlights) {
		n := int64(0)
		for _, f := range workers {
			n += f.n.Load()
		}
		ch <- prometheus.MustNewConstMetric(inflight, prometheus.GaugeValue, float64(max(0, n)), o.protocol, o.service, o.method)
	})
	r.series.Each(func(l labels, workers []*histogram) {
		m := &times{labels: l}
		for _, h := range workers {
			m.add(h)
		}
		ch <- prometheus.MustNewConstMetric(requests, prometheus.CounterValue, float64(m.count), l.values()...)
		ch <- m
	})
	ch <- prometheus.MustNewConstMetric(overflow, prometheus.CounterValue, float64(r.overflow.Load()))
}

func (l *labels) values() []string {
	return []string{l.protocol, l.service, l.method, l.route, l.cluster, l.outcome}
}

// times is a series of request durations, of all workers, as a classic and a native
// histogram.
type times struct {
	labels
	counts
}

// Desc implements prometheus.Metric.
func (t *times) Desc() *prometheus.Desc { return duration }

// Write implements prometheus.Metric.
func (t *times) Write(m *dto.Metric) error {
	for i, v := range t.values() {
		m.Label = append(m.Label, &dto.LabelPair{Name: proto.String(names[i]), Value: proto.String(v)})
	}
	slices.SortFunc(m.Label, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
	h := &dto.Histogram{SampleSum: proto.Float64(float64(t.sum) / 1e9)}
	n := uint64(0)
	for i, b := range bounds {
		n += t.classic[i]
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: proto.Float64(b.Seconds()), CumulativeCount: proto.Uint64(n), Exemplar: t.exemplars[i].shown()})
	}
	if e := t.exemplars[len(bounds)].shown(); e != nil { // else the last bucket goes without saying
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: proto.Float64(math.Inf(1)), CumulativeCount: proto.Uint64(t.count), Exemplar: e})
	}
	h.SampleCount = proto.Uint64(t.count)
	h.Schema, h.ZeroThreshold, h.ZeroCount = proto.Int32(schema), proto.Float64(0), proto.Uint64(0)
	t.spans(h)
	m.Histogram = h
	return nil
}

// spans are the buckets of the native histogram that are not empty. The index of one is
// that of its upper bound: 2^(index/2^schema) seconds.
func (t *times) spans(h *dto.Histogram) {
	next, before := int32(0), int64(0)
	for i, n := range t.native {
		if n == 0 {
			continue
		}
		index := int32(least<<schema + i + 1)
		if len(h.PositiveSpan) == 0 || index != next {
			h.PositiveSpan = append(h.PositiveSpan, &dto.BucketSpan{Offset: proto.Int32(index - next), Length: proto.Uint32(0)})
		}
		s := h.PositiveSpan[len(h.PositiveSpan)-1]
		s.Length = proto.Uint32(s.GetLength() + 1)
		h.PositiveDelta = append(h.PositiveDelta, int64(n)-before)
		before, next = int64(n), index+1
	}
}
