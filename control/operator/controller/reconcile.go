// Package controller keeps what proxies need as the objects of users say: it watches
// these, has package translate say what they mean, and writes, where anything is not as
// it shall be.
package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	dubbo "github.com/meltemi-mesh/meltemi/control/operator/api/dubbo/v1alpha1"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
)

// meshConfigMap is where Istio's mesh config is, in the root namespace.
const meshConfigMap = "istio"

// Request is what there is to be done: for a host; for the status of an object that is
// not for one host; or, without both, for the loopback listener of the mesh.
type Request struct {
	Host   string
	Object translate.Object
}

func (q Request) String() string {
	if q.Host == "" && q.Object.Kind != "" {
		return q.Object.String()
	}
	return q.Host
}

type reconciler struct {
	Options
	client.Client
	live client.Reader
	log  logr.Logger

	routes *rds.Server // nil: none are served
	judge  *judge      // of what proxies say of them

	// writing is held to read by who writes filters that need the loopback listener, and
	// to write by who removes that.
	writing   sync.RWMutex
	mu        sync.Mutex
	loopbacks map[string]*envoyfilter.Filter // as they shall be, by their names
}

// begin has nothing count that was known when this replica led before.
func (r *reconciler) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.loopbacks)
}

// behind is how long a request waits for the cache to know what has been written. As it
// tells of that, it mostly comes again before.
const behind = time.Second

// Reconcile does what there is to be done.
func (r *reconciler) Reconcile(ctx context.Context, q Request) (result ctrl.Result, err error) {
	switch {
	case q.Object.Kind == translate.ApplicationProtocol:
		err = r.tellProtocol(ctx, q.Object)
	case q.Object.Kind == translate.DubboAuthorizationPolicy:
		err = r.tellPolicy(ctx, q.Object)
	case q.Host == "":
		err = r.reconcileLoopback(ctx)
	default:
		err = r.reconcileHost(ctx, q.Host)
	}
	if errors.Is(err, errOutdated) {
		return ctrl.Result{RequeueAfter: behind}, nil
	}
	return ctrl.Result{}, err
}

func (r *reconciler) reconcileHost(ctx context.Context, host string) error {
	in, err := r.gather(ctx, host)
	if err != nil {
		return err
	}
	out := translate.Translate(in)
	log := ctrl.LoggerFrom(ctx)
	for _, f := range out.Faults {
		if f.Kind != translate.MetaRouter {
			log.Info("refused", "object", f.String(), "field", f.Path, "reason", f.Reason)
		}
	}
	if out.Complete {
		if err = r.write(ctx, host, out); errors.Is(err, errOutdated) {
			return err
		}
	}
	return cmp.Or(err, r.tell(ctx, in, out, err))
}

// gather asks the cache for what says something of a host.
func (r *reconciler) gather(ctx context.Context, host string) (*translate.Input, error) {
	mesh, err := r.mesh(ctx)
	if err != nil {
		return nil, err
	}
	in := &translate.Input{Mesh: mesh, Host: host, Gateways: map[string]*translate.Gateway{}}
	if err := r.places(ctx, in); err != nil {
		return nil, err
	}
	var names []string
	if in.Service != nil {
		names = protocols(in.Service)
		if err := r.targetPorts(ctx, in); err != nil {
			return nil, err
		}
	}
	for _, e := range in.Entries {
		names = append(names, protocols(e)...)
	}
	in.Routers, err = r.routers(ctx, host)
	if err != nil {
		return nil, err
	}
	for domain := host; ; {
		rules := &istio.DestinationRuleList{}
		if err := r.List(ctx, rules, client.MatchingFields{byHost: domain}); err != nil {
			return nil, err
		}
		for _, rule := range rules.Items {
			if d, wild := strings.CutPrefix(r.ruleHost(rule), "*"); !wild || strings.HasSuffix(host, d) {
				in.Rules = append(in.Rules, rule)
			}
		}
		if domain == "*" {
			break
		}
		if _, rest, ok := strings.Cut(strings.TrimPrefix(domain, "*."), "."); ok {
			domain = "*." + rest
		} else {
			domain = "*"
		}
	}
	for _, p := range names {
		protocols := &api.ApplicationProtocolList{}
		if err := r.List(ctx, protocols, client.MatchingFields{byProtocol: p}); err != nil {
			return nil, err
		}
		for i := range protocols.Items {
			in.Protocols = append(in.Protocols, &protocols.Items[i])
		}
	}
	var namespaces []string
	if in.Service != nil {
		namespaces = append(namespaces, in.Service.Namespace)
	}
	for _, e := range in.Entries {
		namespaces = append(namespaces, e.Namespace)
	}
	if len(namespaces) > 0 {
		namespaces = append(namespaces, mesh.RootNamespace)
	}
	slices.Sort(namespaces)
	for _, ns := range slices.Compact(namespaces) {
		policies := &dubbo.DubboAuthorizationPolicyList{}
		if err := r.List(ctx, policies, client.InNamespace(ns)); err != nil {
			return nil, err
		}
		for i := range policies.Items {
			in.Policies = append(in.Policies, &policies.Items[i])
		}
	}
	if in.Sharers, err = r.sharers(ctx, in); err != nil {
		return nil, err
	}
	if err := r.gateways(ctx, in); err != nil {
		return nil, err
	}
	return in, r.rivals(ctx, in)
}

// places are the Service and the entries of a host.
func (r *reconciler) places(ctx context.Context, in *translate.Input) error {
	if short, ok := strings.CutSuffix(in.Host, ".svc."+r.Domain); ok && strings.Count(short, ".") == 1 {
		name, namespace, _ := strings.Cut(short, ".")
		s := &corev1.Service{}
		switch err := r.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, s); {
		case err == nil:
			in.Service = s
		case !apierrors.IsNotFound(err):
			return err
		}
	}
	entries := &istio.ServiceEntryList{}
	if err := r.List(ctx, entries, client.MatchingFields{byHost: in.Host}); err != nil {
		return err
	}
	in.Entries = entries.Items
	return nil
}

// targetPorts are the numbers behind the names of target ports.
func (r *reconciler) targetPorts(ctx context.Context, in *translate.Input) error {
	if !slices.ContainsFunc(in.Service.Spec.Ports, func(p corev1.ServicePort) bool { return p.TargetPort.StrVal != "" }) {
		return nil
	}
	endpoints := &discovery.EndpointSliceList{}
	if err := r.List(ctx, endpoints, client.InNamespace(in.Service.Namespace), client.MatchingFields{byService: in.Service.Name}); err != nil {
		return err
	}
	in.TargetPorts = map[string][]int32{}
	for _, s := range endpoints.Items {
		for _, p := range s.Ports {
			if p.Name != nil && p.Port != nil && !slices.Contains(in.TargetPorts[*p.Name], *p.Port) {
				in.TargetPorts[*p.Name] = append(in.TargetPorts[*p.Name], *p.Port)
			}
		}
	}
	for _, ports := range in.TargetPorts {
		slices.Sort(ports)
	}
	return nil
}

// sharers are the other hosts that may lead to a port of the same workloads as a host, and
// those that do so with these.
func (r *reconciler) sharers(ctx context.Context, of *translate.Input) (sharers []*translate.Input, err error) {
	met := map[string]bool{of.Host: true}
	for next := []*translate.Input{of}; len(next) > 0; next = next[1:] {
		for _, host := range r.alike(ctx, next[0]) {
			in := &translate.Input{Host: host}
			if met[host] {
				continue
			}
			if err := r.places(ctx, in); err != nil {
				return nil, err
			}
			if in.Service != nil {
				if err := r.targetPorts(ctx, in); err != nil {
					return nil, err
				}
			}
			if !translate.Share(next[0], in) {
				continue
			}
			if in.Routers, err = r.routers(ctx, host); err != nil {
				return nil, err
			}
			met[host] = true
			sharers, next = append(sharers, in), append(next, in)
		}
	}
	return sharers, nil
}

// alike are the governed hosts whose selectors are taken to select the same pods as a host's.
func (r *reconciler) alike(ctx context.Context, in *translate.Input) (hosts []string) {
	if in.Service != nil && len(governed(in.Service)) == 0 {
		return nil
	}
	namespace, selector := in.Workloads()
	for _, pair := range pairs(selector) {
		services, entries := &corev1.ServiceList{}, &istio.ServiceEntryList{}
		r.list(ctx, services, client.InNamespace(namespace), client.MatchingFields{bySelector: pair})
		for i := range services.Items {
			if s := &services.Items[i]; len(governed(s)) > 0 && translate.Alike(selector, s.Spec.Selector) {
				hosts = append(hosts, r.serviceHost(s))
			}
		}
		r.list(ctx, entries, client.InNamespace(namespace), client.MatchingFields{bySelector: pair})
		for _, e := range entries.Items {
			if len(governed(e)) > 0 && translate.Alike(selector, translate.EntrySelector(e)) {
				hosts = append(hosts, e.Spec.Hosts...)
			}
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

func (r *reconciler) gateways(ctx context.Context, in *translate.Input) error {
	for _, router := range in.Routers {
		for _, name := range router.Spec.Gateways {
			name = translate.GatewayName(name, router.Namespace)
			ns, short, _ := strings.Cut(name, "/")
			g := &translate.Gateway{Gateway: &istio.Gateway{}}
			switch err := r.Get(ctx, client.ObjectKey{Namespace: ns, Name: short}, g.Gateway); {
			case apierrors.IsNotFound(err):
				continue
			case err != nil:
				return err
			}
			for k, v := range g.Spec.Selector {
				services := &corev1.ServiceList{}
				if err := r.List(ctx, services, client.MatchingFields{bySelector: k + "=" + v}); err != nil {
					return err
				}
				for i := range services.Items {
					if includes(services.Items[i].Spec.Selector, g.Spec.Selector) {
						g.Services = append(g.Services, &services.Items[i])
					}
				}
				break // any one pair of it finds all
			}
			virtual := &istio.VirtualServiceList{}
			if err := r.List(ctx, virtual, client.MatchingFields{byGateway: name}); err != nil {
				return err
			}
			g.VirtualServices = virtual.Items
			g.Beside = r.besideGateway(ctx, g)
			in.Gateways[name] = g
		}
	}
	return nil
}

// besideGateway are other gateways whose pods may be those of g: one selects what the other
// does, or a service is in front of the pods of both.
func (r *reconciler) besideGateway(ctx context.Context, g *translate.Gateway) (all []*istio.Gateway) {
	gateways := &istio.GatewayList{}
	r.list(ctx, gateways)
	for _, o := range gateways.Items {
		if o.Namespace == g.Namespace && o.Name == g.Name {
			continue
		}
		of, mine := o.Spec.Selector, g.Spec.Selector
		both := func(s *corev1.Service) bool { return includes(s.Spec.Selector, of) }
		if len(of) == 0 || includes(of, mine) || includes(mine, of) || slices.ContainsFunc(g.Services, both) {
			all = append(all, o)
		}
	}
	return all
}

// rivals are the other hosts at the gateways of a host. Their routers are as they are kept,
// with the gateways that they name and without their routes, of which nothing is asked.
func (r *reconciler) rivals(ctx context.Context, in *translate.Input) error {
	for _, host := range r.beside(ctx, in.Host) {
		rival := &translate.Input{Host: host}
		if err := r.places(ctx, rival); err != nil {
			return err
		}
		routers := &api.MetaRouterList{}
		if err := r.List(ctx, routers, client.MatchingFields{byHost: host}); err != nil {
			return err
		}
		for i := range routers.Items {
			rival.Routers = append(rival.Routers, &routers.Items[i])
		}
		in.Rivals = append(in.Rivals, rival)
	}
	return nil
}

// mesh is what Istio's mesh config says.
func (r *reconciler) mesh(ctx context.Context) (translate.Mesh, error) {
	m := translate.Mesh{RootNamespace: r.RootNamespace, Domain: r.Domain}
	if r.RDS.Address != "" {
		m.RDS = &r.RDS.Service
	}
	c := &corev1.ConfigMap{}
	switch err := r.Get(ctx, client.ObjectKey{Namespace: r.RootNamespace, Name: meshConfigMap}, c); {
	case apierrors.IsNotFound(err):
		return m, nil
	case err != nil:
		return m, err
	}
	if _, err := m.Configure(c.Data["mesh"]); err != nil {
		return m, fmt.Errorf("mesh config: %w", err)
	}
	return m, nil
}
