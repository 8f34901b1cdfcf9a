package upstream

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Shared is what the workers of a process know together about its clusters.
type Shared struct {
	mu       sync.Mutex
	clusters map[string]*clusterInfo
}

// NewShared returns an empty Shared.
func NewShared() *Shared { return &Shared{clusters: map[string]*clusterInfo{}} }

func (s *Shared) cluster(name string) *clusterInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	ci := s.clusters[name]
	if ci == nil {
		ci = newClusterInfo()
		s.clusters[name] = ci
	}
	return ci
}

// clusterInfo is what was learnt about one cluster. Envoy's load balancer says
// which host a new connection goes to and nothing else, so the hosts' shares
// of the traffic are learnt from its picks.
type clusterInfo struct {
	mu    sync.Mutex
	picks map[string]float64
	sum   float64
	epoch int // changes with the membership

	// starved is when, in ns of the hosts' clock, a worker could not connect
	// because of a circuit breaker and had no other connection; by says which.
	starved   atomic.Int64
	starvedBy atomic.Int64
}

func newClusterInfo() *clusterInfo { return &clusterInfo{picks: map[string]float64{}} }

// maxPicks bounds the memory of the estimate: beyond it older picks fade.
const maxPicks = 512

func (ci *clusterInfo) picked(host string) {
	ci.mu.Lock()
	defer ci.mu.Unlock()
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
// are equal unless the counts say otherwise, and only as far as they do: the
// counts' departure from equal shares is shrunk by as much as chance would bring
// about (James and Stein's estimator), for which stands the mean of the
// chi-squared distribution and two of its standard deviations. So few picks
// make no host a favourite, and many tell its weight.
func estimate(counts []float64) {
	sum := 0.0
	for _, n := range counts {
		sum += n
	}
	hosts := float64(len(counts))
	equal := sum / hosts
	chi2 := 0.0
	for _, n := range counts {
		chi2 += (n - equal) * (n - equal) / max(equal, 1)
	}
	chance := hosts - 1 + 2*math.Sqrt(2*(hosts-1))
	evidence := 0.0
	if chi2 > chance {
		evidence = 1 - chance/chi2
	}
	for i, n := range counts {
		counts[i] = 1 / hosts
		if evidence > 0 {
			counts[i] += evidence * (n - equal) / sum
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
		clear(ci.picks)
		ci.sum = 0
	}
	return ci.epoch
}

func (ci *clusterInfo) starve(worker int, now time.Duration) {
	ci.starvedBy.Store(int64(worker))
	ci.starved.Store(int64(now) + 1)
}

// hungry reports whether another worker was starved within the last d.
func (ci *clusterInfo) hungry(worker int, now, d time.Duration) bool {
	at := ci.starved.Load()
	return at != 0 && ci.starvedBy.Load() != int64(worker) && now-time.Duration(at) < d
}
