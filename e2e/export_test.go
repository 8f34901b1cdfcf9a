package e2e

import (
	"net"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
	"github.com/meltemi-mesh/meltemi/filter/export/exporttest"
)

// TestACollectorGetsAll of a request, through clusters of Envoy's: a record of the log by
// gRPC, what is counted by HTTP. A collector that restarts gets what came meanwhile.
func TestACollectorGetsAll(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		logs, metrics := &exporttest.Collector{}, &exporttest.Collector{}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		port := l.Addr().(*net.TCPAddr).Port
		server := logs.Server()
		go server.Serve(l)
		t.Cleanup(func() { server.Stop() })
		web := httptest.NewServer(metrics)
		t.Cleanup(web.Close)

		greeter := scripted.Serve(t, scripted.Answer("a"))
		config := toOne("greeter")
		config["access_log"] = []any{envoytest.M{"name": "otlp", "typed_config": envoytest.M{
			"@type":        "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
			"grpc_service": envoytest.M{"envoy_grpc": envoytest.M{"cluster_name": "otel"}},
			"body":         envoytest.M{"string_value": "%REQ(:PATH)% %RESPONSE_CODE%"}, "buffer_flush_interval": "0.1s",
		}}}
		o := v.options()
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("greeter", envoytest.At(greeter.Port)...), envoytest.Cluster("otel", envoytest.At(port)...),
			envoytest.Cluster("web", envoytest.At(web.Listener.Addr().(*net.TCPAddr).Port)...),
		}
		o.Listeners = []envoytest.Resource{
			envoytest.LoopbackWithPush(envoytest.Socket(), envoytest.M{
				"http_service": envoytest.M{"http_uri": envoytest.M{"cluster": "web", "uri": "/v1/metrics"}}, "interval": "1s",
			}),
			envoytest.Listener("dubbo", envoytest.Proxy(config)),
		}
		e := envoytest.Start(t, o)
		c := scripted.Dial(t, e.Port("dubbo"))
		ask := func(id uint64) {
			c.Ask(id, dubbotest.Request{Method: "hello"})
			c.Answers(1)
		}
		for id := range uint64(10) {
			ask(id + 1)
		}
		records := func(n int) {
			require.True(t, eventually(patience, func() bool { return len(logs.Seen().Records) >= n }))
			require.Len(t, logs.Seen().Records, n)
		}
		records(10)
		require.Equal(t, "/org.example.Greeter/hello 200", logs.Seen().Records[0].GetBody().GetStringValue())

		counted := func(name string) (n float64) {
			for _, m := range metrics.Seen().Metrics {
				if m.GetName() != name {
					continue
				}
				for _, d := range m.GetSum().GetDataPoints() {
					n += d.GetAsDouble()
				}
				for _, d := range m.GetExponentialHistogram().GetDataPoints() {
					n += float64(d.GetCount())
				}
			}
			return n
		}
		require.True(t, eventually(patience, func() bool { return counted("meltemi_requests_total") == 10 }))
		require.True(t, eventually(patience, func() bool { return counted("meltemi_request_duration_seconds") == 10 }))
		require.True(t, eventually(patience, func() bool { return counted("meltemi_export_sent_total") >= 10 }))

		server.Stop()
		ask(11)
		require.True(t, eventually(patience, func() bool { return counted("meltemi_export_upload_failures_total") > 0 }))
		l, err = net.Listen("tcp", l.Addr().String())
		require.NoError(t, err)
		server = logs.Server()
		go server.Serve(l)
		records(11)
	})
}
