package e2e

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestClientsTakeSuccessesAndChangedBodies: real clients of each protocol get answers that
// no server has given, from a route and from a filter, and answers that a filter has
// changed.
func TestClientsTakeSuccessesAndChangedBodies(t *testing.T) {
	buildFilterSO(t) // before others run beside it, which load that object
	t.Parallel()
	message := base64.StdEncoding.EncodeToString([]byte("\x0a\x06mocked")) // its field 1
	text, payload := envoytest.M{"text": "mocked"}, envoytest.M{"payload": message}
	texts := envoytest.M{"texts": envoytest.M{"noSuch": "mocked"}}
	payloads := envoytest.M{"payloads": envoytest.M{"NoSuch": message}}
	framed, header := peers.Wire{Transport: "framed", Protocol: "strict"}, peers.Wire{Transport: "header", Protocol: "compact"}
	unframed := peers.Wire{Transport: "unframed", Protocol: "compact"}
	ttheader := peers.KitexOptions{Transport: "ttheader", Connections: "long"}

	type client struct {
		name string
		dial func(port int) *peers.Consumer
	}
	once(t, func(t *testing.T, v variant) {
		protocols := []struct {
			name, codec, method string // what the route answers
			success, mock       envoytest.M
			server              int
			clients             []client
			echo, noSuch        string // the server answers its name and the argument; the filter does
		}{
			{
				"dubbo", "dubbo", "who", text, texts, peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "s1"}).Port, []client{
					{"dubbo-go", func(port int) *peers.Consumer {
						return peers.DubboGo.Consumer(t, port, peers.ConsumerOptions{Timeout: calls.Patience})
					}},
					{"dubbo-java", func(port int) *peers.Consumer {
						return peers.Java.Consumer(t, port, peers.ConsumerOptions{Timeout: calls.Patience})
					}},
				}, "sayHello", "",
			},
			{
				"thrift-framed", "thrift", "who", text, texts, peers.ThriftGo.Server(t, "s1", framed).Port, []client{
					{"python", func(port int) *peers.Consumer { return peers.ThriftPython.Client(t, port, framed, 0) }},
				}, "echo", "noSuch",
			},
			{
				"thrift-header", "thrift", "who", text, texts, peers.ThriftGo.Server(t, "s1", header).Port, []client{
					{"go", func(port int) *peers.Consumer { return peers.ThriftGo.Client(t, port, header, 0) }},
				}, "echo", "noSuch",
			},
			{
				"thrift-unframed", "thrift", "who", text, texts, peers.ThriftGo.Server(t, "s1", unframed).Port, []client{
					{"go", func(port int) *peers.Consumer { return peers.ThriftGo.Client(t, port, unframed, 0) }},
				}, "echo", "noSuch",
			},
			{
				"kitex", "thrift", "who", text, texts, peers.KitexServer(t, "s1", false).Port, []client{
					{"kitex", func(port int) *peers.Consumer { return peers.KitexClient(t, port, ttheader) }},
				}, "echo", "noSuch",
			},
			{
				"trpc", "trpc", "Who", payload, payloads, peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1"}).Port, []client{
					{"trpc-go", func(port int) *peers.Consumer { return peers.TRPCClient(t, port, peers.TRPCClientOptions{}) }},
				}, "SayHello", "NoSuch",
			},
			{
				"brpc", "brpc", "Who", payload, payloads, peers.JProtobuf.Server(t, "s1").Port, []client{
					{"jprotobuf", func(port int) *peers.Consumer { return peers.JProtobuf.Client(t, port, peers.BRPCOptions{}) }},
					{"brpc-java", func(port int) *peers.Consumer { return peers.BRPCJava.Client(t, port, peers.BRPCOptions{}) }},
				}, "SayHello", "NoSuch",
			},
		}
		o := v.options()
		o.Modules = filterSO()
		o.Listeners = []envoytest.Resource{envoytest.LoopbackOf("custom", envoytest.Socket())}
		for _, p := range protocols {
			property := "method"
			if p.codec == "trpc" {
				property = "func"
			}
			match := envoytest.M{"metadata": []any{envoytest.M{"name": property, "string_match": envoytest.M{"suffix": p.method}}}}
			config := envoytest.Protocol(p.codec, p.name,
				envoytest.M{"match": match, "direct_response": envoytest.M{"success": p.success}},
				envoytest.Route(p.name, nil))
			structOf := func(name string, value envoytest.M) any {
				return envoytest.M{"name": name, "config": envoytest.M{"@type": "type.googleapis.com/google.protobuf.Struct", "value": value}}
			}
			config["meta_protocol_filters"] = []any{
				structOf("example.filters.redact", envoytest.M{"pattern": "Ada|mallory"}),
				structOf("example.filters.mock", p.mock),
				envoytest.M{"name": "aeraki.meta_protocol.filters.router"},
			}
			o.Clusters = append(o.Clusters, envoytest.Cluster(p.name, envoytest.At(p.server)...))
			l := envoytest.Listener(p.name, envoytest.Module("custom", "meta_protocol_proxy", config))
			l["filter_chains"].([]any)[0].(envoytest.M)["filters"].([]envoytest.M)[0]["typed_config"].(envoytest.M)["terminal_filter"] = true
			o.Listeners = append(o.Listeners, l)
		}
		e := envoytest.Start(t, o)
		for _, p := range protocols {
			for _, c := range p.clients {
				t.Run(fmt.Sprintf("%s, %s", p.name, c.name), func(t *testing.T) {
					consumer := c.dial(e.Port(p.name))
					value := func(method string, args ...any) any {
						a := consumer.Call(peers.Command{Method: method, Args: args})
						require.Empty(t, a.Error)
						return a.Value
					}
					for range 3 { // the connection goes on
						require.Equal(t, "mocked", value(p.method))
						require.Contains(t, value(p.echo, "Ada and Bob"), "*** and Bob")
						if p.noSuch != "" {
							a := consumer.Call(peers.Command{Method: p.noSuch, Args: []any{"x"}})
							require.Empty(t, a.Error)
						}
					}
				})
			}
			stats := "meta_protocol." + p.codec + "." + p.name + "."
			require.Zero(t, e.Stat(stats+"local_response_business_exception"))
			if !strings.HasSuffix(p.name, "framed") { // which have no headers to say that it is a mock
				require.Zero(t, e.Stat(stats+"mutation_skipped"), p.name)
			}
		}
	})
}
