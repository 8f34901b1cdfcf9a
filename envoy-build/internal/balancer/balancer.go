// Package balancer is the load balancer of a cluster that names us: it knows the
// cluster's hosts, tells them, and has connections lead to those that are wanted.
package balancer

import (
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Balancer is that of one cluster on one thread, and used there only. The zero value
// has been told of no hosts.
type Balancer struct {
	members *host.Members
	// choices are the healthy hosts, by priority.
	choices [][]choice
	places  map[string]place
}

// choice is a healthy host, for smooth weighted round robin.
type choice struct{ weight, current int64 }

type place struct{ priority, index uint32 }

// Members returns the cluster's hosts as they were told last; nil if they have not been,
// or if one has no IP address, as connections do not tell of such.
func (b *Balancer) Members() *host.Members { return b.members }

// Update is told the cluster's hosts, and the addresses of those that are healthy, by
// priority: Choose tells a host by its place among these.
func (b *Balancer) Update(hosts []host.Member, healthy [][]string) {
	b.choices, b.places = make([][]choice, len(healthy)), map[string]place{}
	for p, addresses := range healthy {
		b.choices[p] = make([]choice, len(addresses))
		for i, a := range addresses {
			b.places[a] = place{uint32(p), uint32(i)}
		}
	}
	told := true
	for i := range hosts {
		m := &hosts[i]
		m.Weight = max(1, m.Weight)
		at, ok := b.places[m.Address]
		if m.Healthy = ok && at.priority == m.Priority; m.Healthy {
			// As weights are small numbers, and threads shall not all begin with the
			// same host, a turn has parts.
			w := int64(m.Weight) << 8
			b.choices[at.priority][at.index] = choice{w, rand.Int64N(w)}
		}
		if _, err := netip.ParseAddrPort(m.Address); err != nil {
			told = false
		}
	}
	switch {
	case !told:
		b.members = nil
	case b.members == nil || !slices.Equal(b.members.Hosts, hosts):
		b.members = &host.Members{Hosts: hosts}
	}
}

// Choose returns the host for a connection, by its place among the healthy ones of a
// priority: the one at the address that is wanted, if it is one of them. Otherwise those
// of the first priority that has any take turns, by their weights. It reports false if
// no host is healthy.
func (b *Balancer) Choose(wanted []byte) (priority, index uint32, ok bool) {
	if at, ok := b.places[string(wanted)]; ok {
		return at.priority, at.index, true
	}
	for p, cs := range b.choices {
		if len(cs) == 0 {
			continue
		}
		best, sum := 0, int64(0)
		for i := range cs {
			c := &cs[i]
			c.current += c.weight
			sum += c.weight
			if c.current > cs[best].current {
				best = i
			}
		}
		cs[best].current -= sum
		return uint32(p), uint32(best), true
	}
	return 0, 0, false
}
