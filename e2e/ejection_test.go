package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// TestAnUnhealthyHostIsLeft: the connections to it are given up although they
// are open and it answers.
func TestAnUnhealthyHostIsLeft(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		good := scripted.Serve(t, scripted.Answer("good"))
		bad := scripted.Serve(t, scripted.Answer("bad"))
		health, failing := scripted.Serve(t, scripted.Never), scripted.Serve(t, scripted.Never)
		cluster := envoytest.Cluster("two",
			envoytest.Endpoint{Port: good.Port, HealthPort: health.Port},
			envoytest.Endpoint{Port: bad.Port, HealthPort: failing.Port},
		).With(envoytest.M{
			"close_connections_on_host_health_failure": true,
			"health_checks": []any{envoytest.M{
				"timeout": "0.2s", "interval": "0.1s", "no_traffic_interval": "0.1s", "unhealthy_threshold": 1, "healthy_threshold": 1,
				"tcp_health_check": envoytest.M{},
			}},
		})
		e := v.start(t, toOne("two"), cluster)
		c := scripted.Dial(t, e.Port("dubbo"))
		require.Eventually(t, func() bool { by := ask(t, c, 100); return by["good"] > 0 && by["bad"] > 0 }, patience, tick)

		failing.Close()
		e.WaitStat("cluster.two.membership_healthy", envoytest.Exactly(1))
		// Requests that are in flight may be lost with their connection.
		deadline := time.Now().Add(5 * time.Second)
		for id := uint64(1000); ; id++ {
			c.Ask(id, dubbotest.Request{})
			if a := c.Read(); a.Text() == "bad" {
				require.True(t, time.Now().Before(deadline), "still asked a second after it was found out")
			} else if time.Now().After(deadline) {
				break
			}
		}
		require.Equal(t, map[string]int{"good": 500}, ask(t, c, 500))
		checkCounters(t, e)
	})
}
