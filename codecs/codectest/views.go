package codectest

import (
	"runtime"
	"weak"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// views checks that nothing is kept of the bytes that were lent.
func (c *check) views() {
	c.each(all, func(st *stream) {
		c.detached(st)
		c.released(st)
		if !c.light {
			c.retained(st)
		}
	})
}

// detached overwrites each frame when its metadata has been detached.
func (c *check) detached(st *stream) {
	c.walk(st, "detached, its bytes overwritten", func(w where, k int, m *codecs.Metadata) {
		m.Detach()
		c.mem.poison()
		c.same(w, st.frame(k), st.frames[k], m)
	})
}

// released overwrites each frame when its metadata has been released.
func (c *check) released(st *stream) {
	c.walk(st, "released, its bytes overwritten", func(w where, k int, m *codecs.Metadata) {
		m.Release()
		c.mem.poison()
		if d := difference(st.frames[k].meta, m, views); d != "" {
			c.failf(w, st.frame(k), "%s", d)
		}
	})
}

// retained looks for memory that the decoder, the codec or the released metadata
// keep from being collected.
func (c *check) retained(st *stream) {
	dec := c.decoder(st)
	metas := make([]codecs.Metadata, len(st.frames))
	lent := make([]weak.Pointer[byte], len(st.frames))
	for k := range st.frames {
		lent[k] = c.lendOnce(st, k, dec, &metas[k])
	}
	runtime.GC()
	for k := range st.frames {
		if lent[k].Value() != nil {
			c.failf(where{stream: st, frame: k}, st.frame(k), "its bytes are still referred to after it has been decoded and released")
		}
	}
	runtime.KeepAlive(dec)
	runtime.KeepAlive(metas)
}

// lendOnce decodes frame k, first a part of it, in memory of its own that
// nothing else refers to.
//
//go:noinline
func (c *check) lendOnce(st *stream, k int, dec codecs.Decoder, m *codecs.Metadata) weak.Pointer[byte] {
	frame := st.frame(k)
	// Larger than what is allocated together with others.
	b := append(make([]byte, 0, max(64, len(frame))), frame...)
	w := where{stream: st, frame: k, doing: "in memory of its own"}
	c.guard(w, frame, func() {
		n, err := dec.Decode(b, m)
		if err != nil || n != len(frame) {
			c.failf(w, frame, "Decode returns %d, %v", n, err)
		}
		m.Properties()
		m.Release()
	})
	return weak.Make(&b[0])
}
