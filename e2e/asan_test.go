package e2e

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// TestTheSharedObjectUnderTheAddressSanitizer: with load of all kinds, faults, and a listener that
// is replaced meanwhile, the object asks nothing of a connection that its host has freed, and frees
// nothing twice. The host's accesses are checked, and what the object has the C library do.
func TestTheSharedObjectUnderTheAddressSanitizer(t *testing.T) {
	t.Parallel()
	o := byConnect.options()
	if o.Golang != envoytest.Imitated {
		t.Skip("this Envoy is built as it is")
	}
	o.Sanitized = true
	servers := []*scripted.Server{scripted.Serve(t, echo), scripted.Serve(t, echo)}
	at := envoytest.At(servers[0].Port, servers[1].Port)
	loopback := envoytest.Loopback(envoytest.Socket())
	listener := func(generation int) envoytest.Resource {
		c := envoytest.Dubbo("test")
		c["route_config"], c["request_timeout"] = soakTable("test", generation), "1s"
		return envoytest.Listener("dubbo", envoytest.Proxy(c))
	}
	o.Clusters = []envoytest.Resource{envoytest.Cluster("four", at...), envoytest.Cluster("pair", at...)}
	o.Listeners = []envoytest.Resource{loopback, listener(0)}
	e := envoytest.Start(t, o)
	port := e.Port("dubbo")
	var sums tally
	var load sync.WaitGroup
	for client, k := range kinds {
		load.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(client), 3))
			for n := range 4 {
				session(t, k, rng, fmt.Sprintf("%d-%d", client, n), port, &sums)
			}
		})
	}
	for generation, fault := range faults {
		s := servers[generation%2]
		s.Set(fault)
		require.True(t, e.SetListeners(loopback, listener(generation+1)))
		s.Set(echo)
		s.Disconnect()
	}
	load.Wait()
	t.Log(&sums)
	require.Positive(t, sums.answered.Load())
	e.Terminate()
	e.WaitExit()
	require.NotContains(t, e.Log(), "AddressSanitizer")
}
