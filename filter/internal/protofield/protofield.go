// Package protofield writes fields of protobuf messages whose length is known only behind them.
package protofield

import "google.golang.org/protobuf/encoding/protowire"

// Open begins a field with a length: what is appended from at on is in it. [Shut] ends it.
func Open(dst []byte, number protowire.Number) (b []byte, at int) {
	dst = protowire.AppendTag(dst, number, protowire.BytesType)
	return dst, len(dst)
}

// Shut ends the field that began at at.
func Shut(dst []byte, at int) []byte {
	n := len(dst) - at
	size := protowire.SizeVarint(uint64(n))
	var room [10]byte
	dst = append(dst, room[:size]...)
	copy(dst[at+size:], dst[at:at+n])
	protowire.AppendVarint(dst[:at], uint64(n))
	return dst
}
