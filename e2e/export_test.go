package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
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
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", peers.RestartPort(t)))
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

// TestCollectorsThatDoNotTakeAnything cost no request its time, and the process a bounded
// memory; when they do again each of what was told is accounted for. One says nothing, by
// gRPC, nor does one by HTTP, and behind the third address is nobody.
func TestCollectorsThatDoNotTakeAnything(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		const clients, window, fills, requests = 4, 500, 30_000, 300_000
		goOn := make(chan struct{})
		release := sync.OnceFunc(func() { close(goOn) })
		t.Cleanup(release)
		hangs := func(int) (int, error) { <-goOn; return 0, nil }
		spans, zipkin, logs := &exporttest.Collector{Answer: hangs}, &exporttest.Collector{Answer: hangs}, &exporttest.Collector{}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		server := spans.Server()
		go server.Serve(l)
		t.Cleanup(server.Stop)
		web := httptest.NewServer(zipkin)
		t.Cleanup(web.Close)
		t.Cleanup(release) // before those wait for their handlers
		nobody := peers.RestartPort(t)

		tracer := func(name string, config envoytest.M) envoytest.M {
			config["@type"] = "type.googleapis.com/envoy.config.trace.v3." + name
			return envoytest.M{"provider": envoytest.M{"name": name, "typed_config": config}}
		}
		admin := filepath.Join(t.TempDir(), "admin")
		greeter := scripted.Serve(t, scripted.Answer("a"))
		o := v.options()
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("greeter", envoytest.At(greeter.Port)...), envoytest.Cluster("spans", envoytest.At(l.Addr().(*net.TCPAddr).Port)...),
			envoytest.Cluster("zipkin", envoytest.At(web.Listener.Addr().(*net.TCPAddr).Port)...), envoytest.Cluster("logs", envoytest.At(nobody)...),
		}
		o.Listeners = []envoytest.Resource{envoytest.LoopbackWithAdmin(envoytest.Socket(), "unix:"+admin)}
		for name, tracing := range map[string]envoytest.M{
			"otel": tracer("OpenTelemetryConfig", envoytest.M{"grpc_service": envoytest.M{"timeout": "600s", "envoy_grpc": envoytest.M{"cluster_name": "spans"}}}),
			"zipkin": tracer("ZipkinConfig", envoytest.M{"collector_service": envoytest.M{"http_uri": envoytest.M{
				"cluster": "zipkin", "uri": "/api/v2/spans", "timeout": "600s",
			}}, "collector_endpoint_version": "HTTP_JSON"}),
		} {
			c := envoytest.Dubbo(name, envoytest.Route("greeter", nil))
			c["tracing"] = tracing
			c["access_log"] = []any{envoytest.M{"name": "envoy.access_loggers.open_telemetry", "typed_config": envoytest.M{
				"@type":        "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
				"grpc_service": envoytest.M{"envoy_grpc": envoytest.M{"cluster_name": "logs"}},
				"body":         envoytest.M{"string_value": strings.Repeat("%REQ(:PATH)%", 10)},
			}}}
			o.Listeners = append(o.Listeners, envoytest.Listener(name, envoytest.Proxy(c)))
		}
		e := envoytest.Start(t, o)
		require.True(t, eventually(patience, func() bool { _, err := os.Stat(admin); return err == nil }))

		codec := exactly[0].codec(t)
		var ok answered
		asked := 0
		// ask has n requests answered while nothing is taken by any collector.
		ask := func(n int) {
			t.Helper()
			asked += n
			var all sync.WaitGroup
			for i := range clients {
				c := e.Dial([]string{"otel", "zipkin"}[i%2])
				all.Go(func() {
					defer c.Close()
					for range n / clients / window {
						var b []byte
						for id := range uint64(window) {
							b = append(b, dubbotest.Request{ID: id, Method: "ok"}.Bytes()...)
						}
						if err := exactly[0].ask(codec, c, b, window, &ok); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
		}
		ask(fills)
		before := e.RSS()
		ask(requests)
		require.EqualValues(t, asked, ok.ok.Load())
		holdsLittle(t, e, before, 800<<20) // that would be without a bound

		// told is what has become of what collectors should have got, by signal.
		told := func() (sent, dropped, waiting map[string]int) {
			all := scrape(t, admin)
			by := func(name string) map[string]int {
				n := map[string]int{}
				for _, m := range all["meltemi_export_"+name].GetMetric() {
					for _, l := range m.GetLabel() {
						if l.GetName() == "collector" {
							n[l.GetValue()] += int(m.GetCounter().GetValue() + m.GetGauge().GetValue())
						}
					}
				}
				return n
			}
			return by("sent_total"), by("dropped_total"), by("waiting")
		}
		var sent, dropped, waiting map[string]int
		all := map[string]int{"cluster spans": asked / 2, "cluster zipkin": asked / 2, "cluster logs": asked}
		require.True(t, eventually(patience, func() bool {
			sent, dropped, waiting = told()
			for name, n := range all {
				if dropped[name]+waiting[name] != n {
					return false
				}
			}
			return true
		}), "%v dropped, %v wait of %v", dropped, waiting, all)
		require.Zero(t, spans.Seen().Uploads+zipkin.Seen().Uploads)
		require.Equal(t, [2]int{1024, 1024}, [2]int{waiting["cluster spans"], waiting["cluster zipkin"]})
		require.LessOrEqual(t, waiting["cluster logs"], 131_072)

		release()
		l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", nobody))
		require.NoError(t, err)
		server = logs.Server()
		go server.Serve(l)
		t.Cleanup(server.Stop)
		require.True(t, eventually(2*patience, func() bool { // attempts are 15 s apart
			sent, dropped, waiting = told()
			return waiting["cluster spans"]+waiting["cluster zipkin"]+waiting["cluster logs"] == 0
		}), "%v", waiting)
		for name, n := range all {
			require.Equal(t, n, sent[name]+dropped[name], name)
		}
		require.Equal(t, map[string]int{
			"cluster spans": len(spans.Seen().Spans), "cluster zipkin": len(zipkin.Seen().Zipkin), "cluster logs": len(logs.Seen().Records),
		}, sent)
		require.Positive(t, sent["cluster spans"]*sent["cluster zipkin"]*sent["cluster logs"])
	})
}
