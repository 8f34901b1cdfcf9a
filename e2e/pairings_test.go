package e2e

import (
	"fmt"
	"testing"

	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// pairing is who calls whom.
type pairing struct{ consumer, provider peers.Library }

func (p pairing) String() string { return fmt.Sprintf("%s to %s", p.consumer, p.provider) }

var pairings = []pairing{
	{peers.DubboGo, peers.DubboGo},
	{peers.DubboGo, peers.Java},
	{peers.Java, peers.DubboGo},
	{peers.Java, peers.Java},
}

// TestDubboThroughTCPProxy proves the harness: Envoy's own filter between the
// peers.
func TestDubboThroughTCPProxy(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		p := pairings[0]
		provider := p.provider.Provider(t, peers.ProviderOptions{Name: "p1"})
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("providers", envoytest.At(provider.Port)...)}
		o.Listeners = []envoytest.Resource{envoytest.Listener("dubbo", envoytest.TCPProxy("providers"))}
		e := envoytest.Start(t, o)
		calls.Dubbo(t, p.consumer, p.consumer.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{Timeout: calls.Patience}), "p1")
	})
}

// TestDubboPairings makes calls of every kind between real clients and servers.
func TestDubboPairings(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		for _, p := range pairings {
			t.Run(p.String(), func(t *testing.T) {
				provider := p.provider.Provider(t, peers.ProviderOptions{Name: "p1"})
				e := v.start(t, toOne("providers"), envoytest.Cluster("providers", envoytest.At(provider.Port)...))
				calls.Dubbo(t, p.consumer, p.consumer.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{Timeout: calls.Patience}), "p1")
				checkCounters(t, e)
			})
		}
	})
}

// checkCounters proves that the counters of the listener add up once nothing is
// in flight. Workers report them a moment after the answer has left.
func checkCounters(t *testing.T, e *envoytest.Envoy) {
	t.Helper()
	checkCountersOf(t, e, stats)
}

// checkCountersOf is checkCounters of another listener.
func checkCountersOf(t *testing.T, e *envoytest.Envoy, stats string) {
	t.Helper()
	var s map[string]int64
	get := func(name string) int64 { return s[stats+name] }
	sums := []struct {
		what string
		ok   func() bool
	}{
		{"something was counted", func() bool { return get("request") > 0 }},
		{"nothing is in flight", func() bool { return get("request_active") == 0 }},
		{"request is the sum of its kinds", func() bool {
			return get("request") == get("request_twoway")+get("request_oneway")+get("request_stream")
		}},
		{"each request ended in exactly one way", func() bool {
			ends := get("response") + get("local_response_business_exception") + get("local_response_error") +
				get("request_abandoned") + get("oneway_presumed") - get("oneway_error_told")
			return ends == get("request_twoway")+get("request_stream")
		}},
		{"no stream is open", func() bool { return get("stream_active") == 0 }},
		{"response is the sum of its kinds", func() bool {
			return get("response") == get("response_success")+get("response_error")+get("response_business_exception")
		}},
		{"no filter panicked", func() bool { return get("filter_panic") == 0 }},
		{"nothing else panicked", func() bool { return get("connection_panic") == 0 }},
	}
	wrong := ""
	if !eventually(patience/4, func() bool {
		s = e.Stats("^meta_protocol[.]")
		wrong = ""
		for _, sum := range sums {
			if !sum.ok() {
				wrong = sum.what
			}
		}
		return wrong == ""
	}) {
		for name, v := range s {
			if v != 0 {
				t.Logf("%s: %d", name, v)
			}
		}
		t.Fatalf("the counters do not add up: not so that %s", wrong)
	}
}
