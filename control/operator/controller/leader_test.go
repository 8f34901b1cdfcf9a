package controller

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meltemi-mesh/meltemi/control/ir"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/filter/config"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// subscriber is a proxy that takes routes by RDS.
type subscriber struct {
	mu     sync.Mutex
	routes []string // the names of each version that has come
	ended  error
}

func (w *world) subscribe(l *bufconn.Listener, name string) *subscriber {
	w.Helper()
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	require.NoError(w, err)
	ctx, cancel := context.WithCancel(context.Background())
	st, err := routeservicev3.NewRouteDiscoveryServiceClient(conn).DeltaRoutes(ctx)
	require.NoError(w, err)
	require.NoError(w, st.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: config.ProxyRoutes, ResourceNamesSubscribe: []string{name}}))
	s := &subscriber{}
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			a, err := st.Recv()
			if err != nil {
				s.mu.Lock()
				s.ended = err
				s.mu.Unlock()
				return
			}
			var names []string
			for _, r := range a.GetResources() {
				rc := &routev1alpha.RouteConfiguration{}
				if r.GetResource().UnmarshalTo(rc) == nil {
					for _, route := range rc.GetRoutes() {
						names = append(names, route.GetName())
					}
				}
			}
			s.mu.Lock()
			s.routes = append(s.routes, strings.Join(names, " "))
			s.mu.Unlock()
			_ = st.Send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: a.GetNonce()})
		}
	})
	w.Cleanup(func() {
		cancel()
		conn.Close()
		reading.Wait()
	})
	return s
}

// has are the names of the routes that the proxy has, whose stream has not ended.
func (s *subscriber) has(t *testing.T) string {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	require.NoError(t, s.ended)
	require.NotEmpty(t, s.routes)
	return s.routes[len(s.routes)-1]
}

// TestALostLeaseEndsNoStream: an API server that is away ends who leads, and nothing that is
// served. When it is back one replica writes again, and all serve what has changed, both soon.
func TestALostLeaseEndsNoStream(t *testing.T) {
	virtually(t, func(w *world) {
		objects := shopOf(1)
		router := objects[3].(*api.MetaRouter)
		router.Spec.RouteDelivery, router.Spec.Routes = api.RDS, router.Spec.Routes[:1]
		for _, o := range objects {
			w.put(w, w.scheme, o)
		}
		w.leadersWrite()
		replicas, proxies := map[string]*replica{}, map[string]*subscriber{}
		for _, name := range []string{"a", "b"} {
			l := bufconn.Listen(64 << 10)
			replicas[name] = w.start(name, Options{Namespace: "meltemi-system", RDS: RDS{
				Address: ":15010", Insecure: true, listen: func() (net.Listener, error) { return l, nil },
				Service: ir.Destination{Host: "meltemi-operator.meltemi-system.svc.cluster.local", Port: 15010},
			}})
			defer func() { require.NoError(w, replicas[name].stop()) }()
			time.Sleep(time.Minute)
			proxies[name] = w.subscribe(l, "orders-1.team-1.svc.cluster.local_20880")
		}
		change := func(route string) (writers []string) {
			w.Helper()
			from := len(w.writes)
			r := &api.MetaRouter{}
			require.NoError(w, w.user.Get(w.Context(), client.ObjectKeyFromObject(router), r))
			r.Spec.Routes[0].Name = route
			require.NoError(w, w.user.Update(w.Context(), r))
			time.Sleep(10 * time.Second)
			synctest.Wait()
			for _, x := range w.writes[from:] {
				if x.who != "user" && !slices.Contains(writers, x.who) {
					writers = append(writers, x.who)
				}
			}
			return writers
		}
		served := func(route string) {
			w.Helper()
			for name, p := range proxies {
				require.Equal(w, route, p.has(w.T), name)
			}
		}
		require.Len(w, change("one"), 1)
		served("one")
		for _, route := range []string{"two", "three"} {
			w.away(true)
			time.Sleep(3 * time.Minute)
			w.away(false)
			require.Len(w, change(route), 1)
			served(route)
		}
		// Who only does not reach the lease serves on as well.
		leader := change("four")[0]
		w.ask(func(q *http.Request) error {
			if strings.Contains(q.URL.Path, "/leases") && q.UserAgent() == leader {
				return context.DeadlineExceeded
			}
			return nil
		})
		time.Sleep(time.Minute)
		next := change("five")
		require.Len(w, next, 1)
		require.NotEqual(w, leader, next[0])
		served("five")
		w.ask(nil)
	})
}

// TestTheLeaseIsReleased: who ends has the next one lead at once, and who has lost the lease
// takes it from nobody.
func TestTheLeaseIsReleased(t *testing.T) {
	virtually(t, func(w *world) {
		holder := func() string {
			w.mu.Lock()
			defer w.mu.Unlock()
			spec, _ := w.objects["coordination.k8s.io/v1/leases meltemi-system/meltemi-operator"]["spec"].(object)
			name, _ := spec["holderIdentity"].(string)
			return name
		}
		first := w.start("first", Options{Namespace: "meltemi-system"})
		time.Sleep(time.Second)
		before := holder()
		require.NotEmpty(w, before)
		w.ask(func(q *http.Request) error {
			if strings.Contains(q.URL.Path, "/leases") && q.UserAgent() == "first" {
				return context.DeadlineExceeded
			}
			return nil
		})
		second := w.start("second", Options{Namespace: "meltemi-system"})
		time.Sleep(time.Minute)
		w.ask(nil)
		after := holder()
		require.NotEqual(w, before, after)
		require.NoError(w, first.stop())
		require.Equal(w, after, holder())
		require.NoError(w, second.stop())
		require.Empty(w, holder())
	})
}

// TestAStandbyIsReadyWhenItKnowsAll: whatever it does not know yet.
func TestAStandbyIsReadyWhenItKnowsAll(t *testing.T) {
	for _, unknown := range []string{"metarouters", "dubboauthorizationpolicies", "gateways", "configmaps"} {
		t.Run(unknown, func(t *testing.T) {
			virtually(t, func(w *world) {
				w.put(w, w.scheme, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}})
				require.NoError(w, coordination.AddToScheme(w.scheme))
				now := metav1.NowMicro()
				w.put(w, w.scheme, &coordination.Lease{
					ObjectMeta: metav1.ObjectMeta{Namespace: "meltemi-system", Name: "meltemi-operator"},
					Spec:       coordination.LeaseSpec{HolderIdentity: new("another"), LeaseDurationSeconds: new(int32(3600)), RenewTime: &now, AcquireTime: &now},
				})
				hold := make(chan struct{})
				w.reading = func(q *http.Request) {
					if strings.HasSuffix(q.URL.Path, "/"+unknown) {
						<-hold
					}
				}
				m, err := New(w.config("standby"), Options{RootNamespace: "istio-system", Domain: "cluster.local", Metrics: "0", Health: "0", Namespace: "meltemi-system"}, logr.Discard())
				require.NoError(w, err)
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- m.Start(ctx) }()
				ready := synced(m.GetCache())
				q, err := http.NewRequestWithContext(w.Context(), http.MethodGet, "/readyz", nil)
				require.NoError(w, err)
				time.Sleep(time.Minute)
				require.Error(w, ready(q))
				close(hold)
				time.Sleep(time.Minute)
				require.NoError(w, ready(q))
				cancel()
				require.NoError(w, <-done)
			})
		})
	}
}
