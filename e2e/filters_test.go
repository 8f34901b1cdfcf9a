package e2e

import (
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// build links a shared object of another main package.
func build(t *testing.T, pkg, out string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-o", out, pkg)
	cmd.Dir = peers.Root()
	b, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", b)
}

var filterSO = sync.OnceValue(func() string { return filepath.Join(peers.Root(), "build", "e2e") })

// buildFilterSO links the tests' own shared object.
func buildFilterSO(t *testing.T) {
	t.Helper()
	build(t, "./envoy-build/filterso", filepath.Join(filterSO(), "libcustom.so"))
}

// withFilters runs an Envoy with a shared object of its own, module "custom".
func withFilters(t *testing.T, v variant, filters []any, routes ...any) (e *envoytest.Envoy, servers map[string]*scripted.Server) {
	t.Helper()
	clusters := []envoytest.Resource{}
	servers = map[string]*scripted.Server{}
	for _, name := range []string{"one", "south", "north"} {
		servers[name] = scripted.Serve(t, scripted.Answer(name))
		clusters = append(clusters, envoytest.Cluster(name, envoytest.At(servers[name].Port)...))
	}
	return startCustom(t, v, envoytest.Dubbo("test", routes...), filters, clusters...), servers
}

// startCustom is start with filters of the test's own shared object.
func startCustom(t *testing.T, v variant, config envoytest.M, filters []any, clusters ...envoytest.Resource) *envoytest.Envoy {
	t.Helper()
	config["meta_protocol_filters"] = append(filters, envoytest.M{"name": "aeraki.meta_protocol.filters.router"})
	o := v.options()
	o.Modules = filterSO()
	o.MayPanic = true // caught, and logged
	o.Clusters = clusters
	o.Listeners = []envoytest.Resource{
		envoytest.LoopbackOf("custom", envoytest.Socket()),
		envoytest.Listener("dubbo", envoytest.Module("custom", "meta_protocol_proxy", config)),
	}
	o.Listeners[1]["filter_chains"].([]any)[0].(envoytest.M)["filters"].([]envoytest.M)[0]["typed_config"].(envoytest.M)["terminal_filter"] = true
	return envoytest.Start(t, o)
}

func TestFiltersOfOnesOwn(t *testing.T) {
	t.Parallel()
	buildFilterSO(t)
	t.Run("the example's main links too", func(t *testing.T) {
		build(t, "./examples/custom-so", filepath.Join(t.TempDir(), "libcustom.so"))
	})
	once(t, func(t *testing.T, v variant) {
		t.Run("synchronous", func(t *testing.T) {
			e, _ := withFilters(t, v, []any{envoytest.M{"name": "example.filters.tenant"}}, envoytest.Route("one", nil))
			c := scripted.Dial(t, e.Port("dubbo"))
			c.Ask(1, dubbotest.Request{})
			a := c.Read()
			require.EqualValues(t, 40, a.Status)
			require.Equal(t, "the request names no tenant", a.Text())
			c.Ask(2, dubbotest.Request{Attachments: [][2]string{{"tenant", "acme"}}})
			require.Equal(t, "one", c.Read().Text())
			checkCounters(t, e)
		})
		t.Run("asynchronous", func(t *testing.T) {
			e, servers := withFilters(t, v, []any{envoytest.M{"name": "example.filters.zone"}},
				envoytest.Route("south", map[string]string{"zone": "south"}), envoytest.Route("north", nil))
			c := scripted.Dial(t, e.Port("dubbo"))
			const n = 200
			for id := uint64(1); id <= n; id++ {
				c.Ask(id, dubbotest.Request{Attachments: [][2]string{{"tenant", []string{"acme", "other"}[id%2]}}})
			}
			for id, a := range c.Answers(n) {
				require.Equal(t, []string{"south", "north"}[id%2], a.Text())
			}
			require.EqualValues(t, n/2, servers["south"].Requests())
			checkCounters(t, e)
		})
		t.Run("a client leaves while its messages are paused", func(t *testing.T) {
			e, servers := withFilters(t, v, []any{envoytest.M{"name": "test.gate"}}, envoytest.Route("one", nil))
			const leavers, each = 10, 5
			paused := dubbotest.Request{Attachments: [][2]string{{"gate", "wait"}}}
			stayer := scripted.Dial(t, e.Port("dubbo"))
			stayer.Ask(1, paused)
			clients := make([]*scripted.Client, leavers)
			for i := range clients {
				clients[i] = scripted.Dial(t, e.Port("dubbo"))
				for id := range uint64(each) {
					clients[i].Ask(id, paused)
				}
			}
			e.WaitStat(stats+"request_active", envoytest.Exactly(1+leavers*each))
			for _, c := range clients {
				require.NoError(t, c.SetLinger(0))
				c.Close()
			}
			e.WaitStat(stats+"request_abandoned", envoytest.Exactly(leavers*each))
			e.WaitStat(stats+"request_active", envoytest.Exactly(1))
			require.Zero(t, servers["one"].Requests())

			stayer.Ask(2, dubbotest.Request{Attachments: [][2]string{{"gate", "open"}}})
			for _, a := range stayer.Answers(2) {
				require.Equal(t, "one", a.Text())
			}
			// Whatever was let go on has been forwarded before what follows.
			for id := uint64(3); id <= 20; id++ {
				c := scripted.Dial(t, e.Port("dubbo")) // on every worker
				c.Ask(id, dubbotest.Request{})
				require.Equal(t, "one", c.Read().Text())
			}
			require.EqualValues(t, 20, servers["one"].Requests(), "nothing of clients that are gone")
			e.WaitStat(stats+"request_active", envoytest.Exactly(0))
			checkCounters(t, e)
		})
		t.Run("panic", func(t *testing.T) {
			e, _ := withFilters(t, v, []any{envoytest.M{"name": "test.boom"}}, envoytest.Route("one", nil))
			c := scripted.Dial(t, e.Port("dubbo"))
			for id, where := range []string{"request", "response", ""} {
				c.Ask(uint64(id), dubbotest.Request{Attachments: [][2]string{{"boom", where}}})
			}
			answers := c.Answers(3)
			require.Equal(t, "internal error", answers[0].Text())
			require.Equal(t, "internal error", answers[1].Text())
			require.Equal(t, "one", answers[2].Text())
			e.WaitStat(stats+"filter_panic", envoytest.Exactly(2))
			require.Contains(t, e.Log(), "panic in filter test.boom: boom")
			require.Contains(t, e.Log(), "envoy-build/filterso/main.go", "the stack is logged")
		})
	})
}
