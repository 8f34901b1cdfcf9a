// Package breaker bounds what is under way to a cluster: requests, those that wait,
// connections; and requests that have the same values of some properties, which it
// also refuses altogether for a while when too many fail or are slow. It knows no
// clocks: who uses it tells the time. All workers of a process share what it counts,
// so everything here may be called from any goroutine, but for a Taken, which belongs
// to a request.
package breaker

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
)

const (
	// Unlimited is no limit.
	Unlimited = math.MaxInt
	// MaxKeyPolicies of a cluster.
	MaxKeyPolicies = 8
)

// Policy is what is allowed. It does not change.
type Policy struct {
	// Requests that may be under way, Pending of them may wait for a connection, and
	// Connections may be there.
	Requests, Pending, Connections int
	// Keys are at most MaxKeyPolicies.
	Keys []KeyPolicy
}

// Limit is what a request or connection is refused for.
type Limit uint8

// The limits.
const (
	// Requests, Pending and Connections are those of a Policy.
	Requests Limit = iota
	Pending
	Connections
	// KeyRequests is that of a KeyPolicy.
	KeyRequests
	// KeyOpen: the breaker of the key is open.
	KeyOpen
)

var limits = [...]string{"max_requests", "max_pending_requests", "max_connections", "max_requests", "open"}

func (l Limit) String() string { return limits[l] }

// Reason is what a client is told.
func (l Limit) Reason(cluster string) string {
	return "circuit breaker of cluster " + cluster + ": " + l.String()
}

// Refusal is why a request is refused.
type Refusal struct {
	Limit Limit
	// Key is the place of the KeyPolicy, for the limits of one.
	Key int
}

// Reason is what a client is told.
func (r Refusal) Reason(cluster string) string {
	if r.Limit < KeyRequests {
		return r.Limit.Reason(cluster)
	}
	return fmt.Sprintf("circuit breaker of cluster %s: keys[%d]: %s", cluster, r.Key, r.Limit)
}

// Gauge counts what is under way.
type Gauge struct{ n atomic.Int64 }

// Take counts one more, if there are fewer than most.
func (g *Gauge) Take(most int) bool {
	for {
		n := g.n.Load()
		if n >= int64(most) {
			return false
		}
		if g.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Free counts one less. Whoever has taken calls it, once.
func (g *Gauge) Free() { g.n.Add(-1) }

// Load returns how many there are.
func (g *Gauge) Load() int { return int(g.n.Load()) }

// Cluster is what is under way to one cluster. The zero value is ready for use.
type Cluster struct {
	Requests, Pending, Connections Gauge

	mu   sync.Mutex
	keys map[string]*Keys // by KeyPolicy.id
}

// Use returns the keys of a policy. They are the same as those of any other one with
// such keys, so that what is counted outlives a change of limits. Leave ends the use.
func (c *Cluster) Use(p *Policy) []*Keys {
	if p == nil || len(p.Keys) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keys == nil {
		c.keys = map[string]*Keys{}
	}
	used := make([]*Keys, len(p.Keys))
	for i := range p.Keys {
		id := p.Keys[i].id()
		k := c.keys[id]
		if k == nil {
			k = newKeys(id, p.Keys[i].MaxKeys)
			c.keys[id] = k
		}
		k.users++
		used[i] = k
	}
	return used
}

// Leave ends a Use.
func (c *Cluster) Leave(used []*Keys) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range used {
		if k.users--; k.users == 0 {
			delete(c.keys, k.id)
		}
	}
}

// Outcome is what has become of a request.
type Outcome uint8

// The outcomes.
const (
	// Unknown: nobody waits for it any more, or it says nothing of its server.
	Unknown Outcome = iota
	// Success is an answer, also one with an exception of the application.
	Success
	// Failure is an answer that says so, or none.
	Failure
)

// Taken is what a request has taken, and gives back by End where it has taken it,
// whatever limits there are by then. The zero value has taken nothing.
type Taken struct {
	requests *Gauge
	at       time.Duration
	holds    [MaxKeyPolicies]hold
	n        int
}

// Take lets the request md pass, or tells why not. keys are those of the policy.
func (t *Taken) Take(c *Cluster, p *Policy, keys []*Keys, md *codecs.Metadata, now time.Duration) (r Refusal, ok bool) {
	if p.Requests != Unlimited {
		if !c.Requests.Take(p.Requests) {
			return Refusal{Limit: Requests}, false
		}
		t.requests = &c.Requests
	}
	t.at = now
	for i, k := range keys {
		l, ok := k.take(&t.holds[t.n], &p.Keys[i], md, now)
		if !ok {
			t.End(now, Unknown)
			return Refusal{Limit: l, Key: i}, false
		}
		t.n++
	}
	return r, true
}

// End gives back what was taken. It returns a bit for the place of each KeyPolicy of
// which a breaker has opened by it.
func (t *Taken) End(now time.Duration, o Outcome) (opened uint8) {
	if t.requests != nil {
		t.requests.Free()
		t.requests = nil
	}
	for i := range t.holds[:t.n] {
		if t.holds[i].end(now, o, now-t.at) {
			opened |= 1 << i
		}
		t.holds[i] = hold{}
	}
	t.n, t.at = 0, 0
	return opened
}
