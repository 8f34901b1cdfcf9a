package thrift

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// maxDepth is how deep structs and containers may nest, as in Apache Thrift's
// own libraries (TConfiguration's recursion limit).
const maxDepth = 64

// maxValues is how many values the arguments of a call may have, fields and
// elements: it bounds what one costs, to 5 ms. Containers of elements that
// have the same size always count as one value, and so do those of more than
// manyVarints integers of the compact protocol: they cost next to nothing.
const (
	maxValues   = 1 << 19
	manyVarints = 64
)

var (
	errDepth  = errors.New("structs and containers are nested too deeply")
	errSize   = errors.New("impossible size of a string or container")
	errField  = errors.New("unknown type of a field or element")
	errLarge  = errors.New("message is larger than the limit")
	errValues = fmt.Errorf("more than %d values", maxValues)
)

// skipper finds the end of a struct without a look at its values. Asked again
// when more bytes have come it goes on where it was, so a message that comes in
// many pieces costs what it costs in one.
type skipper struct {
	compact bool
	limit   int // of pos
	pos     int // may be beyond the bytes that are there
	values  int // that may still come
	depth   int
	stack   []level // as many as may be nested, maxDepth at most
}

// level is a struct or a container that is being skipped.
type level struct {
	left     uint32 // elements
	a, b     uint8  // types of the elements, or of keys and values in turn
	elements bool   // of a container; else fields of a struct
	many     bool   // varints, of which only the ends are looked for
}

func (s *skipper) start(compact bool, at, limit, values int) {
	s.compact, s.pos, s.limit, s.values = compact, at, limit, values
	s.stack[0], s.depth = level{}, 1
}

// run goes on as far as b allows, which begins where it has always begun. It
// returns 0 when the struct ends, at pos, within b, and otherwise how many
// bytes there must be at least.
func (s *skipper) run(b []byte) (need int, err error) {
	b = b[:min(len(b), s.limit)]
	for s.depth > 0 {
		var whole bool
		switch top := &s.stack[s.depth-1]; {
		case top.elements:
			whole, err = s.elements(b, top)
		case s.compact:
			whole, err = s.compactFields(b)
		default:
			whole, err = s.fields(b)
		}
		if err != nil {
			return 0, err
		}
		if !whole {
			if need = max(s.pos, len(b)+1); need > s.limit {
				return 0, errLarge
			}
			return need, nil
		}
	}
	return 0, nil
}

// fields skips fields of the binary protocol, up to one that has something
// nested in it, or the end of the struct. whole is false when b is too short.
func (s *skipper) fields(b []byte) (whole bool, err error) {
	pos, values := s.pos, s.values
	for pos < len(b) {
		t := b[pos]
		if t == 0 {
			s.pos, s.values = pos+1, values
			s.depth--
			return true, nil
		}
		if values == 0 {
			return false, errValues
		}
		if n := int(binSizes[t]); n > 0 {
			values--
			pos += 3 + n
			continue
		}
		if len(b)-pos < 3 {
			break
		}
		n, nested, err := s.value(b[pos+3:], t)
		if err != nil {
			return false, err
		}
		if n < 0 {
			break
		}
		values--
		pos += 3 + n
		if nested {
			s.pos, s.values = pos, values
			s.depth++
			return true, nil
		}
	}
	s.pos, s.values = pos, values
	return false, nil
}

// compactFields is fields for the compact protocol.
func (s *skipper) compactFields(b []byte) (whole bool, err error) {
	pos, values := s.pos, s.values
	for pos < len(b) {
		c := b[pos]
		if c == 0 {
			s.pos, s.values = pos+1, values
			s.depth--
			return true, nil
		}
		if values == 0 {
			return false, errValues
		}
		t, at := c&0x0f, pos+1
		if c>>4 == 0 { // not the difference to the id before, but the id
			_, n := uvarint(b[at:])
			if t == 0 {
				return false, errField
			}
			if n < 0 {
				return false, errVarint
			}
			if n == 0 {
				break
			}
			at += n
		}
		if t == cmpTrue || t == cmpFalse { // the type is the value
			values--
			pos = at
			continue
		}
		n, nested, err := s.compactValue(b[at:], t)
		if err != nil {
			return false, err
		}
		if n < 0 {
			break
		}
		values--
		pos = at + n
		if nested {
			s.pos, s.values = pos, values
			s.depth++
			return true, nil
		}
	}
	s.pos, s.values = pos, values
	return false, nil
}

// elements skips elements of a container, as fields does.
func (s *skipper) elements(b []byte, top *level) (whole bool, err error) {
	if top.many {
		var n int
		n, top.left = skipVarints(b[min(s.pos, len(b)):], top.left)
		s.pos += n
		if top.left > 0 {
			return false, nil
		}
	}
	pos, values, left, t, next := s.pos, s.values, top.left, top.a, top.b
	nested := false
	for ; left > 0 && pos <= len(b) && !nested; left-- {
		if values == 0 {
			return false, errValues
		}
		var n int
		if s.compact {
			n, nested, err = s.compactValue(b[pos:], t)
		} else {
			n, nested, err = s.value(b[pos:], t)
		}
		if err != nil {
			return false, err
		}
		if n < 0 {
			break
		}
		values--
		pos += n
		t, next = next, t
	}
	s.pos, s.values = pos, values
	top.left, top.a, top.b = left, t, next
	switch {
	case nested:
		s.depth++
	case left > 0 || pos > len(b):
		return false, nil
	default:
		s.depth--
	}
	return true, nil
}

func isVarint(t uint8) bool { return t >= cmpI16 && t <= cmpI64 }

// skipVarints returns how many bytes at the start of b the next left varints
// have, as far as they are there, and how many do not end there.
func skipVarints(b []byte, left uint32) (n int, rest uint32) {
	for left >= 32 && len(b)-n >= 32 {
		w := b[n : n+32 : n+32]
		left -= uint32(bits.OnesCount64(ends(w)) + bits.OnesCount64(ends(w[8:])) + bits.OnesCount64(ends(w[16:])) + bits.OnesCount64(ends(w[24:])))
		n += 32
	}
	for left > 0 && len(b)-n >= 8 {
		e := ends(b[n:])
		if c := uint32(bits.OnesCount64(e)); c < left {
			left -= c
			n += 8
			continue
		}
		for ; left > 1; left-- {
			e &= e - 1
		}
		return n + bits.TrailingZeros64(e)/8 + 1, 0
	}
	for ; left > 0 && n < len(b); n++ {
		if b[n] < 0x80 {
			left--
		}
	}
	return n, left
}

// ends has the highest bit of those of the first eight bytes at which a varint ends.
func ends(b []byte) uint64 { return ^binary.LittleEndian.Uint64(b) & 0x8080808080808080 }

// Types of the binary protocol (TType).
const (
	binBool   = 2
	binByte   = 3
	binDouble = 4
	binI16    = 6
	binI32    = 8
	binI64    = 10
	binString = 11
	binStruct = 12
	binMap    = 13
	binSet    = 14
	binList   = 15
	binUUID   = 16
)

// Types of the compact protocol.
const (
	cmpTrue   = 1
	cmpFalse  = 2
	cmpByte   = 3
	cmpI16    = 4
	cmpI32    = 5
	cmpI64    = 6
	cmpDouble = 7
	cmpBinary = 8
	cmpList   = 9
	cmpSet    = 10
	cmpMap    = 11
	cmpStruct = 12
	cmpUUID   = 13
)

// Sizes of values that have the same always, by their types. Of the compact
// protocol they are those of elements: the booleans among fields have none.
var (
	binSizes = [256]uint8{binBool: 1, binByte: 1, binI16: 2, binI32: 4, binI64: 8, binDouble: 8, binUUID: 16}
	cmpSizes = [256]uint8{cmpTrue: 1, cmpFalse: 1, cmpByte: 1, cmpDouble: 8, cmpUUID: 16}
)

// value returns how long a value of type t is, -1 when b is too short to tell,
// and whether something is nested in it, behind that length. That is put on the
// stack, above what is there.
func (s *skipper) value(b []byte, t uint8) (n int, nested bool, err error) {
	if n = int(binSizes[t]); n > 0 {
		return n, false, nil
	}
	switch t {
	case binString:
		if len(b) < 4 {
			return -1, false, nil
		}
		n, err = s.size(uint64(binary.BigEndian.Uint32(b)))
		return 4 + n, false, err
	case binStruct:
		return s.inner(b, 0, level{})
	case binMap:
		if len(b) < 6 {
			return -1, false, nil
		}
		n, err = s.size(uint64(binary.BigEndian.Uint32(b[2:])))
		if err != nil {
			return 0, false, err
		}
		return s.inner(b, 6, level{left: 2 * uint32(n), a: b[0], b: b[1], elements: true})
	case binSet, binList:
		if len(b) < 5 {
			return -1, false, nil
		}
		n, err = s.size(uint64(binary.BigEndian.Uint32(b[1:])))
		if err != nil {
			return 0, false, err
		}
		return s.inner(b, 5, level{left: uint32(n), a: b[0], b: b[0], elements: true})
	}
	return 0, false, errField
}

// compactValue is value for the compact protocol, whose booleans are elements.
func (s *skipper) compactValue(b []byte, t uint8) (n int, nested bool, err error) {
	if n = int(cmpSizes[t]); n > 0 {
		return n, false, nil
	}
	if t == cmpStruct {
		return s.inner(b, 0, level{})
	}
	if t < cmpI16 || t > cmpStruct {
		return 0, false, errField
	}
	if len(b) == 0 {
		return -1, false, nil
	}
	if t <= cmpI64 {
		for i, c := range b {
			if i == binary.MaxVarintLen64 {
				return 0, false, errVarint
			}
			if c < 0x80 {
				return i + 1, false, nil
			}
		}
		return -1, false, nil
	}
	at := 0
	if t == cmpList || t == cmpSet {
		at = 1
		if few := b[0] >> 4; few != 15 {
			return s.inner(b, 1, level{left: uint32(few), a: b[0] & 0x0f, b: b[0] & 0x0f, elements: true})
		}
	}
	v, k := uvarint(b[at:])
	if k < 0 {
		return 0, false, errVarint
	}
	if k == 0 {
		return -1, false, nil
	}
	if n, err = s.size(v); err != nil {
		return 0, false, err
	}
	at += k
	switch {
	case t == cmpBinary:
		return at + n, false, nil
	case t != cmpMap:
		return s.inner(b, at, level{left: uint32(v), a: b[0] & 0x0f, b: b[0] & 0x0f, elements: true})
	case v == 0:
		return at, false, nil // without types
	case len(b) == at:
		return -1, false, nil
	}
	return s.inner(b, at+1, level{left: 2 * uint32(v), a: b[at] >> 4, b: b[at] & 0x0f, elements: true})
}

// inner returns what value does of a struct or container whose insides begin at
// offset at of b. They are nested unless their end can be told at once.
func (s *skipper) inner(b []byte, at int, sub level) (n int, nested bool, err error) {
	if sub.elements {
		sizes := &binSizes
		if s.compact {
			sizes = &cmpSizes
		}
		x, y := sizes[sub.a], sizes[sub.b]
		if sub.left == 0 || x > 0 && y > 0 {
			return at + int(sub.left)*int(x+y)/2, false, nil
		}
		sub.many = s.compact && sub.left > manyVarints && isVarint(sub.a) && isVarint(sub.b)
	} else if at < len(b) && b[at] == 0 {
		return at + 1, false, nil
	}
	if s.depth == len(s.stack) {
		return 0, false, errDepth
	}
	s.stack[s.depth] = sub
	return at, true, nil
}

// size refuses sizes that no message can have: each element has a byte.
func (s *skipper) size(n uint64) (int, error) {
	if n > uint64(s.limit) {
		return 0, errSize
	}
	return int(n), nil
}
