package istio

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// Kiali 2's graph: what it asks of requests and of bytes of TCP, by these labels, for what
// comes into a namespace without getting anywhere, what comes in, and what goes out.
const (
	graphNodes = "source_cluster,source_workload_namespace,source_workload,source_canonical_service,source_canonical_revision," +
		"destination_cluster,destination_service_namespace,destination_service,destination_service_name," +
		"destination_workload_namespace,destination_workload,destination_canonical_service,destination_canonical_revision"
	graphRequests = graphNodes + ",request_protocol,response_code,grpc_response_status,response_flags"
	graphBytes    = "app," + graphNodes + ",response_flags"
)

// graph is what Kiali sees of a namespace.
type graph struct {
	p         *peers.PrometheusServer
	namespace string
}

func (g graph) asked(metric, more, by string) map[string][]peers.Series {
	ask := func(of string) []peers.Series {
		return g.p.Ask(fmt.Sprintf(`sum(rate(%s{%s%s} [300s])) by (%s) > 0`, metric, more, of, by))
	}
	return map[string][]peers.Series{
		"lost": ask(fmt.Sprintf(`reporter="source",source_workload_namespace!="%s",destination_workload_namespace="unknown",destination_workload="unknown",destination_service=~"^.+\\.%[1]s\\..+$"`, g.namespace)),
		"in":   ask(fmt.Sprintf(`reporter="destination",destination_workload_namespace="%s"`, g.namespace)),
		"out":  ask(fmt.Sprintf(`reporter="source",source_workload_namespace="%s"`, g.namespace)),
	}
}

// mean is the average of a histogram of each edge, as the graph shows it.
func (g graph) mean(metric, of string) []peers.Series {
	by := fmt.Sprintf("by (%s,request_protocol)", graphNodes)
	return g.p.Ask(fmt.Sprintf(`sum(rate(%s_sum{%s}[300s])) %s / sum(rate(%[1]s_count{%[2]s}[300s])) %[3]s > 0`, metric, of, by))
}

// TestKialiSeesTheCalls: its queries, in a Prometheus that scrapes where a mesh's does,
// have one edge from the client to the server on either side, with the calls' rates, times
// and sizes, mutual TLS, and none of TCP.
func TestKialiSeesTheCalls(t *testing.T) {
	config, target := podConfig(t)
	spec := server("v1")
	spec.ProxyConfig, spec.ScrapeTarget = config, target
	// Pods here do not have the file with their labels where a pod's is.
	labels := func(name, version string) []string {
		return []string{fmt.Sprintf(`ISTIO_METAJSON_LABELS={"service.istio.io/canonical-name":%q,"service.istio.io/canonical-revision":%q}`, name, version)}
	}
	spec.Env = labels("greeter-v1", "v1")
	s := openShopTo(t, mesh.PodSpec{ProxyConfig: config, ScrapeTarget: target, Env: labels("client", "v7")})
	s.servers["v1"] = s.Pods(spec)[0]
	s.serve("v1", peers.DubboGo)
	s.endpoints(s.servers["v1"])
	// This mesh's proxies are Envoy's own, which lack Istio's exchange of metadata.
	const exchange = "{meta_protocol_filters: [{name: aeraki.meta_protocol.filters.metadata_exchange}, {name: aeraki.meta_protocol.filters.router}], "
	s.steer(strings.NewReplacer("outbound: {", "outbound: "+exchange, "inbound: {", "inbound: "+exchange+"request_timeout: 0.2s, ").Replace(s.description("")))
	s.client.WaitConfig("ecds_filters", "meltemi-outbound")
	s.servers["v1"].WaitConfig("ecds_filters", "meltemi-inbound")
	s.Eventually("our filters", func() bool { return settled(s.client) && serving(s.servers["v1"], "meltemi-inbound") })

	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := map[string]*mesh.Pod{"/client": s.client, "/server": s.servers["v1"]}[r.URL.Path]
		text, err := p.Get(fmt.Sprintf("http://%s:15020/stats/prometheus", p.IP))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprint(w, text)
	}))
	t.Cleanup(pages.Close)
	file := filepath.Join(t.TempDir(), "prometheus.yml")
	text := "global: {scrape_interval: 1s}\nscrape_configs:\n"
	for _, name := range []string{"client", "server"} {
		text += fmt.Sprintf("- {job_name: %s, metrics_path: /%[1]s, static_configs: [{targets: ['%s']}]}\n", name, pages.Listener.Addr())
	}
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))

	// Rates are of what comes behind the first scrape.
	var p *peers.PrometheusServer
	c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
	calls := 0
	for range 2 {
		for range 30 {
			require.Empty(t, c.Call(peers.Command{Method: "who"}).Error)
		}
		for range 10 {
			require.NotEmpty(t, c.Call(peers.Command{Method: "sleep", Args: []any{2000}}).Error)
		}
		calls += 40
		if p == nil {
			p = peers.StartPrometheus(t, file)
		}
		for _, reporter := range []string{"source", "destination"} {
			p.WaitFor(fmt.Sprintf(`sum(istio_requests_total{reporter="%s"})`, reporter), float64(calls))
		}
	}

	g := graph{p, s.Name}
	requests := g.asked("istio_requests_total", "", graphRequests)
	require.Empty(t, requests["lost"])
	for _, way := range []string{"in", "out"} {
		rates := map[string]float64{}
		for _, e := range requests[way] {
			for label, want := range map[string]string{
				"source_cluster": "Kubernetes", "source_workload_namespace": s.Name, "source_workload": "client", "source_canonical_service": "client", "source_canonical_revision": "v7",
				"destination_cluster": "Kubernetes", "destination_workload_namespace": s.Name, "destination_workload": "greeter-v1",
				"destination_service": s.host(), "destination_service_name": "greeter", "destination_service_namespace": s.Name,
				"destination_canonical_service": "greeter-v1", "destination_canonical_revision": "v1", "request_protocol": "http",
			} {
				require.Equal(t, want, e.Labels[label], "%s: %s of %v", way, label, e.Labels)
			}
			rates[e.Labels["response_code"]+" "+e.Labels["response_flags"]] += e.Value
		}
		// The server's proxy knows what went wrong, and tells the client's.
		failed := map[string]string{"in": "504 UT", "out": "500 -"}[way]
		require.Len(t, rates, 2, "%s: %v", way, rates)
		require.InEpsilon(t, 3, rates["200 -"]/rates[failed], 0.01, "%s: %v", way, rates)
	}
	for _, metric := range []string{"istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"} {
		for way, edges := range g.asked(metric, `app!="ztunnel",`, graphBytes) {
			require.Empty(t, edges, "%s: %s", way, metric)
		}
	}

	// What an edge and a workload are shown with.
	for reporter, of := range map[string]string{
		"destination": fmt.Sprintf(`reporter="destination",destination_service_namespace="%s"`, s.Name),
		"source":      fmt.Sprintf(`reporter="source",source_workload_namespace="%s"`, s.Name),
	} {
		for _, metric := range []string{"istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"} {
			require.Len(t, g.mean(metric, of), 1, "%s: %s", reporter, metric)
			for _, q := range []string{"0.5", "0.95", "0.99"} {
				v := p.Only(fmt.Sprintf(`histogram_quantile(%s, sum(rate(%s_bucket{%s}[300s])) by (le))`, q, metric, of))
				require.Positive(t, v, "%s: %s of %s", reporter, q, metric)
			}
		}
		failed := p.Only(fmt.Sprintf(`sum(rate(istio_requests_total{%s,response_code=~"^0$|^4\\d\\d$|^5\\d\\d$"}[300s]))`, of))
		require.InEpsilon(t, 0.25, failed/p.Only(fmt.Sprintf(`sum(rate(istio_requests_total{%s}[300s]))`, of)), 0.01, reporter)
	}
	secured := p.Ask(fmt.Sprintf(`sum(rate(istio_requests_total{reporter="destination",source_workload_namespace="%s"}[300s])) by (%s,source_principal,destination_principal,connection_security_policy) > 0`, s.Name, graphNodes))
	require.Len(t, secured, 1)
	require.Equal(t, "mutual_tls", secured[0].Labels["connection_security_policy"])
	principal := "spiffe://cluster.local/ns/" + s.Name + "/sa/default"
	require.Equal(t, [2]string{principal, principal}, [2]string{secured[0].Labels["source_principal"], secured[0].Labels["destination_principal"]})
	// Health: of each series there is.
	for _, of := range []string{`destination_service_namespace="%[1]s",destination_cluster=~"Kubernetes|unknown"`, `source_workload_namespace="%[1]s",source_cluster="Kubernetes"`} {
		require.Len(t, p.Ask(fmt.Sprintf(`rate(istio_requests_total{`+of+`}[300s]) > 0`, s.Name)), 4)
	}
}
