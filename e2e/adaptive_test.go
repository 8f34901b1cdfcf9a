package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
)

// TestAdaptiveConcurrency: real clients of all protocols are never refused where the
// limit is never reached, and are told so by what is beyond one that is.
func TestAdaptiveConcurrency(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		adaptive := func(params envoytest.M) func(string, envoytest.M) envoytest.M {
			return func(_ string, config envoytest.M) envoytest.M {
				return limited(config, "adaptive_concurrency", "adaptive_concurrency.v1alpha.AdaptiveConcurrency", envoytest.M{"gradient_controller_config": params})
			}
		}
		gauges := func(protocol string) string {
			return "meta_protocol." + protocol + "." + protocol + ".adaptive_concurrency.gradient_controller."
		}
		// Half of the limit is never in use: otherwise it may follow the times of a busy
		// machine, below what these clients have in flight.
		e, clients := fourProtocols(t, v, adaptive(envoytest.M{"min_rtt_calc_params": envoytest.M{"min_concurrency": 40}}))
		for protocol, c := range clients {
			load := refusers[protocol].who
			load.Count, load.Concurrency, load.Summary = 1000, 10, true
			s := c.Load(load)
			require.Equal(t, map[string]int{"s1": 1000}, s.Values, "%s: %v", protocol, s.Errors)
			// It is told when a window ends, which takes a request behind its time.
			require.True(t, eventually(patience, func() bool {
				c.Call(refusers[protocol].who)
				return e.Stat(gauges(protocol)+"concurrency_limit") >= 40
			}), protocol)
			require.Zero(t, e.Stat(gauges(protocol)+"rq_blocked"), protocol)
			checkCountersOf(t, e, "meta_protocol."+protocol+"."+protocol+".")
		}
		e, clients = fourProtocols(t, v, adaptive(envoytest.M{
			"concurrency_limit_params": envoytest.M{"max_concurrency_limit": 1}, "min_rtt_calc_params": envoytest.M{"min_concurrency": 1},
		}))
		for protocol, c := range clients {
			require.Equal(t, "s1", c.Call(refusers[protocol].who).Value, protocol)
			load := refusers[protocol].who
			load.Count, load.Concurrency, load.Summary = 200, 20, true
			s := c.Load(load)
			require.NotZero(t, s.Succeeded(), protocol)
			require.NotZero(t, s.Failed(), protocol)
			for text := range s.Errors {
				require.Contains(t, text, "the concurrency limit is reached", protocol)
			}
			e.WaitStat(gauges(protocol)+"rq_blocked", envoytest.AtLeast(int64(s.Failed())))
			require.Equal(t, "s1", c.Call(refusers[protocol].who).Value, protocol)
		}
	})
}
