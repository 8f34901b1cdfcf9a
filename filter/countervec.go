package filter

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meltemi-mesh/meltemi/filter/telemetry"
)

const (
	// maxSets bounds the sets of values that a CounterVec tells apart.
	maxSets = 1000
	// maxLabelValue is where a value is cut, in bytes.
	maxLabelValue = 256
)

// CounterVec is a counter for each set of values of its labels, which may come with the
// traffic. It is for Prometheus alone: the host's statistics have no end. The first 1000
// sets of a listener are told apart, and for good; others count together, with
// "_OTHER" for each value.
type CounterVec struct {
	key  ownKey
	desc *prometheus.Desc
	// at is where the values of With stand among the sorted labels.
	at []int

	sets atomic.Pointer[map[string]*SetCounter] // by what With has been given

	mu   sync.Mutex // held to add a set, and to read all
	all  []*SetCounter
	rest SetCounter // of all others
}

// SetCounter is the counter of one set of values.
type SetCounter struct {
	n      atomic.Int64
	values []string // in the order of the sorted labels
}

// Add adds n, which must not be negative. Any goroutine may call it.
func (c *SetCounter) Add(n int64) { c.n.Add(n) }

// With returns the counter for a set of values, in the order of the labels, which it does
// not keep. It allocates nothing for one that has been there. Of a value up to 256 bytes
// count. Any goroutine may call it.
func (v *CounterVec) With(values ...[]byte) *SetCounter {
	if len(values) != len(v.at) {
		panic(fmt.Sprintf("filter: a CounterVec of %d labels is given %d values", len(v.at), len(values)))
	}
	var room [512]byte
	key := room[:0]
	for _, value := range values {
		value = value[:min(len(value), maxLabelValue)]
		key = append(binary.AppendUvarint(key, uint64(len(value))), value...)
	}
	if c := (*v.sets.Load())[string(key)]; c != nil {
		return c
	}
	return v.add(string(key), values)
}

func (v *CounterVec) add(key string, values [][]byte) *SetCounter {
	v.mu.Lock()
	defer v.mu.Unlock()
	sets := *v.sets.Load()
	if c := sets[key]; c != nil {
		return c
	}
	if len(sets) >= maxSets {
		return &v.rest
	}
	c := &SetCounter{values: make([]string, len(values))}
	for i, value := range values {
		c.values[v.at[i]] = telemetry.Label(value)
	}
	if i := slices.IndexFunc(v.all, func(o *SetCounter) bool { return slices.Equal(o.values, c.values) }); i >= 0 {
		c = v.all[i] // bytes that are no text are all the same
	} else {
		v.all = append(v.all, c)
	}
	more := maps.Clone(sets)
	more[key] = c
	v.sets.Store(&more)
	return c
}

// CounterVec returns a counter with labels whose values may come with the traffic, the
// same for all filters of this name in all versions of the listener that ask for it by one
// name. It is meltemi_filter_name_total for Prometheus, and its name and labels are as
// Counter wants them. Only while the filter is built.
func (s *Scope) CounterVec(name string, labels ...string) (*CounterVec, error) {
	s.building("metrics")
	if len(labels) == 0 || strings.ContainsAny(name, "{}") {
		return nil, fmt.Errorf("the metric %s needs labels, and no place for them in its name", name)
	}
	all := make([]Label, len(labels))
	for i, l := range labels {
		all[i] = Label{l}
	}
	n, err := named(name, all)
	if err != nil {
		return nil, err
	}
	f, err := s.l.mod.family(n, vector, s.name)
	if err != nil {
		return nil, err
	}
	key := ownKey{metricsKey: s.l.metricsKey(), family: f, filter: s.name}
	v := s.l.mod.vecs[key]
	if v == nil {
		v = &CounterVec{key: key, desc: f.desc}
		v.sets.Store(&map[string]*SetCounter{})
		for _, l := range labels {
			v.at = append(v.at, slices.Index(n.labels, l))
			v.rest.values = append(v.rest.values, telemetry.Other)
		}
		v.all = []*SetCounter{&v.rest}
		s.l.mod.vecs[key] = v
	}
	return v, nil
}

// collect tells Prometheus of all sets that have counted.
func (v *CounterVec) collect(ch chan<- prometheus.Metric) {
	v.mu.Lock()
	all := v.all // of which nothing changes
	v.mu.Unlock()
	for _, c := range all {
		if n := c.n.Load(); n > 0 {
			labels := append([]string{v.key.protocol, v.key.prefix, v.key.filter}, c.values...)
			ch <- prometheus.MustNewConstMetric(v.desc, prometheus.CounterValue, float64(n), labels...)
		}
	}
}
