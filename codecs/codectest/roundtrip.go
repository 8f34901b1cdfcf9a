package codectest

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// before is what stands in front of what is encoded.
const before = "what was there before"

// encode calls f, which appends to what it is given, on memory with bytes before
// and with room behind, and checks that only the room is written to. raw, if
// any, must not change.
func (c *check) encode(w where, raw []byte, f func(dst []byte) ([]byte, error)) (out []byte, err error) {
	old := bytes.Clone(raw)
	if old == nil && w.stream != nil {
		old = w.stream.frame(w.frame) // to show
	}
	for _, capacity := range []int{len(before), len(before) + 2*len(raw) + 4096} {
		dst := append(make([]byte, 0, capacity), before...)
		var b []byte
		c.guard(w, old, func() { b, err = f(dst) })
		switch {
		case raw != nil && !bytes.Equal(raw, old):
			c.failf(w, old, "encoding changes the frame to\n%s", dump(raw))
		case err != nil && string(dst) == before: // whatever was returned: it is cut off
			return nil, err
		case err != nil || len(b) < len(before) || string(b[:len(before)]) != before:
			c.failf(w, old, "what stood before is gone (error %v): there is only\n%s", err, dump(b))
		case out != nil && !bytes.Equal(out, b[len(before):]):
			c.failf(w, old, "it is encoded differently a second time:\n%s", dump(b[len(before):]))
		}
		out = bytes.Clone(b[len(before):])
		fill(b[:cap(b)], poison) // nobody may need dst any more
	}
	return out, nil
}

// message encodes m with mut. What says that the sender leaves stays in: a codec
// may leave it out, as the proxy does not leave.
func (c *check) message(w where, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	leaves := m.GoesAway
	m.GoesAway = false
	defer func() { m.GoesAway = leaves }()
	return c.encode(w, m.Raw, func(dst []byte) ([]byte, error) { return c.codec.Encode(dst, m, mut) })
}

// roundTrip checks that a message in which nothing changes is sent as it came, but
// for requests that do not want an answer in all cases: they may be given out as
// such that do, and are the same otherwise.
func (c *check) roundTrip() {
	c.each(all, func(st *stream) {
		c.walk(st, "encoded without a change", func(w where, k int, m *codecs.Metadata) {
			for _, mut := range []*codecs.Mutation{nil, {}} {
				out, err := c.message(w, m, mut)
				if err != nil {
					c.failf(w, m.Raw, "Encode: %v", err)
				}
				if !bytes.Equal(out, m.Raw) && mut == nil {
					c.sameRequest(w, st, k, m, out)
				} else if !bytes.Equal(out, m.Raw) && !reserved(m.Type) {
					c.failf(w, m.Raw, "it becomes\n%s", dump(out))
				}
				c.same(w, m.Raw, st.frames[k], m)
			}
		})
	})
}

// reserved tells the types of requests that do not want an answer in all cases.
func reserved(t codecs.MessageType) bool { return t == codecs.Quiet || t == codecs.Muted }

// outspoken gives m, which as became when it was encoded, the type of as if it is
// but asking for an answer in all cases now.
func outspoken(m, as *codecs.Metadata) *codecs.Metadata {
	if reserved(as.Type) && (m.Type == codecs.Request || reserved(m.Type)) {
		m.Type = as.Type
	}
	return m
}

// sameRequest checks that m, which is frame k and has become out, is the same
// request.
func (c *check) sameRequest(w where, st *stream, k int, m *codecs.Metadata, out []byte) {
	if !reserved(m.Type) {
		c.failf(w, m.Raw, "it becomes\n%s", dump(out))
	}
	var o codecs.Metadata
	c.givenOut(w, st, k, &o, out)
	again, err := c.message(w, &o, nil)
	if err != nil || !bytes.Equal(again, out) {
		c.failf(w, out, "given out once more it becomes (error %v)\n%s", err, dump(again))
	}
	if d := difference(m, outspoken(&o, m), sizes|private|views); d != "" {
		c.failf(w, out, "as given out it has changed: %s", d)
	}
	c.sameCall(w, out, m, &o)
}

// givenOut decodes out, which frame k has become, in memory of its own: the frame
// may be in that of c.
func (c *check) givenOut(w where, st *stream, k int, o *codecs.Metadata, out []byte) {
	own := *c
	own.mem = memory{}
	dec := own.decoder(st)
	own.upTo(w, dec, st, k, math.MaxInt)
	own.whole(w, dec, o, out, len(out))
}

// ids checks that messages can be given other ids. A whole stream is encoded
// with ids that differ, and decoded again as one connection's bytes.
func (c *check) ids() {
	if c.traits.Correlation != codecs.ByID {
		c.skipped = "messages do not correlate by id"
		return
	}
	maxID := c.traits.MaxID
	r := lots(0)
	series := []struct {
		name  string
		start uint64
		step  func(id uint64) uint64
	}{
		{"ids from 127", 127, func(id uint64) uint64 { return id + 1 }},
		{"ids from MaxID down", maxID, func(id uint64) uint64 { return id - 1 }},
		{"ids from 0", 0, func(id uint64) uint64 { return id + 1 }},
		{"ids from 1", 1, func(id uint64) uint64 { return id + 1 }},
		{"ids from 16384", 16384, func(id uint64) uint64 { return id + 1 }},
		{"ids by lot", r.Uint64(), func(uint64) uint64 { return r.Uint64() }},
	}
	if c.light {
		series = series[:2]
	}
	for _, s := range series {
		id := s.start
		next := func() uint64 {
			i := id
			if maxID != 1<<64-1 {
				i %= maxID + 1
			}
			id = s.step(id)
			return i
		}
		c.each(all, func(st *stream) { c.otherIDs(st, "with "+s.name, next) })
	}
	c.needless(LooseID)
}

// takesID reports whether m is given another id by the pipeline: always, or at
// least it may be.
func takesID(m *codecs.Metadata) (must, may bool) {
	switch m.Type {
	case codecs.Request, codecs.Muted, codecs.Response, codecs.Error:
		return !m.FixedID, !m.FixedID
	case codecs.Oneway:
		return false, !m.FixedID
	default:
		return false, false
	}
}

func (c *check) otherIDs(st *stream, doing string, next func() uint64) {
	given := map[uint64]uint64{} // equal ids stay equal
	back := c.decoder(st)
	var o codecs.Metadata
	dec := c.decoder(st)
	var m codecs.Metadata
	var mem memory
	for k, f := range st.frames {
		w := where{stream: st, frame: k, doing: doing}
		c.wholeLent(w, dec, &m, mem.lend(st.frame(k)), st.frame(k), f.n)
		must, may := takesID(&m)
		was, id := m.ID, m.ID
		if may {
			n, known := given[was]
			if !known {
				n = next()
				given[was] = n
			}
			id = n
		}
		w.doing = fmt.Sprintf("%s: %d instead of %d", doing, id, was)
		m.ID = id
		out, err := c.message(w, &m, nil)
		if err != nil {
			c.failf(w, m.Raw, "Encode: %v", err)
		}
		m.ID = was
		c.whole(w, back, &o, out, len(out))
		must = must && m.StreamID == 0 // of which ids are not changed
		if o.ID != id && (must || o.ID != was) {
			c.failf(w, out, "the message encoded with id %d is decoded with id %d", id, o.ID)
		}
		if d := difference(f.meta, &o, identity|sizes|private); d != "" {
			c.failf(w, out, "the message with another id has changed: %s", d)
		}
		o.ID = was
		w.doing += ", and back again"
		restored, err := c.message(w, &o, nil)
		if err != nil {
			c.failf(w, out, "Encode: %v", err)
		}
		c.restored(w, st, k, restored)
	}
}

// restored checks a frame that has its old id again.
func (c *check) restored(w where, st *stream, k int, b []byte) {
	if bytes.Equal(b, st.frame(k)) {
		return
	}
	if !c.light && !c.need(st, LooseID) {
		c.failf(w, b, "it is not what it was before (see LooseID):\n%s", dump(st.frame(k)))
	}
	dec := c.decoder(st)
	var m codecs.Metadata
	for i := range k {
		c.whole(w, dec, &m, st.frame(i), st.frames[i].n)
	}
	c.whole(w, dec, &m, b, len(b))
	if d := difference(st.frames[k].meta, &m, sizes|private); d != "" {
		c.failf(w, b, "it does not mean what it meant before: %s", d)
	}
}

func isNoMutation(err error) bool { return errors.Is(err, codecs.ErrNoMutation) }
