package codecs

import (
	"bytes"
	"hash/maphash"
	"slices"
	"sync/atomic"
)

// Learner is implemented by decoders of requests that remember shapes: what clients send
// is most often what they have sent before, but for ids, arguments and the like, and
// bytes are compared faster than they are read. A message must be decoded to the same
// with shapes as without.
type Learner interface {
	Decoder
	// Learn has the decoder use s, which it shares with others of its codec on the
	// same worker.
	Learn(s *Shapes)
}

// RequestID is the name of the one property that may be deferred in a message that shares
// a [Shape]: each request has another.
const RequestID = "x-request-id"

const (
	shapeSets, shapeWays = 64, 2
	// tailsPerHead is how many shapes begin alike.
	tailsPerHead = 4
	// maxShapeBytes is the largest shape that is worth remembering.
	maxShapeBytes = 4 << 10
	// lessons is the part of the frames of unknown shapes that are learnt where others
	// have to make room for them: more would cost those who are never seen again more
	// than it gains others.
	lessons = 64
)

// Shapes are what the decoders of a worker remember. The zero Shapes are ready for use.
type Shapes struct {
	sets   *[shapeSets][shapeWays]*Head
	misses uint
}

// Head is how requests begin, up to what differs. It is not changed, but for the shapes
// that begin with it.
type Head struct {
	// Bytes are the requests' own. They are nil once the head has been forgotten, with its
	// shapes: decoders that were shown it may keep it.
	Bytes []byte
	// Info is what the decoder knows of them.
	Info any

	hash  uint64
	tails [tailsPerHead]*Shape
	next  uint8 // of tails, to make room
	vain  uint  // requests since holes were looked for, and not found
}

// Shape is what requests have in common that begin with one head and end with the same
// bytes, its tail. They share its properties, but for the values that holes have.
type Shape struct {
	// Info is the decoder's own.
	Info [2]uint32
	// Rest is the decoder's, too, which may know more of the shape by it. If properties are
	// in holes, it puts those of a message that shares the shape, once somebody asks for
	// them: m has all properties then, but another's values there, and its Raw is valid.
	Rest Loader
	// Tail is that of one of the requests, and Holes are the parts of it that others
	// need not have, in their order. They are not changed.
	Tail  []byte
	Holes []Hole

	id              uint64
	props           []Property
	varies          uint64 // a bit for each of the properties that has a hole
	service, method []byte

	found [founders]finding
	next  uint8 // of found that is replaced
}

// founders is how many keep something with a shape at a time: the routes and the conditions
// of some filters.
const founders = 6

// finding is what somebody has found for a shape.
type finding struct {
	key   uint64
	value int32
}

// Hole is a part of a tail that differs from request to request, such as the id of a trace.
type Hole struct {
	// From and To are where it is in the tail.
	From, To int
	// Property that has the value in it, -1 if none does.
	Property int
}

// ID is the shape's alone in the process, and never 0: to tell a shape again by it keeps
// nothing of one that has been forgotten.
func (s *Shape) ID() uint64 { return s.id }

// shapeIDs is the last ID.
var shapeIDs atomic.Uint64

// MaxHoles is how many holes a tail can have.
const MaxHoles = 4

// Find returns what Keep has kept under a key, which is not 0.
func (s *Shape) Find(key uint64) (value int32, ok bool) {
	for i := range s.found {
		if f := &s.found[i]; f.key == key {
			return f.value, true
		}
	}
	return 0, false
}

// Keep keeps with a shape, under a key, what depends on nothing but the properties of the
// messages that share it. Of what is kept the oldest makes room.
func (s *Shape) Keep(key uint64, value int32) {
	s.found[s.next] = finding{key, value}
	s.next = (s.next + 1) % founders
}

// Varies reports whether a property called name, compared without regard to ASCII case, is
// in a hole: what depends on it is not the same for all messages that share s.
func (s *Shape) Varies(name string) bool {
	if s.varies == 0 {
		return false
	}
	for i := range s.props {
		if s.varies&(1<<i) != 0 && EqualFold(s.props[i].Name, name) {
			return true
		}
	}
	return false
}

var shapeSeed = maphash.MakeSeed()

// Head returns the head with these bytes, nil if it is not known.
func (s *Shapes) Head(b []byte) *Head {
	if s.sets == nil || len(b) > maxShapeBytes {
		return nil
	}
	_, _, h := s.find(b)
	return h
}

// find returns the head with these bytes, nil if it is not known, and where it belongs.
func (s *Shapes) find(b []byte) (set *[shapeWays]*Head, hash uint64, h *Head) {
	hash = maphash.Bytes(shapeSeed, b)
	set = &s.sets[hash%shapeSets]
	for _, h := range set {
		if h != nil && h.hash == hash && bytes.Equal(h.Bytes, b) {
			return set, hash, h
		}
	}
	return set, hash, nil
}

// Shape returns the shape without holes that ends with tail, nil if there is none.
func (h *Head) Shape(tail []byte) *Shape {
	for _, s := range h.tails {
		if s != nil && s.Holes == nil && bytes.Equal(s.Tail, tail) {
			return s
		}
	}
	return nil
}

// Shapes returns all shapes that begin with h, and nil in the places of others. It must
// not be changed.
func (h *Head) Shapes() []*Shape { return h.tails[:] }

// Crowded reports whether h has as many shapes as it can.
func (h *Head) Crowded() bool { return h.tails[h.next] != nil }

// Tries reports whether holes are to be looked for in a request that has none of h's
// shapes, which costs more than reading it: behind an attempt in vain, in one of 64.
func (h *Head) Tries() bool {
	h.vain++
	return h.vain%lessons == 1
}

// Due reports whether a request with no known shape, that begins with head and ends with
// tail, is to be learnt: there is room, or the time has come that others make room.
func (s *Shapes) Due(head, tail []byte, m *Metadata) bool {
	if s.misses++; !worthwhile(head, tail, m) {
		return false
	}
	if s.sets == nil || s.misses%lessons == 0 {
		return true
	}
	set, _, h := s.find(head)
	if h == nil {
		return slices.Contains(set[:], nil)
	}
	return !h.Crowded()
}

// Learn remembers the shape of m, for which Due has said so, and all of whose properties are
// told by the bytes of head and tail. It copies both.
func (s *Shapes) Learn(head, tail []byte, m *Metadata) (*Head, *Shape) {
	if s.sets == nil {
		s.sets = new([shapeSets][shapeWays]*Head)
	}
	set, hash, h := s.find(head)
	if h == nil {
		at := slices.Index(set[:], nil)
		if at < 0 {
			at = int(s.misses/lessons) % shapeWays
			*set[at] = Head{} // what idle connections keep of it is in no bound
		}
		h = &Head{Bytes: bytes.Clone(head), hash: hash}
		set[at] = h
	}
	shape := newShape(tail, m)
	h.tails[h.next] = shape
	h.next = (h.next + 1) % tailsPerHead
	return h, shape
}

// Widen puts a shape with these holes, more than it had, in the place of one of h's. m is
// one of those that share it, and ends with tail. It returns nil if the shape is too large.
func (h *Head) Widen(old *Shape, tail []byte, holes []Hole, m *Metadata) *Shape {
	if !worthwhile(h.Bytes, tail, m) {
		return nil
	}
	shape := newShape(tail, m)
	shape.Holes = append([]Hole(nil), holes...)
	for _, hole := range holes {
		if hole.Property >= 0 {
			shape.varies |= 1 << hole.Property
		}
	}
	for i := range h.tails {
		if h.tails[i] == old {
			h.tails[i] = shape
		}
	}
	h.vain = 0
	return shape
}

func worthwhile(head, tail []byte, m *Metadata) bool {
	return len(head)+len(tail) <= maxShapeBytes && len(m.props) <= keepProps
}

func newShape(tail []byte, m *Metadata) *Shape {
	need := len(tail) + len(m.service) + len(m.method)
	for i := range m.props {
		need += len(m.props[i].Name) + len(m.props[i].Value)
	}
	own := make([]byte, 0, need)
	keep := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		n := len(own)
		own = append(own, b...)
		return own[n:len(own):len(own)]
	}
	s := &Shape{id: shapeIDs.Add(1), Tail: keep(tail), service: keep(m.service), method: keep(m.method), props: make([]Property, len(m.props))}
	for i := range m.props {
		s.props[i] = Property{keep(m.props[i].Name), keep(m.props[i].Value)}
	}
	return s
}

// ShareBut is Share for a shape with holes but without a Rest: values are what m, whose frame
// they are of, has in them. It gives m properties of its own.
func (m *Metadata) ShareBut(s *Shape, values [][]byte) {
	m.props = append(m.props[:0], s.props...)
	for i, value := range values {
		if p := s.Holes[i].Property; p >= 0 {
			m.props[p].Value = value
		}
	}
	m.service, m.method = s.service, s.method
}

// Share gives m, which has none yet, the properties and the operation of a shape. They
// outlive the frame; what holes have is read when somebody asks for it, by Rest. What is
// set and changed is m's alone.
func (m *Metadata) Share(s *Shape) {
	m.mine, m.props, m.shape, m.frame = m.props[:0], s.props, s, s
	m.service, m.method = s.service, s.method
}

// Shape returns the shape that m shares, nil if there is none, or if one of its properties
// has been changed since, or all have been asked for together with others. What is deferred
// is no part of it, nor is what has been set beside it; see [Metadata.Beside].
func (m *Metadata) Shape() *Shape { return m.shape }

// Beside reports whether a message that shares a shape has a property of one of these names,
// compared without regard to ASCII case, that the shape does not have: it was set since.
// What is deferred does not count.
func (m *Metadata) Beside(names []string) bool {
	for i := range m.mine {
		for _, name := range names {
			if EqualFold(m.mine[i].Name, name) {
				return true
			}
		}
	}
	return false
}

// FrameShape returns the shape that m's frame has, nil if it is not known: Shape, but that
// what has become of the properties does not matter. Release and Reset forget it.
func (m *Metadata) FrameShape() *Shape { return m.frame }

// Known returns the properties, but of a message that shares a shape only the shape's; those
// that vary have any value. The slice is a view.
func (m *Metadata) Known() []Property {
	if m.shape == nil {
		m.load()
	}
	return m.props
}

// unshare makes properties m's own, as they are about to change.
func (m *Metadata) unshare() {
	if m.shape != nil {
		m.leave()
	}
}

// leave has m no longer share its shape.
func (m *Metadata) leave() {
	m.load()
	s := m.shape
	m.props, m.mine, m.shape = slices.Insert(m.mine, 0, m.props...), nil, nil
	if s.varies != 0 {
		s.Rest.Load(m)
	}
}

// forget empties the properties.
func (m *Metadata) forget() {
	if m.shape != nil {
		m.props, m.mine, m.shape = m.mine, nil, nil
	}
	clear(m.props)
	m.props = m.props[:0]
}
