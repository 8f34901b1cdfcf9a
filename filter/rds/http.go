package rds

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// fromHTTP makes of routes in Envoy's own type what they mean here, and tells where its
// fields came from. Domains and paths mean nothing. What else has no meaning here is
// refused.
func fromHTTP(from *routev3.RouteConfiguration, path string) (*routev1alpha.RouteConfiguration, map[string]string, error) {
	c := converter{origins: map[string]string{}}
	c.only(from, path, "name", "virtual_hosts", "request_mirror_policies", "most_specific_header_mutations_wins", "typed_per_filter_config",
		"request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove")
	rc := &routev1alpha.RouteConfiguration{
		Name:                      from.GetName(),
		MostSpecificMutationsWins: from.GetMostSpecificHeaderMutationsWins(),
		RequestMirrorPolicies:     c.mirrors(from.GetRequestMirrorPolicies(), path+"request_mirror_policies"),
		TypedPerFilterConfig:      from.GetTypedPerFilterConfig(),
	}
	// of is whose changes are the table's, at where it is.
	of, at := changed(from), ""
	switch n := len(from.GetVirtualHosts()); n {
	case 0:
	case 1:
		const host = "virtual_hosts[0]."
		vh := from.GetVirtualHosts()[0]
		c.virtualHost(rc, vh, path, host)
		if !changesAnything(vh) {
			break
		}
		of, at = vh, host
		if changesAnything(from) { // what one adds the other might remove, and there is one place for both
			c.refuse("%svirtual_hosts[0]: changes of headers do not go with those of the configuration", path)
		}
	default:
		c.refuse("%svirtual_hosts: want one, has %d", path, n)
	}
	rc.RequestMutation, rc.ResponseMutation = c.mutations(of, path+at)
	rc.RequestKeysToRemove, rc.ResponseKeysToRemove = of.GetRequestHeadersToRemove(), of.GetResponseHeadersToRemove()
	for ours, theirs := range tableFields {
		c.origins[ours] = at + theirs
	}
	if len(c.faults) > 0 {
		return nil, nil, faultsError(c.faults)
	}
	return rc, c.origins, nil
}

// tableFields are the names of fields of a table in Envoy's type.
var tableFields = map[string]string{
	"request_mutation": "request_headers_to_add", "request_keys_to_remove": "request_headers_to_remove",
	"response_mutation": "response_headers_to_add", "response_keys_to_remove": "response_headers_to_remove",
}

// changed is what changes messages: a configuration, a virtual host, a route.
type changed interface {
	proto.Message
	GetRequestHeadersToAdd() []*corev3.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*corev3.HeaderValueOption
	GetResponseHeadersToRemove() []string
}

func changesAnything(c changed) bool {
	return len(c.GetRequestHeadersToAdd())+len(c.GetRequestHeadersToRemove())+
		len(c.GetResponseHeadersToAdd())+len(c.GetResponseHeadersToRemove()) > 0
}

// moreSpecific are the entries of own, and those of other that it does not have.
func moreSpecific(own, other map[string]*anypb.Any) map[string]*anypb.Any {
	all := maps.Clone(other)
	if all == nil {
		return own
	}
	maps.Copy(all, own)
	return all
}

// converter gathers faults.
type converter struct {
	faults []string
	// origins are the paths of a table's fields in what the server has sent.
	origins map[string]string
}

func (c *converter) refuse(format string, args ...any) {
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

// only refuses the fields of m that are set and not named.
func (c *converter) only(m proto.Message, path string, names ...protoreflect.Name) {
	for f := range fields.Others(m.ProtoReflect(), names...) {
		c.refuse("%s%s: not supported", path, f)
	}
}

// virtualHost has what holds for all routes: as there is one, it holds for the table.
func (c *converter) virtualHost(rc *routev1alpha.RouteConfiguration, from *routev3.VirtualHost, path, at string) {
	rc.TypedPerFilterConfig = moreSpecific(from.GetTypedPerFilterConfig(), rc.TypedPerFilterConfig)
	c.only(from, path+at, "name", "domains", "routes", "retry_policy", "request_mirror_policies", "typed_per_filter_config",
		"request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove")
	c.origins["routes"] = at + "routes"
	if from.GetRetryPolicy() != nil {
		c.origins["retry_policy"] = at + "retry_policy"
		rc.RetryPolicy = c.retry(from.GetRetryPolicy(), path+at+"retry_policy.")
	}
	if len(from.GetRequestMirrorPolicies()) > 0 {
		c.origins["request_mirror_policies"] = at + "request_mirror_policies"
		rc.RequestMirrorPolicies = c.mirrors(from.GetRequestMirrorPolicies(), path+at+"request_mirror_policies")
	}
	for i, r := range from.GetRoutes() {
		rc.Routes = append(rc.Routes, c.route(r, fmt.Sprintf("%sroutes[%d].", path+at, i)))
	}
}

func (c *converter) route(from *routev3.Route, path string) *routev1alpha.Route {
	c.only(from, path, "name", "match", "route", "direct_response", "metadata", "typed_per_filter_config",
		"request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove")
	r := &routev1alpha.Route{
		Name:                 from.GetName(),
		RequestKeysToRemove:  from.GetRequestHeadersToRemove(),
		ResponseKeysToRemove: from.GetResponseHeadersToRemove(),
		TypedPerFilterConfig: from.GetTypedPerFilterConfig(),
	}
	r.RequestMutation, r.ResponseMutation = c.mutations(from, path)
	if m := from.GetMatch(); m != nil {
		c.only(m, path+"match.", "prefix", "path", "safe_regex", "connect_matcher", "path_separated_prefix", "path_match_policy", "case_sensitive",
			"headers", "runtime_fraction")
		r.Match = &routev1alpha.RouteMatch{Metadata: m.GetHeaders(), RuntimeFraction: m.GetRuntimeFraction()}
	}
	if a := from.GetRoute(); a != nil {
		r.Route = c.action(a, path+"route.")
		r.Route.Idempotent = c.idempotent(from.GetMetadata(), path+"metadata.filter_metadata")
	}
	if d := from.GetDirectResponse(); d != nil {
		r.DirectResponse = c.direct(d, path+"direct_response.")
	}
	return r
}

// own is the namespace of the metadata of routes that is for us.
const own = "aeraki.meta_protocol_proxy"

// idempotent is the one thing that Envoy's type has no field for.
func (c *converter) idempotent(md *corev3.Metadata, path string) bool {
	s := md.GetFilterMetadata()[own].GetFields()
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if name != "idempotent" {
			c.refuse("%s[%q].%s: not supported", path, own, name)
		}
	}
	return s["idempotent"].GetBoolValue()
}

func (c *converter) action(from *routev3.RouteAction, path string) *routev1alpha.RouteAction {
	c.only(from, path, "cluster", "weighted_clusters", "timeout", "retry_policy", "hedge_policy", "hash_policy", "request_mirror_policies")
	a := &routev1alpha.RouteAction{RequestMirrorPolicies: c.mirrors(from.GetRequestMirrorPolicies(), path+"request_mirror_policies")}
	switch s := from.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		a.ClusterSpecifier = &routev1alpha.RouteAction_Cluster{Cluster: s.Cluster}
	case *routev3.RouteAction_WeightedClusters:
		a.ClusterSpecifier = &routev1alpha.RouteAction_WeightedClusters{WeightedClusters: s.WeightedClusters}
	}
	// 0 is no timeout: that of the listener holds in any case.
	if t := from.GetTimeout(); t.GetSeconds() != 0 || t.GetNanos() != 0 {
		a.Timeout = t
	}
	if from.GetRetryPolicy() != nil {
		a.RetryPolicy = c.retry(from.GetRetryPolicy(), path+"retry_policy.")
	}
	if h := from.GetHedgePolicy(); h != nil {
		c.only(h, path+"hedge_policy.", "hedge_on_per_try_timeout")
		c.hedge(a, h, path)
	}
	for i, h := range from.GetHashPolicy() {
		a.HashPolicies = append(a.HashPolicies, c.hash(h, fmt.Sprintf("%shash_policy[%d].", path, i)))
	}
	return a
}

// conditions are what Envoy's names for a retry's reasons mean here. Those that are
// not there are of this proxy, or nobody's.
var conditions = map[string]string{
	"5xx":                  "connect-failure,refused,overloaded,reset,timeout,server-error",
	"gateway-error":        "connect-failure,refused,overloaded,reset,timeout",
	"reset":                "connect-failure,refused,reset,timeout",
	"reset-before-request": "connect-failure",
	"refused-stream":       "refused",
	"unavailable":          "refused",
	"resource-exhausted":   "overloaded",
	"internal":             "server-error",
}

func (c *converter) retry(from *routev3.RetryPolicy, path string) *routev1alpha.RetryPolicy {
	// Other hosts are preferred in any case.
	c.only(from, path, "retry_on", "num_retries", "per_try_timeout", "retry_back_off", "retriable_status_codes",
		"retry_host_predicate", "host_selection_retry_max_attempts")
	p := &routev1alpha.RetryPolicy{NumRetries: from.GetNumRetries(), PerTryTimeout: from.GetPerTryTimeout()}
	if from.GetRetryOn() == "" { // nothing: here that is the default
		p.NumRetries = wrapperspb.UInt32(0)
	}
	var on []string
	for name := range strings.SplitSeq(from.GetRetryOn(), ",") {
		name = strings.TrimSpace(name)
		if here, ok := conditions[name]; ok {
			name = here
		}
		on = append(on, name)
	}
	p.RetryOn = strings.Join(on, ",")
	for i, h := range from.GetRetryHostPredicate() {
		if h.GetName() != "envoy.retry_host_predicates.previous_hosts" {
			c.refuse("%sretry_host_predicate[%d].name: want envoy.retry_host_predicates.previous_hosts, is %q", path, i, h.GetName())
		}
	}
	if b := from.GetRetryBackOff(); b != nil {
		p.RetryBackOff = &routev1alpha.RetryPolicy_RetryBackOff{BaseInterval: b.GetBaseInterval(), MaxInterval: b.GetMaxInterval()}
	}
	for i, code := range from.GetRetriableStatusCodes() {
		if code > math.MaxInt32 {
			c.refuse("%sretriable_status_codes[%d]: must be at most %d, is %d", path, i, math.MaxInt32, code)
		}
		p.RetriableStatusCodes = append(p.RetriableStatusCodes, int32(code&math.MaxInt32))
	}
	return p
}

// hedge has the attempt that a second one joins go on, as Envoy has it.
func (c *converter) hedge(a *routev1alpha.RouteAction, from *routev3.HedgePolicy, path string) {
	if !from.GetHedgeOnPerTryTimeout() {
		return
	}
	delay := a.GetRetryPolicy().GetPerTryTimeout()
	if delay == nil {
		c.refuse("%shedge_policy.hedge_on_per_try_timeout: needs the route's retry_policy.per_try_timeout", path)
		return
	}
	a.RetryPolicy.PerTryTimeout = nil
	a.HedgePolicy = &routev1alpha.HedgePolicy{HedgeSpecifier: &routev1alpha.HedgePolicy_HedgeDelay{HedgeDelay: delay}}
}

func (c *converter) hash(from *routev3.RouteAction_HashPolicy, path string) *routev1alpha.HashPolicy {
	c.only(from, path, "header", "connection_properties", "terminal")
	p := &routev1alpha.HashPolicy{Terminal: from.GetTerminal()}
	switch s := from.GetPolicySpecifier().(type) {
	case *routev3.RouteAction_HashPolicy_Header_:
		c.only(s.Header, path+"header.", "header_name")
		p.PolicySpecifier = &routev1alpha.HashPolicy_Metadata_{Metadata: &routev1alpha.HashPolicy_Metadata{Name: s.Header.GetHeaderName()}}
	case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
		p.PolicySpecifier = &routev1alpha.HashPolicy_SourceIp{SourceIp: s.ConnectionProperties.GetSourceIp()}
	}
	return p
}

func (c *converter) mirrors(from []*routev3.RouteAction_RequestMirrorPolicy, path string) (ms []*routev1alpha.RouteAction_RequestMirrorPolicy) {
	for i, m := range from {
		c.only(m, fmt.Sprintf("%s[%d].", path, i), "cluster", "runtime_fraction")
		ms = append(ms, &routev1alpha.RouteAction_RequestMirrorPolicy{Cluster: m.GetCluster(), RuntimeFraction: m.GetRuntimeFraction()})
	}
	return ms
}

// statuses are what HTTP's mean here.
var statuses = map[uint32]routev1alpha.DirectResponse_Status{
	400: routev1alpha.DirectResponse_BAD_REQUEST,
	401: routev1alpha.DirectResponse_DENIED,
	403: routev1alpha.DirectResponse_DENIED,
	404: routev1alpha.DirectResponse_ROUTE_NOT_FOUND,
	408: routev1alpha.DirectResponse_TIMEOUT,
	429: routev1alpha.DirectResponse_OVER_LIMIT,
	500: routev1alpha.DirectResponse_UNSPECIFIED,
	502: routev1alpha.DirectResponse_BAD_RESPONSE,
	503: routev1alpha.DirectResponse_NO_HEALTHY_UPSTREAM,
	504: routev1alpha.DirectResponse_TIMEOUT,
}

func (c *converter) direct(from *routev3.DirectResponseAction, path string) *routev1alpha.DirectResponse {
	c.only(from, path, "status", "body")
	status, known := statuses[from.GetStatus()]
	if !known {
		c.refuse("%sstatus: want one of %v, is %d", path, slices.Sorted(maps.Keys(statuses)), from.GetStatus())
	}
	d := &routev1alpha.DirectResponse{Status: status}
	if b := from.GetBody(); b != nil {
		c.only(b, path+"body.", "inline_string")
		d.Body = b.GetInlineString()
	}
	return d
}

// mutations are headers to add.
func (c *converter) mutations(from changed, path string) (request, response []*routev1alpha.KeyValue) {
	return c.mutation(from.GetRequestHeadersToAdd(), path+"request_headers_to_add"), c.mutation(from.GetResponseHeadersToAdd(), path+"response_headers_to_add")
}

// actions are what becomes of a header that is there. The one that is first in Envoy is
// that of Aeraki's routes, which name none and mean properties to set.
var actions = map[corev3.HeaderValueOption_HeaderAppendAction]routev1alpha.KeyValue_AppendAction{
	corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:    routev1alpha.KeyValue_OVERWRITE_IF_EXISTS_OR_ADD,
	corev3.HeaderValueOption_ADD_IF_ABSENT:              routev1alpha.KeyValue_ADD_IF_ABSENT,
	corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD: routev1alpha.KeyValue_OVERWRITE_IF_EXISTS_OR_ADD,
	corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:        routev1alpha.KeyValue_OVERWRITE_IF_EXISTS,
}

func (c *converter) mutation(from []*corev3.HeaderValueOption, path string) (kvs []*routev1alpha.KeyValue) {
	for i, h := range from {
		at := fmt.Sprintf("%s[%d].", path, i)
		c.only(h, at, "header", "append", "append_action", "keep_empty_value")
		if h.GetHeader() != nil {
			c.only(h.GetHeader(), at+"header.", "key", "value")
		}
		action, known := actions[h.GetAppendAction()]
		if !known {
			c.refuse("%sappend_action: unknown value %d", at, h.GetAppendAction())
		}
		// The one way to say so that differs from saying nothing.
		if h.GetAppend().GetValue() {
			action = routev1alpha.KeyValue_APPEND_IF_EXISTS_OR_ADD
		}
		kv := &routev1alpha.KeyValue{Key: h.GetHeader().GetKey(), AppendAction: action}
		switch value := h.GetHeader().GetValue(); {
		case !strings.Contains(value, "%"):
			kv.Value = value
		case h.GetKeepEmptyValue():
			c.refuse("%skeep_empty_value: does not go with operators", at)
		default:
			kv.Format = value
		}
		kvs = append(kvs, kv)
	}
	return kvs
}
