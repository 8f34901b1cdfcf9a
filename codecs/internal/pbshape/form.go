package pbshape

import (
	"encoding/binary"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// maxHoles is how many holes a form can have.
const maxHoles = 16

// Form is what headers have in common that share a shape: the bytes of one of them, but for
// its holes.
type Form struct {
	// Type and Scratch are those of the message that was learnt.
	Type    codecs.MessageType
	Scratch [8]uint32

	header []byte
	offset int // of headers in their frames
	holes  []hole
	nests  bool // there are lengths among them
}

// hole is a varint, with as many bytes behind it as it says if it is a Text.
type hole struct {
	*Field
	from, to int // in the header
	property int // number of the one that has its value, none if there is no such
	// Of a Message or an Entry, whose length is the hole: where the message ends in the
	// header, and its last hole.
	end, last int
}

// Found is what a header has in the holes of its form.
type Found struct {
	// ID is the request's, and At its offset in the header.
	ID uint64
	At int

	at    [maxHoles]int // behind which hole the next byte of the form is
	value [maxHoles]uint64
}

// fits reports whether a header, of a message with so many bytes behind it, is of the form,
// and what it has in its holes. It accepts nothing that a reader of the header would not
// read alike.
func (f *Form) fits(b []byte, body int, found *Found) bool {
	pos, from := 0, 0
	for i := range f.holes {
		h := &f.holes[i]
		n := h.from - from
		if len(b)-pos <= n || string(b[pos:pos+n]) != string(f.header[from:h.from]) {
			return false
		}
		pos += n
		v, n := uint64(b[pos]), 1
		if v >= 0x80 {
			if v, n = binary.Uvarint(b[pos:]); n <= 0 {
				return false
			}
		}
		if h.Kind == ID {
			found.ID, found.At = v, pos
		}
		pos += n
		switch h.Kind {
		case Text:
			if n > pbwire.MaxShort || v > uint64(len(b)-pos) || h.Unless != nil && h.Unless(b[pos:pos+int(v)]) {
				return false
			}
			pos += int(v)
		case Message, Entry:
			if n > pbwire.MaxShort {
				return false
			}
		case Positive32:
			if uint32(v) == 0 {
				return false
			}
		case Part:
			if int64(uint32(v)) > int64(body) {
				return false
			}
		}
		found.at[i], found.value[i] = pos, v
		from = h.to
	}
	return string(b[pos:]) == string(f.header[from:]) && (!f.nests || f.nested(found))
}

// nested reports whether the messages in the header are as long as they say. What is behind
// the last hole of one is known.
func (f *Form) nested(found *Found) bool {
	for i := range f.holes {
		if h := &f.holes[i]; h.last > 0 {
			end := found.at[h.last] + h.end - f.holes[h.last].to
			if uint64(end-found.at[i]) != found.value[i] {
				return false
			}
		}
	}
	return true
}

// Load implements codecs.Loader: it reads the header of m once more.
func (f *Form) Load(m *codecs.Metadata) {
	var found Found
	b := m.Raw[f.offset:m.HeaderSize]
	f.fits(b, m.BodySize, &found) // as it has done before
	for i := range f.holes {
		h := &f.holes[i]
		if h.property < 0 {
			continue
		}
		v := found.value[i]
		if h.Kind == Text {
			m.Properties()[h.property].Value = b[found.at[i]-int(v) : found.at[i] : found.at[i]]
			continue
		}
		h.Property.SetNumber(m, h.number(v))
	}
}

func (h *hole) number(v uint64) int64 {
	switch h.Kind {
	case Int32:
		return int64(pbwire.Int32(v))
	case Positive32:
		return int64(uint32(v))
	}
	return int64(v)
}
