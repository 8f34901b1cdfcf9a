package check

import (
	"errors"

	lbv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/dynamic_modules/v3"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/filter/config"
)

// balancer checks a cluster's load balancer of a dynamic module, if it is Meltemi's.
func (c *checker) balancer(p place) {
	name := p.text("lb_policy_name")
	dm, _ := p.at("dynamic_module_config")
	if name != config.HostsPolicy && dm.text("name") != moduleName {
		return
	}
	if c.kubernetes {
		c.shape(p, &lbv3.DynamicModulesLoadBalancerConfig{}, "@type", "lb_policy_config")
	}
	c.finds(p.Line, "load balancer %q", name)
	var e *config.Error
	if errors.As(config.LoadHosts(name, given(p)), &e) {
		_, line := p.at(e.Path)
		c.refuse(line, fault.Join(p.path, e.Path), "%s", e.Reason)
	}
}

// besideBalancer are settings of a cluster's common_lb_config that only Envoy's own load
// balancers can follow: Envoy refuses the cluster.
var besideBalancer = []string{"locality_weighted_lb_config", "zone_aware_lb_config", "consistent_hashing_lb_config"}

// cluster refuses what does not go with a load balancer of ours in the cluster p.
func (c *checker) cluster(p place) {
	policy, _ := p.at("load_balancing_policy")
	policies, _ := policy.at("policies")
	for _, e := range policies.elements() {
		extension, _ := e.at("typed_extension_config")
		typed, _ := extension.at("typed_config")
		lb, is := typed.as(moduleLB)
		if !is || lb.text("lb_policy_name") != config.HostsPolicy {
			continue
		}
		const reason = "does not go with a load balancer of a module: Envoy refuses the cluster"
		if subsets, line := p.at("lb_subset_config"); subsets.Node != nil {
			c.refuse(line, subsets.path, reason)
		}
		common, _ := p.at("common_lb_config")
		for _, field := range besideBalancer {
			if v, line := common.at(field); v.Node != nil {
				c.refuse(line, v.path, reason)
			}
		}
		return
	}
}

// given is what the module is given as the load balancer's configuration, as far as it
// counts that it is nothing.
func given(p place) []byte {
	a, _ := p.at("lb_policy_config")
	if a.Node == nil {
		return nil
	}
	switch v, _ := a.at("value"); {
	case v.Node == nil, v.Kind == yaml.MappingNode && len(v.Content) == 0:
		return nil
	case v.Kind == yaml.ScalarNode:
		return []byte(v.Value)
	}
	return []byte("something")
}
