package telemetry

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Keeper is a collector of whose metrics only the values change: somebody who asks again
// and again can keep the rest.
type Keeper interface {
	prometheus.Collector
	// Keep returns a new page, which knows of no metric yet.
	Keep() Page
}

// Page is what a [Keeper] shows, kept. One goroutine at a time uses it.
type Page interface {
	// Update returns the families with the values that they have now, in place: they are
	// valid until the next call. Some may have no metric. Nothing is allocated for label
	// sets that have been there before, but for what their histograms have not had.
	Update() []*dto.MetricFamily
}

// Family returns an empty family.
func Family(name, help string, t dto.MetricType) *dto.MetricFamily {
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &t}
}

// Labels are names, which are sorted, with their values. Both are kept.
func Labels(names, values []string) []*dto.LabelPair {
	all, pairs := make([]dto.LabelPair, len(names)), make([]*dto.LabelPair, len(names))
	for i := range all {
		all[i].Name, all[i].Value = &names[i], &values[i]
		pairs[i] = &all[i]
	}
	return pairs
}

// Counter adds a counter to a family, and returns where its value is.
func Counter(to *dto.MetricFamily, labels []*dto.LabelPair) *float64 {
	v := new(float64)
	to.Metric = append(to.Metric, &dto.Metric{Label: labels, Counter: &dto.Counter{Value: v}})
	return v
}

// Gauge adds a gauge to a family, and returns where its value is.
func Gauge(to *dto.MetricFamily, labels []*dto.LabelPair) *float64 {
	v := new(float64)
	to.Metric = append(to.Metric, &dto.Metric{Label: labels, Gauge: &dto.Gauge{Value: v}})
	return v
}

// Histogram is where the values of one of a family's are.
type Histogram struct {
	*dto.Histogram
	Count uint64
	Sum   float64
	UpTo  []uint64 // its bounds
}

// AddHistogram adds a histogram with bounds, which are kept, to a family.
func AddHistogram(to *dto.MetricFamily, labels []*dto.LabelPair, bounds []float64) *Histogram {
	h := &Histogram{UpTo: make([]uint64, len(bounds))}
	all, buckets := make([]dto.Bucket, len(bounds)), make([]*dto.Bucket, len(bounds), len(bounds)+1)
	for i := range all {
		all[i].UpperBound, all[i].CumulativeCount = &bounds[i], &h.UpTo[i]
		buckets[i] = &all[i]
	}
	h.Histogram = &dto.Histogram{SampleCount: &h.Count, SampleSum: &h.Sum, Bucket: buckets}
	to.Metric = append(to.Metric, &dto.Metric{Label: labels, Histogram: h.Histogram})
	return h
}

// Exemplify has bucket i, the last one being that beyond the bounds, show e.
func (h *Histogram) Exemplify(i int, e *dto.Exemplar) {
	if i < len(h.UpTo) {
		h.Bucket[i].Exemplar = e
		return
	}
	if len(h.Bucket) == len(h.UpTo) { // else it goes without saying
		inf := math.Inf(1)
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: &inf, CumulativeCount: &h.Count})
	}
	h.Bucket[i].Exemplar = e
}

// Collect sends what k shows to a registry, whose description of a family is that of its
// name.
func Collect(k Keeper, ch chan<- prometheus.Metric, of map[string]*prometheus.Desc) {
	for _, f := range k.Keep().Update() {
		for _, m := range f.Metric {
			ch <- metric{of[f.GetName()], m}
		}
	}
}

// metric implements prometheus.Metric.
type metric struct {
	desc *prometheus.Desc
	m    *dto.Metric
}

func (m metric) Desc() *prometheus.Desc { return m.desc }

func (m metric) Write(to *dto.Metric) error {
	to.Label, to.Counter, to.Gauge, to.Histogram = m.m.Label, m.m.Counter, m.m.Gauge, m.m.Histogram
	return nil
}
