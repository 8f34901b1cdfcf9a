package codectest

import "bytes"

// What memory is filled with: behind the bytes that are handed in, and where
// bytes have been that must not be looked at any more.
const (
	canary = 0xa5
	poison = 0xdb
)

// room behind the bytes, as in a buffer that holds more than one read.
const room = 32

// memory lends bytes to the codec as the pipeline does: they are at another
// place at each call, and gone after the next.
type memory struct {
	buf  [2][]byte
	used int
}

// lend returns a copy of b. What was lent before is poisoned.
func (m *memory) lend(b []byte) []byte {
	m.poison()
	m.used = 1 - m.used
	buf := &m.buf[m.used]
	*buf = append((*buf)[:0], b...)
	for range room {
		*buf = append(*buf, canary)
	}
	return (*buf)[:len(b)]
}

// poison overwrites what was lent last.
func (m *memory) poison() { fill(m.buf[m.used], poison) }

func fill(b []byte, with byte) {
	for i := range b {
		b[i] = with
	}
}

// intact reports whether lent is still what it was lent as, and the room behind
// it as well.
func intact(lent, as []byte) bool {
	if !bytes.Equal(lent, as) {
		return false
	}
	for _, x := range lent[len(lent):min(cap(lent), len(lent)+room)] {
		if x != canary {
			return false
		}
	}
	return true
}
