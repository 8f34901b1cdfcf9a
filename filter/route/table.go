// Package route decides where requests go: tables of routes that are compiled
// once from their protos and matched against metadata without allocating, and
// the registry in which tables are replaced while connections use them.
package route

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/forward"
)

// Route is one frozen route.
type Route struct {
	// Name may be empty.
	Name string
	// Direct is the error with which all requests of the route are answered, or Success the
	// payload; both nil if they go to a Target. They must not be changed.
	Direct  *codecs.LocalError
	Success *codecs.Payload
	// Response is what the route changes in an answer whoever has sent it; see Target.
	Response Mutation
	// Policy is what requests get beyond one attempt, nil: nothing.
	Policy *forward.Policy
	// Hash is what requests choose their hosts by, nil: nothing.
	Hash *Hash

	// Mirrors are who gets copies of the requests, nil if nobody does. They must
	// not be changed.
	Mirrors []Mirror

	overrides []Override
	differs   bool // of a target

	matchers []matcher
	gate     *gate // nil: always open
	targets  []Target
	sum      uint64 // of the weights
	property string // that names the target, "" if none does
	allowed  map[string]int
}

// Target is a cluster that a route's requests may go to.
type Target struct {
	Cluster string
	// Request and Response are what changes in a request on its way there, and in
	// its answer.
	Request, Response Mutation

	upTo      uint64     // sum of the weights up to and with this one
	overrides []Override // with those of the route; nil: it has none of its own
}

// Origin is where a message comes from, beside what it says itself.
type Origin struct {
	// Direction of its listener.
	Direction corev3.TrafficDirection
	// Labels of its workload, nil if they are not known.
	Labels map[string]string
}

// gate is what a route asks of a request beside its metadata.
type gate struct {
	direction corev3.TrafficDirection // UNSPECIFIED: any
	labels    [][2]string             // keys and values
	share     fields.Fraction         // of the requests; Of is 0: all
}

func (g *gate) open(v *view) bool {
	if g == nil {
		return true
	}
	if g.direction != corev3.TrafficDirection_UNSPECIFIED && g.direction != v.from.Direction {
		return false
	}
	for i := range g.labels {
		if value, known := v.from.Labels[g.labels[i][0]]; !known || value != g.labels[i][1] {
			return false
		}
	}
	return g.share.Of == 0 || g.share.Has(v.rnd)
}

// Pick returns where a request goes: of weighted clusters that which the random
// number rnd falls on. It returns an error that says why if the request itself has to
// name a cluster, and does not name one that it may.
func (r *Route) Pick(rnd uint64, md *codecs.Metadata) (*Target, error) {
	switch {
	case r.property != "":
		return r.named(md)
	case len(r.targets) == 1:
		return &r.targets[0], nil
	}
	rnd %= r.sum
	i := 0
	for rnd >= r.targets[i].upTo { // rnd < sum
		i++
	}
	return &r.targets[i], nil
}

// named returns the target that the request names.
func (r *Route) named(md *codecs.Metadata) (*Target, error) {
	name, there := md.Get(r.property)
	if !there {
		return nil, fmt.Errorf("the request names no cluster by its %s", r.property)
	}
	i, is := r.allowed[string(name)]
	if !is {
		return nil, fmt.Errorf("the request may not name the cluster %.80q by its %s", name, r.property)
	}
	return &r.targets[i], nil
}

// Clusters returns the names of the clusters that requests may go to.
func (r *Route) Clusters() []string {
	names := make([]string, len(r.targets))
	for i := range r.targets {
		names[i] = r.targets[i].Cluster
	}
	return names
}

// matches reports whether all rules on metadata hold. If that cannot be told it reports
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
	// clusters are those that the table names, others what it says of the rest.
	clusters map[string]*Cluster
	others   *Cluster
	draws    bool // routes ask for a share
	// key is the table's own for shapes of messages, whose route depends on nothing but
	// their properties; 0: it depends on more.
	key uint64
	// late: they look at what messages that share a shape may have beside it.
	late bool
	// overridden are the filters of which it or a route says something.
	overridden []string
}

// Match is Find for tables whose routes ask for nothing but metadata, without the
// reason why it cannot tell.
func (t *Table) Match(md *codecs.Metadata) *Route {
	r, _ := t.Find(md, Origin{}, nil)
	return r
}

// Find returns the first route that matches a message of that origin, nil if none does. If routes take a share of the messages, one number is
// drawn from rng for all of them. What it costs is bounded: it returns ErrRepeated for a
// message that repeats keys at which the table's rules look too often, and ErrTooLong
// or ErrTooMuch if that ended the search for the first route.
func (t *Table) Find(md *codecs.Metadata, from Origin, rng rand.Source) (*Route, error) {
	var spent Spent
	return t.search(md, from, rng, &spent)
}

// search is Find for who has spent something before.
func (t *Table) search(md *codecs.Metadata, from Origin, rng rand.Source, spent *Spent) (*Route, error) {
	shape := md.Shape()
	if shape != nil && md.Beside(t.keys) {
		md.Properties() // together
		shape = nil
	}
	if shape == nil || t.key == 0 {
		i, err := t.find(md, from, rng, spent)
		return t.at(i), err
	}
	i, known := shape.Find(t.key)
	if !known && slices.ContainsFunc(t.keys, shape.Varies) {
		i, known = varies, true
		shape.Keep(t.key, i)
	}
	switch {
	case known && i != varies:
		return t.at(i), nil
	case known:
		md.Properties() // with what varies
	}
	i, err := t.find(md, from, rng, spent)
	if !known && err == nil {
		shape.Keep(t.key, i)
	}
	return t.at(i), err
}

// at returns a route by its number, nil for none.
func (t *Table) at(i int32) *Route {
	if i < 0 {
		return nil
	}
	return &t.routes[i]
}

// find is Find by the rules.
func (t *Table) find(md *codecs.Metadata, from Origin, rng rand.Source, spent *Spent) (int32, error) {
	var v view
	v.from, v.spent = from, int(*spent)
	if t.draws {
		v.rnd = rng.Uint64()
	}
	defer v.done()
	i, err := t.first(md, &v)
	*spent = Spent(v.spent)
	return i, err
}

func (t *Table) first(md *codecs.Metadata, v *view) (int32, error) {
	if len(t.keys) > 0 {
		props := md.Known()
		if t.late {
			props = md.Properties()
		}
		if err := v.locate(t.keys, props); err != nil {
			return none, err
		}
	}
	best, fault := t.index.first(t.routes, v)
	if best < 0 || fault != missing {
		return none, faults[fault]
	}
	return best, nil
}

const (
	// none is no number of a route.
	none = -1
	// varies stands for a shape's route that depends on what is not the same for all
	// messages that share it.
	varies = -2
)

// tables counts the tables that there were.
var tables atomic.Uint64
