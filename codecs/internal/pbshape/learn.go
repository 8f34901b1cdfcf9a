package pbshape

import (
	"bytes"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// none is no number of a property.
const none = -1

// learning goes through a header, of m, and one of a form side by side.
type learning struct {
	m     *codecs.Metadata
	known []hole // of the form, those that come
	holes []hole // of both
	id    bool   // it has been found
}

// formOf returns the form of a header, of which m has been made, without any holes but
// those that all have; nil if it cannot have one.
func formOf(schema *Schema, m *codecs.Metadata, header []byte) *Form {
	return widened(schema, &Form{header: header}, m, header)
}

// widened returns the form of which both the header of m and those of f are, nil if there
// is none.
func widened(schema *Schema, f *Form, m *codecs.Metadata, header []byte) *Form {
	l := learning{m: m, known: f.holes}
	if !l.message(schema.Fields, f.header, header, 0, 0) || !l.id {
		return nil
	}
	w := &Form{Type: m.Type, Scratch: m.Scratch, header: header, offset: m.HeaderSize - len(header), holes: l.holes}
	w.nests = slices.ContainsFunc(w.holes, func(h hole) bool { return h.last > 0 })
	return w
}

// message goes through a message that begins at offset from of the form's header, and the
// one in its place that begins at offset to of the other. It returns false if they differ in
// what must not.
func (l *learning) message(fields []Field, a, b []byte, from, to int) bool {
	var x, y pbwire.Reader
	x.Reset(a)
	y.Reset(b)
	var numbers uint64 // that were seen
	for y.Next() {
		if !x.Next() || !x.Is(y.Number, y.Type) {
			return false
		}
		f := among(fields, &y.Field)
		if f == nil {
			if !bytes.Equal(a[x.Start:x.End], b[y.Start:y.End]) {
				return false
			}
			continue
		}
		if y.Type == pbwire.Varint {
			if numbers&(1<<f.Number) != 0 {
				return false
			}
			numbers |= 1 << f.Number
		}
		var ok bool
		if f.Kind < Message {
			ok = l.value(f, &x, &y, a, b, from, to)
		} else {
			ok = l.nested(f, &x, &y, a, b, from, to)
		}
		if !ok || len(l.holes) > maxHoles {
			return false
		}
	}
	return !x.Next() && x.Err() == nil && y.Err() == nil
}

// behindTag is where what is behind the tag of a field begins.
func behindTag(b []byte, r *pbwire.Reader) int {
	_, n := pbwire.Uvarint(b[r.Start:])
	return r.Start + n
}

func (l *learning) value(f *Field, x, y *pbwire.Reader, a, b []byte, from, to int) bool {
	atX, at := behindTag(a, x), behindTag(b, y)
	was := len(l.known) > 0 && l.known[0].from == from+atX
	if was {
		l.known = l.known[1:]
	}
	l.id = l.id || f.Kind == ID
	if !was && !f.Kind.always() && bytes.Equal(a[atX:x.End], b[at:y.End]) {
		return true
	}
	h := hole{Field: f, from: to + at, to: to + y.End, property: none}
	props := l.m.Properties()
	switch {
	case f.Kind == Text:
		text := y.Bytes
		if len(text) == 0 || f.Unless != nil && f.Unless(text) {
			return false
		}
		h.property = slices.IndexFunc(props, func(p codecs.Property) bool { return len(p.Value) > 0 && &p.Value[0] == &text[0] })
	case f.Property != nil:
		h.property = slices.IndexFunc(props, func(p codecs.Property) bool { return bytes.Equal(p.Name, f.Property.Name()) })
		if h.property == none {
			return false
		}
	}
	l.holes = append(l.holes, h)
	return true
}

func (l *learning) nested(f *Field, x, y *pbwire.Reader, a, b []byte, from, to int) bool {
	i := len(l.holes)
	if len(l.known) > 0 && l.known[0].from == from+behindTag(a, x) {
		l.known = l.known[1:]
	}
	l.holes = append(l.holes, hole{Field: f, from: to + behindTag(b, y), to: to + y.Value, property: none, end: to + y.End})
	if !l.message(f.within(), x.Bytes, y.Bytes, from+x.Value, to+y.Value) {
		return false
	}
	if l.holes[i].last = len(l.holes) - 1; l.holes[i].last == i {
		l.holes = l.holes[:i]
	}
	return true
}
