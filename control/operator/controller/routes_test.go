package controller

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/control/ir"
	dubbo "github.com/meltemi-mesh/meltemi/control/operator/api/dubbo/v1alpha1"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/filter/config"
	_ "github.com/meltemi-mesh/meltemi/filters"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// TestRoutesAreServed: as the router says now, or said before it had a fault; not of one
// that wants ECDS.
func TestRoutesAreServed(t *testing.T) {
	scheme, err := Scheme()
	require.NoError(t, err)
	greeter := service("greeter", "tcp-metaprotocol-dubbo", map[string]string{"app": "greeter"})
	greeter.Spec.ClusterIP, greeter.Spec.ClusterIPs = "10.0.0.1", []string{"10.0.0.1"}
	router := &api.MetaRouter{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "greeter"}, Spec: api.MetaRouterSpec{
		Hosts: []api.Host{"greeter"}, RouteDelivery: api.RDS, Routes: []api.MetaRoute{{Name: "one", Route: []api.MetaRouteDestination{{Destination: api.Destination{Host: "greeter"}}}}},
	}}
	r := &reconciler{Options: Options{RootNamespace: "istio-system", Domain: "cluster.local", RDS: RDS{
		Address: ":0", Service: ir.Destination{Host: "meltemi-operator.meltemi-system.svc.cluster.local", Port: 15010},
	}}}
	b := fake.NewClientBuilder().WithScheme(scheme).WithObjects(greeter, router)
	for _, i := range r.indexes() {
		b.WithIndex(i.object, i.field, i.values)
	}
	r.Client = b.Build()
	p := &publisher{r: r, store: rds.NewStore()}
	r.routes = rds.NewServer(p.store, rds.Options{Log: logr.Discard()})
	l := bufconn.Listen(64 << 10)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	var served sync.WaitGroup
	served.Go(func() { _ = r.routes.Serve(ctx, l) })
	defer served.Wait()
	defer cancel()

	const host, name = "greeter.demo.svc.cluster.local", "greeter.demo.svc.cluster.local_1"
	update := func(change func(*api.MetaRouterSpec)) {
		t.Helper()
		if change != nil {
			change(&router.Spec)
			require.NoError(t, r.Update(t.Context(), router))
		}
		_, err := p.Reconcile(t.Context(), Request{Host: host})
		require.NoError(t, err)
	}
	update(nil)
	conn, err := grpc.NewClient("passthrough:rds", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	require.NoError(t, err)
	defer conn.Close()
	st, err := routeservicev3.NewRouteDiscoveryServiceClient(conn).DeltaRoutes(ctx)
	require.NoError(t, err)
	ask := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: config.ProxyRoutes, ResourceNamesSubscribe: []string{name}}
	next := func() *discoveryv3.DeltaDiscoveryResponse {
		t.Helper()
		require.NoError(t, st.Send(ask))
		a, err := st.Recv()
		require.NoError(t, err)
		ask = &discoveryv3.DeltaDiscoveryRequest{ResponseNonce: a.GetNonce()}
		return a
	}
	route := func() string {
		t.Helper()
		rc := &routev1alpha.RouteConfiguration{}
		require.NoError(t, next().GetResources()[0].GetResource().UnmarshalTo(rc))
		require.Equal(t, name, rc.GetName())
		require.Equal(t, "outbound|1||"+host, rc.GetRoutes()[0].GetRoute().GetCluster())
		return rc.GetRoutes()[0].GetName()
	}
	require.Equal(t, "one", route())
	update(nil)
	update(func(s *api.MetaRouterSpec) {
		s.Routes[0].Name = "faulty"
		s.Routes[0].Route[0].Destination.Subset = "none"
	})
	update(func(s *api.MetaRouterSpec) {
		s.Routes[0].Name = "two"
		s.Routes[0].Route[0].Destination.Subset = ""
	})
	require.Equal(t, "two", route())
	w := httptest.NewRecorder()
	r.told(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/rds?name="+name, nil))
	var states []rds.State
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &states))
	require.Len(t, states, 1)
	update(func(s *api.MetaRouterSpec) { s.RouteDelivery = api.ECDS })
	require.Equal(t, []string{name}, next().GetRemovedResources())
}

// serve starts an operator that serves shopOf(1)'s router by RDS, with one route.
func (w *world) serve(listen func() (net.Listener, error)) (*replica, *api.MetaRouter) {
	w.Helper()
	objects := shopOf(1)
	router := objects[3].(*api.MetaRouter)
	router.Spec.RouteDelivery, router.Spec.Routes = api.RDS, router.Spec.Routes[:1]
	for _, o := range objects {
		w.put(w, w.scheme, o)
	}
	r := w.start("one", Options{RDS: RDS{
		Address: ":15010", Insecure: true, listen: listen,
		Service: ir.Destination{Host: "meltemi-operator.meltemi-system.svc.cluster.local", Port: 15010},
	}})
	settle()
	return r, router
}

// TestWhatMendsRoutesHasThemServed: whichever object had a host stay as it was.
func TestWhatMendsRoutesHasThemServed(t *testing.T) {
	virtually(t, func(w *world) {
		l := bufconn.Listen(64 << 10)
		r, router := w.serve(func() (net.Listener, error) { return l, nil })
		defer func() { require.NoError(w, r.stop()) }()
		proxy := w.subscribe(l, "orders-1.team-1.svc.cluster.local_20880")
		settle()
		require.Equal(w, "route-0", proxy.has(w.T))

		policy := &dubbo.DubboAuthorizationPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "team-1", Name: "some"},
			Spec:       dubbo.DubboAuthorizationPolicySpec{Action: "DENY", Selector: &dubbo.WorkloadSelector{MatchLabels: map[string]string{"version": "v1"}}},
		}
		require.NoError(w, w.user.Create(w.Context(), policy))
		settle()
		require.NoError(w, w.user.Get(w.Context(), client.ObjectKeyFromObject(router), router))
		router.Spec.Routes[0].Name = "new"
		require.NoError(w, w.user.Update(w.Context(), router))
		settle()
		require.Equal(w, "route-0", proxy.has(w.T), "a policy may be for a part of the workloads")

		require.NoError(w, w.user.Delete(w.Context(), policy))
		settle()
		require.Equal(w, "new", proxy.has(w.T))
	})
}

// TestAReplicaServesOnceItHasAllRoutes: what cannot be read when it starts ends no process, and it
// does not serve, by which it would be ready, before it has all routes.
func TestAReplicaServesOnceItHasAllRoutes(t *testing.T) {
	virtually(t, func(w *world) {
		mesh := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}, Data: map[string]string{"mesh": "{"}}
		w.put(w, w.scheme, mesh)
		l := bufconn.Listen(64 << 10)
		var listening atomic.Bool
		r, _ := w.serve(func() (net.Listener, error) { listening.Store(true); return l, nil })
		require.Empty(w, r.done)
		require.False(w, listening.Load())

		require.NoError(w, w.user.Get(w.Context(), client.ObjectKeyFromObject(mesh), mesh))
		mesh.Data["mesh"] = "{}"
		require.NoError(w, w.user.Update(w.Context(), mesh))
		settle()
		require.True(w, listening.Load())
		proxy := w.subscribe(l, "orders-1.team-1.svc.cluster.local_20880")
		settle()
		require.Equal(w, "route-0", proxy.has(w.T))
		require.NoError(w, r.stop())
	})
}
