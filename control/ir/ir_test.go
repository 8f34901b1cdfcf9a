package ir

import (
	"math"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meltemi-mesh/meltemi/control/fault"
)

// TestComplete: what is left out has its default, and is a service then that
// another completion leaves as it is.
func TestComplete(t *testing.T) {
	described := func() *Service {
		return &Service{
			Host: "a.b.svc.cluster.local", Addresses: []string{"10.0.0.1"},
			Ports:    []Port{{Port: 1, Protocol: []string{"dubbo"}}},
			Server:   &Server{Selector: map[string]string{"k": "v"}},
			Gateways: []Gateway{{Namespace: "g", Selector: map[string]string{"k": "v"}, Port: 2, SNIHosts: []string{}}},
		}
	}
	s := described()
	require.Empty(t, s.Complete())
	want := described()
	want.Name, want.Namespace = "a.b", "b"
	want.Ports[0].TargetPort = 1
	want.Server.Namespace = "b"
	want.Clients = []Workloads{{Namespace: "b"}}
	want.Gateways[0].ServicePort = 1
	want.Delivery, want.InitialFetchTimeout = ECDS, 5*time.Second
	want.ProxyMetadata, want.ProxyVersion = map[string]string{"MELTEMI": "true"}, DefaultProxyVersion
	want.Golang = Golang{DefaultGolangVersion, "/usr/local/lib/meltemi/libmeltemi.so", "/etc/istio/proxy/meltemi.sock", false}
	want.Module, want.Socket, want.Admin = "meltemi", "@meltemi", "127.0.0.1:15880"
	require.Equal(t, want, s)
	require.Empty(t, s.Complete())
	require.Equal(t, want, s)
}

// TestDestinationsAreJudged: of routes nothing else is, see package input for the
// rest.
func TestDestinationsAreJudged(t *testing.T) {
	to := func(d Destination) Object { return Object{"route": Object{"cluster": d}} }
	s := &Service{
		Host: "a.b.svc.cluster.local", Headless: true,
		Ports: []Port{{Port: 1, Protocol: []string{"dubbo"}, Routes: []Object{
			to(Destination{Host: "short"}), to(Destination{Host: "c.d", Subset: "a|b"}), to(Destination{Port: 65536}),
			to(Destination{Subset: "v1"}), to(Destination{Host: "c.d", Subset: "v1", Port: 2}),
			{"route": Object{"weighted_clusters": Object{"clusters": []any{5, Object{"name": Destination{Port: -1}}}}, "cluster": Destination{Port: -1}}},
			{"route": 5},
			{},
		}}},
	}
	const path = "ports[0].routes"
	require.Equal(t, fault.List{
		{Path: path + "[0].route.host", Reason: WantHost},
		{Path: path + "[1].route.subset", Reason: WantSubset},
		{Path: path + "[2].route.port", Reason: WantPort},
		{Path: path + "[3].route.subset", Reason: "a headless service has none: its clients have chosen the endpoint. Name the host of one with an address"},
		{Path: path + "[5].route.weighted_clusters.clusters[1].port", Reason: WantPort},
	}, s.Complete())
}

// TestVersionsOfProxies: those before 1.31 would refuse whole listeners, and so would those
// before 1.20 what is for the golang filter. None gets both.
func TestVersionsOfProxies(t *testing.T) {
	modules, golang := regexp.MustCompile(DefaultProxyVersion).MatchString, regexp.MustCompile(DefaultGolangVersion).MatchString
	for _, v := range []string{"1.31", "1.31.0", "1.31-dev", "1.31.2-vendor.1", "1.39.1", "1.40.0", "1.99", "1.100.0", "2.0.0", "10.1"} {
		require.True(t, modules(v), v)
		require.False(t, golang(v), v)
	}
	for _, v := range []string{"1.20", "1.20.0", "1.29.0-vendor.31", "1.30-dev", "1.30.9"} {
		require.False(t, modules(v), v)
		require.True(t, golang(v), v)
	}
	for _, v := range []string{"1.3", "1.3.1", "1.4.10", "1.2", "1.2.0", "1.19.9", "1.03.1", "0.31", "0.20", "unknown", "x1.31.0", "x1.30.0", ""} {
		require.False(t, modules(v), v)
		require.False(t, golang(v), v)
	}
}

func TestObservedPorts(t *testing.T) {
	s := Service{
		Host: "a.b.svc.cluster.local", Addresses: []string{"10.0.0.1"}, Observed: []ObservedPort{
			{Port: 2181, Filter: ZooKeeper}, {Port: 2181, TargetPort: 70000, Filter: Kafka}, {Filter: "redis"},
		},
	}
	require.Equal(t, fault.List{
		{Path: "observed[1].targetPort", Reason: "must be between 1 and 65535, is 70000"},
		{Path: "observed[1].port", Reason: "given twice"},
		{Path: "observed[2].port", Reason: "must be between 1 and 65535, is 0"},
		{Path: "observed[2].targetPort", Reason: "must be between 1 and 65535, is 0"},
		{Path: "observed[2].filter", Reason: "want zookeeper or kafka"},
	}, s.Complete())
	require.Equal(t, 2181, s.Observed[0].TargetPort)
	s.Observed = s.Observed[:1]
	require.Empty(t, s.Complete())
}

// TestSeconds: what protobuf's JSON reads as the same duration.
func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1: "0.000000001s", 1118 * time.Millisecond: "1.118s", 100 * time.Second: "100s", math.MaxInt64: "9223372036.854775807s",
	} {
		require.Equal(t, want, Seconds(d))
		var got durationpb.Duration
		require.NoError(t, protojson.Unmarshal([]byte(`"`+want+`"`), &got))
		require.Equal(t, d, got.AsDuration())
	}
}
