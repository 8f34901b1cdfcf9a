package filter

import (
	"fmt"

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

// Counter returns a counter of the listener's, "PROTOCOL.STAT_PREFIX.name" among the
// host's statistics. It is the same for all that ask for it by one name. Only while
// the filter is built.
func (s *Scope) Counter(name string) (*Counter, error) {
	m, err := s.define(name, counter, s.hc.DefineCounter)
	return (*Counter)(m), err
}

// Gauge returns a gauge of the listener's, as Counter does.
func (s *Scope) Gauge(name string) (*Gauge, error) {
	m, err := s.define(name, gauge, s.hc.DefineGauge)
	return (*Gauge)(m), err
}

// Histogram returns a histogram of the listener's, as Counter does.
func (s *Scope) Histogram(name string) (*Histogram, error) {
	m, err := s.define(name, histogram, s.hc.DefineHistogram)
	return (*Histogram)(m), err
}

func (s *Scope) define(name string, k kind, define func(string) (host.MetricID, error)) (*own, error) {
	s.building("metrics")
	if metrics.Has(name) {
		return nil, fmt.Errorf("each listener has a metric %s of its own", name)
	}
	name = s.l.Protocol + "." + s.StatPrefix + "." + name
	for _, o := range s.l.owned {
		if o.name == name {
			if o.kind != k {
				return nil, fmt.Errorf("the metric %s is asked for as two kinds", name)
			}
			return o, nil
		}
	}
	id, err := define(name)
	if err != nil {
		return nil, err
	}
	o := &own{name: name, kind: k, id: id, place: len(s.l.owned), state: s.l.mod.own(name)}
	s.l.owned = append(s.l.owned, o)
	return o, nil
}

// settle ends the building of the listener's filters.
func (s *Scope) settle() { s.hc = nil }
