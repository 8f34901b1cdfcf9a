package e2e

import (
	"encoding/hex"
	"fmt"
	"net"
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
