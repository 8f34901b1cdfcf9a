package istio

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// maxAge is the age of connections to servers that descriptions set.
const maxAge = 3 * time.Second

// TestEndpointsComeAndGoUnderLoad: no call fails, and after the maximum age of a
// connection a removed endpoint gets none, also where its number stays.
func TestEndpointsComeAndGoUnderLoad(t *testing.T) {
	s := openShop(t, "e1", "e2", "e3")
	s.route("")
	busy := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	calm := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	pending := load(busy, 25*time.Second)
	for _, names := range [][]string{{"e1"}, {"e1", "e2"}, {"e2"}, {"e3"}, {"e1", "e3"}, {"e2", "e3"}} {
		var pods []*mesh.Pod
		for _, name := range names {
			pods = append(pods, s.servers[name])
		}
		s.endpoints(pods...)
		time.Sleep(maxAge + time.Second) // after which a removed endpoint must get no call
		got := answers(t, calm, 400, names...)
		require.Len(t, got, len(names))
	}
	outcome := pending.Summary()
	require.Empty(t, outcome.Errors)
	t.Logf("%d calls while endpoints changed: %v", outcome.Calls, outcome.Values)
}
