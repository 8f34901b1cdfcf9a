package pbwire

import (
	"encoding/binary"
	"math/bits"
)

// MaxVarint is the length of the longest varint, in bytes.
const MaxVarint = binary.MaxVarintLen64

// SizeVarint returns how many bytes v takes as a varint.
func SizeVarint(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// SizeTag returns how many bytes the tag of a field takes.
func SizeTag(number int32) int { return SizeVarint(uint64(number) << 3) }

// SizeBytes returns how many bytes a Bytes field of n bytes takes, its tag and
// length included.
func SizeBytes(number int32, n int) int { return SizeTag(number) + SizeVarint(uint64(n)) + n }

// AppendTag appends the tag of a field. A Group's end is left to the caller.
func AppendTag(dst []byte, number int32, t Type) []byte {
	return binary.AppendUvarint(dst, uint64(number)<<3|uint64(t))
}

// AppendVarint appends a Varint field: of a negative int32 or int64 v is the
// 64-bit two's complement.
func AppendVarint(dst []byte, number int32, v uint64) []byte {
	return binary.AppendUvarint(AppendTag(dst, number, Varint), v)
}

// AppendBytes appends a Bytes field.
func AppendBytes[T []byte | string](dst []byte, number int32, v T) []byte {
	dst = binary.AppendUvarint(AppendTag(dst, number, Bytes), uint64(len(v)))
	return append(dst, v...)
}

// AppendFrame begins a Bytes field whose length is not known yet, such as an
// embedded message. The value is what gets appended until [CloseFrame], which
// is to be given the same mark.
func AppendFrame(dst []byte, number int32) (_ []byte, mark int) {
	dst = AppendTag(dst, number, Bytes)
	return append(dst, 0), len(dst)
}

// CloseFrame ends the field that AppendFrame began: it writes the length and
// moves the value if the length takes more than a byte.
func CloseFrame(dst []byte, mark int) []byte {
	size := len(dst) - mark - 1
	if more := SizeVarint(uint64(size)) - 1; more > 0 {
		var room [MaxVarint]byte
		dst = append(dst, room[:more]...)
		copy(dst[mark+1+more:], dst[mark+1:mark+1+size])
	}
	binary.PutUvarint(dst[mark:], uint64(size))
	return dst
}
