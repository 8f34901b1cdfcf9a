package istio

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
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

// clusterStat is a counter or gauge of the cluster without a subset in the client's
// proxy.
func (s *shop) clusterStat(name string) int64 {
	s.t.Helper()
	stats := s.client.Stats("^cluster." + regexp.QuoteMeta(s.cluster("")) + ".*" + name + "$")
	require.Len(s.t, stats, 1)
	for _, v := range stats {
		return v
	}
	return 0
}

// connectionsTo is how many connections the client's proxy has to a host of the
// cluster without a subset.
func (s *shop) connectionsTo(host *mesh.Pod) (n int) {
	s.t.Helper()
	gauge := fmt.Sprintf("%s::%s:%d::cx_active::", s.cluster(""), host.IP, targetPort)
	_, value, ok := strings.Cut(s.client.Admin("/clusters"), gauge)
	require.True(s.t, ok, gauge)
	_, err := fmt.Sscan(value, &n)
	require.NoError(s.t, err)
	return n
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
	require.Less(t, a.LatencyUS, int64(2_500_000), a.Error)
}

// TestLoadBalancersTakeEffect: calls of one connection go to the hosts that the
// cluster's load balancer picks. Round robin shows after a few picks; of random
// ones it takes some time to tell that the hosts are equal.
func TestLoadBalancersTakeEffect(t *testing.T) {
	s := openShop(t, "e1", "e2")
	s.route("")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{Connections: 1})
	// Until a host's connection is ready, the other one takes its calls.
	s.bothAnswer(t, c, 20)
	for _, lb := range []struct {
		policy string
		learn  time.Duration
	}{{"ROUND_ROBIN", 0}, {"RANDOM", 30 * time.Second}, {"LEAST_REQUEST", 30 * time.Second}} {
		s.rule(fmt.Sprintf("  trafficPolicy: {loadBalancer: {simple: %s}}\n", lb.policy))
		s.client.WaitPolicy(s.cluster(""), lb.policy)
		if lb.learn > 0 {
			require.Empty(t, load(c, lb.learn).Summary().Errors)
		}
		got := answers(t, c, 2000, "e1", "e2")
		t.Logf("%s: %v", lb.policy, got)
		require.InDelta(t, 1000, got["e1"], 200, lb.policy)
	}
}

// TestSharesOfLocalitiesTakeEffect: a choice of the load balancer's that shows in
// numbers.
func TestSharesOfLocalitiesTakeEffect(t *testing.T) {
	in := func(zone string) map[string]string {
		return map[string]string{"istio-locality": "here." + zone, "app": "greeter"}
	}
	s := openShopTo(t, mesh.PodSpec{Labels: in("c")})
	pods := s.Pods(mesh.PodSpec{Name: "e1", Role: mesh.Sidecar, Labels: in("a")}, mesh.PodSpec{Name: "e2", Role: mesh.Sidecar, Labels: in("b")})
	for _, p := range pods {
		peers.DubboGo.Provider(t, peers.ProviderOptions{Place: at(p, p.IP), Name: p.Name, Port: targetPort})
	}
	s.endpoints(pods...)
	s.route("")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{Connections: 1})
	for i, share := range []int{80, 30} {
		learn := maxAge + 2*time.Second
		if i > 0 {
			learn = 30 * time.Second // what was learnt of the shares before has to fade
		}
		s.rule(fmt.Sprintf(`
  trafficPolicy:
    loadBalancer:
      simple: ROUND_ROBIN
      localityLbSetting:
        enabled: true
        distribute: [{from: "here/c/*", to: {"here/a/*": %d, "here/b/*": %d}}]
`, share, 100-share))
		s.client.WaitConfig("dynamic_endpoint_configs&include_eds", fmt.Sprintf(`"load_balancing_weight": %d\b`, share))
		require.Empty(t, load(c, learn).Summary().Errors)
		got := answers(t, c, 2000, "e1", "e2")
		t.Logf("%d %%: %v", share, got)
		require.InDelta(t, 20*share, got["e1"], 200)
	}
}

// TestMaxConnectionsTakesEffect has a proxy of one worker, as each worker may
// want one connection.
func TestMaxConnectionsTakesEffect(t *testing.T) {
	s := openShopTo(t, mesh.PodSpec{ProxyConfig: map[string]any{"concurrency": 1}}, "v1")
	s.route("")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{Timeout: 20 * time.Second})
	cmd := peers.Command{Method: "sleep", Args: []any{200}, Count: 2000, Concurrency: 1000, Summary: true}
	require.Empty(t, c.Load(cmd).Errors)
	require.Greater(t, s.clusterStat("upstream_cx_active"), int64(1), "so many calls in flight take several connections")

	s.rule("  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}\n")
	s.clusters("one connection", func(dump string) bool { return strings.Contains(dump, `"max_connections": 1,`) })
	time.Sleep(maxAge + time.Second) // by then connections made before the limit have ended: that is promised
	pending := c.Go(cmd)
	most := int64(0)
	s.Eventually("an overflow", func() bool {
		most = max(most, s.clusterStat("upstream_cx_active"))
		return s.clusterStat("upstream_cx_overflow") > 0
	})
	require.Empty(t, pending.Summary().Errors)
	require.LessOrEqual(t, most, int64(1))
}

// TestConnectTimeoutTakesEffect: an endpoint that never answers costs a call as
// much as the rule says.
func TestConnectTimeoutTakesEffect(t *testing.T) {
	s := openShop(t, "v1")
	hole := s.Pods(mesh.PodSpec{Name: "hole", Role: mesh.Stranger, Labels: map[string]string{"app": "greeter", "version": "v1"}})[0]
	require.NoError(t, hole.Run("iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP"))
	s.endpoints(hole)
	s.route("")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{Timeout: 20 * time.Second, Connections: 1})
	for timeout, told := range map[time.Duration]string{200 * time.Millisecond: "0.200s", 2 * time.Second: "2s"} {
		s.rule(fmt.Sprintf("  trafficPolicy: {connectionPool: {tcp: {connectTimeout: %v}}}\n", timeout))
		s.clusters("the timeout", func(dump string) bool {
			return strings.Contains(dump, fmt.Sprintf(`"connect_timeout": %q`, told))
		})
		c.Call(who) // may end with an attempt that began under the rule before
		a := c.Call(who)
		require.NotEmpty(t, a.Error)
		took := time.Duration(a.LatencyUS) * time.Microsecond
		t.Logf("%v: %v, %s", timeout, took, a.Error)
		require.GreaterOrEqual(t, took, timeout*9/10)
		// Two attempts, and the pause before them.
		require.Less(t, took, 2*timeout+time.Second)
	}
}

// TestAnEjectedHostIsLeft: after connections to a host have failed it gets no
// call, on connections that are open neither, and calls that wait for it end
// (close_connections_on_host_health_failure, which meltemi envoyfilter sets).
func TestAnEjectedHostIsLeft(t *testing.T) {
	s := openShop(t, "e1", "e2")
	s.rule(`
  trafficPolicy:
    outlierDetection:
      splitExternalLocalOriginErrors: true
      consecutiveLocalOriginFailures: 2
      interval: 500ms
      baseEjectionTime: 60s
      maxEjectionPercent: 50
`)
	s.route("")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	require.Len(t, answers(t, c, 200, "e1", "e2"), 2)
	const long = 12 * time.Second // less than the request timeout
	waiting := s.consumer(peers.DubboGo, peers.ConsumerOptions{Timeout: long + 10*time.Second, Connections: 1})
	s.bothAnswer(t, waiting, 20)
	begun := time.Now()
	calls := waiting.Go(peers.Command{Method: "sleep", Args: []any{long.Milliseconds()}, Count: 16, Concurrency: 16, Summary: true})
	s.Eventually("calls under way", func() bool {
		for _, n := range s.client.Stats("^meta_protocol.*outbound.*request_active$") {
			return n == 16
		}
		return false
	})
	require.Positive(t, s.connectionsTo(s.servers["e1"]))
	// From now on e1's proxy takes no new connection; those that are open work.
	require.NoError(t, s.servers["e1"].Run("iptables", "-I", "INPUT", "-p", "tcp", "--syn", "--dport", "15006", "-j", "REJECT", "--reject-with", "tcp-reset"))
	pending := load(c, 10*time.Second)
	s.Eventually("an ejection", func() bool {
		return s.clusterStat("outlier_detection.ejections_active") == 1
	})
	s.Eventually("no connection to it", func() bool { return s.connectionsTo(s.servers["e1"]) == 0 })
	require.Less(t, time.Since(begun), long)
	answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 200, "e2")
	t.Logf("while a host was ejected: %v", pending.Summary())
	outcome := calls.Summary()
	t.Logf("calls that waited meanwhile: %v", outcome)
	require.Positive(t, outcome.Failed(), "those at the ejected host went on")
	require.Positive(t, outcome.Succeeded(), "those at the other host did not")
}
