package codectest

import (
	"fmt"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// farewells checks that only clients say goodbye, and that the codec itself
// understands how the proxy says that it leaves.
func (c *check) farewells() {
	variants := map[uint8]bool{}
	c.each(all, func(st *stream) {
		for k, f := range st.frames {
			w := where{stream: st, frame: k}
			switch m := f.meta; {
			case m.Type == codecs.Goodbye && st.dir == codecs.ServerToClient:
				c.failf(w, st.frame(k), "a server's message is decoded as a %s, which only clients send", m.Type)
			case (m.GoesAway || m.NotProcessed) && st.dir == codecs.ClientToServer:
				c.failf(w, st.frame(k), "a client's message has GoesAway or NotProcessed set")
			case m.Type == codecs.Request && st.dir == codecs.ClientToServer:
				variants[m.Variant] = true
			}
		}
	})
	leaver, ok := c.codec.(codecs.Leaver)
	if !ok {
		return
	}
	for v := range 256 {
		if !variants[uint8(v)] {
			continue
		}
		c.attempt(func() {
			w := where{name: fmt.Sprintf("leaving clients of variant %d", v)}
			out, err := c.encode(w, nil, func(dst []byte) ([]byte, error) { return leaver.EncodeGoAway(dst, uint8(v)) })
			if err != nil {
				c.failf(w, nil, "EncodeGoAway: %v", err)
			}
			if len(out) == 0 {
				return
			}
			var m codecs.Metadata
			c.reads(w, codecs.ServerToClient, &m, out)
			switch {
			case m.Type != codecs.GoAway:
				c.failf(w, out, "it is decoded as a %s", m.Type)
			case m.Malformed != "":
				c.failf(w, out, "it is malformed: %s", m.Malformed)
			}
		})
	}
}
