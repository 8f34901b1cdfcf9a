package istio

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
)

// TestCallsGoToTheEndpointsOfTheirKeys: with a loadBalancer in the service's description
// its cluster tells its endpoints, and each call goes to that of its key: Envoy's map of
// what is there now.
func TestCallsGoToTheEndpointsOfTheirKeys(t *testing.T) {
	s := openShop(t, "e1", "e2", "e3")
	s.rule("  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 5}, loadBalancer: {localityLbSetting: {enabled: false}}}\n" +
		"  subsets: [{name: v1, labels: {version: e1}}, {name: v2, labels: {version: e2}}]\n")
	s.route("loadBalancer: {consistentHash: {httpHeaderName: user, maglev: {tableSize: 251}}}")
	s.clusters("the load balancer", func(dump string) bool {
		return strings.Contains(dump, "DynamicModulesLoadBalancerConfig")
	})
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	agree := func(names ...string) bool {
		var hosts []consistent.Host
		of := map[string]string{}
		for _, name := range names {
			key := fmt.Sprintf("%s:%d", s.servers[name].IP, targetPort)
			of[key] = name
			hosts = append(hosts, consistent.Host{Key: key, Weight: 1})
		}
		table := consistent.Build(consistent.Policy{Algorithm: consistent.Maglev, TableSize: 251}, hosts)
		for i := range 60 {
			user := fmt.Sprint("user-", i)
			call := who
			call.Attachments = map[string]any{"user": user}
			a := c.Call(call)
			require.Empty(t, a.Error)
			if a.Value != of[hosts[table.Pick(consistent.Hash([]byte(user)), 0)].Key] {
				return false
			}
		}
		return true
	}
	for _, names := range [][]string{{"e1", "e2", "e3"}, {"e1", "e3"}, {"e1", "e2", "e3"}} {
		var pods []*mesh.Pod
		for _, name := range names {
			pods = append(pods, s.servers[name])
		}
		s.endpoints(pods...)
		s.Eventually("the map", func() bool { return agree(names...) })
		require.True(t, agree(names...), names)
	}
	for _, n := range s.client.Stats("outbound.*greeter.*request_hash_hosts_unknown$") {
		require.Zero(t, n, "the cluster has not told its endpoints")
	}
}
