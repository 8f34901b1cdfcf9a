package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// limitedPeer is a server of a protocol, and how clients call it.
type limitedPeer struct {
	codec    string
	property string // that has the method
	hello    string
	who      string
	port     int // of the server
	client   func(port int) *peers.Consumer
}

// limitedPeers are of all four.
func limitedPeers(t *testing.T) []limitedPeer {
	wire := peers.Wire{Transport: "framed", Protocol: "strict"}
	return []limitedPeer{
		{"dubbo", "method", "sayHello", "who", peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "s1"}).Port, func(port int) *peers.Consumer {
			// dubbo-go asks again when it is refused, over a connection that has been closed.
			return peers.Java.Consumer(t, port, peers.ConsumerOptions{Connections: 1})
		}},
		{"thrift", "method", "echo", "who", peers.ThriftGo.Server(t, "s1", wire).Port, func(port int) *peers.Consumer {
			return peers.ThriftGo.Client(t, port, wire, 0)
		}},
		{"brpc", "method", "SayHello", "Who", peers.JProtobuf.Server(t, "s1").Port, func(port int) *peers.Consumer {
			return peers.JProtobuf.Client(t, port, peers.BRPCOptions{Connections: 1})
		}},
		{"trpc", "func", "SayHello", "Who", peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1"}).Port, func(port int) *peers.Consumer {
			return peers.TRPCClient(t, port, peers.TRPCClientOptions{Multiplexed: 1})
		}},
	}
}

// limitedBy are listeners of all protocols with a filter.
func limitedBy(ps []limitedPeer, timeout string, filter func(p limitedPeer) envoytest.M) (ls []envoytest.Resource) {
	for _, p := range ps {
		config := envoytest.Protocol(p.codec, p.codec, envoytest.Route(p.codec, nil))
		config["request_timeout"] = timeout
		config["meta_protocol_filters"] = []any{filter(p), envoytest.M{"name": "aeraki.meta_protocol.filters.router"}}
		ls = append(ls, envoytest.Listener(p.codec, envoytest.Proxy(config)))
	}
	return ls
}

func (v variant) startLimited(t *testing.T, ps []limitedPeer, loopback envoytest.Resource, ls []envoytest.Resource) *envoytest.Envoy {
	t.Helper()
	o := v.options()
	for _, p := range ps {
		o.Clusters = append(o.Clusters, envoytest.Cluster(p.codec, envoytest.At(p.port)...))
	}
	o.Listeners = append([]envoytest.Resource{loopback}, ls...)
	return envoytest.Start(t, o)
}

// TestLocalRateLimit is Aeraki's own test of local limits, with real clients of all
// protocols: of 10 calls of sayHello 2 pass, by its own bucket, of others 5. An update of
// the listener brings no tokens.
func TestLocalRateLimit(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		ps, loopback := limitedPeers(t), envoytest.Loopback(envoytest.Socket())
		bucket := func(n int) envoytest.M {
			return envoytest.M{"max_tokens": n, "tokens_per_fill": n, "fill_interval": "3600s"}
		}
		filter := func(p limitedPeer) envoytest.M {
			return envoytest.M{"name": "aeraki.meta_protocol.filters.local_ratelimit", "config": envoytest.M{
				"@type":        "type.googleapis.com/aeraki.meta_protocol_proxy.filters.local_ratelimit.v1alpha.LocalRateLimit",
				"stat_prefix":  "outbound|20880||greeter",
				"token_bucket": bucket(5),
				"conditions": []any{envoytest.M{"token_bucket": bucket(2), "match": envoytest.M{
					"metadata": []any{envoytest.M{"name": p.property, "string_match": envoytest.M{"suffix": p.hello}}},
				}}},
			}}
		}
		e := v.startLimited(t, ps, loopback, limitedBy(ps, "10s", filter))
		load := func(c *peers.Consumer, method string, args ...any) int {
			t.Helper()
			s := c.Load(peers.Command{Method: method, Args: args, Count: 10, Concurrency: 3})
			require.Equal(t, 10, s.Succeeded()+s.Failed())
			for text := range s.Errors {
				require.Contains(t, text, "local rate limit: the request has been rate limited")
			}
			return s.Succeeded()
		}
		for _, p := range ps {
			c := p.client(e.Port(p.codec))
			require.Equal(t, 2, load(c, p.hello, "Ada"), p.codec)
			require.Equal(t, 5, load(c, p.who), p.codec)
			prefix := "meta_protocol." + p.codec + "." + p.codec + ".outbound|20880||greeter.local_rate_limit."
			e.WaitStat(prefix+"ok", envoytest.Exactly(7))
			e.WaitStat(prefix+"enforced", envoytest.AtLeast(13))
		}
		require.True(t, e.SetListeners(append([]envoytest.Resource{loopback}, limitedBy(ps, "11s", filter)...)...))
		for _, p := range ps {
			c := p.client(e.Port(p.codec))
			require.Zero(t, load(c, p.hello, "Ada")+load(c, p.who), p.codec)
		}
	})
}

// TestConnectionLimit: a second real client of each protocol is told that there are too
// many, and served when the first one has left.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		ps := limitedPeers(t)
		e := v.startLimited(t, ps, envoytest.Loopback(envoytest.Socket()), limitedBy(ps, "10s", func(limitedPeer) envoytest.M {
			return envoytest.M{"name": "aeraki.meta_protocol.filters.connection_limit", "config": envoytest.M{
				"@type":       "type.googleapis.com/aeraki.meta_protocol_proxy.filters.connection_limit.v1alpha.ConnectionLimit",
				"stat_prefix": "l", "max_connections": 1, "max_connections_per_address": 5, "delay": "30s",
			}}
		}))
		for _, p := range ps {
			prefix := "meta_protocol." + p.codec + "." + p.codec + ".connection_limit.l."
			who := peers.Command{Method: p.who}
			first := p.client(e.Port(p.codec))
			require.Equal(t, "s1", first.Call(who).Value, p.codec)
			e.WaitStat(prefix+"active_connections", envoytest.Exactly(1))

			second := p.client(e.Port(p.codec))
			require.Contains(t, second.Call(who).Error, "connection limit: there are too many connections", p.codec)
			require.Equal(t, "s1", first.Call(who).Value, p.codec)
			e.WaitStat(prefix+"limited_connections", envoytest.AtLeast(1))
			require.Zero(t, e.Stat(prefix+"limited_by_address"))

			first.Kill()
			e.WaitStat(prefix+"active_connections", envoytest.Exactly(0))
			// A client may still see the end of its refused connection.
			require.True(t, eventually(patience, func() bool { return second.Call(who).Value == "s1" }), p.codec)
		}
		silent := e.Dial("dubbo")
		e.WaitStat("meta_protocol.dubbo.dubbo.connection_limit.l.limited_connections", envoytest.AtLeast(2))
		require.NoError(t, silent.Close())
	})
}
