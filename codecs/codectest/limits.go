package codectest

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"weak"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// headerRoom is how many bytes a codec may ask for before it has seen a length,
// whatever the limit.
const headerRoom = 64

// limits checks that frames above the limit are refused as soon as their length
// is known, or cost but themselves when as much of them is there as that takes.
func (c *check) limits() {
	c.each(sound, func(st *stream) {
		for k, f := range st.frames {
			if k < st.first || f.n == 1 || k >= st.first+64 {
				continue
			}
			c.limit(st, k, f.n, true)
			for _, limit := range []int{f.n - 1, f.n / 2, headerRoom} {
				if limit > 0 && limit < f.n {
					c.limit(st, k, limit, false)
				}
			}
			c.grow(st, k)
		}
	})
}

// limit decodes frame k with a limit within which it is, or is not. Frames
// before it that are above the limit are left out.
func (c *check) limit(st *stream, k, limit int, within bool) {
	w := where{stream: st, frame: k, doing: fmt.Sprintf("with a limit of %d bytes", limit)}
	b := st.frame(k)
	codec, err := c.s.New(codecs.Limits{MaxFrameBytes: limit})
	if err != nil {
		c.failf(w, nil, "New: %v", err)
	}
	// The prefixes of growing length, as a slow peer sends them.
	dec, free := c.decoderOf(codec, st), c.decoder(st)
	var m codecs.Metadata
	for i := range k {
		c.whole(w, free, &m, st.frame(i), st.frames[i].n)
	}
	c.upTo(w, dec, st, k, limit)
	need, freeNeed, waits := 1, 1, 0
	for i := 1; i <= len(b); i++ {
		known := false
		if i >= freeNeed {
			n, err := c.decode(w, free, &m, b[:i])
			if err != nil {
				c.failf(w, b[:i], "without the limit it is refused: %v", err)
			}
			known, freeNeed = n == len(b), max(n, i+1)
		}
		early := known && !within && limit >= headerRoom // to be refused here
		if i < need && !early && i < len(b) {
			continue
		}
		n, err := c.decode(w, dec, &m, b[:i])
		switch {
		case err != nil && within:
			c.failf(w, b[:i], "the frame of %d bytes is refused: %v", len(b), err)
		case err != nil:
			// Only what is beyond the limit may be what tells whose it is.
			if waits > 0 && i < limit && !tooLarge(err) {
				c.failf(w, b[:waits], "with %d bytes it is known that the frame has %d, but it is not refused", waits, len(b))
			}
			c.atOnce(w, st, k, codec, limit, i)
			c.above(w, st, k, codec, dec, &m, err, i)
			return
		case !within && i == len(b):
			c.failf(w, b, "the frame of %d bytes is not refused", len(b))
		case early && n > limit:
			c.failf(w, b[:i], "with %d bytes it is known that the frame has %d, but it is not refused", i, len(b))
		case n > i && n > max(limit, headerRoom):
			c.failf(w, b[:i], "Decode asks for %d bytes", n)
		case n <= i && i < len(b):
			c.failf(w, b[:i], "a part of the frame is taken for the whole, with a length of %d%s", n, howToAsk(n, b[:i]))
		}
		if need = n; early && waits == 0 {
			waits = i // for more of the head
		}
	}
}

// atOnce checks that frame k, which codec has refused with the first i bytes there, is
// refused too when nobody has looked before all of it was there.
func (c *check) atOnce(w where, st *stream, k int, codec codecs.Codec, limit, i int) {
	dec := c.decoderOf(codec, st)
	c.upTo(w, dec, st, k, limit)
	b := st.frame(k)
	var m codecs.Metadata
	if _, err := c.decode(w, dec, &m, b); err == nil {
		c.failf(w, b, "with %d bytes there it is refused, but not when all %d come at once", i, len(b))
	}
}

// above checks what is said of frame k, which is above the limit of codec, when
// dec has seen the first i bytes of it.
func (c *check) above(w where, st *stream, k int, codec codecs.Codec, dec codecs.Decoder, m *codecs.Metadata, err error, i int) {
	var large *codecs.TooLarge
	if !errors.As(err, &large) {
		return
	}
	b, meta := st.frame(k), st.frames[k].meta
	w.doing += fmt.Sprintf(", %d bytes of it there", i)
	if large.Size != len(b) {
		c.failf(w, b, "it is said to have %d bytes", large.Size)
	}
	c.sameHead(w, b, meta, m)
	// However much of it is there.
	for _, part := range [][]byte{b, append(slices.Clip(b), st.bytes[st.frames[k].at+len(b):]...), b[:i]} {
		other := c.decoderOf(codec, st)
		c.upTo(w, other, st, k, large.Limit)
		var o codecs.Metadata
		_, err := c.decode(w, other, &o, part)
		var again *codecs.TooLarge
		if !errors.As(err, &again) || *again != *large {
			c.failf(w, part, "with %d bytes there Decode returns %v, with %d %v", i, large, len(part), err)
		}
		if d := difference(m, &o, 0); d != "" {
			c.failf(w, part, "with %d bytes there it is something else than with %d: %s", len(part), i, d)
		}
	}
	if st.dir == codecs.ClientToServer && isFailed(m.Type) {
		c.mem.poison()
		e := &codecs.LocalError{Type: codecs.BadRequest, Message: texts[1].text}
		out := c.errorReply(w, b, m, e)
		c.isError(w, meta, out)
		if whole := c.errorReply(w, b, meta, e); !bytes.Equal(out, whole) {
			c.failf(w, out, "it is answered otherwise than if it had been whole:\n%s", dump(whole))
		}
	}
	// What follows is read as if nothing had been.
	for j := k + 1; j < min(len(st.frames), k+4); j++ {
		if f := st.frames[j]; f.n <= large.Limit {
			w := where{stream: st, frame: j, doing: "behind one that was too large"}
			c.whole(w, dec, m, st.frame(j), f.n)
			c.sameAnswer(w, dec, st.frame(j), f, m)
		} else {
			rewind(dec, f.taken)
		}
	}
	if k == st.first && !c.light {
		c.keptOfLarge(w, st, k, codec, i)
	}
}

// sameHead fails if m, of a frame that is too large, is not what meta says of
// the whole: as much of it as a head tells.
func (c *check) sameHead(w where, b []byte, meta, m *codecs.Metadata) {
	unasked := func(t codecs.MessageType) bool {
		return t == codecs.Heartbeat || t == codecs.GoAway || t == codecs.Ignored
	}
	switch {
	case m.Type != meta.Type && (!isAnswer(m.Type) || !isAnswer(meta.Type)) && (m.Type != codecs.Ignored || !unasked(meta.Type)):
		c.failf(w, b, "it is said to be a %s, but is a %s", m.Type, meta.Type)
	case m.Type == codecs.Ignored:
	case m.ID != meta.ID:
		c.failf(w, b, "it is said to have id %d, but has %d", m.ID, meta.ID)
	case m.StreamID != meta.StreamID:
		c.failf(w, b, "it is said to be of stream %d, but is of %d", m.StreamID, meta.StreamID)
	case m.Variant != meta.Variant:
		c.failf(w, b, "it is said to be of variant %d, but is of %d", m.Variant, meta.Variant)
	case isAnswer(m.Type) && c.traits.HiddenOneway && !bytes.Equal(m.Method(), meta.Method()):
		c.failf(w, b, "it is said to be an answer of %q, but is one of %q", m.Method(), meta.Method())
	case m.ExpectsReply && !meta.ExpectsReply:
		c.failf(w, b, "ExpectsReply is set, but the whole does not expect one")
	}
}

// keptOfLarge looks for memory that is kept of frame k, which is too large for
// codec.
func (c *check) keptOfLarge(w where, st *stream, k int, codec codecs.Codec, i int) {
	dec := c.decoderOf(codec, st)
	c.upTo(w, dec, st, k, i)
	var m codecs.Metadata
	lent := c.lendLarge(w, st.frame(k)[:i], dec, &m)
	runtime.GC()
	if lent.Value() != nil {
		c.failf(w, st.frame(k), "its bytes are still referred to after it has been refused")
	}
	runtime.KeepAlive(dec)
	runtime.KeepAlive(&m)
}

//go:noinline
func (c *check) lendLarge(w where, part []byte, dec codecs.Decoder, m *codecs.Metadata) weak.Pointer[byte] {
	b := append(make([]byte, 0, max(64, len(part))), part...)
	c.guard(w, part, func() { _, _ = dec.Decode(b, m) })
	m.Release()
	return weak.Make(&b[0])
}

// grow checks that frame k of st, which is as large as its limit, does not
// become larger with another id or with a mutation: whoever gets it has the same
// limit, perhaps, and would end a connection that others share.
func (c *check) grow(st *stream, k int) {
	f, b := st.frames[k], st.frame(k)
	w := where{stream: st, frame: k, doing: fmt.Sprintf("encoded with a limit of %d bytes", f.n)}
	codec, err := c.s.New(codecs.Limits{MaxFrameBytes: f.n})
	if err != nil {
		c.failf(w, nil, "New: %v", err)
	}
	var m codecs.Metadata
	dec := c.decoderOf(codec, st)
	c.upTo(w, dec, st, k, f.n)
	_, _ = c.decode(w, dec, &m, b)
	_, mayChange := takesID(&m)
	for _, mut := range []*codecs.Mutation{nil, c.everything(st.dir)} {
		if mayChange {
			m.ID = c.traits.MaxID
		}
		out, err := c.encode(w, m.Raw, func(dst []byte) ([]byte, error) { return codec.Encode(dst, &m, mut) })
		if err == nil && len(out) > f.n {
			c.failf(w, out, "it has %d bytes", len(out))
		}
	}
}

// invalid checks that broken bytes end their connection.
func (c *check) invalid() {
	for _, in := range c.s.Invalid {
		c.attempt(func() {
			c.refused(where{name: in.Name}, in, len(in.Bytes))
			// Whoever has seen but a part may wait for a whole header first.
			in.Bytes = append(slices.Clip(in.Bytes), make([]byte, headerRoom)...)
			c.refused(where{name: in.Name, doing: "byte by byte"}, in, 1)
			c.refused(where{name: in.Name, doing: "in pieces of 7 bytes"}, in, 7)
		})
	}
}

// refused feeds in to a decoder, in pieces of size bytes, until it is refused.
func (c *check) refused(w where, in Invalid, size int) {
	dec := answering(c.codec.NewDecoder(in.Direction), in.Direction, c.requestsOf(in.Name, in.Requests))
	var m codecs.Metadata
	at, end, need := 0, 0, 1
	for {
		if end-at < need {
			if end == len(in.Bytes) {
				c.failf(w, in.Bytes, "it is not refused: Decode waits for %d bytes at offset %d, where %d are", need, at, end-at)
			}
			end = min(len(in.Bytes), end+size)
			continue
		}
		n, err := c.decode(w, dec, &m, in.Bytes[at:end])
		if err != nil {
			return
		}
		if n > end-at {
			need = n
			continue
		}
		if at, need = at+n, 1; at == len(in.Bytes) {
			c.failf(w, in.Bytes, "it is not refused: the last message is %s", Describe(&m))
		}
	}
}
