package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// calling is a protocol with a server of it, and how its clients call.
type calling struct {
	codec      string
	property   string // that has the method, at its end
	hello, who string // methods
	code       int    // of an error
	port       int    // of the server
	client     func(port int) *peers.Consumer
}

// callings are of all four protocols.
func callings(t *testing.T) []calling {
	wire := peers.Wire{Transport: "header", Protocol: "strict"}
	return []calling{
		{"dubbo", "method", "sayHello", "who", 99, peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "s1"}).Port, func(port int) *peers.Consumer {
			return peers.Java.Consumer(t, port, peers.ConsumerOptions{Connections: 1})
		}},
		{"thrift", "method", "echo", "who", 16, peers.ThriftGo.Server(t, "s1", wire).Port, func(port int) *peers.Consumer {
			return peers.ThriftGo.Client(t, port, wire, 0)
		}},
		{"brpc", "method", "SayHello", "Who", 1011, peers.JProtobuf.Server(t, "s1").Port, func(port int) *peers.Consumer {
			return peers.JProtobuf.Client(t, port, peers.BRPCOptions{Connections: 1})
		}},
		{"trpc", "func", "SayHello", "Who", 141, peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1"}).Port, func(port int) *peers.Consumer {
			return peers.TRPCClient(t, port, peers.TRPCClientOptions{Multiplexed: 1})
		}},
	}
}

// filtered is a listener of the protocol with filters before the router.
func (c calling) filtered(name string, direction string, filters []any, routes ...any) envoytest.Resource {
	config := envoytest.Protocol(c.codec, name, routes...)
	config["meta_protocol_filters"] = append(filters, envoytest.M{"name": "aeraki.meta_protocol.filters.router"})
	config["traffic_direction"] = direction
	return envoytest.Listener(name, envoytest.Proxy(config))
}

// startCallings starts an Envoy with a cluster of each protocol.
func startCallings(t *testing.T, v variant, cs []calling, listeners []envoytest.Resource, clusters ...envoytest.Resource) *envoytest.Envoy {
	t.Helper()
	o := v.options()
	o.Clusters = clusters
	for _, c := range cs {
		o.Clusters = append(o.Clusters, envoytest.Cluster(c.codec, envoytest.At(c.port)...))
	}
	o.Listeners = append([]envoytest.Resource{envoytest.Loopback(envoytest.Socket())}, listeners...)
	return envoytest.Start(t, o)
}

func extension(name, message string, fields envoytest.M) envoytest.M {
	fields["@type"] = "type.googleapis.com/aeraki.meta_protocol_proxy.filters." + name + ".v1alpha." + message
	return envoytest.M{"name": "aeraki.meta_protocol.filters." + name, "config": fields}
}

func (c calling) ending(method string) envoytest.M {
	return envoytest.M{"metadata": []any{envoytest.M{"name": c.property, "string_match": envoytest.M{"suffix": method}}}}
}

// TestFaults are seen by real clients of each protocol: one method is delayed, the other
// one answered with a code, of which bRPC's and tRPC's clients tell.
func TestFaults(t *testing.T) {
	t.Parallel()
	const delay = 700 * time.Millisecond
	once(t, func(t *testing.T, v variant) {
		cs := callings(t)
		var ls []envoytest.Resource
		for _, c := range cs {
			always := envoytest.M{"numerator": 100}
			delayed := extension("fault", "Fault", envoytest.M{"delay": envoytest.M{"fixed_delay": "0.7s", "percentage": always}})
			delayed["match"] = c.ending(c.hello)
			aborted := extension("fault", "Fault", envoytest.M{"abort": envoytest.M{"reply": envoytest.M{"body": "chaos", "code": c.code}, "percentage": always}})
			aborted["match"] = c.ending(c.who)
			ls = append(ls, c.filtered(c.codec, "UNSPECIFIED", []any{delayed, aborted}, envoytest.Route(c.codec, nil)))
		}
		e := startCallings(t, v, cs, ls)
		for _, c := range cs {
			client := c.client(e.Port(c.codec))
			a := client.Call(peers.Command{Method: c.hello, Args: []any{"Ada"}})
			require.Empty(t, a.Error, c.codec)
			require.GreaterOrEqual(t, a.LatencyUS, delay.Microseconds(), c.codec)
			a = client.Call(peers.Command{Method: c.who})
			require.Contains(t, a.Error, "chaos", c.codec)
			switch c.codec {
			case "brpc":
				require.Equal(t, "ErrorDataException 1011", a.ErrorType)
			case "trpc":
				require.Contains(t, a.ErrorType+a.Error, "141")
			}
			prefix := "meta_protocol." + c.codec + "." + c.codec + ".fault."
			e.WaitStat(prefix+"delays_injected", envoytest.AtLeast(1))
			e.WaitStat(prefix+"aborts_injected", envoytest.AtLeast(1))
			e.WaitStat(prefix+"active_faults", envoytest.Exactly(0))
			require.Zero(t, e.Stat(prefix+"faults_overflow"))
		}
	})
}

// TestSetMetadata has routes go by what was made of the method, and of the client.
func TestSetMetadata(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		cs := callings(t)
		var ls []envoytest.Resource
		for _, c := range cs {
			set := extension("set_metadata", "SetMetadata", envoytest.M{"entries": []any{
				envoytest.M{"name": "x-lane", "format": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %METHOD%", "extract": envoytest.M{"pattern": `127\.0\.0\.1 (?i:(.).*)`, "substitution": `lane-\1`}},
				envoytest.M{"name": "x-hops", "value": "meltemi", "upstream": true},
			}})
			lane := envoytest.Route(c.codec, map[string]string{"x-lane": "lane-" + c.hello[:1]})
			rest := envoytest.M{"direct_response": envoytest.M{"status": "DENIED", "body": "another lane"}}
			ls = append(ls, c.filtered(c.codec, "UNSPECIFIED", []any{set}, lane, rest))
		}
		e := startCallings(t, v, cs, ls)
		for _, c := range cs {
			client := c.client(e.Port(c.codec))
			require.Empty(t, client.Call(peers.Command{Method: c.hello, Args: []any{"Ada"}}).Error, c.codec)
			require.Contains(t, client.Call(peers.Command{Method: c.who}).Error, "another lane", c.codec)
			require.Zero(t, e.Stat("meta_protocol."+c.codec+"."+c.codec+".mutation_skipped"))
		}
	})
}

// TestLua has a script choose the lane of a call, for routes and on the wire, and answer
// another one in the client's protocol.
func TestLua(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		cs := callings(t)
		var ls []envoytest.Resource
		for _, c := range cs {
			script := extension("lua", "Lua", envoytest.M{
				"filter_context": envoytest.M{"refused": c.who},
				"default_source_code": envoytest.M{"inline_string": `
					function envoy_on_request(handle)
						local method = handle:streamInfo():method()
						if method == handle:filterContext().refused then
							handle:respond({status = "DENIED"}, "not " .. method .. " from " .. handle:streamInfo():downstreamRemoteAddress())
						end
						handle:headers():replace("x-lane", "blue")
					end
					function envoy_on_response(handle)
						handle:logWarn("answered " .. handle:streamInfo():responseStatus() .. " by " .. handle:streamInfo():upstreamCluster())
					end`},
			})
			ls = append(ls, c.filtered(c.codec, "UNSPECIFIED", []any{script}, envoytest.Route(c.codec, map[string]string{"x-lane": "blue"})))
		}
		e := startCallings(t, v, cs, ls)
		for _, c := range cs {
			client, prefix := c.client(e.Port(c.codec)), "meta_protocol."+c.codec+"."+c.codec
			require.Empty(t, client.Call(peers.Command{Method: c.hello, Args: []any{"Ada"}}).Error, c.codec)
			require.Contains(t, client.Call(peers.Command{Method: c.who}).Error, "from 127.0.0.1:", c.codec)
			require.Contains(t, e.Log(), "lua: default_source_code: answered ok by "+c.codec)
			require.True(t, eventually(patience, func() bool { return e.Stat(prefix+".lua.responded") == 1 }), c.codec)
			require.Zero(t, e.Stat(prefix+".lua.errors"))
			require.Zero(t, e.Stat(prefix+".lua.mutation_skipped"), c.codec)
			require.Zero(t, e.Stat(prefix+".mutation_skipped"), c.codec)
		}
	})
}

// TestMetadataExchange: calls go through two listeners, and the second one routes by what
// the first one tells of its workload. Who does not come through the first is unknown.
func TestMetadataExchange(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		cs := callings(t)
		var ls, clusters []envoytest.Resource
		for _, c := range cs {
			workload := func(app string) envoytest.M {
				return extension("metadata_exchange", "MetadataExchange", envoytest.M{
					"node_id": app + "-id", "workload": envoytest.M{"workload_name": app, "labels": envoytest.M{"app": app}},
				})
			}
			web := envoytest.Route(c.codec, nil)
			web["match"] = envoytest.M{"source_labels": envoytest.M{"app": "web"}}
			stranger := envoytest.M{"direct_response": envoytest.M{"status": "DENIED", "body": "a stranger"}}
			ls = append(ls, c.filtered(c.codec+"-out", "OUTBOUND", []any{workload("web")}, envoytest.Route(c.codec+"-in", nil)),
				c.filtered(c.codec+"-in", "INBOUND", []any{workload("cart")}, web, stranger))
			clusters = append(clusters, envoytest.Cluster(c.codec+"-in"))
		}
		e := startCallings(t, v, cs, ls, clusters...)
		for _, c := range cs {
			e.SetEndpoints(c.codec+"-in", envoytest.At(e.Port(c.codec+"-in"))...)
			client := c.client(e.Port(c.codec + "-out"))
			for range 3 {
				require.Equal(t, "s1", client.Call(peers.Command{Method: c.who}).Value, c.codec)
			}
			require.Contains(t, c.client(e.Port(c.codec+"-in")).Call(peers.Command{Method: c.who}).Error, "a stranger", c.codec)
			for _, side := range []string{"-out", "-in"} {
				prefix := "meta_protocol." + c.codec + "." + c.codec + side
				require.Zero(t, e.Stat(prefix+".mutation_skipped"), prefix)
				require.Zero(t, e.Stat(prefix+".metadata_exchange.malformed"), prefix)
			}
		}
	})
}
