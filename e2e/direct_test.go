package e2e

import (
	"testing"

	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestDubboDirect proves the peers and the table of calls without any proxy
// between them, so that a failure elsewhere is the proxy's.
func TestDubboDirect(t *testing.T) {
	t.Parallel()
	for _, p := range pairings {
		t.Run(p.String(), func(t *testing.T) {
			provider := p.provider.Provider(t, peers.ProviderOptions{Name: "p1"})
			calls.Dubbo(t, p.consumer, p.consumer.Consumer(t, provider.Port, peers.ConsumerOptions{Timeout: calls.Patience}), "p1")
		})
	}
}
