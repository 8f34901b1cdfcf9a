package rds

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// fromHTTP makes of routes that Aeraki has put into Envoy's own type what they mean.
// Domains and paths mean nothing. What else has no meaning here is refused.
func fromHTTP(from *routev3.RouteConfiguration, path string) (*routev1alpha.RouteConfiguration, error) {
	var c converter
	c.only(from, path, "name", "virtual_hosts")
	rc := &routev1alpha.RouteConfiguration{Name: from.GetName()}
	switch n := len(from.GetVirtualHosts()); n {
	case 0:
	case 1:
		at := path + "virtual_hosts[0]."
		vh := from.GetVirtualHosts()[0]
		c.only(vh, at, "name", "domains", "routes")
		for i, r := range vh.GetRoutes() {
			rc.Routes = append(rc.Routes, c.route(r, fmt.Sprintf("%sroutes[%d].", at, i)))
		}
	default:
		c.refuse("%svirtual_hosts: want one, has %d", path, n)
	}
	if len(c.faults) > 0 {
		return nil, faultsError(c.faults)
	}
	return rc, nil
}

// converter gathers faults.
type converter struct{ faults []string }

func (c *converter) refuse(format string, args ...any) {
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

// only refuses the fields of m that are set and not named.
func (c *converter) only(m proto.Message, path string, names ...protoreflect.Name) {
	for f := range fields.Others(m.ProtoReflect(), names...) {
		c.refuse("%s%s: not supported", path, f)
	}
}

func (c *converter) route(from *routev3.Route, path string) *routev1alpha.Route {
	c.only(from, path, "name", "match", "route", "request_headers_to_add", "response_headers_to_add")
	r := &routev1alpha.Route{
		Name:             from.GetName(),
		RequestMutation:  c.mutation(from.GetRequestHeadersToAdd(), path+"request_headers_to_add"),
		ResponseMutation: c.mutation(from.GetResponseHeadersToAdd(), path+"response_headers_to_add"),
	}
	if m := from.GetMatch(); m != nil {
		c.only(m, path+"match.", "prefix", "path", "safe_regex", "connect_matcher", "path_separated_prefix", "path_match_policy", "case_sensitive", "headers")
		r.Match = &routev1alpha.RouteMatch{Metadata: m.GetHeaders()}
	}
	if a := from.GetRoute(); a != nil {
		r.Route = c.action(a, path+"route.")
	}
	return r
}

func (c *converter) action(from *routev3.RouteAction, path string) *routev1alpha.RouteAction {
	c.only(from, path, "cluster", "weighted_clusters", "hash_policy", "request_mirror_policies")
	a := &routev1alpha.RouteAction{}
	switch s := from.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		a.ClusterSpecifier = &routev1alpha.RouteAction_Cluster{Cluster: s.Cluster}
	case *routev3.RouteAction_WeightedClusters:
		wc := proto.CloneOf(s.WeightedClusters)
		wc.TotalWeight = nil // the sum counts
		a.ClusterSpecifier = &routev1alpha.RouteAction_WeightedClusters{WeightedClusters: wc}
	}
	for i, h := range from.GetHashPolicy() {
		at := fmt.Sprintf("%shash_policy[%d].", path, i)
		c.only(h, at, "header")
		if h.GetHeader() != nil {
			c.only(h.GetHeader(), at+"header.", "header_name")
		}
		a.HashPolicy = append(a.HashPolicy, h.GetHeader().GetHeaderName())
	}
	for i, m := range from.GetRequestMirrorPolicies() {
		c.only(m, fmt.Sprintf("%srequest_mirror_policies[%d].", path, i), "cluster", "runtime_fraction")
		a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, &routev1alpha.RouteAction_RequestMirrorPolicy{
			Cluster: m.GetCluster(), RuntimeFraction: m.GetRuntimeFraction(),
		})
	}
	return a
}

// mutation takes headers to add for what Aeraki means by them: properties to set.
func (c *converter) mutation(from []*corev3.HeaderValueOption, path string) []*routev1alpha.KeyValue {
	var kvs []*routev1alpha.KeyValue
	for i, h := range from {
		at := fmt.Sprintf("%s[%d].", path, i)
		c.only(h, at, "header", "append", "append_action")
		if h.GetHeader() != nil {
			c.only(h.GetHeader(), at+"header.", "key", "value")
		}
		switch h.GetAppendAction() {
		case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		default:
			c.refuse("%sappend_action: not supported", at)
		}
		kvs = append(kvs, &routev1alpha.KeyValue{Key: h.GetHeader().GetKey(), Value: h.GetHeader().GetValue()})
	}
	return kvs
}
