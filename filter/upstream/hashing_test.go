package upstream_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// numbered answers have ids.
var numbered = codecs.Traits{Correlation: codecs.ByID, MaxID: math.MaxUint64}

var byMaglev = &consistent.Policy{Algorithm: consistent.Maglev, TableSize: 251}

// mapped is what a table makes of hashes.
type mapped struct {
	table *consistent.Table
	hosts []string
}

func mapOf(p *consistent.Policy, hosts ...string) mapped {
	var hs []consistent.Host
	for _, h := range hosts {
		hs = append(hs, consistent.Host{Key: h, Weight: 1})
	}
	return mapped{consistent.Build(*p, hs), hosts}
}

// of is the host of a hash, and not one of those that cannot.
func (m mapped) of(hash uint64, cannot ...string) string {
	for attempt := uint32(0); ; attempt++ {
		h := m.hosts[m.table.Pick(hash, attempt)]
		possible := true
		for _, c := range cannot {
			possible = possible && c != h
		}
		if possible {
			return h
		}
	}
}

// hashes are some that are spread.
func hashes(n int) (all []uint64) {
	for i := range n {
		all = append(all, consistent.Hash(fmt.Append(nil, i)))
	}
	return all
}

// goes sends a call of a hash, and returns the host to which it went.
func (b *bed) goes(p *consistent.Policy, hash uint64, avoid string) string {
	c := b.send("call", nil, upstream.Send{Hash: hash, Hashing: p, Avoid: avoid})
	require.Equal(b.t, "under way", c.is())
	to := c.call.Host()
	b.cancel(c)
	return to
}

// knows lets the pool find its hosts.
func (b *bed) knows(p *consistent.Policy, hosts int) {
	b.has(hosts)
	c := b.send("first", nil, upstream.Send{Hashing: p})
	b.up()
	b.cancel(c)
	for range 20 {
		b.pass(100 * time.Millisecond)
		b.up()
	}
	b.seen.detours = nil
}

func TestCallsGoToTheHostOfTheirHash(t *testing.T) {
	for _, p := range []*consistent.Policy{&consistent.Default, byMaglev} {
		b := newBed(t, numbered, nil)
		b.knows(p, 4)
		all := mapOf(p, "h0", "h1", "h2", "h3")
		for _, hash := range hashes(200) {
			require.Equal(t, all.of(hash), b.goes(p, hash, ""))
		}
		require.Empty(t, b.seen.detours)
		for _, hash := range hashes(200) { // to the next entry of another host
			first := all.of(hash)
			require.Equal(t, all.of(hash, first), b.goes(p, hash, first))
			require.Equal(t, first, b.goes(p, hash, all.of(hash, first)))
		}
		require.Empty(t, b.seen.detours)
	}
}

func TestAnotherPolicyHasAnotherTable(t *testing.T) {
	b := newBed(t, numbered, nil)
	b.knows(&consistent.Default, 4)
	for _, p := range []*consistent.Policy{byMaglev, &consistent.Default} {
		all := mapOf(p, "h0", "h1", "h2", "h3")
		for _, hash := range hashes(50) {
			require.Equal(t, all.of(hash), b.goes(p, hash, ""))
		}
	}
	for size := range uint32(50) { // more than are remembered
		p := &consistent.Policy{MinimumRingSize: 1 + size, MaximumRingSize: 100}
		require.Equal(t, mapOf(p, "h0", "h1", "h2", "h3").of(7), b.goes(p, 7, ""))
	}
}

func TestWithoutAllHostsACallGoesToAny(t *testing.T) {
	b := newBed(t, numbered, nil)
	b.has(4)
	c := b.send("call", nil, upstream.Send{Hash: 1, Hashing: byMaglev})
	require.Equal(t, "waits", c.is())
	b.servers[0].ready("h0")
	require.Equal(t, "under way", c.is())
	require.Equal(t, map[upstream.Detour]int{upstream.HostsUnknown: 1}, b.seen.detours)
	b.cancel(c)
	b.servers[1].ready("h1")
	b.servers[2].ready("h2")
	b.goes(byMaglev, 1, "")
	require.Equal(t, 2, b.seen.detours[upstream.HostsUnknown])
	b.servers[3].ready("h3")
	require.Equal(t, mapOf(byMaglev, "h0", "h1", "h2", "h3").of(1), b.goes(byMaglev, 1, ""))
	require.Equal(t, 2, b.seen.detours[upstream.HostsUnknown])
}

// A host to which no connection leads for now, or one that takes no bytes, loses its
// keys to the next entries of the table, and gets them back; no other key moves.
func TestAHostThatCannotTakeCalls(t *testing.T) {
	for name, out := range map[string]func(b *bed, s *server, out bool){
		"lost": func(b *bed, s *server, out bool) {
			if out {
				s.ends(host.Reset)
				return
			}
			for i := len(b.servers) - 1; b.servers[i].state == dialled; i-- {
				b.servers[i].ready("h2")
			}
		},
		"blocked": func(_ *bed, s *server, out bool) { s.event(func() { s.ev.WriteBlocked(out) }) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, numbered, func(o *upstream.Options) { o.MaxConnections = 4 })
			b.knows(byMaglev, 4)
			var at *server
			for _, s := range b.open() {
				if s.host == "h2" {
					require.Nil(t, at)
					at = s
				}
			}
			all, moved := mapOf(byMaglev, "h0", "h1", "h2", "h3"), 0
			out(b, at, true)
			for _, hash := range hashes(200) {
				require.Equal(t, all.of(hash, "h2"), b.goes(byMaglev, hash, ""))
				if all.of(hash) == "h2" {
					moved++
				}
			}
			require.Equal(t, map[upstream.Detour]int{upstream.HostUnavailable: moved}, b.seen.detours)
			if name == "lost" {
				b.pass(3 * time.Second)
			}
			out(b, at, false)
			for _, hash := range hashes(200) {
				require.Equal(t, all.of(hash), b.goes(byMaglev, hash, ""))
			}
			require.Equal(t, map[upstream.Detour]int{upstream.HostUnavailable: moved}, b.seen.detours)
		})
	}
}

// turns lets time pass, n times, in which connections are made to hosts in turn. The
// pool is in use.
func (b *bed) turns(n int, each time.Duration, hosts ...string) {
	turn := 0
	for range n {
		b.again(&caller{}, upstream.Send{})
		b.pass(each)
		for _, s := range b.servers {
			if s.state == dialled {
				s.ready(hosts[turn%len(hosts)])
				turn++
			}
		}
	}
}

// moves has the pool's connections replaced behind a change of the hosts, to these.
func (b *bed) moves(hosts ...string) {
	b.has(len(hosts))
	b.turns(60, 100*time.Millisecond, hosts...)
}

// What leaves keeps its keys only until it has been noticed, and all others theirs but
// for what a table of fewer hosts moves; when it returns the map is the old one.
func TestAHostLeavesAndReturns(t *testing.T) {
	b := newBed(t, numbered, nil)
	b.knows(byMaglev, 4)
	four, three := mapOf(byMaglev, "h0", "h1", "h2", "h3"), mapOf(byMaglev, "h0", "h1", "h3")
	b.has(3)
	b.pass(100 * time.Millisecond)
	require.Equal(t, four.of(5), b.goes(byMaglev, 5, ""), "the old table, while not all of the new hosts are known")
	b.moves("h0", "h1", "h3")
	for _, hash := range hashes(100) {
		require.Equal(t, three.of(hash), b.goes(byMaglev, hash, ""))
	}
	b.moves("h0", "h1", "h2", "h3")
	for _, hash := range hashes(100) {
		require.Equal(t, four.of(hash), b.goes(byMaglev, hash, ""))
	}
	require.Zero(t, b.seen.detours[upstream.HostsUnknown])
}

// If the new hosts are not found, the old table is given up.
func TestAnOldTableIsGivenUp(t *testing.T) {
	b := newBed(t, numbered, nil)
	b.knows(byMaglev, 2)
	b.has(3)
	for i := range 29 {
		b.turns(1, time.Second, "h0", "h1")
		b.goes(byMaglev, 5, "")
		require.Zero(t, b.seen.detours[upstream.HostsUnknown], i)
	}
	b.pass(2 * time.Second)
	b.goes(byMaglev, 5, "")
	require.Equal(t, 1, b.seen.detours[upstream.HostsUnknown])
}

// One host in the place of another, with as many as before: what was seen last counts.
func TestAHostIsReplacedByAnother(t *testing.T) {
	b := newBed(t, numbered, nil)
	b.knows(byMaglev, 3)
	for _, s := range b.open() {
		if s.host == "h1" {
			s.ends(host.Remote)
		}
	}
	b.moves("h0", "new", "h2")
	all := mapOf(byMaglev, "h0", "h2", "new")
	for _, hash := range hashes(100) {
		require.Equal(t, all.of(hash), b.goes(byMaglev, hash, ""))
	}
}

// When few hosts are healthy, or another priority has to help, Envoy uses more hosts than
// are counted: then no table is right.
func TestMoreHostsThanThereAre(t *testing.T) {
	b := newBed(t, numbered, func(o *upstream.Options) { o.MaxAge = 2 * time.Second })
	b.knows(byMaglev, 2)
	b.turns(600, 100*time.Millisecond, "h0", "h1", "h2", "h3", "h4")
	b.seen.detours = nil
	b.goes(byMaglev, 3, "")
	require.Equal(t, map[upstream.Detour]int{upstream.HostsUnknown: 1}, b.seen.detours)
}

func TestExclusiveConnectionsAreNotHashed(t *testing.T) {
	b := newBed(t, codecs.Traits{Correlation: codecs.Exclusive}, func(o *upstream.Options) {
		o.Mode, o.Shared = upstream.OneByOne, false
	})
	b.knows(byMaglev, 1)
	b.goes(byMaglev, 3, "")
	require.Equal(t, map[upstream.Detour]int{upstream.HostsUnknown: 1}, b.seen.detours)
}

// With a balance factor a host gets no more than that of its share, and what it does not
// get goes to the same others each time.
func TestBoundedLoad(t *testing.T) {
	p := *byMaglev
	p.BalanceFactor = 150
	b := newBed(t, numbered, func(o *upstream.Options) { o.MaxRequests = 5000 })
	b.knows(&p, 4)
	all := mapOf(&p, "h0", "h1", "h2", "h3")
	hot := all.of(1)
	to, order := map[string]int{}, [][]string{nil, nil}
	var calls []*caller
	for range 400 {
		c := b.send("hot", nil, upstream.Send{Hash: 1, Hashing: &p})
		to[c.call.Host()]++
		order[0] = append(order[0], c.call.Host())
		calls = append(calls, c)
	}
	require.InDelta(t, 150, to[hot], 3, to)
	for h, n := range to {
		require.LessOrEqual(t, n, 153, h)
	}
	require.Equal(t, 400-to[hot], b.seen.detours[upstream.HostBusy])
	for _, c := range calls {
		b.cancel(c)
	}
	for range 400 {
		c := b.send("hot", nil, upstream.Send{Hash: 1, Hashing: &p})
		order[1] = append(order[1], c.call.Host())
	}
	require.Equal(t, order[0], order[1])
}

// again sends a call, and cancels it.
func (b *bed) again(c *caller, s upstream.Send) {
	c.call.Init(c)
	s.Timeout = time.Minute
	b.pool.Send(&c.call, &s)
	c.call.Cancel()
}
