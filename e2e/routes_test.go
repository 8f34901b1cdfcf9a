package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// TestRoutesOnRealCalls routes real calls on everything that they carry, and
// changes attachments in both directions.
func TestRoutesOnRealCalls(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		plain := peers.Java.Provider(t, peers.ProviderOptions{Name: "plain"})
		blue := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "blue", Group: "blue"})
		next := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "next", Version: "2.0.0"})
		canary := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "canary"})
		mutating := envoytest.Route("canary", map[string]string{"tenant": "acme"})
		mutating["request_mutation"] = []any{envoytest.M{"key": "added", "value": "by the route"}, envoytest.M{"key": "tenant", "value": "ACME"}}
		mutating["response_mutation"] = []any{envoytest.M{"key": "served-by", "value": "canary"}}
		e := v.start(t, envoytest.Dubbo("test",
			envoytest.Route("blue", map[string]string{"group": "blue"}),
			envoytest.Route("next", map[string]string{"version": "2.0.0"}),
			mutating,
			envoytest.Route("canary", map[string]string{"interface": "org.meltemi.test.Audit", "method": "who"}),
			envoytest.Route("plain", map[string]string{"interface": "org.meltemi.test.Greeter"}),
		),
			envoytest.Cluster("plain", envoytest.At(plain.Port)...), envoytest.Cluster("blue", envoytest.At(blue.Port)...),
			envoytest.Cluster("next", envoytest.At(next.Port)...), envoytest.Cluster("canary", envoytest.At(canary.Port)...))

		for _, lib := range []peers.Library{peers.DubboGo, peers.Java} {
			t.Run(string(lib), func(t *testing.T) {
				c := lib.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{})
				who := func(cmd peers.Command) any {
					t.Helper()
					cmd.Method = "who"
					a := c.Call(cmd)
					require.Empty(t, a.Error)
					return a.Value
				}
				require.Equal(t, "plain", who(peers.Command{}))
				require.Equal(t, "blue", who(peers.Command{Group: "blue"}))
				require.Equal(t, "next", who(peers.Command{Version: "2.0.0"}))
				require.Equal(t, "canary", who(peers.Command{Interface: "org.meltemi.test.Audit"}))
				require.Equal(t, "canary", who(peers.Command{Attachments: map[string]any{"tenant": "acme"}}))
				require.Equal(t, "plain", who(peers.Command{Attachments: map[string]any{"tenant": "other"}}))

				a := c.Call(peers.Command{Method: "attachments", Attachments: map[string]any{"tenant": "acme", "kept": "as is"}})
				require.Empty(t, a.Error)
				got := a.Value.(map[string]any)
				require.Equal(t, "by the route", got["added"])
				require.Equal(t, "ACME", got["tenant"])
				require.Equal(t, "as is", got["kept"])
				require.Equal(t, "canary", a.Attachments["served-by"])

				none := c.Call(peers.Command{Interface: "org.meltemi.test.Audit", Method: "told"})
				require.Contains(t, none.Error, "no route matches")
			})
		}
		checkCounters(t, e)
	})
}

// TestGroupsAndVersions calls services that have a group and a version, which
// routes tell apart and providers insist on.
func TestGroupsAndVersions(t *testing.T) {
	t.Parallel()
	services := map[string]struct{ group, version string }{
		"blue": {"blue", "1.0.0"}, "green": {"green", "1.0.0"}, "next": {"", "2.0.0"},
	}
	once(t, func(t *testing.T, v variant) {
		for _, p := range pairings {
			t.Run(p.String(), func(t *testing.T) {
				clusters := []envoytest.Resource{}
				for name, s := range services {
					provider := p.provider.Provider(t, peers.ProviderOptions{Name: name, Group: s.group, Version: s.version})
					clusters = append(clusters, envoytest.Cluster(name, envoytest.At(provider.Port)...))
				}
				e := v.start(t, envoytest.Dubbo("test",
					envoytest.Route("next", map[string]string{"version": "2.0.0"}),
					envoytest.Route("blue", map[string]string{"group": "blue"}),
					envoytest.Route("green", map[string]string{"group": "green", "version": "1.0.0"}),
				), clusters...)
				c := p.consumer.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{})
				for _, intf := range []string{"", "org.meltemi.test.Audit"} {
					for name, s := range services {
						a := c.Call(peers.Command{Interface: intf, Method: "who", Group: s.group, Version: s.version})
						require.Empty(t, a.Error)
						require.Equal(t, name, a.Value)
					}
				}
				// The group's route is taken, and the provider has no such version.
				a := c.Call(peers.Command{Method: "who", Group: "blue", Version: "3.0.0"})
				require.NotEmpty(t, a.Error)
				require.NotContains(t, a.Error, "no route matches")
				require.Less(t, a.LatencyUS, int64(2_500_000), a.Error)
				for _, s := range []peers.Command{{Version: "1.0.0"}, {Group: "green", Version: "3.0.0"}, {}} {
					s.Method = "who"
					require.Contains(t, c.Call(s).Error, "no route matches")
				}
				e.WaitStat(stats+"response", envoytest.Exactly(int64(2*len(services)+1)))
				checkCounters(t, e)
			})
		}
	})
}

// TestRoutesChangeOnOpenConnections replaces the routes while one connection
// makes calls without pause. None fails, and the connection follows.
func TestRoutesChangeOnOpenConnections(t *testing.T) {
	t.Parallel()
	const extension = "routes"
	once(t, func(t *testing.T, v variant) {
		for _, by := range []string{"listener", "extension"} {
			t.Run("by "+by, func(t *testing.T) {
				a, b := scripted.Serve(t, scripted.Answer("a")), scripted.Serve(t, scripted.Answer("b"))
				config := func(cluster string) envoytest.M {
					c := toOne(cluster)
					if by == "extension" {
						c["delivery"] = "ECDS"
					}
					return c
				}
				o := v.options()
				o.Clusters = []envoytest.Resource{envoytest.Cluster("a", envoytest.At(a.Port)...), envoytest.Cluster("b", envoytest.At(b.Port)...)}
				loopback := envoytest.Loopback(envoytest.Socket())
				// A port that stays, so that Envoy updates the listener in place.
				port := peers.RestartPort(t)
				listener := func(filter envoytest.M) envoytest.Resource {
					l := envoytest.Listener("dubbo", filter)
					l["address"] = envoytest.M{"socket_address": envoytest.M{"address": "127.0.0.1", "port_value": port}}
					return l
				}
				filter := func(cluster string) envoytest.M {
					if by == "extension" {
						return envoytest.Discovered(extension)
					}
					return envoytest.Proxy(config(cluster))
				}
				if by == "extension" {
					o.Extensions = []envoytest.M{envoytest.Extension(extension, envoytest.Proxy(config("a")))}
				}
				o.Listeners = []envoytest.Resource{loopback, listener(filter("a"))}
				e := envoytest.Start(t, o)

				c := scripted.Dial(t, port)
				id := uint64(0)
				call := func() string {
					t.Helper()
					id++
					c.Ask(id, dubbotest.Request{})
					f := c.Read()
					require.Equal(t, id, f.ID)
					require.EqualValues(t, statusOK, f.Status, f.Text())
					return f.Text()
				}
				require.Equal(t, "a", call())
				for round := range 4 {
					want := []string{"b", "a"}[round%2]
					if by == "extension" {
						e.SetExtension(extension, envoytest.Proxy(config(want)))
					} else {
						require.True(t, e.SetListeners(loopback, listener(filter(want))))
					}
					deadline := time.Now().Add(patience)
					for call() != want {
						require.True(t, time.Now().Before(deadline), "round %d: never %s", round, want)
					}
					if by == "listener" {
						// The old listener's connections end with its drain time.
						c = scripted.Dial(t, port)
					}
					require.Equal(t, want, call(), fmt.Sprint(round))
				}
				checkCounters(t, e)
			})
		}
	})
}
