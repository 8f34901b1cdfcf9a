package rbac

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"github.com/meltemi-mesh/meltemi/filter/route"
)

// index finds the policies that can match a request, by what they need to match: a
// value that the path, its service or method, or a property has to have.
type index struct {
	by   []values
	rest []uint64 // set of the policies that need nothing of the kind
}

// dimension is what a value is one of: the path, its service or method, its first or last
// bytes, or a property by the number of its key.
type dimension int

const (
	byPath    dimension = -1
	byService dimension = -2
	byMethod  dimension = -3
	byHead    dimension = -4
	byTail    dimension = -5
)

// few are so many bytes of a path by which rules are told apart that know neither its
// service nor its method.
const few = 4

// values are those of one dimension that policies need.
type values struct {
	dimension dimension
	policies  map[string][]int32 // ascending
}

// needs are, for each dimension, the values of which a request must have one if a
// node shall hold.
type needs map[dimension]map[string]bool

func (x *index) build(e *engine) {
	all := make([]needs, len(e.policies))
	total := needs{}
	for i := range e.policies {
		all[i] = e.needs(&e.policies[i].node)
		for d, vs := range all[i] {
			total.add(d, vs)
		}
	}
	// What has most values tells most policies apart.
	order := slices.SortedFunc(maps.Keys(total), func(a, b dimension) int {
		return cmp.Or(cmp.Compare(len(total[b]), len(total[a])), cmp.Compare(a, b))
	})
	x.rest = make([]uint64, (len(e.policies)+63)/64)
	places := map[dimension]int{}
	for i, n := range all {
		at := slices.IndexFunc(order, func(d dimension) bool { return n[d] != nil })
		if at < 0 {
			x.rest[i/64] |= 1 << (i % 64)
			continue
		}
		d := order[at]
		place, there := places[d]
		if !there {
			place = len(x.by)
			places[d] = place
			x.by = append(x.by, values{d, map[string][]int32{}})
		}
		for v := range n[d] {
			x.by[place].policies[v] = append(x.by[place].policies[v], int32(i))
		}
	}
}

// needs of a node. What holds without any value has none.
func (e *engine) needs(n *node) needs {
	switch n.kind {
	case operation:
		return e.ofPath(route.TextRule(n.number))
	case property:
		if key, value, ok := e.rules.Exact(route.Rule(n.number)); ok {
			return needs{dimension(key): {value: true}}
		}
	case and:
		// It is enough to look at one of those that ask for the same.
		all := needs{}
		for i := range n.of {
			for d, vs := range e.needs(&n.of[i]) {
				if all[d] == nil || len(vs) < len(all[d]) {
					all[d] = vs
				}
			}
		}
		return all
	case or:
		all := e.needs(&n.of[0])
		for i := range n.of[1:] {
			next := e.needs(&n.of[1+i])
			for d := range all {
				if next[d] == nil {
					delete(all, d)
				} else {
					all.add(d, next[d])
				}
			}
		}
		return all
	}
	return needs{}
}

func (n needs) add(d dimension, values map[string]bool) {
	if n[d] == nil {
		n[d] = map[string]bool{}
	}
	maps.Copy(n[d], values)
}

func (e *engine) ofPath(rule route.TextRule) needs {
	n := needs{}
	part, text := e.rules.Needs(rule)
	one := func(d dimension, value []byte) {
		if value != nil {
			n.add(d, map[string]bool{string(value): true})
		}
	}
	if part == route.Whole {
		one(byPath, []byte(text))
	}
	if part == route.Whole || part == route.Start {
		one(byService, service([]byte(text)))
		one(byHead, head([]byte(text)))
	}
	if part == route.Whole || part == route.End {
		one(byMethod, lastPart([]byte(text)))
		one(byTail, tail([]byte(text)))
	}
	return n
}

// service is what a path begins with up to its second slash, nil if it has none.
func service(path []byte) []byte {
	if len(path) == 0 || path[0] != '/' {
		return nil
	}
	i := bytes.IndexByte(path[1:], '/')
	if i < 0 {
		return nil
	}
	return path[:i+2]
}

// lastPart is what a path ends with from its last slash on, nil if it has none.
func lastPart(path []byte) []byte {
	if i := bytes.LastIndexByte(path, '/'); i >= 0 {
		return path[i:]
	}
	return nil
}

// head is what a path begins with, nil if it is too short to tell.
func head(path []byte) []byte {
	if len(path) < few {
		return nil
	}
	return path[:few]
}

// tail is what a path ends with, nil if it is too short to tell.
func tail(path []byte) []byte {
	if len(path) < few {
		return nil
	}
	return path[len(path)-few:]
}

// search tries the policies that are indexed and can match.
func (x *look) search(in *index) {
	for i := range in.by {
		by := &in.by[i]
		var value []byte
		switch by.dimension {
		case byPath:
			value = x.operation()
		case byService:
			value = service(x.operation())
		case byMethod:
			value = lastPart(x.operation())
		case byHead:
			value = head(x.operation())
		case byTail:
			value = tail(x.operation())
		default:
			only, n := x.begun().Only(int(by.dimension))
			if n > 1 { // whatever is among them: it cannot be told, or is seldom
				x.tryAll(x.standing.alive)
				return
			}
			value = only
			if n == 0 {
				continue
			}
		}
		for _, p := range by.policies[string(value)] {
			if x.standing.alive[p/64]>>(p%64)&1 != 0 && x.try(int(p)) {
				break
			}
		}
	}
}
