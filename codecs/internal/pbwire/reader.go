// Package pbwire reads protobuf messages in place and appends fields of them,
// for codecs whose headers are protobuf. It knows no schema, allocates nothing
// and does not recurse; what a message costs is in proportion to its bytes.
//
// The encoding is that of https://protobuf.dev/programming-guides/encoding.
package pbwire

import (
	"encoding/binary"
	"errors"
	"math"
)

// MaxDepth is how deeply groups may be nested.
const MaxDepth = 64

// Faults of a message.
var (
	ErrTruncated = errors.New("protobuf: field is cut off")
	ErrVarint    = errors.New("protobuf: varint of more than 64 bits")
	ErrTag       = errors.New("protobuf: no such field number or wire type")
	ErrLength    = errors.New("protobuf: length of more than 32 bits")
	ErrGroup     = errors.New("protobuf: end of a group that was not begun")
	ErrDepth     = errors.New("protobuf: groups nested too deeply")
)

// Type is a wire type.
type Type uint8

// The wire types. A group, from its begin to its end, is one field of type
// Group to the [Reader].
const (
	Varint   Type = 0
	Fixed64  Type = 1
	Bytes    Type = 2
	Group    Type = 3
	endGroup Type = 4
	Fixed32  Type = 5
)

// maxNumber is the largest field number. Readers that keep 32 bits of a tag
// take larger ones for others, so they are refused.
const maxNumber = 1<<29 - 1

// MaxShort is the longest tag, or length of Bytes, in bytes. They have 32 bits;
// C++'s readers refuse longer ones, which others take.
const MaxShort = 5

// Field is one field of a message. Offsets are in bytes from the message's
// start.
type Field struct {
	Number int32
	Type   Type
	// Uint is the value of a Varint, Fixed32 or Fixed64: cast it to int64, int32
	// or bool as the schema says.
	Uint uint64
	// Bytes is the value of a Bytes field, a view of the message; nil in others.
	Bytes []byte
	// Start is the offset of the tag, Value that of the value: behind the
	// length of Bytes, behind the tag of others. End is where the next field
	// starts.
	Start, Value, End int
}

// Is reports whether f is field number n with wire type t. What has another
// type than the schema says is an unknown field to protobuf's own readers.
func (f *Field) Is(n int32, t Type) bool { return f.Number == n && f.Type == t }

// Reader goes through the fields of a message in the order of the bytes:
//
//	for r.Reset(b); r.Next(); {
//		… r.Number, r.Type, r.Uint, r.Bytes
//	}
//	… r.Err()
//
// It keeps the message until the next Reset.
type Reader struct {
	// Field at which the reader stands, after Next has returned true.
	Field
	b   []byte
	pos int
	err error
}

// Reset makes r read b, an empty one if b is nil.
func (r *Reader) Reset(b []byte) { *r = Reader{b: b} }

// Err returns the fault at which the reader stopped, nil at the message's end.
func (r *Reader) Err() error { return r.err }

// Pos returns the offset of the next field, after a fault that of the field
// that has it.
func (r *Reader) Pos() int { return r.pos }

// Next moves to the next field. It returns false at the message's end and at a
// fault, from then on always.
func (r *Reader) Next() bool {
	if r.pos >= len(r.b) || r.err != nil {
		return false
	}
	f := &r.Field
	err := f.read(r.b, r.pos)
	if err == nil && (f.Type == Group || f.Type == endGroup) {
		err = f.group(r.b)
	}
	if err != nil {
		r.err = err
		return false
	}
	r.pos = f.End
	return true
}

// read reads the field at offset pos of b, in which there is a byte at least;
// of a group its begin or end only.
func (f *Field) read(b []byte, pos int) error {
	// Most tags and many values have one byte.
	tag, n := uint64(b[pos]), 1
	if tag >= 0x80 {
		if tag, n = binary.Uvarint(b[pos:]); n <= 0 {
			return varintFault(n)
		} else if n > MaxShort {
			return ErrTag
		}
	}
	if tag>>3 == 0 || tag>>3 > maxNumber {
		return ErrTag
	}
	f.Number, f.Type = int32(tag>>3), Type(tag&7)
	f.Uint, f.Bytes = 0, nil
	f.Start, f.Value = pos, pos+n
	rest := b[f.Value:]
	switch f.Type {
	case Varint:
		if len(rest) > 0 && rest[0] < 0x80 {
			f.Uint, n = uint64(rest[0]), 1
		} else if f.Uint, n = binary.Uvarint(rest); n <= 0 {
			return varintFault(n)
		}
	case Bytes:
		var size uint64
		if len(rest) > 0 && rest[0] < 0x80 {
			size, n = uint64(rest[0]), 1
		} else if size, n = binary.Uvarint(rest); n <= 0 {
			return varintFault(n)
		} else if n > MaxShort {
			return ErrLength
		}
		if size > uint64(len(rest)-n) {
			return ErrTruncated
		}
		f.Value, n = f.Value+n, int(size)
		f.Bytes = b[f.Value : f.Value+n : f.Value+n]
	case Fixed64:
		if n = 8; len(rest) < n {
			return ErrTruncated
		}
		f.Uint = binary.LittleEndian.Uint64(rest)
	case Fixed32:
		if n = 4; len(rest) < n {
			return ErrTruncated
		}
		f.Uint = uint64(binary.LittleEndian.Uint32(rest))
	case Group, endGroup:
		n = 0
	default:
		return ErrTag
	}
	f.End = f.Value + n
	return nil
}

// group moves f.End from the begin of a group behind its end.
func (f *Field) group(b []byte) error {
	if f.Type == endGroup {
		return ErrGroup
	}
	var open [MaxDepth]int32 // field numbers of the groups that are open
	open[0] = f.Number
	var in Field
	for depth := 1; depth > 0; {
		if f.End == len(b) {
			return ErrTruncated
		}
		if err := in.read(b, f.End); err != nil {
			return err
		}
		f.End = in.End
		switch in.Type {
		case Group:
			if depth == MaxDepth {
				return ErrDepth
			}
			open[depth] = in.Number
			depth++
		case endGroup:
			if depth--; open[depth] != in.Number {
				return ErrGroup
			}
		}
	}
	return nil
}

func varintFault(n int) error {
	if n < 0 {
		return ErrVarint
	}
	return ErrTruncated
}

// Uvarint reads the varint at the start of b and returns how many bytes it
// has: 0 if b ends within it, a negative number if its value does not fit into
// 64 bits.
func Uvarint(b []byte) (v uint64, n int) { return binary.Uvarint(b) }

// Int32 is what a reader of an int32 field makes of a varint: its lower half.
func Int32(v uint64) int32 { return int32(v & math.MaxUint32) }
