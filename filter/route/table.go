// Package route decides where requests go: tables of routes that are compiled
// once from their protos and matched against metadata without allocating, and
// the registry in which tables are replaced while connections use them.
package route

import (
	"fmt"

	"github.com/meltemi-mesh/meltemi/codecs"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Route is one frozen route.
type Route struct {
	// Name may be empty.
	Name string
	// RequestMutation and ResponseMutation are what the route sets in messages,
	// each key once. They must not be changed.
	RequestMutation, ResponseMutation []codecs.KeyValue

	matchers []matcher
	clusters []weighted
	sum      uint64
}

type weighted struct {
	name string
	upTo uint64 // sum of the weights up to and with this one
}

// PickCluster returns the cluster for a request: of weighted ones that which
// the random number rnd falls on.
func (r *Route) PickCluster(rnd uint64) string {
	if len(r.clusters) == 1 {
		return r.clusters[0].name
	}
	rnd %= r.sum
	for i := range r.clusters {
		if rnd < r.clusters[i].upTo {
			return r.clusters[i].name
		}
	}
	return r.clusters[len(r.clusters)-1].name // not reached: rnd < sum
}

// Clusters returns the names of the clusters that requests may go to.
func (r *Route) Clusters() []string {
	names := make([]string, len(r.clusters))
	for i := range r.clusters {
		names[i] = r.clusters[i].name
	}
	return names
}

// matches reports whether all rules hold. If that cannot be told it reports
// true, and v.fault is why.
func (r *Route) matches(v *view) bool {
	v.fault = missing
	for i := range r.matchers {
		if !r.matchers[i].matches(v) {
			return false
		}
	}
	return true
}

// Table is an immutable list of routes with an index.
type Table struct {
	routes []Route
	keys   []string // the names that rules look at, in the order of rank
	index  index
}

// Error is why a table is refused.
type Error struct {
	// Path of the field in the RouteConfiguration.
	Path string
	Err  error
}

func (e *Error) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Compile makes a table. It refuses impossible matchers and routes that lead
// nowhere; the rest of rc is package config's to check. A returned error is an
// *Error, the first of those that CompileAll returns.
func Compile(rc *routev1alpha.RouteConfiguration) (*Table, error) {
	t, errs := CompileAll(rc)
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return t, nil
}

// CompileAll is Compile for people: it returns all that is wrong.
func CompileAll(rc *routev1alpha.RouteConfiguration) (*Table, []*Error) {
	t := &Table{routes: make([]Route, len(rc.GetRoutes()))}
	var errs []*Error
	for i, pr := range rc.GetRoutes() {
		r := &t.routes[i]
		r.Name = pr.GetName()
		r.RequestMutation = freezeMutation(pr.GetRequestMutation())
		r.ResponseMutation = freezeMutation(pr.GetResponseMutation())
		for j, h := range pr.GetMatch().GetMetadata() {
			m, field, err := compileMatcher(h)
			if err != nil {
				path := fmt.Sprintf("routes[%d].match.metadata[%d]", i, j)
				if field != "" {
					path += "." + field
				}
				errs = append(errs, &Error{path, err})
			}
			r.matchers = append(r.matchers, m)
		}
		if field, err := r.freezeClusters(pr.GetRoute()); err != nil {
			errs = append(errs, &Error{fmt.Sprintf("routes[%d].route.%s", i, field), err})
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	t.keys = rank(t.routes)
	number(t.routes)
	t.index.build(t.routes, fewRoutes)
	return t, nil
}

func (r *Route) freezeClusters(a *routev1alpha.RouteAction) (field string, err error) {
	wc := a.GetWeightedClusters()
	if wc == nil {
		if a.GetCluster() == "" {
			return "cluster", fmt.Errorf("required")
		}
		r.clusters = []weighted{{a.GetCluster(), 1}}
		return "", nil
	}
	for i, c := range wc.GetClusters() {
		if c.GetName() == "" {
			return fmt.Sprintf("weighted_clusters.clusters[%d].name", i), fmt.Errorf("required")
		}
		r.sum += uint64(c.GetWeight().GetValue())
		r.clusters = append(r.clusters, weighted{c.GetName(), r.sum})
	}
	if r.sum == 0 {
		return "weighted_clusters.clusters", fmt.Errorf("the weights add up to 0")
	}
	return "", nil
}

// freezeMutation keeps the last value of each key.
func freezeMutation(kvs []*routev1alpha.KeyValue) []codecs.KeyValue {
	var entries []codecs.KeyValue
	at := map[string]int{}
	for _, kv := range kvs {
		i, twice := at[kv.GetKey()]
		if !twice {
			i = len(entries)
			at[kv.GetKey()] = i
			entries = append(entries, codecs.KeyValue{Key: kv.GetKey()})
		}
		entries[i].Value = kv.GetValue()
	}
	return entries
}

// Match returns the first route that matches, nil if none does or Find cannot
// tell.
func (t *Table) Match(md *codecs.Metadata) *Route {
	r, _ := t.Find(md)
	return r
}

// Find returns the first route that matches, nil if none does. What it costs is
// bounded: it returns ErrRepeated for a message that repeats keys at which the
// table's rules look too often, and ErrTooLong or ErrTooMuch if that ended the
// search for the first route.
func (t *Table) Find(md *codecs.Metadata) (*Route, error) {
	var v view
	defer v.done()
	if len(t.keys) > 0 {
		if err := v.locate(t.keys, md.Properties()); err != nil {
			return nil, err
		}
	}
	best, fault := t.index.first(t.routes, &v)
	if best < 0 || fault != missing {
		return nil, faults[fault]
	}
	return &t.routes[best], nil
}
