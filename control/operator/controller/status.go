package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meltemi-mesh/meltemi/codecs"
	dubbo "github.com/meltemi-mesh/meltemi/control/operator/api/dubbo/v1alpha1"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
)

// Reasons of conditions.
const (
	reasonAccepted   = "Accepted"
	reasonInvalid    = "Invalid"
	reasonConflicted = "Conflicted"
	reasonProgrammed = "Programmed"
	reasonNoService  = "NoService"
	reasonFailed     = "WriteFailed"
	reasonOther      = "OtherObject"
	reasonRefused    = "Refused"
	reasonWaiting    = "Waiting"
	reasonNoProxies  = "NoProxies"
)

// maxMessage is the longest message that a condition may have.
const maxMessage = 32768

const noService = "no Service and no ServiceEntry of this host has a port named tcp-metaprotocol-PROTOCOL"

// tell writes what has become of a host into the status of its routers.
func (r *reconciler) tell(ctx context.Context, in *translate.Input, out *translate.Output, failed error) error {
	var errs []error
	if r.judge != nil && !translate.ByRDS(out.Router) {
		r.judge.forget(in.Host)
	}
	for _, router := range in.Routers {
		accepted, programmed := condition(api.Accepted, true, reasonAccepted, ""), condition(api.Programmed, true, reasonProgrammed, "")
		if router != out.Router {
			message := fmt.Sprintf("spec.hosts[0]: %s/%s is older and has the same host", out.Router.Namespace, out.Router.Name)
			accepted = condition(api.Accepted, false, reasonConflicted, message)
			programmed = condition(api.Programmed, false, reasonConflicted, message)
		} else {
			var own, conflicts, others []string
			for _, f := range out.Faults {
				if f.Kind == translate.MetaRouter {
					own = append(own, f.Error())
					if f.Conflicted {
						conflicts = append(conflicts, f.Error())
					}
				} else {
					others = append(others, f.String()+": "+f.Error())
				}
			}
			if len(own) > 0 {
				accepted = condition(api.Accepted, false, reasonInvalid, strings.Join(own, "\n"))
				if len(own) == len(conflicts) {
					accepted.Reason = reasonConflicted
				}
			}
			switch {
			case failed != nil:
				programmed = condition(api.Programmed, false, reasonFailed, failed.Error())
			case !out.Governed:
				programmed = condition(api.Programmed, false, reasonNoService, "spec.hosts[0]: "+noService)
			case !out.Complete && len(own) > 0:
				programmed = condition(api.Programmed, false, reasonInvalid, "what was before stays: "+strings.Join(own, "\n"))
			case len(conflicts) > 0:
				programmed = condition(api.Programmed, false, reasonConflicted, strings.Join(conflicts, "\n"))
			case len(others) > 0:
				programmed = condition(api.Programmed, false, reasonOther, strings.Join(others, "\n"))
			}
		}
		conditions := []metav1.Condition{accepted, programmed}
		switch {
		case router != out.Router || !translate.ByRDS(router) || out.Complete && len(out.Tables) == 0 || r.judge == nil:
			conditions = append(conditions, metav1.Condition{Type: api.Acknowledged})
		case out.Complete:
			conditions = append(conditions, r.judge.condition(in.Host, router, out))
		}
		errs = append(errs, r.setStatus(ctx, router, "MetaRouter", router.Status, conditions...))
	}
	return errors.Join(errs...)
}

func condition(kind string, ok bool, reason, message string) metav1.Condition {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	// A part of a character would be told, and read back, as another one.
	message = strings.ToValidUTF8(message[:min(len(message), maxMessage)], "")
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message}
}

// setStatus writes conditions of an object, if they are not so. One without a Status is
// removed.
func (r *reconciler) setStatus(ctx context.Context, o client.Object, kind string, s api.Status, conditions ...metav1.Condition) error {
	before := s.Conditions
	after := append([]metav1.Condition(nil), before...)
	for _, c := range conditions {
		if c.Status == "" {
			meta.RemoveStatusCondition(&after, c.Type)
			continue
		}
		c.ObservedGeneration = o.GetGeneration()
		meta.SetStatusCondition(&after, c)
	}
	if equality.Semantic.DeepEqual(before, after) {
		return nil
	}
	var told []any
	for _, c := range after {
		c.LastTransitionTime = metav1.NewTime(c.LastTransitionTime.Truncate(time.Second))
		u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&c)
		if err != nil {
			return err
		}
		told = append(told, u)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{"conditions": told}}}
	u.SetAPIVersion(api.GroupVersion.String())
	if kind == translate.DubboAuthorizationPolicy {
		u.SetAPIVersion("dubbo.aeraki.io/v1alpha1")
	}
	u.SetKind(kind)
	u.SetName(o.GetName())
	u.SetNamespace(o.GetNamespace())
	u.SetResourceVersion(o.GetResourceVersion())
	err := r.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(translate.Manager), client.ForceOwnership)
	if apierrors.IsNotFound(err) {
		return nil // it has gone meanwhile
	}
	return outdated(err)
}

// tellProtocol writes the status of an ApplicationProtocol.
func (r *reconciler) tellProtocol(ctx context.Context, o translate.Object) error {
	p := &api.ApplicationProtocol{}
	if err := r.Get(ctx, client.ObjectKey{Name: o.Name}, p); err != nil {
		return client.IgnoreNotFound(err)
	}
	list := &api.ApplicationProtocolList{}
	if err := r.List(ctx, list, client.MatchingFields{byProtocol: p.Spec.Protocol}); err != nil {
		return err
	}
	all := make([]*api.ApplicationProtocol, len(list.Items))
	for i := range list.Items {
		all[i] = &list.Items[i]
	}
	accepted := condition(api.Accepted, true, reasonAccepted, "")
	if oldest := translate.Oldest(all); oldest != nil && oldest.Name != p.Name {
		accepted = condition(api.Accepted, false, reasonConflicted, fmt.Sprintf("spec.protocol: %s is older and has the same protocol", oldest.Name))
	} else if !translate.KnownCodec(p.Spec.Codec) {
		accepted = condition(api.Accepted, false, reasonInvalid,
			fmt.Sprintf("spec.codec: unknown codec %q (built in: %s)", p.Spec.Codec, strings.Join(codecs.Names(), ", ")))
	}
	return r.setStatus(ctx, p, o.Kind, p.Status, accepted)
}

// tellPolicy writes the status of a DubboAuthorizationPolicy.
func (r *reconciler) tellPolicy(ctx context.Context, o translate.Object) error {
	p := &dubbo.DubboAuthorizationPolicy{}
	if err := r.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: o.Name}, p); err != nil {
		return client.IgnoreNotFound(err)
	}
	fields := client.MatchingFields{byGoverned: "true"}
	options := []client.ListOption{fields}
	if o.Namespace != r.RootNamespace {
		options = append(options, client.InNamespace(o.Namespace))
	}
	list := &corev1.ServiceList{}
	if err := r.List(ctx, list, options...); err != nil {
		return err
	}
	services := make([]*corev1.Service, len(list.Items))
	for i := range list.Items {
		services[i] = &list.Items[i]
	}
	var told []string
	for _, f := range translate.Judge(p, translate.Mesh{RootNamespace: r.RootNamespace, Domain: r.Domain}, services) {
		told = append(told, f.Error())
	}
	accepted := condition(api.Accepted, len(told) == 0, reasonAccepted, strings.Join(told, "\n"))
	if len(told) > 0 {
		accepted.Reason = reasonInvalid
	}
	return r.setStatus(ctx, p, o.Kind, p.Status, accepted)
}
