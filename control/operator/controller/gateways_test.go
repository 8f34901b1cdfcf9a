package controller

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
)

// TestAPortOfAGatewayIsOneHosts: the one of the oldest router, and the others are told,
// until they may have it.
func TestAPortOfAGatewayIsOneHosts(t *testing.T) {
	t.Run("that the operator opens", func(t *testing.T) { sharedPort(t) })
	t.Run("that somebody has opened", func(t *testing.T) {
		to := func(host string) *networking.RouteDestination {
			return &networking.RouteDestination{Weight: 50, Destination: &networking.Destination{Host: host + ".svc.cluster.local"}}
		}
		sharedPort(t, &istio.VirtualService{ObjectMeta: metav1.ObjectMeta{Namespace: "team-1", Name: "edge"}, Spec: networking.VirtualService{
			Hosts: []string{"*"}, Gateways: []string{"edge"},
			Tcp: []*networking.TCPRoute{{Route: []*networking.RouteDestination{to("orders-1.team-1"), to("orders-2.team-2")}}},
		}})
	})
}

func sharedPort(t *testing.T, others ...client.Object) {
	t.Helper()
	virtually(t, func(w *world) {
		for _, o := range others {
			w.put(w, w.scheme, o)
		}
		w.put(w, w.scheme, &istio.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "team-1", Name: "edge"}, Spec: networking.Gateway{
			Selector: map[string]string{"istio": "gateway"},
			Servers:  []*networking.Server{{Hosts: []string{"*"}, Port: &networking.Port{Name: "tcp-metaprotocol-dubbo", Number: 20880, Protocol: "TCP"}}},
		}})
		for _, i := range []int{1, 2} {
			objects := shopOf(i)
			router := objects[3].(*api.MetaRouter)
			router.Spec.Gateways, router.Spec.Routes = []string{"team-1/edge"}, nil
			for _, o := range objects {
				w.put(w, w.scheme, o)
			}
			time.Sleep(time.Minute)
		}
		r := w.start("one", Options{})
		defer func() { require.NoError(w, r.stop()) }()
		get := func(i int) *api.MetaRouter {
			o := shopOf(i)[3].(*api.MetaRouter)
			require.NoError(w, w.user.Get(w.Context(), client.ObjectKeyFromObject(o), o))
			return o
		}
		programmed := func(i int) {
			w.Helper()
			settle()
			for _, kind := range []string{api.Accepted, api.Programmed} {
				require.True(w, meta.IsStatusConditionTrue(get(i).Status.Conditions, kind), kind)
			}
		}
		conflicted := func(i int) {
			w.Helper()
			settle()
			for _, kind := range []string{api.Accepted, api.Programmed} {
				c := meta.FindStatusCondition(get(i).Status.Conditions, kind)
				require.NotNil(w, c)
				require.Equal(w, metav1.ConditionFalse, c.Status, kind)
				require.Equal(w, reasonConflicted, c.Reason, kind)
				require.Equal(w, "spec.gateways[0]: team-1/orders-1 is older and has port 20880 of the Gateway team-1/edge, for orders-1.team-1.svc.cluster.local", c.Message, kind)
			}
		}
		// gateways are the objects that have the port lead somewhere.
		gateways := func(host string) {
			w.Helper()
			var all []string
			for _, key := range slices.Sorted(maps.Keys(w.state())) {
				if strings.Contains(key, "/meltemi-gateway-") {
					all = append(all, key)
				}
			}
			require.Len(w, all, 2-len(others), "a filter, and a VirtualService if there is none: %v", all)
			for _, key := range all {
				require.Contains(w, key, "/meltemi-gateway-"+host)
			}
		}
		programmed(1)
		conflicted(2)
		gateways("orders-1")

		service := &corev1.Service{}
		require.NoError(w, w.user.Get(w.Context(), client.ObjectKeyFromObject(get(1)), service))
		service.Spec.Ports[0].Name = "tcp"
		require.NoError(w, w.user.Update(w.Context(), service))
		programmed(2)
		gateways("orders-2")
		service.Spec.Ports[0].Name = "tcp-metaprotocol-dubbo"
		require.NoError(w, w.user.Update(w.Context(), service))
		conflicted(2)
		gateways("orders-1")

		router := get(1)
		router.Spec.Gateways = nil
		require.NoError(w, w.user.Update(w.Context(), router))
		programmed(1)
		programmed(2)
		gateways("orders-2")
		router = get(1)
		router.Spec.Gateways = []string{"team-1/edge"}
		require.NoError(w, w.user.Update(w.Context(), router))
		conflicted(2)
		gateways("orders-1")

		require.NoError(w, w.user.Delete(w.Context(), router))
		programmed(2)
		gateways("orders-2")
	})
}

// TestAServerBesideAllOfAPort: the connections of a server for all hosts cannot be told from
// those of another one of its port, in whichever gateway of the same pods that comes and goes.
func TestAServerBesideAllOfAPort(t *testing.T) {
	virtually(t, func(w *world) {
		gateway := func(name, host, port string) *istio.Gateway {
			return &istio.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "team-1", Name: name}, Spec: networking.Gateway{
				Selector: map[string]string{"istio": "gateway"},
				Servers: []*networking.Server{{
					Hosts: []string{host}, Port: &networking.Port{Name: port, Number: 20880, Protocol: "TLS"},
					Tls: &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_SIMPLE, CredentialName: "x"},
				}},
			}}
		}
		w.put(w, w.scheme, gateway("edge", "*", "tcp-metaprotocol-dubbo"))
		objects := shopOf(1)
		objects[3].(*api.MetaRouter).Spec.Gateways = []string{"edge"}
		for _, o := range objects {
			w.put(w, w.scheme, o)
		}
		r := w.start("one", Options{})
		defer func() { require.NoError(w, r.stop()) }()
		told := func(message string) {
			w.Helper()
			settle()
			o := shopOf(1)[3].(*api.MetaRouter)
			require.NoError(w, w.user.Get(w.Context(), client.ObjectKeyFromObject(o), o))
			c := meta.FindStatusCondition(o.Status.Conditions, api.Accepted)
			require.NotNil(w, c)
			if message == "" {
				require.Equal(w, metav1.ConditionTrue, c.Status, c.Message)
			} else {
				require.Equal(w, metav1.ConditionFalse, c.Status)
				require.Contains(w, c.Message, message)
			}
			steered := false
			for key := range w.state() {
				steered = steered || strings.Contains(key, "/meltemi-gateway-orders-1")
			}
			require.Equal(w, message == "", steered, "there is an EnvoyFilter for the gateway")
		}
		told("")
		beside := gateway("beside", "billing.example.com", "tls-billing")
		require.NoError(w, w.user.Create(w.Context(), beside))
		told("there are other servers of this port")
		require.NoError(w, w.user.Delete(w.Context(), beside))
		told("")
	})
}
