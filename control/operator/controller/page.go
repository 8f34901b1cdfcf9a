package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	istio "istio.io/client-go/pkg/apis/networking/v1"
	istioalpha "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/control/status"
)

// serveStatus tells what has become of services. It is asked for seldom, and is made anew
// each time, of one service after the other.
func (r *reconciler) serveStatus(w http.ResponseWriter, q *http.Request) {
	ctx, query := q.Context(), q.URL.Query()
	list := status.List{Services: []status.Service{}}
	for _, h := range r.hosts(ctx) {
		if want := query.Get("host"); want != "" && h != want && !strings.HasPrefix(h, want+".") {
			continue
		}
		in, err := r.gather(ctx, h)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		if want := query.Get("namespace"); want != "" && !within(in, want) {
			continue
		}
		s, err := r.statusOf(ctx, in)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		list.Services = append(list.Services, *s)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list) // who has gone needs no answer
}

// within tells whether an object of a namespace has a host's ports, or routes.
func within(in *translate.Input, namespace string) bool {
	return in.Service != nil && in.Service.Namespace == namespace ||
		slices.ContainsFunc(in.Entries, func(e *istio.ServiceEntry) bool { return e.Namespace == namespace }) ||
		slices.ContainsFunc(in.Routers, func(o *api.MetaRouter) bool { return o.Namespace == namespace })
}

func (r *reconciler) statusOf(ctx context.Context, in *translate.Input) (*status.Service, error) {
	out := translate.Translate(in)
	s := &status.Service{Host: in.Host}
	if out.Governed {
		s.Object, s.Delivery = out.Owner.String(), string(api.ECDS)
	}
	for _, f := range out.Faults {
		s.Problems = append(s.Problems, status.Problem{Object: f.String(), Field: f.Path, Reason: f.Reason})
	}
	if out.Router != nil {
		s.Router = out.Router.Namespace + "/" + out.Router.Name
		if out.Governed && translate.ByRDS(out.Router) {
			s.Delivery = string(api.RDS)
		}
	}
	for _, router := range in.Routers {
		object := translate.Object{Kind: translate.MetaRouter, Namespace: router.Namespace, Name: router.Name}.String()
		switch c := meta.FindStatusCondition(router.Status.Conditions, api.Programmed); {
		case router != out.Router:
			s.Problems = append(s.Problems, status.Problem{Object: object, Field: "spec.hosts[0]", Reason: s.Router + " is older and has the same host"})
		case !out.Governed:
			s.Problems = append(s.Problems, status.Problem{Object: object, Field: "spec.hosts[0]", Reason: noService})
		case c != nil && c.Reason == reasonFailed:
			s.Problems = append(s.Problems, status.Problem{Object: object, Reason: c.Message})
		}
	}
	if r.judge != nil {
		for _, t := range out.Tables {
			s.Routes = append(s.Routes, r.judge.board.Total(t.GetName(), rds.Version(t)))
		}
	}
	return s, r.written(ctx, in.Host, out, s)
}

// written has a status tell what there is in the cluster, and what is missing.
func (r *reconciler) written(ctx context.Context, host string, out *translate.Output, s *status.Service) error {
	wanted := map[string]*written{}
	for _, f := range out.Filters {
		if f.Labels[translate.Component] != loopback {
			w := filter(f)
			wanted[w.String()] = w
		}
	}
	for _, v := range out.VirtualServices {
		w := virtualService(v)
		wanted[w.String()] = w
	}
	tell := func(kind string, o client.Object) {
		object := status.Object{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), Version: o.GetAnnotations()[digestKey]}
		if w := wanted[kind+" "+o.GetNamespace()+"/"+o.GetName()]; w != nil {
			object.Current = object.Version == digest(w.spec)
			delete(wanted, w.String())
		}
		s.Written = append(s.Written, object)
	}
	filters, services := &istioalpha.EnvoyFilterList{}, &istio.VirtualServiceList{}
	if err := r.List(ctx, filters, client.MatchingFields{byHost: host}, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	for _, f := range filters.Items {
		tell("EnvoyFilter", f)
	}
	if err := r.List(ctx, services, client.MatchingFields{byHost: host}, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	for _, v := range services.Items {
		tell("VirtualService", v)
	}
	for _, w := range wanted {
		s.Written = append(s.Written, status.Object{Kind: w.kind, Namespace: w.meta.Namespace, Name: w.meta.Name})
	}
	slices.SortFunc(s.Written, func(a, b status.Object) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return nil
}
