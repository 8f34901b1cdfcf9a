package thrift

import (
	"encoding/binary"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// form is a transport with a protocol. It is what Metadata.Variant says.
type form uint8

// The transports.
const (
	unframed = iota
	framed
	header         // Apache's THeader
	ttheader       // Kitex's TTHeader over plain messages
	ttheaderFramed // the same over framed ones
	transports     = iota
)

// The protocols.
const (
	strict = iota // binary with a version
	lax           // binary without
	compact
	protocols = iota
)

var transportNames = [transports][]byte{
	[]byte("unframed"), []byte("framed"), []byte("header"), []byte("ttheader"), []byte("ttheader_framed"),
}

var protocolNames = [protocols][]byte{[]byte("binary"), []byte("binary_lax"), []byte("compact")}

func formOf(transport, protocol int) form { return form(1 + transport*protocols + protocol) }

func (f form) transport() int  { return int(f-1) / protocols }
func (f form) protocol() int   { return int(f-1) % protocols }
func (f form) hasHeader() bool { return f.transport() >= header }

// maxHeader is how many bytes the header may have.
func (f form) maxHeader() int {
	if f.transport() >= ttheader {
		return maxTTHeader
	}
	return maxHeader
}

// The first bytes of messages and headers.
const (
	binaryVersion  = 0x80010000 // THRIFT-binary-protocol: version 1, strict
	compactID      = 0x82       // thrift-compact-protocol
	compactVersion = 1
	headerMagic    = 0x0fff // HeaderFormat
	ttheaderMagic  = 0x1000 // Kitex, TTHeader
)

// Message types (TMessageType).
const (
	typeCall      = 1
	typeReply     = 2
	typeException = 3
	typeOneway    = 4
)

// maxFirst is the largest first byte of a frame's length: it is below 64 MiB.
const maxFirst = 3

// detect tells the transport by the first bytes of a message, and the protocol
// where there is no header that tells. guess is Maybe when b is too short.
//
// A frame begins with its length, which is below 2^26 here, so with a small
// byte; behind it is a message or a header's magic number. An unframed message
// of the binary protocol without a version begins with the length of its name,
// with a zero byte too, but behind it is the name.
func detect(b []byte, limit int) (transport int, guess codecs.Guess) {
	switch b[0] {
	case binaryVersion >> 24:
		return unframed, begins(b, 0x80, 0x01)
	case compactID:
		if len(b) < 2 {
			return unframed, codecs.Maybe
		}
		return unframed, yes(b[1]&0x1f == compactVersion && validType(int(b[1]>>5)))
	default:
		if b[0] > maxFirst {
			return 0, codecs.No
		}
	}
	if len(b) < 5 {
		return 0, codecs.Maybe
	}
	n := int(binary.BigEndian.Uint32(b))
	switch b[4] {
	case binaryVersion >> 24:
		transport, guess = framed, begins(b[4:], 0x80, 0x01)
	case compactID:
		transport, guess = framed, codecs.Yes
	case headerMagic >> 8:
		transport, guess = header, begins(b[4:], headerMagic>>8, headerMagic&0xff)
	case ttheaderMagic >> 8:
		transport, guess = ttheader, begins(b[4:], ttheaderMagic>>8, ttheaderMagic&0xff)
	case 0:
		transport, guess = framed, laxName(b[4:], n)
	default:
		if n == 0 || n > maxName {
			return 0, codecs.No
		}
		return unframed, laxName(b, limit)
	}
	if n < minMessage {
		return 0, codecs.No
	}
	return transport, guess
}

// minMessage is the shortest message: a compact one without a name and without
// fields.
const minMessage = 5

func yes(b bool) codecs.Guess {
	if b {
		return codecs.Yes
	}
	return codecs.No
}

func begins(b []byte, first, second byte) codecs.Guess {
	if len(b) < 2 {
		return codecs.Maybe
	}
	return yes(b[0] == first && b[1] == second)
}

func validType(t int) bool { return t >= typeCall && t <= typeOneway }

// laxName tells whether b begins with the name and the type of a message of
// the binary protocol without a version, of at most limit bytes.
func laxName(b []byte, limit int) codecs.Guess {
	if len(b) < 5 {
		return codecs.Maybe
	}
	n := int(binary.BigEndian.Uint32(b))
	if n < 1 || n > maxName || n+10 > limit {
		return codecs.No
	}
	for i, c := range b[4:min(4+n, len(b))] {
		if c <= ' ' || c == 0x7f || i == 0 && !letter(c) {
			return codecs.No
		}
		if i == sniffName {
			return codecs.Yes
		}
	}
	if len(b) < 4+n+1 {
		return codecs.Maybe
	}
	return yes(validType(int(b[4+n])))
}

func letter(c byte) bool { return c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z' }

// sniffName is how much of a long name is looked at: it must be below the 64
// bytes in which a codec has to make up its mind.
const sniffName = 48

// Sniff implements codecs.Sniffer.
func (c *codec) Sniff(b []byte) codecs.Guess {
	_, guess := detect(b, c.maxFrame)
	return guess
}
