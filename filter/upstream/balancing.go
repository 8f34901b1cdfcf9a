package upstream

import (
	"math"
	"slices"
	"time"
)

// Balancing is how calls without a hash choose hosts, where the cluster tells its hosts.
type Balancing struct {
	// Choices is how many hosts are compared: picked at random, by their weights. At
	// least 2.
	Choices int
	// Decay is the time in which what is known of a host's answers loses its weight,
	// where hosts are compared by how long answers take. 0: only what is in flight
	// counts.
	Decay time.Duration
}

// Balance has the pool choose hosts as b says, nil: as the load balancer does.
func (p *Pool) Balance(b *Balancing) { p.balancing = b }

// lightest returns a connection to the host with the least to do of some. found is true
// without one if c had better wait for one.
func (p *Pool) lightest(c *Call) (cn *conn, found bool) {
	var best *endpoint
	least := math.Inf(1)
	consider := func(ep *endpoint) {
		if ep.addr == c.avoid || p.take(ep) == nil && (p.opts.Shared || ep.out || ep.backoff > 0) {
			return
		}
		if cost := p.cost(ep); best == nil || cost < least {
			best, least = ep, cost
		}
	}
	n := len(p.usable)
	if p.balancing.Choices >= n {
		for i, from := 0, p.m.rand.IntN(n); i < n; i++ {
			consider(p.usable[(from+i)%n])
		}
	} else {
		for range p.balancing.Choices {
			at, _ := slices.BinarySearch(p.sums, 1+p.m.rand.Int64N(p.sums[n-1]))
			consider(p.usable[at])
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

// cost is what is in flight to a host for its weight, times how long its answers take if
// that counts.
func (p *Pool) cost(ep *endpoint) float64 {
	n := len(p.usable)
	mean := float64(p.sums[n-1]) / float64(n)
	inFlight := float64(ep.inFlight()) * mean / float64(ep.weight)
	if p.balancing.Decay == 0 {
		return inFlight
	}
	return ep.peak.cost(inFlight, p.m.now(), p.balancing.Decay)
}

// peak is a moving average of how long the answers of a host take that rises at once to
// the longest (peak EWMA).
type peak struct {
	average float64 // in ns
	at      time.Duration
}

// add notes an answer that took d.
func (k *peak) add(d, now, decay time.Duration) {
	if f := float64(d); f > k.average {
		k.average = f
	} else {
		w := math.Exp(-float64(now-k.at) / float64(decay))
		k.average = k.average*w + f*(1-w)
	}
	k.at = now
}

// cost is what a further call costs. Of a host of which nothing is heard less and less
// counts, so that it is tried again; one of which nothing is known gets one call.
func (k *peak) cost(inFlight float64, now, decay time.Duration) float64 {
	if k.average == 0 {
		if inFlight > 0 {
			return math.MaxFloat64
		}
		return 0
	}
	return k.average * math.Exp(-float64(now-k.at)/float64(decay)) * (1 + inFlight)
}

// took notes how long a call took whose answer has come, or has not come in time. That a
// host is quick to fail does not speak for it.
func (cn *conn) took(c *Call, failed bool) {
	b := cn.pool.balancing
	if b == nil || b.Decay == 0 || c.absent {
		return
	}
	now := cn.pool.m.now()
	if d := now - c.sent; !failed || float64(d) > cn.to.peak.average {
		cn.to.peak.add(d, now, b.Decay)
	}
}
