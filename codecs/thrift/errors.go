package thrift

import (
	"encoding/binary"
	"strings"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Types of TApplicationException, those from 11 on of fbthrift.
const (
	exceptionUnknownMethod = 1
	exceptionMessageType   = 2
	exceptionMethodName    = 3
	exceptionSequence      = 4
	exceptionInternal      = 6
	exceptionProtocol      = 7
	exceptionTransform     = 8
	exceptionProtocolID    = 9
	exceptionClientType    = 10
	exceptionLoadshedding  = 11
	exceptionTimeout       = 12
	exceptionQuota         = 16 // TENANT_QUOTA_EXCEEDED
)

// failureOf says of the type of an exception whether another attempt may help. What
// servers call internal is anything that a handler has not declared; Kitex's limits
// are among it.
func failureOf(kind int32) codecs.FailureClass {
	switch kind {
	case exceptionLoadshedding, exceptionQuota:
		return codecs.Overloaded
	case exceptionInternal, exceptionTimeout:
		return codecs.HostFailure
	}
	return codecs.NoFailure
}

// Fields of TApplicationException: a string, and the type.
const exceptionKind = 2

// unread reports whether an exception of that type says that the server could not read
// the request. Kitex ends the connection behind that of an unknown method, as was seen; the
// others are of its kind.
func unread(kind int32) bool {
	switch kind {
	case exceptionUnknownMethod, exceptionMessageType, exceptionMethodName, exceptionSequence,
		exceptionProtocol, exceptionTransform, exceptionProtocolID, exceptionClientType:
		return true
	}
	return false
}

// exceptionType reads the type of the exception at the start of b, as far as that has
// been read: 0, which stands for an unknown one, if it has none.
func exceptionType(protocol int, b []byte) (kind int32) {
	if protocol == compact {
		return exceptionTypeCompact(b)
	}
	for len(b) > 7 && b[0] != 0 { // a field takes that much, and the end behind it a byte
		id, n := binary.BigEndian.Uint16(b[1:]), binary.BigEndian.Uint32(b[3:])
		switch {
		case b[0] == binI32 && id == exceptionKind:
			kind = int32(n)
			b = b[7:]
		case b[0] == binI32:
			b = b[7:]
		case b[0] == binString && int64(n) <= int64(len(b)-7):
			b = b[7+n:]
		default:
			return kind
		}
	}
	return kind
}

func exceptionTypeCompact(b []byte) (kind int32) {
	for id := uint64(0); len(b) > 1 && b[0] != 0; {
		t, delta := b[0]&0x0f, uint64(b[0]>>4)
		b = b[1:]
		if id += delta; delta == 0 {
			v, n := uvarint(b)
			if n <= 0 {
				return kind
			}
			id, b = v>>1, b[n:] // zigzag, of an id that is not below 0
		}
		v, n := uvarint(b)
		switch {
		case n <= 0:
			return kind
		case t == cmpI32 && id == exceptionKind:
			kind = int32(uint32(v)>>1) ^ -int32(v&1)
			b = b[n:]
		case t == cmpI32:
			b = b[n:]
		case t == cmpBinary && v <= uint64(len(b)-n):
			b = b[n+int(v):]
		default:
			return kind
		}
	}
	return kind
}

// CheckCode implements codecs.CodeChecker: codes are types of exceptions, an i32.
func (c *codec) CheckCode(int32) error { return nil }

func exceptionOf(e *codecs.LocalError) int32 {
	if e.Code != 0 {
		return e.Code
	}
	switch e.Type {
	case codecs.RouteNotFound:
		return exceptionUnknownMethod
	case codecs.BadRequest, codecs.BadResponse:
		return exceptionProtocol
	default:
		return exceptionInternal
	}
}

// EncodeError implements codecs.Codec: a TApplicationException in the
// transport and protocol of the request.
func (c *codec) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	a := answer{start: len(dst), form: form(req.Scratch[scratchForm] & 0xff)}
	dst, _ = a.open(dst, req, nil) // without entries there is nothing to refuse
	dst = a.head(dst, req, typeException)
	dst = appendException(dst, a.form.protocol(), exceptionOf(e), strings.ToValidUTF8(e.Message, "?"))
	a.close(dst)
	return dst, nil
}

// appendException appends a TApplicationException, which is a struct.
func appendException(dst []byte, protocol int, kind int32, text string) []byte {
	if protocol == compact {
		dst = append(dst, 1<<4|cmpBinary)
		dst = append(binary.AppendUvarint(dst, uint64(len(text))), text...)
		dst = append(dst, 1<<4|cmpI32)
		return append(binary.AppendUvarint(dst, uint64(uint32(kind<<1^kind>>31))), 0) // zigzag
	}
	dst = append(dst, binString, 0, 1)
	dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(text))), text...)
	dst = append(dst, binI32, 0, 2)
	return append(binary.BigEndian.AppendUint32(dst, uint32(kind)), 0)
}
