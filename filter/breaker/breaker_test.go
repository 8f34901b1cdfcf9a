package breaker_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func message(kvs ...string) *codecs.Metadata {
	m := &codecs.Metadata{}
	for i := 0; i < len(kvs); i += 2 {
		m.Put([]byte(kvs[i]), []byte(kvs[i+1]))
	}
	return m
}

func byKey(change func(p *breaker.KeyPolicy)) *breaker.Policy {
	p := &breaker.Policy{Requests: breaker.Unlimited, Pending: breaker.Unlimited, Connections: breaker.Unlimited}
	k := breaker.KeyPolicy{
		Names: []string{"tenant"}, MaxRequests: breaker.Unlimited, ErrorPercent: 50, MinimumRequests: 4,
		Interval: 10 * time.Second, OpenTime: 5 * time.Second, MaxKeys: 16,
	}
	change(&k)
	p.Keys = []breaker.KeyPolicy{k}
	return p
}

// bed is a cluster with a policy, at a time that tests move.
type bed struct {
	breaker.Cluster
	t    *testing.T
	p    *breaker.Policy
	keys []*breaker.Keys
	now  time.Duration
}

func newBed(t *testing.T, p *breaker.Policy) *bed {
	b := &bed{t: t, p: p, now: time.Hour}
	b.keys = b.Use(p)
	return b
}

func (b *bed) take(md *codecs.Metadata) (*breaker.Taken, string) {
	t := &breaker.Taken{}
	if r, ok := t.Take(&b.Cluster, b.p, b.keys, md, b.now); !ok {
		require.Zero(b.t, *t, "what is refused holds nothing")
		return nil, r.Reason("c")
	}
	return t, ""
}

func (b *bed) must(md *codecs.Metadata) *breaker.Taken {
	b.t.Helper()
	t, why := b.take(md)
	require.Empty(b.t, why)
	return t
}

func (b *bed) refuses(md *codecs.Metadata, want string) {
	b.t.Helper()
	_, why := b.take(md)
	require.Equal(b.t, "circuit breaker of cluster c: "+want, why)
}

// ends has n requests of md end so, and returns how often a breaker has opened.
func (b *bed) ends(n int, md *codecs.Metadata, o breaker.Outcome) (opened int) {
	b.t.Helper()
	for range n {
		opened += int(b.must(md).End(b.now, o))
	}
	return opened
}

func TestSoManyRequests(t *testing.T) {
	b := newBed(t, &breaker.Policy{Requests: 2})
	one, two := b.must(message()), b.must(message())
	b.refuses(message(), "max_requests")
	b.p = &breaker.Policy{Requests: 3} // another limit, the same count
	three := b.must(message())
	b.refuses(message(), "max_requests")
	for _, tk := range []*breaker.Taken{one, two, three} {
		tk.End(b.now, breaker.Success)
		tk.End(b.now, breaker.Success)
	}
	require.Zero(t, b.Requests.Load())
	b.p = &breaker.Policy{Requests: 0}
	b.refuses(message(), "max_requests")
}

// TestAGaugeIsExact, however many take at once.
func TestAGaugeIsExact(t *testing.T) {
	var g breaker.Gauge
	var most atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20_000 {
				if g.Take(5) {
					if n := int64(g.Load()); n > most.Load() {
						most.Store(n)
					}
					g.Free()
				}
			}
		})
	}
	wg.Wait()
	require.Zero(t, g.Load())
	require.LessOrEqual(t, most.Load(), int64(5))
}

func TestSoManyRequestsOfAKey(t *testing.T) {
	b := newBed(t, byKey(func(p *breaker.KeyPolicy) { p.MaxRequests = 1 }))
	a, other, none, empty := message("Tenant", "a"), message("tenant", "b"), message(), message("tenant", "")
	tk := b.must(a)
	b.refuses(message("x", "y", "tenant", "a"), "keys[0]: max_requests")
	for _, md := range []*codecs.Metadata{other, none, empty, message("tenant", strings.Repeat("a", 1000)), message("tenant", strings.Repeat("a", 1001))} {
		b.must(md)
		b.refuses(md, "keys[0]: max_requests")
	}
	tk.End(b.now, breaker.Success)
	b.must(a)
}

func TestSeveralPropertiesAreOneKey(t *testing.T) {
	b := newBed(t, byKey(func(p *breaker.KeyPolicy) { p.Names, p.MaxRequests = []string{"a", "b"}, 1 }))
	for _, md := range []*codecs.Metadata{message("a", "xy", "b", "z"), message("a", "x", "b", "yz"), message("a", "xyz"), message("b", "xyz")} {
		b.must(md)
		b.refuses(md, "keys[0]: max_requests")
	}
}

// TestAllMustLetARequestPass: what the first ones have let pass is given back.
func TestAllMustLetARequestPass(t *testing.T) {
	p := byKey(func(p *breaker.KeyPolicy) { p.MaxRequests = 2 })
	p.Requests = 10
	second := p.Keys[0]
	second.Names, second.MaxRequests = []string{"method"}, 1
	p.Keys = append(p.Keys, second)
	b := newBed(t, p)
	tk := b.must(message("tenant", "a", "method", "m"))
	for range 5 {
		b.refuses(message("tenant", "a", "method", "m"), "keys[1]: max_requests")
	}
	require.Equal(t, 1, b.Requests.Load())
	b.must(message("tenant", "a", "method", "n")).End(b.now, breaker.Success)
	tk.End(b.now, breaker.Success)
	require.Zero(t, b.Requests.Load())
}

// TestErrorsOpen a key's breaker, no other's, and a success behind open_time closes it.
func TestErrorsOpen(t *testing.T) {
	b := newBed(t, byKey(func(*breaker.KeyPolicy) {}))
	a, other := message("tenant", "a"), message("tenant", "b")
	require.Zero(t, b.ends(3, a, breaker.Failure), "too few")
	b.now += 10 * time.Second
	require.Zero(t, b.ends(3, a, breaker.Failure), "another window")
	require.Zero(t, b.ends(5, a, breaker.Unknown), "they say nothing")
	late := b.must(a)
	require.Equal(t, 1, b.ends(1, a, breaker.Failure))
	b.refuses(a, "keys[0]: open")
	b.must(other)
	b.now += 5*time.Second - 1
	late.End(b.now, breaker.Success) // says nothing any more
	b.refuses(a, "keys[0]: open")
	b.now++
	probe := b.must(a)
	b.refuses(a, "keys[0]: open")
	b.now += time.Hour
	b.refuses(a, "keys[0]: open")
	require.EqualValues(t, 1, probe.End(b.now, breaker.Failure))
	b.refuses(a, "keys[0]: open")
	b.now += 5 * time.Second
	b.must(a).End(b.now, breaker.Success)
	b.must(a)
	b.must(a)
	require.Zero(t, b.ends(3, a, breaker.Failure), "it begins anew")
}

// TestTheProbesClientLeaves: then another one is let through.
func TestTheProbesClientLeaves(t *testing.T) {
	b := newBed(t, byKey(func(*breaker.KeyPolicy) {}))
	a := message("tenant", "a")
	b.ends(4, a, breaker.Failure)
	b.now += 5 * time.Second
	for range 3 {
		probe := b.must(a)
		b.refuses(a, "keys[0]: open")
		probe.End(b.now, breaker.Unknown)
	}
	b.must(a).End(b.now, breaker.Success)
	b.ends(2, a, breaker.Success)
}

func TestSlowAnswersOpen(t *testing.T) {
	b := newBed(t, byKey(func(p *breaker.KeyPolicy) {
		p.ErrorPercent, p.SlowPercent, p.SlowThreshold, p.MinimumRequests = 0, 75, time.Second, 4
	}))
	a := message("tenant", "a")
	takes := func(d time.Duration, o breaker.Outcome) uint8 {
		tk := b.must(a)
		b.now += d
		return tk.End(b.now, o)
	}
	require.Zero(t, takes(time.Second, breaker.Success))
	require.Zero(t, takes(time.Second+1, breaker.Success))
	require.Zero(t, takes(time.Second+1, breaker.Failure))
	require.EqualValues(t, 1, takes(time.Second+1, breaker.Failure))
	b.refuses(a, "keys[0]: open")
	b.now += 5 * time.Second
	require.EqualValues(t, 1, takes(2*time.Second, breaker.Success), "the probe is slow")
	b.now += 5 * time.Second
	require.Zero(t, takes(time.Millisecond, breaker.Failure), "errors do not count")
	b.must(a)
}

// TestPoliciesShareKeys: a change of limits forgets nothing; of other properties the
// keys are others, and what was taken is given back where it was.
func TestPoliciesShareKeys(t *testing.T) {
	b := newBed(t, byKey(func(p *breaker.KeyPolicy) { p.MaxRequests = 2 }))
	a := message("tenant", "a", "method", "m")
	tks := []*breaker.Taken{b.must(a), b.must(a)}
	b.refuses(a, "keys[0]: max_requests")
	change := func(p *breaker.Policy) {
		old := b.keys
		b.p, b.keys = p, b.Use(p)
		b.Leave(old)
	}
	change(byKey(func(p *breaker.KeyPolicy) { p.Names, p.MaxRequests = []string{"TENANT"}, 3 }))
	tks = append(tks, b.must(a))
	b.refuses(a, "keys[0]: max_requests")
	change(byKey(func(p *breaker.KeyPolicy) { p.Names, p.MaxRequests = []string{"method"}, 1 }))
	tks = append(tks, b.must(a))
	b.refuses(a, "keys[0]: max_requests")
	for _, tk := range tks {
		tk.End(b.now, breaker.Failure)
	}
	b.must(a).End(b.now, breaker.Success)
}

// TestAMillionKeys cost as much memory as max_keys: those that are idle are forgotten,
// and if none is, all others share one breaker.
func TestAMillionKeys(t *testing.T) {
	const keys = 4096
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprint("busy ", busy), func(t *testing.T) {
			b := newBed(t, byKey(func(p *breaker.KeyPolicy) { p.MaxRequests, p.MaxKeys = 10, keys }))
			before := heap()
			var tks []*breaker.Taken
			refused := 0
			md := message("tenant", "")
			for i := range map[bool]int{false: 1_000_000, true: 100_000}[busy] {
				md.Set("tenant", strconv.Itoa(i))
				tk, why := b.take(md)
				switch {
				case why != "":
					refused++
				case busy:
					tks = append(tks, tk)
				default:
					tk.End(b.now, breaker.Success)
				}
				if i%1000 == 0 {
					md = message("tenant", "")
				}
			}
			cost := heap() - before - int64(len(tks))*int64(300)
			require.Less(t, cost, int64(keys*512))
			if !busy {
				require.Zero(t, refused)
				return
			}
			require.InDelta(t, keys+10, len(tks), 16, "max_keys, and as many as one breaker lets pass")
			for _, tk := range tks {
				tk.End(b.now, breaker.Success)
			}
			require.Zero(t, b.ends(100, message("tenant", "new"), breaker.Success), "there is room again")
		})
	}
}

// TestAnOpenBreakerIsNotForgotten for others that come by.
func TestAnOpenBreakerIsNotForgotten(t *testing.T) {
	b := newBed(t, byKey(func(*breaker.KeyPolicy) {}))
	a := message("tenant", "a")
	b.ends(4, a, breaker.Failure)
	for i := range 1000 {
		b.ends(1, message("tenant", strconv.Itoa(i)), breaker.Success)
	}
	b.refuses(a, "keys[0]: open")
}

// TestTokensAreConserved, whatever workers do at once: in the end nothing is taken, and
// each key lets as many pass as it may.
func TestTokensAreConserved(t *testing.T) {
	p := byKey(func(p *breaker.KeyPolicy) { p.MaxRequests, p.MaxKeys, p.OpenTime = 3, 8, 50 })
	p.Requests = 20
	b := newBed(t, p)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			var tks []*breaker.Taken
			for i := range time.Duration(50_000) {
				tk := &breaker.Taken{}
				if _, ok := tk.Take(&b.Cluster, b.p, b.keys, message("tenant", strconv.Itoa(rng.IntN(12))), i); ok {
					tks = append(tks, tk)
				}
				if n := len(tks); n > 0 && rng.IntN(2) == 0 {
					j := rng.IntN(n)
					tks[j].End(i, breaker.Outcome(rng.IntN(3)))
					tks[j], tks = tks[n-1], tks[:n-1]
				}
			}
			for _, tk := range tks {
				tk.End(time.Hour, breaker.Unknown)
			}
		})
	}
	wg.Wait()
	require.Zero(t, b.Requests.Load())
	b.now = 2 * time.Hour
	for i := range 12 {
		md := message("tenant", strconv.Itoa(i))
		b.ends(1, md, breaker.Success)
		tks := []*breaker.Taken{b.must(md), b.must(md), b.must(md)}
		b.refuses(md, "keys[0]: max_requests")
		for _, tk := range tks {
			tk.End(b.now, breaker.Unknown)
		}
	}
}

func TestTakingAllocatesNothing(t *testing.T) {
	p := byKey(func(p *breaker.KeyPolicy) { p.MaxRequests = 10 })
	p.Requests = 10
	b := newBed(t, p)
	md, tk := message("tenant", "a"), &breaker.Taken{}
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		if _, ok := tk.Take(&b.Cluster, b.p, b.keys, md, b.now); !ok {
			t.Error("refused")
		}
		tk.End(b.now, breaker.Success)
	}))
}

func BenchmarkTake(b *testing.B) {
	p := byKey(func(p *breaker.KeyPolicy) { p.MaxRequests, p.MaxKeys = 10, 4096 })
	p.Requests = 10
	var c breaker.Cluster
	keys := c.Use(p)
	md, tk := message("tenant", "a"), &breaker.Taken{}
	b.ReportAllocs()
	for b.Loop() {
		tk.Take(&c, p, keys, md, time.Second)
		tk.End(time.Second, breaker.Success)
	}
}
