package istio

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// rule applies a DestinationRule for the service.
func (s *shop) rule(spec string) {
	s.t.Helper()
	s.Apply("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: greeter}\nspec:\n  host: greeter\n" + spec)
}

// cluster is Istio's name of the cluster of a subset.
func (s *shop) cluster(subset string) string {
	return fmt.Sprintf("outbound|%d|%s|%s", port, subset, s.host())
}

// clusters waits until the dump of the client's clusters satisfies a condition.
func (s *shop) clusters(what string, ok func(dump string) bool) {
	s.t.Helper()
	s.Eventually(what, func() bool { return ok(s.client.Admin("/config_dump?resource=dynamic_active_clusters")) })
}

func TestASubsetIsAddedAndRemoved(t *testing.T) {
	s := openShop(t, "v1", "v2")
	onlyV1 := "  subsets: [{name: v1, labels: {version: v1}}]\n"
	s.rule(onlyV1)
	s.clusters("no subset v2", func(dump string) bool { return !strings.Contains(dump, s.cluster("v2")) })
	s.route("routes: [{route: {subset: v1}}]")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	pending := load(s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 6*time.Second)

	s.rule("  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]\n")
	s.clusters("subset v2", func(dump string) bool { return strings.Contains(dump, s.cluster("v2")) })
	s.route("routes: [{route: {subset: v2}}]")
	answers(t, c, 200, "v2")
	s.route("routes: [{route: {subset: v1}}]")
	s.rule(onlyV1)
	s.clusters("no subset v2", func(dump string) bool { return !strings.Contains(dump, s.cluster("v2")) })
	answers(t, c, 200, "v1")
	require.Empty(t, pending.Summary().Errors)

	// A route to what is not there is an error at once.
	s.route("routes: [{route: {subset: v2}}]")
	a := c.Call(who)
	require.NotEmpty(t, a.Error)
	require.Less(t, a.LatencyUS, int64(1_000_000), a.Error)
}

// TestLoadBalancersTakeEffect: calls of one connection go to the hosts that the
// cluster's load balancer picks.
func TestLoadBalancersTakeEffect(t *testing.T) {
	s := openShop(t, "e1", "e2")
	s.route("")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{Connections: 1})
	for _, policy := range []string{"ROUND_ROBIN", "RANDOM", "LEAST_REQUEST"} {
		s.rule(fmt.Sprintf("  trafficPolicy: {loadBalancer: {simple: %s}}\n", policy))
		s.clusters(policy, func(dump string) bool {
			i := strings.Index(dump, s.cluster(""))
			return i >= 0 && (policy == "ROUND_ROBIN" || strings.Contains(dump[i:], `"lb_policy": "`+policy+`"`))
		})
		got := answers(t, c, 2000, "e1", "e2")
		require.InDelta(t, 1000, got["e1"], 200, policy)
	}
}
