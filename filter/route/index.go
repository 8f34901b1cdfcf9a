package route

import (
	"math"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
)

const (
	// maxRepeats bounds how often a message may repeat a key: the index tries
	// all combinations.
	maxRepeats = 8
	// maxNames bounds the keys that are indexed; further ones are only
	// verified.
	maxNames = 16
	// maxDepth bounds the keys of one route that are indexed.
	maxDepth = 3
)

// index finds the routes that may match a message. Routes that compare some
// keys exactly are found by those keys' values, in a trie for each set of
// keys; the others are tried one after the other.
type index struct {
	names  []string // all indexed keys, in lower case
	tries  []trie
	others []int32
}

type trie struct {
	names []int // numbers in index.names, ascending
	root  *node
}

type node struct {
	next   map[string]*node
	routes []int32 // ascending, at the leaves
}

func (x *index) build(routes []Route) {
	numbers := map[string]int{}
	number := func(name string) (int, bool) {
		n, ok := numbers[name]
		if !ok && len(numbers) < maxNames {
			n, ok = len(numbers), true
			numbers[name] = n
			x.names = append(x.names, name)
		}
		return n, ok
	}
	for i := range routes {
		values := map[int]string{}
		var keys []int
		for j := range routes[i].matchers {
			m := &routes[i].matchers[j]
			if !m.indexable() || len(keys) == maxDepth {
				continue
			}
			n, ok := number(m.name)
			if _, twice := values[n]; ok && !twice {
				values[n] = m.text
				keys = append(keys, n)
			}
		}
		if len(keys) == 0 {
			x.others = append(x.others, int32(i))
			continue
		}
		slices.Sort(keys)
		x.trie(keys).add(keys, values, int32(i))
	}
}

func (x *index) trie(keys []int) *trie {
	for i := range x.tries {
		if slices.Equal(x.tries[i].names, keys) {
			return &x.tries[i]
		}
	}
	x.tries = append(x.tries, trie{names: keys, root: &node{}})
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

// occurrences are the places of a message's properties that are indexed.
type occurrences struct {
	n  [maxNames]uint8
	at [maxNames][maxRepeats]uint16
}

// search is one run through the index.
type search struct {
	routes []Route
	md     *codecs.Metadata
	props  []codecs.Property
	occ    occurrences
	best   int32
}

// first returns the number of the first route that matches, -1 if none does.
func (x *index) first(routes []Route, md *codecs.Metadata) int32 {
	s := search{routes: routes, md: md, props: md.Properties(), best: math.MaxInt32}
	if len(x.tries) > 0 {
		if len(s.props) > math.MaxUint16 || !x.locate(&s) {
			return -1
		}
		for i := range x.tries {
			t := &x.tries[i]
			s.walk(t.root, t.names)
		}
	}
	s.try(x.others)
	if s.best == math.MaxInt32 {
		return -1
	}
	return s.best
}

// locate finds the indexed keys among the properties.
func (x *index) locate(s *search) bool {
	for i := range s.props {
		name := s.props[i].Name
		for n, want := range x.names {
			if len(name) != len(want) || !codecs.EqualFold(name, want) {
				continue
			}
			if s.occ.n[n] == maxRepeats {
				return false
			}
			s.occ.at[n][s.occ.n[n]] = uint16(i)
			s.occ.n[n]++
			break
		}
	}
	return true
}

func (s *search) walk(n *node, names []int) {
	if len(names) == 0 {
		s.try(n.routes)
		return
	}
	k := names[0]
	for _, at := range s.occ.at[k][:s.occ.n[k]] {
		if child := n.next[string(s.props[at].Value)]; child != nil {
			s.walk(child, names[1:])
		}
	}
}

// try looks for a match among routes, as long as it would be a better one.
func (s *search) try(routes []int32) {
	for _, r := range routes {
		if r >= s.best {
			return
		}
		if s.routes[r].matches(s.md) {
			s.best = r
			return
		}
	}
}
