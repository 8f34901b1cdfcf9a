package e2e

import (
	"crypto/x509"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestIstiosMetrics: calls of a real client go through the proxies of a client and a
// server, with mutual TLS between them, in one Envoy. The one learns of the server what
// Envoy knows of its endpoint and cluster, the other of the client what a filter of
// Envoy's before it has left where Istio's own exchange does.
func TestIstiosMetrics(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		const (
			outbound, inbound = "outbound|20880||cart.shop.svc.cluster.local", "inbound|20880||"
			webID, cartID     = "spiffe://cluster.local/ns/front/sa/web", "spiffe://cluster.local/ns/shop/sa/cart"
		)
		server := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1"})
		a := newAuthority(t)
		issue := func(id string) envoytest.M {
			u, err := url.Parse(id)
			require.NoError(t, err)
			return a.issue(x509.Certificate{URIs: []*url.URL{u}})
		}
		stats := func(workload, namespace string) envoytest.M {
			return extension("istio_stats", "IstioStats", envoytest.M{"workload": envoytest.M{
				"workload_name": workload, "namespace": namespace, "labels": envoytest.M{"service.istio.io/canonical-name": workload},
			}})
		}
		c := calling{codec: "trpc"}
		out := c.filtered("out", "OUTBOUND", []any{stats("web", "front")}, envoytest.Route(outbound, nil))
		in := c.filtered("in", "INBOUND", []any{stats("cart", "shop")}, envoytest.Route(inbound, nil))
		chain := in["filter_chains"].([]any)[0].(envoytest.M)
		chain["transport_socket"] = a.context("Downstream", issue(cartID), envoytest.M{"require_client_certificate": true})
		chain["filters"] = append([]envoytest.M{peerState(t)}, chain["filters"].([]envoytest.M)...)
		admin := filepath.Join(t.TempDir(), "admin")
		o := v.options()
		o.Listeners = []envoytest.Resource{envoytest.LoopbackWithWorkloads(envoytest.Socket(), "unix:"+admin), out, in}
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster(outbound).With(envoytest.M{
				"transport_socket": a.context("Upstream", issue(webID), envoytest.M{}),
				"metadata": envoytest.M{"filter_metadata": envoytest.M{"istio": envoytest.M{"services": []any{
					envoytest.M{"host": "cart.shop.svc.cluster.local", "name": "cart", "namespace": "shop"},
				}}}},
			}),
			envoytest.Cluster(inbound, envoytest.At(server.Port)...),
		}
		e := envoytest.Start(t, o)
		at := envoytest.At(e.Port("in"))
		at[0].Workload = "cart-v1;shop;cart;v1;east"
		e.SetEndpoints(outbound, at...)
		client := peers.TRPCClient(t, e.Port("out"), peers.TRPCClientOptions{Multiplexed: 1})
		for range 3 {
			require.Empty(t, client.Call(peers.Command{Method: "Who"}).Error)
		}

		labels := func(reporter string) (of map[string]string, calls float64) {
			for _, m := range scrape(t, admin)["istio_requests_total"].GetMetric() {
				l := map[string]string{}
				for _, p := range m.GetLabel() {
					l[p.GetName()] = p.GetValue()
				}
				if l["reporter"] == reporter {
					require.Nil(t, of, "one edge has one series")
					of, calls = l, m.GetCounter().GetValue()
				}
			}
			return of, calls
		}
		both := map[string]string{
			"application_protocol": "trpc", "request_protocol": "http", "response_code": "200", "response_flags": "-",
			"destination_service_name": "cart", "destination_service_namespace": "shop", "source_principal": webID, "destination_principal": cartID,
			"source_workload_namespace": "front", "destination_workload_namespace": "shop", "destination_canonical_service": "cart",
		}
		for reporter, differs := range map[string]map[string]string{
			"source": {
				"source_workload": "web", "source_canonical_service": "web", "destination_workload": "cart-v1", "destination_canonical_revision": "v1",
				"destination_cluster": "east", "destination_service": "cart.shop.svc.cluster.local", "connection_security_policy": "unknown",
			},
			"destination": {
				"source_workload": "peer", "source_cluster": "west", "source_version": "v7", "destination_workload": "cart", "destination_service": "cart",
				"connection_security_policy": "mutual_tls",
			},
		} {
			want := maps.Clone(both)
			maps.Copy(want, differs)
			if v.version == "1.38.3" { // tells of no certificates but the client's
				want["destination_principal"] = "unknown"
				if reporter == "source" {
					want["source_principal"] = "unknown"
				}
			}
			got, calls := labels(reporter)
			for _, name := range slices.Sorted(maps.Keys(want)) {
				require.Equal(t, want[name], got[name], "%s: %s of %v", reporter, name, got)
			}
			require.InDelta(t, 3, calls, 0)
		}
	})
}

// peerState is Envoy's own filter that leaves with a connection what Istio's exchange
// would.
func peerState(t *testing.T) envoytest.M {
	t.Helper()
	s, err := structpb.NewStruct(map[string]any{"workload": "peer", "namespace": "lies", "cluster": "west", "version": "v7"})
	require.NoError(t, err)
	b, err := proto.Marshal(s)
	require.NoError(t, err)
	return envoytest.M{"name": "peer", "typed_config": envoytest.M{
		"@type": "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config",
		"on_new_connection": []any{envoytest.M{
			"object_key": "downstream_peer", "factory_key": "envoy.string",
			"format_string": envoytest.M{"text_format_source": envoytest.M{"inline_string": string(b)}},
		}},
	}}
}
