package export

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/filter/export/exporttest"
)

// decoded is what metricRequests makes of families.
func decoded(t *testing.T, families []*dto.MetricFamily) (all []*metricspb.Metric, points []int) {
	t.Helper()
	for b, n := range metricRequests(families, nil, start, start.Add(time.Minute)) {
		m := &metricspb.MetricsData{}
		require.NoError(t, proto.Unmarshal(b, m))
		all = append(all, m.GetResourceMetrics()[0].GetScopeMetrics()[0].GetMetrics()...)
		points = append(points, n)
	}
	return all, points
}

// TestMetricsOfPrometheus become OpenTelemetry's.
func TestMetricsOfPrometheus(t *testing.T) {
	const times = `"startTimeUnixNano": "1796000523004005000", "timeUnixNano": "1796000583004005000"`
	for family, want := range map[string]string{
		`name: "c_total" help: "h" type: COUNTER unit: "s" metric {label {name: "k" value: "v\xff"} counter {value: 3 created_timestamp {seconds: 7}
			exemplar {label {name: "trace_id" value: "01000000000000000000000000000002"} label {name: "span_id" value: "0300000000000004"} label {name: "trace_id" value: "x"} value: 2 timestamp {seconds: 9}}}}`: `{
			"name": "c_total", "description": "h", "unit": "s", "sum": {"aggregationTemporality": 2, "isMonotonic": true, "dataPoints": [
				{"startTimeUnixNano": "7000000000", "timeUnixNano": "1796000583004005000", "asDouble": 3, "attributes": [{"key": "k", "value": {"stringValue": "v\ufffd"}}],
				"exemplars": [{"asDouble": 2, "timeUnixNano": "9000000000", "traceId": "AQAAAAAAAAAAAAAAAAAAAg==", "spanId": "AwAAAAAAAAQ=", "filteredAttributes": [{"key": "trace_id", "value": {"stringValue": "x"}}]}]}]}}`,
		`name: "g" type: GAUGE metric {gauge {value: 3}} metric {gauge {value: -4}}`: `{"name": "g", "gauge": {"dataPoints": [
			{"timeUnixNano": "1796000583004005000", "asDouble": 3}, {"timeUnixNano": "1796000583004005000", "asDouble": -4}]}}`,
		`name: "u" type: UNTYPED metric {untyped {value: 3}}`: `{"name": "u", "gauge": {"dataPoints": [{"timeUnixNano": "1796000583004005000", "asDouble": 3}]}}`,
		`name: "s" type: SUMMARY metric {summary {sample_count: 3 sample_sum: 4 quantile {quantile: 0.5 value: 1}}}`: `{"name": "s", "summary": {"dataPoints": [
			{` + times + `, "count": "3", "sum": 4, "quantileValues": [{"quantile": 0.5, "value": 1}]}]}}`,
		`name: "h" type: HISTOGRAM metric {histogram {sample_count: 6 sample_sum: 4 bucket {upper_bound: 1 cumulative_count: 2} bucket {upper_bound: 2 cumulative_count: 5
			exemplar {value: 1.5}} bucket {upper_bound: inf cumulative_count: 6}}} metric {histogram {sample_count: 6 sample_sum: 4 bucket {upper_bound: 1 cumulative_count: 2}}}`: `{
			"name": "h", "histogram": {"aggregationTemporality": 2, "dataPoints": [
				{` + times + `, "count": "6", "sum": 4, "explicitBounds": [1, 2], "bucketCounts": ["2", "3", "1"], "exemplars": [{"asDouble": 1.5}]},
				{` + times + `, "count": "6", "sum": 4, "explicitBounds": [1], "bucketCounts": ["2", "4"]}]}}`,
		`name: "n" type: HISTOGRAM metric {histogram {sample_count: 9 sample_sum: 4 schema: 3 zero_threshold: 1e-9 zero_count: 1 bucket {upper_bound: 1 cumulative_count: 2 exemplar {value: 1}}
			positive_span {offset: -2 length: 2} positive_span {offset: 3 length: 1} positive_delta: 4 positive_delta: -2 positive_delta: 1
			negative_span {offset: 5 length: 1} negative_delta: 1 exemplars {value: 2}}}`: `{"name": "n", "exponentialHistogram": {"aggregationTemporality": 2, "dataPoints": [
				{` + times + `, "count": "9", "sum": 4, "scale": 3, "zeroCount": "1", "zeroThreshold": 1e-9, "positive": {"offset": -3, "bucketCounts": ["4", "2", "0", "0", "0", "3"]},
				"negative": {"offset": 4, "bucketCounts": ["1"]}, "exemplars": [{"asDouble": 2}, {"asDouble": 1}]}]}}`,
	} {
		f := &dto.MetricFamily{}
		require.NoError(t, prototext.UnmarshalOptions{AllowPartial: true}.Unmarshal([]byte(family), f), family)
		all, points := decoded(t, []*dto.MetricFamily{f})
		require.Len(t, all, 1)
		require.Equal(t, []int{len(f.GetMetric())}, points)
		m := &metricspb.Metric{}
		require.NoError(t, protojson.Unmarshal([]byte(want), m), want)
		require.Equal(t, protojson.Format(m), protojson.Format(all[0]))
	}
}

// TestANativeHistogram of the library's own says the same in both: where what was observed
// lies.
func TestANativeHistogram(t *testing.T) {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "h", NativeHistogramBucketFactor: 1.1})
	r := prometheus.NewRegistry()
	r.MustRegister(h)
	for _, v := range []float64{0.3, 1, 1.01, 64, -3} {
		h.Observe(v)
	}
	families, err := r.Gather()
	require.NoError(t, err)
	all, _ := decoded(t, families)
	d := all[0].GetExponentialHistogram().GetDataPoints()[0]
	require.EqualValues(t, 3, d.GetScale())
	index := map[int]uint64{} // bucket i is above 2^(i/8), and up to 2^((i+1)/8)
	for i, n := range d.GetPositive().GetBucketCounts() {
		if n > 0 {
			index[i+int(d.GetPositive().GetOffset())] = n
		}
	}
	require.Equal(t, map[int]uint64{-14: 1, -1: 1, 0: 1, 47: 1}, index)
	require.Equal(t, []uint64{1}, d.GetNegative().GetBucketCounts())
}

// TestManyPoints go in several requests.
func TestManyPoints(t *testing.T) {
	var families []*dto.MetricFamily
	for i, n := range []int{600, 600, 2500, 1} {
		f := &dto.MetricFamily{Name: proto.String(fmt.Sprint(i)), Type: dto.MetricType_GAUGE.Enum()}
		for range n {
			f.Metric = append(f.Metric, &dto.Metric{Gauge: &dto.Gauge{Value: proto.Float64(1)}})
		}
		families = append(families, f)
	}
	_, points := decoded(t, families)
	require.Equal(t, []int{600, 600, 1000, 1000, 501}, points)
}

func pushTo(t *testing.T, config string) *Push {
	t.Helper()
	m := &PushConfig{}
	require.NoError(t, json.Unmarshal([]byte(config), m))
	p, err := ParsePush(m, "otlp")
	require.NoError(t, err)
	return p
}

// TestPushes come at their interval and at the end; what a collector misses the next push
// says.
func TestPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		collector, l, stop := piped(t)
		away := errors.New("no")
		collector.Answer = func(int) (int, error) {
			if collector.Seen().Uploads == 1 {
				return 0, away
			}
			return 0, nil
		}
		var pool Pool
		r := prometheus.NewRegistry()
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "g"})
		r.MustRegister(g)
		pool.Push(pushTo(t, `{"http_service": {"http_uri": {"cluster": "c", "uri": "/v1/metrics"}}, "interval": "10s", "resource_attributes": {"zone": "z", "service.name": "me"}}`), r, l)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, collector.Seen().Uploads)
		require.Equal(t, "me", exporttest.Attribute(collector.Seen().Resource.GetAttributes(), "service.name"))
		require.Equal(t, "z", exporttest.Attribute(collector.Seen().Resource.GetAttributes(), "zone"))
		require.NotEmpty(t, exporttest.Attribute(collector.Seen().Resource.GetAttributes(), "service.instance.id"))
		g.Set(7)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, 2, collector.Seen().Uploads)
		require.Equal(t, "meltemi: metrics to cluster c: HTTP status 400 Bad Request: no\\n: it is pushed again after 10s", l.said())
		g.Set(8)
		l.over()
		require.Equal(t, 3, collector.Seen().Uploads)
		require.InDelta(t, 8, collector.Seen().Metrics[0].GetGauge().GetDataPoints()[0].GetAsDouble(), 0)
		require.Equal(t, "meltemi: metrics to cluster c: takes metrics again", l.said())
		c := pool.counted[countsKey{"metrics", "cluster c"}]
		require.Equal(t, []int64{2, 1, 1}, []int64{c.sent.Load(), c.lost(), c.failed.Load()})
		stop()
	})
}
