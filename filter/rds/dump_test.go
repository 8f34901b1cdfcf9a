package rds_test

import (
	"testing"
	"testing/synctest"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"github.com/stretchr/testify/require"

	adminv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/admin/v1alpha"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// TestADumpTellsOfAllSubscriptions: what is held, since when, and what is wrong.
func TestADumpTellsOfAllSubscriptions(t *testing.T) {
	virtually(t, func(b *bed) {
		dump := func() *adminv1alpha.RoutesConfigDump_DynamicRouteConfig {
			t.Helper()
			synctest.Wait()
			all, err := b.Dump()
			require.NoError(t, err)
			require.Len(t, all, 1)
			return all[0]
		}
		table := func(d *adminv1alpha.RoutesConfigDump_DynamicRouteConfig) *routev1alpha.RouteConfiguration {
			rc := new(routev1alpha.RouteConfiguration)
			require.NoError(t, d.GetRouteConfig().UnmarshalTo(rc))
			return rc
		}
		all, err := b.Dump()
		require.NoError(t, err)
		require.Empty(t, all)

		b.serve(newServer())
		_, st := b.asked(source(t, world))
		d := dump()
		require.Equal(t, adminv3.ClientResourceStatus_REQUESTED, d.GetClientStatus())
		require.Equal(t, "cluster xds", d.GetServer())
		require.Equal(t, name, table(d).GetName(), "all that is known")
		require.Nil(t, d.GetLastUpdated())

		taken := time.Now()
		b.answer(st, response("1", http(name, "v1")))
		d = dump()
		require.Equal(t, adminv3.ClientResourceStatus_ACKED, d.GetClientStatus())
		require.Equal(t, "1", d.GetVersionInfo())
		require.Equal(t, "v1", table(d).GetRoutes()[0].GetRoute().GetCluster())
		require.True(t, d.GetLastUpdated().AsTime().Equal(taken))
		require.Nil(t, d.GetErrorState())

		time.Sleep(time.Minute)
		refused := time.Now()
		b.answer(st, response("2", own("other", "v2")))
		d = dump()
		require.Equal(t, adminv3.ClientResourceStatus_NACKED, d.GetClientStatus())
		require.Equal(t, "1", d.GetVersionInfo())
		require.True(t, d.GetLastUpdated().AsTime().Equal(taken))
		require.Equal(t, `resources[0].name: want "greeter", is "other"`, d.GetErrorState().GetDetails())
		require.Equal(t, "2", d.GetErrorState().GetVersionInfo())
		require.True(t, d.GetErrorState().GetLastUpdateAttempt().AsTime().Equal(refused))

		b.answer(st, response("3"))
		d = dump()
		require.Equal(t, adminv3.ClientResourceStatus_DOES_NOT_EXIST, d.GetClientStatus())
		require.Equal(t, "v1", table(d).GetRoutes()[0].GetRoute().GetCluster(), "it stays in use")

		b.serve(nil)
		time.Sleep(time.Minute)
		d = dump()
		require.Equal(t, adminv3.ClientResourceStatus_RECEIVED_ERROR, d.GetClientStatus())
		require.Contains(t, d.GetErrorState().GetDetails(), "nobody listens in xds")

		b.serve(newServer())
		st = b.asks()
		b.answer(st, response("4", http(name, "v4")))
		d = dump()
		require.Equal(t, adminv3.ClientResourceStatus_ACKED, d.GetClientStatus())
		require.Nil(t, d.GetErrorState())
		require.Equal(t, "4", d.GetVersionInfo())
	})
}
