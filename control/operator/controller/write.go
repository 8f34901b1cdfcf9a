package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"google.golang.org/protobuf/proto"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	istioalpha "istio.io/client-go/pkg/apis/networking/v1alpha3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kjson "k8s.io/apimachinery/pkg/util/json"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
)

// digestKey is an annotation that objects have in the cache, in place of their specs.
const digestKey = "meltemi-mesh.io/digest"

// digest is the same for specs that say the same.
func digest(spec proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// written is an object as it shall be.
type written struct {
	kind, apiVersion string
	meta             metav1.ObjectMeta
	spec             proto.Message
	current          client.Object // an empty one of its type
}

func (w *written) String() string { return w.kind + " " + w.meta.Namespace + "/" + w.meta.Name }

func filter(f *envoyfilter.Filter) *written {
	return &written{
		kind: "EnvoyFilter", apiVersion: "networking.istio.io/v1alpha3",
		meta: metav1.ObjectMeta{Name: f.Name, Namespace: f.Namespace, Labels: f.Labels, Annotations: f.Annotations},
		spec: f.Spec, current: &istioalpha.EnvoyFilter{},
	}
}

func virtualService(v *istio.VirtualService) *written {
	return &written{
		kind: "VirtualService", apiVersion: "networking.istio.io/v1", meta: v.ObjectMeta, spec: &v.Spec, current: &istio.VirtualService{},
	}
}

// write has there be what shall be for a host, and nothing else.
func (r *reconciler) write(ctx context.Context, host string, out *translate.Output) error {
	var errs []error
	wanted := map[string]bool{}
	put := func(w *written) {
		wanted[w.String()] = true
		w.own(out)
		if err := r.put(ctx, w); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", w, err))
		}
	}
	r.writing.RLock()
	defer r.writing.RUnlock()
	for _, f := range out.Filters {
		if f.Labels[translate.Component] == loopback {
			r.mu.Lock()
			r.loopbacks[f.Name] = f
			r.mu.Unlock()
			if err := r.put(ctx, filter(f)); err != nil {
				errs = append(errs, fmt.Errorf("EnvoyFilter %s/%s: %w", f.Namespace, f.Name, err))
			}
		}
	}
	for _, f := range out.Filters {
		if f.Labels[translate.Component] != loopback {
			put(filter(f))
		}
	}
	for _, v := range out.VirtualServices {
		put(virtualService(v))
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // nothing goes before what takes its place is there
	}
	filters, services := &istioalpha.EnvoyFilterList{}, &istio.VirtualServiceList{}
	if err := r.List(ctx, filters, client.MatchingFields{byHost: host}); err != nil {
		return err
	}
	if err := r.List(ctx, services, client.MatchingFields{byHost: host}); err != nil {
		return err
	}
	for _, f := range filters.Items {
		// Of what servers have nobody knows which is of a port whose number is not known, and
		// without it those that come back would let in whoever calls.
		stays := out.Unresolved && f.Labels[translate.Component] == inbound
		if !stays && !wanted["EnvoyFilter "+f.Namespace+"/"+f.Name] {
			errs = append(errs, r.remove(ctx, f))
		}
	}
	for _, v := range services.Items {
		if !wanted["VirtualService "+v.Namespace+"/"+v.Name] {
			errs = append(errs, r.remove(ctx, v))
		}
	}
	return errors.Join(errs...)
}

// own has the object go with its owner, where they are in one namespace.
func (w *written) own(out *translate.Output) {
	if out.OwnerMeta == nil || out.OwnerMeta.Namespace != w.meta.Namespace {
		return
	}
	version := "v1"
	if out.Owner.Kind == translate.ServiceEntry {
		version = "networking.istio.io/v1"
	}
	w.meta.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: version, Kind: out.Owner.Kind, Name: out.OwnerMeta.Name, UID: out.OwnerMeta.UID,
	}}
}

// put writes an object if it is not as it shall be.
func (r *reconciler) put(ctx context.Context, w *written) error {
	want := digest(w.spec)
	operation := "update"
	switch err := r.Get(ctx, client.ObjectKey{Namespace: w.meta.Namespace, Name: w.meta.Name}, w.current); {
	case apierrors.IsNotFound(err):
		operation = "create"
	case err != nil:
		return err
	case w.current.GetAnnotations()[digestKey] == want && w.same():
		return nil
	}
	u, err := w.unstructured()
	if err != nil {
		return err
	}
	spec := u.Object["spec"]
	u.SetResourceVersion(w.current.GetResourceVersion())
	if err := r.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(translate.Manager), client.ForceOwnership); err != nil {
		return outdated(err)
	}
	writes.WithLabelValues(w.kind, operation).Inc()
	ctrl.LoggerFrom(ctx).Info("written", "kind", w.kind, "object", w.meta.Namespace+"/"+w.meta.Name, "operation", operation)
	// What somebody has added beside what is applied goes only so.
	if reflect.DeepEqual(u.Object["spec"], spec) {
		return nil
	}
	if got, err := w.digestOf(u); err == nil && got != want {
		u.Object["spec"] = spec
		return outdated(r.Update(ctx, u, client.FieldOwner(translate.Manager)))
	}
	return nil
}

// same tells whether the current object has the metadata that it shall have.
func (w *written) same() bool {
	has := func(all, some map[string]string) bool {
		for k, v := range some {
			if all[k] != v {
				return false
			}
		}
		return true
	}
	return has(w.current.GetLabels(), w.meta.Labels) && has(w.current.GetAnnotations(), w.meta.Annotations) &&
		slices.EqualFunc(w.current.GetOwnerReferences(), w.meta.OwnerReferences, func(a, b metav1.OwnerReference) bool {
			return a.Kind == b.Kind && a.Name == b.Name && a.UID == b.UID
		})
}

func (w *written) unstructured() (*unstructured.Unstructured, error) {
	raw, err := json.Marshal(w.spec)
	if err != nil {
		return nil, err
	}
	var spec map[string]any
	if err := kjson.Unmarshal(raw, &spec); err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": w.apiVersion, "kind": w.kind, "spec": spec}}
	u.SetName(w.meta.Name)
	u.SetNamespace(w.meta.Namespace)
	u.SetLabels(w.meta.Labels)
	u.SetAnnotations(maps.Clone(w.meta.Annotations))
	u.SetOwnerReferences(w.meta.OwnerReferences)
	return u, nil
}

// digestOf is that of the spec that an object has.
func (w *written) digestOf(u *unstructured.Unstructured) (string, error) {
	raw, err := json.Marshal(u.Object["spec"])
	if err != nil {
		return "", err
	}
	spec := proto.Clone(w.spec)
	proto.Reset(spec)
	if err := json.Unmarshal(raw, spec); err != nil {
		return "", err
	}
	return digest(spec), nil
}

func (r *reconciler) remove(ctx context.Context, o client.Object) error {
	uid, version := o.GetUID(), o.GetResourceVersion()
	err := r.Delete(ctx, o, client.Preconditions{UID: &uid, ResourceVersion: &version})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		kind := "EnvoyFilter"
		if _, ok := o.(*istio.VirtualService); ok {
			kind = "VirtualService"
		}
		writes.WithLabelValues(kind, "delete").Inc()
		ctrl.LoggerFrom(ctx).Info("removed", "kind", kind, "object", o.GetNamespace()+"/"+o.GetName())
	}
	return outdated(err)
}

// errOutdated: the cache does not know yet what somebody has made of an object. All that
// is written or removed must be as the cache has it, so that who has been the leader, and
// does not know yet that it no longer is, changes nothing of what the next one has done.
var errOutdated = errors.New("the cache is behind")

func outdated(err error) error {
	if apierrors.IsConflict(err) {
		return errOutdated
	}
	return err
}

// The value of ManagedBy of what `meltemi envoyfilter` makes.
const byHand = "meltemi"

// reconcileLoopback has there be one loopback listener for the mesh as long as there is a
// filter that needs it. Those of single namespaces, which `meltemi envoyfilter` makes,
// would be second ones, for which Envoy refuses all.
func (r *reconciler) reconcileLoopback(ctx context.Context) error {
	loopbacks := &istioalpha.EnvoyFilterList{}
	if err := r.List(ctx, loopbacks, client.MatchingFields{byPart: loopback}); err != nil {
		return err
	}
	ours, err := r.are(ctx, translate.Manager)
	if err != nil {
		return err
	}
	others, err := r.are(ctx, byHand)
	if err != nil {
		return err
	}
	own := func(f *istioalpha.EnvoyFilter) bool { return f.Labels[translate.ManagedBy] == translate.Manager }
	needed := ours || others
	ours = ours || slices.ContainsFunc(loopbacks.Items, own)
	var errs []error
	for _, f := range loopbacks.Items {
		if f.Namespace != r.RootNamespace && slices.ContainsFunc(loopbacks.Items, func(o *istioalpha.EnvoyFilter) bool {
			return own(o) && o.Namespace == r.RootNamespace && o.Name == f.Name
		}) {
			errs = append(errs, r.remove(ctx, f))
		}
	}
	if needed {
		if ours {
			r.writing.RLock()
			defer r.writing.RUnlock()
			r.mu.Lock()
			wanted := maps.Clone(r.loopbacks)
			r.mu.Unlock()
			for _, f := range wanted {
				errs = append(errs, r.put(ctx, filter(f)))
			}
		}
		return errors.Join(errs...)
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	list := &istioalpha.EnvoyFilterList{}
	if err := r.live.List(ctx, list, r.selector()); err != nil {
		return err
	}
	if slices.ContainsFunc(list.Items, func(f *istioalpha.EnvoyFilter) bool { return !isLoopback(f) }) {
		return nil // it goes when that does
	}
	for _, f := range list.Items {
		if own(f) {
			errs = append(errs, r.remove(ctx, f))
		}
	}
	r.mu.Lock()
	clear(r.loopbacks)
	r.mu.Unlock()
	return errors.Join(errs...)
}

// are tells whether there are filters, the loopback listener aside, that somebody has made.
func (r *reconciler) are(ctx context.Context, by string) (bool, error) {
	list := &istioalpha.EnvoyFilterList{}
	err := r.List(ctx, list, client.MatchingFields{byPart: by}, client.Limit(1), client.UnsafeDisableDeepCopy)
	return len(list.Items) > 0, err
}
