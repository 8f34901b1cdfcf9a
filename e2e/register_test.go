package e2e

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// TestAnObjectOfEnvoysPackageServes: the example that registers with Envoy's own Go package is
// loaded, serves, gets another configuration, and goes on, with checks of cgo on.
func TestAnObjectOfEnvoysPackageServes(t *testing.T) {
	t.Parallel()
	one, other := scripted.Serve(t, scripted.Answer("one")), scripted.Serve(t, scripted.Answer("other"))
	o := byConnect.options()
	o.Modules = peers.RegisteredLibrary(t)
	o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(one.Port)...), envoytest.Cluster("other", envoytest.At(other.Port)...)}
	loopback := envoytest.Loopback(envoytest.Socket())
	o.Listeners = []envoytest.Resource{loopback, envoytest.Listener("dubbo", envoytest.Proxy(toOne("one")))}
	e := envoytest.Start(t, o)
	ask := func(want string) {
		var clients sync.WaitGroup
		texts := make([][]string, 8)
		for i := range texts {
			c := scripted.Dial(t, e.Port("dubbo"))
			clients.Go(func() {
				for id := range uint64(50) {
					c.Ask(id, dubbotest.Request{})
					texts[i] = append(texts[i], c.Read().Text())
				}
			})
		}
		clients.Wait()
		for _, got := range texts {
			require.Len(t, got, 50)
			for _, text := range got {
				require.Equal(t, want, text)
			}
		}
	}
	ask("one")
	require.True(t, e.SetListeners(loopback, envoytest.Listener("dubbo", envoytest.Proxy(toOne("other")))))
	early := int64(0) // what workers answer that have not heard of the update yet
	require.True(t, eventually(patience, func() bool {
		early++
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(0, dubbotest.Request{})
		return c.Read().Text() == "other"
	}))
	ask("other")
	e.WaitStat(stats+"response_success", envoytest.Exactly(800+early))
	checkCounters(t, e)
}
