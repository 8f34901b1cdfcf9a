package e2e

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
	"github.com/meltemi-mesh/meltemi/filter/export/exporttest"
)

// attachmentsOf are those of a request, by the codec.
func attachmentsOf(req dubbotest.Parsed) (map[string]string, error) {
	c, err := dubbo.New(nil, codecs.Limits{})
	if err != nil {
		return nil, err
	}
	md := new(codecs.Metadata)
	_, err = c.NewDecoder(codecs.ClientToServer).Decode(dubbotest.Frame(req.Flags, req.Status, req.ID, req.Body), md)
	all := map[string]string{}
	for _, p := range md.Properties() {
		all[string(p.Name)] = string(p.Value)
	}
	return all, err
}

// collector is an OTLP collector, and the cluster of Envoy's that leads to it.
func collector(t *testing.T) (*exporttest.Collector, envoytest.Resource) {
	t.Helper()
	c := &exporttest.Collector{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := c.Server()
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return c, envoytest.Cluster("collector", envoytest.At(l.Addr().(*net.TCPAddr).Port)...)
}

// stringOf is an attribute of a span, "" if it has none.
func stringOf(s *tracepb.Span, key string) string {
	for _, kv := range s.GetAttributes() {
		if kv.GetKey() == key {
			return kv.GetValue().GetStringValue()
		}
	}
	return ""
}

// TestAChainOfCallsIsOneTrace: a Dubbo client calls, through an Envoy with the page's
// configuration, a server that calls a tRPC server through another Envoy. Each hop has its
// span within that of the one before, and so says the last server.
func TestAChainOfCallsIsOneTrace(t *testing.T) {
	t.Parallel()
	var config envoytest.M
	for _, b := range docs.Blocks(source(t, "docs/observability.md")) {
		if b.Section == "Traces" && b.Kind == "yaml" {
			require.NoError(t, yaml.Unmarshal([]byte(b.Text), &config))
		}
	}
	require.NotNil(t, config)
	once(t, func(t *testing.T, v variant) {
		spans, cluster := collector(t)
		last := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1"})
		inbound := envoytest.Protocol("trpc", "inbound", envoytest.Route("trpc", nil))
		inbound["traffic_direction"] = "INBOUND"
		inbound["tracing"] = envoytest.M{"random_sampling": envoytest.M{"value": 0}, "provider": config["tracing"].(envoytest.M)["provider"]}
		second := v.start(t, inbound, envoytest.Cluster("trpc", envoytest.At(last.Port)...), cluster)
		trpc := peers.TRPCClient(t, second.Port("trpc"), peers.TRPCClientOptions{})

		told := make(chan any, 1)
		middle := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			got, err := attachmentsOf(req)
			hands := map[string]any{}
			for _, k := range []string{"x-request-id", "traceparent"} {
				hands[k] = got[k]
			}
			a := trpc.Call(peers.Command{Method: "Metadata", Attachments: hands})
			told <- a.Value
			c.Write(dubbotest.Response(req.ID, fmt.Sprint(err, a.Error)))
		})
		first := v.start(t, config, envoytest.Cluster("greeter", envoytest.At(middle.Port)...), cluster)
		consumer := peers.DubboGo.Consumer(t, first.Port("dubbo"), peers.ConsumerOptions{})
		a := consumer.Call(peers.Command{Method: "who", Attachments: map[string]any{"tenant": "acme"}})
		require.Equal(t, "<nil>", strings.TrimSpace(fmt.Sprint(a.Error, a.Value)))
		server := (<-told).(map[string]any)

		require.Eventually(t, func() bool { return len(spans.Seen().Spans) >= 2 }, patience, tick)
		all := spans.Seen().Spans
		require.Len(t, all, 2)
		client, served := all[0], all[1]
		if client.GetKind() != tracepb.Span_SPAN_KIND_CLIENT {
			client, served = served, client
		}
		require.Equal(t, client.GetTraceId(), served.GetTraceId())
		require.Empty(t, client.GetParentSpanId())
		require.Equal(t, client.GetSpanId(), served.GetParentSpanId())
		require.Equal(t, "00-"+hex.EncodeToString(served.GetTraceId())+"-"+hex.EncodeToString(served.GetSpanId())+"-01", server["traceparent"])

		require.Equal(t, tracepb.Span_SPAN_KIND_SERVER, served.GetKind())
		require.True(t, strings.HasSuffix(client.GetName(), "/who"), client.GetName())
		require.True(t, strings.HasSuffix(served.GetName(), "/Metadata"), served.GetName())
		for s, want := range map[*tracepb.Span][2]string{client: {"dubbo", "OK"}, served: {"trpc", "0"}} {
			require.Equal(t, want, [2]string{stringOf(s, "rpc.system.name"), stringOf(s, "rpc.status_code")})
			require.Equal(t, server["x-request-id"], stringOf(s, "guid:x-request-id"))
			require.GreaterOrEqual(t, s.GetEndTimeUnixNano(), s.GetStartTimeUnixNano())
		}
		require.Equal(t, "acme", stringOf(client, "tenant"))
		require.Equal(t, "none", stringOf(client, "zone"))
		require.Equal(t, "greeter", stringOf(client, "upstream_cluster"))
		// The one is within the other.
		require.LessOrEqual(t, client.GetStartTimeUnixNano(), served.GetEndTimeUnixNano())
	})
}

// TestServersAreToldWhereTheyStand: what servers of real libraries read of a request, as
// W3C and as B3, is the proxy's span, within that of the client.
func TestServersAreToldWhereTheyStand(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
		w3c, b3 := [2]string{"traceparent", "00-" + trace + "-" + parent + "-01"}, [2]string{"b3", trace + "-" + parent + "-1"}
		traces, cluster := collector(t)
		web := httptest.NewServer(traces)
		t.Cleanup(web.Close)
		zipkin := func(option string) envoytest.M {
			return envoytest.M{"name": "envoy.tracers.zipkin", "typed_config": envoytest.M{
				"@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig", "trace_context_option": option,
				"collector_cluster": "zipkin", "collector_endpoint": "/api/v2/spans", "collector_endpoint_version": "HTTP_JSON",
			}}
		}
		forms := map[string]struct {
			provider envoytest.M
			says     [2]string
			w3c, b3  bool
		}{
			"opentelemetry": {envoytest.M{"name": "envoy.tracers.opentelemetry", "typed_config": envoytest.M{
				"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig", "grpc_service": envoytest.M{"envoy_grpc": envoytest.M{"cluster_name": "collector"}},
			}}, w3c, true, false},
			"zipkin": {zipkin("USE_B3"), b3, false, true},
			"both":   {zipkin("USE_B3_WITH_W3C_PROPAGATION"), w3c, true, true},
		}
		servers := map[string]int{
			"dubbo":  peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "s1"}).Port,
			"thrift": peers.KitexServer(t, "s1", false).Port,
		}
		o := v.options()
		o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket())}
		o.Clusters = []envoytest.Resource{cluster, envoytest.Cluster("zipkin", envoytest.At(web.Listener.Addr().(*net.TCPAddr).Port)...)}
		for protocol, port := range servers {
			o.Clusters = append(o.Clusters, envoytest.Cluster(protocol, envoytest.At(port)...))
			for form, f := range forms {
				c := envoytest.Protocol(protocol, protocol+"-"+form, envoytest.Route(protocol, nil))
				c["traffic_direction"], c["tracing"] = "OUTBOUND", envoytest.M{"provider": f.provider}
				o.Listeners = append(o.Listeners, envoytest.Listener(protocol+"-"+form, envoytest.Proxy(c)))
			}
		}
		e := envoytest.Start(t, o)

		// spans are the ids of those that are told of, within the client's.
		spans := func() map[string]bool {
			all := map[string]bool{}
			seen := traces.Seen()
			for _, s := range seen.Spans {
				all[hex.EncodeToString(s.GetSpanId())] = hex.EncodeToString(s.GetTraceId()) == trace && hex.EncodeToString(s.GetParentSpanId()) == parent
			}
			for _, s := range seen.Zipkin {
				all[s["id"].(string)] = s["traceId"] == trace && s["parentId"] == parent
			}
			return all
		}
		read := func(t *testing.T, form, prefix string, all map[string]any) {
			t.Helper()
			f := forms[form]
			got := map[string]bool{}
			if f.w3c {
				said, _ := all[prefix+"traceparent"].(string)
				var p place
				flags := ""
				_, err := fmt.Sscanf(said, "00-%32s-%16s-%2s", &p.trace, &p.span, &flags)
				require.NoError(t, err, "%v", all)
				require.Equal(t, [2]string{trace, "01"}, [2]string{p.trace, flags})
				got[p.span] = true
			} else {
				require.NotContains(t, all, prefix+"traceparent")
			}
			if f.b3 {
				require.Equal(t, [2]any{trace, "1"}, [2]any{all[prefix+"x-b3-traceid"], all[prefix+"x-b3-sampled"]}, "%v", all)
				span, _ := all[prefix+"x-b3-spanid"].(string)
				got[span] = true
			} else {
				require.NotContains(t, all, prefix+"x-b3-traceid")
			}
			require.Len(t, got, 1, "all of them say the same")
			for span := range got {
				require.True(t, eventually(patience, func() bool { return spans()[span] }), "%s of %v", span, all)
			}
		}
		for form, f := range forms {
			t.Run(form, func(t *testing.T) {
				a := map[string]any{f.says[0]: f.says[1]}
				c := peers.DubboGo.Consumer(t, e.Port("dubbo-"+form), peers.ConsumerOptions{})
				answer := c.Call(peers.Command{Method: "attachments", Attachments: a})
				require.Empty(t, answer.Error)
				read(t, form, "", answer.Value.(map[string]any))
				// So docs/observability.md says. Should it fail with another dubbo-go, that
				// reads what all others write.
				answer = c.Call(peers.Command{Method: "trace", Attachments: a})
				require.Equal(t, [2]any{"", ""}, [2]any{answer.Value, answer.Error})

				a = map[string]any{"RPC_TRANSIT_" + f.says[0]: f.says[1]}
				answer = peers.KitexClient(t, e.Port("thrift-"+form), peers.KitexOptions{}).Call(peers.Command{Method: "headers", Attachments: a})
				require.Empty(t, answer.Error)
				read(t, form, "RPC_TRANSIT_", answer.Value.(map[string]any))
			})
		}
	})
}
