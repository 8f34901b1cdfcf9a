// Package connectionlimit is the filter that limits the connections of clients. See
// README.md.
package connectionlimit

import (
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.connection_limit"

// text is what requests of connections beyond a limit are told.
const text = "connection limit: there are too many connections"

func init() { filter.Register(Name, builder{}) }

type builder struct{}

// Parse implements filter.Builder.
func (builder) Parse(any *anypb.Any, env *filter.Env) (filter.Config, error) { return parse(any, env) }

// Build implements filter.Builder. Connections are counted under the prefixes, whatever
// the limits are.
func (builder) Build(c filter.Config, s *filter.Scope) (filter.Filter, error) {
	l := &limiter{config: c.(*config)}
	of := fmt.Sprintf("%q %q", s.StatPrefix, l.statPrefix)
	l.total = s.Shared(of, func(*filter.Life) any { return &total{} }).(*total)
	l.addresses = s.Shared(fmt.Sprintf("%s addresses %d %d %d", of, l.ipv4Bits, l.ipv6Bits, l.config.addresses), func(*filter.Life) any {
		return &addresses{most: l.config.addresses, of: map[netip.Addr]int64{}}
	}).(*addresses)
	prefix := filter.Label{"stat_prefix", l.statPrefix}
	var err error
	counter := func(name string) (x *filter.Counter) {
		if err == nil {
			x, err = s.Counter("connection_limit.{stat_prefix}."+name, prefix)
		}
		return x
	}
	l.limited, l.limitedByAddress = counter("limited_connections"), counter("limited_by_address")
	l.overflow = counter("addresses_overflow")
	if err == nil {
		l.active, err = s.Gauge("connection_limit.{stat_prefix}.active_connections", prefix)
	}
	return l, err
}

// limiter is the filter of all workers.
type limiter struct {
	*config
	total     *total
	addresses *addresses

	limited, limitedByAddress, overflow *filter.Counter
	active                              *filter.Gauge
}

// ForWorker implements filter.WorkerFilter.
func (l *limiter) ForWorker(w *filter.Worker) filter.Filter {
	p := &part{limiter: l, w: w}
	p.waiting.next, p.waiting.prev = &p.waiting, &p.waiting
	p.timer = w.NewTimer(p.late)
	return p
}

// OnRequest implements filter.Filter. It is that of parts that counts.
func (l *limiter) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

// connection is what the filter knows of one.
type connection struct {
	addr       netip.Addr // that counts; the zero value: none does
	known      bool       // addr is told apart
	refused    *filter.Connection
	until      time.Duration // when refused
	next, prev *connection   // refused before and after it
}

// part is a worker's.
type part struct {
	*limiter
	w       *filter.Worker
	waiting connection // its next has waited longest
	timer   *filter.WorkerTimer
}

// OnConnect implements filter.ConnectionFilter.
func (p *part) OnConnect(c *filter.Connection) any {
	if !p.enabled {
		return nil
	}
	x := &connection{}
	if p.take(c, x) {
		p.active.Add(1)
		return x
	}
	if p.delay == 0 {
		c.Close()
	}
	x.refused, x.until = c, p.w.Now()+p.delay
	x.next, x.prev = &p.waiting, p.waiting.prev
	x.next.prev, x.prev.next = x, x
	if p.waiting.next == x {
		p.timer.Start(p.delay)
	}
	return x
}

// take counts a connection for its address and for all, or for none of them.
func (p *part) take(c *filter.Connection, x *connection) bool {
	if ip := c.RemoteIP().Unmap().WithZone(""); ip.IsValid() && p.mostOfOne != none {
		bits := p.ipv6Bits
		if ip.Is4() {
			bits = p.ipv4Bits
		}
		prefix, _ := ip.Prefix(bits)
		known, ok := p.addresses.take(prefix.Addr(), p.mostOfOne)
		if !known {
			p.w.Count(p.overflow, 1)
		}
		if !ok {
			p.w.Count(p.limited, 1)
			p.w.Count(p.limitedByAddress, 1)
			return false
		}
		x.addr, x.known = prefix.Addr(), known
	}
	if p.total.take(p.most) {
		return true
	}
	p.w.Count(p.limited, 1)
	p.free(x)
	return false
}

func (p *part) free(x *connection) {
	if x.addr.IsValid() {
		p.addresses.free(x.addr, x.known)
	}
}

// OnDisconnect implements filter.ConnectionFilter.
func (p *part) OnDisconnect(_ *filter.Connection, state any) {
	x, _ := state.(*connection)
	switch {
	case x == nil:
	case x.refused == nil:
		p.free(x)
		p.total.free()
		p.active.Add(-1)
	case x.next != nil:
		p.forget(x)
	}
}

// forget takes x from those that wait.
func (p *part) forget(x *connection) {
	x.next.prev, x.prev.next = x.prev, x.next
	x.next, x.prev = nil, nil
}

// late closes connections that have sent no request in time.
func (p *part) late() {
	now := p.w.Now()
	for x := p.waiting.next; x != &p.waiting; x = p.waiting.next {
		if x.until > now {
			p.timer.Start(x.until - now)
			return
		}
		p.forget(x)
		x.refused.Close()
	}
}

// OnRequest implements filter.Filter.
func (p *part) OnRequest(m *filter.Message) filter.Verdict {
	x, _ := m.ConnectionState().(*connection)
	if x == nil || x.refused == nil {
		return filter.Continue
	}
	x.refused.Close()
	m.AddFlags(filter.RateLimited)
	m.SetDetails("connection_limit_reached")
	return m.ReplyWith(p.reply)
}
