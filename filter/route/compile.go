package route

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/meltemi-mesh/meltemi/codecs"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// maxMutations are the entries of one mutation.
const maxMutations = 1000

// Error is one fault of a RouteConfiguration.
type Error struct {
	// Path of the field in the RouteConfiguration.
	Path   string
	Reason string
}

func (e *Error) Error() string { return e.Path + ": " + e.Reason }

// Compile validates rc and makes a table of it, or returns all its faults. What
// routes set in messages has to pass the mutator; without one it is not known
// yet which codec is to do it.
func Compile(rc *routev1alpha.RouteConfiguration, mutator codecs.Mutator) (*Table, []*Error) {
	c := &compiler{mutator: mutator}
	c.mirrored = c.mirrors(rc.GetRequestMirrorPolicies(), "request_mirror_policies")
	t := &Table{routes: make([]Route, len(rc.GetRoutes()))}
	d := c.defaults(rc)
	h := c.hashing(rc)
	for i, r := range rc.GetRoutes() {
		c.route(&t.routes[i], r, d, h, element("routes", i))
	}
	if len(c.errs) > 0 {
		return nil, c.errs
	}
	t.clusters = d.clusters
	t.keys = rank(t.routes)
	number(t.routes)
	t.index.build(t.routes, fewRoutes)
	return t, nil
}

// compiler gathers faults.
type compiler struct {
	mutator  codecs.Mutator
	errs     []*Error
	mirrored []Mirror // of routes that do not say
}

func (c *compiler) refuse(path, format string, args ...any) {
	c.errs = append(c.errs, &Error{path, fmt.Sprintf(format, args...)})
}

func element(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }

func (c *compiler) route(r *Route, from *routev1alpha.Route, d *policies, h *Hash, path string) {
	r.Name = from.GetName()
	for i, h := range from.GetMatch().GetMetadata() {
		m, field, err := compileMatcher(h)
		if err != nil {
			at := fmt.Sprintf("%s.match.metadata[%d]", path, i)
			if field != "" {
				at += "." + field
			}
			c.refuse(at, "%v", err)
		}
		r.matchers = append(r.matchers, m)
	}
	c.action(r, from.GetRoute(), path+".route")
	r.Policy = c.policy(from.GetRoute(), d, path+".route")
	r.Hash = c.hash(from.GetRoute(), h, path+".route")
	r.RequestMutation = c.mutation(codecs.ClientToServer, from.GetRequestMutation(), path+".request_mutation")
	r.ResponseMutation = c.mutation(codecs.ServerToClient, from.GetResponseMutation(), path+".response_mutation")
}

func (c *compiler) action(r *Route, a *routev1alpha.RouteAction, path string) {
	if a == nil {
		c.refuse(path, "required")
		return
	}
	if r.Mirrors = c.mirrored; len(a.GetRequestMirrorPolicies()) > 0 {
		r.Mirrors = c.mirrors(a.GetRequestMirrorPolicies(), path+".request_mirror_policies")
	}
	if wc := a.GetWeightedClusters(); wc != nil {
		c.weighted(r, wc, path+".weighted_clusters")
		return
	}
	if a.GetCluster() == "" {
		c.refuse(path+".cluster", "required")
	}
	r.clusters = []weighted{{a.GetCluster(), 1}}
}

func (c *compiler) weighted(r *Route, wc *routev3.WeightedCluster, path string) {
	c.only(wc.ProtoReflect(), path, "clusters")
	complete := true
	for i, w := range wc.GetClusters() {
		at := fmt.Sprintf("%s.clusters[%d]", path, i)
		c.only(w.ProtoReflect(), at, "name", "weight")
		if w.GetName() == "" {
			c.refuse(at+".name", "required")
		}
		if w.GetWeight() == nil {
			c.refuse(at+".weight", "required")
			complete = false
		}
		r.sum += uint64(w.GetWeight().GetValue())
		r.clusters = append(r.clusters, weighted{w.GetName(), r.sum})
	}
	switch {
	case len(wc.GetClusters()) == 0:
		c.refuse(path+".clusters", "required")
	case r.sum == 0 && complete:
		c.refuse(path+".clusters", "the weights add up to 0")
	case r.sum > math.MaxUint32:
		c.refuse(path+".clusters", "the weights add up to more than %d", uint32(math.MaxUint32))
	}
}

// only refuses the fields of m that are set and not named.
func (c *compiler) only(m protoreflect.Message, path string, names ...protoreflect.Name) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); m.Has(f) && !slices.Contains(names, f.Name()) {
			c.refuse(path+"."+string(f.Name()), "not supported")
		}
	}
}

// mutation keeps the last value of each key.
func (c *compiler) mutation(d codecs.Direction, kvs []*routev1alpha.KeyValue, path string) []codecs.KeyValue {
	if len(kvs) > maxMutations {
		c.refuse(path, "at most %d entries, has %d", maxMutations, len(kvs))
	}
	var entries []codecs.KeyValue
	places := map[string]int{}
	for i, kv := range kvs {
		c.entry(d, kv.GetKey(), kv.GetValue(), fmt.Sprintf("%s[%d]", path, i))
		at, twice := places[kv.GetKey()]
		if !twice {
			at = len(entries)
			places[kv.GetKey()] = at
			entries = append(entries, codecs.KeyValue{Key: kv.GetKey()})
		}
		entries[at].Value = kv.GetValue()
	}
	return entries
}

// entry refuses what cannot be set in a message.
func (c *compiler) entry(d codecs.Direction, key, value, path string) {
	sound := true
	if n := len(key); n == 0 || n > codecs.MaxText {
		c.refuse(path+".key", "must have 1 to %d bytes, has %d", codecs.MaxText, n)
		sound = false
	}
	if n := len(value); n > codecs.MaxText {
		c.refuse(path+".value", "must have at most %d bytes, has %d", codecs.MaxText, n)
		sound = false
	}
	if c.mutator == nil || !sound {
		return
	}
	err := c.mutator.CheckMutation(d, key, value)
	if err == nil {
		return
	}
	// Codecs say which of the two it is.
	if field, reason, ok := strings.Cut(err.Error(), ": "); ok && (field == "key" || field == "value") {
		path, err = path+"."+field, errors.New(reason)
	}
	c.refuse(path, "%v", err)
}
