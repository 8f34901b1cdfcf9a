package thrift

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// memory is what a decoder of requests remembers: their shapes. A head is the transport, the
// order of headers, and all that a message begins with but its sequence id. A tail is what the header before it
// has, from its protocol to its padding; it is empty where there is no header. Arguments
// are skipped as ever: nothing depends on them.
type memory struct {
	shapes *codecs.Shapes
	last   *codecs.Head
}

// maxKnown is the longest head that is remembered.
const maxKnown = 256

// What Info of a Shape has.
const (
	infoRetried = iota // 1: the header says so
	infoAt             // where its parts begin in the tail
)

// Learn implements codecs.Learner.
func (d *decoder) Learn(s *codecs.Shapes) { d.shapes = s }

// beforeMessage is what a head has before what the message begins with.
const beforeMessage = 5

// orderOf tells headers in one order from those in another. Kitex writes Go's maps, which
// begin with another of their keys each time, and go on in the same order where they are
// small: so the first keys of its two maps tell.
func orderOf(r *infoReader) (order uint32) {
	if r == nil || !r.kitex {
		return 0
	}
	at := *r
	for parts := 0; parts < 2; {
		kind, n := at.next()
		if kind == partEnd || kind == partUnknown {
			break
		}
		for first := true; n > 0 && at.err == nil; n, first = n-1, false {
			key := at.key(kind)
			if first && kind != partToken && len(key) > 0 {
				order = order<<16 | uint32(len(key))<<8&0xff00 | uint32(key[len(key)-1])
				if parts++; parts == 2 {
					break
				}
			}
			at.value()
		}
	}
	return order
}

// appendHead appends the head of shapes of h, which b begins with.
func (h *message) appendHead(dst []byte, transport int, order uint32, b []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(append(dst, byte(transport)), order)
	if h.protocol == compact {
		return append(append(dst, b[:h.seqAt]...), b[h.seqAt+h.seqLen:h.body]...)
	}
	return append(dst, b[:h.seqAt]...)
}

// begins reports whether that is head, but for the order.
func (h *message) begins(head []byte, transport int, b []byte) bool {
	if head[0] != byte(transport) {
		return false
	}
	if head = head[beforeMessage:]; h.protocol != compact {
		return string(head) == string(b[:h.seqAt])
	}
	return string(head[:h.seqAt]) == string(b[:h.seqAt]) && string(head[h.seqAt:]) == string(b[h.seqAt+h.seqLen:h.body])
}

// opening is what is known of framed calls that begin with a head of the binary protocol.
type opening struct {
	head    message
	typ     codecs.MessageType
	variant uint8
	size    int
	scratch [8]uint32
}

// again decodes the framed call at the start of b, if it begins as the one before, and returns
// its length: it is what Decode makes of it. Else it returns 0.
func (d *decoder) again(b []byte, m *codecs.Metadata) int {
	o, is := d.last.Info.(*opening)
	if !is || len(b) < o.size || b[0] > maxFirst {
		return 0
	}
	head := d.last.Bytes[beforeMessage:]
	at, n := o.size-4, 4+int(binary.BigEndian.Uint32(b))
	if string(b[4:at]) != string(head) || n < o.size || n > len(b) || n > d.maxFrame {
		return 0
	}
	s := d.last.Shape(nil)
	if s == nil {
		return 0
	}
	m.Type, m.Variant, m.Scratch = o.typ, o.variant, o.scratch
	m.ID = uint64(binary.BigEndian.Uint32(b[at:]))
	m.ReplyInfo = append(m.ReplyInfo[:0], head[beforeName:]...)
	m.Share(s)
	m.Malformed = o.head.tail(b[4:n], d.maxFrame)
	m.Raw, m.HeaderSize, m.BodySize = b[:n], o.size, n-o.size
	return n
}

// beforeName is what the binary protocol with a version has before the name of a method.
const beforeName = 8

// recall gives m, a call whose head h b begins with, the shape that it has, and returns it,
// nil if that is not known. r is about to read the header before it, nil if there is none.
func (d *decoder) recall(h *message, b []byte, r *infoReader, m *codecs.Metadata) *codecs.Shape {
	if d.shapes == nil {
		return nil
	}
	transport := form(m.Variant).transport()
	var s *codecs.Shape
	if l := d.last; l != nil && l.Bytes != nil && h.begins(l.Bytes, transport, b) {
		s = find(d.last, r, m)
	}
	if s == nil && d.seek(h, b, transport, orderOf(r)) {
		s = find(d.last, r, m)
	}
	if s != nil {
		m.ReplyInfo = append(m.ReplyInfo[:0], h.name...)
	}
	return s
}

// seek has last be the head of shapes of h, if it is known.
func (d *decoder) seek(h *message, b []byte, transport int, order uint32) bool {
	if h.body+beforeMessage > maxKnown {
		return false
	}
	var own [maxKnown]byte
	head := d.shapes.Head(h.appendHead(own[:0], transport, order, b))
	if head != nil {
		d.last = head
	}
	return head != nil
}

// find gives m the shape of head that its header has.
func find(head *codecs.Head, r *infoReader, m *codecs.Metadata) *codecs.Shape {
	var info []byte
	if r != nil {
		info = r.b[headerFixed:]
	}
	for _, s := range head.Shapes() {
		if s != nil && s.Holes == nil && bytes.HasPrefix(info, s.Tail) && pads(info[len(s.Tail):]) {
			m.Share(s)
			return s
		}
	}
	if r == nil {
		return nil
	}
	for _, s := range head.Shapes() {
		if s == nil || s.Holes == nil {
			continue
		}
		var values [codecs.MaxHoles][]byte
		if fits(s, infoReader{b: info, kitex: r.kitex}, values[:len(s.Holes)]) {
			m.ShareBut(s, values[:len(s.Holes)])
			return s
		}
	}
	return nil
}

// fits reports whether what r reads is the tail of a shape but for holes, and returns what is
// in those.
func fits(s *codecs.Shape, r infoReader, values [][]byte) bool {
	from := 0
	for i, hole := range s.Holes {
		if !r.passes(s.Tail[from:hole.From]) {
			return false
		}
		if values[i] = r.value(); r.err != nil {
			return false
		}
		from = hole.To
	}
	return r.passes(s.Tail[from:]) && pads(r.b[r.at:])
}

// passes moves over part if that comes next.
func (r *infoReader) passes(part []byte) bool {
	if !bytes.HasPrefix(r.b[r.at:], part) {
		return false
	}
	r.at += len(part)
	return true
}

// pads reports whether b is no more than the padding of a header. Some write a whole word
// where none is needed.
func pads(b []byte) bool {
	const zeros = "\x00\x00\x00\x00"
	return len(b) <= wordSize && string(b) == zeros[:len(b)]
}

// learn remembers the shape of m, a call whose head h b begins with. r has read the header
// before it, nil if there is none.
func (d *decoder) learn(h *message, b []byte, r *infoReader, m *codecs.Metadata) {
	if d.shapes == nil || m.Malformed != "" || h.body+beforeMessage > maxKnown {
		return
	}
	var tail []byte
	order := uint32(0)
	if r != nil {
		at := int(m.Scratch[scratchInfo])
		tail = r.b[headerFixed:max(r.end, at)]
		order = orderOf(&infoReader{b: r.b, at: at, kitex: r.kitex})
	}
	var own [maxKnown]byte
	head := h.appendHead(own[:0], form(m.Scratch[scratchForm]&0xff).transport(), order, b)
	if l := d.last; l != nil && r != nil && l.Crowded() && string(l.Bytes) == string(head) && l.Tries() && widen(l, tail, r.kitex, m) {
		return
	}
	if !d.shapes.Due(head, tail, m) {
		return
	}
	known, s := d.shapes.Learn(head, tail, m)
	d.last = known
	tell(s, m)
	if known.Info == nil && form(m.Variant) == formOf(framed, strict) {
		own := &opening{typ: m.Type, variant: m.Variant, size: m.HeaderSize, scratch: m.Scratch, head: *h}
		own.head.name = nil // it is a view
		known.Info = own
	}
}

// tell has a shape know what its properties do not say of m.
func tell(s *codecs.Shape, m *codecs.Metadata) {
	if s.Info[infoAt] = m.Scratch[scratchInfo]; m.Retried {
		s.Info[infoRetried] = 1
	}
}

// widen makes a hole of each value by which m differs from the shape of h that it is most
// like, if they are few.
func widen(h *codecs.Head, tail []byte, kitex bool, m *codecs.Metadata) bool {
	var old *codecs.Shape
	var fewest []codecs.Hole
	for _, s := range h.Shapes() {
		if holes := differences(s, tail, kitex, m); holes != nil && (old == nil || len(holes) < len(fewest)) {
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
	tell(s, m)
	return true
}

// differences returns the holes that a shape must have for the tail of m to be one of its,
// nil if it cannot.
func differences(s *codecs.Shape, tail []byte, kitex bool, m *codecs.Metadata) (holes []codecs.Hole) {
	at := int(m.Scratch[scratchInfo]) - headerFixed
	if s == nil || s.Info[infoAt] != m.Scratch[scratchInfo] || string(s.Tail[:at]) != string(tail[:at]) {
		return nil
	}
	a, b := infoReader{b: s.Tail, at: at, kitex: kitex}, infoReader{b: tail, at: at, kitex: kitex}
	known := s.Holes
	for {
		kind, n := b.next()
		if k, o := a.next(); k != kind || o != n {
			return nil
		}
		if kind == partEnd {
			break
		}
		for ; n > 0 && a.err == nil && b.err == nil; n-- {
			key := b.key(kind)
			if string(a.key(kind)) != string(key) {
				return nil
			}
			from := b.at
			hole := len(known) > 0 && known[0].From == a.at
			if hole {
				known = known[1:]
			}
			x, value := a.value(), b.value()
			if !hole && string(x) == string(value) {
				continue
			}
			if len(holes) == codecs.MaxHoles || len(value) == 0 || tells(kind, key) {
				return nil
			}
			property := slices.IndexFunc(m.Properties(), func(p codecs.Property) bool { return len(p.Value) > 0 && &p.Value[0] == &value[0] })
			holes = append(holes, codecs.Hole{From: from, To: b.at, Property: property})
		}
	}
	if a.err != nil || b.err != nil {
		return nil
	}
	return holes
}

// tells reports whether a header says more of a call than the property does that it is.
func tells(kind int, key []byte) bool {
	if kind == partNumbered {
		return binary.BigEndian.Uint16(key) == numberToService
	}
	return string(key) == keyService || string(key) == keyRetried
}
