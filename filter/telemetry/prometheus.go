package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

// The names of labels, sorted.
var (
	names         = []string{"cluster", "method", "outcome", "protocol", "route", "service"}
	inFlightNames = []string{"method", "protocol", "service"}
)

const (
	requests     = "meltemi_requests_total"
	requestsHelp = "Requests, oneways and streams that have ended."
	duration     = "meltemi_request_duration_seconds"
	durationHelp = "Time from a request to its end."
	inflight     = "meltemi_requests_in_flight"
	inflightHelp = "Requests, oneways and streams that have not ended."
	overflow     = "meltemi_metrics_overflow_total"
	overflowHelp = "Label sets beyond the limit: requests that began, or ended, under the service " + Other + "."
)

var descs = map[string]*prometheus.Desc{
	requests: prometheus.NewDesc(requests, requestsHelp, names, nil),
	duration: prometheus.NewDesc(duration, durationHelp, names, nil),
	inflight: prometheus.NewDesc(inflight, inflightHelp, inFlightNames, nil),
	overflow: prometheus.NewDesc(overflow, overflowHelp, nil, nil),
}

// Describe implements prometheus.Collector.
func (r *Registry) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Workers are not stopped.
func (r *Registry) Collect(ch chan<- prometheus.Metric) { Collect(r, ch, descs) }

// Keep implements Keeper.
func (r *Registry) Keep() Page {
	p := &page{
		r: r, inflight: Family(inflight, inflightHelp, dto.MetricType_GAUGE),
		requests: Family(requests, requestsHelp, dto.MetricType_COUNTER), duration: Family(duration, durationHelp, dto.MetricType_HISTOGRAM),
	}
	beyond := Family(overflow, overflowHelp, dto.MetricType_COUNTER)
	p.overflow = Counter(beyond, nil)
	p.families = []*dto.MetricFamily{p.inflight, p.requests, p.duration, beyond}
	return p
}

// page is what a Registry shows.
type page struct {
	r                            *Registry
	inflight, requests, duration *dto.MetricFamily
	families                     []*dto.MetricFamily
	overflow                     *float64
	inflights                    Places[*float64]
	series                       Places[*times]
	now                          counts // of one series
}

// Update implements Page. Workers are not stopped.
func (p *page) Update() []*dto.MetricFamily {
	p.r.operations.Each(func(i int, o *operation, workers []*inFlights) {
		n := int64(0)
		for _, f := range workers {
			n += int64(f.n.Load())
		}
		g := p.inflights.At(i)
		if *g == nil {
			*g = Gauge(p.inflight, Labels(inFlightNames, []string{o.method, o.protocol, o.service}))
		}
		**g = float64(max(0, n))
	})
	p.r.series.Each(func(i int, l *labels, workers []*histogram) {
		p.now = counts{}
		for _, h := range workers {
			p.now.add(h)
		}
		t := p.series.At(i)
		if *t == nil {
			pairs := Labels(names, []string{l.cluster, l.method, l.outcome, l.protocol, l.route, l.service})
			*t = &times{requests: Counter(p.requests, pairs), shown: AddHistogram(p.duration, pairs, seconds[:])}
			h := (*t).shown.Histogram
			h.Schema, h.ZeroThreshold, h.ZeroCount = proto.Int32(schema), proto.Float64(0), proto.Uint64(0)
		}
		(*t).show(&p.now)
	})
	*p.overflow = float64(p.r.overflow.Load())
	return p.families
}

// seconds are bounds as Prometheus has them.
var seconds = func() (s [len(bounds)]float64) {
	for i, b := range bounds {
		s[i] = b.Seconds()
	}
	return s
}()

// times is a series of request durations, of all workers, as a classic and a native
// histogram, and their number.
type times struct {
	requests  *float64
	shown     *Histogram
	exemplars [len(bounds) + 1]*exemplar // that are shown
	spans     []*dto.BucketSpan          // for those of the native one
}

func (t *times) show(c *counts) {
	h := t.shown
	*t.requests, h.Count, h.Sum = float64(c.count), c.count, float64(c.sum)/1e9
	n := uint64(0)
	for i := range bounds {
		n += c.classic[i]
		h.UpTo[i] = n
	}
	for i, e := range c.exemplars {
		if e != t.exemplars[i] {
			t.exemplars[i] = e
			h.Exemplify(i, e.shown())
		}
	}
	t.native(c)
}

// native shows the buckets of the native histogram that are not empty. The index of one is
// that of its upper bound: 2^(index/2^schema) seconds.
func (t *times) native(c *counts) {
	h := t.shown.Histogram
	h.PositiveDelta = h.PositiveDelta[:0]
	next, before, n := int32(0), int64(0), 0
	for i, count := range c.native {
		if count == 0 {
			continue
		}
		index := int32(least<<schema + i + 1)
		if n == 0 || index != next {
			if n++; n > len(t.spans) {
				t.spans = append(t.spans, &dto.BucketSpan{Offset: new(int32), Length: new(uint32)})
			}
			*t.spans[n-1].Offset, *t.spans[n-1].Length = index-next, 0
		}
		*t.spans[n-1].Length++
		h.PositiveDelta = append(h.PositiveDelta, int64(count)-before)
		before, next = int64(count), index+1
	}
	h.PositiveSpan = t.spans[:n]
}
