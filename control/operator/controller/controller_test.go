package controller

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	istioalpha "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	dubbo "github.com/meltemi-mesh/meltemi/control/operator/api/dubbo/v1alpha1"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
)

func service(name, port string, selector map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name},
		Spec:       corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{{Name: port, Port: 1}}},
	}
}

// TestAChangeTouchesWhatItIsFor: and nothing else.
func TestAChangeTouchesWhatItIsFor(t *testing.T) {
	meta := func(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }
	router := &api.MetaRouter{ObjectMeta: meta("demo", "r"), Spec: api.MetaRouterSpec{Hosts: []api.Host{"a"}, Gateways: []string{"g"}}}
	gateway := &istio.Gateway{ObjectMeta: meta("demo", "g"), Spec: networking.Gateway{Selector: map[string]string{"istio": "gateway"}}}
	entry := &istio.ServiceEntry{ObjectMeta: meta("demo", "e"), Spec: networking.ServiceEntry{
		Hosts: []string{"x.example", "y.example"}, Ports: []*networking.ServicePort{{Name: "tcp-metaprotocol-thrift", Number: 1}},
	}}
	scheme, err := Scheme()
	require.NoError(t, err)
	b := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		service("a", "tcp-metaprotocol-dubbo", nil), service("b", "tcp-metaprotocol-thrift-x", nil), service("c", "http", nil), router, gateway, entry,
	)
	r := &reconciler{Options: Options{RootNamespace: "istio-system", Domain: "cluster.local"}}
	for _, i := range r.indexes() {
		b.WithIndex(i.object, i.field, i.values)
	}
	r.Client = b.Build()
	const host, other = "a.demo.svc.cluster.local", "b.demo.svc.cluster.local"
	own := metav1.ObjectMeta{
		Namespace: "istio-system", Name: "o", Labels: map[string]string{translate.ManagedBy: translate.Manager}, Annotations: map[string]string{translate.Host: host},
	}
	for name, tc := range map[string]struct {
		o    client.Object
		want []string
	}{
		"a router":                  {router, []string{host}},
		"a service":                 {service("b", "tcp-metaprotocol-thrift", nil), []string{other}},
		"a service of others":       {service("c", "tcp-thrift", nil), nil},
		"a service of a gateway":    {service("c", "tcp", map[string]string{"istio": "gateway", "x": "y"}), []string{host}},
		"an entry":                  {entry, []string{"x.example", "y.example"}},
		"a rule":                    {&istio.DestinationRule{ObjectMeta: meta("demo", "d"), Spec: networking.DestinationRule{Host: "b"}}, []string{other}},
		"a rule of a domain":        {&istio.DestinationRule{ObjectMeta: meta("demo", "d"), Spec: networking.DestinationRule{Host: "*.demo.svc.cluster.local"}}, []string{host, other}},
		"a rule of a part of names": {&istio.DestinationRule{ObjectMeta: meta("demo", "d"), Spec: networking.DestinationRule{Host: "*b.demo.svc.cluster.local"}}, []string{other}},
		"a rule of all hosts":       {&istio.DestinationRule{ObjectMeta: meta("demo", "d"), Spec: networking.DestinationRule{Host: "*"}}, []string{host, other, "x.example", "y.example"}},
		"a gateway":                 {gateway, []string{host}},
		"a gateway of others":       {&istio.Gateway{ObjectMeta: meta("demo", "h"), Spec: networking.Gateway{Selector: map[string]string{"istio": "other"}}}, nil},
		"one beside a gateway":      {&istio.Gateway{ObjectMeta: meta("demo", "h"), Spec: networking.Gateway{Selector: map[string]string{"istio": "gateway", "app": "x"}}}, []string{host}},
		"a gateway of all pods":     {&istio.Gateway{ObjectMeta: meta("demo", "h")}, []string{host}},
		"routes at a gateway":       {&istio.VirtualService{ObjectMeta: meta("demo", "v"), Spec: networking.VirtualService{Gateways: []string{"g"}}}, []string{host}},
		"a protocol":                {&api.ApplicationProtocol{ObjectMeta: meta("", "p"), Spec: api.ApplicationProtocolSpec{Protocol: "dubbo"}}, []string{host}},
		"a policy":                  {&dubbo.DubboAuthorizationPolicy{ObjectMeta: meta("demo", "p")}, []string{host, other, "x.example", "y.example", "DubboAuthorizationPolicy demo/p"}},
		"a policy of others":        {&dubbo.DubboAuthorizationPolicy{ObjectMeta: meta("shop", "p")}, []string{"DubboAuthorizationPolicy shop/p"}},
		"a filter":                  {&istioalpha.EnvoyFilter{ObjectMeta: own}, []string{host}},
		"the loopback listener":     {&istioalpha.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{translate.Component: "loopback"}}}, []string{""}},
		"endpoints":                 {&discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "e", Labels: map[string]string{discovery.LabelServiceName: "a"}}}, []string{host}},
		"endpoints of others":       {&discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "e", Labels: map[string]string{discovery.LabelServiceName: "c"}}}, nil},
		"the mesh config":           {&corev1.ConfigMap{ObjectMeta: meta("istio-system", "istio")}, []string{host, other, "x.example", "y.example"}},
		"a configuration of others": {&corev1.ConfigMap{ObjectMeta: meta("istio-system", "other")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := []string{}
			for _, q := range r.touched(t.Context(), tc.o) {
				got = append(got, q.String())
			}
			require.ElementsMatch(t, tc.want, got)
		})
	}
}

// TestRulesAreFoundForTheirHosts: those that touch a host are what it is made of.
func TestRulesAreFoundForTheirHosts(t *testing.T) {
	scheme, err := Scheme()
	require.NoError(t, err)
	b := fake.NewClientBuilder().WithScheme(scheme)
	r := &reconciler{Options: Options{RootNamespace: "istio-system", Domain: "cluster.local"}}
	for _, i := range r.indexes() {
		b.WithIndex(i.object, i.field, i.values)
	}
	for name, host := range map[string]string{
		"short": "orders", "full": "orders.demo.svc.cluster.local", "all": "*", "last": "*.local", "domain": "*.demo.svc.cluster.local", "part": "*ers.demo.svc.cluster.local",
		"example": "*.example", "example-part": "x*.example", "another": "other", "another-part": "*other.demo.svc.cluster.local", "another-domain": "*.shop.svc.cluster.local",
	} {
		b.WithObjects(&istio.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name}, Spec: networking.DestinationRule{Host: host}})
	}
	r.Client = b.Build()
	for host, want := range map[string][]string{
		"orders.demo.svc.cluster.local": {"short", "full", "all", "last", "domain", "part"},
		"x.example":                     {"all", "example"},
		"single":                        {"all"},
	} {
		in, err := r.gather(t.Context(), host)
		require.NoError(t, err)
		var got []string
		for _, rule := range in.Rules {
			got = append(got, rule.Name)
		}
		require.ElementsMatch(t, want, got, host)
	}
}

// TestADigestTellsWhatIsSaid: whatever the order in which it is.
func TestADigestTellsWhatIsSaid(t *testing.T) {
	spec := func(labels map[string]string) *networking.EnvoyFilter {
		return &networking.EnvoyFilter{WorkloadSelector: &networking.WorkloadSelector{Labels: labels}}
	}
	a := digest(spec(map[string]string{"a": "1", "b": "2", "c": "3"}))
	for range 20 {
		require.Equal(t, a, digest(spec(map[string]string{"c": "3", "b": "2", "a": "1"})))
	}
	require.NotEqual(t, a, digest(spec(map[string]string{"a": "1", "b": "2", "c": "4"})))
}

// TestAMessageEndsWithACharacter: a part of one would be stored as another, and written again
// with each reconcile.
func TestAMessageEndsWithACharacter(t *testing.T) {
	c := condition(api.Accepted, false, reasonInvalid, strings.Repeat("é", maxMessage/2-1)+"x€")
	require.Equal(t, strings.Repeat("é", maxMessage/2-1)+"x", c.Message)
}
