package upstream

import (
	"math"
	"slices"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/filter/host"
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

	// maxWalk is how many entries of a table are looked at for a call, and for all that
	// wait while none can be sent.
	maxWalk = 8192
)

// Detour is why a call with a hash, or one that names its host, has gone by anything else.
type Detour uint8

const (
	// Straight: it has not.
	Straight Detour = iota
	// HostsUnknown: not all hosts of the cluster are known, so it went to any.
	HostsUnknown
	// HostUnavailable: no connection to the host can take it, so it went to the one
	// that the table names next, or to any.
	HostUnavailable
	// HostBusy: too much is in flight to the host, so it went to another one.
	HostBusy
	// NamedUnavailable: no connection to the host that it named can take it.
	NamedUnavailable
)

func (d Detour) String() string {
	return [...]string{
		"", "the hosts of the cluster are not all known yet", "no connection to its host can take it",
		"too many requests are in flight to its host", "no connection to the host that a filter has named can take it",
	}[d]
}

// hashing is how a pool finds the hosts of its calls' hashes. Where connections are
// exclusive and the cluster does not tell its hosts it cannot: the load balancer says
// where the next one goes.
type hashing struct {
	policy consistent.Policy
	used   bool // a call has had a hash
	table  *hostTable
	// current: the table is that of the present membership.
	current bool
	of      *host.Members // of which the table is, if the cluster tells its hosts
	at      []*endpoint   // the table's hosts; nil: nothing is known of it any more
	walked  int           // entries looked at since what waits was looked at last
}

// hostTable is a table whose hosts are found by their addresses.
type hostTable struct {
	*consistent.Table
	hosts []string // their addresses
}

// hashBy has calls hashed by a policy from now on.
func (p *Pool) hashBy(policy *consistent.Policy) {
	if h := &p.hashing; !h.used || h.policy != *policy {
		now := p.m.now()
		if !p.looked {
			p.look(now)
		}
		h.policy, h.used, h.table, h.of = *policy, true, nil, nil
		p.rehash(now)
	}
}

// rehash takes the table of the hosts that are known by now.
func (p *Pool) rehash(now time.Duration) {
	h := &p.hashing
	if !h.used {
		return
	}
	var t *hostTable
	if !p.told() {
		h.of = nil
	}
	switch {
	case p.told():
		if h.of == p.members {
			return
		}
		if t, h.current = p.info.tableOf(h.policy, p.hashKeys, p.addresses, h.table == nil); h.current {
			h.of = p.members
		} else {
			t = h.table // until the new one has been built
		}
	case p.opts.Shared:
		t, h.current = p.info.table(h.policy, p.hosts.Preferred, p.connsTo, now)
		if !h.current && now-p.changed > hashTime {
			t = nil
		}
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

// arrange finds the table's hosts.
func (p *Pool) arrange() {
	h := &p.hashing
	if p.learning { // it is called behind that
		return
	}
	h.at = h.at[:0]
	if h.table != nil {
		for _, addr := range h.table.hosts {
			h.at = append(h.at, p.all[addr])
		}
	}
}

// choose chooses a connection for c, nil if it has to wait: to the host that it names, or
// by its hash if it has one.
func (p *Pool) choose(c *Call) *conn {
	if c.named != "" {
		if cn, found := p.toNamed(c); found {
			return cn
		}
	}
	if !c.hashed {
		return p.pickAny(c)
	}
	cn, detour, found := p.hashed(c)
	if !found {
		cn = p.pickAny(c)
	}
	if cn != nil && detour != Straight {
		p.obs.Detoured(p.key.Cluster, cn.host, detour)
	}
	return cn
}

func (p *Pool) pickAny(c *Call) *conn {
	if p.balancing != nil && len(p.usable) > 1 {
		if cn, found := p.lightest(c); found {
			return cn
		}
	}
	if c.line != nil {
		return p.pick("")
	}
	return p.pickFor(c)
}

// hashed chooses a connection for c by its hash: to the host to which the table maps it,
// unless that is to be avoided. found is true without a connection if c had better wait
// for one.
func (p *Pool) hashed(c *Call) (cn *conn, detour Detour, found bool) {
	h := &p.hashing
	if h.table == nil {
		return nil, HostsUnknown, false
	}
	hosts := h.table.hosts
	first := h.table.Pick(c.hash, 0)
	// Behind the first as the table goes on; its next entries may be of the same host.
	for attempt := range uint32(min(8*len(hosts), maxWalk)) {
		i := first
		h.walked++
		if attempt > 0 {
			if i = h.table.Pick(c.hash, attempt); i == first {
				continue
			}
		}
		if c.avoid != "" && hosts[i] == c.avoid {
			continue
		}
		ep := h.at[i]
		cn, detour = p.take(ep), HostUnavailable
		if i == first || c.avoid != "" && hosts[first] == c.avoid { // a further attempt goes where it shall
			detour = Straight
		}
		if i == first && h.load(p, first) > 1 {
			cn, detour = h.relieve(p, c.hash, first, c.avoid, cn), HostBusy
		}
		if cn != nil || ep != nil && p.told() && p.awaits(c, ep) {
			return cn, detour, true
		}
	}
	return nil, HostUnavailable, false
}

// load is what is in flight to a host, by what may be.
func (h *hashing) load(p *Pool, host int) float64 {
	if h.policy.BalanceFactor == 0 || h.at[host] == nil {
		return 0
	}
	total := ((p.inFlight+1)*int(h.policy.BalanceFactor) + 99) / 100
	return float64(h.at[host].inFlight()) / max(1, math.Ceil(float64(total)*h.table.Share(host)))
}

// relieve chooses another host in place of one that has too much: the first that has
// not, from a place among the hosts that follows from the hash, so that each key has its
// own, and what one host has too much is spread over all. If all have too much it is
// the one that has least. cn leads to the first, nil if nothing does.
func (h *hashing) relieve(p *Pool, hash uint64, first int, avoid string, cn *conn) *conn {
	hosts := h.table.hosts
	least := h.load(p, first)
	from := hash * 0x9e3779b97f4a7c15 >> 32 // unlike the place in the table
	for n := range uint64(len(hosts)) {
		i := int((from + n) % uint64(len(hosts)))
		if i == first || avoid != "" && hosts[i] == avoid {
			continue
		}
		other := p.take(h.at[i])
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
	told     map[consistent.Policy]*toldTables
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
func (ms *members) known(counted int, conns func(host string) int, now time.Duration) bool {
	for len(ms.seen) > counted {
		oldest := ""
		for h, at := range ms.seen {
			if gone := conns(h) == 0; oldest == "" || gone && conns(oldest) > 0 || gone == (conns(oldest) == 0) && at < ms.seen[oldest] {
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
// conns counts a pool's connections to a host.
func (ci *clusterInfo) table(p consistent.Policy, counted int, conns func(host string) int, now time.Duration) (t *hostTable, current bool) {
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
		// Their weights count as equal.
		keys := make([]consistent.Host, len(hosts))
		for i, h := range hosts {
			keys[i] = consistent.Host{Key: h, Weight: 1}
		}
		t := &hostTable{consistent.Build(p, keys), hosts}
		ci.mu.Lock()
		defer ci.mu.Unlock()
		b.hostTable, b.hosts, b.building = t, hosts, false
	})
	ci.mu.Lock()
	defer ci.mu.Unlock()
	return b.hostTable, !b.building
}

// toldTables are the tables of a policy that are made of what a cluster tells of its
// hosts: the present ones and those before, as workers hear of changes one by one.
type toldTables [2]*toldTable

type toldTable struct {
	keys  []consistent.Host
	hosts []string
	table *hostTable // nil: it is being built
}

// buildTime is how soon a pool looks again for a table that is being built.
const buildTime = 2 * time.Millisecond

// buildAtOnce is up to how many places a table without which calls would go anywhere is
// built by who needs it, within a few milliseconds.
const buildAtOnce = 70_000

// tableOf returns the table of hosts that a cluster tells, in its order. ok is false if it
// is being built: at once is only what is needed for the first.
func (ci *clusterInfo) tableOf(p consistent.Policy, keys []consistent.Host, hosts []string, first bool) (t *hostTable, ok bool) {
	if len(hosts) == 0 {
		return nil, true
	}
	ci.mu.Lock()
	ms := &ci.members
	tables := ms.told[p]
	if tables == nil {
		if len(ms.told) >= maxTables {
			clear(ms.told)
		}
		tables = new(toldTables)
		ms.told[p] = tables
	}
	var own *toldTable
	for _, o := range tables {
		if o != nil && slices.Equal(o.keys, keys) && slices.Equal(o.hosts, hosts) {
			own = o
		}
	}
	atOnce := first && consistent.Size(p, keys) <= buildAtOnce
	switch {
	case own != nil && (own.table != nil || !atOnce):
		t = own.table
		ci.mu.Unlock()
		return t, t != nil
	case own == nil:
		own = &toldTable{keys: keys, hosts: hosts}
		tables[0], tables[1] = own, tables[0]
	}
	run := ms.run
	ci.mu.Unlock()
	build := func() {
		t := &hostTable{consistent.Build(p, keys), hosts}
		ci.mu.Lock()
		defer ci.mu.Unlock()
		own.table = t
	}
	if atOnce {
		build()
	} else {
		run(build)
	}
	ci.mu.Lock()
	defer ci.mu.Unlock()
	return own.table, own.table != nil
}
