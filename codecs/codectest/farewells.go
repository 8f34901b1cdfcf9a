package codectest

import (
	"fmt"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// variants are those of clients' requests, in order.
func (c *check) variants() (variants []uint8) {
	for _, st := range c.streams {
		for _, f := range st.frames {
			if st.dir == codecs.ClientToServer && f.meta.Type == codecs.Request && !slices.Contains(variants, f.meta.Variant) {
				variants = append(variants, f.meta.Variant)
			}
		}
	}
	slices.Sort(variants)
	return variants
}

// farewells checks that the codec itself understands how the proxy says that it
// leaves.
func (c *check) farewells() {
	leaver, ok := c.codec.(codecs.Leaver)
	if !ok {
		c.skipped = "the codec is no Leaver"
		return
	}
	for _, v := range c.variants() {
		c.attempt(func() {
			w := where{name: fmt.Sprintf("leaving clients of variant %d", v)}
			out, err := c.encode(w, nil, func(dst []byte) ([]byte, error) { return leaver.EncodeGoAway(dst, v) })
			if err != nil {
				c.failf(w, nil, "EncodeGoAway: %v", err)
			}
			if len(out) == 0 {
				return
			}
			var m codecs.Metadata
			c.reads(w, "EncodeGoAway", codecs.ServerToClient, &m, out)
			switch {
			case m.Type != codecs.GoAway:
				c.failf(w, out, "it is decoded as a %s", m.Type)
			case m.Malformed != "":
				c.failf(w, out, "it is malformed: %s", m.Malformed)
			}
		})
	}
}
