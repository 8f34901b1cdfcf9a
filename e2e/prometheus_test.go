package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/rdsserver"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
	"github.com/meltemi-mesh/meltemi/filter/export/exporttest"
)

const observability = "examples/observability"

// TestTheObservabilityReadme does what it tells its reader to do.
func TestTheObservabilityReadme(t *testing.T) {
	t.Parallel()
	bin, _ := peers.Promtool.Paths(t)
	printed := ""
	ran := 0
	for _, b := range docs.Blocks(source(t, observability+"/README.md")) {
		switch b.Kind {
		case "sh":
			require.Empty(t, printed)
			cmd := exec.Command("sh", "-e", "-c", b.Text)
			cmd.Dir = filepath.Join(peers.Root(), observability)
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			printed = strings.TrimRight(string(out), "\n") + "\n"
			ran++
		case "text":
			require.Regexp(t, b.Sample(), printed)
			printed = ""
		}
	}
	require.Empty(t, printed)
	require.Positive(t, ran)
	// Each alert has a test in which it fires.
	tests := source(t, observability+"/alerts.test.yml")
	for _, alert := range alerts(t) {
		require.Contains(t, tests, "  - alertname: "+alert.Alert+"\n")
	}
}

type rule struct{ Alert, Record, Expr string }

// rulesOf are those of a file.
func rulesOf(t *testing.T, file string) (rules []rule) {
	t.Helper()
	var all struct{ Groups []struct{ Rules []rule } }
	require.NoError(t, yaml.Unmarshal([]byte(source(t, observability+"/"+file)), &all))
	for _, g := range all.Groups {
		rules = append(rules, g.Rules...)
	}
	require.NotEmpty(t, rules)
	return rules
}

func alerts(t *testing.T) []rule { t.Helper(); return rulesOf(t, "alerts.yml") }

// query is one of a document.
type query struct{ where, expr string }

// native reports whether it is of native histograms.
func (q query) native() bool { return strings.Contains(q.expr, "meltemi_request_duration_seconds{") }

// queries are those of the dashboard, as Grafana would ask, and of docs/observability.md.
func queries(t *testing.T) (all []query) {
	t.Helper()
	var dashboard struct {
		Templating struct {
			List []struct{ Name, Type, AllValue, Definition string }
		}
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(source(t, observability+"/dashboard.json")), &dashboard))
	values := []string{"$__rate_interval", "1h"}
	labels := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)
	for _, v := range dashboard.Templating.List {
		if v.Type == "query" {
			values = append(values, "$"+v.Name, v.AllValue)
			m := labels.FindStringSubmatch(v.Definition)
			require.NotNil(t, m, v.Definition)
			all = append(all, query{"variable " + v.Name, fmt.Sprintf("count by (%s) (%s)", m[2], m[1])})
		}
	}
	filled := strings.NewReplacer(values...)
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all = append(all, query{p.Title, target.Expr})
		}
	}
	for i := range all {
		all[i].expr = filled.Replace(all[i].expr)
		require.NotContains(t, all[i].expr, "$", all[i].where)
	}
	for _, b := range docs.Blocks(source(t, "docs/observability.md")) {
		if b.Kind == "promql" {
			for expr := range strings.Lines(b.Text) {
				all = append(all, query{"docs/observability.md", strings.TrimSpace(expr)})
			}
		}
	}
	for _, file := range []string{"rules.yml", "alerts.yml"} {
		for _, r := range rulesOf(t, file) {
			if r.Record != "" {
				all = append(all, query{r.Record, r.Expr})
			}
		}
	}
	return all
}

// startPrometheus starts one with the configuration of the example, but for ports and
// times.
func startPrometheus(t *testing.T, metrics, envoy string, flags ...string) *peers.PrometheusServer {
	t.Helper()
	dir := t.TempDir()
	for _, file := range []string{"prometheus.yml", "rules.yml", "alerts.yml"} {
		text := strings.NewReplacer("127.0.0.1:15880", metrics, "127.0.0.1:9901", envoy, "_interval: 15s", "_interval: 3s").Replace(source(t, observability+"/"+file))
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
	}
	return peers.StartPrometheus(t, filepath.Join(dir, "prometheus.yml"), flags...)
}

// metricsOf are the names of metrics in a query.
var metricsOf = regexp.MustCompile(`(?:\b[a-z_]+:)?\b(?:meltemi_|istio_|envoy_cluster_(?:upstream|membership)_)[a-z0-9_:]+`)

// cart is a cluster of Istio's.
const cart = "outbound|20880||cart.shop.svc.cluster.local"

// TestDashboardAndAlertsInPrometheus: a live proxy is scraped while it serves what goes
// well and what does not, and each query of the dashboard, of the rules and of the
// documents has a result, those of which the numbers are known the right one. The alerts
// that fire are those that should.
func TestDashboardAndAlertsInPrometheus(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		good, mute := scripted.Serve(t, scripted.Answer("here")), scripted.Serve(t, scripted.Never)
		var asked atomic.Int64
		mixed := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			if asked.Add(1)%4 == 0 {
				c.Write(dubbotest.ErrorResponse(req.ID, 70, "a bug")) // SERVICE_ERROR
				return
			}
			scripted.Answer("here")(c, req)
		})
		gone := scripted.Serve(t, scripted.Never)
		gone.Close()
		rds := rdsserver.Start(t, 0, nil)
		spans := &exporttest.Collector{}
		collects, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		collector := spans.Server()
		go collector.Serve(collects)
		t.Cleanup(collector.Stop)
		to := func(method, cluster string) envoytest.M {
			return envoytest.Route(cluster, map[string]string{"method": method})
		}
		config := envoytest.Dubbo("shop", to("ok", "good"), to("mixed", "mixed"), to("late", "mute"), to("hangs", "mute"), to("unreachable", "gone"), to("limited", "good"))
		routes := config["route_config"].(envoytest.M)["routes"].([]any)
		for _, i := range []int{2, 4} {
			routes[i].(envoytest.M)["route"].(envoytest.M)["timeout"] = "0.1s"
		}
		mirrored(routes[0].(envoytest.M), envoytest.M{"cluster": "good"})
		config["request_timeout"] = "600s"
		config["meta_protocol_filters"] = []any{
			envoytest.M{"name": "aeraki.meta_protocol.filters.local_ratelimit", "config": envoytest.M{
				"@type":        "type.googleapis.com/aeraki.meta_protocol_proxy.filters.local_ratelimit.v1alpha.LocalRateLimit",
				"stat_prefix":  "shop",
				"token_bucket": envoytest.M{"max_tokens": 1_000_000, "tokens_per_fill": 1_000_000, "fill_interval": "1s"},
				"conditions": []any{envoytest.M{
					"match":        envoytest.M{"metadata": []any{envoytest.M{"name": "method", "string_match": envoytest.M{"exact": "limited"}}}},
					"token_bucket": envoytest.M{"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "3600s"},
				}},
			}},
			envoytest.M{"name": "aeraki.meta_protocol.filters.router"},
		}
		// What the disk does not take, more than may wait.
		config["access_log"] = []any{envoytest.M{"name": "envoy.access_loggers.file", "typed_config": envoytest.M{
			"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/dev/full",
			"log_format": envoytest.M{"text_format_source": envoytest.M{"inline_string": strings.Repeat("x", 30<<10) + "\n"}},
		}}}
		o := v.options()
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("good", envoytest.At(good.Port)...), envoytest.Cluster("mixed", envoytest.At(mixed.Port)...),
			envoytest.Cluster("mute", envoytest.At(mute.Port)...), envoytest.Cluster("gone", envoytest.At(gone.Port)...),
			envoytest.Cluster("xds", envoytest.At(rds.Port)...),
			envoytest.Cluster("collector", envoytest.At(collects.Addr().(*net.TCPAddr).Port)...),
			envoytest.Cluster(cart, envoytest.At(good.Port)...),
		}
		o.Listeners = []envoytest.Resource{
			envoytest.LoopbackWithAdmin(envoytest.Socket(), "127.0.0.1:0"),
			envoytest.Listener("dubbo", envoytest.Proxy(config)),
			envoytest.Listener("discovered", envoytest.Proxy(discovered("dubbo", "test", "GRPC", fromCluster()))),
		}
		// A workload of a mesh, and its calls.
		for direction, cluster := range map[string]string{"INBOUND": "good", "OUTBOUND": cart} {
			config := envoytest.Dubbo(direction, envoytest.Route(cluster, nil))
			config["traffic_direction"] = direction
			config["meta_protocol_filters"] = []any{
				envoytest.M{"name": "aeraki.meta_protocol.filters.istio_stats"}, envoytest.M{"name": "aeraki.meta_protocol.filters.router"},
			}
			config["tracing"] = envoytest.M{"provider": envoytest.M{"name": "envoy.tracers.opentelemetry", "typed_config": envoytest.M{
				"@type":        "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
				"service_name": "cart", "grpc_service": envoytest.M{"envoy_grpc": envoytest.M{"cluster_name": "collector"}},
			}}}
			o.Listeners = append(o.Listeners, envoytest.Listener(direction, envoytest.Proxy(config)))
		}
		// Filters as their pages configure them, without the services that they ask.
		guarded := []string{"ratelimit", "ratelimitquota", "extauthz", "rbac", "adaptiveconcurrency"}
		for _, name := range guarded {
			var page envoytest.M
			for _, b := range docs.Blocks(source(t, "filters/"+name+"/README.md")) {
				if b.Kind == "yaml" && page == nil {
					require.NoError(t, yaml.Unmarshal([]byte(b.Text), &page))
				}
			}
			page["stat_prefix"], page["route_config"] = name, envoytest.M{"name": name, "routes": []any{envoytest.Route("good", nil)}}
			o.Listeners = append(o.Listeners, envoytest.Listener(name, envoytest.Proxy(page)))
		}
		e := envoytest.Start(t, o)
		address := regexp.MustCompile(`meltemi: admin address (\S+)`)
		require.True(t, eventually(patience, func() bool { return address.MatchString(e.Log()) }))
		metrics := address.FindStringSubmatch(e.Log())[1]
		require.True(t, eventually(patience, func() bool { open, _ := rds.Streams(); return open == 1 }))

		ended := 0
		call := func(listener, method string, n int) (answer string) {
			t.Helper()
			c := scripted.Dial(t, e.Port(listener))
			for i := range n {
				c.Ask(uint64(i), dubbotest.Request{Interface: "acme.Orders", Method: method})
				answer = c.Read().Text()
			}
			ended += n
			c.Close()
			return answer
		}
		hanging := scripted.Dial(t, e.Port("dubbo"))
		hanging.Ask(1, dubbotest.Request{Interface: "acme.Orders", Method: "hangs"})
		load := func(n int) {
			t.Helper()
			call("dubbo", "ok", 4*n)
			call("dubbo", "mixed", 4*n)
			call("dubbo", "limited", n+1)
			call("dubbo", "nowhere", n)
			call("dubbo", "late", 2)
			// Between attempts to connect there are pauses, in which calls may time out; and an
			// attempt of before may be counted late.
			const failures = "meta_protocol.dubbo.shop.upstream_connect_fail"
			for before, failed := e.Stat(failures), false; !failed || e.Stat(failures) == before; {
				failed = strings.Contains(call("dubbo", "unreachable", 1), "upstream connect failure") || failed
			}
			for _, name := range guarded {
				call(name, "exportIt", 2)
			}
			call("INBOUND", "ok", 2)
			call("OUTBOUND", "ok", 2)
			rds.To("test", "good")
			call("discovered", "ok", 2)
		}
		load(10)
		p := startPrometheus(t, metrics, e.AdminAddress(), "--enable-feature=exemplar-storage")
		native := startPrometheus(t, metrics, e.AdminAddress(), "--enable-feature=native-histograms")
		both := []*peers.PrometheusServer{p, native}
		for _, p := range both {
			p.WaitFor("sum(meltemi_requests_total)", float64(ended))
			p.WaitFor(`sum(envoy_cluster_upstream_cx_active{envoy_cluster_name="good"}) > bool 0`, 1)
		}
		load(100)
		e.WaitStat("meta_protocol.dubbo.shop.access_log_lost", envoytest.AtLeast(1))
		lost := e.Stat("meta_protocol.dubbo.shop.access_log_lost")
		for _, p := range both {
			p.WaitFor("sum(meltemi_requests_total)", float64(ended))
			p.WaitFor("sum(meltemi_listener_access_log_lost_total) >= bool "+fmt.Sprint(lost), 1)
			p.WaitFor(`min(count_over_time(up{job="envoy"}[1h])) >= bool 3`, 1)
		}

		// What the rules record, which the alerts are about.
		p.WaitFor(`method:meltemi_failures:ratio_rate5m{method="mixed"}`, 0.25)
		p.WaitFor(`method:meltemi_failures:ratio_rate5m{method="limited"}`, 0)
		all := queries(t)
		require.Greater(t, len(all), 100)
		names := map[string]bool{} // of what queries and alerts are about
		for _, q := range all {
			for _, name := range metricsOf.FindAllString(q.expr, -1) {
				names[name] = names[name] || !q.native()
			}
		}
		for _, r := range alerts(t) {
			for _, name := range metricsOf.FindAllString(r.Expr, -1) {
				names[name] = true
			}
		}
		for name, there := range names {
			if there { // what rules record comes one by one
				p.WaitFor(fmt.Sprintf("count({__name__=%q}) > bool 0", name), 1)
			}
		}
		for _, q := range all {
			of := p
			if q.native() {
				of = native
			}
			got := of.Ask(q.expr)
			require.NotEmpty(t, got, q)
			numbers := 0
			for _, s := range got {
				if !math.IsNaN(s.Value) && !math.IsInf(s.Value, 0) {
					numbers++
				}
			}
			require.True(t, numbers > 0 || q.native(), "%v: %v", q, got)
		}

		// What the numbers are known of. Of panels the first query counts.
		panel := func(title string, by map[string]string) float64 {
			t.Helper()
			for _, q := range all {
				if q.where != title {
					continue
				}
				of := p
				if q.native() {
					of = native
				}
				for _, s := range of.Ask(q.expr) {
					same := true
					for k, v := range by {
						same = same && s.Labels[k] == v
					}
					if same {
						return s.Value
					}
				}
			}
			require.Fail(t, "no "+title, by)
			return 0
		}
		of := func(method string) map[string]string {
			return map[string]string{"service": "acme.Orders", "method": method}
		}
		require.InDelta(t, 0.25, panel("Errors of each method", of("mixed")), 1e-9)
		require.InDelta(t, 1, panel("Errors of each method", of("unreachable")), 1e-9)
		require.InDelta(t, 1, panel("In flight", nil), 0)
		require.InDelta(t, 1, panel("Requests in flight, by method", of("hangs")), 0)
		require.InDelta(t, 0, panel("Requests in flight, by method", of("mixed")), 0)
		// What times out after 0.1 s is in the bucket up to there, or in a later one.
		require.Greater(t, panel("99th percentile of each method", of("late")), 0.075)
		for _, outcome := range []string{"ok", "error", "NR", "UT", "RL"} {
			require.Positive(t, panel("Outcomes", map[string]string{"outcome": outcome}), outcome)
		}
		nr := p.Only(`sum(increase(meltemi_requests_total{outcome="NR"}[1h])) / sum(increase(meltemi_requests_total{method="mixed"}[1h]))`)
		require.InDelta(t, 0.25, nr, 1e-9)
		for _, title := range []string{"Mirrors", "Ejected hosts", "Connections, by cluster", "Healthy hosts", "Updates"} {
			sum := 0.0
			for _, q := range all {
				if q.where == title {
					for _, s := range p.Ask(q.expr) {
						sum += s.Value
					}
				}
			}
			require.Equal(t, title != "Ejected hosts", sum > 0, title)
		}
		// The documents' error rate is the panel's.
		for _, q := range all {
			if q.where == "docs/observability.md" && strings.Contains(q.expr, "outcome") {
				require.InDelta(t, 0.25, p.Only("("+q.expr+") and on (method) (meltemi_requests_total{method=\"mixed\",outcome=\"ok\"})"), 1e-9)
			}
		}

		// Alerts, whatever they wait for before they are told.
		for _, r := range alerts(t) {
			on := ""
			for _, s := range p.Ask(r.Expr) {
				on += " " + s.Labels["listener"] + s.Labels["method"]
			}
			want := map[string]string{
				"MeltemiNoConnections": " shop", "MeltemiAccessLogLost": " shop", "MeltemiRateLimitServiceFails": " ratelimit",
			}
			if r.Alert == "MeltemiMethodFails" || r.Alert == "MeltemiMethodSlow" {
				continue // that depends on how long this took
			}
			require.Equal(t, want[r.Alert], on, r.Alert)
		}

		// The page itself, as promtool judges it.
		page, err := http.Get("http://" + metrics + "/metrics")
		require.NoError(t, err)
		defer page.Body.Close()
		bin, lib := peers.Promtool.Paths(t)
		cmd := exec.Command(filepath.Join(bin, "promtool"), "check", "metrics")
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+lib)
		cmd.Stdin = page.Body
		out, _ := cmd.CombinedOutput() // which fails over each of its advices
		for line := range strings.Lines(string(out)) {
			if v.golang && strings.HasPrefix(line, "envoy_") {
				continue // on Envoy's page else, as Envoy prints it
			}
			require.Contains(t, line, "istio_request_duration_milliseconds", "whose name is Istio's")
		}
		hanging.Close()
	})
}
