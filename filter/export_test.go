package filter

import (
	"fmt"
	"reflect"

	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/tracing"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// Pools returns how many pools the configurations of the first worker know.
func (mod *Module) Pools() (n int) {
	for _, wl := range mod.shards[0].listeners {
		n += len(wl.pools) + len(wl.shadows.pools)
	}
	return n
}

// Standing returns how many messages stand on the first worker, and their bytes.
func (mod *Module) Standing() (n, bytes int) {
	for _, wl := range mod.shards[0].listeners {
		n += wl.pauses.n
		bytes += wl.pauses.bytes
	}
	return n, bytes
}

// Withheld returns how many bytes of errors the clients of the first worker have not been
// told.
func (mod *Module) Withheld() int { return mod.shards[0].withheld }

// FreeShadows returns how many copies the first worker may use again.
func (mod *Module) FreeShadows() int { return len(mod.shards[0].freeShadows) }

// Books tells what is wrong with what the workers count, "" if nothing. What pools
// have is another package's, and looked at by reflection.
func (mod *Module) Books() (wrong string) {
	for _, s := range mod.shards {
		held, inHost, kept, again, withheld := 0, 0, 0, 0, 0
		want := func(what string, got, should int) {
			if got != should {
				wrong += fmt.Sprintf("%s is %d, not %d\n", what, got, should)
			}
		}
		for _, wl := range s.listeners {
			active, streams, plain := 0, 0, 0
			standing, weight := 0, 0
			for c := wl.conns; c != nil; c = c.next {
				parked, n, stalled, stands := 0, 0, 0, 0
				stand := func(m *Message) {
					if m.stands {
						stands++
						weight += m.size()
					}
					if m.weight != 0 && !m.stands || m.paused && !m.stands {
						wrong += "a message is counted as if it stood, or is not as it does\n"
					}
				}
				for m := c.first; m != nil; m = m.next {
					parked += len(m.reply)
					n++
					again += keptAgain(m)
					stand(m)
				}
				for _, m := range c.aside {
					stand(m)
				}
				want("standing", c.standing, stands)
				standing += stands
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
				bytes := 0
				for i := range c.withheld {
					bytes += c.withheld[i].weight()
				}
				want("withheldBytes", c.withheldBytes, bytes)
				withheld += bytes
				inHost += c.unread.inHost
				kept += c.partial.Size()
				active += n
				streams += len(c.streams)
				if c.plain != nil {
					plain++
				}
				wrong += c.readingWrong()
				wrong += linesWrong(reflect.ValueOf(&c.lines).Elem())
				for _, m := range c.aside {
					again += keptAgain(m)
					if m.conn != c || !m.aside {
						wrong += "a message set aside is not its connection's\n"
					}
				}
			}
			want("the number of pauses", wl.pauses.n, standing)
			want("the bytes of pauses", wl.pauses.bytes, weight)
		}
		want("held", s.held, held)
		want("withheld", s.withheld, withheld)
		want("what is kept for further attempts", int(reflect.ValueOf(s.exchanges).Elem().FieldByName("kept").Int()), again)
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
					wrong += connWrong(cn.Addr())
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

// keptAgain is how many bytes of m are kept for further attempts.
func keptAgain(m *Message) int {
	plan := reflect.ValueOf(&m.exchange).Elem().FieldByName("plan")
	if plan.IsNil() {
		return 0
	}
	return int(plan.Elem().FieldByName("kept").Int())
}

// readingWrong tells why a client might not be read for ever, "" if nothing is wrong.
func (c *connection) readingWrong() (wrong string) {
	set := func(w any, field string) bool { return !reflect.ValueOf(w).Elem().FieldByName(field).IsNil() }
	if room := &c.room; c.waiting != (set(room, "list") || set(room, "line")) {
		wrong += fmt.Sprintf("a client waits for room: %v\n", c.waiting)
	}
	if c.pausing != set(&c.relief, "list") || c.pausing && c.standing == 0 {
		wrong += fmt.Sprintf("a client waits for what stands: %v\n", c.pausing)
	}
	paused := 0
	for m := c.first; m != nil; m = m.next {
		if m.paused && m.phase == inRequest {
			paused++
		}
	}
	if halted := set(&c.turn, "line") || paused > 0; !c.finishing && c.proto != nil && c.proto.requests.Mode == upstream.InOrder && c.halted != halted {
		wrong += fmt.Sprintf("a client is halted: %v\n", c.halted)
	}
	return wrong
}

// linesWrong is the same of a client's lines.
func linesWrong(lines reflect.Value) (wrong string) {
	all := lines.FieldByName("all")
	for i := range all.Len() {
		l := all.Index(i)
		cn := l.Elem().FieldByName("conn")
		if cn.IsNil() || cn.Elem().FieldByName("state").Uint() == 4 {
			if l.Elem().FieldByName("held").Bool() {
				wrong += "a line holds a connection that is closed\n"
			}
			continue
		}
		open := int64(0)
		for c := cn.Elem().FieldByName("calls").FieldByName("first"); !c.IsNil(); c = c.Elem().FieldByName("next") {
			if c.Elem().FieldByName("line").Pointer() == l.Pointer() {
				open++
			}
		}
		if n := l.Elem().FieldByName("open").Int(); n != open {
			wrong += fmt.Sprintf("%d calls of a line are open, not %d\n", open, n)
		}
		if l.Elem().FieldByName("held").Bool() && cn.Elem().FieldByName("lease").Pointer() != l.Pointer() {
			wrong += "a line holds a connection that is another's\n"
		}
	}
	return wrong
}

// connWrong is the same of a pool's connection.
func connWrong(cn reflect.Value) (wrong string) {
	e := cn.Elem()
	idle := !e.FieldByName("idle").IsNil()
	if l := e.FieldByName("lease"); !l.IsNil() && l.Elem().FieldByName("conn").Pointer() == cn.Pointer() && l.Elem().FieldByName("held").Bool() {
		if idle {
			wrong += "a connection that is held is idle\n"
		}
		if l.Elem().FieldByName("client").IsNil() {
			wrong += "a connection is held by nobody\n"
		}
	}
	calls := e.FieldByName("calls").FieldByName("n").Int()
	if !e.FieldByName("rite").IsNil() && (idle || calls > 0) {
		wrong += "a connection serves before its time\n"
	}
	if idle && e.FieldByName("inFlight").Int() > 0 {
		wrong += "a connection is idle with calls in flight\n"
	}
	stalled := e.FieldByName("stalled")
	for i := range stalled.Len() {
		l := stalled.Index(i).Elem()
		if l.FieldByName("stalled").Int() != int64(i+1) || l.FieldByName("conn").Pointer() != cn.Pointer() {
			wrong += "a line that stalls is not its connection's\n"
		}
	}
	return wrong
}

// Left tells what the workers still have, "" if nothing.
func (mod *Module) Left() (left string) {
	clusters := reflect.ValueOf(mod.shared).Elem().FieldByName("clusters")
	for _, k := range clusters.MapKeys() {
		info := clusters.MapIndex(k).Elem()
		if n := info.FieldByName("spent").FieldByName("active").Int(); n != 0 {
			left += fmt.Sprintf("%d requests to %s in retry\n", n, k)
		}
		for _, gauge := range []string{"Requests", "Pending", "Connections"} {
			if n := info.FieldByName("breakers").FieldByName(gauge).FieldByName("n").FieldByName("v").Int(); n != 0 {
				left += fmt.Sprintf("%d %s of %s are counted\n", n, gauge, k)
			}
		}
	}
	for _, s := range mod.shards {
		all := reflect.ValueOf(s.up).Elem().FieldByName("pools")
		pools := all.Len()
		for _, k := range all.MapKeys() {
			p := all.MapIndex(k).Elem()
			left += fmt.Sprintf("a pool %v: %d connections, %d that drain, %v in flight, %v wait\n",
				k, p.FieldByName("conns").Len(), p.FieldByName("drainers").Len(), p.FieldByName("inFlight"), p.FieldByName("pending"))
		}
		if at, ok := s.timers.Next(); ok {
			left += fmt.Sprintf("a timer for %v\n", at)
		}
		bytes, peers := s.partials.Held()
		for cluster, n := range s.shadows {
			left += fmt.Sprintf("%d copies for %s\n", n, cluster)
		}
		if n := pools + s.held + s.withheld + s.inHost + bytes + peers + len(s.later) + len(s.touched) + len(s.ending); n > 0 {
			left += fmt.Sprintf("%d pools, held %d, withheld %d, inHost %d, partials %+v\n", pools, s.held, s.withheld, s.inHost, s.partials)
		}
	}
	return left
}

// EndEarly closes the filters' parts of the first worker although it is not done with
// them.
func (mod *Module) EndEarly() {
	for _, wl := range mod.shards[0].listeners {
		wl.closeParts()
	}
}

// SinkTo has spans go to s.
func (mod *Module) SinkTo(s tracing.Sink) {
	mod.openSpans = func(export.Provider, export.Life) tracing.Sink { return s }
}
