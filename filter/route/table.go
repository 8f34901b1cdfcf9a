// Package route decides where requests go: tables of routes that are compiled
// once from their protos and matched against metadata without allocating, and
// the registry in which tables are replaced while connections use them.
package route

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/forward"
)

// Route is one frozen route.
type Route struct {
	// Name may be empty.
	Name string
	// RequestMutation and ResponseMutation are what the route sets in messages,
	// each key once. They must not be changed.
	RequestMutation, ResponseMutation []codecs.KeyValue
	// Policy is what requests get beyond one attempt, nil: nothing.
	Policy *forward.Policy
	// Hash is what requests choose their hosts by, nil: nothing.
	Hash *Hash

	// Mirrors are who gets copies of the requests, nil if nobody does. They must
	// not be changed.
	Mirrors []Mirror

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
	// clusters are those of which the table says something, nil if there are none.
	clusters map[string]*Cluster
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
