package upstream

import (
	"slices"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// Under load connections are sampled until so many picks of the load
	// balancer are known, unless they repeat themselves before. The first ones
	// come in short order: what they say may be an accident.
	enoughSamples = 256
	sampleTime    = 250 * time.Millisecond
	// With connections to more hosts than these the hosts are not weighed.
	maxWeighed = 16
	// A host that has said that it leaves gets calls only if no connection to
	// another can take them, for so long: by default Dubbo's servers are gone
	// after 10 s.
	leavingTime = 15 * time.Second
	// When it has begun to close its connections, it is gone after so long.
	goneTime = time.Second
	// A membership change replaces all connections within this time.
	changeTime = time.Second
	// maxSought is how many connections are opened for a call that had better avoid the
	// only host that idle ones lead to.
	maxSought = 3
)

// balance is what a pool has learnt of the cluster's hosts, and of how its load
// balancer picks them.
type balance struct {
	hosts      host.Hosts // as last seen
	looked     bool
	epoch      int
	changed    time.Duration // when the membership changed last
	samples    int           // own picks in this epoch
	picks      picks
	nextSample time.Duration
	search     time.Duration // pause between looks for a missing host
	nextSearch time.Duration
	heard      int64 // of what hosts have said of their leaving
}

// pick chooses a connection for the next call, nil when there is none that
// can take it. One to another host than avoid is preferred, if that is not "".
func (p *Pool) pick(avoid string) *conn {
	if avoid != "" {
		if cn := p.pickOther(avoid); cn != nil {
			return cn
		}
	}
	if !p.opts.Shared {
		if p.idle.first != nil {
			return p.idle.first
		}
		return p.parting.first
	}
	if len(p.ready) == 1 {
		if cn := p.ready[0]; !cn.blocked {
			return cn
		}
		return nil
	}
	// Smooth weighted round robin: as nginx does it, evenly mixed.
	var best *conn
	var sum int64
	for _, cn := range p.ready {
		if cn.blocked {
			continue
		}
		cn.current += cn.weight
		sum += cn.weight
		if best == nil || best.weight == 0 || cn.weight > 0 && cn.current > best.current {
			best = cn
		}
	}
	if best != nil {
		best.current -= sum
	}
	return best
}

// pickFor chooses a connection for c, nil if it has to wait. Where exclusive ones are idle,
// but only to the host that c had better avoid, it waits for a new one: that may lead to
// another host.
func (p *Pool) pickFor(c *Call) *conn {
	cn := p.pick(c.avoid)
	if cn == nil || c.avoid == "" || cn.host != c.avoid || p.opts.Shared {
		return cn
	}
	now := p.m.now()
	switch {
	case c.sought > 0 && p.trying > 0:
		return nil
	case c.sought < maxSought && p.hosts.Preferred > 1 && p.room() > 0 && now >= max(p.nextTry, p.noGrowth):
		if c.sought++; p.connect(now, c.avoid) {
			return nil
		}
	}
	return cn
}

// pickOther chooses a connection to another host than avoid: of shared ones that with
// the fewest calls.
func (p *Pool) pickOther(avoid string) (best *conn) {
	for cn := p.idle.first; cn != nil; cn = cn.idleNext {
		if cn.host != avoid {
			return cn
		}
	}
	if !p.opts.Shared {
		return nil
	}
	for _, cn := range p.ready {
		if !cn.blocked && !cn.shunned() && cn.host != avoid && (best == nil || cn.inFlight < best.inFlight) {
			best = cn
		}
	}
	return best
}

// HasOther reports whether a call could go to another host than avoid now.
func (p *Pool) HasOther(avoid string) bool { return p.queue.n == 0 && p.pickOther(avoid) != nil }

// Alternative reports whether a call that has not been sent may have better luck: at
// another host, or over another connection.
func (p *Pool) Alternative() bool { return p.hosts.Preferred > 1 || len(p.ready) > 0 }

// weigh gives the connections their weights: together those of a host get the
// share with which the load balancer picks it.
func (p *Pool) weigh() {
	if !p.opts.Shared {
		return
	}
	staying := p.staying()
	if p.told() {
		for _, cn := range p.ready {
			cn.weight, cn.current = cn.to.weight<<20/int64(len(cn.to.conns))+1, 0
			if cn.shunned() && staying > 0 {
				cn.weight = 0
			}
		}
		return
	}
	var hosts [maxWeighed]string
	var conns [maxWeighed]int64 // to each host
	n := 0
	index := func(host string) int {
		i := slices.Index(hosts[:n], host)
		if i < 0 && n < maxWeighed {
			hosts[n] = host
			i = n
			n++
		}
		return i
	}
	fits := true
	for _, cn := range p.ready {
		if i := index(cn.host); i >= 0 {
			conns[i]++
		} else {
			fits = false
		}
	}
	var shares [maxWeighed]float64
	known := fits && n > 1 && n >= p.hostsWanted()
	if known && !p.picks.shares(hosts[:n], shares[:n]) {
		p.info.shares(hosts[:n], shares[:n])
	}
	for _, cn := range p.ready {
		cn.weight, cn.current = 1<<20, 0
		if known {
			i := index(cn.host)
			cn.weight = int64(shares[i]*(1<<20))/conns[i] + 1
		}
		if cn.shunned() && staying > 0 {
			cn.weight = 0
		}
	}
}

// leaves keeps calls from a host that has said that it leaves, also over
// connections that are made from now on.
func (p *Pool) leaves(host string) {
	now := p.m.now()
	p.info.leaves(host, now, now+leavingTime)
	p.heed(now)
}

// heed takes what hosts have said of their leaving, to whichever pool, for all of
// its connections: a host does not tell those that it has not accepted yet.
func (p *Pool) heed(now time.Duration) {
	p.heard = p.info.said.Load()
	for _, cn := range p.ready {
		if until := p.info.leavingUntil(cn.host, now); until != 0 {
			cn.leavesUntil(until)
		}
	}
	p.weigh()
}

// staying counts the connections to hosts that have not said that they leave, and are
// not ejected.
func (p *Pool) staying() (n int) {
	for _, cn := range p.ready {
		if !cn.shunned() {
			n++
		}
	}
	return n
}

// look asks for the cluster's membership and reports whether it changed.
func (p *Pool) look(now time.Duration) {
	h, known, ok := p.m.w.ClusterHosts(p.key.Cluster)
	if !ok {
		return
	}
	var members *host.Members
	if p.key.OriginalDst != "" {
		h = host.Hosts{Total: 1, Healthy: 1, Preferred: 1} // wherever it goes, it is one host
	} else {
		members = p.m.w.ClusterMembers(p.key.Cluster)
	}
	news := members != p.members
	if news {
		p.learn(members)
	}
	if p.told() {
		h.Preferred = len(p.usable)
	}
	if p.looked && h == p.hosts && !news {
		return
	}
	first, found := !p.looked, p.hosts.Assumed && known
	p.hosts, p.looked = h, true
	if p.outliers != nil {
		p.info.outliers.Resize(h.Preferred)
	}
	if first {
		p.epoch = p.info.forget(-1)
		return
	}
	if found {
		p.weigh()
		return
	}
	p.changed, p.search = now, 0
	if !p.told() {
		p.epoch = p.info.forget(p.epoch)
		p.samples = 0
		p.picks.forget()
		for _, cn := range p.ready {
			p.outdate(cn, &cn.stale)
		}
	}
	if !known {
		p.drainAll()
	}
}

// rotate replaces connections that are old or belong to an old membership.
func (p *Pool) rotate(now time.Duration) {
	if len(p.ready) < 2 && p.nextTry > now {
		return // nothing better is in sight
	}
	staying, stays := p.staying(), false
	for i := len(p.ready) - 1; i >= 0; i-- {
		cn := p.ready[i]
		if cn.leaving() && now >= cn.leavingUntil {
			cn.leavesUntil(0)
			stays = true
			if !cn.ejected {
				staying++
			}
		}
		if now >= cn.agingAt && !cn.aging {
			p.outdate(cn, &cn.aging)
		}
		over := now >= cn.expireAt || cn.stale && now-p.changed > changeTime
		// The last one stays until there is another, if there may be another.
		last := len(p.ready) == 1 || staying == 1 && !cn.shunned()
		if over && (!last || !p.opts.Shared && (p.room() <= 0 || p.forbidden())) {
			if !cn.shunned() {
				staying--
			}
			cn.drain()
		}
	}
	if stays {
		p.weigh()
	}
}

// blind reports whether nothing tells which hosts connections lead to: looking would never
// end.
func (p *Pool) blind() bool { return len(p.ready) > 0 && p.ready[0].host == "" }

// sample looks at where the load balancer sends connections, as long as too
// little is known of it, and for hosts that no connection leads to.
func (p *Pool) sample(now time.Duration) {
	if !p.opts.Shared || p.hosts.Preferred < 2 || now-p.lastUse > time.Second || now < p.nextTry {
		return
	}
	if now < p.noGrowth || p.forbidden() {
		return
	}
	if p.told() {
		p.seek(now)
		return
	}
	if p.trying > 0 || p.blind() {
		return
	}
	missing := p.reached() < p.hostsWanted()
	if p.seeks(missing) {
		for range seekTogether {
			p.connect(now, "")
		}
		return
	}
	if missing {
		if now < p.nextSearch {
			return
		}
		p.search = min(max(2*p.search, tickTime), 2*time.Second)
		p.nextSearch = now + p.search
		p.connect(now, "")
		return
	}
	p.search = 0
	if p.samples < enoughPicked {
		for range max(1, p.opts.MaxConnections/2) {
			if !p.connect(now, "") {
				return
			}
		}
		return
	}
	if p.samples < enoughSamples && now >= p.nextSample {
		p.nextSample = now + sampleTime
		if p.samples >= enoughSamples/2 || p.samples >= 48 && p.picks.period() != nil {
			p.nextSample = now + 4*sampleTime
		}
		p.connect(now, "")
	}
}
