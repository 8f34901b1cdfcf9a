package upstream_test

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/lightest"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
	"github.com/meltemi-mesh/meltemi/internal/cputime"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

var byRing = &consistent.Default

// mixed are hosts of several weights, some with a key, one with IPv6.
func mixed() []host.Member {
	return []host.Member{
		{Address: "10.0.0.1:1", Weight: 1, Healthy: true},
		{Address: "10.0.0.2:1", Weight: 2, Healthy: true, HashKey: "pod-b"},
		{Address: "[fd00::3]:1", Weight: 3, Healthy: true},
		{Address: "10.0.0.4:1", Weight: 1, Healthy: true, HashKey: "pod-a"},
	}
}

// tells has the cluster tell its hosts.
func (b *bed) tells(ms ...host.Member) {
	b.has(len(ms))
	b.members = &host.Members{Hosts: ms}
}

// tableOf is the table of what is told.
func tableOf(p *consistent.Policy, ms []host.Member) mapped {
	var hs []consistent.Host
	var at []string
	for _, m := range ms {
		if m.Healthy {
			h := consistent.Host{Key: m.HashKey, Weight: m.Weight}
			if h.Key == "" {
				h.Key = m.Address
			}
			hs, at = append(hs, h), append(at, m.Address)
		}
	}
	return mapped{consistent.Build(*p, hs), at}
}

// kinds are pools of shared and of exclusive connections.
var kinds = map[string]struct {
	traits codecs.Traits
	change func(o *upstream.Options)
}{
	"shared": {numbered, nil},
	"exclusive": {codecs.Traits{Correlation: codecs.Exclusive}, func(o *upstream.Options) {
		o.Mode, o.Shared, o.MaxExclusive, o.MinConnections = upstream.OneByOne, false, 64, 0
	}},
}

func onEachKind(t *testing.T, test func(t *testing.T, b *bed)) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) { test(t, newBed(t, kind.traits, kind.change)) })
	}
}

// goesTo sends a call of a hash, lets what it needs be connected, and returns where it
// has gone. It is answered.
func (b *bed) goesTo(p *consistent.Policy, hash uint64, avoid string) string {
	b.t.Helper()
	c := b.send("call", nil, upstream.Send{Hash: hash, Hashing: p, Avoid: avoid})
	b.up()
	require.Equal(b.t, "under way", c.is())
	for _, s := range b.servers {
		if len(s.got) > 0 && s.state == serving {
			s.answers(len(s.got) - 1)
			s.got = nil
		}
	}
	require.Equal(b.t, "answered", c.is())
	return c.call.Host()
}

// The first call already goes where it belongs, by weights and keys.
func TestToldHosts(t *testing.T) {
	for name, p := range map[string]*consistent.Policy{"ring": byRing, "maglev": byMaglev} {
		t.Run(name, func(t *testing.T) {
			onEachKind(t, func(t *testing.T, b *bed) {
				b.tells(mixed()...)
				table := tableOf(p, mixed())
				for _, hash := range hashes(300) {
					require.Equal(t, table.of(hash), b.goesTo(p, hash, ""))
				}
				for _, hash := range hashes(50) { // a further attempt
					first := table.of(hash)
					require.Equal(t, table.of(hash, first), b.goesTo(p, hash, first))
				}
				require.Empty(t, b.seen.detours)
				require.Len(t, b.open(), 4, "one connection to each is all that it takes")
			})
		})
	}
}

// Calls wait for the connection to their host while others pass them.
func TestACallWaitsForItsHost(t *testing.T) {
	onEachKind(t, func(t *testing.T, b *bed) {
		b.tells(mixed()...)
		table := tableOf(byMaglev, mixed())
		var cs []*caller
		for _, hash := range hashes(20) {
			cs = append(cs, b.send("call", nil, upstream.Send{Hash: hash, Hashing: byMaglev}))
		}
		late := mixed()[2].Address
		for _, s := range b.servers {
			if s.wanted != late {
				s.ready(s.wanted)
			}
		}
		for i, hash := range hashes(20) {
			if want := table.of(hash); want == late {
				require.Equal(t, "waits", cs[i].is())
			} else {
				require.Equal(t, "under way", cs[i].is())
				require.Equal(t, want, cs[i].call.Host())
			}
		}
		b.up()
		for i, hash := range hashes(20) {
			require.Equal(t, table.of(hash), cs[i].call.Host())
			b.cancel(cs[i])
		}
		require.Empty(t, b.seen.detours)
	})
}

// passes lets time pass in which the pool is in use, and servers take what is asked for.
func (b *bed) passes(d time.Duration) {
	for range d / (100 * time.Millisecond) {
		b.goesTo(byMaglev, 0, "")
		b.pass(100 * time.Millisecond)
		b.up()
	}
}

// A host that leaves, or is not healthy, loses its keys at once, and no connection to
// another is replaced for it.
func TestAToldHostGoesAndReturns(t *testing.T) {
	for name, without := range map[string]func(ms []host.Member) []host.Member{
		"removed":   func(ms []host.Member) []host.Member { return slices.Delete(ms, 1, 2) },
		"unhealthy": func(ms []host.Member) []host.Member { ms[1].Healthy = false; return ms },
	} {
		t.Run(name, func(t *testing.T) {
			onEachKind(t, func(t *testing.T, b *bed) {
				b.tells(mixed()...)
				for _, hash := range hashes(60) {
					b.goesTo(byMaglev, hash, "")
				}
				before := b.open()
				require.Len(t, before, 4)
				rest := without(mixed())
				b.tells(rest...)
				b.pass(200 * time.Millisecond)
				table := tableOf(byMaglev, rest)
				for _, hash := range hashes(100) {
					require.Equal(t, table.of(hash), b.goesTo(byMaglev, hash, ""))
				}
				b.passes(3 * time.Second)
				for _, s := range before {
					require.Equal(t, s.host == mixed()[1].Address, s.ended, s.host)
				}
				b.tells(mixed()...)
				b.pass(200 * time.Millisecond)
				table = tableOf(byMaglev, mixed())
				for _, hash := range hashes(100) {
					require.Equal(t, table.of(hash), b.goesTo(byMaglev, hash, ""))
				}
				require.Empty(t, b.seen.detours)
			})
		})
	}
}

// Keys of a host that cannot be connected to go to the next of the table; nothing waits
// for it again until it can, and the pool goes on to try.
func TestAToldHostThatCannotBeReached(t *testing.T) {
	onEachKind(t, func(t *testing.T, b *bed) {
		ms := mixed()
		b.tells(ms...)
		table, down := tableOf(byMaglev, ms), ms[2].Address
		refuses := true
		step := func() {
			for i := 0; i < len(b.servers); i++ {
				if s := b.servers[i]; s.state == dialled && s.wanted == down && refuses {
					s.ends(host.ConnectFailed)
				}
			}
			b.up()
		}
		ask := func(hash uint64) string {
			c := b.send("call", nil, upstream.Send{Hash: hash, Hashing: byMaglev})
			step()
			require.Equal(t, "under way", c.is())
			b.cancel(c)
			return c.call.Host()
		}
		for _, hash := range hashes(100) {
			require.Equal(t, table.of(hash, down), ask(hash))
		}
		for range 50 {
			ask(0)
			b.pass(100 * time.Millisecond)
			step()
		}
		tries := 0
		for _, s := range b.servers {
			if s.wanted == down {
				tries++
			}
		}
		require.LessOrEqual(t, tries, 12, "with pauses")
		refuses = false
		for i := range 15 { // for longer than the pause, and its calls ask for it
			b.pass(100 * time.Millisecond)
			step()
			ask(hashes(100)[i])
		}
		for _, hash := range hashes(100) {
			ask(hash)
			b.pass(100 * time.Millisecond)
			step()
		}
		for _, hash := range hashes(100) {
			require.Equal(t, table.of(hash), ask(hash))
		}
	})
}

func TestNoToldHostCanBeReached(t *testing.T) {
	onEachKind(t, func(t *testing.T, b *bed) {
		b.tells(mixed()...)
		c := b.send("call", nil, upstream.Send{Hash: 1, Hashing: byMaglev})
		for i := 0; i < len(b.servers) && c.is() == "waits"; i++ {
			b.servers[i].ends(host.ConnectFailed)
		}
		require.Contains(t, c.is(), "upstream connect failure")
		for _, s := range b.servers {
			s.ends(host.ConnectFailed)
		}
		b.pass(3 * time.Second)
		require.NotEmpty(t, b.goesTo(byMaglev, 1, ""))
	})
}

// With no healthy host what is open serves on, and nothing else is to be had.
func TestNoToldHostIsHealthy(t *testing.T) {
	onEachKind(t, func(t *testing.T, b *bed) {
		ms := mixed()
		for i := range ms {
			ms[i].Healthy = false
		}
		b.tells(ms...)
		c := b.send("call", nil, upstream.Send{Hash: 1, Hashing: byMaglev})
		require.Empty(t, b.servers[0].wanted)
		for _, s := range b.servers {
			s.ends(host.NoHost)
		}
		require.Contains(t, c.is(), "no healthy upstream")
		b.tells(mixed()...)
		b.pass(2 * time.Second)
		b.goesTo(byMaglev, 1, "")
		b.tells(ms...)
		b.pass(10 * time.Second)
		b.goesTo(byMaglev, 1, "")
	})
}

// Without a hash hosts get what their weights say, whatever the connections.
func TestToldWeights(t *testing.T) {
	b := newBed(t, numbered, nil)
	ms := mixed()[:3]
	b.tells(ms...)
	b.send("first", nil, upstream.Send{})
	b.up()
	counts := map[string]int{}
	for range 600 {
		c := b.send("call", nil, upstream.Send{})
		counts[c.call.Host()]++
		b.cancel(c)
	}
	for _, m := range ms {
		require.InDelta(t, 100*int(m.Weight), counts[m.Address], 3, counts)
	}
	require.Len(t, b.servers, 3)
}

// The hosts of a lower priority are for when none is healthy before.
func TestToldPriorities(t *testing.T) {
	onEachKind(t, func(t *testing.T, b *bed) {
		ms := mixed()
		ms[2].Priority, ms[3].Priority = 1, 1
		b.tells(ms...)
		first := tableOf(byMaglev, ms[:2])
		for _, hash := range hashes(50) {
			require.Equal(t, first.of(hash), b.goesTo(byMaglev, hash, ""))
		}
		ms = slices.Clone(ms)
		ms[0].Healthy, ms[1].Healthy = false, false
		b.tells(ms...)
		b.pass(200 * time.Millisecond)
		second := tableOf(byMaglev, ms[2:])
		for _, hash := range hashes(50) {
			require.Equal(t, second.of(hash), b.goesTo(byMaglev, hash, ""))
		}
	})
}

// A pool of fewer connections than there are hosts goes on in the table.
func TestFewerConnectionsThanToldHosts(t *testing.T) {
	b := newBed(t, numbered, func(o *upstream.Options) { o.MaxConnections = 2 })
	b.tells(mixed()...)
	b.goesTo(byMaglev, 1, "")
	b.passes(time.Second)
	require.Len(t, b.open(), 2)
	for _, hash := range hashes(100) {
		b.goesTo(byMaglev, hash, "")
	}
	require.Len(t, b.open(), 2)
	require.NotZero(t, b.seen.detours[upstream.HostUnavailable])
}

// A connection that leads elsewhere is no reason to make more and more of them.
func TestAConnectionThatLeadsElsewhere(t *testing.T) {
	b := newBed(t, numbered, nil)
	b.tells(mixed()...)
	b.send("first", nil, upstream.Send{Hash: 1, Hashing: byMaglev})
	for range 100 {
		b.again(&caller{}, upstream.Send{Hash: 1, Hashing: byMaglev})
		b.pass(100 * time.Millisecond)
		for _, s := range b.servers {
			if s.state == dialled {
				s.ready(mixed()[0].Address)
			}
		}
	}
	require.Less(t, len(b.servers), 60)
}

// A cluster that does not tell its hosts any more is one whose hosts are found.
func TestAClusterTellsNoMore(t *testing.T) {
	b := newBed(t, numbered, nil)
	b.tells(mixed()...)
	b.goesTo(byMaglev, 1, "")
	b.members = nil
	b.turns(60, 100*time.Millisecond, "h0", "h1", "h2", "h3")
	all := mapOf(byMaglev, "h0", "h1", "h2", "h3")
	for _, hash := range hashes(50) {
		require.Equal(t, all.of(hash), b.goes(byMaglev, hash, ""))
	}
	b.tells(mixed()...)
	b.passes(time.Second)
	table := tableOf(byMaglev, mixed())
	for _, hash := range hashes(50) {
		require.Equal(t, table.of(hash), b.goesTo(byMaglev, hash, ""))
	}
}

// The keys of an ejected host go to the next of the table, and come back with it.
func TestAToldHostIsEjected(t *testing.T) {
	onEachKind(t, func(t *testing.T, b *bed) {
		policy := &outlier.Policy{
			ConsecutiveFailures: 1, Interval: time.Second, BaseEjectionTime: 5 * time.Second, MaxEjectionTime: time.Minute,
			MaxEjectionPercent: 50, RequestVolume: 100,
		}
		b.pool.Watch(policy)
		b.tells(mixed()...)
		table := tableOf(byMaglev, mixed())
		for _, hash := range hashes(60) {
			b.goesTo(byMaglev, hash, "")
		}
		bad := table.of(1)
		c := b.send("call", nil, upstream.Send{Hash: 1, Hashing: byMaglev})
		for _, s := range b.open() {
			if s.host == bad {
				s.ends(host.Reset)
			}
		}
		require.Contains(t, c.is(), "reset")
		b.passes(500 * time.Millisecond)
		for _, hash := range hashes(100) {
			require.Equal(t, table.of(hash, bad), b.goesTo(byMaglev, hash, ""))
		}
		for range 100 { // one call tries it
			b.goesTo(byMaglev, 2, "")
			b.pass(100 * time.Millisecond)
			b.up()
		}
		b.pass(200 * time.Millisecond)
		for _, hash := range hashes(100) {
			require.Equal(t, table.of(hash), b.goesTo(byMaglev, hash, ""))
		}
	})
}

// allows has a circuit breaker allow so many connections.
func (b *bed) allows(n int) {
	b.pool.Limit(&breaker.Policy{Requests: breaker.Unlimited, Pending: breaker.Unlimited, Connections: n})
}

// loses ends the connections to a host.
func (b *bed) loses(addr string) {
	for _, s := range b.open() {
		if s.host == addr {
			s.ends(host.Reset)
		}
	}
}

// A circuit breaker that allows no more is not asked for connections to a host while there
// are some to others: calls go there, and none is refused.
func TestAFullCircuitBreakerIsAskedForNoToldHost(t *testing.T) {
	for name, down := range map[string]bool{"it is new": false, "it was down": true} {
		t.Run(name, func(t *testing.T) {
			onEachKind(t, func(t *testing.T, b *bed) {
				b.tells(mixed()...)
				table := tableOf(byMaglev, mixed())
				for _, hash := range hashes(60) {
					b.goesTo(byMaglev, hash, "")
				}
				lost := table.of(1)
				b.loses(lost)
				if down {
					c := b.send("call", nil, upstream.Send{Hash: 1, Hashing: byMaglev})
					b.servers[len(b.servers)-1].ends(host.ConnectFailed)
					require.Equal(t, "under way", c.is())
					b.cancel(c)
				}
				other := table.of(1, lost)
				b.goesTo(byMaglev, 1, lost)
				b.allows(len(b.open()))
				for range 30 {
					require.Equal(t, other, b.goesTo(byMaglev, 1, ""))
					b.pass(100 * time.Millisecond)
				}
				require.Zero(t, b.seen.breaks)
				b.allows(4)
				for range 20 {
					b.goesTo(byMaglev, 1, "")
					b.pass(100 * time.Millisecond)
				}
				require.Equal(t, lost, b.goesTo(byMaglev, 1, ""))
			})
		})
	}
}

// Nor is it for one by which an ejected host could be tried.
func TestAFullCircuitBreakerAndAnEjectedHost(t *testing.T) {
	onEachKind(t, func(t *testing.T, b *bed) {
		b.pool.Watch(&outlier.Policy{
			ConsecutiveFailures: 1, Interval: time.Second, BaseEjectionTime: 5 * time.Second, MaxEjectionTime: time.Minute,
			MaxEjectionPercent: 50, RequestVolume: 100,
		})
		b.tells(mixed()...)
		table := tableOf(byMaglev, mixed())
		for _, hash := range hashes(60) {
			b.goesTo(byMaglev, hash, "")
		}
		bad := table.of(1)
		b.send("call", nil, upstream.Send{Hash: 1, Hashing: byMaglev})
		b.loses(bad)
		b.allows(len(b.open()))
		for range 100 {
			require.NotEqual(t, bad, b.goesTo(byMaglev, 1, ""))
			b.pass(100 * time.Millisecond)
		}
		require.Zero(t, b.seen.breaks)
		b.allows(4)
		for range 50 {
			b.goesTo(byMaglev, 1, "")
			b.pass(100 * time.Millisecond)
			b.up()
		}
		require.Equal(t, bad, b.goesTo(byMaglev, 1, ""))
	})
}

// A host that is slow to answer gets fewer calls, not more.
func TestTheLightestHost(t *testing.T) {
	for name, policy := range map[string]*lightest.Policy{
		"least request": {Choices: 4}, "of two": {Choices: 2}, "peak EWMA": {Choices: 2, Decay: 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			onEachKind(t, func(t *testing.T, b *bed) {
				b.pool.Balance(policy)
				ms := mixed()
				for i := range ms {
					ms[i].Weight = 1
				}
				b.tells(ms...)
				slow := ms[0].Address
				counts := map[string]int{}
				type due struct {
					at time.Duration
					c  *caller
					s  *server
				}
				var waiting []due
				for step := range 2000 {
					b.up()
					if step%2 == 0 {
						c := b.send(fmt.Sprint("c", step), nil, upstream.Send{})
						b.up()
						require.Equal(t, "under way", c.is())
						d := due{at: b.now + 10*time.Millisecond, c: c}
						for _, s := range b.servers {
							if n := len(s.got); n > 0 && s.names()[n-1] == c.name {
								d.s = s
							}
						}
						if counts[c.call.Host()]++; c.call.Host() == slow {
							d.at += 190 * time.Millisecond
						}
						waiting = append(waiting, d)
					}
					for i := 0; i < len(waiting); i++ {
						if d := waiting[i]; b.now >= d.at {
							d.s.answers(slices.Index(d.s.names(), d.c.name))
							require.Equal(t, "answered", d.c.is())
							waiting = slices.Delete(waiting, i, i+1)
							i--
						}
					}
					b.pass(5 * time.Millisecond)
				}
				require.Less(t, counts[slow], 160, counts)
				for _, m := range ms[1:] {
					require.Greater(t, counts[m.Address], 200, counts)
				}
			})
		})
	}
}

// With nothing to tell hosts apart each gets its share.
func TestLightestByWeight(t *testing.T) {
	b := newBed(t, numbered, nil)
	b.pool.Balance(&lightest.Policy{Choices: 2})
	ms := mixed()[:3]
	b.tells(ms...)
	first := b.send("first", nil, upstream.Send{})
	b.up()
	b.cancel(first)
	counts := map[string]int{}
	for range 600 {
		c := b.send("call", nil, upstream.Send{})
		counts[c.call.Host()]++
		b.cancel(c)
	}
	for _, m := range ms {
		require.InDelta(t, 100*int(m.Weight), counts[m.Address], 60, counts)
	}
}

func TestChoosingAHostAllocatesNothing(t *testing.T) {
	for name, s := range map[string]upstream.Send{"hash": {Hash: 1, Hashing: byMaglev}, "EWMA": {}} {
		b := newBed(t, numbered, nil)
		b.pool.Balance(&lightest.Policy{Choices: 2, Decay: time.Second})
		b.tells(mixed()...)
		b.send("first", nil, s)
		b.up()
		c := &caller{}
		for range 10 {
			b.again(c, s)
		}
		plain := newBed(t, numbered, nil)
		plain.send("first", nil, upstream.Send{})
		plain.up()
		p := &caller{}
		base := raced.AllocsPerRun(t, 100, func() { plain.again(p, upstream.Send{}) })
		require.LessOrEqual(t, raced.AllocsPerRun(t, 100, func() { b.again(c, s) }), base, name)
	}
}

// A request whose host has no connection, as there are more hosts than connections.
func BenchmarkHashOfManyHosts(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			bed := newBed(b, numbered, func(o *upstream.Options) { o.MaxConnections = 8 })
			var ms []host.Member
			for i := range n {
				ms = append(ms, host.Member{Address: fmt.Sprintf("10.0.%d.%d:1", i/250, i%250), Weight: 1, Healthy: true})
			}
			bed.tells(ms...)
			bed.goesTo(byRing, 1, "")
			bed.pass(200 * time.Millisecond)
			bed.up()
			require.Len(b, bed.open(), 8)
			c := &caller{}
			hs := hashes(1000)
			b.ResetTimer()
			for i := range b.N {
				bed.again(c, upstream.Send{Hash: hs[i%len(hs)], Hashing: byRing})
			}
			require.Len(b, bed.open(), 8)
		})
	}
}

// many are n hosts, the first of them with that number.
func many(first, n int) (ms []host.Member) {
	for i := first; i < first+n; i++ {
		ms = append(ms, host.Member{Address: fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255), Weight: 1, Healthy: true})
	}
	return ms
}

// byManyPlaces has places for some thousand hosts.
var byManyPlaces = &consistent.Policy{Algorithm: consistent.Maglev, TableSize: 65537}

// dialled are the servers that have been asked for and have not answered.
func (b *bed) dialled() (all []*server) {
	for _, s := range b.servers {
		if s.state == dialled {
			all = append(all, s)
		}
	}
	return all
}

// Of many hosts that cannot be reached no more are tried at once than there may be
// connections, however many calls pass them on their way through the table.
func TestManyHostsThatFailAreTriedByFew(t *testing.T) {
	for name, most := range map[string]int{"shared": 4, "exclusive": 64} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, kinds[name].traits, kinds[name].change)
			b.tells(many(0, 200)...)
			for k := range 40 {
				for i := range 20 {
					b.send("call", nil, upstream.Send{Hash: consistent.Hash(fmt.Append(nil, k, i)), Hashing: byManyPlaces, Timeout: 2 * time.Second})
				}
				b.pass(200 * time.Millisecond)
				all := b.dialled()
				require.LessOrEqual(t, len(all), most)
				for i := 0; k%2 == 1 && i < len(all); i++ {
					all[i].ends(host.ConnectFailed)
				}
			}
		})
	}
}

// takes is the longest processor time that f takes of n times.
func takes(n int, f func()) (longest time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range n {
		start := cputime.Used()
		f()
		longest = max(longest, cputime.Used()-start)
	}
	return longest
}

// While none of a thousand hosts can be reached, a thousand calls that wait for theirs hold
// the worker up neither with each attempt that fails nor with each tick.
func TestManyCallsWaitForManyHostsThatFail(t *testing.T) {
	raced.Skip(t)
	b := newBed(t, numbered, func(o *upstream.Options) { o.MaxConnections, o.MaxPending, o.MaxRequests = 8, 2000, 5000 })
	b.tells(many(0, 1000)...)
	for _, hash := range hashes(1000) {
		b.send("call", nil, upstream.Send{Hash: hash, Hashing: byManyPlaces, Timeout: time.Hour})
	}
	require.Less(t, takes(60, func() {
		if all := b.dialled(); len(all) > 0 {
			all[0].ends(host.ConnectFailed)
		}
		b.pass(50 * time.Millisecond)
	}), 20*time.Millisecond)
}

// All hosts of a large cluster are replaced at once.
func TestManyHostsAreReplaced(t *testing.T) {
	raced.Skip(t)
	b := newBed(t, numbered, nil)
	const n = 4000
	b.tells(many(0, n)...)
	b.send("call", nil, upstream.Send{Hash: 1, Hashing: byManyPlaces})
	b.up()
	b.pass(time.Second)
	from := 0
	require.Less(t, takes(3, func() {
		from += n
		b.tells(many(from, n)...)
		b.pass(100 * time.Millisecond)
	}), 100*time.Millisecond)
	b.up()
	require.Equal(t, tableOf(byManyPlaces, many(from, n)).of(1), b.goesTo(byManyPlaces, 1, ""))
}
