package golang

import (
	"maps"
	"sync"
	"time"
)

const (
	// sampledHosts is how many tunnels have to have led somewhere until the hosts that were
	// seen are taken for all there are.
	sampledHosts = 8
	// hostTime is how long a host counts to which no new tunnel has led: twice the age of
	// tunnels.
	hostTime = time.Minute
	// missingTime is for how long a cluster counts as unknown that Envoy did not know when
	// it was asked for a tunnel: as long as a pool lets pass at the most between attempts
	// to connect, if nothing else is configured.
	missingTime = time.Second
)

// hosts are those of clusters to which tunnels have led, on any worker. Nothing else tells
// how many a cluster has. Any goroutine may use it.
type hosts struct {
	mu       sync.Mutex
	clusters map[string]*clusterHosts
}

type clusterHosts struct {
	seen    map[string]time.Time
	samples int
}

func (hs *hosts) saw(cluster, host string) {
	if host == "" {
		return
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	c := hs.clusters[cluster]
	if c == nil {
		c = &clusterHosts{seen: map[string]time.Time{}}
		if hs.clusters == nil {
			hs.clusters = map[string]*clusterHosts{}
		}
		hs.clusters[cluster] = c
	}
	c.samples++
	now := time.Now()
	c.seen[host] = now
	for h, at := range c.seen {
		if now.Sub(at) > hostTime {
			delete(c.seen, h)
		}
	}
}

// count is how many hosts a cluster seems to have, or is assumed to have as nothing is known.
func (hs *hosts) count(cluster string) (n int, assumed bool) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	c := hs.clusters[cluster]
	if c == nil || c.samples < sampledHosts {
		return assumedHosts, true
	}
	return max(1, len(c.seen)), false
}

// missing are the clusters that a worker's thread does not know, as far as tunnels were to
// lead there: until when they count as such.
type missing struct {
	until map[string]time.Duration
	swept time.Duration
}

func (m *missing) add(cluster string, now time.Duration) {
	if m.until == nil {
		m.until = map[string]time.Duration{}
	}
	if now >= m.swept+missingTime { // requests may name whatever they like
		m.swept = now
		maps.DeleteFunc(m.until, func(_ string, until time.Duration) bool { return now >= until })
	}
	m.until[cluster] = now + missingTime
}

func (m *missing) has(cluster string, now time.Duration) bool { return now < m.until[cluster] }
