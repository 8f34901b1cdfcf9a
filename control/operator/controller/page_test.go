package controller

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	istioalpha "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/meltemi-mesh/meltemi/control/ir"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/control/status"
)

// TestTheStatusPage tells of all hosts, or of those that are asked for.
func TestTheStatusPage(t *testing.T) {
	scheme, err := Scheme()
	require.NoError(t, err)
	greeter := service("greeter", "tcp-metaprotocol-dubbo", map[string]string{"app": "greeter"})
	greeter.Spec.ClusterIP, greeter.Spec.ClusterIPs = "10.0.0.1", []string{"10.0.0.1"}
	router := func(name, host string, age time.Duration) *api.MetaRouter {
		return &api.MetaRouter{
			ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))},
			Spec: api.MetaRouterSpec{
				Hosts: []api.Host{api.Host(host)}, RouteDelivery: api.RDS,
				Routes: []api.MetaRoute{{Route: []api.MetaRouteDestination{{Destination: api.Destination{Host: api.Host(host)}}}}},
			},
		}
	}
	const host = "greeter.demo.svc.cluster.local"
	stale := &istioalpha.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{
		Namespace: "istio-system", Name: "meltemi-outbound-greeter.demo-1",
		Labels:      map[string]string{translate.ManagedBy: translate.Manager},
		Annotations: map[string]string{translate.Host: host, digestKey: "of something else"},
	}}
	r := &reconciler{Options: Options{RootNamespace: "istio-system", Domain: "cluster.local", RDS: RDS{
		Address: ":0", Service: ir.Destination{Host: "meltemi-operator.meltemi-system.svc.cluster.local", Port: 15010},
	}}}
	b := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		greeter, router("counts", "greeter", time.Hour), router("younger", host, 0), router("lost", "nowhere", 0), stale,
	)
	for _, i := range r.indexes() {
		b.WithIndex(i.object, i.field, i.values)
	}
	r.Client = b.Build()
	r.judge = newJudge(r, rds.NewServer(rds.NewStore(), rds.Options{Log: logr.Discard()}))
	get := func(query string) []status.Service {
		t.Helper()
		w := httptest.NewRecorder()
		r.serveStatus(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, status.Path+query, nil))
		require.Equal(t, http.StatusOK, w.Code, w.Body)
		var list status.List
		d := json.NewDecoder(w.Body)
		d.DisallowUnknownFields()
		require.NoError(t, d.Decode(&list))
		return list.Services
	}
	all := get("")
	require.Len(t, all, 2)
	version := all[0].Routes[0].Version
	require.Equal(t, status.Service{
		Host: host, Object: "Service demo/greeter", Router: "demo/counts", Delivery: "RDS",
		Written: []status.Object{
			{Kind: "EnvoyFilter", Namespace: "demo", Name: "meltemi-inbound-greeter.demo-1"},
			{Kind: "EnvoyFilter", Namespace: "istio-system", Name: "meltemi-outbound-greeter.demo-1", Version: "of something else"},
		},
		Routes:   []status.Routes{{Name: host + "_1", Version: version}},
		Problems: []status.Problem{{Object: "MetaRouter demo/younger", Field: "spec.hosts[0]", Reason: "demo/counts is older and has the same host"}},
	}, all[0])
	require.Equal(t, status.Service{
		Host: "nowhere.demo.svc.cluster.local", Router: "demo/lost",
		Problems: []status.Problem{{Object: "MetaRouter demo/lost", Field: "spec.hosts[0]", Reason: noService}},
	}, all[1])
	require.Equal(t, all, get("?namespace=demo"))
	require.Empty(t, get("?namespace=shop"))
	require.Equal(t, all[1:], get("?host=nowhere"))
	require.Equal(t, all[:1], get("?host="+host+"&namespace=demo"))
	require.Empty(t, get("?host=greet"))
}
