package e2e

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// watched has a cluster's hosts watched, and requests to it tried again.
func watched(cluster string, detection envoytest.M) envoytest.M {
	route := envoytest.Route(cluster, nil)
	for k, v := range (envoytest.M{
		"idempotent": true,
		"retry_policy": envoytest.M{
			"retry_on": "connect-failure,refused,reset,timeout,server-error", "num_retries": 2, "per_try_timeout": "1s",
		},
	}) {
		route["route"].(envoytest.M)[k] = v
	}
	config := envoytest.Dubbo("test", route)
	config["route_config"].(envoytest.M)["clusters"] = []any{envoytest.M{"name": cluster, "outlier_detection": detection}}
	return config
}

// flow keeps asking over some connections, one request at a time on each, until it is
// stopped.
type flow struct {
	stopped     atomic.Bool
	good, other atomic.Int64
	wg          sync.WaitGroup
}

func newFlow(t *testing.T, port, clients int) *flow {
	f := &flow{}
	for range clients {
		c := scripted.Dial(t, port)
		f.wg.Go(func() {
			for id := uint64(1); !f.stopped.Load(); id++ {
				c.Ask(id, dubbotest.Request{})
				if a, err := c.TryRead(); err == nil && a.Status == statusOK {
					f.good.Add(1)
				} else {
					f.other.Add(1)
				}
			}
		})
	}
	t.Cleanup(f.stop)
	return f
}

func (f *flow) stop() {
	f.stopped.Store(true)
	f.wg.Wait()
}

// some waits until n requests more have been answered.
func (f *flow) some(t *testing.T, n int64) {
	t.Helper()
	until := f.good.Load() + n
	require.Eventually(t, func() bool { return f.good.Load() >= until }, patience, tick)
}

// TestABlackHoleIsLeftOut: one of four hosts takes requests and says nothing. What one
// worker has seen both follow, and clients see nothing of it.
func TestABlackHoleIsLeftOut(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		all, at := servers(t, "a", "b", "c", "d")
		e := v.start(t, watched("four", envoytest.M{"base_ejection_time": "60s"}), envoytest.Cluster("four", at...))
		f := newFlow(t, e.Port("dubbo"), 8)
		f.some(t, 400)
		for _, s := range all {
			require.Positive(t, s.Requests())
		}
		require.Zero(t, e.Stat(stats+"outlier_ejections_total"))

		hole := all[1]
		hole.Set(scripted.Never)
		e.WaitStat(stats+"outlier_ejections_total", envoytest.Exactly(1))
		e.WaitStat(stats+"outlier_ejections_active", envoytest.Exactly(1))
		require.Contains(t, e.Log(), "cluster four: host 127.0.0.1:")
		// What was on its way is sent to others, and then nothing comes any more.
		before := int64(-1)
		require.Eventually(t, func() bool {
			last := before
			before = hole.Requests()
			f.some(t, 200)
			return before == last
		}, patience, tick)
		f.some(t, 2000)
		f.stop()
		require.Equal(t, before, hole.Requests())
		require.LessOrEqual(t, f.other.Load()*1000, f.good.Load())
		require.LessOrEqual(t, e.Stat(stats+"request_retry"), int64(20))
		checkCounters(t, e)
	})
}

// TestAnEjectedHostComesBack behind a request that it has answered.
func TestAnEjectedHostComesBack(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		all, at := servers(t, "a", "b", "c", "d")
		e := v.start(t, watched("four", envoytest.M{"base_ejection_time": "1s", "silence": "0.5s"}), envoytest.Cluster("four", at...))
		f := newFlow(t, e.Port("dubbo"), 8)
		f.some(t, 400)
		bad := all[2]
		bad.Set(scripted.Reset)
		e.WaitStat(stats+"outlier_ejections_active", envoytest.Exactly(1))
		require.Eventually(t, func() bool { return e.Stat(stats+"outlier_probe_failures") > 0 }, patience, tick)
		bad.Set(scripted.Answer("c"))
		e.WaitStat(stats+"outlier_ejections_active", envoytest.Exactly(0))
		before := bad.Requests()
		require.Eventually(t, func() bool { return bad.Requests() > before+100 }, patience, tick)
		f.stop()
		require.LessOrEqual(t, f.other.Load()*1000, f.good.Load())
		checkCounters(t, e)
		require.Equal(t, e.Stat(stats+"outlier_probe_failures")+1, e.Stat(stats+"outlier_ejections_total"))
	})
}

// TestACircuitBreakerCountsAllWorkers: so many requests are in flight, over whichever
// workers they come.
func TestACircuitBreakerCountsAllWorkers(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Never)
		config := toOne("one")
		config["route_config"].(envoytest.M)["clusters"] = []any{envoytest.M{
			"name": "*", "circuit_breakers": envoytest.M{"max_requests": 10},
		}}
		e := v.start(t, config, envoytest.Cluster("one", envoytest.At(s.Port)...))
		for range 3 {
			var refused atomic.Int64
			var clients []*scripted.Client
			var wg sync.WaitGroup
			before := s.Requests()
			for id := range uint64(16) {
				c := scripted.Dial(t, e.Port("dubbo"))
				clients = append(clients, c)
				c.Ask(id, dubbotest.Request{})
				wg.Go(func() {
					if a, err := c.TryRead(); err == nil && a.Status != statusOK {
						refused.Add(1)
					}
				})
			}
			require.Eventually(t, func() bool { return refused.Load() == 6 && s.Requests() == before+10 }, patience, tick)
			e.WaitStat(stats+"request_active", envoytest.Exactly(10)) // it is told late
			for _, c := range clients {
				require.NoError(t, c.SetLinger(0)) // by a reset: behind an end of stream its answer would be waited for
				c.Close()
			}
			wg.Wait()
			e.WaitStat(stats+"request_active", envoytest.Exactly(0))
		}
		e.WaitStat(stats+"breaker_max_requests", envoytest.Exactly(18))
	})
}
