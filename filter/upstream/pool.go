package upstream

import (
	"slices"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
)

const (
	tickTime = 100 * time.Millisecond
	// Under load connections are sampled until so many picks of the load
	// balancer are known, unless they repeat themselves before. The first ones
	// come in short order: what they say may be an accident.
	enoughSamples = 256
	sampleTime    = 250 * time.Millisecond
	firstBackoff  = 25 * time.Millisecond
	// A worker that cannot connect because others hold all connections that a
	// circuit breaker allows waits so long before its requests fail …
	starveTime = time.Second
	// … while those that hold one give it up after so long.
	turnTime = 200 * time.Millisecond
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
)

// Pool spreads the calls of one worker over connections to one cluster. The
// connections' hosts are chosen by the host's load balancer; the pool watches
// which ones they are and gives every host its share of the calls.
type Pool struct {
	m      *Manager
	key    Key
	codec  codecs.Codec
	traits codecs.Traits
	opts   *Options
	obs    Observer
	info   *clusterInfo
	hunger *hunger

	conns    []*conn // connecting and ready
	ready    []*conn
	drainers []*conn
	trying   int      // of conns, those that connect
	old      int      // of conns, those that are to be replaced
	idle     idleList // of ready, exclusive ones without a call …
	parting  idleList // … and those of hosts that leave
	ids      ids
	inFlight int
	absent   int // of those in flight
	// lingering connections have been given an end of stream, and are not closed.
	lingering int

	queue               callList // waits for any connection
	pending             int      // waits at all
	pendingBytes        int
	waiters, lastWaiter *Waiter

	tick    timer.Timer
	retry   timer.Timer
	lastUse time.Duration
	backoff time.Duration // pause before the next attempt; 0 after a success
	failed  int           // the attempts up to this one have been backed off from
	nextTry time.Duration

	hosts       host.Hosts // as last seen
	looked      bool
	epoch       int
	changed     time.Duration // when the membership changed last
	attempts    int           // to connect, ever
	samples     int           // own picks in this epoch
	picks       picks
	nextSample  time.Duration
	search      time.Duration // pause between looks for a missing host
	nextSearch  time.Duration
	starving    time.Duration // since when, 0: not
	heard       int64         // of what hosts have said of their leaving
	granted     time.Duration // when the first connection became ready
	noGrowth    time.Duration // a circuit breaker forbids growth until then
	limited     bool          // it did at the last attempt, which nobody waited for
	perHost     map[string]int
	dispatching bool
	gone        bool
}

func newPool(m *Manager, k Key, codec codecs.Codec, opts *Options) *Pool {
	p := &Pool{
		m: m, key: k, codec: codec, traits: codec.Traits(), opts: opts,
	}
	p.info = m.shared.cluster(k.Cluster, m.now())
	p.hunger = &p.info.hunger
	if k.OriginalDst != "" { // one host, and as many keys as clients care to dial
		p.info = newClusterInfo()
	}
	p.ids.init(p.traits.MaxID)
	p.tick.Fire = p.onTick
	p.retry.Fire = p.kick
	return p
}

// byID reports whether answers find their calls by ids that the pool gives.
func (p *Pool) byID() bool { return p.opts.Mode == ByID }

// Observe has o hear of the pool from now on.
func (p *Pool) Observe(o Observer) { p.obs = o }

// Send is what a pool is told of a call.
type Send struct {
	// Line is that of the client to the pool, nil if it has none.
	Line *Line
	// Size of the encoded call, in bytes, about.
	Size int
	// Oneway: no answer is expected. Muted: none is wanted, but the server gives
	// one.
	Oneway, Muted bool
	// Lease is what the call does with the connection of its own that its client
	// has, where the pool is one of such.
	Lease codecs.Lease
	// Timeout after which the call fails, the time included that it waits.
	Timeout time.Duration
}

// Send takes a call. It ends by one of the Owner's methods, at the latest when its
// timeout has passed; oneway calls by Sent.
func (p *Pool) Send(c *Call, s Send) {
	l, size, oneway := s.Line, s.Size, s.Oneway
	now := p.m.now()
	p.lastUse = now
	if !p.tick.Running() {
		p.m.timers.Start(&p.tick, now+tickTime)
	}
	c.pool, c.line, c.conn, c.size, c.oneway, c.due = p, l, nil, size, oneway, now+s.Timeout
	c.written, c.host, c.sent, c.muted, c.lease = false, "", 0, s.Muted, s.Lease
	if p.inFlight+p.pending >= p.opts.MaxRequests {
		c.fail(codecs.OverLimit, "too many requests are in flight")
		return
	}
	var cn *conn
	if l != nil {
		cn = l.pick()
	} else if p.queue.n == 0 {
		cn = p.pick()
	}
	if cn != nil {
		if !oneway {
			p.m.timers.Start(&c.deadline, c.due)
		}
		cn.send(c)
		if p.opts.Shared && p.inFlight > len(p.ready)*p.opts.TargetInFlight {
			p.grow()
		}
		return
	}
	if e, reason, refused := p.refuse(); refused {
		c.fail(e, reason)
		return
	}
	c.owner.Hold()
	p.m.timers.Start(&c.deadline, c.due)
	p.pending++
	p.pendingBytes += size
	if l == nil {
		p.queue.push(c)
	} else {
		l.waiting.push(c)
		l.next()
	}
	if p.queue.n == 0 {
		return // it waits for a connection that there is
	}
	if p.limited { // which may have ended since
		p.nextTry = min(p.nextTry, now)
	}
	p.grow()
}

// refuse tells whether a call that would have to wait is better refused.
func (p *Pool) refuse() (codecs.ErrorType, string, bool) {
	if p.pending >= 2*p.opts.MaxPending || p.pendingBytes >= 2*p.opts.MaxPendingBytes {
		return codecs.OverLimit, "too many requests wait for an upstream connection", true
	}
	if len(p.ready) > 0 {
		return 0, "", false
	}
	h, known, ok := p.m.w.ClusterHosts(p.key.Cluster)
	switch {
	case !ok || p.key.OriginalDst != "" && known:
		return 0, "", false
	case !known:
		return codecs.ClusterNotFound, "unknown cluster " + p.key.Cluster, true
	case h.Total == 0:
		return codecs.NoHealthyUpstream, "no healthy upstream in cluster " + p.key.Cluster, true
	}
	return 0, "", false
}

// Gone reports whether the pool has been given up, as nothing used it. A new
// one is to be asked for.
func (p *Pool) Gone() bool { return p.gone }

// pick chooses a connection for the next call, nil when there is none that
// can take it.
func (p *Pool) pick() *conn {
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

// hostsWanted is how many different hosts there should be connections to.
func (p *Pool) hostsWanted() int {
	return max(1, min(p.hosts.Preferred, p.opts.MaxConnections))
}

// want is how many connections that are not about to be replaced the pool
// should have now.
func (p *Pool) want() int {
	if !p.opts.Shared {
		taken := len(p.ready) - p.idle.n - p.parting.n // by a call, or blocked
		if p.opts.Mode == Streams {
			taken = max(0, taken-p.old) // none is there for the next one
		}
		return min(p.opts.MaxExclusive, max(p.opts.MinConnections, taken+p.queue.n))
	}
	n := max(p.opts.MinConnections, p.hostsWanted())
	if p.hosts.Preferred > 1 && p.samples < p.opts.MaxConnections {
		n = p.opts.MaxConnections // a first look at how the load balancer picks
	}
	load := (p.inFlight + p.queue.n + p.opts.TargetInFlight - 1) / p.opts.TargetInFlight
	return min(p.opts.MaxConnections, max(n, load))
}

// fresh counts the connections, and those still connecting, that need no
// replacement.
func (p *Pool) fresh() int { return len(p.conns) - p.old }

// outdate marks a connection as one to be replaced: it gets old, or belongs to a
// membership that is over.
func (p *Pool) outdate(cn *conn, mark *bool) {
	if !cn.outdated() {
		p.old++
	}
	*mark = true
}

func (cn *conn) outdated() bool { return cn.stale || cn.aging }

// room is how many exclusive connections may be opened.
func (p *Pool) room() int { return p.opts.MaxExclusive - len(p.conns) - len(p.drainers) }

// grow opens connections as far as they are wanted and allowed.
func (p *Pool) grow() {
	now := p.m.now()
	if !p.looked {
		p.look(now)
	}
	if now < p.nextTry {
		p.m.timers.Start(&p.retry, p.nextTry)
		return
	}
	if p.backoff > 0 && p.pending == 0 && len(p.ready) == 0 && now-p.lastUse > 2*p.opts.BackoffMax {
		return // nothing is there, and nobody needs it: the next request tries again
	}
	n := p.fresh()
	want := p.want()
	if now < p.noGrowth {
		want = min(want, max(1, len(p.ready)))
	}
	if p.backoff > 0 {
		want = min(want, n+max(0, 1-p.trying)) // one at a time until one succeeds
	}
	if !p.opts.Shared {
		want = min(want, n+p.room())
	}
	for ; n < want; n++ {
		p.connect(now)
	}
}

func (p *Pool) connect(now time.Duration) {
	p.attempts++
	cn := &conn{pool: p, attempt: p.attempts, born: now, dec: p.codec.NewDecoder(codecs.ServerToClient)}
	if p.traits.Correlation != codecs.ByID {
		cn.answers, _ = cn.dec.(codecs.AnswerDecoder)
	}
	cn.partial.Init(cn, &cn.in, &p.m.partials, p.opts.MaxPartialBytes)
	p.trying++
	p.conns = append(p.conns, cn)
	cn.up = p.m.w.Connect(host.Target{Cluster: p.key.Cluster, OriginalDst: p.key.OriginalDst, Source: p.key.Source}, cn)
}

// connected takes a new connection into use, and an old one out.
func (p *Pool) connected(cn *conn) {
	p.trying--
	p.backoff, p.nextTry, p.starving = 0, 0, 0
	p.m.timers.Stop(&p.retry)
	if len(p.ready) == 0 {
		p.granted = p.m.now()
	}
	p.ready = append(p.ready, cn)
	p.samples++
	p.picks.add(cn.attempt, cn.host)
	p.info.picked(cn.host)
	if cn.leavingUntil = p.info.leavingUntil(cn.host, p.m.now()); !cn.leaving() {
		p.succeed(cn)
	}
	p.weigh()
	cn.rest()
	p.kick()
}

// succeed retires a connection in whose place cn has come.
func (p *Pool) succeed(cn *conn) {
	if p.old == 0 && !p.opts.Shared {
		// None is to be replaced; but one may be more than wanted.
		if o := p.idle.first; o != nil && len(p.ready) > p.want() {
			o.drain()
		}
		return
	}
	var old *conn
	same := 0
	for _, o := range p.ready {
		if o == cn {
			continue
		}
		if o.host == cn.host {
			same++
		}
		switch {
		case o.stale:
			if old == nil || !old.stale {
				old = o
			}
		case o.aging && o.host == cn.host && (old == nil || !old.stale && o.born < old.born):
			old = o
		}
	}
	if old != nil {
		old.drain()
		return
	}
	if !p.opts.Shared || same == 0 || len(p.ready) <= p.want() {
		return
	}
	// One more than wanted: the oldest at the same host goes.
	for _, o := range p.ready {
		if o != cn && o.host == cn.host && (old == nil || o.born < old.born) {
			old = o
		}
	}
	old.drain()
}

func (p *Pool) remove(cn *conn) {
	if n := len(p.conns); n > 0 {
		if p.conns = without(p.conns, cn); len(p.conns) != n {
			if cn.outdated() {
				p.old--
			}
			if cn.state == connecting || cn.state == greeting {
				p.trying--
			}
		}
	}
	p.drainers = without(p.drainers, cn)
	if n := len(p.ready); n > 0 {
		if p.ready = without(p.ready, cn); len(p.ready) != n {
			p.weigh()
		}
	}
}

func without(l []*conn, cn *conn) []*conn {
	for i, o := range l {
		if o == cn {
			copy(l[i:], l[i+1:])
			l[len(l)-1] = nil
			return l[:len(l)-1]
		}
	}
	return l
}

// weigh gives the connections their weights: together those of a host get the
// share with which the load balancer picks it.
func (p *Pool) weigh() {
	if !p.opts.Shared {
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
	staying := p.staying()
	for _, cn := range p.ready {
		cn.weight, cn.current = 1<<20, 0
		if known {
			i := index(cn.host)
			cn.weight = int64(shares[i]*(1<<20))/conns[i] + 1
		}
		if cn.leaving() && staying > 0 {
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

// staying counts the connections to hosts that have not said that they leave.
func (p *Pool) staying() (n int) {
	for _, cn := range p.ready {
		if !cn.leaving() {
			n++
		}
	}
	return n
}

// freed is called when a connection has one call less.
func (p *Pool) freed(cn *conn) {
	if cn.state == draining {
		cn.closeIfDrained()
	}
	if p.queue.n > 0 {
		p.kick()
	}
}

// answered finds the call that md answers.
func (p *Pool) answered(cn *conn, md *codecs.Metadata) *Call {
	if p.byID() {
		return p.ids.find(md.ID, cn)
	}
	return cn.calls.first
}

// kick sends what waits, as far as possible.
func (p *Pool) kick() {
	if p.dispatching {
		return
	}
	p.dispatch()
	if p.queue.n > 0 {
		p.grow()
	}
}

func (p *Pool) dispatch() {
	p.dispatching = true
	defer func() { p.dispatching = false }() // also when something panics
	for c := p.queue.first; c != nil; c = p.queue.first {
		l := c.line
		var cn *conn
		if l != nil {
			cn = l.free()
		} else {
			cn = p.pick()
		}
		if cn == nil {
			return
		}
		cn.send(c)
		if l != nil {
			l.next() // those behind it go the same way
		}
	}
}

func (p *Pool) failQueue(e codecs.ErrorType, reason string) {
	for c := p.queue.first; c != nil; c = p.queue.first {
		c.end()
		c.fail(e, reason)
	}
}

// connectFailed draws the consequences of a failed attempt. Attempts that were
// made together count as one.
func (p *Pool) connectFailed(attempt int, r host.CloseReason, why string) {
	now := p.m.now()
	p.obs.ConnectFailed(p.key.Cluster, r, why)
	switch {
	case p.backoff == 0:
		p.backoff, p.failed = firstBackoff, p.attempts
	case attempt > p.failed:
		p.backoff, p.failed = 2*p.backoff, p.attempts
	}
	p.backoff = min(p.backoff, p.opts.BackoffMax)
	p.nextTry = now + p.backoff/2 + time.Duration(p.m.rand.Int64N(int64(p.backoff/2)+1))
	p.limited = r == host.Overflow && p.queue.n == 0
	trying := p.trying
	if r == host.Overflow {
		p.noGrowth = now + turnTime
		if len(p.ready) == 0 && trying == 0 && p.queue.n > 0 {
			if p.starving == 0 {
				p.starving = now
			}
			p.hunger.starve(p, now)
			p.nextTry = now + firstBackoff
			if now-p.starving > starveTime {
				p.starving = 0
				p.failQueue(codecs.OverLimit, "upstream connection limit reached")
				return
			}
		}
	} else if len(p.ready) == 0 && trying == 0 {
		switch r {
		case host.NoCluster:
			p.failQueue(codecs.ClusterNotFound, "unknown cluster "+p.key.Cluster)
		case host.NoHost:
			p.failQueue(codecs.NoHealthyUpstream, "no healthy upstream in cluster "+p.key.Cluster)
		case host.Draining:
			// The way upstream itself is being replaced: the next attempt
			// goes over the new one.
		default:
			reason := "upstream connect failure in cluster " + p.key.Cluster
			if why != r.String() {
				reason += ": " + why
			}
			p.failQueue(codecs.ConnectFailure, reason)
		}
	}
	if p.queue.n > 0 {
		p.m.timers.Start(&p.retry, p.nextTry)
	}
}

// look asks for the cluster's membership and reports whether it changed.
func (p *Pool) look(now time.Duration) {
	h, known, ok := p.m.w.ClusterHosts(p.key.Cluster)
	if !ok {
		return
	}
	if p.key.OriginalDst != "" {
		h = host.Hosts{Total: 1, Healthy: 1, Preferred: 1} // wherever it goes, it is one host
	}
	if p.looked && h == p.hosts {
		return
	}
	first := !p.looked
	p.hosts, p.looked = h, true
	if first {
		p.epoch = p.info.forget(-1)
		return
	}
	p.epoch = p.info.forget(p.epoch)
	p.changed, p.samples, p.search = now, 0, 0
	p.picks.forget()
	for _, cn := range p.conns {
		if cn.state == ready {
			p.outdate(cn, &cn.stale)
		}
	}
	if !known {
		p.drainAll()
	}
}

func (p *Pool) drainAll() {
	for len(p.conns) > 0 {
		p.conns[len(p.conns)-1].drain()
	}
}

// onTick does the upkeep.
func (p *Pool) onTick() {
	now := p.m.now()
	// Pools of one client's address each are many: they go with their last
	// connection.
	unused := now-p.lastUse > p.opts.IdleTimeout || p.key.Source.IsValid() && len(p.conns) == 0
	if unused && p.inFlight == 0 && p.pending == 0 {
		p.drainAll()
		if len(p.drainers) == 0 {
			p.giveUp(now)
			return
		}
	} else {
		p.look(now)
		if p.heard != p.info.said.Load() {
			p.heed(now)
		}
		for _, cn := range p.conns {
			cn.resume() // oneways count as read after a while
			if cn.in.Buffered() == 0 && now-cn.lastData > time.Second {
				cn.in.Wait(0) // an idle connection keeps nothing
			}
		}
		p.rotate(now)
		p.sample(now)
		p.shrink(now)
		p.yield(now)
		p.grow()
	}
	p.reap(now)
	p.kick()
	p.m.timers.Start(&p.tick, now+tickTime)
}

// giveUp ends the pool.
func (p *Pool) giveUp(now time.Duration) {
	p.gone = true
	delete(p.m.pools, p.key)
	p.m.timers.Stop(&p.retry)
	p.ids.slots = nil
	p.m.shared.release(p.key.Cluster, now)
	p.m.Gone(p)
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
			staying++
		}
		if now >= cn.agingAt && !cn.aging {
			p.outdate(cn, &cn.aging)
		}
		over := now >= cn.expireAt || cn.stale && now-p.changed > changeTime
		// The last one stays until there is another, if there may be another.
		last := len(p.ready) == 1 || staying == 1 && !cn.leaving()
		if over && (!last || !p.opts.Shared && p.room() <= 0) {
			if !cn.leaving() {
				staying--
			}
			cn.drain()
		}
	}
	if stays {
		p.weigh()
	}
}

// sample looks at where the load balancer sends connections, as long as too
// little is known of it, and for hosts that no connection leads to.
func (p *Pool) sample(now time.Duration) {
	if !p.opts.Shared || p.hosts.Preferred < 2 || now-p.lastUse > time.Second || now < p.nextTry {
		return
	}
	if p.trying > 0 || now < p.noGrowth {
		return
	}
	missing := len(p.countHosts()) < p.hostsWanted()
	if missing {
		if now < p.nextSearch {
			return
		}
		p.search = min(max(2*p.search, tickTime), 2*time.Second)
		p.nextSearch = now + p.search
		p.connect(now)
		return
	}
	p.search = 0
	if p.samples < enoughPicked {
		for range max(1, p.opts.MaxConnections/2) {
			p.connect(now)
		}
		return
	}
	if p.samples < enoughSamples && now >= p.nextSample {
		p.nextSample = now + sampleTime
		if p.samples >= enoughSamples/2 || p.samples >= 48 && p.picks.period() != nil {
			p.nextSample = now + 4*sampleTime
		}
		p.connect(now)
	}
}

// countHosts counts the ready connections to each host.
func (p *Pool) countHosts() map[string]int {
	if p.perHost == nil {
		p.perHost = map[string]int{}
	}
	clear(p.perHost)
	for _, cn := range p.ready {
		p.perHost[cn.host]++
	}
	return p.perHost
}

// shrink retires connections when there are more than wanted: of shared ones the
// oldest of the host that has most, of exclusive ones those that are idle longest.
func (p *Pool) shrink(now time.Duration) {
	excess := len(p.ready) - p.want()
	if excess <= 0 || now-p.changed < changeTime && p.changed > 0 {
		return
	}
	if !p.opts.Shared {
		for range 1 + excess/16 {
			cn := p.parting.first
			if cn == nil {
				cn = p.idle.first
			}
			if cn == nil || now-cn.lastCall < p.opts.IdleTimeout/4 {
				return
			}
			cn.drain()
		}
		return
	}
	var victim *conn
	most := 0
	hosts := p.countHosts()
	for _, cn := range p.ready {
		same := hosts[cn.host]
		if victim == nil || same > most || same == most && cn.born < victim.born {
			victim, most = cn, same
		}
	}
	// One connection to each host is what want asks for, but as long as
	// different hosts are few a second one may be all that is left of a host.
	if victim != nil && (most > 1 || len(p.ready) > p.opts.MaxConnections || p.hosts.Preferred < 2) {
		victim.drain()
	}
}

// yield gives a connection up that another pool cannot get because of a circuit
// breaker.
func (p *Pool) yield(now time.Duration) {
	ease, hungry := p.hunger.within(p, now, 3*tickTime)
	if !hungry || len(p.ready) == 0 || len(p.ready) == 1 && now-p.granted <= turnTime || !ease() {
		return
	}
	if len(p.ready) > 1 {
		p.noGrowth = now + turnTime
	} else {
		p.nextTry = now + turnTime/2
	}
	victim := p.ready[0]
	for _, cn := range p.ready {
		if cn.inFlight == 0 {
			victim = cn
			break
		}
	}
	victim.drain()
}

// tooManyAbsent reports whether the answers that nobody waits for take a large
// share of the requests that may be in flight.
func (p *Pool) tooManyAbsent() bool { return p.absent > p.opts.MaxRequests/4 }

// reap ends drained connections that wait for nothing any more, or for nothing
// but answers nobody waits for.
func (p *Pool) reap(now time.Duration) {
	for i := len(p.drainers) - 1; i >= 0; i-- {
		cn := p.drainers[i]
		cn.resume()
		cn.closeIfDrained()
		if cn.absent > 0 && cn.absent == cn.inFlight && now-cn.calls.last.sent > p.opts.IdleTimeout {
			cn.close(codecs.UpstreamReset, "upstream connection closed")
		}
	}
}
