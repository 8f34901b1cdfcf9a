package upstream

import (
	"slices"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/lightest"
)

// tickTime is how often a pool that is used looks after itself.
const tickTime = 100 * time.Millisecond

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

	conns    []*conn // connecting, greeting and ready
	ready    []*conn
	drainers []*conn
	old      int      // of conns, those that are to be replaced
	idle     idleList // of ready, exclusive ones without a call …
	parting  idleList // … and those of hosts that leave
	ids      *ids     // where the pool gives some
	inFlight int
	absent   int // of those in flight
	// lingering connections have been given an end of stream, and are not closed.
	lingering int

	queue        callList // waits for any connection
	pending      int      // waits at all
	pendingBytes int
	waiters      Waiters
	dispatching  bool
	round        uint64 // of looks at what waits

	watch
	guards

	budget   *Budget  // for retries
	deposits int      // in it, not yet handed over
	latency  *Latency // nil until somebody wants to know it

	tick    timer.Timer
	lastUse time.Duration
	gone    bool

	growth
	balance
	endpoints
	hashing   hashing
	balancing *lightest.Policy // nil: the load balancer's choice
}

func newPool(m *Manager, k Key, codec codecs.Codec, opts *Options) *Pool {
	p := &Pool{
		m: m, key: k, codec: codec, traits: codec.Traits(), opts: opts, budget: &DefaultBudget,
	}
	p.info = m.shared.cluster(k.Cluster, m.now())
	p.hunger, p.breakers = &p.info.hunger, &p.info.breakers
	if k.OriginalDst != "" || k.Mirror { // one host, and as many keys as clients care to dial; see Key
		p.info = newClusterInfo(m.shared)
	}
	if k.Mirror {
		p.breakers = &p.info.breakers
	}
	if p.byID() {
		p.ids = m.idsOf(idsKey{p.traits.MaxID, k.Mirror})
	}
	p.tick.Fire = p.onTick
	p.retry.Fire = p.kick
	p.used(m.now())
	return p
}

// byID reports whether answers find their calls by ids that the pool gives.
func (p *Pool) byID() bool { return p.opts.Mode == ByID }

// inOrder reports whether a client's calls reach servers in their order.
func (p *Pool) inOrder() bool { return p.opts.Mode == InOrder || p.opts.Mode == Leased }

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
	// Unsure: an answer may come or not, so that it says nothing of the host if none
	// does.
	Unsure bool
	// Lease is what the call does with the connection of its own that its client
	// has, where the pool is one of such.
	Lease codecs.Lease
	// Timeout after which the call fails, the time included that it waits.
	Timeout time.Duration
	// Avoid is the host that gets the call only if there is no connection to another
	// that can take it; "": none.
	Avoid string
	// Host is the address of the host that gets the call if it can, before Avoid and Hash
	// are asked; "": any. Strict: no other one gets it.
	Host   string
	Strict bool
	// Hash is what the host is chosen by, as Hashing says, if that is not nil.
	Hash    uint64
	Hashing *consistent.Policy
}

// Send takes a call. It ends by one of the Owner's methods, at the latest when its
// timeout has passed; oneway calls by Sent. s is not kept.
func (p *Pool) Send(c *Call, s *Send) {
	l, size, oneway := s.Line, s.Size, s.Oneway
	now := p.m.now()
	p.used(now)
	c.pool, c.line, c.conn, c.size, c.oneway, c.due = p, l, nil, size, oneway, now+s.Timeout
	c.written, c.host, c.server, c.sent, c.muted, c.lease = false, "", nil, 0, s.Muted, s.Lease
	c.avoid, c.sought, c.round, c.judged, c.unsure = s.Avoid, 0, 0, false, s.Unsure
	c.named, c.strict, c.hopeless = s.Host, s.Strict && s.Host != "", false
	if c.hash, c.hashed = s.Hash, s.Hashing != nil; c.hashed {
		p.hashBy(s.Hashing)
	}
	if p.inFlight+p.pending >= p.opts.MaxRequests {
		c.fail(codecs.OverLimit, "too many requests are in flight")
		return
	}
	var cn *conn
	if p.untried != nil && c.named == "" {
		cn = p.try(c, s)
	}
	if cn != nil {
		// An ejected host is tried.
	} else if l != nil {
		cn = l.pick(c)
	} else if p.queue.n == 0 || p.queue.first.sought > 0 {
		cn = p.choose(c)
	}
	if c.hopeless {
		c.fail(codecs.NoHealthyUpstream, p.misnamed(c, ""))
		return
	}
	if cn == nil {
		e, reason, refused := p.refuse(c)
		if refused && c.sought > 0 && !c.strict { // the host that it had better avoid is better than none
			cn = p.pick("")
		}
		if refused && cn == nil {
			c.fail(e, reason)
			return
		}
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

// used has the pool look after itself, until nothing has used it for long.
func (p *Pool) used(now time.Duration) {
	p.lastUse = now
	if !p.tick.Running() {
		p.m.timers.Start(&p.tick, p.lastUse+tickTime)
	}
}

// refuse tells whether a call that would have to wait is better refused, or may not. Else
// it is counted.
func (p *Pool) refuse(c *Call) (codecs.ErrorType, string, bool) {
	if p.pending >= 2*p.opts.MaxPending || p.pendingBytes >= 2*p.opts.MaxPendingBytes {
		return codecs.OverLimit, "too many requests wait for an upstream connection", true
	}
	if e, reason, hopeless := p.hopeless(); hopeless {
		return e, reason, true
	}
	if !p.mayWait(c) {
		return codecs.OverLimit, breaker.Pending.Reason(p.key.Cluster), true
	}
	return 0, "", false
}

// hopeless tells whether there is no connection, and no host to which there could be.
func (p *Pool) hopeless() (codecs.ErrorType, string, bool) {
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
	p.round++
	p.hashing.walked = 0
	for c := p.queue.first; c != nil; {
		if c.round == p.round { // it waits for what others do not take
			c = c.next
			continue
		}
		if c.hashed && c.named == "" && c.sought > 0 && p.hashing.walked > maxWalk && !p.takes() {
			c.round = p.round // to look for a host to wait for has cost enough
			c = c.next
			continue
		}
		l := c.line
		var cn *conn
		if l != nil {
			cn = l.free(c)
		} else {
			cn = p.choose(c)
		}
		switch {
		case cn != nil:
			cn.send(c)
			if l != nil {
				l.next() // those behind it go the same way
			}
			c = p.queue.first
		case c.hopeless:
			c.end()
			c.fail(codecs.NoHealthyUpstream, p.misnamed(c, ""))
			c = p.queue.first
		case c.sought > 0: // others may take what it does not
			c.round = p.round
			c = c.next
		default:
			return
		}
	}
}

// takes reports whether some connection can take a call now.
func (p *Pool) takes() bool {
	if !p.opts.Shared {
		return p.idle.first != nil || p.parting.first != nil
	}
	return slices.ContainsFunc(p.ready, func(cn *conn) bool { return !cn.blocked })
}

func (p *Pool) failQueue(e codecs.ErrorType, reason string) {
	for c := p.queue.first; c != nil; c = p.queue.first {
		c.end()
		c.fail(e, reason)
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
		p.rehash(now)
		if p.heard != p.info.said.Load() {
			p.heed(now)
		}
		for _, cn := range p.conns {
			cn.resume() // oneways count as read after a while
			if cn.in.Buffered() == 0 && now-cn.lastData > time.Second {
				cn.in.Wait(0) // an idle connection keeps nothing
			}
		}
		p.deposited()
		p.oversee(now)
		p.rotate(now)
		p.sample(now)
		p.shrink(now)
		p.yield(now)
		p.grow()
	}
	p.reap(now)
	p.kick()
	again := tickTime
	if p.hashing.used && p.told() && !p.hashing.current {
		again = buildTime
	}
	p.m.timers.Start(&p.tick, now+again)
}

// giveUp ends the pool.
func (p *Pool) giveUp(now time.Duration) {
	p.gone = true
	delete(p.m.pools, p.key)
	p.m.timers.Stop(&p.retry)
	p.disown(false)
	p.Limit(nil)
	p.m.shared.release(p.key.Cluster, now)
	p.m.Gone(p)
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
		if cn.absent > 0 && cn.absent == cn.inFlight && now > cn.givenUpAt() {
			cn.close(codecs.UpstreamReset, "upstream connection closed")
		}
	}
}

// givenUpAt is until when a drained connection is kept for nothing but answers that nobody
// waits for: a shared one as long behind their deadlines as a oneway may not have been
// read, and no longer than those if more drain than may serve. A server that hangs would
// have a further one at each timeout.
func (cn *conn) givenUpAt() time.Duration {
	p := cn.pool
	at := cn.calls.last.sent + p.opts.IdleTimeout
	switch {
	case !p.opts.Shared:
		return at
	case len(p.drainers) > p.opts.MaxConnections:
		return min(at, max(cn.owesUntil, cn.keepUntil))
	}
	return min(at, max(cn.owesUntil+onewayTime, cn.keepUntil))
}

// Cluster returns the name of the pool's cluster.
func (p *Pool) Cluster() string { return p.key.Cluster }

// Repeats reports whether a call may be sent again: it could not where that would
// change an order, or begin a stream anew.
func (p *Pool) Repeats() bool { return p.opts.Mode == ByID || p.opts.Mode == OneByOne }
