package codectest

import (
	"testing"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// allocations checks that messages are decoded and encoded without allocating,
// with their own ids and with others, without a mutation and with one.
func (c *check) allocations() {
	c.each(sound, func(st *stream) {
		w := where{stream: st, frame: len(st.frames) - 1}
		j := c.job(w, st.dir, c.decoder(st), 0)
		if j.mut != nil && !c.canMutate(st) {
			j.mut = nil // errors may allocate
		}
		if j.payloader != nil && !c.canRead(st) {
			j.payloader = nil
		}
		run := func() {
			rewind(j.dec, 0)
			for k := range st.frames {
				j.do(st.frame(k))
			}
		}
		// Of several tries the best: pools may be emptied at any time.
		least := testing.AllocsPerRun(1, run)
		for range 10 {
			if least > 0 {
				least = min(least, testing.AllocsPerRun(1, run))
			}
		}
		if least > 0 && !c.need(st, Allocates) {
			c.failf(w, st.frame(len(st.frames)-1), "to decode and encode it takes %v allocations (see Allocates)", least)
		}
	})
	c.needless(Allocates)
}

// canRead reports whether the payloads of all messages of st can be read.
func (c *check) canRead(st *stream) bool {
	dec := c.decoder(st)
	for k := range st.frames {
		var m codecs.Metadata
		if _, err := dec.Decode(st.frame(k), &m); err != nil {
			return false
		}
		if _, err := c.codec.(codecs.Payloader).Payload(&m); carries(&m) && err != nil {
			return false
		}
	}
	return true
}

// canMutate reports whether all messages of st take the suite's mutations.
func (c *check) canMutate(st *stream) (ok bool) {
	j := c.job(where{stream: st}, st.dir, c.decoder(st), 0)
	for k := range st.frames {
		j.m.Reset()
		if _, err := j.dec.Decode(st.frame(k), j.m); err != nil {
			return false
		}
		if !mutates(j.m.Type) {
			continue
		}
		if _, err := c.codec.Encode(nil, j.m, j.mut); err != nil {
			return false
		}
	}
	return true
}
