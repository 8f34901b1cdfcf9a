package loopback

import (
	"net/netip"
	"time"
)

const (
	// maxAstray ordered carriers in a row may appear elsewhere before there are
	// pauses between them: the worker may not be taking any.
	maxAstray = 2048
	// holdTime is such a pause.
	holdTime = time.Second
)

// Order is what a worker asks for: a carrier whose server sees Source.
type Order struct {
	Worker int
	Source netip.Addr
}

// orders are those that are not fulfilled. The dialer's mutex guards them.
type orders struct {
	open map[Order]*ordered
	ways [MaxWorkers]way
}

// ordered counts the carriers of an order: that are missing, and of those that were
// dialled and have not appeared.
type ordered struct{ wanted, unborn int }

// way is how ordered carriers find a worker.
type way struct {
	unborn int
	astray int  // in a row
	held   bool // none is dialled for now
}

// want sets how many carriers an order misses.
func (os *orders) want(o Order, n int) {
	switch s := os.open[o]; {
	case s != nil:
		s.wanted = n
		os.tidy(o)
	case n > 0:
		os.open[o] = &ordered{wanted: n}
	}
}

// tidy forgets an order that is fulfilled.
func (os *orders) tidy(o Order) {
	if s := os.open[o]; s.wanted == 0 && s.unborn == 0 {
		delete(os.open, o)
	}
}

// next returns an order that misses carriers and may be dialled for now: one at a
// time while they go astray.
func (os *orders) next() (o Order, ok bool) {
	for o, s := range os.open {
		w := &os.ways[o.Worker]
		most := maxUnborn
		if w.held {
			most = 0
		} else if w.astray > 0 {
			most = 1
		}
		if s.unborn < s.wanted && w.unborn < most {
			return o, true
		}
	}
	return Order{}, false
}

// dialled counts a carrier on its way, unless it is not wanted any more.
func (os *orders) dialled(o Order) bool {
	s := os.open[o]
	if s == nil {
		return false
	}
	s.unborn++
	os.ways[o.Worker].unborn++
	return true
}

// settle ends the way of a carrier of o, which has appeared on a worker or nowhere.
// hold says that none should be dialled for o's worker for a while.
func (os *orders) settle(o Order, worker int) (hold bool) {
	s, w := os.open[o], &os.ways[o.Worker]
	s.unborn--
	w.unborn--
	switch worker {
	case nowhere: // the host has closed it, and may do so with the next
		hold = true
	case o.Worker:
		w.astray = 0
		s.wanted = max(0, s.wanted-1) // until the worker says it
	default:
		w.astray++
		hold = w.astray > maxAstray
	}
	os.tidy(o)
	return hold
}
