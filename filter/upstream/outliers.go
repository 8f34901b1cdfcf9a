package upstream

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
)

// fewMisses is how many new connections in a row may lead to ejected hosts, in a small
// cluster, before the next one is used all the same: the load balancer has no other.
const fewMisses = 16

// watch is what a pool has to do with hosts that fail.
type watch struct {
	outliers *outlier.Policy // nil: hosts are not watched
	heeded   uint32          // version of the hosts that its connections follow
	misses   int             // new connections to ejected hosts, in a row
	untried  *conn           // leads to an ejected host that is to be tried; nil: none does
	// ejections are those of which the pool tells: one of the process does.
	ejections []ejection
}

type ejection struct {
	host   *outlier.Host
	number uint64
}

// Watch has the pool leave hosts out that fail, as p says, nil: none.
func (p *Pool) Watch(policy *outlier.Policy) {
	if policy != p.outliers && p.key.OriginalDst == "" {
		p.rewatch(policy)
	}
}

func (p *Pool) rewatch(policy *outlier.Policy) {
	was := p.outliers
	p.outliers = policy
	switch {
	case was == nil:
		if p.looked {
			p.info.outliers.Resize(p.hosts.Preferred)
		}
		for _, l := range [...][]*conn{p.conns, p.drainers} {
			for _, cn := range l {
				cn.watch()
			}
		}
		p.follow()
	case policy == nil:
		for _, l := range [...][]*conn{p.conns, p.drainers} {
			for _, cn := range l {
				cn.unwatch()
				cn.leaveOut(false)
			}
		}
		p.weigh()
		p.disown(false)
	}
}

func (cn *conn) watch() {
	if p := cn.pool; p.outliers != nil && cn.host != "" {
		cn.watched = p.info.outliers.Use(cn.host, p.m.now())
	}
}

func (cn *conn) unwatch() {
	if cn.watched != nil {
		cn.watched.Leave(cn.pool.m.now())
		cn.watched = nil
	}
	if p := cn.pool; p.untried == cn {
		p.untried = nil
	}
}

// leaveOut has the connection get no calls, or get some again.
func (cn *conn) leaveOut(out bool) {
	if cn.ejected == out {
		return
	}
	cn.ejected = out
	if out {
		cn.pool.outdate(cn, &cn.stale)
	}
	cn.unrest()
	cn.rest()
}

// follow has the connections follow what hosts are ejected now. Those to hosts that
// have been are replaced.
func (p *Pool) follow() {
	p.heeded = p.info.outliers.Version()
	p.search = 0 // for connections by which ejected hosts can be tried
	for _, cn := range p.ready {
		if cn.watched != nil {
			cn.leaveOut(cn.watched.Out())
			p.adopt(cn.watched)
		}
	}
	p.noteEjected()
	p.weigh()
}

// adopt has the pool tell of a host's ejection, if no other does.
func (p *Pool) adopt(h *outlier.Host) {
	if number, ok := h.Adopt(); ok {
		p.ejections = append(p.ejections, ejection{h, number})
		p.obs.Ejected(1)
	}
}

// keeps tells whether a new connection to an ejected host is kept. One that many share
// is, so that no other is looked for; it gets no calls. An exclusive one is if the host
// can be tried by it.
func (p *Pool) keeps(cn *conn) bool {
	if cn.watched == nil || !cn.watched.Out() {
		p.misses = 0
		return true
	}
	if p.told() {
		cn.ejected = true
		p.adopt(cn.watched)
		if p.opts.Shared {
			return cn.to.fresh() == 1
		}
		return p.untried == nil && cn.watched.Due(p.m.now())
	}
	if p.misses++; p.misses > max(fewMisses, 2*p.hosts.Preferred) {
		p.misses = 0
		return true
	}
	cn.ejected = true
	p.adopt(cn.watched)
	if p.opts.Shared {
		return p.staying() > 0 && len(cn.to.conns) == 1
	}
	return p.untried == nil && cn.watched.Due(p.m.now())
}

// oversee looks after the hosts, at each tick.
func (p *Pool) oversee(now time.Duration) {
	if p.outliers == nil {
		return
	}
	hosts := &p.info.outliers
	p.findSilent(now)
	if p.heeded != hosts.Version() {
		p.follow()
	}
	if len(p.ejections) > 0 {
		hosts.Sweep(now)
		p.disown(true)
	}
	p.untried = nil
	for _, cn := range p.ready {
		if cn.ejected && !cn.blocked && (p.opts.Shared || cn.inFlight == 0) && cn.watched.Due(now) {
			p.untried = cn
			break
		}
	}
	if p.opts.Shared || p.untried != nil || now < p.nextSearch || now-p.lastUse >= time.Second || p.trying > 0 || p.room() <= 0 || p.forbidden() {
		return
	}
	if due := hosts.Due(now); due != "" {
		p.search = min(max(2*p.search, tickTime), 2*time.Second)
		p.nextSearch = now + p.search
		if ep := p.all[due]; ep != nil && ep.weight > 0 {
			p.connectTo(ep, now)
		} else if !p.told() {
			p.connect(now, "")
		}
	}
}

// findSilent looks for hosts that send nothing while calls wait.
func (p *Pool) findSilent(now time.Duration) {
	if p.outliers.Silence == 0 || p.opts.Mode == Streams {
		return
	}
	for _, l := range [...][]*conn{p.ready, p.drainers} {
		for _, cn := range l {
			if cn.watched == nil || cn.paused || cn.starved {
				continue
			}
			if c := cn.calls.awaited(); c != nil {
				p.ejects(cn, cn.watched.Waiting(p.outliers, c.sent, now))
			}
		}
	}
}

// awaited is the oldest call to which there is an answer for sure.
func (l *callList) awaited() *Call {
	c := l.first
	for c != nil && !c.awaited() {
		c = c.next
	}
	return c
}

// awaited reports whether there is an answer for sure, if the host works.
func (c *Call) awaited() bool {
	if c.released || c.unsure {
		return false
	}
	req := c.owner.Request()
	return req == nil || req.Type != codecs.Quiet
}

// try gives the call to an ejected host whose turn to be tried has come, nil if there
// is none or the call is not fit for that.
func (p *Pool) try(c *Call, s *Send) *conn {
	cn, l := p.untried, s.Line
	if cn.state != ready || s.Oneway || s.Muted || s.Unsure || s.Lease != codecs.NotLeased || cn.host == s.Avoid || cn.blocked || cn.inFlight > 0 && !p.opts.Shared ||
		p.queue.n > 0 || l != nil && (l.head != nil || l.waiting.n > 0 || l.bound(p.m.now())) || c.owner.Request().Type == codecs.Quiet {
		return nil
	}
	p.untried = nil
	var ok bool
	if c.probe, ok = cn.watched.Probe(p.m.now()); !ok {
		return nil
	}
	p.obs.Probes(p.key.Cluster, cn.host)
	return cn
}

// saw notes what an answer says of its host.
func (cn *conn) saw(c *Call, md *codecs.Metadata) {
	p := cn.pool
	now := p.m.now()
	failed := false
	switch md.Failure {
	case codecs.HostFailure:
		failed = true
	case codecs.Refused, codecs.Overloaded:
		if !c.probe.Held() || md.NotProcessed || md.GoesAway {
			return
		}
	}
	switch {
	case c.probe.Held() && failed:
		p.ejects(cn, c.probe.Failed(p.outliers, now))
	case c.probe.Held():
		c.probe.Succeeded(now)
		p.soon()
	case failed:
		p.ejects(cn, cn.watched.Failed(p.outliers, now))
	default:
		cn.watched.Succeeded(p.outliers, now)
	}
}

// missed notes that the answer to a call has not come in time.
func (cn *conn) missed(c *Call) {
	p := cn.pool
	switch {
	case cn.watched == nil || !c.awaited():
	case c.probe.Held():
		p.ejects(cn, c.probe.Failed(p.outliers, p.m.now()))
	default:
		p.ejects(cn, cn.watched.TimedOut(p.outliers, c.sent, p.m.now()))
	}
}

// abandoned notes that nobody waits for the answer to a call any more.
func (cn *conn) abandoned(c *Call) {
	p := cn.pool
	switch {
	case cn.watched == nil || p.outliers.Silence == 0 || !c.awaited():
	case c.probe.Held():
		p.ejects(cn, c.probe.Abandoned(p.outliers, c.sent, p.m.now()))
	default:
		p.ejects(cn, cn.watched.Abandoned(p.outliers, c.sent, p.m.now()))
	}
}

// failed notes that the connection is at its end through its host's fault. It counts
// once: a host that restarts loses many calls by it.
func (cn *conn) failed() {
	p := cn.pool
	if cn.watched == nil || cn.gone {
		return
	}
	now := p.m.now()
	for c := cn.calls.first; c != nil; c = c.next {
		if c.probe.Held() {
			p.ejects(cn, c.probe.Failed(p.outliers, now))
			return
		}
	}
	p.ejects(cn, cn.watched.Failed(p.outliers, now))
}

// ejects tells of an ejection, and has its consequences be drawn soon.
func (p *Pool) ejects(cn *conn, e outlier.Ejection) {
	if e.Reason == outlier.None {
		return
	}
	p.obs.Ejects(p.key.Cluster, cn.host, e)
	p.adopt(cn.watched)
	p.soon()
}

// soon has the upkeep come at once, behind what is going on.
func (p *Pool) soon() { p.m.timers.Start(&p.tick, p.m.now()) }

// disown gives up the pool's ejections that are over, or all, as the pool does not watch
// its hosts any more.
func (p *Pool) disown(over bool) {
	left := p.ejections[:0]
	for _, e := range p.ejections {
		lasts := e.host.Ejected(e.number)
		if over && lasts {
			left = append(left, e)
			continue
		}
		p.obs.Ejected(-1)
		if lasts {
			e.host.Disown(e.number)
		} else {
			p.obs.Readmits(p.key.Cluster, e.host.Address())
		}
	}
	clear(p.ejections[len(left):])
	p.ejections = left
}
