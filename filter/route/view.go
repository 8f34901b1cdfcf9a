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

// view is a message as the rules of a table see it.
type view struct {
	props []codecs.Property
	n     [maxKeys]uint8
	at    [maxKeys][maxRepeats]uint16
}

// locate finds the keys among the properties. It reports false if the message
// repeats one too often.
func (v *view) locate(keys []string, props []codecs.Property) bool {
	if len(props) > math.MaxUint16 {
		return false
	}
	v.props = props
	keys = keys[:min(len(keys), maxKeys)]
	for i := range props {
		name := props[i].Name
		for k, key := range keys {
			if len(name) != len(key) || !codecs.EqualFold(name, key) {
				continue
			}
			if v.n[k] == maxRepeats {
				return false
			}
			v.at[k][v.n[k]] = uint16(i)
			v.n[k]++
			break
		}
	}
	return true
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
