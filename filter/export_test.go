package filter

import (
	"fmt"
	"reflect"
)

// Pools returns how many pools the configurations of the first worker know.
func (mod *Module) Pools() (n int) {
	for _, wl := range mod.shards[0].listeners {
		n += len(wl.pools)
	}
	return n
}

// Books tells what is wrong with what the workers count, "" if nothing. What pools
// have is another package's, and looked at by reflection.
func (mod *Module) Books() (wrong string) {
	for _, s := range mod.shards {
		held, inHost, kept := 0, 0, 0
		want := func(what string, got, should int) {
			if got != should {
				wrong += fmt.Sprintf("%s is %d, not %d\n", what, got, should)
			}
		}
		for _, wl := range s.listeners {
			active, streams, plain := 0, 0, 0
			for c := wl.conns; c != nil; c = c.next {
				parked, n, stalled := 0, 0, 0
				for m := c.first; m != nil; m = m.next {
					parked += len(m.reply)
					n++
				}
				for _, st := range c.streams {
					if st.stalled {
						stalled++
					}
				}
				want("parked", c.parked, parked)
				want("inFlight", c.inFlight, n)
				want("stalled", c.stalled, stalled)
				want("the size of an inbox", c.partial.Size(), c.in.Size())
				held += c.parked + c.unread.size
				inHost += c.unread.inHost
				kept += c.partial.Size()
				active += n
				streams += len(c.streams)
				if c.plain != nil {
					plain++
				}
				for _, m := range c.aside {
					if m.conn != c || !m.aside {
						wrong += "a message set aside is not its connection's\n"
					}
				}
			}
		}
		want("held", s.held, held)
		want("inHost", s.inHost, inHost)
		bytes, _ := s.partials.Held()
		want("partials.bytes", bytes, kept)
		pools := reflect.ValueOf(s.up).Elem().FieldByName("pools")
		for _, k := range pools.MapKeys() {
			p := pools.MapIndex(k).Elem()
			n := func(v reflect.Value, field string) int { return int(v.FieldByName(field).Int()) }
			inFlight, absent := 0, 0
			for _, list := range []string{"conns", "drainers"} {
				for i := range p.FieldByName(list).Len() {
					cn := p.FieldByName(list).Index(i).Elem()
					inFlight += n(cn, "inFlight")
					absent += n(cn, "absent")
					released := 0
					calls := 0
					for c := cn.FieldByName("calls").FieldByName("first"); !c.IsNil(); c = c.Elem().FieldByName("next") {
						calls++
						if c.Elem().FieldByName("released").Bool() {
							released++
						}
					}
					want("calls of a connection", n(cn.FieldByName("calls"), "n"), calls)
					want("calls in flight of a connection", n(cn, "inFlight"), calls-released)
				}
			}
			want("inFlight of a pool", n(p, "inFlight"), inFlight)
			want("absent of a pool", n(p, "absent"), absent)
			for _, f := range []string{"pending", "pendingBytes", "trying", "old", "lingering"} {
				if n(p, f) < 0 {
					wrong += f + " of a pool is negative\n"
				}
			}
			if n(p, "pending") < n(p.FieldByName("queue"), "n") {
				wrong += "more calls are queued than wait\n"
			}
		}
	}
	return wrong
}

// Left tells what the workers still have, "" if nothing.
func (mod *Module) Left() (left string) {
	for _, s := range mod.shards {
		pools := reflect.ValueOf(s.up).Elem().FieldByName("pools").Len()
		if at, ok := s.timers.Next(); ok {
			left += fmt.Sprintf("a timer for %v\n", at)
		}
		bytes, peers := s.partials.Held()
		if n := pools + s.held + s.inHost + bytes + peers + len(s.later) + len(s.touched) + len(s.ending); n > 0 {
			left += fmt.Sprintf("%d pools, held %d, inHost %d, partials %+v\n", pools, s.held, s.inHost, s.partials)
		}
	}
	return left
}
