package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestDubboThroughTCPProxy proves the harness: Envoy's own filter between the
// peers.
func TestDubboThroughTCPProxy(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		p := pairings[0]
		provider := p.provider.Provider(t, peers.ProviderOptions{Name: "p1"})
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("providers", envoytest.At(provider.Port)...)}
		o.Listeners = []envoytest.Resource{envoytest.Listener("dubbo", envoytest.TCPProxy("providers"))}
		e := envoytest.Start(t, o)
		checkCalls(t, p, p.consumer.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{}), "p1")
	})
}

// TestDubboPairings makes calls of every kind between real clients and servers.
func TestDubboPairings(t *testing.T) {
	everywhere(t, func(t *testing.T, v variant) {
		for _, p := range pairings {
			t.Run(p.String(), func(t *testing.T) {
				provider := p.provider.Provider(t, peers.ProviderOptions{Name: "p1"})
				e := v.start(t, toOne("providers"), envoytest.Cluster("providers", envoytest.At(provider.Port)...))
				checkCalls(t, p, p.consumer.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{}), "p1")
				checkCounters(t, e)
			})
		}
	})
}

// checkCounters proves that the counters of the listener add up once nothing is
// in flight.
func checkCounters(t *testing.T, e *envoytest.Envoy) {
	t.Helper()
	e.WaitStat(stats+"request_active", envoytest.Exactly(0))
	s := e.Stats("^meta_protocol[.]")
	get := func(name string) int64 { return s[stats+name] }
	require.NotZero(t, get("request"), "no counters: %v", s)
	require.Equal(t, get("request"), get("request_twoway")+get("request_oneway"), "%v", s)
	require.Equal(t, get("request"), get("request_decoding_success"), "%v", s)
	// Every two-way request ended in exactly one way.
	require.Equal(t, get("request_twoway"), get("response")+get("local_response_business_exception")+get("request_abandoned"), "%v", s)
	require.Equal(t, get("response"), get("response_success")+get("response_error")+get("response_business_exception"), "%v", s)
	require.Zero(t, get("filter_panic"))
}
