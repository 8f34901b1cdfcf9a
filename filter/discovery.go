package filter

import (
	"errors"
	"math"
	"sync/atomic"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/rds"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

var errNoTable = errors.New("there are no routes yet")

// discovery is how a listener comes to its routes by RDS. It implements rds.User.
type discovery struct {
	l          *listener
	background host.Background
	cancel     func()

	settled atomic.Bool // an answer has come: nothing is waited for any more
	// news are events that no worker has counted yet: one with a connection does.
	news [rds.Events]atomic.Int64
}

func (d *discovery) begin() { d.cancel = d.l.mod.discovered.Subscribe(d.l.RDS, d.background, d) }

func (d *discovery) end() {
	if d.cancel != nil {
		d.cancel()
	}
}

// Compile implements rds.User.
func (d *discovery) Compile(rc *routev1alpha.RouteConfiguration) (use func(), faults []*route.Error) {
	table, faults := route.Compile(rc, d.l.routeEnv())
	return func() {
		d.l.own.Set(table)
		d.l.version.Set(table)
	}, faults
}

// Heard implements rds.User.
func (d *discovery) Heard(e rds.Event) {
	d.news[e].Add(1)
	if e != rds.Failed {
		d.settled.Store(true)
	}
	mod := d.l.mod
	mod.mu.Lock()
	defer mod.mu.Unlock()
	for _, s := range mod.shards {
		s.post(posted{call: func(s *shard) { s.heard(d) }})
	}
}

func (s *shard) heard(d *discovery) {
	wl := s.listeners[d.l]
	if wl == nil {
		return
	}
	if wl.conns != nil {
		d.report(wl)
	}
	if !wl.lacksRoutes() {
		wl.endAwaiting()
	}
}

var newsCounters = [rds.Events]metrics.Counter{
	rds.Accepted: metrics.RDSUpdateSuccess, rds.Refused: metrics.RDSUpdateRejected,
	rds.Empty: metrics.RDSUpdateEmpty, rds.Failed: metrics.RDSUpdateFailure,
}

// report has wl, which has a connection, count the news.
func (d *discovery) report(wl *workerListener) {
	for e := range d.news {
		if n := d.news[e].Swap(0); n > 0 {
			wl.count(newsCounters[e], n)
			wl.count(metrics.RDSUpdateAttempt, n)
		}
	}
}

// awaiting are the requests of a listener on a worker that wait for its first routes.
// As their clients are not read meanwhile there is one of each at most. Each waits no
// longer than those that come behind it.
type awaiting struct {
	first, last *connection
	n           int
	timer       timer.Timer
	until       time.Duration // when it is given up, 0: nobody has waited yet
	over        bool          // it was
}

// place is that of a connection among those whose requests wait.
type place struct {
	request    *Message
	next, prev *connection
}

func (a *awaiting) add(m *Message) {
	c := m.conn
	m.awaits, c.place.request = true, m
	if c.place.prev = a.last; c.place.prev == nil {
		a.first = c
	} else {
		c.place.prev.place.next = c
	}
	a.last = c
	a.n++
}

func (a *awaiting) remove(m *Message) {
	p := &m.conn.place
	if p.prev == nil {
		a.first = p.next
	} else {
		p.prev.place.next = p.next
	}
	if p.next == nil {
		a.last = p.prev
	} else {
		p.next.place.prev = p.prev
	}
	*p = place{}
	m.awaits = false
	a.n--
}

// lacksRoutes reports whether requests have to wait for the listener's first routes.
func (wl *workerListener) lacksRoutes() bool {
	return wl.table.Load().Load() == nil && !wl.discovery.settled.Load() && !wl.awaiting.over
}

// begin has the filters run, when there are routes for them to ask for.
func (m *Message) begin() {
	if m.cfg.discovery != nil && m.cfg.lacksRoutes() {
		m.awaitRoutes()
		return
	}
	m.runRequest()
}

// awaitRoutes holds m, and reads its client no more, until routes have come or there
// is no more to wait for.
func (m *Message) awaitRoutes() {
	wl, c := m.cfg, m.conn
	a := &wl.awaiting
	const tooMany = "too many requests wait for routes"
	if a.n >= 2*wl.Upstream.MaxPendingRequests {
		m.overflows(tooMany)
		return
	} else if !m.stand(tooMany) {
		return
	}
	a.add(m)
	c.routeless = true
	c.d.ReadDisable(true)
	now := m.sh.w.Now()
	if a.until == 0 {
		a.until = math.MaxInt64
		if wl.RDS.FetchTimeout > 0 {
			a.until = now + wl.RDS.FetchTimeout
		}
		a.timer.Fire = wl.awaitedLong
	}
	if !a.timer.Running() {
		m.sh.timers.Start(&a.timer, min(a.until, now+wl.RequestTimeout))
	}
}

// awaitedLong ends the waiting of those who have waited too long.
func (wl *workerListener) awaitedLong() {
	a, now := &wl.awaiting, wl.sh.w.Now()
	if now >= a.until {
		a.over = true
		wl.sh.warnOf(wl.RDS.Name, wl, "no routes %q from %s within %v: requests are answered with an error until they come", wl.RDS.Name, wl.RDS.Server(), wl.RDS.FetchTimeout)
		wl.endAwaiting()
		return
	}
	for a.first != nil {
		m := a.first.place.request
		if at := m.start + wl.RequestTimeout; at > now {
			wl.sh.timers.Start(&a.timer, min(a.until, at))
			return
		}
		wl.resume(m, func() {
			wl.count(metrics.RequestTimeout, 1)
			m.Reply(codecs.Timeout, "timed out while waiting for routes")
			m.answerLocally()
		})
	}
}

// endAwaiting has all that wait go on, with routes or without.
func (wl *workerListener) endAwaiting() {
	wl.sh.timers.Stop(&wl.awaiting.timer)
	for wl.awaiting.first != nil {
		m := wl.awaiting.first.place.request
		wl.resume(m, m.runRequest)
	}
}

// resume ends the waiting of m, and has it go on by f.
func (wl *workerListener) resume(m *Message, f func()) {
	c := m.conn
	defer wl.sh.barrier(c)
	wl.awaiting.remove(m)
	m.leaves()
	c.routeless = false
	f()
	if !c.closed {
		c.goOn()
	}
}
