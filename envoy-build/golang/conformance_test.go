package golang

import (
	"testing"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/host/hosttest"
)

// TestConformance: what holds for every host holds for this one.
func TestConformance(t *testing.T) {
	for name, connect := range map[string]bool{"tcp_proxy": false, "connect": true} {
		t.Run(name, func(t *testing.T) {
			hosttest.Run(t, hosttest.Features{HalfClose: !connect, Eager: !connect}, func(t *testing.T, m host.Module) hosttest.Stage {
				return newEnvoy(t, m, connect)
			})
		})
	}
}
