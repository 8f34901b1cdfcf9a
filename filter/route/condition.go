package route

import (
	"math/rand/v2"

	"github.com/meltemi-mesh/meltemi/codecs"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Match is a condition on messages outside of a table. It is immutable.
type Match struct {
	table Table // of one route
}

// CompileMatch validates m and makes a condition of it, or returns all its faults. A
// nil m holds for all messages.
func CompileMatch(m *routev1alpha.RouteMatch) (*Match, []*Error) {
	c := &compiler{}
	x := &Match{Table{routes: make([]Route, 1)}}
	c.matches(&x.table.routes[0], m, "")
	if len(c.errs) > 0 {
		return nil, c.errs
	}
	x.table.settle()
	return x, nil
}

// Spent is what somebody's conditions have cost for a message, in steps. Together they may
// cost as much as a table's rules.
type Spent int

// All reports whether nothing is left: no further condition on properties can be told.
func (s Spent) All() bool { return s > maxSteps }

// Matches reports whether the condition holds for a message of that origin. What it costs is bounded: the error is one of those of [Table.Find]. It
// draws a number from rng if it is for a share of the messages. What it costs is added to
// spent.
func (x *Match) Matches(md *codecs.Metadata, from Origin, rng rand.Source, spent *Spent) (bool, error) {
	if len(x.table.keys) > 0 && spent.All() {
		return false, ErrTooMuch
	}
	r, err := x.table.search(md, from, rng, spent)
	return r != nil, err
}
