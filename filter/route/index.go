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
	next    map[string]*node
	longest int     // of next's keys
	routes  []int32 // ascending, at the leaves
}

// build makes the index of routes; if there are no more than few all are others.
func (x *index) build(routes []Route, few int) {
	known := map[[maxDepth]int]int{}
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
		x.trie(keys, known).add(keys, values, int32(i))
	}
}

// trie returns the trie of keys. known has those that there are.
func (x *index) trie(keys []int, known map[[maxDepth]int]int) *trie {
	id := [maxDepth]int{unnumbered, unnumbered, unnumbered}
	copy(id[:], keys)
	i, there := known[id]
	if !there {
		i = len(x.tries)
		known[id] = i
		x.tries = append(x.tries, trie{keys: keys, root: &node{}})
	}
	return &x.tries[i]
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
			n.longest = max(n.longest, len(values[k]))
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
	fault  outcome // why it is not known whether best matches
}

// first returns the number of the first route that matches, -1 if none does,
// and the fault if it cannot be told whether it does.
func (x *index) first(routes []Route, v *view) (int32, outcome) {
	s := search{routes: routes, view: v, best: math.MaxInt32}
	for i := range x.tries {
		s.walk(x.tries[i].root, x.tries[i].keys)
	}
	s.try(x.others)
	if s.best == math.MaxInt32 {
		return -1, missing
	}
	return s.best, s.fault
}

func (s *search) walk(n *node, keys []int) {
	if len(keys) == 0 {
		s.try(n.routes)
		return
	}
	k := keys[0]
	if s.view.n[k] == 0 {
		return
	}
	child := n.child(s.view.props[s.view.first[k]].Value)
	if child != nil {
		s.walk(child, keys[1:])
	}
	if s.view.n[k] > 1 {
		s.walkAgain(n, keys, child)
	}
}

// walkAgain walks on by the further values of the first key. Each node is visited
// once, however often a value is repeated.
func (s *search) walkAgain(n *node, keys []int, child *node) {
	visited := [maxRepeats]*node{child}
	j := 1
	for at := s.view.again(keys[0]); at != nil; at = s.view.further(at) {
		if child := n.child(s.view.props[at.at].Value); child != nil && !slices.Contains(visited[:j], child) {
			visited[j] = child
			j++
			s.walk(child, keys[1:])
		}
	}
}

// child is the node behind n for a value, nil if there is none.
func (n *node) child(value []byte) *node {
	if len(value) > n.longest {
		return nil
	}
	return n.next[string(value)]
}

// try looks for a match among routes, as long as it would be a better one.
func (s *search) try(routes []int32) {
	for _, r := range routes {
		if r >= s.best {
			return
		}
		if s.routes[r].matches(s.view) && s.routes[r].gate.open(s.view) {
			s.best, s.fault = r, s.view.fault
			return
		}
	}
}
