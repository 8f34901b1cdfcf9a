// Package carrier makes upstream connections out of a host's own clusters, for a
// filter that has no TCP client.
//
// A carrier is a connection that this process makes to its own loopback listener
// (package loopback). No payload crosses its socket: it only gives birth to a filter
// chain on a worker, in which our filter stands before tcp_proxy. There it is parked
// until a request needs a cluster; then it is claimed, tcp_proxy connects, and bytes
// are handed to it and taken from it on the worker.
package carrier

import (
	"net/netip"
	"slices"
	"time"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/loopback"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// wantParked is how many carriers a worker keeps parked.
	wantParked = 2
	// spareTime is how long it keeps those beyond.
	spareTime = 10 * time.Second
)

// RenewTime is what it takes, at the most, until a loopback listener serves whose
// configuration has been published.
const RenewTime = 500 * time.Millisecond

// Set is the carriers of one worker. It is used on that worker only.
type Set struct {
	w       Worker
	dialer  *loopback.Dialer
	parked  []*Carrier
	waiting []*Carrier // asked for, while none is parked
	sourced []*Carrier // asked for with a source: none is parked for those
	ballast []*Carrier // ordered by other workers, and of no use but their weight
}

// NewSet returns the set of a worker.
func NewSet(w Worker, d *loopback.Dialer) *Set { return &Set{w: w, dialer: d} }

// Connect takes a parked carrier for t, or waits for one. What a server sees as the
// source is settled when a carrier is accepted, so that one with a source is dialled
// for t alone.
func (s *Set) Connect(t host.Target, ev host.UpstreamEvents) *Carrier {
	if t.Source.IsValid() {
		c := &Carrier{set: s, ev: ev, target: t}
		s.sourced = append(s.sourced, c)
		s.order(t.Source)
		return c
	}
	if n := len(s.parked); n > 0 {
		c := s.parked[n-1]
		s.parked = slices.Delete(s.parked, n-1, n)
		c.ev, c.target = ev, t
		c.claim()
		s.refill()
		return c
	}
	c := &Carrier{set: s, ev: ev, target: t}
	s.waiting = append(s.waiting, c)
	s.refill()
	return c
}

// Tunnel reports whether f is that of a tunnel, which is no carrier: its bytes go to
// its cluster and back as they are, as soon as the chain goes on.
func (s *Set) Tunnel(f Filter) bool {
	cluster, ok := s.dialer.TunnelTo(f.Token())
	if ok {
		f.SetState(stateCluster, cluster)
	}
	return ok
}

// Arrived takes the filter of a carrier that was born on this worker, whose events
// are those of the carrier that is returned. Strangers are turned away, and what is
// not wanted any more: nil.
func (s *Set) Arrived(f Filter) *Carrier {
	conn := s.dialer.Arrived(f.Token(), s.w.Index())
	switch {
	case conn == nil:
		return nil
	case conn.Source().IsValid():
		return s.cameFrom(f, conn)
	case len(s.waiting) == 0:
		return s.park(f, conn)
	}
	c := s.waiting[0]
	s.waiting = slices.Delete(s.waiting, 0, 1)
	s.refill()
	return c.take(f, conn)
}

func (s *Set) park(f Filter, conn *loopback.Conn) *Carrier {
	c := &Carrier{set: s, state: parked, filter: f, conn: conn}
	s.parked = append(s.parked, c)
	if len(s.parked) > wantParked {
		s.trimLater()
	}
	s.refill()
	return c
}

// cameFrom takes a carrier that was dialled with a source.
func (s *Set) cameFrom(f Filter, conn *loopback.Conn) *Carrier {
	if conn.Worker() != s.w.Index() { // another is dialled
		c := &Carrier{set: s, state: parked, filter: f, conn: conn}
		s.ballast = append(s.ballast, c)
		s.trimLater()
		return c
	}
	for _, c := range s.sourced {
		if c.target.Source == conn.Source() {
			s.withdraw(c)
			return c.take(f, conn)
		}
	}
	return nil
}

// take claims what has come for a carrier that waited for it.
func (c *Carrier) take(f Filter, conn *loopback.Conn) *Carrier {
	c.filter, c.conn = f, conn
	c.claim()
	return c
}

// refill asks for as many carriers as are missing.
func (s *Set) refill() {
	s.dialer.Want(s.w.Index(), wantParked+len(s.waiting)-len(s.parked))
}

// order asks for as many carriers with a source as are waited for.
func (s *Set) order(source netip.Addr) {
	n := 0
	for _, c := range s.sourced {
		if c.target.Source == source {
			n++
		}
	}
	s.dialer.Order(loopback.Order{Worker: s.w.Index(), Source: source}, n)
}

// withdraw takes c off those that wait.
func (s *Set) withdraw(c *Carrier) {
	if remove(&s.sourced, c) {
		s.order(c.target.Source)
	} else if remove(&s.waiting, c) {
		s.refill()
	}
}

// lost takes c off those that are parked, as it has ended.
func (s *Set) lost(c *Carrier) {
	remove(&s.ballast, c)
	if remove(&s.parked, c) {
		s.refill()
	}
}

func remove(list *[]*Carrier, c *Carrier) bool {
	i := slices.Index(*list, c)
	if i >= 0 {
		*list = slices.Delete(*list, i, i+1)
	}
	return i >= 0
}

func (s *Set) trimLater() {
	time.AfterFunc(spareTime, func() { s.w.Post(s.trim) })
}

// trim closes a carrier if there are more than wanted, and no order needs their
// weight. It is the worker that does, as Envoy does not look at a parked carrier's
// dialing side.
func (s *Set) trim() {
	list := &s.parked
	if len(s.ballast) > 0 {
		list = &s.ballast
	} else if len(s.parked) <= wantParked {
		return
	}
	if s.dialer.Ordered() {
		s.trimLater()
		return
	}
	c := (*list)[0]
	*list = slices.Delete(*list, 0, 1)
	c.discard()
}

// Renew replaces the carriers that were parked under configurations of the loopback
// listener before that generation. Their listener drains: one that is claimed late
// would be closed with its requests when Envoy's drain time is over. Those in use
// are not told. They have an age, less than the drain time.
func (s *Set) Renew(generation uint32) {
	s.parked = slices.DeleteFunc(s.parked, func(c *Carrier) bool {
		if c.filter.Generation() >= generation {
			return false
		}
		c.discard()
		return true
	})
	s.refill()
}

// AnyParked returns the filter of a carrier that is parked, nil when there is none.
func (s *Set) AnyParked() Filter {
	for _, c := range s.parked {
		if !c.filter.Closed() {
			return c.filter
		}
	}
	return nil
}
