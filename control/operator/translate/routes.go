package translate

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	kjson "k8s.io/apimachinery/pkg/util/json"

	"github.com/meltemi-mesh/meltemi/control/ir"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
)

const (
	filters  = "aeraki.meta_protocol.filters."
	types    = "type.googleapis.com/aeraki.meta_protocol_proxy.filters."
	router   = filters + "router"
	faults   = filters + "fault"
	exchange = filters + "metadata_exchange"
)

// routes are those of the router, for all ports of the host.
func (t *translation) routes() {
	spec := &api.MetaRouterSpec{}
	if t.out.Router != nil {
		spec = &t.out.Router.Spec
	}
	t.options(spec)
	balance := t.balancing()
	for i := range t.s.Ports {
		p := &t.s.Ports[i]
		for j := range spec.Routes {
			r := t.route(&spec.Routes[j], fmt.Sprintf("ports[%d].routes[%d]", i, j), fmt.Sprintf("spec.routes[%d]", j))
			p.Routes = append(p.Routes, r)
		}
		balance.hash(p)
	}
	balance.localities()
	var chain []any
	if limitsAskWho(spec) && !t.foreign() || slices.ContainsFunc(spec.Routes, func(r api.MetaRoute) bool { return asksWho(r.Match) }) {
		chain = append(chain, ir.Object{"name": exchange})
	}
	if slices.ContainsFunc(spec.Routes, func(r api.MetaRoute) bool { return r.Fault != nil }) {
		// What it does routes say.
		config := faultConfig(&api.Fault{Delay: &api.Delay{FixedDelay: "1ms"}})
		chain = append(chain, ir.Object{"name": faults, "disabled": true, "config": config})
	}
	t.prepend(&t.s.Outbound, chain)
}

// asksWho tells whether a match asks for the workload that calls.
func asksWho(m *api.MetaRouteMatch) bool { return m != nil && len(m.SourceLabels) > 0 }

// limitsAskWho tells whether limits do, which clients' proxies have to tell servers' then.
func limitsAskWho(spec *api.MetaRouterSpec) bool {
	local, global := spec.LocalRateLimit, spec.GlobalRateLimit
	return global != nil && asksWho(global.Match) ||
		local != nil && slices.ContainsFunc(local.Conditions, func(c api.Condition) bool { return asksWho(&c.Match) })
}

// object is what JSON says.
func object(j *apiextensions.JSON) (ir.Object, error) {
	if j == nil {
		return nil, nil
	}
	var o ir.Object
	if err := kjson.Unmarshal(j.Raw, &o); err != nil {
		return nil, err
	}
	return o, nil
}

// options are the fields for all calls to the host.
func (t *translation) options(spec *api.MetaRouterSpec) {
	for _, side := range []struct {
		name string
		from *apiextensions.JSON
		to   *ir.Object
	}{{"outbound", spec.Outbound, &t.s.Outbound}, {"inbound", spec.Inbound, &t.s.Inbound}} {
		if side.to == &t.s.Inbound && t.foreign() {
			continue
		}
		o, err := object(side.from)
		if err != nil {
			t.refuse(t.routerObject(), "spec."+side.name, "%v", err)
		}
		*side.to = o
		if side.from != nil {
			t.comes(side.name, t.routerObject(), "spec."+side.name)
		}
	}
	t.s.Telemetry.NoIstioStats = spec.Telemetry != nil && spec.Telemetry.IstioStats != nil && !*spec.Telemetry.IstioStats
	for _, side := range []*ir.Object{&t.s.Outbound, &t.s.Inbound} {
		said := spec.Telemetry
		if said == nil || side == &t.s.Inbound && t.foreign() {
			said = &api.Telemetry{}
		}
		if t.Mesh.AccessLog != "" && (said.AccessLog == nil || *said.AccessLog) {
			t.supply(side, "access_log", "accessLog", []any{accessLog(t.Mesh)})
		}
		if t.Mesh.Tracing != nil && (said.Tracing == nil || *said.Tracing) {
			t.supply(side, "tracing", "tracing", t.Mesh.Tracing)
		}
	}
	policy := spec.TrafficPolicy
	if policy == nil {
		return
	}
	if policy.Timeout != nil {
		t.supply(&t.s.Outbound, "request_timeout", "requestTimeout", seconds(policy.Timeout))
		if !t.foreign() { // servers may need as long as clients wait
			t.supply(&t.s.Inbound, "request_timeout", "requestTimeout", seconds(policy.Timeout))
		}
		t.comes("outbound.request_timeout", t.routerObject(), "spec.trafficPolicy.timeout")
		t.comes("inbound.request_timeout", t.routerObject(), "spec.trafficPolicy.timeout")
	}
	table := ir.Object{}
	if policy.Retries != nil {
		table["retry_policy"] = retryPolicy(policy.Retries)
		t.comes("outbound.route_config.retry_policy", t.routerObject(), "spec.trafficPolicy.retries")
	}
	cluster := ir.Object{}
	if b := policy.CircuitBreakers; b != nil {
		cluster["circuit_breakers"] = given(map[string]*int32{
			"max_requests": b.MaxRequests, "max_pending_requests": b.MaxPendingRequests, "max_connections": b.MaxConnections,
		})
	}
	if d := policy.OutlierDetection; d != nil {
		o := given(map[string]*int32{"consecutive_failures": d.ConsecutiveErrors, "max_ejection_percent": d.MaxEjectionPercent})
		if d.Interval != nil {
			o["interval"] = seconds(d.Interval)
		}
		if d.BaseEjectionTime != nil {
			o["base_ejection_time"] = seconds(d.BaseEjectionTime)
		}
		cluster["outlier_detection"] = o
	}
	if b := policy.RetryBudget; b != nil {
		o := given(map[string]*int32{"min_retries_per_second": b.MinRetriesPerSecond})
		if b.Percent != nil {
			o["budget_percent"] = ir.Object{"value": int64(*b.Percent)}
		}
		cluster["retry_budget"] = o
	}
	if len(cluster) > 0 {
		cluster["name"] = "*"
		own, _ := t.s.Outbound["route_config"].(ir.Object)
		if list, ok := own["clusters"].([]any); ok {
			if slices.ContainsFunc(list, func(c any) bool { o, _ := c.(ir.Object); return o["name"] == "*" }) {
				t.refuse(t.routerObject(), "spec.trafficPolicy", "outbound.route_config.clusters says it of \"*\", too")
			}
			own["clusters"] = append(list, cluster)
		} else {
			table["clusters"] = []any{cluster}
			t.comes("outbound.route_config.clusters", t.routerObject(), "spec.trafficPolicy")
		}
	}
	if len(table) > 0 {
		t.supply(&t.s.Outbound, "route_config", "routeConfig", table)
	}
}

func given(fields map[string]*int32) ir.Object {
	o := ir.Object{}
	for k, v := range fields {
		if v != nil {
			o[k] = int64(*v)
		}
	}
	return o
}

// supply adds a field that the router itself may have, in one spelling or the other: then
// it stays.
func (t *translation) supply(side *ir.Object, name, camel string, value any) {
	if *side == nil {
		*side = ir.Object{}
	}
	if _, there := (*side)[camel]; there {
		return
	}
	old, there := (*side)[name]
	if !there {
		(*side)[name] = value
		return
	}
	o, ok := old.(ir.Object)
	v, ok2 := value.(ir.Object)
	if !ok || !ok2 {
		return
	}
	for k, e := range v {
		if _, there := o[k]; !there {
			o[k] = e
		}
	}
}

// prepend puts filters before those that the router has for a side.
func (t *translation) prepend(side *ir.Object, chain []any) {
	if len(chain) == 0 {
		return
	}
	if *side == nil {
		*side = ir.Object{}
	}
	name := "meta_protocol_filters"
	if _, camel := (*side)["metaProtocolFilters"]; camel {
		name = "metaProtocolFilters"
	}
	own, given := (*side)[name]
	rest, ok := own.([]any)
	switch {
	case given && !ok:
		return // the filter's loader says so
	case len(rest) == 0:
		rest = []any{ir.Object{"name": router}}
	}
	(*side)[name] = append(chain, rest...)
}

func (t *translation) route(r *api.MetaRoute, path, from string) ir.Object {
	o := ir.Object{}
	t.comes(path, t.routerObject(), from)
	if r.Name != "" {
		o["name"] = r.Name
	}
	if r.Match != nil {
		o["match"] = t.match(r.Match, path+".match", from+".match")
	}
	if d := r.DirectResponse; d != nil {
		o["direct_response"] = reply(d)
		t.comes(path+".direct_response", t.routerObject(), from+".directResponse")
	} else {
		o["route"] = t.action(r, path+".route", from)
	}
	request, response := r.Headers.GetRequest(), r.Headers.GetResponse()
	mutations(o, "request", request, r.RequestMutation)
	mutations(o, "response", response, r.ResponseMutation)
	for _, side := range []string{"request", "response"} {
		t.comes(path+"."+side+"_mutation", t.routerObject(), from+"."+side+"Mutation")
		t.comes(path+"."+side+"_keys_to_remove", t.routerObject(), from+".headers."+side+".remove")
	}
	if r.Fault != nil {
		o["typed_per_filter_config"] = ir.Object{faults: faultConfig(r.Fault)}
		t.comes(path+".typed_per_filter_config", t.routerObject(), from+".fault")
	}
	return o
}

func (t *translation) match(m *api.MetaRouteMatch, path, from string) ir.Object {
	o := ir.Object{}
	var metadata []any
	for i, name := range slices.Sorted(maps.Keys(m.Attributes)) {
		a := m.Attributes[name]
		h := ir.Object{"name": name}
		switch {
		case a.Exact != nil && *a.Exact != "":
			h["string_match"] = ir.Object{"exact": *a.Exact}
		case a.Prefix != nil:
			h["string_match"] = ir.Object{"prefix": *a.Prefix}
		case a.Regex != nil:
			h["string_match"] = ir.Object{"safe_regex": ir.Object{"regex": *a.Regex}}
		default:
			h["present_match"] = true
		}
		if a.Invert {
			h["invert_match"] = true
		}
		metadata = append(metadata, h)
		t.comes(fmt.Sprintf("%s.metadata[%d]", path, i), t.routerObject(), from+".attributes."+name)
	}
	if len(metadata) > 0 {
		o["metadata"] = metadata
	}
	if len(m.SourceLabels) > 0 {
		labels := ir.Object{}
		for k, v := range m.SourceLabels {
			labels[k] = v
		}
		o["source_labels"] = labels
	}
	return o
}

func (t *translation) destination(d *api.Destination) ir.Destination {
	to := ir.Destination{Host: FullName(string(d.Host), t.out.Router.Namespace, t.Mesh.Domain), Subset: d.Subset}
	if d.Port != nil {
		to.Port = int(d.Port.Number)
	}
	return to
}

func (t *translation) action(r *api.MetaRoute, path, from string) ir.Object {
	o := ir.Object{}
	var clusters []any
	for i := range r.Route {
		d := &r.Route[i]
		if d.Weight == 0 && len(r.Route) > 1 {
			continue
		}
		at := fmt.Sprintf("%s.route[%d].destination", from, i)
		t.comes(fmt.Sprintf("%s.weighted_clusters.clusters[%d]", path, len(clusters)), t.routerObject(), at)
		for _, field := range []string{"cluster", "host", "subset", "port"} { // if it is the only one
			t.comes(path+"."+field, t.routerObject(), at)
		}
		clusters = append(clusters, ir.Object{"name": t.destination(&d.Destination), "weight": int64(d.Weight)})
	}
	if len(clusters) == 1 {
		o["cluster"] = clusters[0].(ir.Object)["name"]
	} else {
		o["weighted_clusters"] = ir.Object{"clusters": clusters}
	}
	var mirrors []any
	mirror := func(d *api.Destination, share *api.Percent, field string) {
		m := ir.Object{"cluster": t.destination(d)}
		if share != nil {
			m["runtime_fraction"] = ir.Object{"default_value": fraction(share)}
		}
		t.comes(fmt.Sprintf("%s.request_mirror_policies[%d]", path, len(mirrors)), t.routerObject(), from+"."+field)
		mirrors = append(mirrors, m)
	}
	if r.Mirror != nil {
		mirror(r.Mirror, r.MirrorPercentage, "mirror")
	}
	for i := range r.Mirrors {
		mirror(&r.Mirrors[i].Destination, r.Mirrors[i].Percentage, fmt.Sprintf("mirrors[%d]", i))
	}
	if len(mirrors) > 0 {
		o["request_mirror_policies"] = mirrors
	}
	if r.Timeout != nil {
		o["timeout"] = seconds(r.Timeout)
		t.comes(path+".timeout", t.routerObject(), from+".timeout")
	}
	if r.Retries != nil {
		o["retry_policy"] = retryPolicy(r.Retries)
		t.comes(path+".retry_policy", t.routerObject(), from+".retries")
	}
	if h := r.Hedge; h != nil {
		policy := ir.Object{}
		if h.Delay != nil {
			policy["hedge_delay"] = seconds(h.Delay)
		}
		if h.Percentile != nil {
			policy["hedge_percentile"] = ir.Object{"value": *h.Percentile}
		}
		o["hedge_policy"] = policy
		t.comes(path+".hedge_policy", t.routerObject(), from+".hedge")
	}
	if r.Idempotent {
		o["idempotent"] = true
	}
	return o
}

// retryPolicy is one also where it has no retries: a route without one has the host's.
func retryPolicy(r *api.Retries) ir.Object {
	o := ir.Object{"num_retries": int64(r.Attempts)}
	if r.Attempts == 0 {
		return o // when, and after how long, means nothing
	}
	if r.RetryOn != "" {
		o["retry_on"] = r.RetryOn
	}
	if r.PerTryTimeout != nil {
		o["per_try_timeout"] = seconds(r.PerTryTimeout)
	}
	if r.Backoff != nil {
		o["retry_back_off"] = ir.Object{"base_interval": seconds(r.Backoff)}
	}
	return o
}

// mutations are the changes of calls or of answers.
func mutations(o ir.Object, side string, h *api.HeaderOperations, set []api.KeyValue) {
	if h == nil {
		h = &api.HeaderOperations{}
	}
	if len(h.Remove) > 0 {
		var keys []any
		for _, k := range h.Remove {
			keys = append(keys, k)
		}
		o[side+"_keys_to_remove"] = keys
	}
	var all []any
	for _, k := range slices.Sorted(maps.Keys(h.Set)) {
		all = append(all, ir.Object{"key": k, "value": h.Set[k]})
	}
	for _, k := range slices.Sorted(maps.Keys(h.Add)) {
		all = append(all, ir.Object{"key": k, "value": h.Add[k], "append_action": "APPEND_IF_EXISTS_OR_ADD"})
	}
	for _, kv := range set {
		all = append(all, ir.Object{"key": kv.Key, "value": kv.Value})
	}
	if len(all) > 0 {
		o[side+"_mutation"] = all
	}
}

func reply(d *api.DirectResponse) ir.Object {
	o := ir.Object{}
	if d.Status != "" {
		o["status"] = d.Status
	}
	if d.Code != 0 {
		o["code"] = int64(d.Code)
	}
	if d.Body != "" {
		o["body"] = d.Body
	}
	return o
}

func faultConfig(f *api.Fault) ir.Object {
	o := ir.Object{"@type": types + "fault.v1alpha.Fault"}
	if d := f.Delay; d != nil {
		o["delay"] = ir.Object{"fixed_delay": seconds(&d.FixedDelay), "percentage": fraction(d.Percentage)}
	}
	if a := f.Abort; a != nil {
		o["abort"] = ir.Object{"reply": reply(&a.DirectResponse), "percentage": fraction(a.Percentage)}
	}
	return o
}

// fraction is a share in Envoy's form; that of nil is all.
func fraction(p *api.Percent) ir.Object {
	if p == nil {
		return ir.Object{"numerator": int64(100), "denominator": "HUNDRED"}
	}
	return ir.Object{"numerator": int64(math.Round(p.Value * 10_000)), "denominator": "MILLION"}
}

// seconds is a duration as protobuf's JSON has it.
func seconds(d *api.Duration) string {
	return ir.Seconds(d.Time())
}

func accessLog(m Mesh) ir.Object {
	config := ir.Object{"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": m.AccessLog}
	if m.AccessLogJSON {
		config["log_format"] = ir.Object{"json_format": jsonLog()}
	}
	return ir.Object{"name": "envoy.access_loggers.file", "typed_config": config}
}

// jsonLog has Istio's names for what calls have.
func jsonLog() ir.Object {
	var o ir.Object
	_ = json.Unmarshal([]byte(`{
		"start_time": "%START_TIME%", "protocol": "%PROTOCOL%", "duration": "%DURATION%", "route_name": "%ROUTE_NAME%",
		"response_flags": "%RESPONSE_FLAGS%", "bytes_received": "%BYTES_RECEIVED%", "bytes_sent": "%BYTES_SENT%",
		"upstream_cluster": "%UPSTREAM_CLUSTER%", "upstream_host": "%UPSTREAM_HOST%",
		"downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%", "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
		"path": "%REQ(:PATH)%", "response_code": "%RESPONSE_CODE%", "response_code_details": "%RESPONSE_CODE_DETAILS%"}`), &o)
	return o
}
