package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestConsumersAttemptsAndHosts: a real client is known by its key, which its server does
// not see; a filter chooses the host of each call, and refuses one, so that there is a
// second attempt; and servers see what is of each attempt alone.
func TestConsumersAttemptsAndHosts(t *testing.T) {
	t.Parallel()
	buildFilterSO(t)
	once(t, func(t *testing.T, v variant) {
		names := []string{"s1", "s2"}
		var ports []int
		for _, name := range names {
			ports = append(ports, peers.DubboGo.Provider(t, peers.ProviderOptions{Name: name}).Port)
		}
		hosts := envoytest.At(ports...)
		batch := envoytest.M{"match": envoytest.M{"metadata": []any{envoytest.M{"name": "consumer", "exact_match": "batch"}}}, "direct_response": envoytest.M{"status": "OVER_LIMIT", "body": "not now"}}
		consumers := extension("consumer", "Consumers", envoytest.M{
			"key_names": []any{"x-key"}, "hide_keys": true,
			"consumers": []any{envoytest.M{"name": "shop", "keys": []any{"open sesame"}}, envoytest.M{"name": "batch", "keys": []any{"night"}}},
		})
		e := startCustom(t, v, envoytest.Dubbo("test", batch, envoytest.Route("up", nil)), []any{consumers, envoytest.M{"name": "test.pins"}},
			envoytest.Cluster("up", hosts...).ToldBy("custom"))
		client := peers.DubboGo.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{})
		call := func(method string, with map[string]any) peers.Answer {
			with["x-key"] = "open sesame"
			return client.Call(peers.Command{Method: method, Attachments: with})
		}

		require.Contains(t, client.Call(peers.Command{Method: "who"}).Error, "unknown consumer")
		require.Contains(t, client.Call(peers.Command{Method: "who", Attachments: map[string]any{"x-key": "guess", "consumer": "shop"}}).Error, "unknown consumer")
		require.Contains(t, client.Call(peers.Command{Method: "who", Attachments: map[string]any{"x-key": "night"}}).Error, "not now")
		identified := int64(24)
		if v.golang { // hosts are known as tunnels have led to them
			met := map[any]bool{}
			require.True(t, eventually(patience, func() bool {
				identified++
				met[call("who", map[string]any{}).Value] = true
				return met[names[0]] && met[names[1]]
			}))
		}
		for i := range 20 {
			at := address(hosts[i%2]).String()
			require.Equal(t, names[i%2], call("who", map[string]any{"pin": at}).Value)
		}
		require.Contains(t, call("who", map[string]any{"pin": "127.0.0.9:1"}).Error, `no connection to host "127.0.0.9:1" of cluster up`)
		require.Contains(t, names, call("who", map[string]any{"prefer": "127.0.0.9:1"}).Value)

		first, other := address(hosts[0]).String(), address(hosts[1]).String()
		a := call("attachments", map[string]any{"prefer": first, "away": first})
		require.Empty(t, a.Error)
		seen := a.Value.(map[string]any)
		require.Equal(t, "2", seen["attempt"], seen)
		require.Equal(t, other, seen["at"])
		require.NotContains(t, seen, "x-key")
		require.Contains(t, e.Log(), `who: attempt 1 at  has failed: no connection to host "127.0.0.9:1"`)

		e.WaitStat(stats+"request_host_unavailable", envoytest.Exactly(2))
		e.WaitStat(stats+"consumer.unknown", envoytest.Exactly(2))
		e.WaitStat(stats+"consumer.identified", envoytest.Exactly(identified))
		require.Zero(t, e.Stat(stats+"mutation_skipped"))
	})
}
