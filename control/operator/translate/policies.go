package translate

import (
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
	dubbo "github.com/meltemi-mesh/meltemi/control/operator/api/dubbo/v1alpha1"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
)

const (
	localLimit  = filters + "local_ratelimit"
	globalLimit = filters + "ratelimit"
	dubboCodec  = codecPrefix + "dubbo"
	autoCodec   = codecPrefix + "auto"
)

// policies are what the servers' proxies see to: limits, and who may call what.
func (t *translation) policies() {
	t.dubboPolicies()
	if t.out.Router == nil {
		return
	}
	spec := &t.out.Router.Spec
	given := forServers(spec)
	if t.foreign() {
		for _, field := range given {
			t.tell(t.routerObject(), "spec."+field, "is for the proxies of %s, of which a MetaRouter of its own namespace or of %s says it", t.out.Owner, t.Mesh.RootNamespace)
		}
		return
	}
	t.limits(spec)
	for i, a := range spec.Authorization {
		t.comes(fmt.Sprintf("authorization[%d]", len(t.s.Authorization)), t.routerObject(), fmt.Sprintf("spec.authorization[%d]", i))
		t.s.Authorization = append(t.s.Authorization, authorization(a))
	}
	if t.s.Server != nil {
		return
	}
	for _, field := range given {
		if field != "inbound" {
			t.refuse(t.routerObject(), "spec."+field, "%s selects no workloads whose proxies could see to it", t.out.Owner)
		}
	}
	t.s.Authorization = nil
}

// ForServers tells whether a router has something that servers' proxies see to.
func ForServers(spec *api.MetaRouterSpec) bool { return len(forServers(spec)) > 0 }

// forServers are the fields of a router that servers' proxies see to, as far as it has them.
func forServers(spec *api.MetaRouterSpec) (fields []string) {
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"authorization", len(spec.Authorization) > 0},
		{"globalRateLimit", spec.GlobalRateLimit != nil},
		{"inbound", spec.Inbound != nil},
		{"localRateLimit", spec.LocalRateLimit != nil},
	} {
		if f.given {
			fields = append(fields, f.name)
		}
	}
	return fields
}

// foreign tells whether the router is of a namespace that has no say in what servers'
// proxies see to: as of Istio's policies, the service's own has, and the root namespace.
func (t *translation) foreign() bool {
	r := t.out.Router
	return r != nil && !t.Mesh.governs(r, t.s.Namespace)
}

// governs tells whether a router has a say in what servers' proxies of a namespace see to.
func (m *Mesh) governs(r *api.MetaRouter, namespace string) bool {
	return r.Namespace == namespace || r.Namespace == m.RootNamespace
}

func (t *translation) limits(spec *api.MetaRouterSpec) {
	var chain []any
	if limitsAskWho(spec) {
		chain = append(chain, ir.Object{"name": exchange})
	}
	if l := spec.LocalRateLimit; l != nil {
		path := fmt.Sprintf("inbound.meta_protocol_filters[%d]", len(chain))
		config := ir.Object{"@type": types + "local_ratelimit.v1alpha.LocalRateLimit", "stat_prefix": "local_rate_limit"}
		if l.TokenBucket != nil {
			config["token_bucket"] = bucket(l.TokenBucket)
		}
		var conditions []any
		for i := range l.Conditions {
			c := &l.Conditions[i]
			conditions = append(conditions, ir.Object{
				"match":        t.match(&c.Match, fmt.Sprintf("%s.config.conditions[%d].match", path, i), fmt.Sprintf("spec.localRateLimit.conditions[%d].match", i)),
				"token_bucket": bucket(&c.TokenBucket),
			})
		}
		if conditions != nil {
			config["conditions"] = conditions
		}
		t.comes(path, t.routerObject(), "spec.localRateLimit")
		chain = append(chain, ir.Object{"name": localLimit, "config": config})
	}
	if g := spec.GlobalRateLimit; g != nil {
		path := fmt.Sprintf("inbound.meta_protocol_filters[%d]", len(chain))
		config := ir.Object{
			"@type": types + "ratelimit.v1alpha.RateLimit", "domain": g.Domain,
			"rate_limit_service": ir.Object{
				"grpc_service":          ir.Object{"envoy_grpc": ir.Object{"cluster_name": g.RateLimitService}},
				"transport_api_version": "V3",
			},
		}
		if g.Match != nil {
			config["match"] = t.match(g.Match, path+".config.match", "spec.globalRateLimit.match")
		}
		if g.RequestTimeout != nil {
			config["timeout"] = seconds(g.RequestTimeout)
		}
		if g.DenyOnFail {
			config["failure_mode_deny"] = true
		}
		var descriptors []any
		for _, d := range g.Descriptors {
			descriptors = append(descriptors, ir.Object{"property": d.Property, "descriptor_key": d.DescriptorKey})
		}
		config["descriptors"] = descriptors
		t.comes(path, t.routerObject(), "spec.globalRateLimit")
		chain = append(chain, ir.Object{"name": globalLimit, "config": config})
	}
	if t.s.Server != nil {
		t.prepend(&t.s.Inbound, chain)
	}
}

func bucket(b *api.TokenBucket) ir.Object {
	return ir.Object{
		"max_tokens": b.MaxTokens, "tokens_per_fill": max(1, b.TokensPerFill), "fill_interval": seconds(&b.FillInterval),
	}
}

func authorization(a api.Authorization) ir.Authorization {
	to := ir.Authorization{Name: a.Name, Action: ir.Action(a.Action), DryRun: a.DryRun}
	for _, r := range a.Rules {
		var rule ir.AuthorizationRule
		for _, f := range r.From {
			rule.From = append(rule.From, ir.Source(f.Source))
		}
		for _, o := range r.To {
			rule.To = append(rule.To, ir.Operation(o.Operation))
		}
		for _, w := range r.When {
			rule.When = append(rule.When, ir.Condition(w))
		}
		to.Rules = append(to.Rules, rule)
	}
	return to
}

// dubboPolicies are those of the host's namespace and of the root namespace, if it speaks
// Dubbo.
func (t *translation) dubboPolicies() {
	if t.s.Server == nil {
		return
	}
	speaks := false
	for _, p := range t.s.Ports {
		for _, name := range p.Protocol {
			speaks = speaks || name == dubboCodec || name == autoCodec
		}
		speaks = speaks || p.Codec["name"] == dubboCodec
	}
	if !speaks {
		return
	}
	for _, p := range sorted(t.Policies) {
		if p.Namespace != t.s.Namespace && p.Namespace != t.Mesh.RootNamespace {
			continue
		}
		if p.Spec.Selector != nil {
			switch overlap(p.Spec.Selector.MatchLabels, t.s.Server.Selector) {
			case apart:
				continue
			case unknown:
				f := partial(p, t.out.Owner)
				t.refuse(f.Object, f.Path, "%s", f.Reason)
				continue
			}
		}
		t.s.Authorization = append(t.s.Authorization, t.dubboAuthorization(p, fmt.Sprintf("authorization[%d]", len(t.s.Authorization))))
	}
}

const (
	apart = iota
	all
	unknown
)

// overlap says which of the workloads that a service selects a policy selects, too.
func overlap(policy, service map[string]string) int {
	result := all
	for k, v := range maps.All(policy) {
		switch other, given := service[k]; {
		case given && other != v:
			return apart
		case !given:
			result = unknown
		}
	}
	return result
}

func (t *translation) dubboAuthorization(p *dubbo.DubboAuthorizationPolicy, path string) ir.Authorization {
	a := ir.Authorization{Name: p.Namespace + "/" + p.Name, Action: ir.Action(p.Spec.Action)}
	t.comes(path, of(DubboAuthorizationPolicy, p), "spec")
	for i, r := range p.Spec.Rules {
		from := func(part, field string) {
			t.comes(fmt.Sprintf("%s.rules[%d]%s", path, len(a.Rules), part), of(DubboAuthorizationPolicy, p), fmt.Sprintf("spec.rules[%d]%s", i, field))
		}
		var sources []ir.Source
		for _, f := range r.From {
			sources = append(sources, ir.Source{
				Principals: f.Source.Principals, NotPrincipals: f.Source.NotPrincipals,
				Namespaces: f.Source.Namespaces, NotNamespaces: f.Source.NotNamespaces,
			})
		}
		if len(r.To) == 0 {
			from("", "")
			a.Rules = append(a.Rules, ir.AuthorizationRule{From: sources})
		}
		// What is said of interfaces holds for one operation: each is a rule.
		for j, to := range r.To {
			o := to.Operation
			rule := ir.AuthorizationRule{From: sources}
			at := fmt.Sprintf(".to[%d].operation", j)
			from("", "")
			from(".to[0].operation", at)
			from(".when[0].values", at+".interfaces")
			from(".when[0].notValues", at+".notInterfaces")
			if len(o.Methods)+len(o.NotMethods) > 0 {
				rule.To = []ir.Operation{{Methods: o.Methods, NotMethods: o.NotMethods}}
			}
			if len(o.Interfaces)+len(o.NotInterfaces) > 0 {
				rule.When = []ir.Condition{{Key: ir.HeaderKey + "interface]", Values: o.Interfaces, NotValues: o.NotInterfaces}}
			}
			if rule.To == nil && rule.When == nil {
				rule.To = []ir.Operation{{}} // says nothing, which is refused
			}
			a.Rules = append(a.Rules, rule)
		}
	}
	return a
}

// Judge says what is wrong with a policy, whatever it is for, and with which of some
// services it does not go.
func Judge(p *dubbo.DubboAuthorizationPolicy, mesh Mesh, services []*corev1.Service) []Fault {
	whole := p.DeepCopy()
	whole.Spec.Selector = nil
	out := Translate(&Input{
		Mesh: mesh, Host: "a.b.svc." + mesh.Domain, Policies: []*dubbo.DubboAuthorizationPolicy{whole},
		Service: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: p.Namespace},
			Spec: corev1.ServiceSpec{
				ClusterIP: "10.0.0.1", Selector: map[string]string{"a": "b"},
				Ports: []corev1.ServicePort{{Name: "tcp-metaprotocol-dubbo", Port: 20880}},
			},
		},
	})
	if p.Spec.Selector == nil {
		return out.Faults
	}
	for _, s := range sorted(services) {
		if overlap(p.Spec.Selector.MatchLabels, s.Spec.Selector) == unknown {
			out.Faults = append(out.Faults, partial(p, of(Service, s)))
		}
	}
	return out.Faults
}

func partial(p *dubbo.DubboAuthorizationPolicy, o Object) Fault {
	return Fault{Object: of(DubboAuthorizationPolicy, p), Fault: fault.Fault{
		Path:   "spec.selector.matchLabels",
		Reason: fmt.Sprintf("may select a part of the workloads of %s: want labels that its selector has", o),
	}}
}
