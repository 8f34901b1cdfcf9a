package e2e

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/cmd/meltemi/command"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/rdsserver"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
	adminv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/admin/v1alpha"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// routesOf runs "meltemi routes" against a process.
func routesOf(address string, args ...string) (status int, out, complaint string) {
	var stdout, stderr bytes.Buffer
	status = command.Main(append([]string{"routes", "--address", address}, args...), strings.NewReader(""), &stdout, &stderr)
	return status, stdout.String(), stderr.String()
}

// TestARunningEnvoyTellsItsRoutes: those of listeners and those by RDS, with what is
// wrong with the last update; also when the loopback listener is replaced, and names
// another address.
func TestARunningEnvoyTellsItsRoutes(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		a, s := scripted.Serve(t, scripted.Answer("a")), rdsserver.Start(t, 0, nil)
		address := "unix:" + filepath.Join(t.TempDir(), "admin")
		socket := envoytest.Socket()
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("a", envoytest.At(a.Port)...), envoytest.Cluster("xds", envoytest.At(s.Port)...)}
		listeners := []envoytest.Resource{
			envoytest.Listener("fixed", envoytest.Proxy(envoytest.Dubbo("fixed", envoytest.Route("a", nil)))),
			envoytest.Listener("dubbo", envoytest.Proxy(discovered("dubbo", "test", "GRPC", fromCluster()))),
		}
		o.Listeners = append([]envoytest.Resource{envoytest.LoopbackWithAdmin(socket, address)}, listeners...)
		e := envoytest.Start(t, o)
		dump := func(address string) *adminv1alpha.RoutesConfigDump {
			d := new(adminv1alpha.RoutesConfigDump)
			if status, out, _ := routesOf(address, "-json"); status == 0 {
				require.NoError(t, protojson.Unmarshal([]byte(out), d))
			}
			return d
		}
		dynamic := func(ok func(d *adminv1alpha.RoutesConfigDump_DynamicRouteConfig) bool) *adminv1alpha.RoutesConfigDump_DynamicRouteConfig {
			t.Helper()
			var d *adminv1alpha.RoutesConfigDump_DynamicRouteConfig
			require.True(t, eventually(patience, func() bool {
				all := dump(address).GetDynamicRouteConfigs()
				if len(all) == 0 {
					return false
				}
				d = all[0]
				return ok(d)
			}), "%v", d)
			return d
		}
		d := dynamic(func(d *adminv1alpha.RoutesConfigDump_DynamicRouteConfig) bool { return d.GetServer() == "cluster xds" })
		require.Empty(t, d.GetVersionInfo())
		require.True(t, eventually(patience, func() bool { open, _ := s.Streams(); return open == 1 }))
		s.To("test", "a")
		d = dynamic(func(d *adminv1alpha.RoutesConfigDump_DynamicRouteConfig) bool {
			return d.GetClientStatus().String() == "ACKED"
		})
		rc := new(routev1alpha.RouteConfiguration)
		require.NoError(t, d.GetRouteConfig().UnmarshalTo(rc))
		require.Equal(t, "a", rc.GetRoutes()[0].GetRoute().GetCluster())
		version := d.GetVersionInfo()
		require.NotEmpty(t, version)
		s.Say("test", &clusterv3.Cluster{Name: "test"})
		d = dynamic(func(d *adminv1alpha.RoutesConfigDump_DynamicRouteConfig) bool {
			return d.GetClientStatus().String() == "NACKED"
		})
		require.Equal(t, version, d.GetVersionInfo())
		require.Contains(t, d.GetErrorState().GetDetails(), "resources[0]: want type.googleapis.com/envoy.config.route.v3.RouteConfiguration")

		_, out, _ := routesOf(address)
		require.Contains(t, out, "stat_prefix: fixed")
		require.Contains(t, out, "server: cluster xds")

		if v.golang {
			return // MELTEMI_PROCESS says it, for as long as the process lives
		}
		other := "unix:" + filepath.Join(t.TempDir(), "other")
		require.True(t, e.SetListeners(append([]envoytest.Resource{envoytest.LoopbackWithAdmin(socket, other)}, listeners...)...))
		require.True(t, eventually(patience, func() bool { return len(dump(other).GetStaticRouteConfigs()) == 1 }))
		status, _, complaint := routesOf(address)
		require.Equal(t, 1, status, complaint)
	})
}
