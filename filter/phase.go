package filter

import (
	"fmt"

	"github.com/meltemi-mesh/meltemi/filter/config"
)

// PhasedBuilder is a Builder whose filters belong to a phase: behind those of the phases
// before, and before those of the phases behind. Filters without a phase stand anywhere.
type PhasedBuilder interface {
	Builder
	Phase() Phase
}

// Phase is what a filter's work is, in the order in which that makes sense.
type Phase uint8

// The phases.
const (
	// Authentication finds out who calls.
	Authentication Phase = 1 + iota
	// Authorization says who may call what.
	Authorization
	// Traffic says how much of what may be called is served now, and how: limits, faults.
	Traffic
)

func (p Phase) String() string {
	return [...]string{"no phase", "authentication", "authorization", "traffic"}[p]
}

// Disorder tells of filters that come behind ones of a later phase, by their paths. It is
// a fault where p wants it to be.
func Disorder(p *config.Proxy) (errs []*config.Error) {
	last, of := Phase(0), ""
	for i, f := range p.Filters {
		b, _ := lookup(f.Name)
		phased, is := b.(PhasedBuilder)
		if !is || phased.Phase() == 0 {
			continue
		}
		if own := phased.Phase(); own >= last {
			last, of = own, f.Name
		} else {
			errs = append(errs, &config.Error{
				StatPrefix: p.StatPrefix, Path: fmt.Sprintf("meta_protocol_filters[%d]", i),
				Reason: fmt.Sprintf("%s is for %s, and comes behind %s, which is for %s", f.Name, own, of, last),
			})
		}
	}
	return errs
}
