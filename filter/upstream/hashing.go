package upstream

import (
	"math"
	"slices"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/consistent"
)

// hashTime is how long calls still go by the hosts of an old membership while those of
// the new one are not all known: they keep their hosts, but new hosts get none.
const hashTime = 30 * time.Second

const (
	// seekTogether connections are made at once while hosts are looked for …
	seekTogether = 4
	// … until so many per host have been made: enough to find each of a hundred by
	// chance.
	seekPicks = 16
)

// Detour is why a call with a hash has gone by anything else.
type Detour uint8

const (
	// HostsUnknown: not all hosts of the cluster are known, so it went to any.
	HostsUnknown Detour = iota
	// HostUnavailable: no connection to the host can take it, so it went to the one
	// that the table names next, or to any.
	HostUnavailable
	// HostBusy: too much is in flight to the host, so it went to another one.
	HostBusy
)

func (d Detour) String() string {
	return [...]string{
		"the hosts of the cluster are not all known yet", "no connection to its host can take it",
		"too many requests are in flight to its host",
	}[d]
}

// hashing is how a pool finds the hosts of its calls' hashes. Where connections are
// exclusive it cannot: the load balancer says where the next one goes.
type hashing struct {
	policy consistent.Policy
	used   bool // a call has had a hash
	table  *hostTable
	// current: the table is that of the present membership.
	current bool
	conns   [][]*conn // of the table's hosts, those that are ready
}

// hostTable is a table whose hosts are found by their addresses.
type hostTable struct {
	*consistent.Table
	hosts  []string // their addresses
	places map[string]int
}

// newHostTable makes the table of hosts of which only the addresses are known: their
// weights count as equal.
func newHostTable(p consistent.Policy, hosts []string) *hostTable {
	t := &hostTable{hosts: hosts, places: map[string]int{}}
	keys := make([]consistent.Host, len(hosts))
	for i, h := range hosts {
		keys[i] = consistent.Host{Key: h, Weight: 1}
		t.places[h] = i
	}
	t.Table = consistent.Build(p, keys)
	return t
}

// hashBy has calls hashed by a policy from now on.
func (p *Pool) hashBy(policy *consistent.Policy) {
	if h := &p.hashing; !h.used || h.policy != *policy {
		h.policy, h.used, h.table = *policy, true, nil
		p.rehash(p.m.now())
	}
}

// rehash takes the table of the hosts that are known by now.
func (p *Pool) rehash(now time.Duration) {
	h := &p.hashing
	if !h.used || !p.opts.Shared {
		return
	}
	t, current := p.info.table(h.policy, p.hosts.Preferred, p.countHosts(), now)
	h.current = current
	if !current && now-p.changed > hashTime {
		t = nil
	}
	if t != h.table {
		h.table = t
		p.arrange()
	}
}

// seeks reports whether hosts of hashes are to be looked for without delay: some are not
// known, or missing, as no connection leads there. A load balancer that chooses at
// random takes its time to show all.
func (p *Pool) seeks(missing bool) bool {
	h := &p.hashing
	return h.used && (missing || !h.current) && p.hosts.Preferred <= p.opts.MaxConnections && p.samples < seekPicks*p.hosts.Preferred
}

// arrange sorts the ready connections by the table's hosts.
func (p *Pool) arrange() {
	h := &p.hashing
	for i := range h.conns {
		clear(h.conns[i])
		h.conns[i] = h.conns[i][:0]
	}
	if h.table == nil {
		return
	}
	if n := len(h.table.hosts); n <= cap(h.conns) {
		h.conns = h.conns[:n]
	} else {
		h.conns = append(h.conns[:cap(h.conns)], make([][]*conn, n-cap(h.conns))...)
	}
	for _, cn := range p.ready {
		if i, known := h.table.places[cn.host]; known {
			h.conns[i] = append(h.conns[i], cn)
		}
	}
}

// choose chooses a connection for c, nil if it has to wait: by its hash if it has one.
func (p *Pool) choose(c *Call) *conn {
	if !c.hashed {
		return p.pickAny(c)
	}
	cn, detour, straight := p.hashed(c.hash, c.avoid)
	if cn == nil {
		cn = p.pickAny(c)
	}
	if cn != nil && !straight {
		p.obs.Detoured(p.key.Cluster, cn.host, detour)
	}
	return cn
}

func (p *Pool) pickAny(c *Call) *conn {
	if c.line != nil {
		return p.pick("")
	}
	return p.pickFor(c)
}

// hashed chooses a connection by a hash: to the host to which the table maps it, unless
// that is to be avoided. straight tells that it is; else detour why it is not.
func (p *Pool) hashed(hash uint64, avoid string) (cn *conn, detour Detour, straight bool) {
	h := &p.hashing
	if h.table == nil {
		return nil, HostsUnknown, false
	}
	hosts := h.table.hosts
	first := h.table.Pick(hash, 0)
	if avoid == "" || hosts[first] != avoid {
		if cn = h.least(first); cn != nil && h.load(p, first) <= 1 {
			return cn, 0, true
		}
		if cn != nil {
			return h.relieve(p, hash, first, avoid, cn), HostBusy, false
		}
	}
	// As the table goes on; its next entries may be of the same host.
	for attempt := uint32(1); attempt < uint32(8*len(hosts)); attempt++ {
		i := h.table.Pick(hash, attempt)
		if i == first || avoid != "" && hosts[i] == avoid {
			continue
		}
		if cn = h.least(i); cn != nil {
			// A further attempt goes where it shall.
			return cn, HostUnavailable, avoid != "" && hosts[first] == avoid
		}
	}
	return nil, HostUnavailable, false
}

// least returns the connection to a host that has the fewest calls, nil if none can
// take one.
func (h *hashing) least(host int) (best *conn) {
	for _, cn := range h.conns[host] {
		if !cn.blocked && cn.weight > 0 && (best == nil || cn.inFlight < best.inFlight) {
			best = cn
		}
	}
	return best
}

// load is what is in flight to a host, by what may be.
func (h *hashing) load(p *Pool, host int) float64 {
	if h.policy.BalanceFactor == 0 {
		return 0
	}
	n := 0
	for _, cn := range h.conns[host] {
		n += cn.inFlight
	}
	total := ((p.inFlight+1)*int(h.policy.BalanceFactor) + 99) / 100
	return float64(n) / max(1, math.Ceil(float64(total)*h.table.Share(host)))
}

// relieve chooses another host in place of one that has too much: the first that has
// not, from a place among the hosts that follows from the hash, so that each key has its
// own, and what one host has too much is spread over all. If all have too much it is
// the one that has least. cn leads to the first.
func (h *hashing) relieve(p *Pool, hash uint64, first int, avoid string, cn *conn) *conn {
	hosts := h.table.hosts
	least := h.load(p, first)
	from := hash * 0x9e3779b97f4a7c15 >> 32 // unlike the place in the table
	for n := range uint64(len(hosts)) {
		i := int((from + n) % uint64(len(hosts)))
		if i == first || avoid != "" && hosts[i] == avoid {
			continue
		}
		other := h.least(i)
		if other == nil {
			continue
		}
		load := h.load(p, i)
		if load <= 1 {
			return other
		}
		if load < least {
			cn, least = other, load
		}
	}
	return cn
}

// members are the hosts of a cluster as far as its load balancer has shown them, and
// the tables that are made of them. It is guarded by its clusterInfo.
type members struct {
	seen    map[string]int // by when they were picked last
	picks   int
	version int // of the set of hosts
	// replaced counts the hosts that have taken the place of others since then.
	replaced int
	since    time.Duration
	tables   map[consistent.Policy]*builtTable
	run      func(f func())
}

type builtTable struct {
	hostTable *hostTable // nil: none yet
	hosts     []string   // of which it was made
	version   int        // of the set of which it was made, or is being made
	building  bool
}

// More than maxReplaced hosts within replacedTime do not take the place of others.
const (
	maxReplaced  = 16
	replacedTime = time.Minute
)

// maxTables bounds the policies that are remembered: each update of routes may bring
// another one.
const maxTables = 8

func (ms *members) picked(host string) {
	if host == "" {
		return
	}
	if _, known := ms.seen[host]; !known {
		ms.version++
	}
	ms.picks++
	ms.seen[host] = ms.picks
}

// known reports whether as many hosts have been seen as there are. If more have been,
// one has taken the place of another: one to which no connection leads any more, or
// else the one not seen for longest. If that goes on it is something else, such as
// hosts that are not healthy or of a lower priority, and nothing is known.
func (ms *members) known(counted int, conns map[string]int, now time.Duration) bool {
	for len(ms.seen) > counted {
		oldest := ""
		for h, at := range ms.seen {
			if gone := conns[h] == 0; oldest == "" || gone && conns[oldest] > 0 || gone == (conns[oldest] == 0) && at < ms.seen[oldest] {
				oldest = h
			}
		}
		delete(ms.seen, oldest)
		ms.version++
		if now-ms.since > replacedTime {
			ms.replaced, ms.since = 0, now
		}
		ms.replaced++
	}
	steady := ms.replaced <= maxReplaced || now-ms.since > replacedTime
	return steady && counted > 0 && len(ms.seen) == counted
}

func (ms *members) forget() {
	clear(ms.seen)
	ms.version++
}

// table returns the table of the cluster's hosts, nil if they are not known. current is
// false if it is that of an earlier membership. What is to be built is built meanwhile.
// conns are a pool's connections to each host.
func (ci *clusterInfo) table(p consistent.Policy, counted int, conns map[string]int, now time.Duration) (t *hostTable, current bool) {
	ci.mu.Lock()
	ms := &ci.members
	known := ms.known(counted, conns, now)
	b := ms.tables[p]
	if b == nil {
		if len(ms.tables) >= maxTables {
			clear(ms.tables)
		}
		b = &builtTable{version: -1}
		ms.tables[p] = b
	}
	if !known || b.version == ms.version || b.building {
		t, current = b.hostTable, known && b.version == ms.version && !b.building
		ci.mu.Unlock()
		return t, current
	}
	hosts := make([]string, 0, len(ms.seen))
	for h := range ms.seen {
		hosts = append(hosts, h)
	}
	slices.Sort(hosts)
	b.version = ms.version
	if slices.Equal(hosts, b.hosts) {
		t = b.hostTable
		ci.mu.Unlock()
		return t, true
	}
	b.building = true
	run := ms.run
	ci.mu.Unlock()
	run(func() {
		t := newHostTable(p, hosts)
		ci.mu.Lock()
		defer ci.mu.Unlock()
		b.hostTable, b.hosts, b.building = t, hosts, false
	})
	ci.mu.Lock()
	defer ci.mu.Unlock()
	return b.hostTable, !b.building
}
