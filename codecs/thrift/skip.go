package thrift

import (
	"encoding/binary"
	"errors"
)

// maxDepth is how deep structs and containers may nest, as in Apache Thrift's
// own libraries (TConfiguration's recursion limit).
const maxDepth = 64

var (
	errDepth = errors.New("structs and containers are nested too deeply")
	errSize  = errors.New("impossible size of a string or container")
	errField = errors.New("unknown type of a field or element")
	errLarge = errors.New("message is larger than the limit")
)

// skipper finds the end of a struct without a look at its values. Asked again
// when more bytes have come it goes on where it was, so a message that comes in
// many pieces costs what it costs in one.
type skipper struct {
	compact bool
	limit   int // of pos
	pos     int // may be beyond the bytes that are there
	depth   int
	stack   [maxDepth]level
}

// level is a struct or a container that is being skipped.
type level struct {
	elements bool   // of a container; else fields of a struct
	a, b     uint8  // types of the elements, or of keys and values in turn
	left     uint64 // elements
}

func (s *skipper) start(compact bool, at, limit int) {
	s.compact, s.pos, s.limit = compact, at, limit
	s.stack[0], s.depth = level{}, 1
}

// run goes on as far as b allows, which begins where it has always begun. It
// returns 0 when the struct ends, at pos, within b, and otherwise how many
// bytes there must be at least.
func (s *skipper) run(b []byte) (need int, err error) {
	for {
		switch {
		case s.pos > s.limit:
			return 0, errLarge
		case s.pos > len(b):
			return s.pos, nil
		case s.depth == 0:
			return 0, nil
		}
		top := &s.stack[s.depth-1]
		rest, t, head := b[s.pos:], top.a, 0
		if top.elements {
			if top.left == 0 {
				s.depth--
				continue
			}
			if x, y := s.fixed(top.a), s.fixed(top.b); x > 0 && y > 0 {
				s.pos += int(top.left) * (x + y) / 2
				top.left = 0
				continue
			}
		} else {
			if t, head, err = s.field(rest); err != nil {
				return 0, err
			}
			if head == 0 {
				return len(b) + 1, nil
			}
			if t == 0 {
				s.pos++
				s.depth--
				continue
			}
		}
		n, sub, nested, err := s.value(rest[head:], t, !top.elements)
		if err != nil {
			return 0, err
		}
		if n < 0 {
			return len(b) + 1, nil
		}
		s.pos += head + n
		if top.elements {
			top.left--
			top.a, top.b = top.b, top.a
		}
		if nested {
			if s.depth == maxDepth {
				return 0, errDepth
			}
			s.stack[s.depth] = sub
			s.depth++
		}
	}
}

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

// fixed returns the size of an element of type t, 0 if it has none of its own.
func (s *skipper) fixed(t uint8) int {
	if s.compact {
		switch t {
		case cmpTrue, cmpFalse, cmpByte:
			return 1
		case cmpDouble:
			return 8
		case cmpUUID:
			return 16
		}
		return 0
	}
	switch t {
	case binBool, binByte:
		return 1
	case binI16:
		return 2
	case binI32:
		return 4
	case binI64, binDouble:
		return 8
	case binUUID:
		return 16
	}
	return 0
}

// field reads the head of a field: its type, 0 at the end of a struct, and its
// length, 0 when b is too short.
func (s *skipper) field(b []byte) (t uint8, n int, err error) {
	switch {
	case len(b) == 0:
		return 0, 0, nil
	case b[0] == 0:
		return 0, 1, nil
	case !s.compact && len(b) < 3:
		return 0, 0, nil
	case !s.compact:
		return b[0], 3, nil
	}
	t = b[0] & 0x0f
	if t == 0 {
		return 0, 0, errField
	}
	if b[0]>>4 != 0 { // the difference to the id before
		return t, 1, nil
	}
	_, n = uvarint(b[1:])
	switch {
	case n < 0:
		return 0, 0, errVarint
	case n == 0:
		return 0, 0, nil
	}
	return t, 1 + n, nil
}

// value returns how long a value of type t is, -1 when b is too short to tell,
// and what is nested in it, behind that length.
func (s *skipper) value(b []byte, t uint8, ofField bool) (n int, sub level, nested bool, err error) {
	if s.compact {
		return s.compactValue(b, t, ofField)
	}
	if n = s.fixed(t); n > 0 {
		return n, sub, false, nil
	}
	switch t {
	case binString:
		if len(b) < 4 {
			return -1, sub, false, nil
		}
		n, err = s.size(uint64(binary.BigEndian.Uint32(b)))
		return 4 + n, sub, false, err
	case binStruct:
		return 0, sub, true, nil
	case binMap:
		if len(b) < 6 {
			return -1, sub, false, nil
		}
		n, err = s.size(uint64(binary.BigEndian.Uint32(b[2:])))
		return 6, level{true, b[0], b[1], 2 * uint64(n)}, true, err
	case binSet, binList:
		if len(b) < 5 {
			return -1, sub, false, nil
		}
		n, err = s.size(uint64(binary.BigEndian.Uint32(b[1:])))
		return 5, level{true, b[0], b[0], uint64(n)}, true, err
	}
	return 0, sub, false, errField
}

func (s *skipper) compactValue(b []byte, t uint8, ofField bool) (n int, sub level, nested bool, err error) {
	if ofField && (t == cmpTrue || t == cmpFalse) {
		return 0, sub, false, nil // the type is the value
	}
	if n = s.fixed(t); n > 0 {
		return n, sub, false, nil
	}
	switch t {
	case cmpStruct:
		return 0, sub, true, nil
	case cmpI16, cmpI32, cmpI64, cmpBinary, cmpList, cmpSet, cmpMap:
	default:
		return 0, sub, false, errField
	}
	if len(b) == 0 {
		return -1, sub, false, nil
	}
	if t <= cmpI64 {
		for i, c := range b {
			if i == binary.MaxVarintLen64 {
				return 0, sub, false, errVarint
			}
			if c < 0x80 {
				return i + 1, sub, false, nil
			}
		}
		return -1, sub, false, nil
	}
	at := 0
	if t == cmpList || t == cmpSet {
		at = 1
		if few := b[0] >> 4; few != 15 {
			return 1, level{true, b[0] & 0x0f, b[0] & 0x0f, uint64(few)}, true, nil
		}
	}
	v, k := uvarint(b[at:])
	if k < 0 {
		return 0, sub, false, errVarint
	}
	if k == 0 {
		return -1, sub, false, nil
	}
	if n, err = s.size(v); err != nil {
		return 0, sub, false, err
	}
	at += k
	switch {
	case t == cmpBinary:
		return at + n, sub, false, nil
	case t != cmpMap:
		return at, level{true, b[0] & 0x0f, b[0] & 0x0f, v}, true, nil
	case v == 0:
		return at, sub, false, nil // without types
	case len(b) == at:
		return -1, sub, false, nil
	}
	return at + 1, level{true, b[at] >> 4, b[at] & 0x0f, 2 * v}, true, nil
}

// size refuses sizes that no message can have: each element has a byte.
func (s *skipper) size(n uint64) (int, error) {
	if n > uint64(s.limit) {
		return 0, errSize
	}
	return int(n), nil
}
