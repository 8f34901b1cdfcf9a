package controller

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
)

// filters are the names of those that there are, but for the loopback listener.
func (w *world) filters() (names []string) {
	for key := range w.state() {
		if kind, object, _ := strings.Cut(key, " "); strings.HasSuffix(kind, "/envoyfilters") && !strings.Contains(object, "loopback") {
			names = append(names, object[strings.Index(object, "/")+1:])
		}
	}
	slices.Sort(names)
	return names
}

// TestServersKeepWhatTheyHave: pods that come back after there was none, or while the number
// of a port is another one, must not let in whoever calls.
func TestServersKeepWhatTheyHave(t *testing.T) {
	virtually(t, func(w *world) {
		objects := shopOf(1)
		service, slice := objects[0].(*corev1.Service), objects[2].(*discovery.EndpointSlice)
		service.Spec.Ports[0].TargetPort = intstr.FromString("rpc")
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: "tcp-metaprotocol-dubbo-admin", Port: 9090})
		for _, o := range objects {
			w.put(w, w.scheme, o)
		}
		r := w.start("one", Options{})
		defer func() { require.NoError(w, r.stop()) }()
		rpc := func(numbers ...int32) {
			require.NoError(w, w.user.Get(w.Context(), client.ObjectKeyFromObject(slice), slice))
			slice.Ports = nil
			for _, n := range numbers {
				slice.Ports = append(slice.Ports, discovery.EndpointPort{Name: new("tcp-metaprotocol-dubbo"), Port: &n})
			}
			require.NoError(w, w.user.Update(w.Context(), slice))
		}
		has := func(servers ...string) {
			w.Helper()
			settle()
			var want []string
			for _, port := range servers {
				want = append(want, "meltemi-inbound-orders-1.team-1-"+port)
			}
			want = append(want, "meltemi-outbound-orders-1.team-1-20880", "meltemi-outbound-orders-1.team-1-9090")
			require.Equal(w, want, w.filters())
		}
		has("20880", "9090")
		rpc()
		has("20880", "9090")
		rpc(20880, 20881)
		has("20880", "9090")
		rpc(20881)
		has("20881", "9090")
	})
}

// TestAPortOfWorkloadsIsOneHosts: the one whose router has something for servers, and is the
// oldest of these. The others are told, until they may have it.
func TestAPortOfWorkloadsIsOneHosts(t *testing.T) {
	virtually(t, func(w *world) {
		// Three hosts lead to one port, the first by its name, the third as an entry.
		one, two := shopOf(1), shopOf(1)
		service, slice := one[0].(*corev1.Service), one[2].(*discovery.EndpointSlice)
		service.Spec.Ports[0].TargetPort = intstr.FromString("rpc")
		other := two[0].(*corev1.Service)
		other.Name, other.Spec.Ports[0].Port, other.Spec.Ports[0].TargetPort = "other", 1, intstr.FromInt32(20880)
		entry := &istio.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "team-1", Name: "third"}, Spec: networking.ServiceEntry{
			Hosts: []string{"third.example"}, Addresses: []string{"10.96.9.9"},
			WorkloadSelector: &networking.WorkloadSelector{Labels: service.Spec.Selector},
			Ports:            []*networking.ServicePort{{Name: "tcp-metaprotocol-dubbo", Number: 20880, Protocol: "TCP"}},
		}}
		for _, o := range []client.Object{service, slice, other, entry} {
			w.put(w, w.scheme, o)
		}
		limit := &api.LocalRateLimit{TokenBucket: &api.TokenBucket{MaxTokens: 1, TokensPerFill: 1, FillInterval: "1s"}}
		for _, host := range []string{"orders-1", "other", "third.example"} {
			name, _, _ := strings.Cut(host, ".")
			w.put(w, w.scheme, &api.MetaRouter{
				ObjectMeta: metav1.ObjectMeta{Namespace: "team-1", Name: name},
				Spec:       api.MetaRouterSpec{Hosts: []api.Host{api.Host(host)}, LocalRateLimit: limit},
			})
			time.Sleep(time.Minute)
		}
		r := w.start("one", Options{})
		defer func() { require.NoError(w, r.stop()) }()
		get := func(name string) *api.MetaRouter {
			o := &api.MetaRouter{}
			require.NoError(w, w.user.Get(w.Context(), client.ObjectKey{Namespace: "team-1", Name: name}, o))
			return o
		}
		// order has the filters be at these places, and routers be told of whose is first.
		hosts := map[string]string{
			"orders-1": "orders-1.team-1.svc.cluster.local", "other": "other.team-1.svc.cluster.local", "third": "third.example",
		}
		order := func(places map[string]int, first map[string]string) {
			w.Helper()
			settle()
			got := map[string]int{}
			for key, o := range w.state() {
				if _, rest, ok := strings.Cut(key, "/meltemi-inbound-"); ok {
					name, _, _ := strings.Cut(rest, ".")
					got[name] = int(o.(object)["spec"].(object)["priority"].(float64)) - 1_000_000
				}
			}
			require.Equal(w, places, got)
			for name := range hosts {
				list := &api.MetaRouterList{}
				require.NoError(w, w.user.List(w.Context(), list, client.InNamespace("team-1")))
				if !slices.ContainsFunc(list.Items, func(o api.MetaRouter) bool { return o.Name == name }) {
					continue
				}
				for _, kind := range []string{api.Accepted, api.Programmed} {
					c := meta.FindStatusCondition(get(name).Status.Conditions, kind)
					require.NotNil(w, c)
					if first[name] == "" {
						require.Equal(w, metav1.ConditionTrue, c.Status, "%s: %s", name, c.Message)
						continue
					}
					require.Equal(w, reasonConflicted, c.Reason, name)
					require.Equal(w, "spec.localRateLimit: team-1/"+first[name]+" is older and has port 20880 of these workloads, for "+hosts[first[name]], c.Message)
				}
			}
		}
		all := func() {
			w.Helper()
			order(map[string]int{"orders-1": 0, "other": 1, "third": 2}, map[string]string{"other": "orders-1", "third": "orders-1"})
		}
		apart := func() {
			w.Helper()
			order(map[string]int{"orders-1": 0, "other": 0, "third": 1}, map[string]string{"third": "other"})
		}
		router := func(change func(s *api.MetaRouterSpec)) {
			o := get("orders-1")
			change(&o.Spec)
			require.NoError(w, w.user.Update(w.Context(), o))
		}
		update := func(o client.Object, change func()) {
			require.NoError(w, w.user.Get(w.Context(), client.ObjectKeyFromObject(o), o))
			change()
			require.NoError(w, w.user.Update(w.Context(), o))
		}
		all()
		router(func(s *api.MetaRouterSpec) { s.LocalRateLimit = nil })
		order(map[string]int{"orders-1": 2, "other": 0, "third": 1}, map[string]string{"third": "other"})
		router(func(s *api.MetaRouterSpec) { s.LocalRateLimit = limit })
		all()
		update(service, func() { service.Spec.Selector = map[string]string{"app": "elsewhere"} })
		apart()
		update(service, func() { service.Spec.Selector = other.Spec.Selector })
		all()
		update(slice, func() { slice.Ports[0].Port = new(int32(20881)) })
		apart()
		update(slice, func() { slice.Ports[0].Port = new(int32(20880)) })
		all()
		update(entry, func() { entry.Spec.WorkloadSelector.Labels = map[string]string{"app": "elsewhere"} })
		order(map[string]int{"orders-1": 0, "other": 1, "third": 0}, map[string]string{"other": "orders-1"})
		require.NoError(w, w.user.Delete(w.Context(), get("orders-1")))
		order(map[string]int{"orders-1": 1, "other": 0, "third": 0}, nil)
	})
}
