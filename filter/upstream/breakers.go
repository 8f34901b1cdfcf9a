package upstream

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
)

// guards is what a pool has to do with the circuit breakers of its cluster.
type guards struct {
	limits   *breaker.Policy // nil: there are none
	breakers *breaker.Cluster
	keys     []*breaker.Keys // of limits
}

// Limit has the pool heed circuit breakers from now on, nil: none.
func (p *Pool) Limit(l *breaker.Policy) {
	if l != p.limits {
		p.relimit(l)
	}
}

func (p *Pool) relimit(l *breaker.Policy) {
	keys := p.breakers.Use(l)
	p.breakers.Leave(p.keys)
	p.limits, p.keys = l, keys
}

// Take lets a request pass the circuit breakers, or tells which one forbids it. md has
// its properties.
func (p *Pool) Take(t *breaker.Taken, md *codecs.Metadata) (breaker.Refusal, bool) {
	return t.Take(p.breakers, p.limits, p.keys, md, p.m.now())
}

// mayWait counts a call that has to wait, or refuses it.
func (p *Pool) mayWait(c *Call) bool {
	if p.limits == nil || p.limits.Pending == breaker.Unlimited {
		return true
	}
	if !p.breakers.Pending.Take(p.limits.Pending) {
		p.obs.Breaks(p.key.Cluster, breaker.Pending)
		return false
	}
	c.counted = &p.breakers.Pending
	return true
}

// forbidden reports whether the circuit breaker allows no further connection: none is made then
// that nobody waits for.
func (p *Pool) forbidden() bool {
	return p.limits != nil && p.breakers.Connections.Load() >= p.limits.Connections
}

// mayConnect counts a connection, or refuses it as a host's own circuit breaker does:
// pools that have some give one up for those that have none.
func (p *Pool) mayConnect() bool {
	most := breaker.Unlimited
	if p.limits != nil {
		most = p.limits.Connections
	}
	if p.breakers.Connections.Take(most) {
		return true
	}
	p.obs.Breaks(p.key.Cluster, breaker.Connections)
	return false
}
