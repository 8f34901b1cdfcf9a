package istio

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestTheControlPlaneIsGoneForAWhile: traffic goes on, and changes arrive
// afterwards.
func TestTheControlPlaneIsGoneForAWhile(t *testing.T) {
	for name, outage := range map[string]func(*testing.T) (back func()){
		"istiod": func(t *testing.T) func() {
			world.KillIstiod()
			return func() { require.NoError(t, world.StartIstiod()) }
		},
		"API server": func(t *testing.T) func() {
			world.KillAPIServer()
			return func() { require.NoError(t, world.StartAPIServer()) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openShop(t, "v1", "v2")
			s.route("routes: [{route: {subset: v1}}]")
			c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
			answers(t, c, 100, "v1")
			pending := load(s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 12*time.Second)
			back := outage(t)
			// Longer than connections live, so that new ones were made meanwhile.
			time.Sleep(maxAge + time.Second)
			answers(t, c, 100, "v1")
			back()
			// A client that calls for the first time now.
			answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 100, "v1")
			s.route("routes: [{route: {subset: v2}}]")
			answers(t, c, 100, "v2")
			require.Empty(t, pending.Summary().Errors)
		})
	}
}

// unknownType has a filter of a type that nobody knows.
const unknownType = `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: wrong}
spec:
  configPatches:
  - applyTo: NETWORK_FILTER
    match: {context: SIDECAR_OUTBOUND}
    patch:
      operation: MERGE
      value: {name: x, typed_config: {"@type": type.googleapis.com/made.up.v1.Type, a: 1}}
`

// TestRefusedConfigurationsChangeNothing: whoever refuses says why, and the old
// routes stay.
func TestRefusedConfigurationsChangeNothing(t *testing.T) {
	s := openShop(t, "v1", "v2")
	s.route("routes: [{route: {subset: v1}}]")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	answers(t, c, 100, "v1")

	const unknown = "11: spec.configPatches[0].patch.value.typed_config.@type: unknown type type.googleapis.com/made.up.v1.Type"
	require.Contains(t, check(t, unknownType), unknown, "what webhook and istiod will refuse")
	t.Run("by the webhook", func(t *testing.T) {
		err := s.TryApply(unknownType)
		require.ErrorContains(t, err, "made.up.v1.Type")
		answers(t, c, 100, "v1")
	})
	t.Run("by istiod", func(t *testing.T) {
		told := func() int { return strings.Count(world.IstiodLog(), "made.up.v1.Type") }
		before := told() // the webhook is istiod, too
		require.NoError(t, world.WithoutWebhook(func() {
			require.NoError(t, s.TryApply(unknownType))
			s.Eventually("a refusal in istiod's log", func() bool { return told() > before })
		}))
		answers(t, c, 100, "v1")
		s.Delete("envoyfilter", "wrong")
	})
	t.Run("by Envoy", func(t *testing.T) {
		good := generate(t, s.description("routes: [{route: {subset: v2}}]"))
		bad := regexp.MustCompile(`(?m)^( *)delivery: ECDS$`).ReplaceAllString(good, "${1}delivery: ECDS\n${1}no_such_field: 1")
		require.NotEqual(t, good, bad)
		require.NoError(t, s.TryApply(bad), "neither the API server nor istiod knows the filter's fields")
		require.Contains(t, check(t, bad), "no_such_field: unknown field")
		s.Eventually("a refusal in Envoy's log", func() bool { return strings.Contains(s.client.Log(), "no_such_field: unknown field") })
		s.Eventually("a refusal in istiod's log", func() bool {
			return regexp.MustCompile(`ECDS: ACK ERROR client[.]` + s.Name).MatchString(world.IstiodLog())
		})
		answers(t, c, 100, "v1")
		// What is right again is taken.
		s.route("routes: [{route: {subset: v2}}]")
		answers(t, c, 100, "v2")
	})
}

// check runs `meltemi check` on what it must refuse.
func check(t *testing.T, text string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(peers.Root(), "build", "meltemi"), "check", "-")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	return string(out)
}

// unrouted proves that a pod's connections are plain TCP, of which each goes to
// some host, where the routes know v1 only.
func (s *shop) unrouted(p *mesh.Pod) {
	s.t.Helper()
	s.Eventually("an answer of v2 in "+p.Name, func() bool {
		c := s.dial(p, fmt.Sprintf("%s:%d", s.vip, port))
		c.Ask(1, hello)
		return c.Read().Text() == "v2: hello x"
	})
}

// TestAProxyThatLacksWhatItSaysItHas: one that runs forwards the service as plain
// TCP. One that starts does not become ready, and says why.
func TestAProxyThatLacksWhatItSaysItHas(t *testing.T) {
	const why = "libmeltemi.so: cannot open shared object file"
	s := openShopTo(t, mesh.PodSpec{Env: []string{"ENVOY_DYNAMIC_MODULES_SEARCH_PATH=/nowhere"}}, "v1", "v2")
	s.steer(s.description("routes: [{route: {subset: v1}}]"))
	s.Eventually("a refusal", func() bool { return strings.Contains(s.client.Log(), why) && settled(s.client) })
	s.unrouted(s.client)
	s.client.WaitReady()

	s.client.StopProxy()
	s.client.StartProxy()
	s.Eventually("unreadiness", func() bool {
		require.False(t, s.client.Ready())
		return strings.Contains(s.client.Log(), "lds updates: 0 successful, 1 rejected")
	})
}

// TestAnOldProxyIsLeftAlone: Istio before 1.20 knows neither form of the filter. (What a
// proxy that is a little newer gets no Envoy here could load: TestEachProxyGetsTheFormOfItsVersion.)
func TestAnOldProxyIsLeftAlone(t *testing.T) {
	s := openShopTo(t, mesh.PodSpec{Env: []string{"ISTIO_META_ISTIO_VERSION=1.19.10"}}, "v1", "v2")
	s.steer(s.description("routes: [{route: {subset: v1}}]"))
	s.Eventually("our filter", func() bool { return serving(s.servers["v1"], "meltemi-inbound") })
	s.unrouted(s.client)
	require.False(t, inListeners(s.client, "meltemi"))
}

// TestWithoutTheLoopbackListener: calls end with an error that names what is
// missing, and go on when it is back.
func TestWithoutTheLoopbackListener(t *testing.T) {
	s := openShop(t, "v1")
	s.steer(strings.Replace(s.description(""), "outbound: {", "outbound: {request_timeout: 2s, ", 1))
	s.Delete("envoyfilter", "meltemi-loopback")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{Timeout: 20 * time.Second})
	// The server's proxy has lost its listener, too: where it does so first, it is
	// the answer that is missing.
	s.Eventually("the client's proxy to have no connection", func() bool {
		return strings.Contains(c.Call(who).Error, "timeout while waiting for an upstream connection")
	})
	s.route("")
	s.Eventually("an answer", func() bool { return c.Call(who).Error == "" })
	answers(t, c, 100, "v1")
}

// TestAProxyWithoutTheSharedObjectIsLeftAlone: it does not say that it has it,
// and goes on as plain Istio does.
func TestAProxyWithoutTheSharedObjectIsLeftAlone(t *testing.T) {
	s := openShop(t, "v1", "v2")
	plain := s.Pods(mesh.PodSpec{Name: "plain", Role: mesh.Sidecar, Env: []string{"ISTIO_META_MELTEMI=", "ENVOY_DYNAMIC_MODULES_SEARCH_PATH=/nowhere"}})[0]
	s.route("routes: [{route: {subset: v1}}]")
	answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 100, "v1")
	s.unrouted(plain)
	require.False(t, inListeners(plain, "meltemi"))
	require.Zero(t, strings.Count(plain.Log(), "rejected"))
}
