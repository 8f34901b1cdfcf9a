package controller

import (
	"testing"

	istio "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
)

func BenchmarkHost(b *testing.B) {
	o := shopOf(1)
	s := o[0].(*corev1.Service)
	in := &translate.Input{
		Mesh: translate.Mesh{RootNamespace: "istio-system", Domain: "cluster.local"}, Host: "orders-1.team-1.svc.cluster.local",
		Service: s, Rules: []*istio.DestinationRule{o[1].(*istio.DestinationRule)}, Routers: []*api.MetaRouter{o[3].(*api.MetaRouter)},
	}
	b.ReportAllocs()
	for b.Loop() {
		out := translate.Translate(in)
		if !out.Complete || len(out.Faults) > 0 {
			b.Fatal(out.Faults)
		}
		for _, f := range out.Filters {
			digest(f.Spec)
		}
	}
}
