package rds

import (
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// HTTP makes of a table what means the same in Envoy's own type, as Aeraki's proxies and
// package filter/rds read it: one virtual host, properties for headers. What has no
// meaning there is refused, all of it. How clusters balance their load is left out: their
// own configuration says that to who reads this type.
func HTTP(rc *routev1alpha.RouteConfiguration) (*routev3.RouteConfiguration, error) {
	w := &writer{rc: rc}
	w.only(rc, "", "name", "routes", "timeout", "retry_policy", "request_mirror_policies", "hash_policies", "clusters",
		"request_mutation", "response_mutation", "request_keys_to_remove", "response_keys_to_remove",
		"most_specific_mutations_wins", "typed_per_filter_config")
	for i, c := range rc.GetClusters() {
		w.only(c, fmt.Sprintf("clusters[%d].", i), "name", "load_balancing")
	}
	vh := &routev3.VirtualHost{
		Name: "meltemi", Domains: []string{"*"},
		RequestMirrorPolicies: w.mirrors(rc.GetRequestMirrorPolicies(), "request_mirror_policies"),
		TypedPerFilterConfig:  rc.GetTypedPerFilterConfig(),
		RetryPolicy:           w.retry(rc.GetRetryPolicy(), "retry_policy."),

		RequestHeadersToAdd:     w.headers(rc.GetRequestMutation(), "request_mutation"),
		RequestHeadersToRemove:  rc.GetRequestKeysToRemove(),
		ResponseHeadersToAdd:    w.headers(rc.GetResponseMutation(), "response_mutation"),
		ResponseHeadersToRemove: rc.GetResponseKeysToRemove(),
	}
	for i, r := range rc.GetRoutes() {
		vh.Routes = append(vh.Routes, w.route(r, fmt.Sprintf("routes[%d].", i)))
	}
	if len(w.faults) > 0 {
		return nil, w.faults
	}
	return &routev3.RouteConfiguration{
		Name: rc.GetName(), VirtualHosts: []*routev3.VirtualHost{vh},
		MostSpecificHeaderMutationsWins: rc.GetMostSpecificMutationsWins(),
	}, nil
}

type writer struct {
	rc     *routev1alpha.RouteConfiguration
	faults fault.List
}

func (w *writer) refuse(path, format string, args ...any) { w.faults.Add(path, format, args...) }

// only refuses the fields of m that are set and not named.
func (w *writer) only(m proto.Message, path string, names ...protoreflect.Name) {
	for f := range fields.Others(m.ProtoReflect(), names...) {
		w.refuse(path+string(f), "cannot be said in Envoy's own type")
	}
}

func (w *writer) route(from *routev1alpha.Route, path string) *routev3.Route {
	r := &routev3.Route{
		Name: from.GetName(),
		Match: &routev3.RouteMatch{
			PathSpecifier:   &routev3.RouteMatch_Prefix{Prefix: "/"},
			Headers:         from.GetMatch().GetMetadata(),
			RuntimeFraction: from.GetMatch().GetRuntimeFraction(),
		},
		TypedPerFilterConfig: from.GetTypedPerFilterConfig(),

		RequestHeadersToAdd:     w.headers(from.GetRequestMutation(), path+"request_mutation"),
		RequestHeadersToRemove:  from.GetRequestKeysToRemove(),
		ResponseHeadersToAdd:    w.headers(from.GetResponseMutation(), path+"response_mutation"),
		ResponseHeadersToRemove: from.GetResponseKeysToRemove(),
	}
	if m := from.GetMatch(); m != nil {
		w.only(m, path+"match.", "metadata", "runtime_fraction")
	}
	if a := from.GetRoute(); a != nil {
		r.Action = &routev3.Route_Route{Route: w.action(a, path+"route.")}
		if a.GetIdempotent() {
			r.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
				"aeraki.meta_protocol_proxy": {Fields: map[string]*structpb.Value{"idempotent": structpb.NewBoolValue(true)}},
			}}
		}
	}
	if d := from.GetDirectResponse(); d != nil {
		r.Action = &routev3.Route_DirectResponse{DirectResponse: w.direct(d, path+"direct_response.")}
	}
	return r
}

func (w *writer) action(from *routev1alpha.RouteAction, path string) *routev3.RouteAction {
	w.only(from, path, "cluster", "weighted_clusters", "hash_policy", "request_mirror_policies", "timeout", "retry_policy",
		"hedge_policy", "idempotent", "hash_policies")
	a := &routev3.RouteAction{
		RequestMirrorPolicies: w.mirrors(from.GetRequestMirrorPolicies(), path+"request_mirror_policies"),
		Timeout:               from.GetTimeout(),
		RetryPolicy:           w.retry(from.GetRetryPolicy(), path+"retry_policy."),
	}
	if a.Timeout == nil {
		a.Timeout = w.rc.GetTimeout()
	}
	if a.Timeout == nil {
		// Absent it means 15 s to Envoy.
		a.Timeout = &durationpb.Duration{}
	}
	switch s := from.GetClusterSpecifier().(type) {
	case *routev1alpha.RouteAction_Cluster:
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: s.Cluster}
	case *routev1alpha.RouteAction_WeightedClusters:
		a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: s.WeightedClusters}
	}
	w.hedge(a, from.GetHedgePolicy(), path)
	hashes, at := from.GetHashPolicies(), path+"hash_policies"
	if len(hashes) == 0 && len(from.GetHashPolicy()) == 0 {
		hashes, at = w.rc.GetHashPolicies(), "hash_policies"
	}
	for _, name := range from.GetHashPolicy() {
		a.HashPolicy = append(a.HashPolicy, headerHash(name))
	}
	for i, h := range hashes {
		a.HashPolicy = append(a.HashPolicy, w.hash(h, fmt.Sprintf("%s[%d].", at, i)))
	}
	return a
}

// hedge has a second host be asked while the first one still may answer.
func (w *writer) hedge(a *routev3.RouteAction, from *routev1alpha.HedgePolicy, path string) {
	if from == nil {
		return
	}
	w.only(from, path+"hedge_policy.", "hedge_delay")
	switch {
	case a.RetryPolicy == nil:
		w.refuse(path+"hedge_policy", "cannot be said in Envoy's own type without the route's retry_policy")
		return
	case a.RetryPolicy.GetPerTryTimeout() != nil:
		w.refuse(path+"hedge_policy", "cannot be said in Envoy's own type beside retry_policy.per_try_timeout")
		return
	}
	a.RetryPolicy.PerTryTimeout = from.GetHedgeDelay()
	a.HedgePolicy = &routev3.HedgePolicy{HedgeOnPerTryTimeout: true}
}

func (w *writer) retry(from *routev1alpha.RetryPolicy, path string) *routev3.RetryPolicy {
	if from == nil {
		return nil
	}
	w.only(from, path, "retry_on", "num_retries", "per_try_timeout", "retry_back_off", "retriable_status_codes")
	p := &routev3.RetryPolicy{RetryOn: from.GetRetryOn(), NumRetries: from.GetNumRetries(), PerTryTimeout: from.GetPerTryTimeout()}
	if p.RetryOn == "" {
		p.RetryOn = "connect-failure,refused" // nothing means none to Envoy
	}
	var on []string
	for name := range strings.SplitSeq(p.RetryOn, ",") {
		on = append(on, strings.TrimSpace(name))
	}
	if slices.Contains(on, "reset") {
		// Envoy's has all of these in it.
		for _, also := range []string{"connect-failure", "refused", "timeout"} {
			if !slices.Contains(on, also) {
				w.refuse(path+"retry_on", "reset cannot be said in Envoy's own type without %s", also)
			}
			on = slices.DeleteFunc(on, func(name string) bool { return name == also })
		}
	}
	p.RetryOn = strings.Join(on, ",")
	if b := from.GetRetryBackOff(); b != nil {
		p.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: b.GetBaseInterval(), MaxInterval: b.GetMaxInterval()}
	}
	for i, code := range from.GetRetriableStatusCodes() {
		if code < 0 {
			w.refuse(fmt.Sprintf("%sretriable_status_codes[%d]", path, i), "%d cannot be said in Envoy's own type", code)
		}
		p.RetriableStatusCodes = append(p.RetriableStatusCodes, uint32(code))
	}
	return p
}

func headerHash(name string) *routev3.RouteAction_HashPolicy {
	return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
		Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: name},
	}}
}

func (w *writer) hash(from *routev1alpha.HashPolicy, path string) *routev3.RouteAction_HashPolicy {
	w.only(from, path, "metadata", "source_ip", "terminal")
	p := &routev3.RouteAction_HashPolicy{}
	switch s := from.GetPolicySpecifier().(type) {
	case *routev1alpha.HashPolicy_Metadata_:
		p = headerHash(s.Metadata.GetName())
	case *routev1alpha.HashPolicy_SourceIp:
		p.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: s.SourceIp},
		}
	}
	p.Terminal = from.GetTerminal()
	return p
}

func (w *writer) mirrors(from []*routev1alpha.RouteAction_RequestMirrorPolicy, path string) (ms []*routev3.RouteAction_RequestMirrorPolicy) {
	for i, m := range from {
		w.only(m, fmt.Sprintf("%s[%d].", path, i), "cluster", "runtime_fraction")
		ms = append(ms, &routev3.RouteAction_RequestMirrorPolicy{Cluster: m.GetCluster(), RuntimeFraction: m.GetRuntimeFraction()})
	}
	return ms
}

// statuses are HTTP's of what a request is answered with.
var statuses = map[routev1alpha.DirectResponse_Status]uint32{
	routev1alpha.DirectResponse_UNSPECIFIED:         500,
	routev1alpha.DirectResponse_ROUTE_NOT_FOUND:     404,
	routev1alpha.DirectResponse_NO_HEALTHY_UPSTREAM: 503,
	routev1alpha.DirectResponse_BAD_RESPONSE:        502,
	routev1alpha.DirectResponse_OVER_LIMIT:          429,
	routev1alpha.DirectResponse_BAD_REQUEST:         400,
	routev1alpha.DirectResponse_TIMEOUT:             504,
	routev1alpha.DirectResponse_DENIED:              403,
}

func (w *writer) direct(from *routev1alpha.DirectResponse, path string) *routev3.DirectResponseAction {
	w.only(from, path, "status", "body")
	code, ok := statuses[from.GetStatus()]
	if !ok {
		w.refuse(path+"status", "%v cannot be said in Envoy's own type", from.GetStatus())
	}
	d := &routev3.DirectResponseAction{Status: code}
	if from.GetBody() != "" {
		d.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: from.GetBody()}}
	}
	return d
}

// actions are what becomes of a header that is there.
var actions = map[routev1alpha.KeyValue_AppendAction]corev3.HeaderValueOption_HeaderAppendAction{
	routev1alpha.KeyValue_OVERWRITE_IF_EXISTS_OR_ADD: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	routev1alpha.KeyValue_APPEND_IF_EXISTS_OR_ADD:    corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD,
	routev1alpha.KeyValue_ADD_IF_ABSENT:              corev3.HeaderValueOption_ADD_IF_ABSENT,
	routev1alpha.KeyValue_OVERWRITE_IF_EXISTS:        corev3.HeaderValueOption_OVERWRITE_IF_EXISTS,
}

func (w *writer) headers(from []*routev1alpha.KeyValue, path string) (hs []*corev3.HeaderValueOption) {
	for i, kv := range from {
		h := &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: kv.GetKey(), Value: kv.GetValue() + kv.GetFormat()},
			AppendAction: actions[kv.GetAppendAction()],
		}
		if kv.GetAppendAction() == routev1alpha.KeyValue_APPEND_IF_EXISTS_OR_ADD {
			// Without it that is Aeraki's word for setting one.
			h.Append = wrapperspb.Bool(true)
		}
		if kv.GetFormat() == "" {
			h.KeepEmptyValue = kv.GetValue() == ""
			if strings.Contains(kv.GetValue(), "%") {
				w.refuse(fmt.Sprintf("%s[%d].value", path, i), "%% cannot be said in Envoy's own type, where it begins an operator")
			}
		}
		hs = append(hs, h)
	}
	return hs
}
