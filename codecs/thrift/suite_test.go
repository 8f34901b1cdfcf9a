package thrift

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
)

const (
	c2s = codecs.ClientToServer
	s2c = codecs.ServerToClient
)

// call is a message of the binary protocol.
func call(kind byte, name string, seqid uint32, body string) string {
	b := []byte{0x80, 1, 0, kind}
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(name))), name...)
	return string(binary.BigEndian.AppendUint32(b, seqid)) + body
}

// callLax is one without a version.
func callLax(kind byte, name string, seqid uint32, body string) string {
	b := append(binary.BigEndian.AppendUint32(nil, uint32(len(name))), name...)
	return string(binary.BigEndian.AppendUint32(append(b, kind), seqid)) + body
}

// callCompact is one of the compact protocol.
func callCompact(kind byte, name string, seqid uint64, body string) string {
	b := binary.AppendUvarint([]byte{0x82, kind<<5 | 1}, seqid)
	return string(append(binary.AppendUvarint(b, uint64(len(name))), name...)) + body
}

func inFrame(s string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s }

// inHeader puts a message behind a header: of THeader, or of TTHeader.
func inHeader(magic string, seqid uint32, head, message string) string {
	head += strings.Repeat("\x00", (wordSize-len(head)%wordSize)%wordSize)
	b := binary.BigEndian.AppendUint32([]byte(magic+"\x00\x00"), seqid)
	b = binary.BigEndian.AppendUint16(b, uint16(len(head)/wordSize))
	return inFrame(string(b) + head + message)
}

const (
	theader      = "\x0f\xff"
	kitexHeader  = "\x10\x00"
	withoutParts = "\x00\x00"
	tenantPart   = "\x00\x00\x01\x01\x06tenant\x04acme"                                            // protocol, transforms, names and values
	kitexParts   = "\x00\x00\x10\x00\x01\x00\x02\x00\x03log\x01\x00\x01\x00\x06tenant\x00\x04acme" // number 2, and names and values
)

func deflated(s string) string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	w.Write([]byte(s))
	w.Close()
	return b.String()
}

// lists are n lists in lists.
func lists(n int) string { return strings.Repeat("\x0f\x00\x01\x0f\x00\x00\x00\x01", n) }

func frames() []codectest.Frame {
	frame := func(name string, d codecs.Direction, b string) codectest.Frame {
		return codectest.Frame{Name: name, Direction: d, Bytes: []byte(b)}
	}
	twoIDs := func(f codectest.Frame) codectest.Frame {
		f.Excuses = codectest.Excuses{codectest.LooseID: "both ids are those of the message then"}
		return f
	}
	exception := "\x0b\x00\x01\x00\x00\x00\x02no\x08\x00\x02\x00\x00\x00\x06\x00"
	return []codectest.Frame{
		frame("oneway", c2s, inFrame(call(typeOneway, "log", 4, "\x00"))),
		frame("multiplexed", c2s, inFrame(call(typeCall, "Greeter:hello", 5, "\x00"))),
		frame("lax, framed", c2s, inFrame(callLax(typeCall, "hello", 5, "\x00"))),
		frame("compact, unframed", c2s, callCompact(typeCall, "hello", 300, "\x1c\x18\x02hi\x00\x00")),
		frame("compact, with the largest id", c2s, inFrame(callCompact(typeCall, "hello", 1<<31-1, "\x00"))),
		frame("application exception", s2c, inFrame(call(typeException, "hello", 5, exception))),
		frame("application exception, unframed", s2c, call(typeException, "hello", 5, exception)),
		frame("declared exception", s2c, inFrame(call(typeReply, "hello", 5, "\x0c\x00\x01\x00\x00"))),
		frame("void", s2c, inFrame(call(typeReply, "hello", 5, "\x00"))),
		frame("THeader", c2s, inHeader(theader, 5, tenantPart, call(typeCall, "hello", 5, "\x00"))),
		frame("THeader without headers", c2s, inHeader(theader, 5, withoutParts, call(typeCall, "hello", 5, "\x00"))),
		frame("THeader with zlib", c2s, inHeader(theader, 9, "\x00\x01\x01", deflated(call(typeCall, "hello", 5, "\x00")))),
		frame("THeader with zlib, compact", c2s, inHeader(theader, 9, "\x02\x01\x01", deflated(callCompact(typeCall, "Greeter:hello", 5, "\x00")))),
		frame("answer in a THeader with zlib", s2c, inHeader(theader, 9, "\x00\x01\x01", deflated(call(typeReply, "hello", 5, "\x00")))),
		twoIDs(frame("THeader with two ids", c2s, inHeader(theader, 9, withoutParts, call(typeCall, "hello", 5, "\x00")))),
		twoIDs(frame("answer in a THeader with two ids", s2c, inHeader(theader, 9, withoutParts, call(typeReply, "hello", 5, "\x00")))),
		frame("TTHeader", c2s, inHeader(kitexHeader, 5, kitexParts, call(typeCall, "hello", 5, "\x00"))),
		frame("TTHeader, framed, compact", c2s, inHeader(kitexHeader, 5, kitexParts, inFrame(callCompact(typeCall, "hello", 5, "\x00")))),
		frame("business error in a TTHeader", s2c, inHeader(kitexHeader, 5,
			"\x00\x00\x01\x00\x01\x00\x0abiz-status\x00\x03404", call(typeReply, "hello", 5, "\x00"))),
		frame("control frame of Kitex", s2c, inHeader(kitexHeader, 0, "\x00\x00"+strings16("crrst", "1"), call(typeReply, "none", 0, "\x00"))),
		frame("answer of a Kitex server that leaves", s2c, inHeader(kitexHeader, 5,
			"\x00\x00"+strings16("crrst", "1", "tenant", "acme"), call(typeReply, "hello", 5, "\x00"))),
	}
}

func invalid(t testing.TB) []codectest.Invalid {
	json, err := os.ReadFile("testdata/refused/go-framed-json.c2s.bin")
	require.NoError(t, err)
	bad := []codectest.Invalid{{Name: "JSON", Direction: c2s, Bytes: json}}
	for _, tc := range refused {
		bad = append(bad, codectest.Invalid{Name: tc.name, Direction: tc.dir, Bytes: []byte(tc.b)})
	}
	return append(bad, codectest.Invalid{
		Name: "framed behind unframed", Direction: c2s, Bytes: []byte(call(1, "x", 1, "\x00") + inFrame(call(1, "x", 1, "\x00"))),
	})
}

func hostile() (frames []codectest.Frame) {
	const n = 1 << 20
	repeated := func(s string) string { return strings.Repeat(s, n/len(s)) }
	for name, b := range map[string]string{
		"fields":              call(typeCall, "x", 1, repeated("\x0b\x00\x01\x00\x00\x00\x01x")+"\x00"),
		"fields, compact":     callCompact(typeCall, "x", 1, repeated("\x18\x01x")+"\x00"),
		"empty structs":       call(typeCall, "x", 1, "\x0f\x00\x01\x0c\x00\x0f\x00\x00"+strings.Repeat("\x00", 0xf0000)+"\x00"),
		"empty maps, compact": callCompact(typeCall, "x", 1, "\x19\xfb\x80\x80\x20"+strings.Repeat("\x00", 1<<19)+"\x00"),
		"depth":               call(typeCall, "x", 1, lists(n/8)),
		"a list that lies":    call(typeCall, "x", 1, "\x0f\x00\x01\x0b\x00\x0f\x00\x00"+repeated("\x00")),
		"headers":             inHeader(theader, 1, "\x00\x00\x01\x80\x08"+strings.Repeat("\x00\x00", 1024), call(typeCall, "x", 1, "\x00")),
		"more headers":        inHeader(theader, 1, "\x00\x00"+strings.Repeat("\x01\x01\x00\x00", 1<<15), call(typeCall, "x", 1, "\x00")),
		"headers of Kitex":    inHeader(kitexHeader, 1, "\x00\x00"+strings.Repeat("\x01\x00\x01\x00\x00\x00\x00", 1024), call(typeCall, "x", 1, "\x00")),
		"transforms":          inHeader(theader, 1, "\x00\x80\x08"+strings.Repeat("\x01", 1024), call(typeCall, "x", 1, "\x00")),
		"zeros in zlib":       inHeader(theader, 1, "\x00\x01\x01", deflated(call(typeCall, "x", 1, strings.Repeat("\x00", 8<<20)))),
		"short, in zlib":      inHeader(theader, 1, "\x00\x01\x01", "\x78\x9c\x03"),
	} {
		frames = append(frames, codectest.Frame{Name: name, Direction: c2s, Bytes: []byte(b)})
	}
	return frames
}

func suite(t testing.TB) codectest.Suite {
	return codectest.Suite{
		New:      func(l codecs.Limits) (codecs.Codec, error) { return New(nil, l) },
		Captures: []string{"testdata/captures/*.bin"},
		Golden:   "testdata/captures.golden",
		Frames:   frames(),
		Malformed: []codectest.Frame{
			{Name: "unknown transform", Direction: c2s, Bytes: []byte(inHeader(theader, 5, "\x00\x01\x02", "?"))},
			{Name: "zlib that is none", Direction: c2s, Bytes: []byte(inHeader(theader, 5, "\x00\x01\x01", "?"))},
			{Name: "two messages in a frame", Direction: c2s, Bytes: []byte(inFrame(call(typeCall, "x", 1, "\x00") + call(typeCall, "y", 2, "\x00")))},
			{Name: "two colons", Direction: c2s, Bytes: []byte(inFrame(call(typeCall, "A:b:c", 1, "\x00")))},
		},
		Invalid: invalid(t),
		Hostile: hostile(),
		Mutations: []codectest.Mutation{
			{Direction: c2s, Key: "tenant", Value: "other"},
			{Direction: c2s, Key: "new", Value: strings.Repeat("ü", 500)},
			{Direction: c2s, Key: "log-id", Value: "7"},
			{Direction: s2c, Key: "tenant", Value: ""},
		},
		Refused: []codectest.Mutation{
			{Key: ""},
			{Key: strings.Repeat("x", codecs.MaxText+1)},
			{Key: "k", Value: strings.Repeat("x", codecs.MaxText+1)},
			{Key: "bad\xff"},
			{Key: "k", Value: "\xff"},
			{Key: "Method"},
			{Key: "service"},
			{Key: "transport"},
			{Key: "protocol"},
			{Key: "isn"},
			{Key: "to-service"},
			{Key: "biz-status", Value: "0"},
		},
		Opaque:     func(_ string, m *codecs.Metadata) bool { return m.Scratch[scratchForm]&transformed != 0 },
		Immutable:  func(_ string, m *codecs.Metadata) bool { return !form(m.Variant).hasHeader() },
		OwnForeign: []string{"thrift"},
	}
}

func TestConformance(t *testing.T) { codectest.Run(t, suite(t)) }

func FuzzDecode(f *testing.F) { codectest.FuzzDecode(f, suite(f)) }

func FuzzEncode(f *testing.F) { codectest.FuzzEncode(f, suite(f)) }
