package codectest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

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
	dec, free := codec.NewDecoder(st.dir), c.codec.NewDecoder(st.dir)
	var m codecs.Metadata
	for i := range k {
		c.whole(w, free, &m, st.frame(i), st.frames[i].n)
		if st.frames[i].n <= limit {
			_, _ = c.decode(w, dec, &m, st.frame(i))
		}
	}
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
			if c.tooLarge(w, free, &m, b, limit, err); waits > 0 && !isTooLarge(err) {
				c.failf(w, b[:waits], "with %d bytes it is known that the frame has %d, but it is not refused", waits, len(b))
			}
			return
		case !within && i == len(b):
			c.failf(w, b, "the frame of %d bytes is not refused", len(b))
		case early && n > limit:
			c.failf(w, b[:i], "with %d bytes it is known that the frame has %d, but it is not refused", i, len(b))
		case n > i && n > max(limit, headerRoom):
			c.failf(w, b[:i], "Decode asks for %d bytes", n)
		case n <= i && i < len(b):
			c.failf(w, b[:i], "a part of the frame is taken for the whole, with a length of %d", n)
		}
		if need = n; early && waits == 0 {
			waits = i // for more of the head
		}
	}
}

func isTooLarge(err error) bool {
	var large *codecs.TooLarge
	return errors.As(err, &large)
}

// tooLarge checks what is said of the frame b if err means that it costs but
// itself. free decodes it without a limit.
func (c *check) tooLarge(w where, free codecs.Decoder, m *codecs.Metadata, b []byte, limit int, err error) {
	var large *codecs.TooLarge
	if !errors.As(err, &large) {
		return
	}
	var want codecs.Metadata
	c.whole(w, free, &want, b, len(b))
	switch {
	case large.Size != len(b) || large.Limit != limit:
		c.failf(w, b, "it is said to have %d bytes, with a limit of %d", large.Size, large.Limit)
	case m.Raw != nil || len(m.Properties()) > 0:
		c.failf(w, b, "what is too large has a frame or properties")
	case m.Type != want.Type || m.ID != want.ID || m.Variant != want.Variant:
		c.failf(w, b, "it is decoded as %s, without the limit as %s", Describe(m), Describe(&want))
	case w.stream.dir == codecs.ClientToServer && m.Type == codecs.Request:
		e := &codecs.LocalError{Type: codecs.BadRequest, Message: "too large"}
		got, err := c.codec.EncodeError(nil, m, e)
		if err != nil {
			c.failf(w, b, "EncodeError: %v", err)
		}
		if full, err := c.codec.EncodeError(nil, &want, e); err != nil || !bytes.Equal(got, full) {
			c.failf(w, got, "its error is another than that of the whole request (%v)", err)
		}
	}
}

// grow checks that frame k of st, which is as large as its limit, does not
// become larger with another id or with a mutation: whoever gets it has the same
// limit, perhaps, and would end a connection that others share.
func (c *check) grow(st *stream, k int) {
	f := st.frames[k]
	w := where{stream: st, frame: k, doing: fmt.Sprintf("encoded with a limit of %d bytes", f.n)}
	codec, err := c.s.New(codecs.Limits{MaxFrameBytes: f.n})
	if err != nil {
		c.failf(w, nil, "New: %v", err)
	}
	var m codecs.Metadata
	dec := codec.NewDecoder(st.dir)
	for i := range k + 1 {
		if i == k || st.frames[i].n <= f.n {
			_, _ = c.decode(w, dec, &m, st.frame(i))
		}
	}
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
	dec := c.codec.NewDecoder(in.Direction)
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
