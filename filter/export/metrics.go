package export

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meltemi-mesh/meltemi/filter/fields"
)

const (
	// pushInterval is OpenTelemetry's own.
	pushInterval = time.Minute
	// maxPoints bound one upload.
	maxPoints = 1000
)

// Push is where metrics are pushed to, and how often.
type Push struct {
	service  service
	interval time.Duration
	resource []*commonpb.KeyValue
	key      string
}

// Key is the same for pushes that are.
func (p *Push) Key() string { return p.key }

// PushConfig is a configuration in JSON.
type PushConfig struct {
	// GRPCService and HTTPService are Envoy's messages of these names; one of them is
	// required.
	GRPCService json.RawMessage `json:"grpc_service"`
	HTTPService json.RawMessage `json:"http_service"`
	// Interval is the time between two pushes, as protobuf writes it: 1s or more, by
	// default 60s.
	Interval json.RawMessage `json:"interval"`
	// ResourceAttributes are those of the process, beside service.name and
	// service.instance.id, which it has itself.
	ResourceAttributes map[string]string `json:"resource_attributes"`
}

// ParsePush judges a configuration at path. Faults are [fields.Error]s.
func ParsePush(m *PushConfig, path string) (*Push, error) {
	c := &checker{}
	var g *corev3.GrpcService
	var h *corev3.HttpService
	var every *durationpb.Duration
	if m.GRPCService != nil {
		g = &corev3.GrpcService{}
		c.json(m.GRPCService, g, path+".grpc_service")
	}
	if m.HTTPService != nil {
		h = &corev3.HttpService{}
		c.json(m.HTTPService, h, path+".http_service")
	}
	if m.Interval != nil {
		every = &durationpb.Duration{}
		c.json(m.Interval, every, path+".interval")
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	p := &Push{resource: process(m.ResourceAttributes), service: c.service(g, h, path)}
	p.interval = c.Duration(every, path+".interval", time.Second, pushInterval)
	p.key = fmt.Sprintf("%q", []string{keyOf(g), keyOf(h), p.interval.String(), fmt.Sprint(p.resource)})
	return p, c.Err()
}

func (c *checker) json(raw []byte, m proto.Message, path string) {
	if err := protojson.Unmarshal(raw, m); err != nil {
		c.Add(path, "%s", fields.CleanError(err))
	}
}

// process tells whose metrics they are: those of several pods must not be taken for one's.
func process(attributes map[string]string) []*commonpb.KeyValue {
	name, _ := os.Hostname()
	all := map[string]string{"service.name": ownService(), "service.instance.id": name}
	maps.Copy(all, attributes)
	var kvs []*commonpb.KeyValue
	for _, k := range slices.Sorted(maps.Keys(all)) {
		kvs = append(kvs, attr(k, all[k]))
	}
	return kvs
}

// Push pushes what is gathered as long as life lasts, and once at its end.
func (p *Pool) Push(to *Push, from prometheus.Gatherer, life Life) {
	p.mu.Lock()
	counts := p.countsOf("metrics", to.service.String())
	p.mu.Unlock()
	life.Go(func(ctx context.Context) {
		u := &pusher{
			Push: to, from: from, counts: counts, begun: time.Now(),
			client: client{service: to.service, method: exportMetrics, dial: life.Dial, pool: &p.connections},
			state:  state{what: "metrics to " + to.service.String(), logf: life.Logf},
		}
		defer u.close()
		u.run(ctx)
	})
}

// pusher pushes metrics. It belongs to one goroutine.
type pusher struct {
	*Push
	client
	state
	from   prometheus.Gatherer
	counts *counts
	begun  time.Time // and so what is counted
}

func (u *pusher) run(ctx context.Context) {
	next := time.NewTimer(rand.N(u.interval)) // many processes begin at once
	defer next.Stop()
	for {
		select {
		case <-next.C:
			next.Reset(u.interval)
			u.push(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
			defer cancel()
			u.push(last)
			return
		}
	}
}

// push sends what there is now. What is not taken is not tried again, as the next push
// says it, too.
func (u *pusher) push(ctx context.Context) {
	families, err := u.from.Gather() // with an error it returns what it has
	for request, n := range metricRequests(families, u.resource, u.begun, time.Now()) {
		no, failed := u.otlp(ctx, request)
		if f := (*failure)(nil); errors.As(failed, &f) {
			u.counts.failed.Add(1)
			no = n
		}
		no = min(max(no, 0), n)
		u.counts.sent.Add(int64(n - no))
		u.counts.drop(refused, no)
		err = errors.Join(err, failed)
		if ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		u.fail(err, "it is pushed again after "+u.interval.String())
	} else {
		u.well("takes metrics again")
	}
}

// metricRequests yields requests of OTLP's MetricsService, with how many points each has.
func metricRequests(families []*dto.MetricFamily, resource []*commonpb.KeyValue, begun, now time.Time) func(yield func([]byte, int) bool) {
	return func(yield func([]byte, int) bool) {
		var all []*metricspb.Metric
		n := 0
		flush := func() bool {
			if n == 0 {
				return true
			}
			b, err := proto.Marshal(&metricspb.MetricsData{ResourceMetrics: []*metricspb.ResourceMetrics{{ // whose fields are the request's
				Resource:     &resourcepb.Resource{Attributes: resource},
				ScopeMetrics: []*metricspb.ScopeMetrics{{Scope: &commonpb.InstrumentationScope{Name: scopeName}, Metrics: all}},
			}}})
			if err != nil {
				panic(err) // all texts are UTF-8
			}
			points := n
			all, n = nil, 0
			return yield(b, points)
		}
		for _, f := range families {
			for ms := range slices.Chunk(f.GetMetric(), maxPoints) {
				if n+len(ms) > maxPoints && !flush() {
					return
				}
				m := &metricspb.Metric{Name: utf8(f.GetName()), Description: utf8(f.GetHelp()), Unit: f.GetUnit()}
				points{nanos(begun), nanos(now)}.fill(m, f.GetType(), ms)
				all, n = append(all, m), n+len(ms)
			}
		}
		flush()
	}
}

// points are data points that have one time.
type points struct{ begun, now uint64 }

func nanos(t time.Time) uint64 { return uint64(t.UnixNano()) }

// since is when something has begun to count.
func (p points) since(t *timestamppb.Timestamp) uint64 {
	if t == nil {
		return p.begun
	}
	return nanos(t.AsTime())
}

func (p points) fill(m *metricspb.Metric, kind dto.MetricType, ms []*dto.Metric) {
	const cumulative = metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE
	switch {
	case kind == dto.MetricType_COUNTER:
		s := &metricspb.Sum{AggregationTemporality: cumulative, IsMonotonic: true}
		for _, d := range ms {
			c := d.GetCounter()
			n := p.number(d, c.GetValue())
			n.StartTimeUnixNano = p.since(c.GetCreatedTimestamp())
			n.Exemplars = exemplars(n.Exemplars, c.GetExemplar())
			s.DataPoints = append(s.DataPoints, n)
		}
		m.Data = &metricspb.Metric_Sum{Sum: s}
	case kind == dto.MetricType_HISTOGRAM && native(ms[0].GetHistogram()):
		h := &metricspb.ExponentialHistogram{AggregationTemporality: cumulative}
		for _, d := range ms {
			h.DataPoints = append(h.DataPoints, p.exponential(d))
		}
		m.Data = &metricspb.Metric_ExponentialHistogram{ExponentialHistogram: h}
	case kind == dto.MetricType_HISTOGRAM:
		h := &metricspb.Histogram{AggregationTemporality: cumulative}
		for _, d := range ms {
			h.DataPoints = append(h.DataPoints, p.classic(d))
		}
		m.Data = &metricspb.Metric_Histogram{Histogram: h}
	case kind == dto.MetricType_SUMMARY:
		s := &metricspb.Summary{}
		for _, d := range ms {
			s.DataPoints = append(s.DataPoints, p.summary(d))
		}
		m.Data = &metricspb.Metric_Summary{Summary: s}
	default:
		g := &metricspb.Gauge{}
		for _, d := range ms {
			g.DataPoints = append(g.DataPoints, p.number(d, d.GetGauge().GetValue()+d.GetUntyped().GetValue())) // it is one of them
		}
		m.Data = &metricspb.Metric_Gauge{Gauge: g}
	}
}

func (p points) number(d *dto.Metric, v float64) *metricspb.NumberDataPoint {
	return &metricspb.NumberDataPoint{TimeUnixNano: p.now, Attributes: labels(d.GetLabel()), Value: &metricspb.NumberDataPoint_AsDouble{AsDouble: v}}
}

func (p points) summary(d *dto.Metric) *metricspb.SummaryDataPoint {
	s := d.GetSummary()
	o := &metricspb.SummaryDataPoint{
		TimeUnixNano: p.now, StartTimeUnixNano: p.since(s.GetCreatedTimestamp()), Attributes: labels(d.GetLabel()),
		Count: s.GetSampleCount(), Sum: s.GetSampleSum(),
	}
	for _, q := range s.GetQuantile() {
		o.QuantileValues = append(o.QuantileValues, &metricspb.SummaryDataPoint_ValueAtQuantile{Quantile: q.GetQuantile(), Value: q.GetValue()})
	}
	return o
}

func (p points) classic(d *dto.Metric) *metricspb.HistogramDataPoint {
	h := d.GetHistogram()
	o := &metricspb.HistogramDataPoint{
		TimeUnixNano: p.now, StartTimeUnixNano: p.since(h.GetCreatedTimestamp()), Attributes: labels(d.GetLabel()),
		Count: h.GetSampleCount(), Sum: h.SampleSum, Exemplars: ofBuckets(h),
	}
	below := uint64(0)
	for _, b := range h.GetBucket() {
		if math.IsInf(b.GetUpperBound(), 1) {
			break
		}
		o.ExplicitBounds = append(o.ExplicitBounds, b.GetUpperBound())
		o.BucketCounts = append(o.BucketCounts, b.GetCumulativeCount()-below)
		below = b.GetCumulativeCount()
	}
	o.BucketCounts = append(o.BucketCounts, h.GetSampleCount()-below)
	return o
}

// native tells histograms of Prometheus that have buckets like OpenTelemetry's exponential
// ones.
func native(h *dto.Histogram) bool {
	return h.GetZeroThreshold() > 0 || h.GetZeroCount() > 0 || len(h.GetPositiveSpan()) > 0 || len(h.GetNegativeSpan()) > 0
}

func (p points) exponential(d *dto.Metric) *metricspb.ExponentialHistogramDataPoint {
	h := d.GetHistogram()
	return &metricspb.ExponentialHistogramDataPoint{
		TimeUnixNano: p.now, StartTimeUnixNano: p.since(h.GetCreatedTimestamp()), Attributes: labels(d.GetLabel()),
		Count: h.GetSampleCount(), Sum: h.SampleSum, Scale: h.GetSchema(), ZeroCount: h.GetZeroCount(), ZeroThreshold: h.GetZeroThreshold(),
		Positive: buckets(h.GetPositiveSpan(), h.GetPositiveDelta()), Negative: buckets(h.GetNegativeSpan(), h.GetNegativeDelta()),
		Exemplars: append(exemplars(nil, h.GetExemplars()...), ofBuckets(h)...),
	}
}

// buckets are spans with what each bucket has more than the one before it. Prometheus
// counts buckets by their upper bounds, OpenTelemetry by their lower ones.
func buckets(spans []*dto.BucketSpan, deltas []int64) *metricspb.ExponentialHistogramDataPoint_Buckets {
	if len(spans) == 0 {
		return nil
	}
	o := &metricspb.ExponentialHistogramDataPoint_Buckets{Offset: spans[0].GetOffset() - 1}
	n := int64(0)
	for i, s := range spans {
		if i > 0 {
			o.BucketCounts = append(o.BucketCounts, make([]uint64, s.GetOffset())...)
		}
		for range s.GetLength() {
			n += deltas[0]
			deltas = deltas[1:]
			o.BucketCounts = append(o.BucketCounts, uint64(n))
		}
	}
	return o
}

func labels(ls []*dto.LabelPair) []*commonpb.KeyValue {
	kvs := make([]*commonpb.KeyValue, len(ls))
	for i, l := range ls {
		kvs[i] = attr(l.GetName(), l.GetValue())
	}
	return kvs
}

func ofBuckets(h *dto.Histogram) (es []*metricspb.Exemplar) {
	for _, b := range h.GetBucket() {
		es = exemplars(es, b.GetExemplar())
	}
	return es
}

// exemplars appends what is not nil, with the ids that are labels of Prometheus.
func exemplars(es []*metricspb.Exemplar, all ...*dto.Exemplar) []*metricspb.Exemplar {
	for _, e := range all {
		if e == nil {
			continue
		}
		o := &metricspb.Exemplar{Value: &metricspb.Exemplar_AsDouble{AsDouble: e.GetValue()}}
		if t := e.GetTimestamp(); t != nil {
			o.TimeUnixNano = nanos(t.AsTime())
		}
		for _, l := range e.GetLabel() {
			id, err := hex.DecodeString(l.GetValue())
			switch {
			case err == nil && l.GetName() == "trace_id" && len(id) == 16:
				o.TraceId = id
			case err == nil && l.GetName() == "span_id" && len(id) == 8:
				o.SpanId = id
			default:
				o.FilteredAttributes = append(o.FilteredAttributes, attr(l.GetName(), l.GetValue()))
			}
		}
		es = append(es, o)
	}
	return es
}
