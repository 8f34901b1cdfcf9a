package envoyfilter

import (
	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/filter/config"
)

const (
	lbPolicy = "envoy.load_balancing_policies.dynamic_modules"
	lbType   = types + "envoy.extensions.load_balancing_policies.dynamic_modules.v3.DynamicModulesLoadBalancerConfig"
)

// clusterPatch is what a cluster gets to which the service's routes lead. Those of other
// services, of which nothing is known, may be of a type that has a load balancer of its
// own. Envoy takes the first policy of several, as there are if two patches bring one.
func (g *generator) clusterPatch(d ir.Destination) object {
	patch := object{"close_connections_on_host_health_failure": true}
	if g.s.LoadBalancer != nil && g.form.balances() && d.Host == g.s.Host {
		patch["load_balancing_policy"] = object{"policies": []any{object{"typed_extension_config": object{
			"name": lbPolicy, "typed_config": object{
				"@type":                 lbType,
				"dynamic_module_config": object{"name": g.s.Module, "do_not_close": true},
				"lb_policy_name":        config.HostsPolicy,
			},
		}}}}
	}
	return patch
}

// balance adds to a configuration how its requests choose hosts.
func (g *generator) balance(cfg object) {
	lb := g.s.LoadBalancer
	if lb == nil {
		return
	}
	policy := object{}
	table := object{}
	switch hash := lb.ConsistentHash; {
	case hash != nil:
		table["hash_policies"] = []any{hashPolicy(hash)}
		if hash.Maglev != nil {
			policy["maglev"] = sized("table_size", hash.Maglev.TableSize)
		} else {
			policy["ring_hash"] = object{}
			if hash.RingHash != nil {
				policy["ring_hash"] = sized("minimum_ring_size", hash.RingHash.MinimumRingSize)
			}
		}
	case lb.Simple == ir.LeastRequest:
		policy["least_request"] = object{}
	default:
		return // as the hosts' weights say
	}
	routes, ok := cfg["route_config"].(object)
	if !ok {
		routes = object{}
		cfg["route_config"] = routes
	}
	g.merge(routes, table, "outbound.route_config")
	clusters, _ := routes["clusters"].([]any)
	for _, c := range clusters {
		if c, ok := c.(object); ok && c["name"] == "*" {
			g.merge(c, object{"load_balancing": policy}, "outbound.route_config.clusters")
			return
		}
	}
	routes["clusters"] = append(clusters, object{"name": "*", "load_balancing": policy})
}

func hashPolicy(hash *ir.ConsistentHash) object {
	switch {
	case hash.UseSourceIP:
		return object{"source_ip": true}
	case hash.Metadata != "":
		return object{"metadata": object{"name": hash.Metadata}}
	default:
		return object{"metadata": object{"name": hash.HTTPHeaderName}}
	}
}

func sized(name string, size int) object {
	if size == 0 {
		return object{}
	}
	return object{name: size}
}
