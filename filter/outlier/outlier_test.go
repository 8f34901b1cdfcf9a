package outlier_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/outlier"
)

func policy() *outlier.Policy {
	return &outlier.Policy{
		ConsecutiveFailures: 5, Interval: 10 * time.Second,
		BaseEjectionTime: 30 * time.Second, MaxEjectionTime: 100 * time.Second, MaxEjectionPercent: 10,
	}
}

// cluster has n hosts in use, at a time that tests move.
type cluster struct {
	outlier.Hosts
	h   []*outlier.Host
	now time.Duration
}

func newCluster(n int) *cluster {
	c := &cluster{now: time.Hour}
	c.Resize(n)
	for i := range n {
		c.h = append(c.h, c.Use(fmt.Sprint("h", i), c.now))
	}
	return c
}

// fails has a host fail n times, and returns what the last one has led to.
func (c *cluster) fails(i, n int, p *outlier.Policy) (e outlier.Ejection) {
	for range n {
		e = c.h[i].Failed(p, c.now)
	}
	return e
}

// outs are the places of the hosts that are left out.
func (c *cluster) outs() (outs []int) {
	for i, h := range c.h {
		if h.Out() {
			outs = append(outs, i)
		}
	}
	return outs
}

// probes tries host i, and reports how that went: by ok.
func (c *cluster) probes(t *testing.T, i int, ok bool, p *outlier.Policy) (e outlier.Ejection) {
	t.Helper()
	pr, due := c.h[i].Probe(c.now)
	require.True(t, due)
	if ok {
		pr.Succeeded(c.now)
	} else {
		e = pr.Failed(p, c.now)
	}
	require.False(t, pr.Held())
	return e
}

func TestFailuresInARowEject(t *testing.T) {
	c, p := newCluster(4), policy()
	c.fails(1, 4, p)
	c.h[1].Succeeded(p, c.now)
	require.Equal(t, outlier.Ejection{}, c.fails(1, 4, p))
	require.Empty(t, c.outs())
	v := c.Version()
	e := c.fails(1, 1, p)
	require.Equal(t, outlier.Ejection{Reason: outlier.Consecutive, For: 30 * time.Second}, e)
	require.Equal(t, []int{1}, c.outs())
	require.NotEqual(t, v, c.Version())
	number, ok := c.h[1].Adopt()
	require.True(t, ok)
	require.True(t, c.h[1].Ejected(number))
	_, again := c.h[1].Adopt()
	require.False(t, again)
	v = c.Version()
	c.h[1].Disown(number)
	require.NotEqual(t, v, c.Version())
	other, ok := c.h[1].Adopt()
	require.True(t, ok)
	require.Equal(t, number, other)
	require.Equal(t, outlier.Ejection{}, c.fails(1, 10, p), "what is still under way says nothing more")
	c.h[1].Succeeded(p, c.now)
	require.Equal(t, []int{1}, c.outs(), "an answer to an earlier request does not bring it back")
}

// TestAShareOfFailuresEjects only with enough requests, within the window.
func TestAShareOfFailuresEjects(t *testing.T) {
	p := policy()
	p.FailurePercent, p.RequestVolume = 60, 50
	mix := func(c *cluster, ok, bad int) (e outlier.Ejection) {
		for range ok {
			c.h[0].Succeeded(p, c.now)
		}
		for i := range bad {
			if e = c.h[0].Failed(p, c.now); e.Reason != outlier.None {
				return e
			}
			if i%3 == 2 { // so that it is not by failures in a row
				c.h[0].Succeeded(p, c.now)
			}
		}
		return e
	}
	c := newCluster(4)
	require.Equal(t, outlier.None, mix(c, 0, 36).Reason, "48 requests")
	require.Equal(t, outlier.Percentage, mix(c, 0, 3).Reason)
	require.Equal(t, []int{0}, c.outs())

	c = newCluster(4)
	require.Equal(t, outlier.None, mix(c, 0, 36).Reason)
	c.now += p.Interval
	require.Equal(t, outlier.None, mix(c, 0, 36).Reason, "a window of its own")
	require.Equal(t, outlier.None, mix(newCluster(4), 30, 40).Reason, "the share is too small")
}

func TestSilenceEjects(t *testing.T) {
	t.Run("two timeouts", func(t *testing.T) {
		c, p := newCluster(4), policy()
		sent := c.now
		c.now += time.Second
		require.Equal(t, outlier.None, c.h[0].TimedOut(p, sent, c.now).Reason)
		require.Equal(t, outlier.Silent, c.h[0].TimedOut(p, sent+1, c.now).Reason)
		require.Equal(t, []int{0}, c.outs())
	})
	t.Run("a host that talks is not silent", func(t *testing.T) {
		c, p := newCluster(4), policy()
		for range 4 {
			sent := c.now
			c.now += time.Second
			c.h[0].Heard(c.now - time.Millisecond)
			require.Equal(t, outlier.None, c.h[0].TimedOut(p, sent, c.now).Reason)
		}
		sent := c.now
		c.now += time.Second
		c.h[0].Succeeded(p, c.now)
		require.Equal(t, outlier.None, c.h[0].TimedOut(p, sent, c.now).Reason, "the first")
		c.h[0].Heard(c.now)
		c.now += time.Second
		require.Equal(t, outlier.None, c.h[0].TimedOut(p, c.now-time.Second/2, c.now).Reason, "the first again")
	})
	t.Run("a time of its own", func(t *testing.T) {
		c, p := newCluster(4), policy()
		p.Silence = 500 * time.Millisecond
		sent := c.now
		c.now += 499 * time.Millisecond
		require.Equal(t, outlier.None, c.h[0].Waiting(p, sent, c.now).Reason)
		c.now += time.Millisecond
		require.Equal(t, outlier.Silent, c.h[0].Waiting(p, sent, c.now).Reason)
		require.Equal(t, outlier.None, c.h[0].Waiting(p, sent, c.now).Reason, "once")

		c = newCluster(4) // timeouts that are shorter add up
		for i := range 3 {
			sent := c.now
			c.now += 200 * time.Millisecond
			want := outlier.None
			if i == 2 {
				want = outlier.Silent
			}
			require.Equal(t, want, c.h[0].TimedOut(p, sent, c.now).Reason)
			c.now += time.Second // in which nothing is asked
		}

		c = newCluster(4) // also if nobody waits so long, as there is a second attempt
		for i := range 5 {
			sent := c.now
			c.now += 100 * time.Millisecond
			want := outlier.None
			if i == 4 {
				want = outlier.Silent
			}
			require.Equal(t, want, c.h[0].Abandoned(p, sent, c.now).Reason)
			require.Equal(t, outlier.None, c.h[0].Abandoned(p, sent+1, c.now).Reason, "the same time")
		}
	})
}

// TestNotTooManyAreEjected: one in any case, never the last.
func TestNotTooManyAreEjected(t *testing.T) {
	for _, tc := range []struct{ hosts, percent, out int }{
		{1, 100, 0}, {2, 10, 1}, {2, 100, 1}, {3, 0, 1}, {3, 10, 1}, {3, 66, 1}, {3, 67, 2}, {3, 100, 2}, {10, 10, 1}, {20, 10, 2}, {20, 100, 19},
	} {
		t.Run(fmt.Sprint(tc), func(t *testing.T) {
			c, p := newCluster(tc.hosts), policy()
			p.MaxEjectionPercent = tc.percent
			for i := range tc.hosts - 1 { // one works
				e := c.fails(i, 5, p)
				require.Equal(t, i >= tc.out, e.Withheld)
				require.NotEqual(t, outlier.None, e.Reason)
			}
			require.Len(t, c.outs(), tc.out)
		})
	}
}

// TestIfAllAreBadNoneIsLeftOut, until one of them works.
func TestIfAllAreBadNoneIsLeftOut(t *testing.T) {
	c, p := newCluster(3), policy()
	c.fails(0, 5, p)
	c.fails(1, 5, p)
	require.Equal(t, []int{0}, c.outs())
	v := c.Version()
	c.fails(2, 5, p)
	require.Empty(t, c.outs())
	require.NotEqual(t, v, c.Version())
	c.h[2].Succeeded(p, c.now)
	require.Equal(t, []int{0}, c.outs())
	c.fails(2, 5, p)
	require.Empty(t, c.outs())
	c.h[0].Succeeded(p, c.now) // as it is used, it may show that it works
	require.False(t, c.h[0].Due(c.now+time.Hour))
	require.Empty(t, c.outs())
	require.False(t, c.fails(1, 5, p).Withheld, "there is room again")
	require.Equal(t, []int{1}, c.outs())
}

// TestAnEjectionEndsByAProbe: there is one at a time, and the host is back when it has
// succeeded. Each further ejection takes longer.
func TestAnEjectionEndsByAProbe(t *testing.T) {
	c, p := newCluster(4), policy()
	e := c.fails(0, 5, p)
	number, _ := c.h[0].Adopt()
	_, ok := c.h[0].Probe(c.now + e.For - 1)
	require.False(t, ok, "not yet")
	for _, want := range []int{60, 90, 100, 100} {
		c.now += e.For
		require.True(t, c.h[0].Due(c.now))
		e = c.probes(t, 0, false, p)
		require.Equal(t, outlier.Ejection{Reason: outlier.ProbeFailed, For: time.Duration(want) * time.Second}, e)
		require.True(t, c.h[0].Ejected(number), "it is the same ejection")
		require.Equal(t, []int{0}, c.outs())
	}
	c.now += e.For
	pr, ok := c.h[0].Probe(c.now)
	require.True(t, ok)
	_, again := c.h[0].Probe(c.now)
	require.False(t, again)
	require.Equal(t, []int{0}, c.outs(), "nobody else uses it meanwhile")
	pr.Free() // its client has left
	pr.Free()
	require.Equal(t, []int{0}, c.outs())
	c.probes(t, 0, true, p)
	require.Empty(t, c.outs())
	require.False(t, c.h[0].Ejected(number))

	c.now += 3 * p.Interval // of five ejections it has made up for three
	require.Equal(t, 90*time.Second, c.fails(0, 5, p).For)
	c.now += 90 * time.Second
	c.probes(t, 0, true, p)
	c.now += time.Hour
	require.Equal(t, 30*time.Second, c.fails(0, 5, p).For)
}

// TestAnOldProbeSaysNothing of a host that has come back without it.
func TestAnOldProbeSaysNothing(t *testing.T) {
	c, p := newCluster(2), policy()
	c.now += c.fails(0, 5, p).For
	old, ok := c.h[0].Probe(c.now)
	require.True(t, ok)
	c.fails(1, 5, p) // all are bad
	c.h[0].Succeeded(p, c.now)
	c.h[1].Succeeded(p, c.now)
	c.now += c.fails(0, 5, p).For
	require.Equal(t, []int{0}, c.outs())
	pr, ok := c.h[0].Probe(c.now)
	require.True(t, ok)
	old.Succeeded(c.now)
	require.Equal(t, []int{0}, c.outs())
	_, ok = c.h[0].Probe(c.now)
	require.False(t, ok, "the new one is not freed by it")
	pr.Succeeded(c.now)
	require.Empty(t, c.outs())
}

// TestHostsThatHaveLeftAreForgotten, and do not count as ejected for ever.
func TestHostsThatHaveLeftAreForgotten(t *testing.T) {
	c, p := newCluster(3), policy()
	e := c.fails(0, 5, p)
	old := c.h[0]
	number, _ := old.Adopt()
	old.Leave(c.now)
	require.True(t, c.fails(1, 5, p).Withheld)
	c.now += e.For + p.BaseEjectionTime
	require.Equal(t, outlier.Consecutive, c.fails(1, 5, p).Reason)
	require.Equal(t, []int{1}, c.outs())
	require.False(t, old.Ejected(number))
	require.Equal(t, outlier.Ejection{}, c.fails(0, 50, p), "nobody uses it")

	c = newCluster(2)
	c.fails(0, 5, p)
	c.h[1].Leave(c.now)
	c.Resize(1)
	require.Empty(t, c.outs(), "it is the last one")
}

// TestFailuresOutliveConnections: each may end the only one that there is, while those to
// other hosts come and go.
func TestFailuresOutliveConnections(t *testing.T) {
	for what, p := range map[string]*outlier.Policy{
		"in a row": {ConsecutiveFailures: 5}, "a share": {ConsecutiveFailures: 100, FailurePercent: 50, RequestVolume: 5, Interval: time.Hour},
	} {
		t.Run(what, func(t *testing.T) {
			p.BaseEjectionTime, p.MaxEjectionTime, p.MaxEjectionPercent = 30*time.Second, 100*time.Second, 10
			c := newCluster(4)
			var e outlier.Ejection
			for range 5 {
				require.Equal(t, outlier.Ejection{}, e)
				c.now += 20 * time.Second
				h := c.Use("flapping", c.now)
				e = h.Failed(p, c.now)
				h.Leave(c.now)
				c.Use("another", c.now).Leave(c.now)
				c.Sweep(c.now)
			}
			require.NotEqual(t, outlier.None, e.Reason)
			c.now += 10 * time.Minute
			c.Sweep(c.now) // as it has left
			h := c.Use("flapping", c.now)
			require.False(t, h.Out())
			require.Equal(t, outlier.None, h.Failed(p, c.now).Reason)
		})
	}
}

// TestWorkersAgree: whatever they see at once, the share is kept, a host comes back by
// one probe, and in the end nothing is left.
func TestWorkersAgree(t *testing.T) {
	c, p := newCluster(5), policy()
	p.MaxEjectionPercent, p.BaseEjectionTime, p.MaxEjectionTime = 40, 1, 3
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for i := range time.Duration(20_000) {
				h := c.h[rng.IntN(5)]
				h.Heard(i)
				switch rng.IntN(4) {
				case 0:
					h.Succeeded(p, i)
				case 1:
					h.TimedOut(p, i-1, i)
				case 2:
					h.Failed(p, i)
				case 3:
					if pr, ok := h.Probe(i); ok {
						switch rng.IntN(3) {
						case 0:
							pr.Succeeded(i)
						case 1:
							pr.Failed(p, i)
						}
						pr.Free()
					}
				}
			}
		})
	}
	wg.Wait()
	for _, h := range c.h {
		if pr, ok := h.Probe(time.Hour); ok {
			pr.Succeeded(time.Hour)
		}
	}
	require.Empty(t, c.outs())
	for i := range c.h {
		c.h[i].Succeeded(p, c.now)
	}
	c.fails(0, 5, p)
	c.fails(1, 5, p)
	require.Equal(t, []int{0, 1}, c.outs())
}
