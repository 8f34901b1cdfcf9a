package golang

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/process"
	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/host"
	hostmetrics "github.com/meltemi-mesh/meltemi/filter/metrics"
)

// namespace is what Envoy prints before the names of metrics whose listener has
// metrics_namespace meta_protocol.
const namespace = "envoy_meta_protocol_"

// What the host itself counts.
type processCounter uint8

const (
	panicsCounter processCounter = iota
	configsRefused
	clientsOverrun
	processCounters
)

var processNames = [processCounters]string{"panics", "config_refused", "downstream_overrun"}

// metrics are what all configurations have defined, by name: those of later versions of
// a listener go on where the ones before have come to. Envoy has none for this filter.
type metrics struct {
	panics  *process.Panics
	process [processCounters]atomic.Int64

	mu     sync.Mutex
	byName map[string]*metric
}

// metric is a counter, a gauge or a histogram.
type metric struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	value  atomic.Int64
	values *hostmetrics.Values // nil: it is no histogram
	users  int                 // definitions by configurations that are there
}

func (m *metric) add(delta int64) { m.value.Add(delta) }

func (m *metric) record(values []uint64) { m.values.Add(values) }

var errNoName = errors.New("metric without a name")

func (ms *metrics) define(name string, kind prometheus.ValueType, histogram bool) (*metric, error) {
	if name == "" {
		return nil, errNoName
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.byName[name]
	if m == nil {
		m = &metric{desc: prometheus.NewDesc(namespace+sanitized(name), "What docs/metrics.md says of "+name[strings.LastIndexByte(name, '.')+1:]+".", nil, nil), kind: kind}
		if histogram {
			m.values = &hostmetrics.Values{}
		}
		if ms.byName == nil {
			ms.byName = map[string]*metric{}
		}
		ms.byName[name] = m
	}
	if m.kind != kind || (m.values != nil) != histogram {
		return nil, errors.New("metric " + name + " is another kind of one already")
	}
	m.users++
	return m, nil
}

// release takes back the definitions of a configuration that goes. A gauge begins anew
// when it is the last that has it.
func (ms *metrics) release(defined []*metric) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range defined {
		if m.users--; m.users == 0 && m.kind == prometheus.GaugeValue {
			m.value.Store(0)
		}
	}
}

// sanitized is a name as Envoy prints it for Prometheus.
func sanitized(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '_', r == ':':
			return r
		}
		return '_'
	}, name)
}

// Describe implements prometheus.Collector: names come with configurations.
func (ms *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (ms *metrics) Collect(ch chan<- prometheus.Metric) {
	ms.process[panicsCounter].Add(int64(ms.panics.Take()))
	for c, name := range processNames {
		d := prometheus.NewDesc(namespace+name, "What docs/metrics.md says of "+name+".", nil, nil)
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(ms.process[c].Load()))
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.byName {
		if m.values == nil {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, float64(m.value.Load()))
			continue
		}
		count, sum, upTo := m.values.Told()
		ch <- prometheus.MustNewConstHistogram(m.desc, count, sum, upTo)
	}
}

// handler serves what the pipeline counts, and these.
func (ms *metrics) handler(pipeline prometheus.TransactionalGatherer) http.Handler {
	own := prometheus.NewRegistry()
	own.MustRegister(ms)
	return promhttp.HandlerForTransactional(prometheus.NewMultiTRegistry(pipeline, prometheus.ToTransactionalGatherer(own)), promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 4})
}

// gatherer and pusher are what the pipeline of package filter offers.
type gatherer interface {
	Scrapes() prometheus.TransactionalGatherer
}

type pusher interface {
	Push(to *export.Push, b host.Background)
}
