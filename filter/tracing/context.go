package tracing

import (
	"encoding/binary"

	"github.com/meltemi-mesh/meltemi/filter/facts"
)

// context is where a request says that it stands in a trace.
type context struct {
	trace         [16]byte
	span, parent  [8]byte
	sampled, says bool // whether it is, and whether that is said
	debug         bool // B3's
}

func digit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	default:
		return 0, false
	}
}

// unhex fills dst with what text, which has twice as many digits in lower case, says. It
// reports false if text is none, or all of it is 0: dst is 0 then.
func unhex(dst, text []byte) bool {
	if len(text) != 2*len(dst) {
		return false
	}
	any := byte(0)
	for i := range dst {
		hi, ok := digit(text[2*i])
		lo, ok2 := digit(text[2*i+1])
		if !ok || !ok2 {
			clear(dst)
			return false
		}
		dst[i] = hi<<4 | lo
		any |= dst[i]
	}
	return any != 0
}

func put64(b []byte, v uint64) { binary.BigEndian.PutUint64(b, v) }
func get64(b []byte) uint64    { return binary.BigEndian.Uint64(b) }

// w3cLength is that of a traceparent of version 00.
const w3cLength = 2 + 1 + 32 + 1 + 16 + 1 + 2

// parseW3C reads a traceparent.
func parseW3C(b []byte) (c context, ok bool) {
	if len(b) < w3cLength || b[2] != '-' || b[35] != '-' || b[52] != '-' {
		return c, false
	}
	version, ok := octet(b[:2])
	switch {
	case !ok || version == 0xff:
		return c, false
	case len(b) > w3cLength && (version == 0 || b[w3cLength] != '-'):
		return c, false // later versions may say more
	}
	flags, ok := octet(b[53:55])
	if !ok || !unhex(c.trace[:], b[3:35]) || !unhex(c.span[:], b[36:52]) {
		return c, false
	}
	c.sampled, c.says = flags&1 != 0, true
	return c, true
}

func octet(b []byte) (byte, bool) {
	hi, ok := digit(b[0])
	lo, ok2 := digit(b[1])
	return hi<<4 | lo, ok && ok2
}

// writeW3C makes dst a traceparent.
func writeW3C(dst *[w3cLength]byte, trace *[16]byte, span *[8]byte, sampled bool) {
	copy(dst[:], "00-")
	putHex(dst[3:], get64(trace[:]))
	putHex(dst[19:], get64(trace[8:]))
	dst[35] = '-'
	putHex(dst[36:], get64(span[:]))
	copy(dst[52:], "-00")
	if sampled {
		dst[54] = '1'
	}
}

// putHex writes the sixteen digits of v.
func putHex(b []byte, v uint64) {
	put64(b, facts.Hex(uint32(v>>32)))
	put64(b[8:], facts.Hex(uint32(v)))
}

// parseB3 reads B3's single attribute. What says no more than whether the request is
// sampled is no place in a trace, but is said.
func parseB3(b []byte) (c context, ok bool) {
	if len(b) == 1 {
		return c, c.state(b)
	}
	n := 0
	for n < len(b) && b[n] != '-' {
		n++
	}
	if !c.id(b[:n]) || len(b) < n+1+16 || !unhex(c.span[:], b[n+1:n+17]) {
		return context{}, false
	}
	b = b[n+17:]
	if len(b) >= 2 && b[0] == '-' && (len(b) == 2 || b[2] == '-') {
		if !c.state(b[1:2]) {
			return context{}, false
		}
		b = b[2:]
	}
	switch {
	case len(b) == 0:
		return c, true
	case b[0] == '-' && unhex(c.parent[:], b[1:]):
		return c, true
	default:
		return context{}, false
	}
}

// id reads a trace's id of B3's, whose first half may be missing.
func (c *context) id(b []byte) bool {
	if len(b) == 16 {
		return unhex(c.trace[8:], b)
	}
	return unhex(c.trace[:], b)
}

// state reads whether B3 says that a request is sampled.
func (c *context) state(b []byte) bool {
	switch string(b) {
	case "1", "true":
		c.sampled, c.says = true, true
	case "d":
		c.sampled, c.says, c.debug = true, true, true
	case "0", "false":
		c.says = true
	default:
		return false
	}
	return true
}

// placed reports whether c says where the request stands.
func (c *context) placed() bool { return c.trace != [16]byte{} && c.span != [8]byte{} }

// b3ID is how B3 writes the id of a trace.
func b3ID(trace *[16]byte) []byte {
	if get64(trace[:8]) == 0 {
		return trace[8:]
	}
	return trace[:]
}
