// Package pbwiretest reads protobuf messages for the tests of codecs, by
// protobuf's own reader.
package pbwiretest

import "google.golang.org/protobuf/encoding/protowire"

// Fields visits the fields of a message that are varints, with v, or bytes,
// with b. It panics when the message cannot be read, and at fields of other
// types, which the protocols under test do not have.
func Fields(m []byte, visit func(number int, v uint64, b []byte)) {
	for len(m) > 0 {
		number, wire, n := protowire.ConsumeTag(m)
		check(n)
		m = m[n:]
		var v uint64
		var b []byte
		switch wire {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(m)
		case protowire.BytesType:
			b, n = protowire.ConsumeBytes(m)
		default:
			panic("pbwiretest: a field of another type")
		}
		check(n)
		visit(int(number), v, b)
		m = m[n:]
	}
}

// Entry reads an entry of a map<string, …>.
func Entry(m []byte) (key, value string) {
	Fields(m, func(number int, _ uint64, b []byte) {
		switch number {
		case 1:
			key = string(b)
		case 2:
			value = string(b)
		}
	})
	return key, value
}

func check(n int) {
	if n < 0 {
		panic("pbwiretest: " + protowire.ParseError(n).Error())
	}
}
