package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/meltemi-mesh/meltemi/control/ir"
)

// balancing is how calls to the host and its subsets choose their servers, as far as its
// DestinationRule has them do so by the call.
type balancing struct {
	t    *translation
	rule *istio.DestinationRule
}

func (t *translation) balancing() *balancing { return &balancing{t: t, rule: t.rule()} }

// rule is the DestinationRule that counts: of the host's namespace, of the router's, of
// the root namespace; for the host before for a domain; the oldest.
func (t *translation) rule() *istio.DestinationRule {
	rank := func(r *istio.DestinationRule) int {
		switch {
		case r.Namespace == t.s.Namespace:
			return 0
		case t.out.Router != nil && r.Namespace == t.out.Router.Namespace:
			return 1
		case r.Namespace == t.Mesh.RootNamespace:
			return 2
		}
		return 3
	}
	rules := slices.DeleteFunc(slices.Clone(t.Rules), func(r *istio.DestinationRule) bool { return rank(r) == 3 })
	slices.SortFunc(rules, func(a, b *istio.DestinationRule) int {
		return cmp.Or(rank(a)-rank(b), len(b.Spec.Host)*wild(b)-len(a.Spec.Host)*wild(a), wild(a)-wild(b), older(a, b))
	})
	if len(rules) == 0 {
		return nil
	}
	return rules[0]
}

func wild(r *istio.DestinationRule) int {
	if strings.HasPrefix(r.Spec.Host, "*") {
		return 1
	}
	return 0
}

// policy is the one of a subset, or of the host where the subset says nothing of it.
func (b *balancing) policy(subset string, port int) (*networking.LoadBalancerSettings_ConsistentHashLB, *networking.TrafficPolicy, string) {
	if b.rule == nil {
		return nil, nil, ""
	}
	try := func(p *networking.TrafficPolicy, path string) (*networking.LoadBalancerSettings, string) {
		for i, at := range p.GetPortLevelSettings() {
			if int(at.Port.GetNumber()) == port && at.LoadBalancer != nil {
				return at.LoadBalancer, fmt.Sprintf("%s.portLevelSettings[%d].loadBalancer", path, i)
			}
		}
		return p.GetLoadBalancer(), path + ".loadBalancer"
	}
	for i, s := range b.rule.Spec.Subsets {
		if s.Name != subset || subset == "" {
			continue
		}
		if lb, path := try(s.TrafficPolicy, fmt.Sprintf("spec.subsets[%d].trafficPolicy", i)); lb != nil {
			return lb.GetConsistentHash(), s.TrafficPolicy, path
		}
	}
	lb, path := try(b.rule.Spec.TrafficPolicy, "spec.trafficPolicy")
	return lb.GetConsistentHash(), b.rule.Spec.TrafficPolicy, path
}

// hash has the routes of a port choose servers by the keys that the rule says.
func (b *balancing) hash(p *ir.Port) {
	t := b.t
	if b.rule == nil || t.s.Headless {
		return
	}
	routes := p.Routes
	if len(routes) == 0 {
		routes = []ir.Object{{"route": ir.Object{"cluster": ir.Destination{}}}}
	}
	var tables []any
	found := false
	for _, r := range routes {
		action, _ := r["route"].(ir.Object)
		var key ir.Object
		ir.Clusters(r, func(part ir.Object, field, path string) {
			d, ok := part[field].(ir.Destination)
			if !ok || strings.Contains(path, "mirror") || d.Host != "" && d.Host != t.Host {
				return
			}
			port := cmp.Or(d.Port, p.Port)
			lb, policy, path := b.policy(d.Subset, port)
			if lb == nil {
				return
			}
			k := hashKey(lb)
			if k == nil {
				t.tell(of(DestinationRule, b.rule), path+".consistentHash", "calls have no cookies and no query parameters: want httpHeaderName or useSourceIp")
				return
			}
			if policy.GetOutlierDetection() != nil && (policy.LoadBalancer.GetLocalityLbSetting() == nil || policy.LoadBalancer.LocalityLbSetting.Enabled.GetValue() || policy.LoadBalancer.LocalityLbSetting.Enabled == nil) {
				t.refuse(of(DestinationRule, b.rule), path, "with outlierDetection consistentHash needs localityLbSetting: {enabled: false}, as Envoy refuses hosts by weights of localities here")
				return
			}
			if key == nil {
				key = k
			}
			name := fmt.Sprintf("outbound|%d|%s|%s", port, d.Subset, t.Host)
			if !slices.ContainsFunc(tables, func(c any) bool { return c.(ir.Object)["name"] == name }) {
				tables = append(tables, ir.Object{"name": name, "load_balancing": hashTable(lb)})
			}
		})
		if key != nil {
			action["hash_policies"] = []any{key}
			found = true
		}
	}
	if !found {
		return
	}
	p.Routes = routes
	t.s.LoadBalancer = &ir.LoadBalancer{Simple: ir.RoundRobin}
	if t.s.Outbound == nil {
		t.s.Outbound = ir.Object{}
	}
	table, ok := t.s.Outbound["route_config"].(ir.Object)
	if !ok {
		table = ir.Object{}
		t.s.Outbound["route_config"] = table
	}
	clusters, _ := table["clusters"].([]any)
	table["clusters"] = append(tables, clusters...)
}

func hashKey(lb *networking.LoadBalancerSettings_ConsistentHashLB) ir.Object {
	switch {
	case lb.GetHttpHeaderName() != "":
		return ir.Object{"metadata": ir.Object{"name": lb.GetHttpHeaderName()}}
	case lb.GetUseSourceIp():
		return ir.Object{"source_ip": true}
	}
	return nil
}

func hashTable(lb *networking.LoadBalancerSettings_ConsistentHashLB) ir.Object {
	if m := lb.GetMaglev(); m != nil {
		o := ir.Object{}
		if m.TableSize != 0 {
			o["table_size"] = int64(m.TableSize)
		}
		return ir.Object{"maglev": o}
	}
	o := ir.Object{}
	if r := cmp.Or(lb.GetRingHash().GetMinimumRingSize(), lb.GetMinimumRingSize()); r != 0 { //nolint:staticcheck // rules have it
		o["minimum_ring_size"] = int64(r)
	}
	return ir.Object{"ring_hash": o}
}
