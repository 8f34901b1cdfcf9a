package upstream

import (
	"sync"
	"time"
)

// Budget bounds the retries to a cluster.
type Budget struct {
	// Ratio of retries to requests.
	Ratio float64
	// PerSecond are allowed besides.
	PerSecond int
	// Concurrent requests may be in retry at once.
	Concurrent int
}

// DefaultBudget is that of a cluster without one of its own: what Finagle's and
// linkerd's users have.
var DefaultBudget = Budget{Ratio: 0.2, PerSecond: 10, Concurrent: 100}

// budgetTime is the time over which a Budget looks, in seconds.
const budgetTime = 10

// spending is what has been used of the budget of a cluster, by all workers.
type spending struct {
	mu      sync.Mutex
	seconds [budgetTime]struct {
		at                int64
		requests, retries int
	}
	active int
}

// deposit notes n requests.
func (s *spending) deposit(now time.Duration, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(now, n, 0)
}

func (s *spending) add(now time.Duration, requests, retries int) {
	at := int64(now / time.Second)
	sec := &s.seconds[at%budgetTime]
	if sec.at != at {
		sec.at, sec.requests, sec.retries = at, 0, 0
	}
	sec.requests += requests
	sec.retries += retries
}

// withdraw reports whether there may be one retry more. first says that its request
// is not in retry yet: it is from then on, until done.
func (s *spending) withdraw(now time.Duration, b *Budget, first bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first && s.active >= b.Concurrent {
		return false
	}
	requests, retries := 0, 0
	oldest := int64(now/time.Second) - budgetTime
	for i := range s.seconds {
		if sec := &s.seconds[i]; sec.at > oldest {
			requests += sec.requests
			retries += sec.retries
		}
	}
	if float64(retries+1) > b.Ratio*float64(requests)+float64(b.PerSecond*budgetTime) {
		return false
	}
	s.add(now, 0, 1)
	if first {
		s.active++
	}
	return true
}

// done notes that a request is in retry no more.
func (s *spending) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
}

// Spending is the part that a request in retry has in the budget of its cluster.
type Spending struct{ of *spending }

// Allow has retries be bounded by b from now on.
func (p *Pool) Allow(b *Budget) { p.budget = b }

// Deposit notes a request that might be retried.
func (p *Pool) Deposit() { p.deposits++ }

// deposited hands over what has been noted.
func (p *Pool) deposited() {
	if p.deposits > 0 {
		p.info.spent.deposit(p.m.now(), p.deposits)
		p.deposits = 0
	}
}

// Withdraw reports whether the budget of p's cluster allows a retry, which is noted
// then. s is the request's part, of the zero value before its first retry.
func (p *Pool) Withdraw(s *Spending) bool {
	p.deposited()
	if s.of != nil && s.of != &p.info.spent { // it is another cluster's now
		s.Done()
	}
	if !p.info.spent.withdraw(p.m.now(), p.budget, s.of == nil) {
		return false
	}
	s.of = &p.info.spent
	return true
}

// Done ends the request's part, if it has one.
func (s *Spending) Done() {
	if s.of != nil {
		s.of.done()
		s.of = nil
	}
}
