package upstream

import (
	"math"
	"slices"

	"github.com/meltemi-mesh/meltemi/filter/lightest"
)

// Balance has the pool choose hosts as policy says, nil: as the load balancer does.
func (p *Pool) Balance(policy *lightest.Policy) { p.balancing = policy }

// lightest returns a connection to the host with the least to do of some. found is true
// without one if c had better wait for one.
func (p *Pool) lightest(c *Call) (cn *conn, found bool) {
	var best *endpoint
	least, n := math.Inf(1), len(p.usable)
	all := p.balancing.Choices >= n
	at := p.m.rand.IntN(n)
	for i := range min(n, p.balancing.Choices) {
		switch {
		case all:
			at = (at + 1) % n
		case i == 0:
			at = p.draw(n)
		default:
			at = p.draw(at)
		}
		ep := p.usable[at]
		if ep.addr == c.avoid || p.take(ep) == nil && (p.opts.Shared || ep.out || ep.backoff > 0) {
			continue
		}
		if cost := p.cost(ep); best == nil || cost < least {
			best, least = ep, cost
		}
	}
	if best == nil {
		return nil, false
	}
	if cn = p.take(best); cn != nil {
		return cn, true
	}
	return nil, p.awaits(c, best)
}

// redraws is how often a host is drawn again as it is the one that was drawn before: of
// two that are the same there is nothing to choose.
const redraws = 4

// draw picks one of the usable hosts at random, by their weights, and another one than
// last if it can be helped.
func (p *Pool) draw(last int) (at int) {
	for range redraws {
		if at, _ = slices.BinarySearch(p.sums, 1+p.m.rand.Int64N(p.sums[len(p.sums)-1])); at != last {
			break
		}
	}
	return at
}

// cost is what is in flight to a host for its weight, times how long its answers take if
// that counts.
func (p *Pool) cost(ep *endpoint) float64 {
	n := len(p.usable)
	mean := float64(p.sums[n-1]) / float64(n)
	calls := ep.inFlight()
	if !p.opts.Shared {
		calls += ep.trying // each for a call that waits
	}
	inFlight := float64(calls) * mean / float64(ep.weight)
	if p.balancing.Decay == 0 {
		return inFlight
	}
	return ep.peak.Cost(inFlight, p.m.now(), p.balancing.Decay)
}

// took notes how long a call took whose answer has come, or has not come in time. That a
// host is quick to fail does not speak for it.
func (cn *conn) took(c *Call, failed bool) {
	b := cn.pool.balancing
	if b == nil || b.Decay == 0 || c.absent {
		return
	}
	now := cn.pool.m.now()
	if d := now - c.sent; !failed || d > cn.to.peak.Average() {
		cn.to.peak.Add(d, now, b.Decay)
	}
}
