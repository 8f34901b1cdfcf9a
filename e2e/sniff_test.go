package e2e

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestOnePortForAllProtocols: the first bytes of each connection tell what its
// client speaks.
func TestOnePortForAllProtocols(t *testing.T) {
	t.Parallel()
	codec := func(name string) envoytest.M { return envoytest.M{"name": "aeraki.meta_protocol.codec." + name} }
	protocols := map[string]envoytest.M{
		"auto": {"name": "any", "codec": codec("auto")},
		"list": {"name": "any", "codecs": []any{codec("thrift"), codec("trpc"), codec("dubbo"), codec("brpc")}},
	}
	const stats = "meta_protocol.any.test."
	once(t, func(t *testing.T, v variant) {
		dubbo := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "dubbo"})
		brpc := peers.JProtobuf.Server(t, "brpc")
		trpc := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "trpc", Streams: true})
		clusters := []envoytest.Resource{
			envoytest.Cluster("dubbo", envoytest.At(dubbo.Port)...), envoytest.Cluster("brpc", envoytest.At(brpc.Port)...),
			envoytest.Cluster("trpc", envoytest.At(trpc.Port)...),
		}
		routes := []any{
			envoytest.Route("brpc", map[string]string{"compress_type": "0"}), envoytest.Route("trpc", map[string]string{"content_encoding": "0"}),
		}
		for _, w := range thriftWires {
			s := peers.ThriftGo.Server(t, "thrift", w)
			clusters = append(clusters, envoytest.Cluster(thriftName(w), envoytest.At(s.Port)...))
			protocol := map[string]string{"strict": "binary", "lax": "binary_lax", "compact": "compact"}[w.Protocol]
			if !w.Zlib { // whose servers understand those of both
				routes = append(routes, envoytest.Route(thriftName(w), map[string]string{"transport": w.Transport, "protocol": protocol}))
			}
		}
		routes = append(routes, envoytest.Route("dubbo", nil))
		for name, protocol := range protocols {
			t.Run(name, func(t *testing.T) {
				config := envoytest.Protocol("any", "test", routes...)
				config["protocol"] = protocol
				o := v.options()
				o.Clusters = clusters
				o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket()), envoytest.Listener("any", envoytest.Proxy(config))}
				e := envoytest.Start(t, o)
				port := e.Port("any")

				calls := map[string]struct {
					c    *peers.Consumer
					call peers.Command
					want any
				}{
					"dubbo": {peers.DubboGo.Consumer(t, port, peers.ConsumerOptions{}), peers.Command{Method: "who"}, "dubbo"},
					"brpc":  {peers.JProtobuf.Client(t, port, peers.BRPCOptions{}), brpcCall("Who"), "brpc"},
					"trpc":  {peers.TRPCClient(t, port, peers.TRPCClientOptions{}), trpcCall("Who"), "trpc"},
				}
				for i, w := range thriftWires {
					calls[fmt.Sprint("thrift, ", w)] = struct {
						c    *peers.Consumer
						call peers.Command
						want any
					}{thriftLibraries[i%2].Client(t, port, w, 0), thriftCall("who"), "thrift"}
				}
				var all sync.WaitGroup
				for name, tc := range calls {
					all.Go(func() {
						tc.call.Count, tc.call.Concurrency = 200, 4
						s := tc.c.Load(tc.call)
						if s.Failed() > 0 || s.Values[fmt.Sprint(tc.want)] != 200 {
							t.Errorf("%s: values %v, errors %v", name, s.Values, s.Errors)
						}
					})
				}
				all.Wait()
				checkTRPCStreams(t, calls["trpc"].c, "trpc", 100)

				before := e.Stat(stats + "request_decoding_error")
				stranger := e.Dial("any")
				_, err := stranger.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
				require.NoError(t, err)
				n, err := stranger.Read(make([]byte, 100))
				require.Zero(t, n)
				require.Error(t, err)
				e.WaitStat(stats+"request_decoding_error", envoytest.Exactly(before+1))
				checkCountersOf(t, e, stats)
			})
		}
	})
}
