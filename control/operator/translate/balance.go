package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/meltemi-mesh/meltemi/control/ir"
)

// balancing is how calls to the host and its subsets choose their servers, as far as its
// DestinationRules have them do so by the call.
type balancing struct {
	t       *translation
	host    trafficPolicy
	subsets map[string]trafficPolicy
}

// trafficPolicy is one of a rule's, which may be nil, and where it is.
type trafficPolicy struct {
	*networking.TrafficPolicy
	rule *istio.DestinationRule
	path string
}

// balancing is what the DestinationRules that count say together, as in Istio: the first
// policy of the host, and the first of each subset.
func (t *translation) balancing() *balancing {
	b := &balancing{t: t, subsets: map[string]trafficPolicy{}}
	for _, r := range t.rules() {
		if b.host.rule == nil || b.host.TrafficPolicy == nil && r.Spec.TrafficPolicy != nil {
			b.host = trafficPolicy{r.Spec.TrafficPolicy, r, "spec.trafficPolicy"}
		}
		for i, s := range r.Spec.Subsets {
			if _, there := b.subsets[s.Name]; !there {
				b.subsets[s.Name] = trafficPolicy{s.TrafficPolicy, r, fmt.Sprintf("spec.subsets[%d].trafficPolicy", i)}
			}
		}
	}
	return b
}

// rules are the DestinationRules that count: of the host's namespace, of the router's, of
// the root namespace; for the host before for a domain, and for a small one before for a
// large one; for all clients before for some; the oldest. Others join it that are for the
// same host and the same clients.
func (t *translation) rules() []*istio.DestinationRule {
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
	host := func(r *istio.DestinationRule) string { return FullName(r.Spec.Host, r.Namespace, t.Mesh.Domain) }
	rules := slices.DeleteFunc(slices.Clone(t.Rules), func(r *istio.DestinationRule) bool { return rank(r) == 3 })
	slices.SortFunc(rules, func(a, b *istio.DestinationRule) int {
		return cmp.Or(rank(a)-rank(b), wild(a)-wild(b), len(host(b))-len(host(a)), narrow(a)-narrow(b), older(a, b))
	})
	return slices.DeleteFunc(rules, func(r *istio.DestinationRule) bool {
		first := rules[0]
		return r.Namespace != first.Namespace || host(r) != host(first) || !joins(first, r)
	})
}

func wild(r *istio.DestinationRule) int { return one(strings.HasPrefix(r.Spec.Host, "*")) }

// narrow tells rules of some clients from those of all.
func narrow(r *istio.DestinationRule) int {
	to := r.Spec.ExportTo
	return one(r.Spec.WorkloadSelector != nil || len(to) > 0 && !slices.Contains(to, "*"))
}

func one(is bool) int {
	if is {
		return 1
	}
	return 0
}

// joins tells whether Istio joins a rule to an older one of its host and namespace: they
// are for the same workloads, and it is exported to where the older one is.
func joins(first, r *istio.DestinationRule) bool {
	a, b := first.Spec.WorkloadSelector, r.Spec.WorkloadSelector
	if (a == nil) != (b == nil) || !maps.Equal(a.GetMatchLabels(), b.GetMatchLabels()) {
		return false
	}
	to := r.Spec.ExportTo
	if a != nil || len(first.Spec.ExportTo) == 0 {
		return a != nil || len(to) == 0 // with a selector they are exported nowhere
	}
	return !slices.ContainsFunc(first.Spec.ExportTo, func(n string) bool { return !slices.Contains(to, n) })
}

// policy is what counts for a cluster of what its traffic policies say.
type policy struct {
	lb *networking.LoadBalancerSettings // nil: Istio's default
	// ejects: there is outlier detection.
	ejects bool
	// rule and path say where lb is, or would be.
	rule *istio.DestinationRule
	path string
}

// policy is that of the cluster of a subset, "" for none: as istiod's
// MergeSubsetTrafficPolicy has it, the host's, with what the subset's says in its place.
func (b *balancing) policy(subset string, port int) policy {
	p, _ := b.host.at(port)
	p.ejects = p.ejects || b.t.Mesh.Ejects
	s := b.subsets[subset]
	if subset == "" || s.TrafficPolicy == nil {
		return p
	}
	own, whole := s.at(port)
	if own.lb != nil || whole {
		p.lb, p.rule, p.path = own.lb, own.rule, own.path
	}
	if own.ejects || whole {
		p.ejects = own.ejects
	}
	return p
}

// at is what a policy says of a port. A port's own settings are the whole of it: what
// they leave out is not the policy's, but the default.
func (s trafficPolicy) at(port int) (p policy, whole bool) {
	for i, own := range s.GetPortLevelSettings() {
		if int(own.Port.GetNumber()) == port {
			return policy{own.LoadBalancer, own.OutlierDetection != nil, s.rule, fmt.Sprintf("%s.portLevelSettings[%d].loadBalancer", s.path, i)}, true
		}
	}
	return policy{s.GetLoadBalancer(), s.GetOutlierDetection() != nil, s.rule, s.path + ".loadBalancer"}, false
}

// hash has the routes of a port choose servers by the keys that the rule says.
func (b *balancing) hash(p *ir.Port) {
	t := b.t
	if t.s.Headless {
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
			policy := b.policy(d.Subset, port)
			lb := policy.lb.GetConsistentHash()
			if lb == nil {
				return
			}
			k := hashKey(lb)
			if k == nil {
				t.tell(of(DestinationRule, policy.rule), policy.path+".consistentHash", "calls have no cookies and no query parameters: want httpHeaderName or useSourceIp")
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

// localities refuses what has Istio's clusters know of localities where they get our load
// balancer: Envoy refuses both together. All clusters of a port get it to which a route
// leads, whichever subset the route names.
func (b *balancing) localities() {
	t := b.t
	if t.s.LoadBalancer == nil {
		return
	}
	var ports []int
	for _, p := range t.s.Ports {
		if len(p.Routes) == 0 {
			ports = append(ports, p.Port)
		}
		for _, r := range p.Routes {
			ir.Clusters(r, func(part ir.Object, field, _ string) {
				if d, ok := part[field].(ir.Destination); ok && (d.Host == "" || d.Host == t.Host) {
					ports = append(ports, cmp.Or(d.Port, p.Port))
				}
			})
		}
	}
	slices.Sort(ports)
	subsets := append([]string{""}, slices.Sorted(maps.Keys(b.subsets))...)
	for _, port := range slices.Compact(ports) {
		for _, subset := range subsets {
			p := b.policy(subset, port)
			field, by := t.weighs(p)
			if by == "" {
				continue
			}
			t.refuse(of(DestinationRule, p.rule), p.path+field, "%s has Istio balance by localities, which Envoy refuses beside consistentHash: want localityLbSetting: {enabled: false}", by)
		}
	}
}

// weighs says by what istiod makes a cluster with weights of localities, or one that knows
// zones, and which field of its load balancer that is; "" if by nothing. It is what
// istiod's GetEffectiveLbSetting and ApplyToCluster do.
func (t *translation) weighs(p policy) (field, by string) {
	weighted := func(s *networking.LocalityLoadBalancerSetting) bool {
		if s.GetEnabled() != nil && !s.Enabled.Value {
			return false
		}
		return len(s.GetDistribute()) > 0 || p.ejects && len(s.GetFailover())+len(s.GetFailoverPriority()) > 0
	}
	switch own := p.lb.GetLocalityLbSetting(); {
	case p.lb.GetZoneAwareLbSetting() != nil: // also a disabled one
		return ".zoneAwareLbSetting", "this"
	case own != nil && weighted(own):
		return ".localityLbSetting", "this"
	case own != nil:
		return "", ""
	case t.near():
		return "", "trafficDistribution of " + t.out.Owner.String()
	case t.Mesh.ZoneAware != nil:
		return "", "zoneAwareLbSetting of the mesh config"
	case weighted(t.Mesh.Locality):
		return "", "localityLbSetting of the mesh config"
	}
	return "", ""
}

// near tells whether the service wants calls to stay near their clients, by its field or
// by Istio's annotation of services and ServiceEntries.
func (t *translation) near() bool {
	if t.Service != nil && t.Service.Spec.TrafficDistribution != nil {
		switch *t.Service.Spec.TrafficDistribution {
		case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode:
			return true
		}
	}
	switch strings.ToLower(t.out.OwnerMeta.Annotations[trafficDistribution]) {
	case "preferclose", "prefersamezone", "prefersamenode":
		return true
	}
	return false
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
