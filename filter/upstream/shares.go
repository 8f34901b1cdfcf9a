package upstream

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
)

// Shared is what the workers of a process know together about its clusters.
type Shared struct {
	mu       sync.Mutex
	clusters map[string]*clusterInfo
	swept    time.Duration
	run      func(f func()) // beside the workers, which it does not stop
}

// unusedTime is how long what is known of a cluster outlives the last pool to it.
const unusedTime = time.Minute

// NewShared returns an empty Shared.
func NewShared() *Shared {
	return &Shared{clusters: map[string]*clusterInfo{}, run: func(f func()) { go f() }}
}

// Inline has done at once what is done beside workers: for tests, before any pool is
// made.
func (s *Shared) Inline() { s.run = func(f func()) { f() } }

// cluster returns what is known of a cluster to a pool, which releases it.
func (s *Shared) cluster(name string, now time.Duration) *clusterInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	ci := s.clusters[name]
	if ci == nil {
		s.sweep(now)
		ci = newClusterInfo(s)
		s.clusters[name] = ci
	}
	ci.pools++
	return ci
}

// release notes that a pool has gone.
func (s *Shared) release(name string, now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ci := s.clusters[name]
	ci.pools--
	ci.unusedSince = now
	s.sweep(now)
}

// sweep forgets the clusters that no pool has led to for a while.
func (s *Shared) sweep(now time.Duration) {
	if now-s.swept < unusedTime/4 {
		return
	}
	s.swept = now
	maps.DeleteFunc(s.clusters, func(_ string, ci *clusterInfo) bool {
		return ci.pools == 0 && now-ci.unusedSince >= unusedTime
	})
}

// clusterInfo is what was learnt about one cluster. Envoy's load balancer says
// which host a new connection goes to and nothing else, so the hosts' shares
// of the traffic are learnt from its picks.
type clusterInfo struct {
	pools       int // that use it; this and the next are Shared's
	unusedSince time.Duration

	mu    sync.Mutex
	picks map[string]float64
	sum   float64
	epoch int // changes with the membership
	// leaving are the hosts that have said that they leave, and when that is
	// forgotten.
	leaving map[string]time.Duration
	said    atomic.Int64 // how often a host has said so

	members  members
	hunger   hunger
	outliers outlier.Hosts
	breakers breaker.Cluster
	spent    spending
}

func newClusterInfo(s *Shared) *clusterInfo {
	return &clusterInfo{
		picks: map[string]float64{}, leaving: map[string]time.Duration{},
		members: members{seen: map[string]int{}, tables: map[consistent.Policy]*builtTable{}, told: map[consistent.Policy]*toldTables{}, run: s.run},
	}
}

// maxPicks bounds the memory of the estimate: beyond it older picks fade.
const maxPicks = 512

func (ci *clusterInfo) picked(host string) {
	ci.mu.Lock()
	defer ci.mu.Unlock()
	ci.members.picked(host)
	ci.picks[host]++
	ci.sum++
	if ci.sum >= maxPicks {
		ci.sum = 0
		for h, n := range ci.picks {
			if n /= 2; n < 0.5 {
				delete(ci.picks, h)
			} else {
				ci.picks[h] = n
				ci.sum += n
			}
		}
	}
}

// shares sets the shares of hosts according to how often each was picked.
func (ci *clusterInfo) shares(hosts []string, shares []float64) {
	ci.mu.Lock()
	for i, h := range hosts {
		shares[i] = ci.picks[h]
	}
	ci.mu.Unlock()
	estimate(shares)
}

// estimate turns counts of picks, which may have been random, into shares. Hosts
// are equal unless the counts say otherwise, and only as far as they do: how far
// each departs from an equal share is shrunk the more, the less it exceeds two
// standard deviations of what chance brings about (the positive part of James and
// Stein's estimator). So few picks make no host a favourite, and many tell its
// weight.
func estimate(counts []float64) {
	sum := 0.0
	for _, n := range counts {
		sum += n
	}
	equal := sum / float64(len(counts))
	chance := 4 * equal * (1 - equal/max(sum, 1)) // the variance of one count, four times
	kept := 0.0
	for i, n := range counts {
		counts[i] = equal
		if d := n - equal; d*d > chance {
			counts[i] += d * (1 - chance/(d*d))
		}
		kept += counts[i]
	}
	for i := range counts {
		if kept > 0 {
			counts[i] /= kept
		} else {
			counts[i] = 1 / float64(len(counts))
		}
	}
}

// forget starts the estimate anew, when the membership is not the one that was
// seen at epoch any more. It returns the new epoch.
func (ci *clusterInfo) forget(epoch int) int {
	ci.mu.Lock()
	defer ci.mu.Unlock()
	if ci.epoch == epoch {
		ci.epoch++
		ci.members.forget()
		clear(ci.picks)
		ci.sum = 0
	}
	return ci.epoch
}

// leaves notes that a host has said that it leaves. Until something takes it out
// of the cluster the load balancer goes on choosing it.
func (ci *clusterInfo) leaves(host string, now, until time.Duration) {
	ci.mu.Lock()
	defer ci.mu.Unlock()
	maps.DeleteFunc(ci.leaving, func(_ string, until time.Duration) bool { return now >= until })
	ci.leaving[host] = until
	ci.said.Add(1)
}

// closes notes that a host has closed a connection. If it has said that it leaves,
// it does so now, with all its connections: what is there from until on is another
// process, which has said nothing.
func (ci *clusterInfo) closes(host string, until time.Duration) {
	ci.mu.Lock()
	defer ci.mu.Unlock()
	if ci.leaving[host] > until {
		ci.leaving[host] = until
	}
}

// leavingUntil returns until when a host is taken to leave, 0 if it is not.
func (ci *clusterInfo) leavingUntil(host string, now time.Duration) time.Duration {
	ci.mu.Lock()
	defer ci.mu.Unlock()
	if until := ci.leaving[host]; now < until {
		return until
	}
	return 0
}

// hunger is a pool's need of a connection to a cluster that a circuit breaker
// forbids, while other pools, of the same or another worker, have some.
type hunger struct {
	at atomic.Int64 // in ns of the hosts' clock; 0: none
	of atomic.Pointer[Pool]
}

// starve says that p could not connect and has no other connection.
func (h *hunger) starve(p *Pool, now time.Duration) {
	h.of.Store(p)
	h.at.Store(int64(now) + 1)
}

// within reports whether another pool than p starved within the last d. ease ends
// that need, for one of those that can.
func (h *hunger) within(p *Pool, now, d time.Duration) (ease func() bool, ok bool) {
	at := h.at.Load()
	if at == 0 || h.of.Load() == p || now-time.Duration(at) >= d {
		return nil, false
	}
	return func() bool { return h.at.CompareAndSwap(at, 0) }, true
}
