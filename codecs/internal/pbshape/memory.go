package pbshape

import (
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// A decoder that has looked for so many shapes in vain, one behind the other, looks for that
// of one of several requests from then on: who never sends the same twice pays little.
const (
	patience = 32
	seldom   = 16
)

// Memory is what a decoder of requests remembers.
type Memory struct {
	// Found is that of the header for which Recall has found a form.
	Found

	shapes *codecs.Shapes
	last   place
	vain   uint // how many requests no form was found for, since the last one for which there was

	// What has been looked up for a header of which Recall knows no form.
	sought   bool
	from, to int          // where its head is
	head     *codecs.Head // which may be known
}

// place is that of a shape, which may be forgotten, or have another in its place.
type place struct {
	head *codecs.Head
	at   int
}

// shape returns the one that is there, nil if there is none.
func (p place) shape() *codecs.Shape {
	if p.head == nil {
		return nil
	}
	return p.head.Shapes()[p.at]
}

// placeOf is where s is, one of h's.
func placeOf(h *codecs.Head, s *codecs.Shape) place { return place{h, slices.Index(h.Shapes(), s)} }

// Learn implements codecs.Learner.
func (mem *Memory) Learn(s *codecs.Shapes) { mem.shapes = s }

// Recall gives m, of which nothing is known but its sizes, the properties and the
// operation of the shape that its header has, and returns that one's form: nil if it is not
// known.
func (mem *Memory) Recall(schema *Schema, m *codecs.Metadata, header []byte) *Form {
	mem.sought = false
	if mem.shapes == nil {
		return nil
	}
	if mem.vain > patience && mem.vain%seldom != 0 {
		mem.vain++
		return nil
	}
	last := mem.last.shape()
	if last != nil {
		if f, _ := last.Rest.(*Form); f != nil && f.is(header, m.BodySize, &mem.Found) {
			mem.vain = 0
			m.Share(last)
			return f
		}
	}
	mem.vain++
	return mem.look(schema, m, header, last)
}

// look is Recall for a header that has not the shape last.
func (mem *Memory) look(schema *Schema, m *codecs.Metadata, header []byte, last *codecs.Shape) *Form {
	if mem.from, mem.to = schema.Head(header); mem.from == mem.to {
		return nil
	}
	mem.sought = true
	mem.head = mem.shapes.Head(header[mem.from:mem.to])
	if mem.head == nil {
		return nil
	}
	for i, s := range mem.head.Shapes() {
		if s == nil || s == last {
			continue
		}
		if f, _ := s.Rest.(*Form); f != nil && f.is(header, m.BodySize, &mem.Found) {
			m.Share(s)
			mem.last, mem.vain = place{mem.head, i}, 0
			return f
		}
	}
	return nil
}

// Remember learns the shape of m, for whose header Recall has found no form: a request
// without a fault.
func (mem *Memory) Remember(schema *Schema, m *codecs.Metadata, header []byte) {
	if !mem.sought {
		return
	}
	if h := mem.head; h != nil && h.Crowded() && h.Tries() && mem.widen(schema, h, m, header) {
		return
	}
	head := header[mem.from:mem.to]
	if !mem.shapes.Due(head, header, m) {
		return
	}
	if f := formOf(schema, m, header); f != nil {
		h, s := mem.shapes.Learn(head, header, m)
		f.header = s.Tail
		s.Rest, mem.last = f, placeOf(h, s)
	}
}

// widen makes a hole of each field by which m differs from the shape of h that it is most
// like.
func (mem *Memory) widen(schema *Schema, h *codecs.Head, m *codecs.Metadata, header []byte) bool {
	var old *codecs.Shape
	var least *Form
	for _, s := range h.Shapes() {
		if s == nil || s.Rest == nil {
			continue
		}
		known := s.Rest.(*Form)
		f := widened(schema, known, m, header)
		if f == nil || len(f.holes) == len(known.holes) { // what is in them cannot be remembered
			continue
		}
		if old == nil || len(f.holes) < len(least.holes) {
			old, least = s, f
		}
	}
	if old == nil {
		return false
	}
	var holes []codecs.Hole
	for _, hole := range least.holes {
		if hole.property != none {
			holes = append(holes, codecs.Hole{From: hole.from, To: hole.to, Property: hole.property})
		}
	}
	s := h.Widen(old, header, holes, m)
	if s == nil {
		return false
	}
	least.header = s.Tail
	s.Rest, mem.last = least, placeOf(h, s)
	return true
}
