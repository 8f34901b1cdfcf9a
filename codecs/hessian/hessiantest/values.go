// Package hessiantest reads Hessian 2 into Go values for tests. It shares
// nothing with the reader that it helps to test but the specification: it
// builds objects, recurses, and follows references.
package hessiantest

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// What values that Go has no type for become. Others are nil, bool, int32,
// int64, float64, string, []byte and time.Time.
type (
	// List with its type, "" for none.
	List struct {
		Type  string
		Items []any
	}
	// Map with its type, "" for none, in the order of the bytes.
	Map struct {
		Type    string
		Entries [][2]any
	}
	// Object of a class.
	Object struct {
		Class  string
		Fields [][2]any
	}
	// Ref is the number of an earlier List, Map or Object of the same stream.
	Ref int32
)

// Last returns the entries of m whose keys are strings; of several with one key
// the last, as a hash map does.
func (m *Map) Last() map[string]any {
	all := map[string]any{}
	for _, e := range m.Entries {
		if k, ok := e[0].(string); ok {
			all[k] = e[1]
		}
	}
	return all
}

// Values reads all values of a stream.
func Values(b []byte) ([]any, error) {
	var vs []any
	s := stream{b: b}
	for s.pos < len(b) {
		v, err := s.next()
		if err != nil {
			return nil, err
		}
		vs = append(vs, v)
	}
	return vs, nil
}

// Value reads the first value of a stream and returns its length.
func Value(b []byte) (v any, n int, err error) {
	s := stream{b: b}
	v, err = s.next()
	return v, s.pos, err
}

type class struct {
	name   string
	fields []string
}

type stream struct {
	b       []byte
	pos     int
	depth   int
	classes []class
	types   []string
	refs    int32
}

type fault struct{ error }

func (s *stream) fail(format string, args ...any) {
	panic(fault{fmt.Errorf("hessiantest: offset %d: "+format, append([]any{s.pos}, args...)...)})
}

func (s *stream) next() (v any, err error) {
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(fault)
			if !ok {
				panic(r)
			}
			err = f.error
		}
	}()
	return s.value(), nil
}

func (s *stream) take(n int) []byte {
	if n < 0 || n > len(s.b)-s.pos {
		s.fail("cut off")
	}
	s.pos += n
	return s.b[s.pos-n : s.pos]
}

func (s *stream) byte() byte { return s.take(1)[0] }

func (s *stream) end() bool {
	if s.pos == len(s.b) {
		s.fail("cut off")
	}
	if s.b[s.pos] == 'Z' {
		s.pos++
		return true
	}
	return false
}

// signed reads n bytes as a big-endian number, in front of which stands high.
func (s *stream) signed(high int64, n int) int64 {
	for _, c := range s.take(n) {
		high = high<<8 | int64(c)
	}
	return high
}

func (s *stream) float(bits int) float64 {
	if bits == 32 { // thousandths
		return float64(int32(binary.BigEndian.Uint32(s.take(4)))) / 1000
	}
	return math.Float64frombits(binary.BigEndian.Uint64(s.take(8)))
}

func (s *stream) value() any {
	if s.depth++; s.depth > 1000 {
		s.fail("too deep")
	}
	defer func() { s.depth-- }()
	t := s.byte()
	n := int64(t)
	switch {
	case t <= 0x1f || n&^3 == 0x30 || t == 'R' || t == 'S':
		return s.text(t)
	case t <= 0x2f || n&^3 == 0x34 || t == 'A' || t == 'B':
		return s.binary(t)
	case t <= 0x3f:
		return s.signed(n-0x3c, 2)
	case n&^15 == 0x60:
		return s.object(int32(n) - 0x60)
	case n&^7 == 0x70:
		return s.list(s.typeName(), int(n)-0x70)
	case n&^7 == 0x78:
		return s.list("", int(n)-0x78)
	case t >= 0x80 && t <= 0xd7:
		return s.int(t)
	case t >= 0xd8 && t <= 0xef:
		return n - 0xe0
	case t >= 0xf0:
		return s.signed(n-0xf8, 1)
	}
	switch t {
	case 'N':
		return nil
	case 'T', 'F':
		return t == 'T'
	case 'I':
		return s.int(t)
	case 'Y':
		return int64(int32(binary.BigEndian.Uint32(s.take(4))))
	case 'L':
		return int64(binary.BigEndian.Uint64(s.take(8)))
	case '[':
		return 0.0
	case '\\':
		return 1.0
	case ']':
		return float64(int8(s.byte()))
	case '^':
		return float64(int16(binary.BigEndian.Uint16(s.take(2))))
	case '_':
		return s.float(32)
	case 'D':
		return s.float(64)
	case 'J':
		return time.UnixMilli(int64(binary.BigEndian.Uint64(s.take(8)))).UTC()
	case 'K':
		return time.Unix(60*int64(int32(binary.BigEndian.Uint32(s.take(4)))), 0).UTC()
	case 'C':
		s.class()
		return s.value()
	case 'O':
		return s.object(s.int(s.byte()))
	case 'Q':
		n := s.int(s.byte())
		if n < 0 || n >= s.refs {
			s.fail("reference %d of %d", n, s.refs)
		}
		return Ref(n)
	case 'H':
		return s.dict("")
	case 'M':
		return s.dict(s.typeName())
	case 'U':
		return s.list(s.typeName(), -1)
	case 'V':
		name := s.typeName()
		return s.list(name, s.length())
	case 'W':
		return s.list("", -1)
	case 'X':
		return s.list("", s.length())
	}
	s.pos--
	s.fail("tag %#x", t)
	return nil
}

func (s *stream) int(t byte) int32 {
	switch {
	case t >= 0x80 && t <= 0xbf:
		return int32(t) - 0x90
	case t >= 0xc0 && t <= 0xcf:
		return int32(s.signed(int64(t)-0xc8, 1))
	case t >= 0xd0 && t <= 0xd7:
		return int32(s.signed(int64(t)-0xd4, 2))
	case t == 'I':
		return int32(binary.BigEndian.Uint32(s.take(4)))
	}
	s.fail("no int: %#x", t)
	return 0
}

func (s *stream) length() int {
	n := int(s.int(s.byte()))
	if n < 0 || n > len(s.b)-s.pos {
		s.fail("length %d", n)
	}
	return n
}

// text reads a string behind its first tag.
func (s *stream) text(t byte) string {
	var u []uint16
	for {
		n := int(t)
		switch {
		case t == 'R' || t == 'S':
			n = int(s.signed(0, 2))
		case t >= 0x30 && t <= 0x33:
			n = int(s.signed(int64(t)-0x30, 1))
		case t > 0x1f:
			s.fail("no string: %#x", t)
		}
		for end := len(u) + n; len(u) < end; {
			u = s.char(u)
			if len(u) > end {
				s.fail("half a character")
			}
		}
		if t != 'R' {
			return string(utf16.Decode(u))
		}
		t = s.byte()
	}
}

// char reads a character, or the half of one that Java writes.
func (s *stream) char(u []uint16) []uint16 {
	r, n := utf8.DecodeRune(s.b[s.pos:])
	if r != utf8.RuneError || n == 3 {
		s.pos += n
		return utf16.AppendRune(u, r)
	}
	b := s.take(3)
	if b[0] != 0xed || b[1] < 0xa0 || b[1] > 0xbf || b[2]&0xc0 != 0x80 {
		s.fail("not UTF-8")
	}
	return append(u, 0xd000|uint16(b[1]&0x3f)<<6|uint16(b[2]&0x3f))
}

func (s *stream) binary(t byte) []byte {
	all := []byte{}
	for {
		switch {
		case t == 'A' || t == 'B':
			all = append(all, s.take(int(s.signed(0, 2)))...)
		case t >= 0x20 && t <= 0x2f:
			all = append(all, s.take(int(t)-0x20)...)
		case t >= 0x34 && t <= 0x37:
			all = append(all, s.take(int(s.signed(int64(t)-0x34, 1)))...)
		default:
			s.fail("no binary: %#x", t)
		}
		if t != 'A' {
			return all
		}
		t = s.byte()
	}
}

func (s *stream) typeName() string {
	t := s.byte()
	if t <= 0x1f || t >= 0x30 && t <= 0x33 || t == 'R' || t == 'S' {
		s.types = append(s.types, s.text(t))
		return s.types[len(s.types)-1]
	}
	n := s.int(t)
	if n < 0 || int(n) >= len(s.types) {
		s.fail("type %d of %d", n, len(s.types))
	}
	return s.types[n]
}

func (s *stream) class() {
	c := class{name: s.text(s.byte())}
	for range s.length() {
		c.fields = append(c.fields, s.text(s.byte()))
	}
	s.classes = append(s.classes, c)
}

func (s *stream) object(n int32) *Object {
	if n < 0 || int(n) >= len(s.classes) {
		s.fail("class %d of %d", n, len(s.classes))
	}
	s.refs++
	c := s.classes[n]
	o := &Object{Class: c.name}
	for _, f := range c.fields {
		o.Fields = append(o.Fields, [2]any{f, s.value()})
	}
	return o
}

// list reads n items, up to a 'Z' when n is negative.
func (s *stream) list(name string, n int) *List {
	s.refs++
	l := &List{Type: name}
	for i := 0; n < 0 && !s.end() || i < n; i++ {
		l.Items = append(l.Items, s.value())
	}
	return l
}

func (s *stream) dict(name string) *Map {
	s.refs++
	m := &Map{Type: name}
	for !s.end() {
		k := s.value()
		m.Entries = append(m.Entries, [2]any{k, s.value()})
	}
	return m
}
