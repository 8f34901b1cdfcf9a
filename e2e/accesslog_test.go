package e2e

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// logTo is an access log of the default format.
func logTo(path string) envoytest.M {
	return envoytest.M{"name": "envoy.access_loggers.file", "typed_config": envoytest.M{
		"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": path,
	}}
}

// loggedLines are those of a log.
func loggedLines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	ls := strings.Split(string(b), "\n")
	return ls[:len(ls)-1]
}

// TestEachRequestOfRealClientsIsALine: of calls of every kind, of each protocol, the lines
// are as many as the requests.
func TestEachRequestOfRealClientsIsALine(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		dubbo := peers.Java.Provider(t, peers.ProviderOptions{Name: "s1"})
		thrift := peers.Wire{Transport: "framed", Protocol: "strict"}
		servers := map[string]int{
			"dubbo":  dubbo.Port,
			"thrift": thriftLibraries[0].Server(t, "s1", thrift).Port,
			"trpc":   peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1"}).Port,
			"brpc":   peers.BRPCJava.Server(t, "s1").Port,
		}
		dir := t.TempDir()
		o := v.options()
		admin := filepath.Join(t.TempDir(), "admin")
		o.Listeners = []envoytest.Resource{envoytest.LoopbackWithAdmin(envoytest.Socket(), "unix:"+admin)}
		for name, port := range servers {
			o.Clusters = append(o.Clusters, envoytest.Cluster(name, envoytest.At(port)...))
			c := envoytest.Protocol(name, name, envoytest.Route(name, nil))
			c["access_log"] = []any{logTo(filepath.Join(dir, name))}
			c["request_timeout"] = "10s" // the end of Go's oneways
			o.Listeners = append(o.Listeners, envoytest.Listener(name, envoytest.Proxy(c)))
		}
		e := envoytest.Start(t, o)
		for name, call := range map[string]func(t *testing.T){
			"dubbo": func(t *testing.T) {
				calls.Dubbo(t, peers.DubboGo, peers.DubboGo.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{Timeout: calls.Patience}), "s1")
			},
			"thrift": func(t *testing.T) {
				calls.Thrift(t, thrift, thriftLibraries[0].Client(t, e.Port("thrift"), thrift, 0), "s1")
			},
			"trpc": func(t *testing.T) {
				calls.TRPC(t, peers.TRPCClient(t, e.Port("trpc"), peers.TRPCClientOptions{}), "s1", false)
			},
			"brpc": func(t *testing.T) {
				l := peers.BRPCJava
				calls.BRPC(t, l, l, l.Client(t, e.Port("brpc"), peers.BRPCOptions{}), "s1")
			},
		} {
			t.Run(name, func(t *testing.T) {
				call(t)
				stat := "meta_protocol." + name + "." + name + "."
				e.WaitStat(stat+"request_active", envoytest.Exactly(0))
				requests := e.Stat(stat + "request")
				require.Positive(t, requests)
				e.WaitStat(stat+"access_log_written", envoytest.Exactly(requests))
				var ls []string
				require.Eventually(t, func() bool { ls = loggedLines(t, filepath.Join(dir, name)); return len(ls) >= int(requests) }, patience, tick)
				require.Len(t, ls, int(requests))
				var ok int64
				for _, l := range ls {
					require.Contains(t, l, `"`+name+` /`)
					if strings.Contains(l, " 200 - via_upstream ") {
						ok++
					}
				}
				require.Greater(t, ok, requests/2)
				require.Zero(t, e.Stat(stat+"access_log_lost"))

				all := scrape(t, admin)
				require.Equal(t, requests, int64(sum(all["meltemi_requests_total"], name)))
				require.Equal(t, requests, int64(sum(all["meltemi_request_duration_seconds"], name)))
				require.Equal(t, requests, int64(sum(all["meltemi_listener_request_total"], name)))
				require.Zero(t, sum(all["meltemi_requests_in_flight"], name))
			})
		}
	})
}

// scrape is what Prometheus would get at a socket.
func scrape(t *testing.T, socket string) map[string]*dto.MetricFamily {
	t.Helper()
	resp := scrapeAs(t, socket, expfmt.NewFormat(expfmt.TypeTextPlain))
	defer resp.Body.Close()
	p := expfmt.NewTextParser(model.UTF8Validation)
	all, err := p.TextToMetricFamilies(resp.Body)
	require.NoError(t, err)
	return all
}

// scrapeAs is what is answered to who wants a format.
func scrapeAs(t *testing.T, socket string, f expfmt.Format) *http.Response {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://meltemi/metrics", nil)
	require.NoError(t, err)
	req.Header.Set("Accept", string(f))
	resp, err := transport.RoundTrip(req)
	require.NoError(t, err)
	return resp
}

// sum adds up the metrics of a protocol: counters, gauges, and counts of histograms.
func sum(f *dto.MetricFamily, protocol string) (n float64) {
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "protocol" && l.GetValue() == protocol {
				n += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return n
}

// TestTheObservabilityPagesLog does with real calls what the page says.
func TestTheObservabilityPagesLog(t *testing.T) {
	t.Parallel()
	var config envoytest.M
	for _, b := range docs.Blocks(source(t, "docs/observability.md")) {
		if b.Section == "Access logs" && b.Kind == "yaml" {
			require.NoError(t, yaml.Unmarshal([]byte(b.Text), &config))
		}
	}
	require.NotNil(t, config)
	path := filepath.Join(t.TempDir(), "access.log")
	config["access_log"].([]any)[0].(envoytest.M)["typed_config"].(envoytest.M)["path"] = path
	once(t, func(t *testing.T, v variant) {
		greeter := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "greeter"})
		e := v.start(t, config, envoytest.Cluster("greeter", envoytest.At(greeter.Port)...))
		c := peers.Java.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{})
		require.Empty(t, c.Call(peers.Command{Method: "who", Attachments: map[string]any{"tenant": `a "b"`}}).Error)
		var line struct {
			Start, Call, Tenant, Flags, Details, Host, Cluster string
			Code, MS, Attempts                                 int
		}
		require.Eventually(t, func() bool { return len(loggedLines(t, path)) > 0 }, patience, tick)
		ls := loggedLines(t, path)
		require.NoError(t, json.Unmarshal([]byte(ls[len(ls)-1]), &line))
		require.Equal(t, `a "b"`, line.Tenant)
		require.True(t, strings.HasSuffix(line.Call, "/who"), line.Call)
		require.Equal(t, 200, line.Code)
		require.Equal(t, "-", line.Flags)
		require.Equal(t, "via_upstream", line.Details)
		require.Equal(t, "greeter", line.Cluster)
		require.Equal(t, 1, line.Attempts)
		require.Contains(t, line.Host, "127.0.0.1:")

		// Renamed away, as logrotate does.
		require.NoError(t, os.Rename(path, path+".1"))
		require.Eventually(t, func() bool {
			require.Empty(t, c.Call(peers.Command{Method: "who"}).Error)
			_, err := os.Stat(path)
			return err == nil
		}, patience, tick)
		greeter.Kill()
		require.NotEmpty(t, c.Call(peers.Command{Method: "who"}).Error)
		require.Eventually(t, func() bool { return strings.Contains(e.Log(), "/who\" 503 U") }, patience, tick, "the log of what went wrong, on stderr")
	})
}
