package filter_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/export/exporttest"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// elsewhere is a host whose clusters are all at one address.
type elsewhere struct {
	t       *testing.T
	address string
}

func (e elsewhere) DialCluster(ctx context.Context, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", e.address)
}

func (e elsewhere) Logf(_ host.Level, format string, args ...any) { e.t.Logf(format, args...) }

// TestWhatIsExported: a request's record and metrics reach a collector through a cluster,
// by the end of their configurations at the latest, and are counted.
func TestWhatIsExported(t *testing.T) {
	collector := &exporttest.Collector{}
	server := httptest.NewServer(collector)
	defer server.Close()
	there := elsewhere{t, server.Listener.Addr().String()}
	mod := filter.NewModule()
	mod.Seed(1)
	h := filtertest.NewWith(t, mod, 1)
	h.DialCluster = there.DialCluster
	h.Cluster("up", "h").Serve = func(s *filtertest.Server, b []byte) int {
		requests, rest := dubbotest.Parse(b)
		for _, r := range requests {
			s.Send(dubbotest.Response(r.ID, "x"))
		}
		return len(b) - len(rest)
	}
	m := &export.PushConfig{}
	require.NoError(t, json.Unmarshal([]byte(`{"http_service": {"http_uri": {"cluster": "otel", "uri": "/v1/metrics"}}}`), m))
	to, err := export.ParsePush(m, "")
	require.NoError(t, err)
	mod.Push(to, there)
	mod.Push(to, there) // it is the same

	cfg := h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"route_config": {"routes": [{"name": "all", "route": {"cluster": "up"}}]}, "access_log": [{"typed_config": {
			"@type": "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
			"http_service": {"http_uri": {"cluster": "otel", "uri": "/v1/logs"}}, "stat_prefix": "mine",
			"body": {"string_value": "%REQ(:PATH)%"}, "attributes": {"values": [{"key": "code", "value": {"string_value": "%RESPONSE_CODE%"}}]}}}]}`)
	c := h.Dial(cfg)
	c.Send(dubbotest.Request{ID: 1, Method: "hello"}.Bytes(), dubbotest.Request{ID: 2, Method: "bye"}.Bytes())
	h.Advance(1e9)
	c.Close()
	h.Settle()
	cfg.Destroy()
	h.Settle()
	mod.Push(nil, there)
	mod.Wait()

	seen := collector.Seen()
	require.Len(t, seen.Records, 2)
	require.Equal(t, "/org.example.Greeter/hello", seen.Records[0].GetBody().GetStringValue())
	require.Equal(t, "200", exporttest.Attribute(seen.Records[1].GetAttributes(), "code"))
	sums := map[string]float64{}
	for _, m := range seen.Metrics {
		for _, d := range m.GetSum().GetDataPoints() {
			sums[m.GetName()] += d.GetAsDouble()
		}
	}
	require.InDelta(t, 2, sums["meltemi_requests_total"], 0)
	require.InDelta(t, 2, sums["meltemi_listener_access_log_written_total"], 0)
	problems, err := testutil.GatherAndLint(mod.Metrics())
	require.NoError(t, err)
	require.Empty(t, problems)
	families, err := mod.Metrics().Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "meltemi_export_sent_total" {
			for _, d := range f.GetMetric() {
				if d.GetLabel()[1].GetValue() == "logs" {
					require.Equal(t, "mine", d.GetLabel()[0].GetValue())
					require.InDelta(t, 2, d.GetCounter().GetValue(), 0)
				}
			}
		}
	}
}
