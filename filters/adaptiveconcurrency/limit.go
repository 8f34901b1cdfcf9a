package adaptiveconcurrency

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// policy is what limits go by. It does not change.
type policy struct {
	initial, least, most int
	// interval is the least time between two updates of a limit.
	interval time.Duration
	// measure is the time between two measurements of the base, up to the part jitter of
	// it more. 0: there are none, fixed is the base.
	measure, fixed time.Duration
	jitter         float64
	// requests tell enough for an update.
	requests int
	// percentile, from 0 to 1, of their times is compared with tolerance times the base.
	percentile, tolerance float64
}

const (
	// smoothing is the part of a step that is taken at once.
	smoothing = 0.4
	// leastGradient bounds how fast a limit falls.
	leastGradient = 0.5
	// fall and rise are the parts of their distance by which the base follows shorter and
	// longer times.
	fall, rise = 0.05, 0.01
	// turns is how often each place has been used for an update, if that are fewer
	// requests than the policy wants.
	turns = 8
	// longestWindow bounds the windows of slow answers, which otherwise last twice as long
	// as those take: what a change has brought about is to be seen.
	longestWindow = 10 * time.Second

	// probe is the part of what servers can do without a queue that is let through while
	// the base is measured.
	probe = 0.7
	// lower is by how much shorter times must be than at a higher limit for a queue to
	// have been there. Then there may still be one.
	lower = 0.9
	// settle is how many windows pass behind a change before what ends is looked at: the
	// first to end are the short ones.
	settle = 2
	// patience is how many windows may pass before a measurement is given up.
	patience = 50
	// moved is by how much the limit has changed for another measurement, not before so
	// many times (pause) as long as the last one took have passed. Those at their interval
	// wait for longer (rest), so that they cost little where answers are slow.
	moved, pause, rest = 2, 4, 20
)

// outcome is what a request tells of the load of its server.
type outcome uint8

const (
	// untold: nothing.
	untold outcome = iota
	// answered: by how long that took.
	answered
	// congested: it was refused for load, or not answered in time.
	congested
)

// limit bounds how many requests are in flight, and finds out how many should be. All
// workers use it at once.
type limit struct {
	inFlight atomic.Int64
	allowed  atomic.Int64
	epoch    atomic.Uint32 // counts the changes by which it begins or ends to measure
	nextLook atomic.Int64  // when the window may end
	stripes  [stripes]atomic.Pointer[stripe]

	// What follows is of the worker that looks: none waits for another.
	looking  sync.Mutex
	estimate float64 // is allowed, but while the base is measured
	base     float64 // how long an answer takes without a queue, in ns; 0: unknown
	window   window
	since    time.Duration // when it began
	span     time.Duration // how long it shall be
	settling bool          // what ends is not looked at yet

	level     float64       // what is allowed while the base is measured, 0: it is not
	reference float64       // times at the level before, 0: unknown
	began     time.Duration // the measurement, or the last one
	took      time.Duration
	next      time.Duration // when there is one in any case
	of        float64       // the estimate at the last one, 0: there was none
}

// state is what is told of a limit.
type state struct {
	limit    int
	gradient float64
	base     time.Duration
}

// start makes l ready for use.
func (l *limit) start(p *policy) {
	l.estimate = float64(p.initial)
	l.allow(l.estimate)
}

func (l *limit) allow(v float64) { l.allowed.Store(int64(v)) }

// full reports whether a request would be refused.
func (l *limit) full(p *policy) bool { return l.inFlight.Load() >= l.most(p) }

// most may be in flight. A policy may be newer than what the limit has found by one
// before.
func (l *limit) most(p *policy) int64 { return min(l.allowed.Load(), int64(p.most)) }

// place is that of a request in flight. Who has taken it frees it, once.
type place struct {
	l     *limit
	p     *policy
	s     *stripe
	at    time.Duration
	epoch uint32
}

// take fills in pl, or reports that the request is refused. worker is the number of the
// caller.
func (l *limit) take(pl *place, p *policy, worker int, now time.Duration) bool {
	s := l.stripe(worker)
	for {
		n := l.inFlight.Load()
		if n >= l.most(p) {
			s.refused.Add(1)
			return false
		}
		if l.inFlight.CompareAndSwap(n, n+1) {
			break
		}
	}
	*pl = place{l: l, p: p, s: s, at: now, epoch: l.epoch.Load()}
	return true
}

// free gives the place back. took is how long servers had the request. It reports true
// if that has ended a window. random bits are for the jitter.
func (pl *place) free(now time.Duration, o outcome, took time.Duration, random func() uint64) (state, bool) {
	l := pl.l
	l.inFlight.Add(-1)
	if pl.epoch != l.epoch.Load() {
		return state{}, false
	}
	pl.s.add(o, took, now-pl.at)
	if o == untold || int64(now) < l.nextLook.Load() {
		return state{}, false
	}
	return l.look(pl.p, now, random)
}

// drop gives the place back, and tells nothing.
func (pl *place) drop() { pl.l.inFlight.Add(-1) }

// look ends the window if it has what it takes.
func (l *limit) look(p *policy, now time.Duration, random func() uint64) (s state, ended bool) {
	if !l.looking.TryLock() {
		return s, false
	}
	defer l.looking.Unlock()
	if int64(now) < l.nextLook.Load() {
		return s, false
	}
	for i := range l.stripes {
		if st := l.stripes[i].Load(); st != nil {
			st.drain(&l.window)
		}
	}
	if l.settling {
		l.settling = false
		l.open(now, l.span)
		return s, false
	}
	w := &l.window
	need := p.requests
	if l.level == 0 {
		need = min(need, turns*int(l.estimate))
	}
	short, g := w.percentile(p.percentile), 1.0
	switch {
	case w.answers+w.congested >= need:
		if l.level == 0 {
			g = l.update(p, short, now)
		} else {
			l.measured(p, short, now, random)
		}
	case l.level != 0 && now-l.since > patience*l.span:
		l.restore(p, now, random)
	default:
		l.nextLook.Store(int64(now + p.interval))
		return s, false
	}
	l.open(now, max(p.interval, min(time.Duration(2*short), longestWindow)))
	return state{int(l.estimate), g, time.Duration(l.baseOf(p))}, true
}

// open begins a window.
func (l *limit) open(now, span time.Duration) {
	l.window.reset()
	l.since, l.span = now, span
	if l.settling {
		span *= settle
	}
	l.nextLook.Store(int64(now + span))
}

func (l *limit) baseOf(p *policy) float64 {
	if p.measure == 0 {
		return float64(p.fixed)
	}
	return l.base
}

// update takes a step, or begins to measure the base. It returns the gradient.
func (l *limit) update(p *policy, short float64, now time.Duration) float64 {
	w := &l.window
	limited := w.limited(l.estimate, now-l.since)
	switch {
	case w.answers == 0:
	case l.base == 0:
		l.base = short
	case short < l.base:
		l.base += (short - l.base) * fall
	case !limited: // otherwise there may be a queue
		l.base += (short - l.base) * rise
	}
	if !limited {
		return 1
	}
	g, ratio := 1-float64(w.congested)/float64(w.answers+w.congested), 1.0
	if w.answers > 0 {
		ratio = min(1, l.baseOf(p)/short)
		g = min(g, p.tolerance*ratio)
	}
	g = max(leastGradient, g)
	step := l.estimate*(g-1) + math.Sqrt(l.estimate)
	l.estimate = min(float64(p.most), max(float64(p.least), l.estimate+smoothing*step))
	if w.answers > 0 && l.due(p, now) {
		l.began, l.reference = now, 0
		if l.of != 0 {
			l.reference = l.base
		}
		l.measure(l.estimate * ratio * probe)
	} else {
		l.allow(l.estimate)
	}
	return g
}

// due reports whether the base is to be measured.
func (l *limit) due(p *policy, now time.Duration) bool {
	switch {
	case p.measure == 0:
		return false
	case l.of == 0 || now >= l.next:
		return true
	}
	return (l.estimate > l.of*moved || l.estimate < l.of/moved) && now-l.began > (1+pause)*l.took
}

// measure lets so few requests through that there should be no queue.
func (l *limit) measure(level float64) {
	l.level = max(1, level)
	l.change(l.level)
}

// change allows so many. Requests that were let through before tell nothing any more.
func (l *limit) change(v float64) {
	l.allow(v)
	l.epoch.Add(1)
	l.settling = true
}

// measured takes what the measurement has shown, and goes on at a lower level if there
// was a queue, or nothing to compare with.
func (l *limit) measured(p *policy, short float64, now time.Duration, random func() uint64) {
	if l.window.answers > 0 {
		queued := l.reference == 0 || short < l.reference*lower
		l.base, l.reference = short, short
		if queued && l.level > 1 {
			l.measure(l.level * probe)
			return
		}
	}
	l.restore(p, now, random)
}

// restore ends the measurement.
func (l *limit) restore(p *policy, now time.Duration, random func() uint64) {
	l.level, l.of, l.took = 0, l.estimate, now-l.began
	wait := float64(max(p.measure, rest*l.took))
	l.next = now + time.Duration(wait*(1+p.jitter*float64(random()>>11)/(1<<53)))
	l.change(l.estimate)
}
