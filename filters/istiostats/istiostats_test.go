package istiostats

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
	_ "github.com/meltemi-mesh/meltemi/filters/metadataexchange"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
)

const (
	cartCluster = "outbound|20880|v2|cart.shop.svc.cluster.local"
	webSAN      = "spiffe://cluster.local/ns/front/sa/web"
	cartSAN     = "spiffe://cluster.local/ns/shop/sa/cart"
	ownWorkload = `"workload": {"workload_name": "own", "namespace": "ours", "cluster_id": "east", "labels": {
		"app": "own-app", "version": "v7", "service.istio.io/canonical-name": "own-svc", "service.istio.io/canonical-revision": "r7"}}`
)

// stage is a pipeline with the filter before metadata_exchange, as it may stand, and a
// route for each cluster that a test has made, by the method of its name.
type stage struct {
	*filtertest.Host
	t   *testing.T
	mod *filter.Module
	cfg *filtertest.Config
	id  uint64
	say [][2]string // attachments of answers

	scrapes prometheus.TransactionalGatherer
}

func start(t *testing.T, direction, config string, clusters ...string) *stage {
	t.Helper()
	mod := filter.NewModule()
	mod.Seed(1)
	mod.Observe()
	s := &stage{Host: filtertest.NewWith(t, mod, 2), t: t, mod: mod}
	routes := ""
	for i, name := range clusters {
		s.serve(name, host.Server{})
		routes += fmt.Sprintf(`{"name": "r%d", "match": {"metadata": [{"name": "method", "string_match": {"exact": %q}}]}, "route": {"cluster": %[2]q}},`, i, name)
	}
	s.cfg = s.MustLoad(`{"stat_prefix": "outbound|20880||cart.shop.svc.cluster.local", "traffic_direction": "` + direction + `",
		"protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}}, "request_timeout": "5s",
		"meta_protocol_filters": [{"name": "` + Name + `", "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.istio_stats.v1alpha.IstioStats", ` + config + `}},
			{"name": "aeraki.meta_protocol.filters.metadata_exchange"}, {"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"name": "r", "routes": [` + strings.TrimSuffix(routes, ",") + `]}}`)
	return s
}

// ask sends a request to a cluster.
func (s *stage) ask(c *filtertest.Client, cluster string, attachments ...[2]string) {
	s.id++
	c.Send(dubbotest.Request{ID: s.id, Method: cluster, Attachments: attachments}.Bytes())
	c.Take()
}

// gather returns what Prometheus gets.
func (s *stage) gather() map[string]*dto.MetricFamily {
	s.t.Helper()
	families, err := s.mod.Metrics().Gather()
	require.NoError(s.t, err)
	all := map[string]*dto.MetricFamily{}
	for _, f := range families {
		all[f.GetName()] = f
	}
	// A page that is kept shows the same, whatever has come since the last time.
	if s.scrapes == nil {
		s.scrapes = s.mod.Scrapes()
	}
	kept, done, err := s.scrapes.Gather()
	require.NoError(s.t, err)
	defer done()
	require.Len(s.t, kept, len(families))
	for i, f := range kept {
		require.Equal(s.t, families[i].GetName(), f.GetName())
		if strings.HasPrefix(f.GetName(), "istio_") {
			require.Len(s.t, f.GetMetric(), len(families[i].GetMetric()))
			byLabels := map[string]*dto.Metric{}
			for _, m := range f.GetMetric() {
				byLabels[labelsOf(m)] = m
			}
			for _, m := range families[i].GetMetric() {
				require.True(s.t, proto.Equal(m, byLabels[labelsOf(m)]), "%s: %v", f.GetName(), m)
			}
		}
	}
	return all
}

func labelsOf(m *dto.Metric) string {
	var b strings.Builder
	for _, l := range m.GetLabel() {
		fmt.Fprintf(&b, "%s=%q ", l.GetName(), l.GetValue())
	}
	return b.String()
}

// lint holds what Prometheus gets against its own rules.
func (s *stage) lint() {
	s.t.Helper()
	problems, err := testutil.GatherAndLint(s.mod.Metrics())
	require.NoError(s.t, err)
	for _, p := range problems {
		require.Equal(s.t, `istio_request_duration_milliseconds: use base unit "seconds" instead of "milliseconds"`, p.Metric+": "+p.Text, "it is Istio's name")
	}
}

// series are the values of istio_requests_total by the text of their labels.
func (s *stage) series() map[string]float64 {
	s.t.Helper()
	all := map[string]float64{}
	var b bytes.Buffer
	if f := s.gather()["istio_requests_total"]; f != nil {
		_, err := expfmt.MetricFamilyToText(&b, f)
		require.NoError(s.t, err)
	}
	for line := range strings.Lines(b.String()) {
		if line[0] != '#' {
			at := strings.LastIndexByte(line, ' ')
			var n float64
			_, err := fmt.Sscan(line[at+1:], &n)
			require.NoError(s.t, err)
			all[line[:at]] = n
		}
	}
	return all
}

// usual are the labels of a request from an unknown client, or to an unknown server.
func usual(reporter string) map[string]string {
	l := map[string]string{
		"application_protocol": "dubbo", "connection_security_policy": "unknown", "grpc_response_status": "", "reporter": reporter,
		"request_protocol": "http", "response_code": "200", "response_flags": "-",
		"destination_service": "unknown", "destination_service_name": "unknown", "destination_service_namespace": "unknown",
	}
	for _, side := range []string{"source_", "destination_"} {
		for _, n := range []string{"app", "canonical_service", "cluster", "principal", "version", "workload", "workload_namespace"} {
			l[side+n] = "unknown"
		}
		l[side+"canonical_revision"] = "latest"
	}
	own := map[string]string{
		"app": "own-app", "canonical_service": "own-svc", "canonical_revision": "r7", "cluster": "east", "version": "v7", "workload": "own", "workload_namespace": "ours",
	}
	for n, v := range own {
		l[reporter+"_"+n] = v
	}
	if reporter == "destination" {
		l["connection_security_policy"] = "none"
		l["destination_service"], l["destination_service_name"], l["destination_service_namespace"] = "own-svc", "own-svc", "ours"
	}
	return l
}

// line is what Prometheus reads, without the value.
func line(reporter string, differs ...string) string {
	l := usual(reporter)
	for i := 0; i < len(differs); i += 2 {
		l[differs[i]] = differs[i+1]
	}
	var pairs []string
	for _, n := range slices.Sorted(maps.Keys(l)) {
		pairs = append(pairs, fmt.Sprintf("%s=%q", n, l[n]))
	}
	return "istio_requests_total{" + strings.Join(pairs, ",") + "}"
}

// peerState is what Istio's own exchange leaves with a connection.
func peerState(t *testing.T, fields map[string]any) string {
	t.Helper()
	s, err := structpb.NewStruct(fields)
	require.NoError(t, err)
	b, err := proto.Marshal(s)
	require.NoError(t, err)
	return string(b)
}

// attached is what metadata_exchange sends of a workload.
func attached(t *testing.T, workload, namespace string) [2]string {
	t.Helper()
	return [2]string{"x-envoy-peer-metadata", base64.StdEncoding.EncodeToString([]byte(peerState(t, map[string]any{"WORKLOAD_NAME": workload, "NAMESPACE": namespace})))}
}

func TestLabelsOfTheDestination(t *testing.T) {
	web := map[string]any{
		"workload": "web", "namespace": "claimed", "cluster": "west", "service": "web-svc", "revision": "v1", "app": "web-app", "version": "v1", "name": "web-1",
	}
	isWeb := []string{
		"source_workload", "web", "source_workload_namespace", "claimed", "source_cluster", "west", "source_canonical_service", "web-svc",
		"source_canonical_revision", "v1", "source_app", "web-app", "source_version", "v1",
	}
	secured := []string{"connection_security_policy", "mutual_tls", "source_principal", webSAN, "source_workload_namespace", "front", "destination_principal", cartSAN}
	const inbound = "inbound|20880||"
	for name, tc := range map[string]struct {
		config  string
		tls     *host.TLS
		peer    string
		sent    [][2]string
		cluster string
		server  host.Server
		want    []string
	}{
		"nobody knows":   {},
		"Istio's peer":   {peer: peerState(t, web), want: isWeb},
		"no peer":        {peer: "", tls: &host.TLS{Mutual: true, URISANs: []string{webSAN, "spiffe://second"}, OwnURISAN: cartSAN}, want: secured},
		"both":           {peer: peerState(t, web), tls: &host.TLS{Mutual: true, URISANs: []string{webSAN}, OwnURISAN: cartSAN}, want: append(slices.Clone(isWeb), secured...)},
		"before 1.39":    {tls: &host.TLS{Mutual: true, URISANs: []string{webSAN}}, want: []string{"connection_security_policy", "mutual_tls", "source_principal", webSAN, "source_workload_namespace", "front"}},
		"TLS of one":     {tls: &host.TLS{OwnURISAN: cartSAN}, want: []string{"destination_principal", cartSAN}},
		"a DNS name":     {tls: &host.TLS{Mutual: true, DNSSANs: []string{"web"}, OwnURISAN: cartSAN}, want: []string{"destination_principal", cartSAN}},
		"an odd name":    {tls: &host.TLS{Mutual: true, URISANs: []string{"spiffe://x/ns/"}}, want: []string{"connection_security_policy", "mutual_tls", "source_principal", "spiffe://x/ns/"}},
		"it says so":     {peer: peerState(t, web), sent: [][2]string{attached(t, "teller", "told")}, want: []string{"source_workload", "teller", "source_workload_namespace", "told"}},
		"malformed":      {peer: "\xff"},
		"too long":       {peer: peerState(t, map[string]any{"workload": strings.Repeat("x", maxPeer)})},
		"not of text":    {peer: peerState(t, map[string]any{"workload": 7, "namespace": "n"}), want: []string{"source_workload_namespace", "n"}},
		"a service":      {config: `"destination_service": "cart.shop.svc.cluster.local", `, want: []string{"destination_service", "cart.shop.svc.cluster.local", "destination_service_name", "cart"}},
		"Istio's":        {server: host.Server{Services: `[{"host":"c.d.svc.x","name":"c","namespace":"d"},{"host":"e"}]`}, want: []string{"destination_service", "c.d.svc.x", "destination_service_name", "c"}},
		"no list":        {server: host.Server{Services: `{"host":"c"}`}},
		"no service":     {cluster: "InboundPassthroughCluster", want: []string{"destination_service_name", "InboundPassthroughCluster"}},
		"no service, v4": {cluster: "InboundPassthroughClusterIpv4", want: []string{"destination_service_name", "InboundPassthroughClusterIpv4"}},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := tc.cluster
			if cluster == "" {
				cluster = inbound
			}
			s := start(t, "INBOUND", tc.config+ownWorkload, inbound, "InboundPassthroughCluster", "InboundPassthroughClusterIpv4")
			s.serve(cluster, tc.server)
			c := s.Dial(s.cfg)
			if tc.tls != nil {
				c = s.DialTLS(s.cfg, *tc.tls)
			}
			if tc.peer != "" {
				c.SetFilterState("downstream_peer", tc.peer)
			}
			s.ask(c, cluster, tc.sent...)
			require.Equal(t, map[string]float64{line("destination", tc.want...): 1}, s.series())
		})
	}
}

// serve has a cluster with a server of which the host knows that.
func (s *stage) serve(name string, known host.Server) *filtertest.Cluster {
	c := s.Cluster(name, "10.0.0.9:20880")
	c.Serve = func(v *filtertest.Server, b []byte) int {
		requests, rest := dubbotest.Parse(b)
		for _, r := range requests {
			v.Send(dubbotest.Response(r.ID, "x", s.say...))
		}
		return len(b) - len(rest)
	}
	c.Describe = func(*filtertest.Server) host.Server { return known }
	return c
}

func TestLabelsOfTheSource(t *testing.T) {
	cart := []string{"destination_service", "cart.shop.svc.cluster.local", "destination_service_name", "cart", "destination_service_namespace", "shop"}
	endpoint := []string{
		"destination_workload", "cart-v2", "destination_workload_namespace", "shop", "destination_canonical_service", "cart",
		"destination_canonical_revision", "v2", "destination_cluster", "west",
	}
	const encoded = "cart-v2;shop;cart;v2;west"
	for name, tc := range map[string]struct {
		cluster string
		server  host.Server
		say     [][2]string
		want    []string
	}{
		"by the cluster's name":   {cluster: cartCluster, want: cart},
		"by the endpoint":         {cluster: cartCluster, server: host.Server{Workload: encoded}, want: append(slices.Clone(cart), endpoint...)},
		"by the server":           {cluster: cartCluster, server: host.Server{Workload: encoded}, say: [][2]string{attached(t, "told", "theirs")}, want: append(slices.Clone(cart), "destination_workload", "told", "destination_workload_namespace", "theirs")},
		"too few parts":           {cluster: cartCluster, server: host.Server{Workload: "cart;shop"}, want: cart},
		"no parts":                {cluster: cartCluster, server: host.Server{Workload: ";;;;"}, want: cart},
		"certificates":            {cluster: cartCluster, server: host.Server{Principal: cartSAN, OwnPrincipal: webSAN}, want: append(slices.Clone(cart), "destination_principal", cartSAN, "destination_workload_namespace", "shop", "source_principal", webSAN)},
		"Istio's service":         {cluster: cartCluster, server: host.Server{Services: `[{"host":"a.b.c","name":"a","namespace":"n"}]`}, want: []string{"destination_service", "a.b.c", "destination_service_name", "a", "destination_service_namespace", "n"}},
		"one without a name":      {cluster: cartCluster, server: host.Server{Services: `[{"host":"a.b.c"}]`, Workload: encoded}, want: append([]string{"destination_service", "a.b.c", "destination_service_name", "a", "destination_service_namespace", "shop"}, endpoint...)},
		"a ServiceEntry":          {cluster: "outbound|443||api.example.com", want: []string{"destination_service", "api.example.com", "destination_service_name", "api.example.com"}},
		"a name of one's own":     {cluster: "greeter"},
		"BlackHoleCluster":        {cluster: "BlackHoleCluster", want: []string{"destination_service_name", "BlackHoleCluster"}},
		"PassthroughCluster":      {cluster: "PassthroughCluster", want: []string{"destination_service_name", "PassthroughCluster"}},
		"Passthrough to somebody": {cluster: "PassthroughCluster", server: host.Server{Workload: encoded}, want: append([]string{"destination_service_name", "PassthroughCluster", "destination_service_namespace", "shop"}, endpoint...)},
	} {
		for _, direction := range []string{"OUTBOUND", "UNSPECIFIED"} {
			t.Run(name+" "+direction, func(t *testing.T) {
				s := start(t, direction, ownWorkload, tc.cluster)
				s.say = tc.say
				s.serve(tc.cluster, tc.server)
				c := s.DialTLS(s.cfg, host.TLS{Mutual: true, URISANs: []string{"spiffe://who/ns/x"}})
				c.SetFilterState("downstream_peer", peerState(t, map[string]any{"workload": "not asked for"}))
				s.ask(c, tc.cluster)
				require.Equal(t, map[string]float64{line("source", tc.want...): 1}, s.series())
			})
		}
	}
}

// TestOutcomes: an error is one to Kiali, and what goes well is not.
func TestOutcomes(t *testing.T) {
	cart := []string{"destination_service", "cart.shop.svc.cluster.local", "destination_service_name", "cart", "destination_service_namespace", "shop"}
	for name, tc := range map[string]struct {
		do          func(s *stage, c *filtertest.Client, up *filtertest.Cluster)
		code, flags string
	}{
		"answered": {func(s *stage, c *filtertest.Client, _ *filtertest.Cluster) { s.ask(c, cartCluster) }, "200", "-"},
		"an error of the server": {func(s *stage, c *filtertest.Client, up *filtertest.Cluster) {
			up.Serve = func(v *filtertest.Server, b []byte) int {
				requests, _ := dubbotest.Parse(b)
				v.Send(dubbotest.ErrorResponse(requests[0].ID, 80, "x"))
				return len(b)
			}
			s.ask(c, cartCluster)
		}, "500", "-"},
		"no route": {func(s *stage, c *filtertest.Client, _ *filtertest.Cluster) { s.ask(c, "none") }, "404", "NR"},
		"no host": {func(s *stage, c *filtertest.Client, up *filtertest.Cluster) {
			up.SetHosts()
			s.ask(c, cartCluster)
			s.Advance(10 * time.Second)
		}, "503", "UH"},
		"a timeout": {func(s *stage, c *filtertest.Client, up *filtertest.Cluster) {
			up.Serve = func(_ *filtertest.Server, b []byte) int { return len(b) }
			s.ask(c, cartCluster)
			s.Advance(10 * time.Second)
		}, "504", "UT"},
		"the client has left": {func(s *stage, c *filtertest.Client, up *filtertest.Cluster) {
			up.Serve = func(_ *filtertest.Server, b []byte) int { return len(b) }
			s.ask(c, cartCluster)
			c.Close()
		}, "0", "DC"},
		"a oneway": {func(_ *stage, c *filtertest.Client, _ *filtertest.Cluster) {
			c.Send(dubbotest.Request{ID: 7, Method: cartCluster, Oneway: true}.Bytes())
		}, "200", "-"},
		"a oneway whose client has left": {func(s *stage, c *filtertest.Client, up *filtertest.Cluster) {
			up.Hang = true
			c.Send(dubbotest.Request{ID: 7, Method: cartCluster, Oneway: true}.Bytes())
			c.CloseWrite()
			up.Hang = false
			up.Admit()
			s.Advance(time.Second)
		}, "200", "-"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, "UNSPECIFIED", ownWorkload, cartCluster)
			tc.do(s, s.Dial(s.cfg), s.serve(cartCluster, host.Server{}))
			require.Equal(t, map[string]float64{line("source", append(slices.Clone(cart), "response_code", tc.code, "response_flags", tc.flags)...): 1}, s.series())
		})
	}
}

// TestAServerThatIsSlowIsKnown, and the next that is asked over its connection, too.
func TestAServerThatIsSlowIsKnown(t *testing.T) {
	s := start(t, "UNSPECIFIED", ownWorkload, cartCluster)
	s.serve(cartCluster, host.Server{Workload: "cart-v2;shop;cart;v2;west"}).Serve = func(_ *filtertest.Server, b []byte) int { return len(b) }
	s.ask(s.Dial(s.cfg), cartCluster)
	s.Advance(10 * time.Second)
	for l := range s.series() {
		require.Contains(t, l, `destination_workload="cart-v2"`)
	}
	require.Len(t, s.series(), 1)
}

// TestClientsOfOneConnectionToTheServerAreNotMixed: a peer is known by its own
// connection, as its first request has found it.
func TestClientsOfOneConnectionToTheServerAreNotMixed(t *testing.T) {
	s := start(t, "INBOUND", ownWorkload, "inbound|20880||")
	late, early, changed := s.Dial(s.cfg), s.Dial(s.cfg), s.Dial(s.cfg)
	say := func(c *filtertest.Client, workload string) {
		c.SetFilterState("downstream_peer", peerState(t, map[string]any{"workload": workload}))
	}
	say(early, "early")
	say(changed, "first")
	for range 3 {
		for _, c := range []*filtertest.Client{late, early, changed} {
			s.ask(c, "inbound|20880||")
		}
		say(late, "late")
		say(changed, "second")
	}
	again := s.DialOn(s.cfg, 1)
	say(again, "early") // another worker counts in the same series
	s.ask(again, "inbound|20880||")
	require.Equal(t, map[string]float64{
		line("destination"):                             3,
		line("destination", "source_workload", "early"): 4,
		line("destination", "source_workload", "first"): 3,
	}, s.series())
	// What a message says is the message's, over whatever connection it comes.
	s.ask(early, "inbound|20880||", attached(t, "a", ""))
	s.ask(early, "inbound|20880||", attached(t, "b", ""))
	s.ask(early, "inbound|20880||")
	got := s.series()
	require.InDelta(t, 1, got[line("destination", "source_workload", "a")], 0)
	require.InDelta(t, 1, got[line("destination", "source_workload", "b")], 0)
	require.InDelta(t, 5, got[line("destination", "source_workload", "early")], 0)
}

// TestHistograms: Istio's names and buckets, the same counts in all of them.
func TestHistograms(t *testing.T) {
	s := start(t, "UNSPECIFIED", ownWorkload, cartCluster)
	up := s.serve(cartCluster, host.Server{})
	up.Serve = nil
	c := s.Dial(s.cfg)
	size := 0
	for _, d := range []time.Duration{400 * time.Microsecond, 3 * time.Millisecond, 70 * time.Millisecond} {
		request := dubbotest.Request{ID: 1, Method: cartCluster}.Bytes()
		size += len(request)
		c.Send(request)
		s.Advance(d)
		v := up.Servers()[0]
		got, _ := dubbotest.Parse(v.Take())
		v.Send(dubbotest.Response(got[0].ID, "hello"))
		s.Settle()
	}
	s.lint()
	all := s.gather()
	require.Equal(t, "istio_request_duration_milliseconds", all["istio_request_duration_milliseconds"].GetName())
	var upTo []float64
	var n []uint64
	h := all["istio_request_duration_milliseconds"].GetMetric()[0].GetHistogram()
	for _, b := range h.GetBucket() {
		upTo, n = append(upTo, b.GetUpperBound()), append(n, b.GetCumulativeCount())
	}
	require.Equal(t, []float64{.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}, upTo)
	require.EqualValues(t, 3, h.GetSampleCount())
	require.InDelta(t, 73.4, h.GetSampleSum(), 0.5)
	require.Equal(t, uint64(1), n[0])
	require.Equal(t, uint64(2), n[2])
	require.Equal(t, uint64(3), n[6])
	bytes := all["istio_request_bytes"].GetMetric()[0].GetHistogram()
	require.InDelta(t, size, bytes.GetSampleSum(), 0)
	require.InDelta(t, len(c.Take()), all["istio_response_bytes"].GetMetric()[0].GetHistogram().GetSampleSum(), 0)
	for _, name := range []string{"istio_request_bytes", "istio_response_bytes"} {
		require.EqualValues(t, 3, all[name].GetMetric()[0].GetHistogram().GetSampleCount())
		require.Equal(t, all["istio_requests_total"].GetMetric()[0].GetLabel(), all[name].GetMetric()[0].GetLabel())
	}
}

// TestHostileNames: whatever a peer says is a label's value, and not a large one.
func TestHostileNames(t *testing.T) {
	s := start(t, "INBOUND", ownWorkload, "inbound|20880||")
	for _, name := range []string{"\"} 1\nforged 2", "\\", "a\x00b", strings.Repeat("é", 3000), "\u2028", "a.cache.b"} {
		c := s.Dial(s.cfg)
		c.SetFilterState("downstream_peer", peerState(t, map[string]any{"workload": name, "namespace": name, "cluster": name, "service": name}))
		s.ask(c, "inbound|20880||", attached(t, name, name))
	}
	c := s.DialTLS(s.cfg, host.TLS{Mutual: true, URISANs: []string{"\xff\"\n" + strings.Repeat("x", 64<<10)}})
	s.ask(c, "inbound|20880||")
	var b bytes.Buffer
	for _, f := range s.gather() {
		_, err := expfmt.MetricFamilyToText(&b, f)
		require.NoError(t, err)
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				require.LessOrEqual(t, len(l.GetValue()), 260)
			}
		}
	}
	require.NotContains(t, b.String(), "\nforged")
	s.lint()
	require.Len(t, s.series(), 7)
}

// TestWhatIsNotToldApart is counted, and told by its outcome alone.
func TestWhatIsNotToldApart(t *testing.T) {
	s := start(t, "INBOUND", ownWorkload, "inbound|20880||")
	c := s.Dial(s.cfg)
	for i := range maxSeries + 50 {
		s.ask(c, "inbound|20880||", attached(t, fmt.Sprint("w", i), "n"))
	}
	s.ask(c, "inbound|20880||", attached(t, "w0", "n"))     // is told apart
	s.ask(c, "none", attached(t, "w0", "n"))                // another outcome
	s.ask(s.DialOn(s.cfg, 1), "none", attached(t, "x", "")) // on another worker
	got := s.series()
	require.Len(t, got, maxSeries+2)
	beyond := []string{
		"application_protocol", "_OTHER", "connection_security_policy", "unknown", "destination_app", "unknown", "destination_canonical_service", "unknown", "destination_canonical_revision", "latest",
		"destination_cluster", "unknown", "destination_version", "unknown", "destination_workload", "unknown", "destination_workload_namespace", "unknown",
		"destination_service", "unknown", "destination_service_name", "unknown", "destination_service_namespace", "unknown",
	}
	require.InDelta(t, 50, got[line("destination", beyond...)], 0)
	require.InDelta(t, 2, got[line("destination", append(beyond, "response_code", "404")...)], 0)
	require.InDelta(t, 52, s.gather()["meltemi_istio_stats_overflow_total"].GetMetric()[0].GetCounter().GetValue(), 0)
	for l, n := range got {
		if strings.Contains(l, `source_workload="w0"`) {
			require.InDelta(t, 2, n, 0)
		}
	}
}

// TestNothingIsCountedForNobody: without a page of metrics.
func TestNothingIsCountedForNobody(t *testing.T) {
	mod := filter.NewModule()
	h := filtertest.NewWith(t, mod, 1)
	cfg := h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": "` + Name + `"}, {"name": "aeraki.meta_protocol.filters.router"}], "route_config": {"routes": []}}`)
	c := h.Dial(cfg)
	s := &stage{t: t, mod: mod}
	c.Send(dubbotest.Request{ID: 1}.Bytes())
	require.Empty(t, s.series())
	mod.Observe()
	c.Send(dubbotest.Request{ID: 2}.Bytes())
	require.Len(t, s.series(), 1, "from now on")
}

// TestMetricsOutliveTheirListeners, as counters do.
func TestMetricsOutliveTheirListeners(t *testing.T) {
	s := start(t, "INBOUND", ownWorkload, "inbound|20880||")
	c := s.Dial(s.cfg)
	s.ask(c, "inbound|20880||")
	c.Close()
	s.cfg.Destroy()
	s.Settle()
	require.Equal(t, map[string]float64{line("destination"): 1}, s.series())
}

// TestWhatKialiAndGrafanaAskFor: labels by which Kiali draws its graph, each with a
// value; and the queries of Istio's dashboards, by hand.
func TestWhatKialiAndGrafanaAskFor(t *testing.T) {
	s := start(t, "UNSPECIFIED", ownWorkload, cartCluster)
	s.serve(cartCluster, host.Server{Workload: "cart-v2;shop;cart;v2;west"})
	c := s.Dial(s.cfg)
	for range 9 {
		s.ask(c, cartCluster)
	}
	s.RemoveCluster(cartCluster)
	other := s.DialOn(s.cfg, 1)
	s.ask(other, cartCluster)
	s.Advance(10 * time.Second)
	var ok, all, slow float64
	for _, m := range s.gather()["istio_requests_total"].GetMetric() {
		of := map[string]string{}
		for _, l := range m.GetLabel() {
			of[l.GetName()] = l.GetValue()
		}
		for _, name := range []string{
			"source_cluster", "source_workload_namespace", "source_workload", "source_canonical_service", "source_canonical_revision",
			"destination_cluster", "destination_service_namespace", "destination_service", "destination_service_name",
			"destination_workload_namespace", "destination_workload", "destination_canonical_service", "destination_canonical_revision",
			"request_protocol", "response_code", "response_flags", "connection_security_policy", "reporter", "source_principal", "destination_principal",
		} {
			require.NotEmpty(t, of[name], name)
		}
		require.Contains(t, []string{"http", "grpc", "tcp"}, of["request_protocol"])
		// sum(irate(istio_requests_total{reporter=~"source|waypoint",destination_service=~"$service",response_code!~"5.*"}[5m]))
		if of["reporter"] == "source" && of["destination_service"] == "cart.shop.svc.cluster.local" {
			n := m.GetCounter().GetValue()
			if all += n; !strings.HasPrefix(of["response_code"], "5") {
				ok += n
			}
			if of["response_flags"] != "-" {
				slow += n
			}
		}
	}
	require.Equal(t, []float64{9, 10, 1}, []float64{ok, all, slow})
}

func TestConfigurations(t *testing.T) {
	check := func(config string) (said []string) {
		for _, e := range filter.Check([]byte(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
			"meta_protocol_filters": [{"name": "` + Name + `", "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.istio_stats.v1alpha.IstioStats", ` + config + `}},
			{"name": "aeraki.meta_protocol.filters.router"}], "route_config": {"routes": []}}`)) {
			said = append(said, e.Error())
		}
		return said
	}
	require.Empty(t, check(`"destination_service": "x"`))
	require.Equal(t, []string{`stat_prefix "t": ` + "meta_protocol_filters[0].config.destination_service: must have at most 253 bytes, has 254"}, check(`"destination_service": "`+strings.Repeat("x", 254)+`"`))
	require.NotEmpty(t, check(`"reporter": "x"`))
}

// TestTheOwnWorkloadIsTheEnvironments where the configuration leaves it open.
func TestTheOwnWorkloadIsTheEnvironments(t *testing.T) {
	env := filter.Environment{
		Variable: func(name string) string {
			return map[string]string{"POD_NAMESPACE": "shop", "ISTIO_META_WORKLOAD_NAME": "cart", "ISTIO_META_CLUSTER_ID": "east"}[name]
		},
		File: func(string) ([]byte, error) { return []byte("app=\"cart\"\n"), nil },
	}
	w := &filter.Workload{Namespace: "ours"}
	env.Complete(w)
	require.Equal(t, workload{"cart", "ours", "unknown", "latest", "cart", "unknown", "east", "unknown"}, workloadOf(w, ""))
	(filter.Environment{Variable: func(string) string { return "" }, File: func(string) ([]byte, error) { return nil, errors.New("none") }}).Complete(w)
}

// TestANamespaceKeepsNoPrincipal, which may be long.
func TestANamespaceKeepsNoPrincipal(t *testing.T) {
	heap := func() int {
		runtime.GC()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return int(ms.HeapAlloc)
	}
	before := heap()
	var all [64]workload
	for i := range all {
		all[i] = workloadOf(nil, "spiffe://cluster.local/ns/shop/sa/"+strings.Repeat("x", 1<<20))
		require.Equal(t, "shop", all[i].namespace)
	}
	require.Less(t, heap()-before, 1<<20)
	runtime.KeepAlive(&all)
}
