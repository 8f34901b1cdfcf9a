package codectest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
)

const (
	// maxBehind is how many of a capture's frames are decoded behind others.
	maxBehind = 8
	// partners a capture is tried with, in both orders.
	partners = 4
)

// orders checks that a decoder that has seen one message takes nothing of it for
// the next: each message is decoded behind each other one, on one decoder, and
// all of them in orders by lot, in pieces. Streams and what has a prelude are
// left out, as connections have a state there, and a connection has one variant.
func (c *check) orders() {
	type group struct {
		dir     codecs.Direction
		variant uint8
	}
	groups := map[group][]*stream{}
	stateful := map[group][]*stream{}
	for _, st := range c.streams {
		variant, ok := c.stateless(st)
		g := group{st.dir, variant}
		switch {
		case st.excused(Stateful):
			stateful[g] = append(stateful[g], st)
		case ok:
			groups[g] = append(groups[g], st.head(maxBehind))
		}
	}
	for g, sts := range stateful {
		for _, st := range sts {
			if c.hasState(st, slices.Concat(groups[g], sts)) {
				c.need(st, Stateful)
			}
		}
	}
	c.needless(Stateful)
	r := lots(0)
	for d := range codecs.Direction(2) {
		for v := range 256 {
			c.inAllOrders(r, groups[group{d, uint8(v)}])
		}
	}
}

// hasState reports whether st is another behind one of the others, or one of them
// behind it.
func (c *check) hasState(st *stream, others []*stream) bool {
	quiet := *c
	quiet.t = new(faults)
	for _, other := range others {
		fine := quiet.attempt(func() {
			quiet.behind(st, other)
			quiet.behind(other, st)
		})
		if !fine {
			return true
		}
	}
	return false
}

func (c *check) inAllOrders(r *rand.Rand, sts []*stream) {
	failed := !c.eachOf(sts, func(st *stream) {
		for i, other := range sts {
			if st.kind == captured || other.kind == captured {
				if i >= partners {
					continue
				}
				other = sts[r.IntN(len(sts))]
				c.behind(other, st)
			}
			c.behind(st, other)
		}
	})
	if len(sts) < 2 || failed {
		return // what two show, more of them need not
	}
	for round := range rounds {
		all := &stream{name: fmt.Sprintf("all of them in the order of lot %d", round), dir: sts[0].dir}
		for _, i := range r.Perm(len(sts)) {
			all.append(sts[i])
		}
		c.attempt(func() {
			c.inPieces(all, "in pieces", func() int { return 1 + r.IntN(8<<(round/2)) })
		})
	}
}

// stateless reports whether what st is does not depend on what came before, and
// of which variant it is. Of answers the requests are known, all of them.
func (c *check) stateless(st *stream) (variant uint8, ok bool) {
	variant = st.frames[0].meta.Variant
	before := 0
	for _, f := range st.frames {
		unasked := isAnswer(f.meta.Type) && f.taken == before && c.seesRequests()
		if isStream(f.meta.Type) || f.meta.StreamID != 0 || f.meta.Variant != variant || unasked {
			return variant, false
		}
		before = f.taken
	}
	return variant, st.first == 0 && before == len(st.requests)
}

// head is st up to some frames of it.
func (st *stream) head(n int) *stream {
	if len(st.frames) <= n {
		return st
	}
	short := *st
	short.frames = st.frames[:n]
	short.bytes = st.bytes[:st.frames[n].at]
	short.requests = st.requests[:st.frames[n-1].taken]
	return &short
}

// append puts other behind st.
func (st *stream) append(other *stream) {
	at, taken := len(st.bytes), len(st.requests)
	st.bytes = append(st.bytes, other.bytes...)
	st.requests = append(st.requests, other.requests...)
	for _, f := range other.frames {
		st.frames = append(st.frames, frame{at + f.at, f.n, f.meta, taken + f.taken})
	}
}

// behind decodes st behind other.
func (c *check) behind(other, st *stream) {
	both := &stream{dir: st.dir}
	both.append(other)
	both.append(st)
	dec := c.decoder(both)
	var m codecs.Metadata
	for k := range both.frames {
		w := where{stream: other, frame: k, doing: "the first of two"}
		if i := k - len(other.frames); i >= 0 {
			w = where{stream: st, frame: i, doing: "behind " + other.name, with: shown{"behind", other.bytes}}
		}
		c.whole(w, dec, &m, both.frame(k), both.frames[k].n)
		c.sameAnswer(w, dec, both.frame(k), both.frames[k], &m)
	}
}
