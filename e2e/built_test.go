package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestAStockEnvoyLacksTheGolangFilterAlone: started as a contrib Envoy or Istio's proxy would be,
// one without that filter complains of nothing else, and takes what is Envoy's own.
func TestAStockEnvoyLacksTheGolangFilterAlone(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		if !v.golang {
			t.Skip("it concerns the golang filter")
		}
		o := v.options()
		o.Bin, o.Golang = filepath.Join(peers.Root(), "build", "envoy-"+newest.version, "envoy"), envoytest.Built
		loopback := envoytest.Loopback(envoytest.Socket())
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one")}
		o.Listeners = []envoytest.Resource{loopback, envoytest.Listener("dubbo", envoytest.Proxy(toOne("one")))}
		e := envoytest.Start(t, o)
		e.WaitStat("listener_manager.lds.update_failure", envoytest.Exactly(1))
		complaints := regexp.MustCompile(`(?m)^\[[^]]*\]\[\d+\]\[(?:warning|error)\]\[(?:config|upstream)\].*$`).FindAllString(e.Log(), -1)
		require.Len(t, complaints, 1)
		require.Contains(t, complaints[0], "could not find @type 'type.googleapis.com/envoy.extensions.filters.network.golang.v3alpha.Config'")
		require.True(t, e.SetListeners(loopback))
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", e.Pid()))
		require.NoError(t, err)
		require.Contains(t, string(env), "\x00MELTEMI_PROCESS={")
	})
}
