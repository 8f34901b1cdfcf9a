package filter

import (
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/telemetry"
)

// totals returns what all versions of l count in.
func (mod *Module) totals(l *listener) *metrics.Totals {
	mod.mu.Lock()
	defer mod.mu.Unlock()
	name := l.metricsKey()
	t := mod.counted[name]
	if t == nil {
		t = &metrics.Totals{}
		mod.counted[name] = t
	}
	return t
}

// hasVersion reports whether there is a configuration that has these metrics.
func (mod *Module) hasVersion(k metricsKey) bool {
	for o := range mod.listeners {
		if o.metricsKey() == k {
			return true
		}
	}
	return false
}

// Observe has requests counted by what they call, for [Module.Metrics]: those that begin
// from now on, for good.
func (mod *Module) Observe() { mod.telemetry.On() }

// Metrics returns all that the module counts, and what Go and the process use.
func (mod *Module) Metrics() prometheus.Gatherer { return mod.gatherer(true) }

// gatherer gathers all, or all but that of keepers.
func (mod *Module) gatherer(keepers bool) prometheus.Gatherer {
	r := prometheus.NewRegistry()
	if keepers {
		r.MustRegister(mod.telemetry)
	}
	r.MustRegister(listenerMetrics{mod}, filterMetrics{mod}, collected{mod, keepers}, &mod.exports)
	r.MustRegister(buildInfo())
	// With a prefix, as Istio's agent puts these metrics on one page with an application's.
	prometheus.WrapRegistererWithPrefix("meltemi_", r).MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Scrapes is Metrics for somebody who asks again and again.
func (mod *Module) Scrapes() prometheus.TransactionalGatherer {
	return &telemetry.Scrapes{Rest: mod.gatherer(false), Keepers: mod.keepers}
}

// keepers are the collectors of whose metrics scrapes keep what does not change.
func (mod *Module) keepers() []telemetry.Keeper {
	mod.mu.Lock()
	defer mod.mu.Unlock()
	all := []telemetry.Keeper{mod.telemetry}
	for _, c := range mod.collectors {
		if k, keeps := c.(telemetry.Keeper); keeps {
			all = append(all, k)
		}
	}
	return all
}

// Push has all that the module counts pushed to a collector from now on, and no more to
// the one before; nil is none. Requests are counted by what they call as with Observe.
func (mod *Module) Push(to *export.Push, b host.Background) {
	mod.mu.Lock()
	defer mod.mu.Unlock()
	key := ""
	if to != nil {
		key = to.Key()
	}
	if key == mod.pushKey {
		return
	}
	if mod.pushing != nil {
		mod.pushing.end()
		mod.pushing = nil
	}
	if mod.pushKey = key; to == nil {
		return
	}
	mod.Observe()
	mod.pushing = newLife(b, mod, new(atomic.Int64)) // panics are counted with all others
	mod.exports.Push(to, mod.Metrics(), mod.pushing)
	mod.pushing.begin()
}

// buildInfo says which Meltemi this is, of whichever shared object.
func buildInfo() prometheus.Collector {
	const module = "github.com/meltemi-mesh/meltemi"
	version, revision := "unknown", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Path == module {
			version = info.Main.Version
			for _, s := range info.Settings {
				if s.Key == "vcs.revision" {
					revision = s.Value
				}
			}
		}
		for _, d := range info.Deps {
			if d.Path == module {
				version = d.Version
			}
		}
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "meltemi_build_info", Help: "Which Meltemi this is, and what Go it was built with. Always 1.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "goversion": runtime.Version()},
	})
	g.Set(1)
	return g
}

// listenerMetrics are the counters of listeners that Envoy has, too. It implements
// prometheus.Collector.
type listenerMetrics struct{ mod *Module }

var (
	listenerLabels   = []string{"protocol", "listener"}
	listenerCounters = func() (ds [metrics.Counters]*prometheus.Desc) {
		for c := range ds {
			name := metrics.Counter(c).String()
			ds[c] = prometheus.NewDesc("meltemi_listener_"+name+"_total", "What docs/metrics.md says of "+name+".", listenerLabels, nil)
		}
		return ds
	}()
	listenerGauges = func() (ds [metrics.Gauges]*prometheus.Desc) {
		for g := range ds {
			name := metrics.Gauge(g).String()
			ds[g] = prometheus.NewDesc("meltemi_listener_"+name, "What docs/metrics.md says of "+name+".", listenerLabels, nil)
		}
		return ds
	}()
)

func (m listenerMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range listenerCounters {
		ch <- d
	}
	for _, d := range listenerGauges {
		ch <- d
	}
}

func (m listenerMetrics) Collect(ch chan<- prometheus.Metric) {
	m.mod.mu.Lock()
	all := maps.Clone(m.mod.counted)
	m.mod.mu.Unlock()
	for name, t := range all {
		for c, d := range listenerCounters {
			// Also 0, so that the first that is counted is an increase.
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(t.Counter(metrics.Counter(c))), name.protocol, name.prefix)
		}
		for g, d := range listenerGauges {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(t.Gauge(metrics.Gauge(g))), name.protocol, name.prefix)
		}
	}
}

// collected is what filters collect themselves. It implements prometheus.Collector,
// without telling what there may be.
type collected struct {
	mod     *Module
	keepers bool // also those
}

func (collected) Describe(chan<- *prometheus.Desc) {}

func (c collected) Collect(ch chan<- prometheus.Metric) {
	c.mod.mu.Lock()
	all := slices.Collect(maps.Values(c.mod.collectors))
	c.mod.mu.Unlock()
	for _, of := range all {
		if _, keeps := of.(telemetry.Keeper); keeps && !c.keepers {
			continue
		}
		of.Collect(ch)
	}
}

// filterMetrics are what filters count. It implements prometheus.Collector, without
// telling what there may be.
type filterMetrics struct{ mod *Module }

func (filterMetrics) Describe(chan<- *prometheus.Desc) {}

func (m filterMetrics) Collect(ch chan<- prometheus.Metric) {
	m.mod.mu.Lock()
	all := make(map[ownKey]*ownState, len(m.mod.owns))
	for k, st := range m.mod.owns {
		if st.users > 0 || st.told() { // else of one that was refused
			all[k] = st
		}
	}
	vecs := slices.Collect(maps.Values(m.mod.vecs))
	m.mod.mu.Unlock()
	for _, v := range vecs {
		v.collect(ch)
	}
	for k, st := range all {
		labels := append([]string{k.protocol, k.prefix, k.filter}, st.values...)
		switch k.family.kind {
		case counter:
			ch <- prometheus.MustNewConstMetric(k.family.desc, prometheus.CounterValue, float64(st.total.Load()), labels...)
		case gauge:
			ch <- prometheus.MustNewConstMetric(k.family.desc, prometheus.GaugeValue, float64(st.value.Load()), labels...)
		case histogram:
			count, sum, upTo := st.recorded.Told()
			ch <- prometheus.MustNewConstHistogram(k.family.desc, count, sum, upTo, labels...)
		}
	}
}
