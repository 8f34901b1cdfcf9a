package filter

import (
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

// Scope is what a filter has of its listener. It is valid as long as the filter is.
type Scope struct {
	Env
	l    *listener
	hc   host.Config // nil once the filter is built
	name string      // of the filter
}

// Life is that of the configuration.
func (s *Scope) Life() *Life { return s.l.life }

// Shared returns what all filters of this name in the process share under a key: make
// makes it for the first one, and it lives as long as a configuration that has asked
// for it. A new version of a configuration so goes on with what the one before it
// had, if the key tells all that make depends on. Only while the filter is built.
func (s *Scope) Shared(key string, make func(l *Life) any) any {
	s.building("Shared")
	k := sharedKey{s.name, key}
	v := s.l.mod.shares[k]
	if v == nil {
		v = &shared{life: s.l.newLife()}
		v.value = make(v.life)
		s.l.mod.shares[k] = v
	}
	if _, has := s.l.shares[k]; !has {
		if s.l.shares == nil {
			s.l.shares = map[sharedKey]*shared{}
		}
		s.l.shares[k] = v
		v.users++
	}
	return v.value
}

func (s *Scope) building(what string) {
	if s.hc == nil {
		panic("filter: " + s.name + " calls Scope." + what + " after it was built")
	}
}

type sharedKey struct{ filter, key string }

// shared is what configurations share. It is the main thread's, but for its value.
type shared struct {
	value any
	life  *Life
	users int // configurations
}

// Counter returns a counter of the filter's, the same for all filters of this name in
// the listener that ask for it by one name and labels. Only while the filter is built.
//
// Among the host's statistics it is "PROTOCOL.STAT_PREFIX.name", and ".label.value"
// behind that for each label, in the order of their names; in such a value all but ASCII
// letters, digits and dashes is an underscore, and an empty one is one. A label whose
// "{label}" is in the name has its value there, as it is. What comes to one name so, of
// whatever filters, is one metric to the host.
//
// For Prometheus it is meltemi_filter_name_total, with underscores for what else is in
// the name, and with real labels. All metrics of one name in the process, of whatever
// filters, must be of one kind and have labels of the same names: otherwise there is an
// error. So the name begins with the filter's.
func (s *Scope) Counter(name string, labels ...Label) (*Counter, error) {
	m, err := s.define(name, labels, counter, s.hc.DefineCounter)
	return (*Counter)(m), err
}

// Gauge returns a gauge of the filter's, as Counter does; for Prometheus it is
// meltemi_filter_name.
func (s *Scope) Gauge(name string, labels ...Label) (*Gauge, error) {
	m, err := s.define(name, labels, gauge, s.hc.DefineGauge)
	return (*Gauge)(m), err
}

// Histogram returns a histogram of the filter's, as Counter does; for Prometheus it is
// meltemi_filter_name, with buckets up to 1, 2, 5, 10, 20 and so on to 10⁹, whatever the
// unit is.
func (s *Scope) Histogram(name string, labels ...Label) (*Histogram, error) {
	m, err := s.define(name, labels, histogram, s.hc.DefineHistogram)
	return (*Histogram)(m), err
}

func (s *Scope) define(name string, labels []Label, k kind, define func(string) (host.MetricID, error)) (*own, error) {
	s.building("metrics")
	n, err := named(name, labels)
	if err != nil {
		return nil, err
	}
	if metrics.Has(n.stat) {
		return nil, fmt.Errorf("each listener has a metric %s of its own", n.stat)
	}
	f, err := s.l.mod.family(n, k, s.name)
	if err != nil {
		return nil, err
	}
	key := ownKey{metricsKey: s.l.metricsKey(), family: f, filter: s.name, values: strings.Join(n.values, "\xff")}
	o := &own{key: key, stat: s.l.Protocol + "." + s.StatPrefix + "." + n.stat, kind: k, place: len(s.l.owned)}
	var same *own // of another filter, or with other labels, to the host
	for _, other := range s.l.owned {
		switch {
		case other.key == key:
			return other, nil
		case other.stat == o.stat && other.kind != k:
			return nil, fmt.Errorf("the metric %s is asked for as a %s and as a %s", o.stat, other.kind, k)
		case other.stat == o.stat:
			same = other
		}
	}
	if same != nil {
		o.id = same.id
	} else if o.id, err = define(o.stat); err != nil {
		return nil, err
	}
	o.state = s.l.mod.own(key, n.values)
	s.l.owned = append(s.l.owned, o)
	return o, nil
}

// Collector returns what all filters of this name in the process show to Prometheus
// beside their counters, gauges and histograms: metrics whose label values come with the
// traffic. make makes it for the first filter that asks; it lives as long as the process.
// Its metrics appear under the names that it gives them, which no other has, and it
// describes all of them. [telemetry.Table] is what such metrics are counted in. Only while
// the filter is built.
func (s *Scope) Collector(make func() prometheus.Collector) (prometheus.Collector, error) {
	s.building("Collector")
	mod := s.l.mod
	if c := mod.collectors[s.name]; c != nil {
		return c, nil
	}
	c := make()
	if err := mod.described.Register(c); err != nil {
		return nil, err
	}
	mod.collectors[s.name] = c
	return c, nil
}

// settle ends the building of the listener's filters.
func (s *Scope) settle() { s.hc = nil }
