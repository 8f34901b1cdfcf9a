package e2e

import (
	"encoding/json"
	"net"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
	meltemi "github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/export/exporttest"
)

// TestACollectorGetsAll of a request, through clusters of Envoy's: a record of the log by
// gRPC, what is counted by HTTP, as docs/observability.md has it. A collector that restarts
// gets what came meanwhile.
func TestACollectorGetsAll(t *testing.T) {
	t.Parallel()
	var config, carrier envoytest.M
	for _, b := range docs.Blocks(source(t, "docs/observability.md")) {
		switch {
		case b.Kind != "yaml":
		case b.Section == "Records of OpenTelemetry":
			require.NoError(t, yaml.Unmarshal([]byte(b.Text), &config))
		case b.Section == "Metrics by OTLP":
			require.NoError(t, yaml.Unmarshal([]byte(b.Text), &carrier))
		}
	}
	require.NotNil(t, config)
	push := carrier["metrics"].(envoytest.M)["otlp"].(envoytest.M)
	text, err := json.Marshal(carrier)
	require.NoError(t, err)
	_, err = meltemi.LoadCarrier(text)
	require.NoError(t, err)
	delete(push, "grpc_service")
	push["http_service"] = envoytest.M{"http_uri": envoytest.M{"cluster": "web", "uri": "/v1/metrics"}}
	push["interval"] = "1s"
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
		o := v.options()
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("greeter", envoytest.At(greeter.Port)...), envoytest.Cluster("collector", envoytest.At(port)...),
			envoytest.Cluster("web", envoytest.At(web.Listener.Addr().(*net.TCPAddr).Port)...),
		}
		o.Listeners = []envoytest.Resource{
			envoytest.LoopbackWithPush(envoytest.Socket(), push),
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
		require.Equal(t, "/org.example.Greeter/hello 200 -", logs.Seen().Records[0].GetBody().GetStringValue())
		require.Equal(t, "north", exporttest.Attribute(logs.Seen().Resource.GetAttributes(), "region"))

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
		require.Equal(t, "shop", exporttest.Attribute(metrics.Seen().Resource.GetAttributes(), "service.name"))
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
