package codectest

import (
	"maps"
	"slices"
)

// Excuse is what a message need not do though the kit asks it of others.
type Excuse string

const (
	// Immutable: it cannot carry a mutation, and Encode may return
	// codecs.ErrNoMutation. Malformed messages always may.
	Immutable Excuse = "immutable"
	// LooseID: given another id and then its own again, it need not have its old
	// bytes again, but only mean the same: there are several ways to write an id, or
	// to leave it out.
	LooseID Excuse = "loose id"
	// Stateful: it leaves a connection in another state, or finds it in one, though
	// it is not of a stream and has no prelude: it is not decoded behind others, nor
	// they behind it.
	Stateful Excuse = "stateful"
	// NoErrorText: the text of a local error does not go onto the wire as it is.
	NoErrorText Excuse = "no error text"
	// Opaque: its payload cannot be read, as the message is compressed as a whole, or in
	// another serialization.
	Opaque Excuse = "opaque"
	// Allocates: decoding and encoding it may allocate.
	Allocates Excuse = "allocates"
)

// Excuses are those of one message, or of all in a capture, each with its reason.
// An excuse that is not needed is a fault.
type Excuses map[Excuse]string

// excused reports whether st has the excuse.
func (st *stream) excused(e Excuse) bool { _, ok := st.excuses[e]; return ok }

// need notes that st needs the excuse, and reports whether it has it.
func (c *check) need(st *stream, e Excuse) bool {
	if c.needed != nil {
		c.needed[st] = true
	}
	return st.excused(e)
}

// needless fails for the streams that have the excuse and have not needed it.
func (c *check) needless(e Excuse) {
	if c.light {
		return
	}
	for _, st := range c.streams {
		if st.excused(e) && !c.needed[st] {
			c.errorf("%s, %s: it is excused as %q, and has no need to be", st.name, st.dir, e)
		}
	}
}

// excusesAreKnown checks that the suite's excuses have names, and reasons.
func (c *check) excusesAreKnown() {
	for _, st := range c.streams {
		for _, e := range slices.Sorted(maps.Keys(st.excuses)) {
			if !slices.Contains([]Excuse{Immutable, LooseID, Stateful, NoErrorText, Opaque, Allocates}, e) {
				c.errorf("%s, %s: there is no excuse %q", st.name, st.dir, e)
			} else if st.excuses[e] == "" {
				c.errorf("%s, %s: the excuse %q has no reason", st.name, st.dir, e)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.s.CaptureExcuses)) {
		if !slices.ContainsFunc(c.streams, func(st *stream) bool { return st.kind == captured && st.name == name }) {
			c.errorf("Suite.CaptureExcuses: there is no capture %q", name)
		}
	}
}
