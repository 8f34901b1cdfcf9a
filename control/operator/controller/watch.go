package controller

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	istioalpha "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/meltemi-mesh/meltemi/control/ir"
	dubbo "github.com/meltemi-mesh/meltemi/control/operator/api/dubbo/v1alpha1"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
)

// touched are the requests that a change of an object makes. Of an update both versions
// are asked.
func (r *reconciler) touched(ctx context.Context, o client.Object) []Request {
	set := map[Request]bool{}
	add := func(hosts ...string) {
		for _, h := range hosts {
			set[Request{Host: h}] = true
		}
	}
	switch o := o.(type) {
	case *api.MetaRouter:
		add(r.routerHost(o))
	case *corev1.Service:
		if len(governed(o)) > 0 {
			add(r.serviceHost(o))
			// Of those of the root namespace the hosts tell in the log.
			policies := &dubbo.DubboAuthorizationPolicyList{}
			r.list(ctx, policies, client.InNamespace(o.Namespace))
			for _, p := range policies.Items {
				set[Request{Object: translate.Object{Kind: translate.DubboAuthorizationPolicy, Namespace: p.Namespace, Name: p.Name}}] = true
			}
		}
		add(r.behindGateways(ctx, o)...)
	case *istio.ServiceEntry:
		if len(governed(o)) > 0 {
			add(o.Spec.Hosts...)
		}
	case *istio.DestinationRule:
		host := r.ruleHost(o)
		domain, wild := strings.CutPrefix(host, "*")
		if !wild {
			add(host)
			break
		}
		for _, h := range r.governedHosts(ctx) {
			if strings.HasSuffix(h, domain) {
				add(h)
			}
		}
	case *istio.Gateway:
		add(r.hostsOfGateway(ctx, o.Namespace+"/"+o.Name)...)
		gateways := &istio.GatewayList{}
		r.list(ctx, gateways)
		for _, g := range gateways.Items {
			if ir.Agree(o.Spec.Selector, g.Spec.Selector) {
				add(r.hostsOfGateway(ctx, g.Namespace+"/"+g.Name)...)
			}
		}
	case *istio.VirtualService:
		add(ownHost(o)...)
		for _, g := range o.Spec.Gateways {
			add(r.hostsOfGateway(ctx, translate.GatewayName(g, o.Namespace))...)
		}
	case *api.ApplicationProtocol:
		// Those of the same protocol may count now, or no longer.
		others := &api.ApplicationProtocolList{}
		r.list(ctx, others, client.MatchingFields{byProtocol: o.Spec.Protocol})
		for i := range others.Items {
			set[Request{Object: translate.Object{Kind: translate.ApplicationProtocol, Name: others.Items[i].Name}}] = true
		}
		add(r.governedHosts(ctx, client.MatchingFields{byProtocol: o.Spec.Protocol})...)
	case *dubbo.DubboAuthorizationPolicy:
		set[Request{Object: translate.Object{Kind: translate.DubboAuthorizationPolicy, Namespace: o.Namespace, Name: o.Name}}] = true
		if o.Namespace == r.RootNamespace {
			add(r.governedHosts(ctx)...)
		} else {
			add(r.governedHosts(ctx, client.InNamespace(o.Namespace))...)
		}
	case *istioalpha.EnvoyFilter:
		add(ownHost(o)...)
		if isLoopback(o) {
			set[Request{}] = true
		}
	case *discovery.EndpointSlice:
		s := &corev1.Service{}
		if r.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: o.Labels[discovery.LabelServiceName]}, s) == nil && len(governed(s)) > 0 {
			add(r.serviceHost(s))
		}
	case *corev1.ConfigMap:
		if o.Name == meshConfigMap && o.Namespace == r.RootNamespace {
			left, _ := new(translate.Mesh).Configure(o.Data["mesh"]) // of faults hosts tell
			for _, f := range left {
				r.log.Info("left out of the mesh config", "field", f.Path, "reason", f.Reason)
			}
			add(r.governedHosts(ctx)...)
		}
	}
	requests := make([]Request, 0, len(set))
	for q := range set {
		requests = append(requests, q)
	}
	return requests
}

// beside are the other hosts with a router that names a gateway which one of a host names,
// too. Which of them has a port there depends on all of them.
func (r *reconciler) beside(ctx context.Context, host string, gateways ...string) (hosts []string) {
	routers := &api.MetaRouterList{}
	r.list(ctx, routers, client.MatchingFields{byHost: host})
	for i := range routers.Items {
		gateways = append(gateways, gatewaysOf(&routers.Items[i])...)
	}
	slices.Sort(gateways)
	for _, g := range slices.Compact(gateways) {
		hosts = append(hosts, r.hostsOfGateway(ctx, g)...)
	}
	slices.Sort(hosts)
	return slices.DeleteFunc(slices.Compact(hosts), func(h string) bool { return h == host })
}

// sharing are the other hosts that share workloads with one, as an object says it, and else
// the cache. Whose filters come first there depends on all of them.
func (r *reconciler) sharing(ctx context.Context, host string, o client.Object) (hosts []string) {
	in := &translate.Input{Host: host}
	err := r.places(ctx, in)
	switch o := o.(type) {
	case *corev1.Service:
		in.Service = o
	case *istio.ServiceEntry:
		same := func(e *istio.ServiceEntry) bool { return e.Namespace == o.Namespace && e.Name == o.Name }
		in.Entries = append(slices.DeleteFunc(in.Entries, same), o)
	}
	if in.Service != nil {
		err = cmp.Or(err, r.targetPorts(ctx, in))
	}
	if slice, ok := o.(*discovery.EndpointSlice); ok {
		if in.TargetPorts == nil {
			return nil // none has a name
		}
		for _, p := range slice.Ports {
			if p.Name != nil && p.Port != nil {
				in.TargetPorts[*p.Name] = []int32{*p.Port}
			}
		}
	}
	sharers, failed := r.sharers(ctx, in)
	if err = cmp.Or(err, failed); err != nil && ctx.Err() == nil {
		r.log.Error(err, "who shares workloads", "host", host)
	}
	for _, s := range sharers {
		hosts = append(hosts, s.Host)
	}
	return hosts
}

// besides are the requests that a change of an object makes for other hosts than its own,
// as it changes what ports there are for gateways, or who comes first at those of workloads.
func (r *reconciler) besides(ctx context.Context, o client.Object) (requests []Request) {
	var hosts []string
	of := func(host string, gateways ...string) {
		hosts = append(hosts, r.beside(ctx, host, gateways...)...)
		hosts = append(hosts, r.sharing(ctx, host, o)...)
	}
	switch o := o.(type) {
	case *api.MetaRouter:
		of(r.routerHost(o), gatewaysOf(o)...)
	case *corev1.Service:
		of(r.serviceHost(o))
	case *istio.ServiceEntry:
		for _, h := range o.Spec.Hosts {
			of(h)
		}
	case *discovery.EndpointSlice:
		host := translate.FullName(o.Labels[discovery.LabelServiceName], o.Namespace, r.Domain)
		hosts = r.sharing(ctx, host, o)
	}
	for _, h := range hosts {
		requests = append(requests, Request{Host: h})
	}
	return requests
}

// moves tells whether there are other ports for gateways than before, or something else that
// says who comes first at those of workloads.
func moves(before, after client.Object) bool {
	switch before := before.(type) {
	case *api.MetaRouter:
		after := after.(*api.MetaRouter)
		return !slices.Equal(before.Spec.Hosts, after.Spec.Hosts) || !slices.Equal(before.Spec.Gateways, after.Spec.Gateways) ||
			forServers(before) != forServers(after)
	case *corev1.Service:
		after := after.(*corev1.Service)
		return !equality.Semantic.DeepEqual(before.Spec.Ports, after.Spec.Ports) || !maps.Equal(before.Spec.Selector, after.Spec.Selector)
	case *istio.ServiceEntry:
		after := after.(*istio.ServiceEntry)
		return !slices.Equal(before.Spec.Hosts, after.Spec.Hosts) || !slices.EqualFunc(before.Spec.Ports, after.Spec.Ports, samePort) ||
			!maps.Equal(translate.EntrySelector(before), translate.EntrySelector(after))
	case *discovery.EndpointSlice:
		return true // the numbers behind names
	}
	return false
}

func samePort(a, b *networking.ServicePort) bool { return proto.Equal(a, b) }

// forServers tells whether a router has something that servers' proxies see to.
func forServers(o *api.MetaRouter) bool {
	spec, err := specOf(o)
	return err == nil && translate.ForServers(&spec)
}

// handler makes requests of the changes of a type.
func (r *reconciler) handler(o client.Object) handler.TypedEventHandler[client.Object, Request] {
	h, beside := handler.TypedEnqueueRequestsFromMapFunc(r.touched), handler.TypedEnqueueRequestsFromMapFunc(r.besides)
	_, filters := o.(*istioalpha.EnvoyFilter)
	return handler.TypedFuncs[client.Object, Request]{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[Request]) {
			h.Create(ctx, e, q)
			beside.Create(ctx, e, q)
		},
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q workqueue.TypedRateLimitingInterface[Request]) {
			h.Update(ctx, e, q)
			if moves(e.ObjectOld, e.ObjectNew) {
				beside.Update(ctx, e, q)
			}
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[Request]) {
			h.Delete(ctx, e, q)
			beside.Delete(ctx, e, q)
			if filters {
				q.Add(Request{}) // nothing may need the loopback listener any more
			}
		},
	}
}

func (r *reconciler) serviceHost(s *corev1.Service) string {
	return translate.FullName(s.Name, s.Namespace, r.Domain)
}

// governedHosts are those that have ports of Meltemi's.
func (r *reconciler) governedHosts(ctx context.Context, o ...client.ListOption) (hosts []string) {
	if !hasFields(o) {
		o = append(o, client.MatchingFields{byGoverned: "true"})
	}
	services, entries := &corev1.ServiceList{}, &istio.ServiceEntryList{}
	r.list(ctx, services, o...)
	for i := range services.Items {
		hosts = append(hosts, r.serviceHost(&services.Items[i]))
	}
	r.list(ctx, entries, o...)
	for _, e := range entries.Items {
		hosts = append(hosts, e.Spec.Hosts...)
	}
	return hosts
}

// hosts are all that something is said of, or has been written for, in order.
func (r *reconciler) hosts(ctx context.Context) []string {
	hosts := map[string]bool{}
	for _, h := range r.governedHosts(ctx) {
		hosts[h] = true
	}
	routers, filters, services := &api.MetaRouterList{}, &istioalpha.EnvoyFilterList{}, &istio.VirtualServiceList{}
	r.list(ctx, routers)
	for i := range routers.Items {
		hosts[r.routerHost(&routers.Items[i])] = true
	}
	r.list(ctx, filters)
	for _, f := range filters.Items {
		for _, h := range ownHost(f) {
			hosts[h] = true
		}
	}
	r.list(ctx, services)
	for _, v := range services.Items {
		for _, h := range ownHost(v) {
			hosts[h] = true
		}
	}
	return slices.Sorted(maps.Keys(hosts))
}

// everything is all that there may be to be done.
func (r *reconciler) everything(ctx context.Context) []Request {
	all := []Request{{}}
	for _, h := range r.hosts(ctx) {
		all = append(all, Request{Host: h})
	}
	protocols, policies := &api.ApplicationProtocolList{}, &dubbo.DubboAuthorizationPolicyList{}
	r.list(ctx, protocols)
	for i := range protocols.Items {
		all = append(all, Request{Object: translate.Object{Kind: translate.ApplicationProtocol, Name: protocols.Items[i].Name}})
	}
	r.list(ctx, policies)
	for i := range policies.Items {
		p := &policies.Items[i]
		all = append(all, Request{Object: translate.Object{Kind: translate.DubboAuthorizationPolicy, Namespace: p.Namespace, Name: p.Name}})
	}
	return all
}

func hasFields(o []client.ListOption) bool {
	for _, o := range o {
		if _, ok := o.(client.MatchingFields); ok {
			return true
		}
	}
	return false
}

func (r *reconciler) hostsOfGateway(ctx context.Context, name string) (hosts []string) {
	routers := &api.MetaRouterList{}
	r.list(ctx, routers, client.MatchingFields{byGateway: name})
	for i := range routers.Items {
		hosts = append(hosts, r.routerHost(&routers.Items[i]))
	}
	return hosts
}

// behindGateways are the hosts to which gateways lead that a service is in front of.
func (r *reconciler) behindGateways(ctx context.Context, s *corev1.Service) (hosts []string) {
	if len(s.Spec.Selector) == 0 {
		return nil
	}
	gateways := &istio.GatewayList{}
	r.list(ctx, gateways)
	for _, g := range gateways.Items {
		if includes(s.Spec.Selector, g.Spec.Selector) {
			hosts = append(hosts, r.hostsOfGateway(ctx, g.Namespace+"/"+g.Name)...)
		}
	}
	return hosts
}

// includes tells whether labels have all of a selector, which selects something.
func includes(labels, selector map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

// list asks the cache, which can only fail where it is being stopped.
func (r *reconciler) list(ctx context.Context, l client.ObjectList, o ...client.ListOption) {
	if err := r.List(ctx, l, append(o, client.UnsafeDisableDeepCopy)...); err != nil && ctx.Err() == nil {
		r.log.Error(err, "listing")
	}
}

// relevant are changes of more than what nobody here reads.
var relevant = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	switch before := e.ObjectOld.(type) {
	case *api.MetaRouter, *api.ApplicationProtocol, *dubbo.DubboAuthorizationPolicy, *istio.Gateway, *istio.DestinationRule:
		return e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration()
	case *discovery.EndpointSlice:
		return !equality.Semantic.DeepEqual(before.Ports, e.ObjectNew.(*discovery.EndpointSlice).Ports)
	case *corev1.Service:
		after := e.ObjectNew.(*corev1.Service)
		return !equality.Semantic.DeepEqual(before.Spec, after.Spec) || !equality.Semantic.DeepEqual(before.Annotations, after.Annotations)
	}
	return e.ObjectOld.GetResourceVersion() != e.ObjectNew.GetResourceVersion()
}}
