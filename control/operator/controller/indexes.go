package controller

import (
	"slices"
	"strings"

	istio "istio.io/client-go/pkg/apis/networking/v1"
	istioalpha "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
)

// What objects are found by.
const (
	byHost     = "host"
	byGateway  = "gateway"
	byProtocol = "protocol"
	bySelector = "selector"
	byGoverned = "governed"
	byService  = "service"
	byPart     = "part"
)

// index is what objects of a type are found by.
type index struct {
	object client.Object
	field  string
	values client.IndexerFunc
}

// indexes have the cache find objects by what they say, so that the work of a change is
// that of what it touches.
func (r *reconciler) indexes() []index {
	return []index{
		{&api.MetaRouter{}, byHost, func(o client.Object) []string { return []string{r.routerHost(o.(*api.MetaRouter))} }},
		{&api.MetaRouter{}, byGateway, func(o client.Object) []string { return gatewaysOf(o.(*api.MetaRouter)) }},
		{&api.ApplicationProtocol{}, byProtocol, func(o client.Object) []string { return []string{o.(*api.ApplicationProtocol).Spec.Protocol} }},
		{&istio.ServiceEntry{}, byHost, func(o client.Object) []string { return o.(*istio.ServiceEntry).Spec.Hosts }},
		{&istio.ServiceEntry{}, byProtocol, protocols},
		{&istio.ServiceEntry{}, byGoverned, governed},
		{&corev1.Service{}, byProtocol, protocols},
		{&corev1.Service{}, byGoverned, governed},
		{&istio.ServiceEntry{}, bySelector, func(o client.Object) []string { return pairs(translate.EntrySelector(o.(*istio.ServiceEntry))) }},
		{&corev1.Service{}, bySelector, func(o client.Object) []string { return pairs(o.(*corev1.Service).Spec.Selector) }},
		{&istio.DestinationRule{}, byHost, func(o client.Object) []string { return []string{r.ruleDomain(o.(*istio.DestinationRule))} }},
		{&istio.VirtualService{}, byGateway, func(o client.Object) (all []string) {
			for _, g := range o.(*istio.VirtualService).Spec.Gateways {
				all = append(all, translate.GatewayName(g, o.GetNamespace()))
			}
			return all
		}},
		{&istio.VirtualService{}, byHost, ownHost},
		{&istioalpha.EnvoyFilter{}, byHost, ownHost},
		{&istioalpha.EnvoyFilter{}, byPart, func(o client.Object) []string {
			if isLoopback(o) {
				return []string{loopback}
			}
			return []string{o.GetLabels()[translate.ManagedBy]}
		}},
		{&discovery.EndpointSlice{}, byService, func(o client.Object) []string { return []string{o.GetLabels()[discovery.LabelServiceName]} }},
	}
}

// pairs are what a selector is found by.
func pairs(selector map[string]string) (all []string) {
	for k, v := range selector {
		all = append(all, k+"="+v)
	}
	return all
}

// portNames are those of a Service or a ServiceEntry.
func portNames(o client.Object) (names []string) {
	switch o := o.(type) {
	case *corev1.Service:
		for _, p := range o.Spec.Ports {
			names = append(names, p.Name)
		}
	case *istio.ServiceEntry:
		for _, p := range o.Spec.Ports {
			names = append(names, p.Name)
		}
	}
	return names
}

// protocols are those that its ports name.
func protocols(o client.Object) (all []string) {
	for _, name := range portNames(o) {
		if p, ok := translate.Protocol(name); ok && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

func governed(o client.Object) []string {
	if slices.ContainsFunc(portNames(o), translate.Governed) {
		return []string{"true"}
	}
	return nil
}

// ownHost is the one that an object of the operator's own is for.
func ownHost(o client.Object) []string {
	if h := o.GetAnnotations()[translate.Host]; h != "" && o.GetLabels()[translate.ManagedBy] == translate.Manager {
		return []string{h}
	}
	return nil
}

// loopback is the component of the filters that are the loopback listener, and the part
// of the index that has them. The others are in the part of who has made them.
const loopback = "loopback"

// inbound is the component of the filters that servers have.
const inbound = "inbound"

func isLoopback(o client.Object) bool { return o.GetLabels()[translate.Component] == loopback }

func (r *reconciler) routerHost(o *api.MetaRouter) string {
	if len(o.Spec.Hosts) == 0 {
		return ""
	}
	return translate.FullName(string(o.Spec.Hosts[0]), o.Namespace, r.Domain)
}

// gatewaysOf are those that a router names, by namespace/name.
func gatewaysOf(o *api.MetaRouter) (all []string) {
	for _, g := range o.Spec.Gateways {
		all = append(all, translate.GatewayName(g, o.Namespace))
	}
	return all
}

// ruleDomain is what a rule is found by: its host, or the domain around its hosts, of
// which those of *-x.example are some of *.example.
func (r *reconciler) ruleDomain(o *istio.DestinationRule) string {
	host := r.ruleHost(o)
	if _, rest, ok := strings.Cut(host, "."); ok && host[0] == '*' {
		return "*." + rest
	}
	return host
}

func (r *reconciler) ruleHost(o *istio.DestinationRule) string {
	return translate.FullName(o.Spec.Host, o.Namespace, r.Domain)
}
