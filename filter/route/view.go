package route

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/meltemi-mesh/meltemi/codecs"
)

const (
	// MaxValueBytes is the longest value at which a regular expression, a
	// contains or a range looks.
	MaxValueBytes = 8 << 10
	// maxSteps bounds what the rules of a table may cost for one message, in
	// steps of a program: some 2 ms.
	maxSteps = 500_000
	// maxKeys bounds the keys whose places in a message are looked up once; a
	// rule on any other searches for it by itself, and is not indexed.
	maxKeys = 32
	// maxRepeats bounds how often a message may repeat one of them, maxAgain how
	// often it may repeat all of them together. Rules look at each value.
	maxRepeats, maxAgain = 8, 64
	// unnumbered are the keys of a table that has more than maxKeys.
	unnumbered = -1
)

// Why no route was found although one might match: the rules would have cost
// too much.
var (
	ErrTooLong  = fmt.Errorf("a value that rules look at has more than %d bytes", MaxValueBytes)
	ErrTooMuch  = errors.New("the rules would cost too much")
	ErrRepeated = errors.New("a property that rules look at is repeated too often")
)

var faults = [...]error{tooLong: ErrTooLong, tooMuch: ErrTooMuch}

// linear is the cost of work on n bytes that is not a program's.
func linear(n int) int { return 1 + n/4 }

// view is a message as the rules of a table see it. There is one for each
// request, so it is small.
type view struct {
	props []codecs.Property
	n     [maxKeys]uint8  // how often the message has a key
	first [maxKeys]uint16 // where it does first

	from Origin
	rnd  uint64 // if routes ask for a share

	spent int     // steps
	fault outcome // of the route that was tried last: tooLong, tooMuch, or none
	run   *work   // nil until it is needed
}

// locate finds the keys among the properties. It returns an error if that, or
// what rules would do with them, costs too much.
func (v *view) locate(keys []string, props []codecs.Property) error {
	if len(props) > math.MaxUint16 {
		return ErrTooMuch
	}
	keys = keys[:min(len(keys), maxKeys)]
	v.props = props
	v.spent += linear(len(keys) * len(props))
	for i := range props {
		if v.spent > maxSteps {
			return ErrTooMuch
		}
		name := props[i].Name
		for k, key := range keys {
			if len(name) != len(key) {
				continue
			}
			v.spent += linear(len(key))
			if !codecs.EqualFold(name, key) {
				continue
			}
			if v.n[k]++; v.n[k] == 1 {
				v.first[k] = uint16(i)
			} else if !v.repeat(k, uint16(i)) {
				return ErrRepeated
			}
			break
		}
	}
	return nil
}

// repeat notes that key k is at i, too.
func (v *view) repeat(k int, i uint16) bool {
	w := v.work()
	if v.n[k] > maxRepeats || w.links == maxAgain {
		return false
	}
	link := &w.again[k]
	for *link != 0 {
		link = &w.repeats[*link-1].next
	}
	w.repeats[w.links] = repeat{at: i}
	w.links++
	*link = w.links
	return true
}

// again is where key k, which the message repeats, is for the second time.
func (v *view) again(k int) *repeat { return &v.run.repeats[v.run.again[k]-1] }

// further is the place behind r, nil if there is none.
func (v *view) further(r *repeat) *repeat {
	if r.next == 0 {
		return nil
	}
	return &v.run.repeats[r.next-1]
}

// work is what rules need and remember of the few messages of which more is to
// be known than where their keys are first, and what is equal.
type work struct {
	machine machine
	// memo has what each test has found, and in the message of which turn.
	memo []uint32
	turn uint32

	again   [maxKeys]uint8 // link to where the message has a key again
	repeats [maxAgain]repeat
	links   uint8 // of repeats that are used
}

// repeat is a further place of a key, and the link to the one behind it, 0 if
// there is none.
type repeat struct {
	at   uint16
	next uint8
}

const maxTurn = 1<<29 - 1 // with an outcome it is a uint32

var works = sync.Pool{New: func() any { return new(work) }}

func (v *view) work() *work {
	if v.run == nil {
		v.run, _ = works.Get().(*work)
		if v.run.turn++; v.run.turn > maxTurn {
			clear(v.run.memo)
			v.run.turn = 1
		}
		v.run.again, v.run.links = [maxKeys]uint8{}, 0
	}
	return v.run
}

func (v *view) done() {
	if v.run != nil {
		works.Put(v.run)
	}
}

func (w *work) known(test int) (o outcome, known bool) {
	if test >= len(w.memo) || w.memo[test]>>3 != w.turn {
		return 0, false
	}
	return outcome(w.memo[test] & 7), true
}

func (w *work) learn(test int, o outcome) {
	if test >= len(w.memo) {
		w.memo = append(w.memo, make([]uint32, test+1-len(w.memo))...)
	}
	w.memo[test] = w.turn<<3 | uint32(o)
}

// number gives rules that ask the same of the same key one number, and equal
// expressions one program.
func number(routes []Route) {
	type ask struct {
		name, text string
		kind       kind
		fold       bool
	}
	tests := map[ask]int{}
	programs := map[string]*program{}
	for i := range routes {
		for j := range routes[i].matchers {
			m := &routes[i].matchers[j]
			if m.kind != contains && m.kind != regex {
				continue
			}
			a := ask{m.name, m.text, m.kind, m.fold}
			if _, known := tests[a]; !known {
				tests[a] = len(tests)
			}
			m.test = tests[a]
			if m.kind == regex {
				if programs[m.text] == nil {
					programs[m.text] = m.re
				}
				m.re = programs[m.text]
			}
		}
	}
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
