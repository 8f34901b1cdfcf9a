package e2e

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// fromTraffic is a Dubbo listener's configuration with the routes that docs/traffic.md
// has in a section.
func fromTraffic(t *testing.T, section string) envoytest.M {
	t.Helper()
	for _, b := range docs.Blocks(source(t, "docs/traffic.md")) {
		if b.Section == section && b.Kind == "yaml" {
			var routes envoytest.M
			require.NoError(t, yaml.Unmarshal([]byte(b.Text), &routes))
			config := envoytest.Dubbo("test")
			config["route_config"] = routes
			return config
		}
	}
	require.Fail(t, "there is none", section)
	return nil
}

// TestTheTrafficPagesRoutes do with real calls what the page says.
func TestTheTrafficPagesRoutes(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		blue := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "blue"})
		green := peers.Java.Provider(t, peers.ProviderOptions{Name: "green"})
		config := fromTraffic(t, "Routes")
		config["traffic_direction"] = "INBOUND"
		e := v.start(t, config, envoytest.Cluster("blue", envoytest.At(blue.Port)...), envoytest.Cluster("green", envoytest.At(green.Port)...))
		for _, lib := range []peers.Library{peers.DubboGo, peers.Java} {
			t.Run(string(lib), func(t *testing.T) {
				c := lib.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{})
				attachments := func(sent map[string]any) (map[string]any, peers.Answer) {
					t.Helper()
					a := c.Call(peers.Command{Method: "attachments", Attachments: sent})
					require.Empty(t, a.Error)
					return a.Value.(map[string]any), a
				}

				direct := e.Stat(stats + "request_direct_response")
				closed := c.Call(peers.Command{Method: "attachments", Attachments: map[string]any{"tenant": "mallory"}})
				require.Contains(t, closed.Error, "this account is closed")
				e.WaitStat(stats+"request_direct_response", envoytest.Exactly(direct+1))

				for _, lane := range []string{"blue", "green"} {
					got, a := attachments(map[string]any{"lane": lane, "hops": "edge", "X-Client": "forged", "x-route": "forged", "kept": "as is"})
					require.Equal(t, "edge,lanes", got["hops"])
					require.Equal(t, "nobody", got["tenant"])
					require.Equal(t, "as is", got["kept"])
					require.Equal(t, "127.0.0.1", got["x-client"])
					require.Equal(t, "lanes", got["x-route"])
					require.NotContains(t, got, "X-Client")
					require.Equal(t, lane, a.Attachments["served-by"])
				}
				got, _ := attachments(map[string]any{"lane": "blue", "tenant": "acme"})
				require.Equal(t, "lanes", got["hops"])
				require.Equal(t, "acme", got["tenant"])

				none := e.Stat(stats + "request_no_cluster")
				require.Contains(t, c.Call(peers.Command{Method: "who", Attachments: map[string]any{"lane": "red"}}).Error, `the request may not name the cluster "red" by its lane`)
				e.WaitStat(stats+"request_no_cluster", envoytest.Exactly(none+1))

				// Half of the rest is on trial.
				seen := map[string]int{}
				for range 100 {
					got, _ := attachments(map[string]any{"user": "u1"})
					seen[got["x-route"].(string)]++
					if got["x-route"] == "trial" {
						require.Equal(t, "for u1", got["trial"])
					} else {
						require.NotContains(t, got, "trial")
					}
				}
				require.Greater(t, seen["trial"], 20)
				require.Greater(t, seen["rest"], 20)
				require.Equal(t, 100, seen["trial"]+seen["rest"])
			})
		}
		require.Zero(t, e.Stat(stats+"mutation_skipped"))
	})
}

// TestThriftRoutesRemoveAndFormat with real clients and servers.
func TestThriftRoutesRemoveAndFormat(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		header := peers.Wire{Transport: "header", Protocol: "strict"}
		lane := envoytest.M{
			"name": "lanes", "match": envoytest.M{"metadata": []any{envoytest.M{"name": "lane", "present_match": true}}},
			"route":                   envoytest.M{"cluster_from_metadata": envoytest.M{"name": "lane", "allowed_clusters": []any{"one", "two"}}},
			"request_keys_to_remove":  []any{"Secret"},
			"response_keys_to_remove": []any{"served-by"},
			"request_mutation": []any{
				envoytest.M{"key": "hops", "value": "meltemi", "append_action": "APPEND_IF_EXISTS_OR_ADD"},
				envoytest.M{"key": "client", "format": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%/%REQ(user?lane)%/%ROUTE_NAME%"},
			},
			"response_mutation": []any{envoytest.M{"key": "via", "format": "%UPSTREAM_CLUSTER%"}},
		}
		closed := envoytest.M{
			"match":           envoytest.M{"metadata": []any{envoytest.M{"name": "method", "string_match": envoytest.M{"exact": "who"}}}},
			"direct_response": envoytest.M{"status": "OVER_LIMIT", "body": "closed for today"},
		}
		o := v.options()
		for i, name := range []string{"one", "two"} {
			o.Clusters = append(o.Clusters, envoytest.Cluster(name, envoytest.At(thriftLibraries[i].Server(t, name, header).Port)...))
		}
		o.Listeners = []envoytest.Resource{
			envoytest.Loopback(envoytest.Socket()),
			envoytest.Listener("thrift", envoytest.Proxy(envoytest.Protocol("thrift", "test", lane, closed))),
		}
		e := envoytest.Start(t, o)
		for _, client := range thriftLibraries {
			for _, w := range []peers.Wire{header, {Transport: "header", Protocol: "compact", Zlib: true}} {
				t.Run(fmt.Sprintf("%s, %s", client, w), func(t *testing.T) {
					c := client.Client(t, e.Port("thrift"), w, 0)
					for _, name := range []string{"one", "two"} {
						cmd := thriftCall("headers")
						cmd.Attachments = map[string]any{"lane": name, "secret": "x", "SECRET": "y", "hops": "edge", "kept": "as is"}
						a := c.Call(cmd)
						require.Empty(t, a.Error)
						require.Equal(t, map[string]any{"lane": name, "hops": "edge,meltemi", "kept": "as is", "client": "127.0.0.1/" + name + "/lanes"}, a.Value)
						require.Equal(t, map[string]any{"via": name}, a.Attachments)
					}
					require.Contains(t, c.Call(thriftCall("who")).Error, "closed for today")
					red := thriftCall("headers")
					red.Attachments = map[string]any{"lane": "red"}
					require.Contains(t, c.Call(red).Error, `the request may not name the cluster "red" by its lane`)
				})
			}
		}
		require.Zero(t, e.Stat(thriftStats+"mutation_skipped"))
		checkCountersOf(t, e, thriftStats)
	})
}
