package route

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
)

const (
	// maxKeys bounds the keys whose places in a message are looked up once; a
	// rule on any other searches for it by itself, and is not indexed.
	maxKeys = 32
	// maxRepeats bounds how often a message may repeat one of them. Rules look
	// at each value, and the index at each combination.
	maxRepeats = 8
	// unnumbered are the keys of a table that has more than maxKeys.
	unnumbered = -1
)

// view is a message as the rules of a table see it. There is one for each
// request, so it is small: what a message repeats is searched for again.
type view struct {
	keys  []string
	props []codecs.Property
	n     [maxKeys]uint8  // how often the message has a key
	first [maxKeys]uint16 // where it does first
}

// locate finds the keys among the properties. It reports false if the message
// repeats one too often.
func (v *view) locate(keys []string, props []codecs.Property) bool {
	if len(props) > math.MaxUint16 {
		return false
	}
	keys = keys[:min(len(keys), maxKeys)]
	v.keys, v.props = keys, props
	for i := range props {
		name := props[i].Name
		for k, key := range keys {
			if len(name) != len(key) || !codecs.EqualFold(name, key) {
				continue
			}
			switch v.n[k] {
			case 0:
				v.first[k] = uint16(i)
			case maxRepeats:
				return false
			}
			v.n[k]++
			break
		}
	}
	return true
}

// next returns the place of key k that follows the one at i. There must be one.
func (v *view) next(k int, i uint16) uint16 {
	for i++; !codecs.EqualFold(v.props[i].Name, v.keys[k]); i++ {
	}
	return i
}

// rank orders the keys that the routes' rules look at, those that tell most
// routes apart by an exact value first, and numbers the rules accordingly.
func rank(routes []Route) []string {
	type use struct {
		values map[string]struct{}
		rules  int
	}
	uses := map[string]*use{}
	for i := range routes {
		for j := range routes[i].matchers {
			m := &routes[i].matchers[j]
			u := uses[m.name]
			if u == nil {
				u = &use{values: map[string]struct{}{}}
				uses[m.name] = u
			}
			u.rules++
			if m.indexable() {
				u.values[m.text] = struct{}{}
			}
		}
	}
	keys := slices.SortedFunc(maps.Keys(uses), func(a, b string) int {
		return cmp.Or(
			cmp.Compare(len(uses[b].values), len(uses[a].values)),
			cmp.Compare(uses[b].rules, uses[a].rules),
			cmp.Compare(a, b))
	})
	numbers := make(map[string]int, len(keys))
	for k, name := range keys {
		if numbers[name] = k; k >= maxKeys {
			numbers[name] = unnumbered
		}
	}
	for i := range routes {
		for j := range routes[i].matchers {
			m := &routes[i].matchers[j]
			m.key = numbers[m.name]
		}
	}
	return keys
}
