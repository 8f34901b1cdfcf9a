package upstream

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
)

const (
	firstBackoff = 25 * time.Millisecond
	// A worker that cannot connect because others hold all connections that a
	// circuit breaker allows waits so long before its requests fail …
	starveTime = time.Second
	// … while those that hold one give it up after so long.
	turnTime = 200 * time.Millisecond
)

// growth is what a pool has learnt of its attempts to connect.
type growth struct {
	attempts int // ever
	trying   int // that are under way
	retry    timer.Timer
	backoff  time.Duration // pause before the next attempt; 0 after a success
	failed   int           // the attempts up to this one have been backed off from
	away     time.Duration // the same behind hosts that say again that they leave
	nextTry  time.Duration
	noGrowth time.Duration // a circuit breaker forbids growth until then
	limited  bool          // it did at the last attempt, which nobody waited for
	hunger   *hunger
	starving time.Duration // since when, 0: not
	granted  time.Duration // when the first connection became ready
}

// hostsWanted is how many different hosts there should be connections to.
func (p *Pool) hostsWanted() int {
	return max(1, min(p.hosts.Preferred-p.failing, p.opts.MaxConnections))
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
	if p.hosts.Preferred > 1 && p.samples < p.opts.MaxConnections && !p.told() {
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
	if p.backoff > 0 || p.away > 0 {
		want = min(want, n+max(0, 1-p.trying)) // one at a time until one succeeds
	}
	if !p.opts.Shared {
		want = min(want, n+p.room())
	}
	if p.queue.n == 0 && p.forbidden() {
		return
	}
	for n < want && p.connect(now, "") {
		n++
	}
}

// connect opens a connection. It reports false if a circuit breaker forbids it, or no
// host of those that the cluster tells is to be tried now.
func (p *Pool) connect(now time.Duration, avoid string) bool {
	ep, ok := p.next(now, avoid)
	return ok && p.connectTo(ep, now)
}

// connectTo opens a connection to a host, nil: to any. It reports false if a circuit
// breaker forbids it.
func (p *Pool) connectTo(ep *endpoint, now time.Duration) bool {
	p.attempts++
	if !p.mayConnect() {
		p.connectFailed(p.attempts, nil, host.Overflow, breaker.Connections.Reason(p.key.Cluster))
		return false
	}
	cn := &conn{pool: p, wanted: ep, attempt: p.attempts, born: now, dec: p.codec.NewDecoder(codecs.ServerToClient)}
	if p.traits.Correlation != codecs.ByID {
		cn.answers, _ = cn.dec.(codecs.AnswerDecoder)
	}
	budget := &p.m.partials
	if p.key.Mirror {
		budget = &p.m.mirrored
	}
	cn.partial.Init(cn, &cn.in, budget, p.opts.MaxPartialBytes)
	p.trying++
	p.conns = append(p.conns, cn)
	t := host.Target{Cluster: p.key.Cluster, OriginalDst: p.key.OriginalDst, Source: p.key.Source}
	if ep != nil {
		ep.trying++
		t.Host = ep.addr
	}
	cn.up = p.m.w.Connect(t, cn)
	return true
}

// connected takes a new connection into use, and an old one out.
func (p *Pool) connected(cn *conn) {
	p.trying--
	p.tried(cn)
	p.backoff, p.nextTry, p.starving = 0, 0, 0
	p.m.timers.Stop(&p.retry)
	if len(p.ready) == 0 {
		p.granted = p.m.now()
	}
	p.ready = append(p.ready, cn)
	cn.to.conns = append(cn.to.conns, cn)
	astray := cn.wanted != nil && cn.wanted != cn.to
	if astray { // the host did not take it, and the next attempt was not ours
		p.unreachable(cn.wanted, cn.attempt, p.m.now())
	}
	p.reachable(cn.to)
	if !p.told() {
		p.samples++
		p.picks.add(cn.attempt, cn.host)
		p.info.picked(cn.host)
	}
	p.rehash(p.m.now())
	cn.leavingUntil = p.info.leavingUntil(cn.host, p.m.now())
	if cn.warned = cn.leaving(); !cn.warned {
		p.away = 0
	}
	if astray && len(cn.to.conns) > 1 && (p.opts.Shared || p.queue.n == 0) || p.outliers != nil && !p.keeps(cn) {
		cn.drain()
		p.kick()
		return
	}
	if !cn.shunned() {
		p.succeed(cn)
	}
	p.weigh()
	cn.rest()
	p.kick()
}

// succeed retires a connection in whose place cn has come.
func (p *Pool) succeed(cn *conn) {
	if p.old == 0 && !p.opts.Shared {
		// None is to be replaced; but one may be more than wanted, if it does not count
		// where it leads.
		if o := p.idle.first; o != nil && len(p.ready) > p.want() && !p.told() {
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
				p.tried(cn)
			}
		}
	}
	p.drainers = without(p.drainers, cn)
	if n := len(p.ready); n > 0 {
		if p.ready = without(p.ready, cn); len(p.ready) != n {
			cn.to.conns = without(cn.to.conns, cn)
			p.weigh()
		}
	}
	if cn.to != nil {
		p.forget(cn.to)
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

// connectFailed draws the consequences of a failed attempt. Attempts that were
// made together count as one. to is the host that was wanted, nil if it was any.
func (p *Pool) connectFailed(attempt int, to *endpoint, r host.CloseReason, why string) {
	now := p.m.now()
	p.obs.ConnectFailed(p.key.Cluster, r, why)
	if r == host.ConnectFailed && p.unreachable(to, attempt, now) {
		p.kick() // what waits for that host goes elsewhere
		return
	}
	switch {
	case p.backoff == 0:
		p.backoff, p.failed = firstBackoff, p.attempts
	case attempt > p.failed:
		p.backoff, p.failed = 2*p.backoff, p.attempts
	}
	p.backoff = min(p.backoff, p.opts.BackoffMax)
	p.nextTry = now + p.jittered(p.backoff)
	p.limited = r == host.Overflow && p.queue.n == 0
	trying := p.trying
	if r == host.Overflow {
		p.noGrowth = now + turnTime
		if len(p.ready) == 0 && trying == 0 && p.queue.n > 0 {
			if p.starving == 0 {
				p.starving = now
			}
			if !p.key.Mirror { // for copies nobody gives a connection up
				p.hunger.starve(p, now)
			}
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

// turnedAway pauses behind a new shared connection over which its host says, once more,
// that it leaves, if no other host is there: the calls that had waited for it keep it, and
// the next one would be made at once. Pauses get longer while as many drain as may serve.
func (p *Pool) turnedAway(cn *conn) {
	now := p.m.now()
	switch {
	case !p.opts.Shared || p.staying() > 0:
		return
	case now-cn.born > p.opts.BackoffMax:
		p.away = 0 // it has served for a while
		return
	case p.away == 0 || len(p.drainers) < p.opts.MaxConnections:
		p.away, p.failed = firstBackoff, p.attempts
	case cn.attempt > p.failed:
		p.away, p.failed = min(2*p.away, p.opts.BackoffMax), p.attempts
	}
	p.nextTry = max(p.nextTry, now+p.jittered(p.away))
}

// Queued implements host.Queued: calls that wait have another pool give a connection up.
func (cn *conn) Queued() {
	if p := cn.pool; cn.state == connecting && len(p.ready) == 0 && p.queue.n > 0 && !p.key.Mirror {
		p.hunger.starve(p, p.m.now())
	}
}

// jittered is a pause of about so long.
func (p *Pool) jittered(pause time.Duration) time.Duration {
	return pause/2 + time.Duration(p.m.rand.Int64N(int64(pause/2)+1))
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
	for _, cn := range p.ready {
		same := len(cn.to.conns)
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
		p.nextTry, p.limited = now+turnTime/2, false // else the next call would take it back
	}
	victim := p.ready[0]
	for _, cn := range p.ready {
		if cn.inFlight == 0 && !cn.leased() {
			victim = cn
			break
		}
	}
	victim.drain()
}
