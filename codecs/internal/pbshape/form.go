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

// Found is the id of a request, and its offset in the header.
type Found struct {
	ID uint64
	At int
}

// values are what a header has in the holes of its form, and what is behind those.
type values [maxHoles]struct {
	v   uint64
	end int
}

// is reports whether a header, of a message with so many bytes behind it, is of the form,
// and finds its id. It accepts nothing that a reader of the header would not read alike.
func (f *Form) is(b []byte, body int, found *Found) bool {
	if !f.nests {
		return f.fits(b, body, found, nil)
	}
	var vs values
	return f.fits(b, body, found, &vs) && f.nested(&vs)
}

// fits is is but for the lengths of messages in the header. It fills in vs, unless it is nil.
func (f *Form) fits(b []byte, body int, found *Found, vs *values) bool {
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
		if vs != nil {
			vs[i].v, vs[i].end = v, pos
		}
		from = h.to
	}
	return string(b[pos:]) == string(f.header[from:])
}

// nested reports whether the messages in the header are as long as they say. What is behind
// the last hole of one is known.
func (f *Form) nested(vs *values) bool {
	for i := range f.holes {
		if h := &f.holes[i]; h.last > 0 {
			end := vs[h.last].end + h.end - f.holes[h.last].to
			if uint64(end-vs[i].end) != vs[i].v {
				return false
			}
		}
	}
	return true
}

// Load implements codecs.Loader: it reads the header of m once more.
func (f *Form) Load(m *codecs.Metadata) {
	var vs values
	b := m.Raw[f.offset:m.HeaderSize]
	f.fits(b, m.BodySize, new(Found), &vs) // as it has done before
	for i := range f.holes {
		h := &f.holes[i]
		if h.property < 0 {
			continue
		}
		v, end := vs[i].v, vs[i].end
		if h.Kind == Text {
			m.Properties()[h.property].Value = b[end-int(v) : end : end]
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
