package istio

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// who asks the server for its name.
var who = peers.Command{Method: "who"}

// hello is a request of a scripted client, which servers answer with their name
// and ": hello x".
var hello = dubbotest.Request{
	Interface: greeter, Argument: "x",
	Attachments: [][2]string{{"path", greeter}, {"interface", greeter}},
}

const greeter = "org.meltemi.test.Greeter"

// load has a client call for some time, more than a thousand times a second.
// Servers answer with their names, and take a while for it: control plane and
// proxies share the machine with all of this.
func load(c *peers.Consumer, d time.Duration) *peers.Pending {
	return c.Go(peers.Command{
		Method: "sleep", Args: []any{5}, DurationMS: int(d.Milliseconds()), Concurrency: 8, Summary: true,
	})
}

// answers requires that many calls are answered by some servers only.
func answers(t *testing.T, c *peers.Consumer, calls int, names ...string) map[string]int {
	t.Helper()
	cmd := who
	cmd.Count, cmd.Concurrency = calls, 8
	s := c.Load(cmd)
	require.Empty(t, s.Errors)
	for name := range s.Values {
		require.Contains(t, names, name)
	}
	return s.Values
}

// bothAnswer waits until e1 and e2 are asked by so many calls, and nobody else.
func (s *shop) bothAnswer(t *testing.T, c *peers.Consumer, calls int) {
	t.Helper()
	s.Eventually("answers of both", func() bool { return len(answers(t, c, calls, "e1", "e2")) == 2 })
}

// TestRoutesChangeUnderOpenConnections: a route that a proxy has accepted counts
// for every call from then on, on connections that are open, and no call fails.
func TestRoutesChangeUnderOpenConnections(t *testing.T) {
	s := openShop(t, "v1", "v2")
	s.route("routes: [{route: {subset: v1}}]")
	busy := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	calm := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	open := s.dial(s.client, fmt.Sprintf("%s:%d", s.vip, port))
	answers(t, calm, 100, "v1")
	pending := load(busy, 8*time.Second)
	for i := range 6 {
		version := []string{"v2", "v1"}[i%2]
		s.route(fmt.Sprintf("routes: [{route: {subset: %s}}]", version))
		for id := range uint64(20) {
			open.Ask(id, hello)
			require.Equal(t, version+": hello x", open.Read().Text())
		}
		answers(t, calm, 200, version)
	}
	outcome := pending.Summary()
	require.Empty(t, outcome.Errors)
	require.NotZero(t, outcome.Values["v1"])
	require.NotZero(t, outcome.Values["v2"])
	t.Logf("%d calls while routes changed: %v", outcome.Calls, outcome.Values)
}

// dial connects a scripted client from within a pod.
func (s *shop) dial(p interface {
	Dial(addr string) (net.Conn, error)
}, addr string,
) *scripted.Client {
	s.t.Helper()
	nc, err := p.Dial(addr)
	require.NoError(s.t, err)
	return scripted.NewClient(s.t, nc)
}

func TestCallsAreSplitByWeight(t *testing.T) {
	s := openShop(t, "v1", "v2")
	s.route("routes: [{route: {weighted_clusters: {clusters: [{subset: v1, weight: 20}, {subset: v2, weight: 80}]}}}]")
	got := answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 10_000, "v1", "v2")
	require.InDelta(t, 2000, got["v1"], 300)
	require.InDelta(t, 8000, got["v2"], 300)
}

func TestCallsAreRoutedByTheirAttributes(t *testing.T) {
	s := openShop(t, "v1", "v2")
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	tenant := func(value string) peers.Command {
		cmd := who
		if value != "" {
			cmd.Attachments = map[string]any{"tenant": value}
		}
		return cmd
	}
	for name, rule := range map[string]struct {
		matcher string
		v1, v2  []peers.Command
	}{
		"exact":    {"{name: tenant, string_match: {exact: acme}}", []peers.Command{who, tenant("acme2")}, []peers.Command{tenant("acme")}},
		"prefix":   {"{name: method, string_match: {prefix: say}}", []peers.Command{who}, []peers.Command{{Method: "sayHello", Args: []any{"x"}}}},
		"regex":    {`{name: method, string_match: {safe_regex: {regex: "^s.*o$"}}}`, []peers.Command{who, {Method: "sayHelloAsync", Args: []any{"x"}}}, []peers.Command{{Method: "sayHello", Args: []any{"x"}}}},
		"presence": {"{name: tenant, present_match: true}", []peers.Command{who}, []peers.Command{tenant("any"), tenant("other")}},
		"absence":  {"{name: tenant, present_match: true, invert_match: true}", []peers.Command{tenant("any")}, []peers.Command{who}},
	} {
		t.Run(name, func(t *testing.T) {
			s.route(fmt.Sprintf(`
routes:
- match: {metadata: [{name: method, string_match: {exact: nothingOfThatName}}]}
  route: {subset: v1}
- match: {metadata: [%s]}
  route: {subset: v2}
- route: {subset: v1}
`, rule.matcher))
			for version, cmds := range map[string][]peers.Command{"v1": rule.v1, "v2": rule.v2} {
				for _, cmd := range cmds {
					for range 5 {
						a := c.Call(cmd)
						require.Empty(t, a.Error)
						require.Contains(t, a.Value, version, "%v", cmd)
					}
				}
			}
		})
	}
}

func TestServersSeeMutations(t *testing.T) {
	s := openShop(t, "v1")
	s.route(`
routes:
- route: {subset: v1}
  request_mutation: [{key: lane, value: beta}, {key: tenant, value: replaced}]
`)
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	a := c.Call(peers.Command{Method: "attachments", Attachments: map[string]any{"tenant": "acme", "kept": "k"}})
	require.Empty(t, a.Error)
	got := a.Value.(map[string]any)
	require.Equal(t, "beta", got["lane"])
	require.Equal(t, "replaced", got["tenant"])
	require.Equal(t, "k", got["kept"])
}

// TestRoutesComeWithTheListener: connections that are opened from then on have
// the new routes, and those before are closed while they are idle.
func TestRoutesComeWithTheListener(t *testing.T) {
	s := openShop(t, "v1", "v2")
	open := map[string]*scripted.Client{}
	for _, version := range []string{"v1", "v2"} {
		s.steer(s.description("delivery: LISTENER\nroutes: [{route: {subset: " + version + "}}]"))
		s.Eventually("the listener", func() bool { return serving(s.client, s.cluster(version)) })
		answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 100, version)
		open[version] = s.dial(s.client, fmt.Sprintf("%s:%d", s.vip, port))
	}
	open["v2"].Ask(1, hello)
	require.Equal(t, "v2: hello x", open["v2"].Read().Text())
	require.Empty(t, open["v1"].Closed())
}
