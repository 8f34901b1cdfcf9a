package facts

import "encoding/binary"

// AppendHex appends b, four bytes at a time where it has them, in hexadecimal digits in
// lower case: as ids of traces are written.
func AppendHex(dst, b []byte) []byte {
	for ; len(b) >= 4; b = b[4:] {
		dst = binary.BigEndian.AppendUint64(dst, Hex(binary.BigEndian.Uint32(b)))
	}
	for _, c := range b {
		dst = append(dst, byte(Hex(uint32(c))>>8), byte(Hex(uint32(c))))
	}
	return dst
}

// Hex is v as eight hexadecimal digits in lower case, the first one in the highest byte.
func Hex(v uint32) uint64 {
	const each = 0x0101010101010101
	d := uint64(v) // a digit in each byte
	d = (d | d<<16) & 0x0000ffff0000ffff
	d = (d | d<<8) & 0x00ff00ff00ff00ff
	d = (d | d<<4) & (0x0f * each)
	letters := (d + 6*each) >> 4 & each // 1 of those from a on
	return d + '0'*each + letters*('a'-'0'-10)
}
