package telemetry

import (
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Scrapes gathers for somebody who asks again and again: what there is of each label set
// is kept for the next time, and so a scrape leaves next to nothing to the garbage
// collector, which workers would hear of. It implements prometheus.TransactionalGatherer.
type Scrapes struct {
	// Keepers are asked beside the Rest, of which nothing is kept.
	Keepers func() []Keeper
	Rest    prometheus.Gatherer

	mu   sync.Mutex
	free *scrape // of two at once, one keeps nothing
}

// scrape is what one is made of, and the next one can be.
type scrape struct {
	pages    map[Keeper]Page
	families []*dto.MetricFamily
}

// Gather implements prometheus.TransactionalGatherer. Workers are not stopped.
func (s *Scrapes) Gather() (families []*dto.MetricFamily, done func(), err error) {
	s.mu.Lock()
	p := s.free
	s.free = nil
	s.mu.Unlock()
	if p == nil {
		p = &scrape{pages: map[Keeper]Page{}}
	}
	rest, err := s.Rest.Gather() // with an error it returns what it has
	families = p.families[:0]
	families = append(families, rest...)
	for _, k := range s.Keepers() {
		page := p.pages[k]
		if page == nil {
			page = k.Keep()
			p.pages[k] = page
		}
		for _, f := range page.Update() {
			if len(f.Metric) > 0 {
				families = append(families, f)
			}
		}
	}
	slices.SortFunc(families, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return families, func() {
		clear(families)
		p.families = families
		s.mu.Lock()
		s.free = p
		s.mu.Unlock()
	}, err
}
