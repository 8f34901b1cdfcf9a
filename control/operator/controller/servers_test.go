package controller

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
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
