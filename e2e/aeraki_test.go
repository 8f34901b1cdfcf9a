package e2e

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/rdsserver"
)

// fromAeraki is a table as Aeraki's server sends it: in Envoy's type, in a virtual host
// that means nothing.
func fromAeraki(t *testing.T, name, routes string) *routev3.RouteConfiguration {
	t.Helper()
	rc := new(routev3.RouteConfiguration)
	require.NoError(t, protojson.Unmarshal([]byte(`{"name": "`+name+`", "virtualHosts": [{"name": "dummy", "domains": ["*"], "routes": [`+routes+`]}]}`), rc))
	return rc
}

// aerakis is a route with what a request must have, and what becomes of it.
func aerakis(headers, action, more string) string {
	return `{"match": {"prefix": "/", "headers": [` + headers + `]}, "route": {` + action + `}` + more + `}`
}

// TestAerakisScenarios are those of its own end-to-end tests that need no mesh, by RDS,
// with a real client and servers: versions, percentages, attributes, hashing, mirrors,
// changes.
func TestAerakisScenarios(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := rdsserver.Start(t, 0, nil)
		clusters := []envoytest.Resource{envoytest.Cluster("xds", envoytest.At(s.Port)...)}
		var ports []int
		for _, name := range []string{"v1", "v2", "v3"} {
			p := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: name})
			ports = append(ports, p.Port)
			clusters = append(clusters, envoytest.Cluster(name, envoytest.At(p.Port)...))
		}
		clusters = append(clusters, envoytest.Cluster("sample", envoytest.At(ports...)...))
		e := v.start(t, discovered("dubbo", "test", "GRPC", fromCluster()), clusters...)
		require.True(t, eventually(patience, func() bool { open, _ := s.Streams(); return open == 1 }))
		say := func(routes string) {
			t.Helper()
			require.Empty(t, s.Say("test", fromAeraki(t, "test", routes)))
		}
		say(aerakis("", `"cluster": "v1"`, ""))
		c := peers.DubboGo.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{})
		asked := int64(0)
		who := func(n int) map[string]int {
			t.Helper()
			sum := c.Load(peers.Command{Method: "who", Count: n, Concurrency: 4})
			require.Empty(t, sum.Errors)
			asked += int64(n)
			return sum.Values
		}
		// counted is a counter when it has all that was asked: it is told a moment later.
		counted := func(name string) int64 {
			t.Helper()
			e.WaitStat(stats+"request", envoytest.Exactly(asked))
			return e.Stat(stats + name)
		}

		t.Run("M2 versions", func(t *testing.T) {
			for _, to := range []string{"v1", "v2"} {
				say(aerakis("", `"cluster": "`+to+`"`, ""))
				require.Equal(t, map[string]int{to: 5}, who(5))
			}
		})
		t.Run("M3 percentages", func(t *testing.T) {
			say(aerakis("", `"weightedClusters": {"clusters": [{"name": "v1", "weight": 20}, {"name": "v2", "weight": 80}], "totalWeight": 100}`, ""))
			got := who(400)
			require.InDelta(t, 80, got["v1"], 45)
			require.Equal(t, 400, got["v1"]+got["v2"])
		})
		t.Run("M4 attributes", func(t *testing.T) {
			for _, method := range []string{`"exactMatch": "who"`, `"prefixMatch": "wh"`, `"safeRegexMatch": {"googleRe2": {}, "regex": "^w.*o$"}`} {
				say(aerakis(`{"name": "method", "exactMatch": "whoever"}`, `"cluster": "v1"`, "") + "," +
					aerakis(`{"name": "interface", "exactMatch": "org.meltemi.test.Greeter"}, {"name": "method", `+method+`}`, `"cluster": "v2"`, "") + "," +
					aerakis("", `"cluster": "v1"`, ""))
				require.Equal(t, map[string]int{"v2": 5}, who(5), method)
			}
		})
		t.Run("M5 hashing", func(t *testing.T) {
			say(aerakis("", `"cluster": "sample", "hashPolicy": [{"header": {"headerName": "method"}}]`, ""))
			// Once all hosts are known, and there is a connection to that of the hash.
			detours := func() int64 { return counted("request_hash_hosts_unknown") + counted("request_hash_host_unavailable") }
			require.True(t, eventually(patience, func() bool {
				before := detours()
				who(20)
				return detours() == before
			}))
			host := who(1)
			for range 10 {
				require.Equal(t, host, who(1))
			}
		})
		t.Run("M9 mirrors", func(t *testing.T) {
			say(aerakis("", `"cluster": "v1", "requestMirrorPolicies": [{"cluster": "v2", "runtimeFraction": {"defaultValue": {"numerator": 50}}}]`, ""))
			require.Equal(t, map[string]int{"v1": 200}, who(200))
			require.InDelta(t, 100, counted("mirror"), 40)
			e.WaitStat(stats+"mirror_active", envoytest.Exactly(0))
			require.Zero(t, e.Stat(stats+"mirror_failed"))
		})
		t.Run("M10 changes", func(t *testing.T) {
			say(aerakis("", `"cluster": "v1"`, `, "requestHeadersToAdd": [{"header": {"key": "foo", "value": "bar"}}, {"header": {"key": "foo1", "value": "bar1"}}]`))
			a := c.Call(peers.Command{Method: "attachments", Attachments: map[string]any{"foo": "of the client"}})
			require.Empty(t, a.Error)
			got := a.Value.(map[string]any)
			require.Equal(t, "bar", got["foo"], "set, not appended")
			require.Equal(t, "bar1", got["foo1"])
		})
		require.Zero(t, e.Stat(stats+"rds_update_rejected"))
		checkCounters(t, e)
	})
}

// TestAerakisGateway is its scenario G1: calls of a Thrift client follow the routes while
// its one connection stays open.
func TestAerakisGateway(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := rdsserver.Start(t, 0, nil)
		wire := peers.Wire{Transport: "framed", Protocol: "strict"}
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("xds", envoytest.At(s.Port)...)}
		for _, name := range []string{"v1", "v2"} {
			o.Clusters = append(o.Clusters, envoytest.Cluster(name, envoytest.At(peers.ThriftGo.Server(t, name, wire).Port)...))
		}
		o.Listeners = []envoytest.Resource{
			envoytest.Loopback(envoytest.Socket()),
			envoytest.Listener("thrift", envoytest.Proxy(discovered("thrift", "thrift", "DELTA_GRPC", fromCluster()))),
		}
		e := envoytest.Start(t, o)
		require.True(t, eventually(patience, func() bool { open, _ := s.Streams(); return open == 1 }))
		require.Empty(t, s.Say("thrift", fromAeraki(t, "thrift", aerakis("", `"cluster": "v1"`, ""))))
		c := peers.ThriftGo.Client(t, e.Port("thrift"), wire, 0)
		for _, to := range []string{"v1", "v2"} {
			require.Empty(t, s.Say("thrift", fromAeraki(t, "thrift", aerakis("", `"cluster": "`+to+`"`, ""))))
			for range 5 {
				require.Equal(t, to, c.Call(thriftCall("who")).Value)
			}
		}
		total := int64(0)
		for _, n := range e.Stats("^listener[.]127[.]0[.]0[.]1_[0-9]*[.]downstream_cx_total$") {
			total += n
		}
		require.EqualValues(t, 1, total, "one connection")
	})
}
