package trpc

import (
	"encoding/binary"
	"errors"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// maxID is the longest request id, in bytes as a varint.
const maxID = 5

// errTooLarge: the server would end the connection, which others share.
var errTooLarge = errors.New("with another id it may become larger than the limits")

// Encode implements codecs.Codec.
func (c *codec) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if m.Raw[atType] == typeStream {
		if mut.Replaces() {
			return dst, codecs.NoPayload("flow control counts the bytes of a stream at both ends")
		}
		if mut.ChangesAttributes() {
			return c.mutateInit(dst, m, mut)
		}
		return append(dst, m.Raw...), nil
	}
	old, n := idOf(m)
	if !c.fits(m, n, 0, 0) {
		return dst, errTooLarge
	}
	if mut.ChangesAttributes() || mut.Replaces() || mut.Millis() > 0 && saysTimeout(m) {
		out, err := c.mutateUnary(dst, m, mut)
		if err == nil || mut.ChangesAttributes() || mut.Replaces() {
			return out, err
		}
		// It cannot say how long its client waits.
	}
	at := int(m.Scratch[scratchID])
	start := len(dst)
	switch {
	case old == m.ID:
		return append(dst, m.Raw...), nil
	case at > 0:
		dst = append(dst, m.Raw[:at]...)
		dst = binary.AppendUvarint(dst, m.ID)
		dst = append(dst, m.Raw[at+n:]...)
	case m.Scratch[scratchFlags]&flagBroken != 0:
		dst = append(dst, m.Raw...)
	default:
		dst = append(dst, m.Raw[:m.HeaderSize]...)
		dst = pbwire.AppendVarint(dst, requestID, m.ID)
		dst = append(dst, m.Raw[m.HeaderSize:]...)
	}
	complete(dst[start:], m, 0)
	return dst, nil
}

// idOf returns the id that a unary frame has come with, and how many bytes it
// has in the header.
func idOf(m *codecs.Metadata) (id uint64, n int) {
	if at := m.Scratch[scratchID]; at > 0 {
		id, n = pbwire.Uvarint(m.Raw[at:])
		return uint64(uint32(id)), n
	}
	return uint64(frameID(m.Raw)), 0
}

// fits reports whether a unary frame with an id of so many bytes, whose header grows by
// more, and whose body by others, stays within the limits with any id, so that whoever is
// next says the same.
func (c *codec) fits(m *codecs.Metadata, id, more, body int) bool {
	if id == 0 {
		more++ // its tag
	}
	more += maxID - id
	return m.HeaderSize+more <= headerSize+maxHeader && len(m.Raw)+more+body <= c.maxFrame
}

// complete makes good the fixed header of frame, a copy of m.Raw whose header
// has been changed, and whose body has grown by some bytes.
func complete(frame []byte, m *codecs.Metadata, body int) {
	more := len(frame) - len(m.Raw) - body
	binary.BigEndian.PutUint32(frame[atLength:], uint32(len(frame)))
	if more != 0 {
		binary.BigEndian.PutUint16(frame[atHeaderLength:], uint16(m.HeaderSize-headerSize+more))
	}
	if m.Scratch[scratchFlags]&flagFixedID != 0 {
		binary.BigEndian.PutUint32(frame[atID:], uint32(m.ID))
	}
}
