package route

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Error is one fault of a RouteConfiguration, at a path in it.
type Error = fields.Error

// Env is what a table is judged by.
type Env struct {
	// Mutator has to be able to make what routes set in messages. Without one it is
	// not known yet which codec is to do it.
	Mutator codecs.Mutator
	// Filters judges what the table says of filters. Without them that is not known.
	Filters Filters
}

// Compile validates rc and makes a table of it, or returns all its faults.
func Compile(rc *routev1alpha.RouteConfiguration, env Env) (*Table, []*Error) {
	c := &compiler{env: env, specific: rc.GetMostSpecificMutationsWins()}
	c.mirrored = c.mirrors(rc.GetRequestMirrorPolicies(), "request_mirror_policies")
	t := &Table{routes: make([]Route, len(rc.GetRoutes()))}
	d := c.defaults(rc)
	c.table = c.changes(rc, "")
	overrides := c.overrides(rc.GetTypedPerFilterConfig(), "")
	h := &Hash{c.hashParts(rc.GetHashPolicies(), "hash_policies")}
	t.clusters, t.others = c.clusters(rc.GetClusters())
	for i, r := range rc.GetRoutes() {
		to := &t.routes[i]
		c.route(to, r, d, h, element("routes", i))
		to.overrides = c.inheritOverrides(c.overrides(r.GetTypedPerFilterConfig(), element("routes", i)+"."), overrides)
		t.notes(to.overrides)
		for j := range to.targets {
			if its := &to.targets[j]; its.overrides != nil {
				its.overrides = c.inheritOverrides(its.overrides, to.overrides)
				to.differs = true
				t.notes(its.overrides)
			}
		}
	}
	if len(c.errs) > 0 {
		return nil, c.errs
	}
	t.settle()
	return t, nil
}

// CompileRoute is Compile for a single route that is not looked up: somebody knows which
// requests it is for, and it has no match. What a table would say of all its routes it has
// to say itself. Paths are those within r.
func CompileRoute(r *routev1alpha.Route, env Env) (*Route, []*Error) {
	const first = "routes[0]."
	t, errs := Compile(&routev1alpha.RouteConfiguration{Routes: []*routev1alpha.Route{r}}, env)
	for _, e := range errs {
		e.Path = strings.TrimPrefix(e.Path, first)
	}
	if r.GetMatch() != nil {
		errs = append(errs, &Error{Path: "match", Reason: "does not go with a route that is not looked up"})
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return &t.routes[0], nil
}

// settle makes what is found in the table's routes.
func (t *Table) settle() {
	t.key = tables.Add(1)
	for i := range t.routes {
		if g := t.routes[i].gate; g != nil {
			t.key, t.draws = 0, t.draws || g.share.Of > 0
		}
	}
	t.keys = rank(t.routes)
	if t.late = late(t.keys); t.late {
		t.key = 0
	}
	number(t.routes)
	t.index.build(t.routes, fewRoutes)
}

// late reports whether what is called by these names may be deferred in messages that share
// a shape.
func late(keys []string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { return strings.EqualFold(k, codecs.RequestID) })
}

// compiler gathers faults.
type compiler struct {
	env      Env
	table    changes  // of all routes
	specific bool     // changes of the table are made first, not last
	mirrored []Mirror // of routes that do not say
	errs     []*Error
}

func (c *compiler) refuse(path, format string, args ...any) {
	c.errs = append(c.errs, &Error{Path: path, Reason: fmt.Sprintf(format, args...)})
}

func element(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }

func (c *compiler) route(r *Route, from *routev1alpha.Route, d *policies, h *Hash, path string) {
	r.Name = from.GetName()
	c.matches(r, from.GetMatch(), path+".match")
	action, direct := from.GetRoute(), from.GetDirectResponse()
	switch {
	case action == nil && direct == nil:
		c.refuse(path+".route", "required")
	case action != nil && direct != nil:
		c.refuse(path+".direct_response", "there is a route, too")
	}
	own := c.changes(from, path+".")
	if direct.GetSuccess() != nil {
		r.Success = c.success(direct, path+".direct_response")
		if len(own.request) > 0 {
			c.refuse(path+".direct_response", "does not go with mutations of requests: nothing is sent on")
		}
		r.Response = c.join(&own, &c.table).response
	} else if direct != nil {
		r.Direct = c.direct(direct, path+".direct_response")
		if own.any() {
			c.refuse(path+".direct_response", "does not go with mutations: nothing is sent on")
		}
	} else if action != nil {
		c.action(r, action, own, path+".route")
		r.Policy = c.policy(action, d, path+".route")
		r.Hash = c.hash(action, h, path+".route")
	}
}

// matches compiles what a route asks of messages.
func (c *compiler) matches(r *Route, m *routev1alpha.RouteMatch, path string) {
	for i, h := range m.GetMetadata() {
		x, field, err := compileMatcher(h)
		if err != nil {
			c.refuse(fields.Join(element(fields.Join(path, "metadata"), i), field), "%v", err)
		}
		r.matchers = append(r.matchers, x)
	}
	d, f := m.GetDirection(), m.GetRuntimeFraction()
	if d < corev3.TrafficDirection_UNSPECIFIED || d > corev3.TrafficDirection_OUTBOUND {
		c.refuse(fields.Join(path, "direction"), "unknown value %d", d)
	}
	labels := m.GetSourceLabels()
	if d != corev3.TrafficDirection_UNSPECIFIED || len(labels) > 0 || f != nil {
		r.gate = &gate{direction: d}
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		r.gate.labels = append(r.gate.labels, [2]string{key, labels[key]})
	}
	if f != nil {
		r.gate.share = c.fraction(f, fields.Join(path, "runtime_fraction"))
	}
}

// fraction is a share of messages. Its runtime_key is never set: there is no runtime.
func (c *compiler) fraction(f *corev3.RuntimeFractionalPercent, path string) fields.Fraction {
	share, err := fields.ParseFraction(f.GetDefaultValue())
	fields.Each(err, func(e *Error) { c.refuse(fields.Join(path+".default_value", e.Path), "%s", e.Reason) })
	return share
}

func (c *compiler) action(r *Route, a *routev1alpha.RouteAction, own changes, path string) {
	if r.Mirrors = c.mirrored; len(a.GetRequestMirrorPolicies()) > 0 {
		r.Mirrors = c.mirrors(a.GetRequestMirrorPolicies(), path+".request_mirror_policies")
	}
	all := c.join(&own, &c.table)
	r.Response = all.response
	switch {
	case a.GetWeightedClusters() != nil:
		c.weighted(r, a.GetWeightedClusters(), own, all, path+".weighted_clusters")
	case a.GetClusterFromMetadata() != nil:
		c.named(r, a.GetClusterFromMetadata(), all, path+".cluster_from_metadata")
	default:
		if a.GetCluster() == "" {
			c.refuse(path+".cluster", "required")
		}
		r.targets = []Target{{Cluster: a.GetCluster(), Request: all.request, Response: all.response, upTo: 1}}
	}
}

// join joins changes, given from the most specific to the least.
func (c *compiler) join(levels ...*changes) (all changes) {
	if c.specific {
		slices.Reverse(levels)
	}
	for _, l := range levels {
		all.request = append(all.request, l.request...)
		all.response = append(all.response, l.response...)
	}
	return all
}

func (c *compiler) named(r *Route, from *routev1alpha.ClusterFromMetadata, all changes, path string) {
	if r.property = from.GetName(); r.property == "" {
		c.refuse(path+".name", "required")
	}
	if len(from.GetAllowedClusters()) == 0 {
		c.refuse(path+".allowed_clusters", "required")
	}
	r.allowed = map[string]int{}
	for i, name := range from.GetAllowedClusters() {
		at := element(path+".allowed_clusters", i)
		if name == "" {
			c.refuse(at, "required")
		}
		if _, twice := r.allowed[name]; twice {
			c.refuse(at, "%q occurs twice", name)
		}
		r.allowed[name] = i
		r.targets = append(r.targets, Target{Cluster: name, Request: all.request, Response: all.response})
	}
}

func (c *compiler) weighted(r *Route, wc *routev3.WeightedCluster, own, all changes, path string) {
	c.only(wc.ProtoReflect(), path, "clusters", "total_weight")
	complete := true
	for i, w := range wc.GetClusters() {
		at := element(path+".clusters", i)
		c.only(w.ProtoReflect(), at, "name", "weight", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove", "typed_per_filter_config")
		if w.GetName() == "" {
			c.refuse(at+".name", "required")
		}
		if w.GetWeight() == nil {
			c.refuse(at+".weight", "required")
			complete = false
		}
		r.sum += uint64(w.GetWeight().GetValue())
		its := all
		if of := c.headers(w, at); of.any() {
			its = c.join(&of, &own, &c.table)
		}
		r.targets = append(r.targets, Target{w.GetName(), its.request, its.response, r.sum, c.overrides(w.GetTypedPerFilterConfig(), at+".")})
	}
	switch {
	case len(wc.GetClusters()) == 0:
		c.refuse(path+".clusters", "required")
	case r.sum == 0 && complete:
		c.refuse(path+".clusters", "the weights add up to 0")
	case r.sum > math.MaxUint32:
		c.refuse(path+".clusters", "the weights add up to more than %d", uint32(math.MaxUint32))
	case wc.TotalWeight != nil && uint64(wc.TotalWeight.GetValue()) != r.sum && complete:
		c.refuse(path+".total_weight", "the weights add up to %d, is %d", r.sum, wc.TotalWeight.GetValue())
	}
}

// only refuses the fields of m that are set and not named.
func (c *compiler) only(m protoreflect.Message, path string, names ...protoreflect.Name) {
	for f := range fields.Others(m, names...) {
		c.refuse(path+"."+string(f), "not supported")
	}
}
