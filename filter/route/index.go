package route

import (
	"math"
	"slices"
)

const (
	// maxDepth bounds the keys of one route that are indexed: those with the
	// most values in the table.
	maxDepth = 3
	// fewRoutes are sooner tried than found.
	fewRoutes = 4
)

// index finds the routes that may match a message. Routes that compare some
// keys exactly are found by those keys' values, in a trie for each set of
// keys; the others are tried one after the other.
type index struct {
	tries  []trie
	others []int32 // ascending
}

type trie struct {
	keys []int // ascending
	root *node
}

type node struct {
	next   map[string]*node
	routes []int32 // ascending, at the leaves
}

// build makes the index of routes; if there are no more than few all are others.
func (x *index) build(routes []Route, few int) {
	for i := range routes {
		values := map[int]string{}
		var keys []int
		for j := range routes[i].matchers {
			m := &routes[i].matchers[j]
			if _, twice := values[m.key]; m.indexable() && m.key != unnumbered && !twice {
				values[m.key] = m.text
				keys = append(keys, m.key)
			}
		}
		if len(keys) == 0 || len(routes) <= few {
			x.others = append(x.others, int32(i))
			continue
		}
		slices.Sort(keys)
		keys = keys[:min(len(keys), maxDepth)]
		x.trie(keys).add(keys, values, int32(i))
	}
}

func (x *index) trie(keys []int) *trie {
	for i := range x.tries {
		if slices.Equal(x.tries[i].keys, keys) {
			return &x.tries[i]
		}
	}
	x.tries = append(x.tries, trie{keys: keys, root: &node{}})
	return &x.tries[len(x.tries)-1]
}

func (t *trie) add(keys []int, values map[int]string, route int32) {
	n := t.root
	for _, k := range keys {
		if n.next == nil {
			n.next = map[string]*node{}
		}
		child := n.next[values[k]]
		if child == nil {
			child = &node{}
			n.next[values[k]] = child
		}
		n = child
	}
	n.routes = append(n.routes, route)
}

// search is one run through the index.
type search struct {
	routes []Route
	view   *view
	best   int32
}

// first returns the number of the first route that matches, -1 if none does.
func (x *index) first(routes []Route, v *view) int32 {
	s := search{routes: routes, view: v, best: math.MaxInt32}
	for i := range x.tries {
		s.walk(x.tries[i].root, x.tries[i].keys)
	}
	s.try(x.others)
	if s.best == math.MaxInt32 {
		return -1
	}
	return s.best
}

func (s *search) walk(n *node, keys []int) {
	if len(keys) == 0 {
		s.try(n.routes)
		return
	}
	k := keys[0]
	i := s.view.first[k]
	for j := range s.view.n[k] {
		if j > 0 {
			i = s.view.next(k, i)
		}
		if child := n.next[string(s.view.props[i].Value)]; child != nil {
			s.walk(child, keys[1:])
		}
	}
}

// try looks for a match among routes, as long as it would be a better one.
func (s *search) try(routes []int32) {
	for _, r := range routes {
		if r >= s.best {
			return
		}
		if s.routes[r].matches(s.view) {
			s.best = r
			return
		}
	}
}
