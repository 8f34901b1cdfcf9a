package upstream

import (
	"time"

	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/lightest"
)

// endpoint is what a pool has to do with one host of its cluster.
type endpoint struct {
	addr  string
	conns []*conn // that are ready
	idle  []*conn // of these, exclusive ones without a call, if the pool keeps them by host

	// Of a host that the cluster tells, and that can be used; else 0.
	weight int64
	out    bool // it is ejected
	trying int  // connections to it that are being made
	// counted is the last count of the hosts that are reached which it was part of.
	counted uint64
	// backoff is the pause before the next one if the last one has failed, 0 if it has
	// not. failed is the attempt up to which that counts.
	backoff, nextTry time.Duration
	failed           int
	peak             lightest.Peak // of what calls to it take
}

// endpoints are the hosts of a pool: those to which connections lead, and those that the
// cluster tells.
type endpoints struct {
	all     map[string]*endpoint
	members *host.Members // nil: the cluster tells none
	// usable are the members that are healthy, of the first priority that has such, in
	// the cluster's order. hashKeys and addresses are the same, for tables of hashes.
	usable    []*endpoint
	hashKeys  []consistent.Host
	addresses []string
	sums      []int64 // of the weights, up to each of them
	failing   int     // of the usable ones, those to which the last connection has failed
	count     uint64  // of counts of the usable ones that are reached
	byHost    bool    // somebody has asked for an idle connection to a certain host
	learning  bool    // many of all may change
}

// told reports whether the cluster tells its hosts: then connections are made to those
// that are wanted.
func (es *endpoints) told() bool { return es.members != nil }

// endpoint returns the host at an address.
func (p *Pool) endpoint(addr string) *endpoint {
	ep := p.all[addr]
	if ep == nil {
		ep = &endpoint{addr: addr}
		if p.all == nil {
			p.all = map[string]*endpoint{}
		}
		p.all[addr] = ep
		p.arrange()
	}
	return ep
}

// forget lets go of a host that is nothing to the pool any more.
func (p *Pool) forget(ep *endpoint) {
	if len(ep.conns) == 0 && ep.trying == 0 && ep.weight == 0 && p.all[ep.addr] == ep {
		delete(p.all, ep.addr)
		p.arrange()
	}
}

// reached counts the hosts to which a connection leads.
func (p *Pool) reached() (n int) {
	for _, ep := range p.all {
		if len(ep.conns) > 0 {
			n++
		}
	}
	return n
}

// connsTo counts the connections to a host.
func (p *Pool) connsTo(addr string) int {
	if ep := p.all[addr]; ep != nil {
		return len(ep.conns)
	}
	return 0
}

// learn takes what the cluster tells of its hosts. Connections to what can be used no
// more are replaced, and get calls only if no others can.
func (p *Pool) learn(ms *host.Members) {
	es := &p.endpoints
	es.learning = true
	for _, ep := range es.usable {
		ep.weight = 0
	}
	was := es.usable
	es.members, es.usable, es.hashKeys, es.addresses, es.sums = ms, nil, nil, nil, nil
	if ms != nil {
		sum := int64(0)
		for i, first := 0, firstPriority(ms); i < len(ms.Hosts); i++ {
			m := &ms.Hosts[i]
			if !m.Healthy || m.Priority != first {
				continue
			}
			ep := p.endpoint(m.Address)
			ep.weight = int64(max(1, m.Weight))
			sum += ep.weight
			h := consistent.Host{Key: m.HashKey, Weight: uint32(ep.weight)}
			if h.Key == "" {
				h.Key = m.Address
			}
			es.usable, es.hashKeys, es.addresses = append(es.usable, ep), append(es.hashKeys, h), append(es.addresses, m.Address)
			es.sums = append(es.sums, sum)
		}
	}
	es.failing = 0
	for _, ep := range es.usable {
		if ep.backoff > 0 {
			es.failing++
		}
	}
	for _, ep := range was {
		if ep.weight == 0 {
			ep.backoff = 0
			p.forget(ep)
		}
	}
	es.learning = false
	p.arrange()
	for _, cn := range p.ready {
		if cn.unlisted() {
			p.outdate(cn, &cn.stale)
		}
		if cn.idle != nil {
			cn.unrest()
			cn.rest()
		}
	}
	p.noteEjected()
	p.weigh()
}

// firstPriority is that of the hosts which are used.
func firstPriority(ms *host.Members) uint32 {
	first := ^uint32(0)
	for i := range ms.Hosts {
		if m := &ms.Hosts[i]; m.Healthy {
			first = min(first, m.Priority)
		}
	}
	return first
}

// noteEjected notes which of the hosts that the cluster tells are ejected.
func (p *Pool) noteEjected() {
	for _, ep := range p.usable {
		ep.out = p.outliers != nil && p.info.outliers.Out(ep.addr)
	}
}

// next returns the host to which the next connection should lead, nil if to any: of
// those that the cluster tells the one with the fewest connections for its weight. ok is
// false if none should be made now. Hosts that are ejected have one connection each, by
// which they can be tried, where connections are shared.
func (p *Pool) next(now time.Duration, avoid string) (best *endpoint, ok bool) {
	n := len(p.usable)
	if n == 0 {
		return nil, true
	}
	least, from := int64(0), p.m.rand.IntN(n)
	for i := range n {
		ep := p.usable[(from+i)%n]
		if n > 1 && ep.addr == avoid || ep.backoff > 0 && (now < ep.nextTry || ep.trying > 0) {
			continue
		}
		conns := int64(ep.fresh())
		if ep.out && (conns > 0 || !p.opts.Shared) {
			continue
		}
		if best == nil || conns*best.weight < least*ep.weight {
			best, least = ep, conns
		}
	}
	if best == nil && p.failing == n && p.trying == 0 {
		for _, ep := range p.usable { // all fail: the pool's own pauses count
			if best == nil || ep.nextTry < best.nextTry {
				best = ep
			}
		}
	}
	return best, best != nil
}

// fresh counts the connections to a host that need no replacement, and those that are
// being made.
func (ep *endpoint) fresh() int {
	n := ep.trying
	for _, cn := range ep.conns {
		if !cn.outdated() {
			n++
		}
	}
	return n
}

// missing is to how many more of the hosts that the cluster tells there may be shared
// connections. Those that are more than one to a host give way. A call with a hash asks
// for each host on its way through the table: connections are few where hosts are many.
func (p *Pool) missing() int {
	n := min(len(p.usable), p.opts.MaxConnections)
	p.count++
	for _, cn := range p.conns {
		ep := cn.to
		if cn.state != ready {
			ep = cn.wanted
		}
		if ep != nil && ep.weight > 0 && ep.counted != p.count && !cn.outdated() {
			ep.counted = p.count
			n--
		}
	}
	return n
}

// hasRoom reports whether there may be a connection to a host to which none leads.
func (p *Pool) hasRoom() bool {
	if p.opts.Shared {
		return p.missing() > 0
	}
	return p.room() > 0
}

// seek connects to hosts that the cluster tells and to which no connection leads.
func (p *Pool) seek(now time.Duration) {
	n, missing := len(p.usable), p.missing()
	for i, from := 0, p.m.rand.IntN(max(1, n)); i < n && missing > 0; i++ {
		ep := p.usable[(from+i)%n]
		if ep.fresh() > 0 || ep.backoff > 0 && now < ep.nextTry {
			continue
		}
		if !p.connectTo(ep, now) {
			return
		}
		missing--
	}
}

// tried notes that an attempt to connect to a host has ended.
func (p *Pool) tried(cn *conn) {
	ep := cn.wanted
	if ep == nil {
		return
	}
	ep.trying--
	p.forget(ep)
}

// unreachable notes that a connection to the host that was wanted could not be made. It
// reports whether that is all there is to it: other hosts can be reached, or may be.
func (p *Pool) unreachable(ep *endpoint, attempt int, now time.Duration) bool {
	if ep == nil || ep.weight == 0 {
		return false
	}
	switch {
	case ep.backoff == 0:
		ep.backoff, ep.failed = firstBackoff, p.attempts
		p.failing++
	case attempt > ep.failed:
		ep.backoff, ep.failed = min(2*ep.backoff, p.opts.BackoffMax), p.attempts
	}
	ep.nextTry = now + p.jittered(ep.backoff)
	return p.failing < len(p.usable)
}

// reachable undoes unreachable.
func (p *Pool) reachable(ep *endpoint) {
	if ep.backoff > 0 {
		ep.backoff, ep.nextTry = 0, 0
		if ep.weight > 0 {
			p.failing--
		}
	}
}

// awaits reports whether c had better wait for a connection to ep, which is being made,
// or is now.
func (p *Pool) awaits(c *Call, ep *endpoint) bool {
	if ep.weight == 0 || ep.out || p.opts.Shared && len(ep.conns) > 0 {
		return false
	}
	now := p.m.now()
	if ep.backoff > 0 {
		if now >= max(ep.nextTry, p.nextTry, p.noGrowth) && ep.trying == 0 && p.hasRoom() && !p.forbidden() {
			p.connectTo(ep, now) // for those that come later
		}
		return false
	}
	if (c.sought > 0 || p.opts.Shared) && ep.trying > 0 {
		c.sought = max(1, c.sought)
		return true
	}
	if c.sought >= maxSought || !p.hasRoom() || now < max(p.nextTry, p.noGrowth) || p.info.leavingUntil(ep.addr, now) != 0 {
		return false
	}
	if !c.strict && p.forbidden() {
		return false // it goes elsewhere, or asks for any connection
	}
	c.sought++
	return p.connectTo(ep, now)
}

// unlisted reports whether the cluster tells its hosts, and the connection's is none that
// can be used.
func (cn *conn) unlisted() bool { return cn.pool.told() && cn.to.weight == 0 }

// take returns a connection to a host that can take a call, nil if there is none.
func (p *Pool) take(ep *endpoint) *conn {
	if ep == nil {
		return nil
	}
	if p.opts.Shared {
		return ep.least()
	}
	if !p.byHost {
		p.byHost = true
		for cn := p.idle.first; cn != nil; cn = cn.idleNext {
			cn.to.rests(cn)
		}
	}
	if n := len(ep.idle); n > 0 {
		return ep.idle[n-1]
	}
	return nil
}

// least returns the shared connection to the host that has the fewest calls, nil if none
// can take one.
func (ep *endpoint) least() (best *conn) {
	for _, cn := range ep.conns {
		if !cn.blocked && cn.weight > 0 && (best == nil || cn.inFlight < best.inFlight) {
			best = cn
		}
	}
	return best
}

// inFlight counts the calls to the host.
func (ep *endpoint) inFlight() (n int) {
	for _, cn := range ep.conns {
		n += cn.inFlight
	}
	return n
}

// rests notes that a connection has no call.
func (ep *endpoint) rests(cn *conn) {
	ep.idle = append(ep.idle, cn)
	cn.idleAt = len(ep.idle)
}

// works undoes rests.
func (ep *endpoint) works(cn *conn) {
	last := ep.idle[len(ep.idle)-1]
	ep.idle[cn.idleAt-1], last.idleAt = last, cn.idleAt
	ep.idle[len(ep.idle)-1] = nil
	ep.idle, cn.idleAt = ep.idle[:len(ep.idle)-1], 0
}
