package translate_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/control/ir"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// decided is the table of routes that comes of the routes of a router for orders.shop, at
// its only port, which is 7000.
func decided(t *testing.T, routes string) (*routev1alpha.RouteConfiguration, *route.Table) {
	t.Helper()
	text := "apiVersion: metaprotocol.aeraki.io/v1alpha1\nkind: MetaRouter\nmetadata: {name: orders, namespace: shop}\n" +
		"spec:\n  hosts: [orders.shop.svc.cluster.local]\n  routeDelivery: RDS\n  routes:\n" + routes
	out := translate.Translate(&translate.Input{
		Mesh: translate.Mesh{RootNamespace: "istio-system", Domain: "cluster.local", RDS: &ir.Destination{Host: "rds", Port: 1}},
		Host: "orders.shop.svc.cluster.local", Routers: []*api.MetaRouter{decode(t, []byte(text))[0].(*api.MetaRouter)},
		Service: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "orders", Namespace: "shop"},
			Spec:       corev1.ServiceSpec{ClusterIP: "10.0.0.1", Ports: []corev1.ServicePort{{Name: "tcp-metaprotocol-dubbo", Port: 7000}}},
		},
	})
	require.Empty(t, out.Faults)
	require.Len(t, out.Tables, 1)
	require.Equal(t, "orders.shop.svc.cluster.local_7000", out.Tables[0].Name)
	table, errs := route.Compile(out.Tables[0], route.Env{})
	require.Empty(t, errs)
	return out.Tables[0], table
}

// TestDecisionsOfAerakisExamples: what MetaRouters of the kinds that Aeraki's guides have
// decide of calls.
func TestDecisionsOfAerakisExamples(t *testing.T) {
	const orders = "orders.shop.svc.cluster.local"
	to := func(subset string) string {
		return "route: [{destination: {host: " + orders + ", subset: " + subset + "}}]"
	}
	for name, tc := range map[string]struct {
		routes string
		// calls are attributes, KEY=VALUE, and the subset that gets them; - is no route.
		calls map[string]string
	}{
		"all to one version": {
			"  - {name: v2, " + to("v2") + "}\n",
			map[string]string{"": "v2", "method=get": "v2"},
		},
		"by a method, a decoy first": {
			"  - {name: v1, match: {attributes: {method: {exact: place01}}}, " + to("v1") + "}\n" +
				"  - {name: v2, match: {attributes: {method: {exact: place}}}, " + to("v2") + "}\n",
			map[string]string{"method=place": "v2", "method=place01": "v1", "method=plac": "-", "": "-"},
		},
		"by a prefix, the first that matches": {
			"  - {match: {attributes: {method: {prefix: place01}}}, " + to("v1") + "}\n" +
				"  - {match: {attributes: {method: {prefix: pl}}}, " + to("v2") + "}\n",
			map[string]string{"method=place": "v2", "method=place01a": "v1", "method=place0": "v2", "method=apl": "-"},
		},
		"by a regular expression of the whole": {
			"  - {match: {attributes: {method: {regex: place01}}}, " + to("v1") + "}\n" +
				"  - {match: {attributes: {method: {regex: \"^p.*e$\"}}}, " + to("v2") + "}\n",
			map[string]string{"method=place": "v2", "method=place01": "v1", "method=place012": "-", "method=places": "-"},
		},
		"of numbers, all of several": {
			"  - {match: {attributes: {cmd: {exact: \"153\"}, sub_cmd: {regex: \"1|2\"}}}, " + to("v1") + "}\n",
			map[string]string{"cmd=153 sub_cmd=1": "v1", "cmd=153 sub_cmd=2": "v1", "cmd=153 sub_cmd=12": "-", "cmd=154 sub_cmd=1": "-", "cmd=153": "-"},
		},
		"by the version that a call names": {
			"  - {match: {attributes: {callee: {exact: shop.orders}, version: {exact: v1}, func: {prefix: /shop.Orders/Place}}}, " + to("v1") + "}\n" +
				"  - {match: {attributes: {callee: {exact: shop.orders}, version: {exact: v2}, func: {prefix: /shop.Orders/Place}}}, " + to("v2") + "}\n",
			map[string]string{
				"callee=shop.orders version=v1 func=/shop.Orders/PlaceOne": "v1", "callee=shop.orders version=v2 func=/shop.Orders/Place": "v2",
				"callee=shop.orders version=v3 func=/shop.Orders/Place": "-", "callee=shop.orders version=v1 func=/shop.Orders/Get": "-",
			},
		},
		"presence, with and without a value": {
			"  - {match: {attributes: {tenant: {exact: \"\"}}}, " + to("tenants") + "}\n  - {match: {attributes: {user: {}}}, " + to("users") + "}\n  - {" + to("rest") + "}\n",
			map[string]string{"tenant=a": "tenants", "tenant=": "tenants", "user=x": "users", "method=m": "rest"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, table := decided(t, tc.routes)
			for call, want := range tc.calls {
				m := &codecs.Metadata{}
				for pair := range strings.FieldsSeq(call) {
					k, v, _ := strings.Cut(pair, "=")
					m.Put([]byte(k), []byte(v))
				}
				r := table.Match(m)
				if want == "-" {
					require.Nil(t, r, call)
					continue
				}
				require.NotNil(t, r, call)
				require.Equal(t, []string{fmt.Sprintf("outbound|7000|%s|%s", want, orders)}, r.Clusters(), call)
			}
		})
	}
	t.Run("shares, a mirror and what calls are given", func(t *testing.T) {
		rc, table := decided(t, "  - name: split\n    route:\n"+
			"    - {destination: {host: orders, subset: v1}, weight: 20}\n    - {destination: {host: orders, subset: v2, port: {number: 7001}}, weight: 80}\n"+
			"    mirror: {host: shadow.test.svc.cluster.local, port: {number: 1}}\n    mirrorPercentage: {value: 50}\n"+
			"    requestMutation: [{key: foo, value: bar}, {key: foo1, value: bar1}]\n")
		r, err := table.Find(&codecs.Metadata{}, route.Origin{}, rand.New(rand.NewPCG(1, 2)))
		require.NoError(t, err)
		require.Equal(t, []string{"outbound|7000|v1|" + orders, "outbound|7001|v2|" + orders}, r.Clusters())
		made := rc.Routes[0]
		weights := made.GetRoute().GetWeightedClusters().GetClusters()
		require.Equal(t, []uint32{20, 80}, []uint32{weights[0].GetWeight().GetValue(), weights[1].GetWeight().GetValue()})
		mirrors := made.GetRoute().GetRequestMirrorPolicies()
		require.Len(t, mirrors, 1)
		require.Equal(t, "outbound|1||shadow.test.svc.cluster.local", mirrors[0].GetCluster())
		given := made.GetRequestMutation()
		require.Equal(t, "foo bar foo1 bar1", strings.Join([]string{given[0].GetKey(), given[0].GetValue(), given[1].GetKey(), given[1].GetValue()}, " "))
		require.Equal(t, "split", made.GetName())
	})
}
