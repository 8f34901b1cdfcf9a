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

func (r *Route) matches(md *codecs.Metadata) bool {
	for i := range r.matchers {
		if !r.matchers[i].matches(md) {
			return false
		}
	}
	return true
}

// Table is an immutable list of routes with an index.
type Table struct {
	routes []Route
	index  index
}

// Compile makes a table. rc has passed package config's checks; what is left
// to refuse are impossible matchers. Errors start with the field's path in rc.
func Compile(rc *routev1alpha.RouteConfiguration) (*Table, error) {
	t := &Table{routes: make([]Route, len(rc.GetRoutes()))}
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
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			r.matchers = append(r.matchers, m)
		}
		if wc := pr.GetRoute().GetWeightedClusters(); wc != nil {
			for _, c := range wc.GetClusters() {
				r.sum += uint64(c.GetWeight().GetValue())
				r.clusters = append(r.clusters, weighted{c.GetName(), r.sum})
			}
		} else {
			r.clusters = []weighted{{pr.GetRoute().GetCluster(), 1}}
		}
	}
	t.index.build(t.routes)
	return t, nil
}

// freezeMutation keeps the last value of each key.
func freezeMutation(kvs []*routev1alpha.KeyValue) []codecs.KeyValue {
	var mu codecs.Mutation
	for _, kv := range kvs {
		mu.Set(kv.GetKey(), kv.GetValue())
	}
	return mu.Entries()
}

// Match returns the first route that matches, nil if none does. A message that
// repeats a key on which routes are indexed more than maxRepeats times matches
// none.
func (t *Table) Match(md *codecs.Metadata) *Route {
	best := t.index.first(t.routes, md)
	if best < 0 {
		return nil
	}
	return &t.routes[best]
}
