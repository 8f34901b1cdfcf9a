package istio

import (
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestASidecarIsDrainedAndRestartedUnderLoad: as in a rolling restart, the
// endpoint goes when the proxy is told to end, and comes back when the new one
// is ready.
func TestASidecarIsDrainedAndRestartedUnderLoad(t *testing.T) {
	s := openShop(t, "e1", "e2")
	s.route("")
	busy := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	require.Len(t, answers(t, busy, 400, "e1", "e2"), 2)
	pending := load(busy, 15*time.Second)
	for _, name := range []string{"e1", "e2"} {
		other := map[string]string{"e1": "e2", "e2": "e1"}[name]
		s.endpoints(s.servers[other])
		s.servers[name].StopProxy()
		s.servers[name].StartProxy()
		s.servers[name].WaitReady()
		s.endpoints(s.servers["e1"], s.servers["e2"])
	}
	outcome := pending.Summary()
	require.Empty(t, outcome.Errors)
	t.Logf("%d calls while sidecars restarted: %v", outcome.Calls, outcome.Values)
	s.bothAnswer(t, busy, 400)
}

// TestTheClientsSidecarRestarts: clients connect anew, as they would without
// Meltemi.
func TestTheClientsSidecarRestarts(t *testing.T) {
	s := openShop(t, "v1", "v2")
	s.route("routes: [{route: {subset: v2}}]")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	answers(t, c, 100, "v2")
	s.client.StopProxy()
	s.client.StartProxy()
	s.client.WaitReady()
	// It has several connections, and finds out for each that it is gone.
	cmd := who
	cmd.Count, cmd.Concurrency = 100, 8
	s.Eventually("answers only", func() bool { return c.Load(cmd).Failed() == 0 })
	answers(t, c, 100, "v2")
}

// TestAServerIsRestartedUnderLoad: once without a warning, which costs errors as
// long as it is down, but no time, and once as Kubernetes does it, which costs
// nothing.
func TestAServerIsRestartedUnderLoad(t *testing.T) {
	s := openShop(t, "e1", "e2")
	s.route("")
	busy := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	require.Len(t, answers(t, busy, 400, "e1", "e2"), 2)

	t.Run("killed", func(t *testing.T) {
		pending := load(busy, 6*time.Second)
		s.apps["e1"].Kill()
		s.serve("e1", peers.DubboGo)
		// Each worker of its proxy may have to try once more until it has found it.
		cmd := who
		cmd.Count, cmd.Concurrency = 400, 8
		s.Eventually("answers only", func() bool { return busy.Load(cmd).Failed() == 0 })
		after := load(busy, time.Second).Summary()
		outcome := pending.Summary()
		t.Logf("a server was killed: %d calls, %v, errors %v", outcome.Calls, outcome.Values, outcome.Errors)
		require.Empty(t, after.Errors, "it is up")
		require.NotZero(t, after.Calls)
		require.Less(t, outcome.LatencyUS["max"], int64(2_800_000), "clients wait for 3 s")
		require.NotZero(t, outcome.Values["e2"], "which was up all the time")
		s.bothAnswer(t, busy, 400)
	})
	t.Run("in order", func(t *testing.T) {
		pending := load(busy, 10*time.Second)
		s.endpoints(s.servers["e2"])
		time.Sleep(maxAge) // after which it must get no call
		s.apps["e1"].Kill()
		s.serve("e1", peers.DubboGo)
		s.endpoints(s.servers["e1"], s.servers["e2"])
		require.Empty(t, pending.Summary().Errors)
		s.bothAnswer(t, busy, 400)
	})
}

// TestCertificatesAreRotatedUnderLoad: they live 30 s here, and are renewed at
// half of that.
func TestCertificatesAreRotatedUnderLoad(t *testing.T) {
	s := &shop{Namespace: world.Namespace(t), t: t, servers: map[string]*mesh.Pod{}, apps: map[string]*peers.Provider{}}
	env := []string{"SECRET_TTL=30s", "SECRET_GRACE_PERIOD_RATIO_JITTER=0"}
	server := server("v1")
	server.Env = env
	pods := s.Pods(mesh.PodSpec{Name: "client", Role: mesh.Sidecar, Env: env}, server)
	s.client, s.servers["v1"] = pods[0], pods[1]
	s.serve("v1", peers.DubboGo)
	s.Apply(greeterService)
	s.vip = s.VIP("greeter")
	s.endpoints(s.servers["v1"])
	s.route("")
	serial := func(p *mesh.Pod) string {
		m := regexp.MustCompile(`"serial_number": "(\w+)",\s*"subject_alt_names": \[\s*\{\s*"uri": "spiffe:`).FindStringSubmatch(p.Admin("/certs"))
		require.NotNil(t, m)
		return m[1]
	}
	before := []string{serial(pods[0]), serial(pods[1])}
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	answers(t, c, 100, "v1")
	pending := load(c, 32*time.Second)
	s.Eventually("other certificates", func() bool { return serial(pods[0]) != before[0] && serial(pods[1]) != before[1] })
	require.Empty(t, pending.Summary().Errors)
	// Connections made with the first certificates are long gone, and those have
	// expired.
	answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 100, "v1")
}
