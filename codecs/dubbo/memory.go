package dubbo

import (
	"bytes"

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
	if h := d.last; h != nil && bytes.HasPrefix(body, h.Bytes) {
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
	s := h.Shape(m.Raw[headerSize+r.Pos():])
	if s == nil || int(s.Info[infoValues]) > r.Left() {
		return false
	}
	m.Share(s)
	return true
}

// learn remembers the shape of m. Its tail has counted for so many values.
func (d *decoder) learn(m *codecs.Metadata, head, tail []byte, values int) {
	if !plain(tail) {
		return
	}
	h, s := d.shapes.Learn(head, tail, m)
	if s == nil {
		return
	}
	s.Info[infoValues] = uint32(values)
	if h.Info == nil {
		own := new(opening)
		var r hessian.Reader
		r.Reset(h.Bytes)
		own.read(&r)
		h.Info = own
	}
	d.last = h
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
