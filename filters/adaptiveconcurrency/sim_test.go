package adaptiveconcurrency

import (
	"math/rand/v2"
	"time"
)

// scenario is an open stream of requests to a server of some cores behind a queue, as
// seen by some workers. Nothing in it depends on the machine.
type scenario struct {
	cores int
	// service is the mean of the times of service, which are exponentially distributed.
	service func(now time.Duration) time.Duration
	// load is how many requests come, as a part of what the cores can do if each takes unit.
	unit time.Duration
	load func(now time.Duration) float64
	// refuses is how many the server has at once before it says that it has too much to
	// do, 0: all.
	refuses int
	// deadline of an answer, behind which it is good for nobody.
	deadline time.Duration
	lasts    time.Duration
	// warm is how much of it does not count.
	warm time.Duration
}

func steady(load float64) func(time.Duration) float64 {
	return func(time.Duration) float64 { return load }
}

func always(d time.Duration) func(time.Duration) time.Duration {
	return func(time.Duration) time.Duration { return d }
}

// result is what came of it.
type result struct {
	good, refused int // answers in time, refused requests
	low, high     int // the limit, at its extremes
	limit         *limit
}

type event struct {
	at  time.Duration
	seq int
	f   func()
}

// events are a heap.
type events []event

func (e events) before(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}

func (e *events) push(x event) {
	*e = append(*e, x)
	h := *e
	for i := len(h) - 1; i > 0 && h.before(i, (i-1)/2); i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
}

func (e *events) pop() event {
	h := *e
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h = h[:last]
	*e = h
	for i := 0; ; {
		c := 2*i + 1
		if c+1 < last && h.before(c+1, c) {
			c++
		}
		if c >= last || !h.before(c, i) {
			return first
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

// sim plays a scenario.
type sim struct {
	*scenario
	events
	now     time.Duration
	rnd     *rand.Rand
	seq     int
	busy    int
	waiting []func()
	enter   func() (leave func(o outcome, took time.Duration), ok bool)
	result
}

func (s *sim) after(d time.Duration, f func()) {
	s.seq++
	s.push(event{s.now + d, s.seq, f})
}

// by plays the scenario with a limit that goes by p.
func (sc *scenario) by(p *policy) result {
	s := &sim{scenario: sc}
	l := &limit{}
	l.start(p)
	s.limit, s.low, s.high = l, p.most, 0
	random := rand.New(rand.NewPCG(2, 2)).Uint64
	s.enter = func() (func(outcome, time.Duration), bool) {
		pl := new(place)
		if !l.take(pl, p, s.seq%4, s.now) {
			return nil, false
		}
		return func(o outcome, took time.Duration) {
			if st, ended := pl.free(s.now, o, took, random); ended && s.now >= s.warm {
				s.low, s.high = min(s.low, st.limit), max(s.high, st.limit)
			}
		}, true
	}
	s.play()
	if l.inFlight.Load() != 0 {
		panic("a place is lost")
	}
	return s.result
}

// static plays it with a limit that stays.
func (sc *scenario) static(limit int) result {
	s := &sim{scenario: sc}
	n := 0
	s.enter = func() (func(outcome, time.Duration), bool) {
		if n >= limit {
			return nil, false
		}
		n++
		return func(outcome, time.Duration) { n-- }, true
	}
	s.play()
	return s.result
}

// best is the goodput of the best limit of those that stay.
func (sc *scenario) best() (good int) {
	for _, times := range []float64{1.3, 2, 4} {
		good = max(good, sc.static(max(1, int(float64(sc.cores)*times))).good)
	}
	return good
}

func (s *sim) play() {
	s.rnd = rand.New(rand.NewPCG(1, 1))
	s.arrive()
	for len(s.events) > 0 {
		e := s.pop()
		s.now = e.at
		e.f()
	}
}

func (s *sim) arrive() {
	rate := s.load(s.now) * float64(s.cores) / float64(s.unit)
	s.after(time.Duration(s.rnd.ExpFloat64()/rate), func() {
		if s.now < s.lasts {
			s.request()
			s.arrive()
		}
	})
}

func (s *sim) request() {
	leave, ok := s.enter()
	sent := s.now
	switch {
	case !ok:
		if sent >= s.warm {
			s.refused++
		}
		return
	case s.refuses > 0 && s.busy+len(s.waiting) >= s.refuses:
		s.after(200*time.Microsecond, func() { leave(congested, s.now-sent) })
		return
	}
	late := false
	s.after(s.deadline, func() {
		if late = leave != nil; late {
			leave(congested, s.deadline)
		}
	})
	done := func() {
		if !late { // if it is, the server has worked for nobody
			if sent >= s.warm {
				s.good++
			}
			leave(answered, s.now-sent)
			leave = nil
		}
		if len(s.waiting) == 0 {
			s.busy--
			return
		}
		next := s.waiting[0]
		s.waiting = s.waiting[1:]
		next()
	}
	serve := func() { s.after(time.Duration(s.rnd.ExpFloat64()*float64(s.service(s.now))), done) }
	if s.busy == s.cores {
		s.waiting = append(s.waiting, serve)
		return
	}
	s.busy++
	serve()
}
