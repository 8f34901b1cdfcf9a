package dubbo

import (
	"bytes"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
)

// memory is what a decoder of requests remembers: their shapes. A head is all up to the
// arguments, which are skipped as ever, and must end exactly where the tail begins: the
// attachments, to the end of the frame.
type memory struct {
	shapes  *codecs.Shapes
	last    *codecs.Head
	opening opening // of a request whose head is not known
}

// infoValues of a Shape is how many values its tail counts for.
const infoValues = 0

// Learn implements codecs.Learner.
func (d *decoder) Learn(s *codecs.Shapes) { d.shapes = s }

// open reads what a request begins with, and returns the head that it is, nil if that is
// not known.
func (d *decoder) open(body []byte) (*opening, *codecs.Head) {
	r := &d.r
	if h := d.last; h != nil && h.Bytes != nil && bytes.HasPrefix(body, h.Bytes) {
		r.Seek(len(h.Bytes))
		return h.Info.(*opening), h
	}
	d.opening.read(r)
	if d.shapes == nil || r.Err() != nil || r.Left() < hessian.MaxValues {
		return &d.opening, nil
	}
	if h := d.shapes.Head(body[:r.Pos()]); h != nil {
		d.last = h
		return &d.opening, h
	}
	return &d.opening, nil
}

// recall gives m the shape that it has if its decoder, which stands behind the arguments,
// knows it.
func (d *decoder) recall(h *codecs.Head, m *codecs.Metadata) bool {
	r := &d.r
	if r.Err() != nil {
		return false
	}
	if s := h.Shape(r.Rest()); s != nil && int(s.Info[infoValues]) <= r.Left() {
		m.Share(s)
		return true
	}
	at := r.Pos()
	for _, s := range h.Shapes() {
		if s == nil || s.Holes == nil || int(s.Info[infoValues]) > r.Left() {
			continue
		}
		if fits(r, s, nil) {
			m.Share(s)
			return true
		}
		r.Seek(at)
	}
	return false
}

// fits reports whether the tail at which r stands is that of a shape but for holes, and
// gives m, unless it is nil, what is in those.
func fits(r *hessian.Reader, s *codecs.Shape, m *codecs.Metadata) bool {
	from := 0
	for _, hole := range s.Holes {
		part := s.Tail[from:hole.From]
		if !bytes.HasPrefix(r.Rest(), part) {
			return false
		}
		r.Seek(r.Pos() + len(part))
		value := r.ASCII()
		if value == nil {
			return false
		}
		if m != nil && hole.Property >= 0 {
			m.Properties()[hole.Property].Value = value
		}
		from = hole.To
	}
	return bytes.Equal(r.Rest(), s.Tail[from:])
}

// learn remembers the shape of m. Its tail has counted for so many values.
func (d *decoder) learn(m *codecs.Metadata, head, tail []byte, values int) {
	if h := d.last; h != nil && h.Crowded() && bytes.Equal(h.Bytes, head) && h.Tries() && plain(tail) && widen(h, tail, m, values) {
		return
	}
	if !d.shapes.Due(head, tail, m) || !plain(tail) {
		return
	}
	h, s := d.shapes.Learn(head, tail, m)
	s.Info[infoValues], s.Rest = uint32(values), newKnown(s)
	if h.Info == nil {
		own := new(opening)
		var r hessian.Reader
		r.Reset(h.Bytes)
		own.read(&r)
		h.Info = own
	}
	d.last = h
}

// widen makes a hole of each attachment by which m differs from the shape of h that it is
// most like, if they are few.
func widen(h *codecs.Head, tail []byte, m *codecs.Metadata, values int) bool {
	var old *codecs.Shape
	var fewest []codecs.Hole
	for _, s := range h.Shapes() {
		if holes := differences(s, tail, m); holes != nil && (old == nil || len(holes) < len(fewest)) {
			old, fewest = s, holes
		}
	}
	if old == nil || len(fewest) == len(old.Holes) { // what is in them now cannot be remembered
		return false
	}
	s := h.Widen(old, tail, fewest, m)
	if s == nil {
		return false
	}
	s.Info[infoValues], s.Rest = uint32(values), newKnown(s)
	return true
}

// differences returns the holes that a shape must have for the tail of m to be one of its,
// nil if it cannot.
func differences(s *codecs.Shape, tail []byte, m *codecs.Metadata) (holes []codecs.Hole) {
	if s == nil || len(s.Tail) == 0 || len(tail) == 0 {
		return nil
	}
	var a, b hessian.Reader
	a.Reset(s.Tail)
	b.Reset(tail)
	a.Open()
	b.Open()
	known := s.Holes
	for a.Peek() != 'Z' && b.Peek() != 'Z' {
		key := b.ASCII()
		if key == nil || !bytes.Equal(key, a.ASCII()) {
			return nil
		}
		fromA, fromB := a.Pos(), b.Pos()
		a.Skip()
		b.Skip()
		hole := len(known) > 0 && known[0].From == fromA
		if hole {
			known = known[1:]
		}
		if x, y := s.Tail[fromA:a.Pos()], tail[fromB:b.Pos()]; !hole && bytes.Equal(x, y) {
			continue
		}
		a.Seek(fromA)
		b.Seek(fromB)
		value := b.ASCII()
		if a.ASCII() == nil || len(value) == 0 || len(holes) == codecs.MaxHoles || string(key) == "group" || isCall(key) {
			return nil
		}
		property := slices.IndexFunc(m.Properties(), func(p codecs.Property) bool { return len(p.Value) > 0 && &p.Value[0] == &value[0] })
		holes = append(holes, codecs.Hole{From: fromB, To: b.Pos(), Property: property})
	}
	if !a.Close() || !b.Close() || a.More() || b.More() {
		return nil
	}
	return holes
}

// plain reports whether attachments say the same whatever the arguments are: objects
// among them could be of classes that those define.
func plain(tail []byte) bool {
	if len(tail) == 0 {
		return true
	}
	if tail[0] != 'H' {
		return false
	}
	var r hessian.Reader
	r.Reset(tail[1:])
	for r.More() && r.Peek() != 'Z' {
		if !hessian.IsString(r.Peek()) || !r.Skip() || !r.Skip() {
			return false
		}
	}
	return r.Close() && !r.More()
}
