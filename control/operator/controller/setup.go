package controller

import (
	"compress/flate"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"
	"unique"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	istioalpha "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	server "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/source"

	dubbo "github.com/meltemi-mesh/meltemi/control/operator/api/dubbo/v1alpha1"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/control/status"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
)

// Options are what a control plane is told.
type Options struct {
	// RootNamespace is Istio's.
	RootNamespace string
	// Domain of the cluster.
	Domain string
	// Namespace of the operator's own, where the lease is by which replicas agree who
	// writes. Empty: there is only one of them.
	Namespace string
	// Metrics, Health and Profiles are addresses to listen at; "0": none.
	Metrics, Health, Profiles string
	// Workers is how many hosts are worked on at once.
	Workers int
	// RDS says how routes are served.
	RDS RDS
}

// What fails is tried again after these; however long istiod's webhook or the API server
// has been away, all is as it shall be soon after.
const (
	firstDelay = 5 * time.Millisecond
	maxDelay   = 30 * time.Second
)

var writes = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "meltemi_operator_writes_total",
	Help: "Objects that were written, by their kind and by what was done: create, update, delete.",
}, []string{"kind", "operation"})

func init() { metrics.Registry.MustRegister(writes) }

// Scheme knows all objects that are read and written.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discovery.AddToScheme, istio.AddToScheme, istioalpha.AddToScheme, api.AddToScheme, dubbo.AddToScheme,
	} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// selector finds what was made by `meltemi envoyfilter` and by the operator.
func (*reconciler) selector() client.MatchingLabelsSelector {
	return client.MatchingLabelsSelector{Selector: managed()}
}

func managed() labels.Selector {
	r, err := labels.NewRequirement(translate.ManagedBy, selection.In, []string{translate.Manager, byHand})
	if err != nil {
		panic(err) // it is constant
	}
	return labels.NewSelector().Add(*r)
}

// New makes a control plane. It runs until its context ends.
func New(config *rest.Config, o Options, log logr.Logger) (manager.Manager, error) {
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	// Istio warns of each EnvoyFilter that it is one.
	config = rest.CopyConfig(config)
	config.WarningHandlerWithContext = rest.NoWarnings{}
	grace := 10 * time.Second
	r := &reconciler{Options: o, log: log, loopbacks: map[string]*envoyfilter.Filter{}}
	m, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Logger: log,
		Metrics: server.Options{BindAddress: o.Metrics, ExtraHandlers: map[string]http.Handler{
			"/rds": http.HandlerFunc(r.told), status.Path: http.HandlerFunc(r.serveStatus),
		}},
		HealthProbeBindAddress: o.Health, PprofBindAddress: o.Profiles,
		GracefulShutdownTimeout: &grace,
		Cache: cache.Options{
			DefaultTransform: r.trim, NewInformer: newInformer,
			ByObject: map[client.Object]cache.ByObject{
				&istioalpha.EnvoyFilter{}: {Label: managed()},
				&corev1.ConfigMap{}: {
					Namespaces: map[string]cache.Config{o.RootNamespace: {FieldSelector: fields.OneTermEqualSelector("metadata.name", meshConfigMap)}},
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	r.Client, r.live = m.GetClient(), m.GetAPIReader()
	for _, i := range r.indexes() {
		if err := m.GetFieldIndexer().IndexField(context.Background(), i.object, i.field, i.values); err != nil {
			return nil, err
		}
	}
	if err := r.serveRoutes(m); err != nil {
		return nil, err
	}
	l, err := newLeader(r, config, m)
	if err != nil {
		return nil, err
	}
	everywhere := false
	c, err := controller.NewTyped("hosts", m, controller.TypedOptions[Request]{
		Reconciler: l, NeedLeaderElection: &everywhere, MaxConcurrentReconciles: max(1, o.Workers),
		SkipNameValidation: new(true), // a process may have several control planes
		RateLimiter:        workqueue.NewTypedItemExponentialFailureRateLimiter[Request](firstDelay, maxDelay),
		LogConstructor: func(q *Request) logr.Logger {
			if q == nil {
				return log
			}
			return log.WithValues("host", q.Host)
		},
	})
	if err != nil {
		return nil, err
	}
	for _, o := range append(said(), &istioalpha.EnvoyFilter{}) {
		if err := c.Watch(source.TypedKind(m.GetCache(), o, r.handler(o), relevant, l.watched())); err != nil {
			return nil, err
		}
		// What the cache has before it starts it has in full before anything else does, and
		// before a replica is ready.
		if _, err := m.GetCache().GetInformer(context.Background(), o); err != nil {
			return nil, err
		}
	}
	if err := c.Watch(source.TypedFunc[Request](l.queues)); err != nil {
		return nil, err
	}
	if err := m.Add(l); err != nil {
		return nil, err
	}
	if err := m.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return nil, err
	}
	return m, m.AddReadyzCheck("cache", healthz.Checker(synced(m.GetCache())))
}

// said are the objects that gather asks for: whoever makes something of what they say, what
// is written as well as what is served, looks again when one of them changes.
func said() []client.Object {
	return []client.Object{
		&api.MetaRouter{}, &api.ApplicationProtocol{}, &dubbo.DubboAuthorizationPolicy{},
		&corev1.Service{}, &discovery.EndpointSlice{}, &corev1.ConfigMap{},
		&istio.ServiceEntry{}, &istio.DestinationRule{}, &istio.Gateway{}, &istio.VirtualService{},
	}
}

// trimmed is what the cache's objects have as their self link, which API servers no longer
// set. A first list comes twice to trim, and of what is left out no digest can be made.
const trimmed = "trimmed"

// specKey is an annotation that MetaRouters have in the cache, in place of what no index
// asks for: decoded, a router of ten routes takes 13 kB, and packed 1.3.
const specKey = "meltemi-mesh.io/spec"

// trim leaves out of objects what is not read, so that the cache stays small. Of what is
// written a digest says whether it is as it shall be.
func (r *reconciler) trim(o any) (any, error) {
	object, ok := o.(client.Object)
	if !ok || object.GetSelfLink() == trimmed {
		return o, nil
	}
	object.SetSelfLink(trimmed)
	object.SetManagedFields(nil)
	delete(object.GetAnnotations(), corev1.LastAppliedConfigAnnotation)
	switch o := o.(type) {
	case *istioalpha.EnvoyFilter:
		annotate(&o.Annotations, digestKey, digest(&o.Spec))
		o.Spec.Reset()
		// All have the same of these.
		labels := make(map[string]string, len(o.Labels))
		for k, v := range o.Labels {
			labels[unique.Make(k).Value()] = unique.Make(v).Value()
		}
		o.Labels = labels
	case *api.MetaRouter:
		packed, err := pack(&o.Spec)
		if err != nil {
			return nil, err
		}
		o.Labels, o.Annotations = nil, map[string]string{specKey: packed}
		o.Spec = api.MetaRouterSpec{Hosts: o.Spec.Hosts, Gateways: o.Spec.Gateways, RouteDelivery: o.Spec.RouteDelivery}
	case *istio.VirtualService:
		if o.Labels[translate.ManagedBy] == translate.Manager {
			annotate(&o.Annotations, digestKey, digest(&o.Spec))
		}
		o.Spec.Http = nil
	case *corev1.Service:
		o.Labels, o.Status = nil, corev1.ServiceStatus{}
	case *discovery.EndpointSlice:
		if name, namespace, own := r.ownService(); !own || o.Namespace != namespace || o.Labels[discovery.LabelServiceName] != name {
			o.Endpoints = nil // but for the replicas
		}
		o.Annotations, o.OwnerReferences = nil, nil
		o.Labels = map[string]string{discovery.LabelServiceName: o.Labels[discovery.LabelServiceName]}
	case *istio.ServiceEntry:
		o.Spec.Endpoints = nil
	case *istio.DestinationRule:
		trimPolicy(o.Spec.TrafficPolicy)
		for _, s := range o.Spec.Subsets {
			s.Labels = nil
			trimPolicy(s.TrafficPolicy)
		}
	}
	return o, nil
}

func trimPolicy(p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	p.ConnectionPool, p.Tls = nil, nil
	for _, s := range p.PortLevelSettings {
		s.ConnectionPool, s.Tls = nil, nil
	}
}

func annotate(annotations *map[string]string, key, value string) {
	if *annotations == nil {
		*annotations = map[string]string{}
	}
	(*annotations)[key] = value
}

var packers = sync.Pool{New: func() any { w, _ := flate.NewWriter(nil, flate.BestSpeed); return w }}

// pack makes little of a router's spec.
func pack(spec *api.MetaRouterSpec) (string, error) {
	var b strings.Builder
	w := packers.Get().(*flate.Writer)
	defer packers.Put(w)
	w.Reset(&b)
	if err := json.NewEncoder(w).Encode(spec); err != nil {
		return "", err
	}
	err := w.Close()
	return b.String(), err
}

func unpack(packed string) (spec api.MetaRouterSpec, err error) {
	err = json.NewDecoder(flate.NewReader(strings.NewReader(packed))).Decode(&spec)
	return spec, err
}

// routers are those of a host, with all that they say.
func (r *reconciler) routers(ctx context.Context, host string) ([]*api.MetaRouter, error) {
	list := &api.MetaRouterList{}
	if err := r.List(ctx, list, client.MatchingFields{byHost: host}); err != nil {
		return nil, err
	}
	all := make([]*api.MetaRouter, len(list.Items))
	for i := range list.Items {
		all[i] = &list.Items[i]
		var err error
		if all[i].Spec, err = specOf(all[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// specOf is all that a router says.
func specOf(o *api.MetaRouter) (api.MetaRouterSpec, error) {
	if o.GetSelfLink() != trimmed {
		return o.Spec, nil
	}
	return unpack(o.Annotations[specKey])
}
