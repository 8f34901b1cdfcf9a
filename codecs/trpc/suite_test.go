package trpc

import (
	"bytes"
	"strings"
	"testing"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
)

const (
	c2s = codecs.ClientToServer
	s2c = codecs.ServerToClient
)

// ownProperties are what Describe says of those that every default request has.
const ownProperties = ` caller="trpc.app.client.service" callee="trpc.app.server.Greeter" func="/trpc.app.server.Greeter/SayHello"`

func frames() []codectest.Frame {
	const op = " op=trpc.app.server.Greeter/SayHello"
	info := [][2]string{{"tenant", "acme"}, {"colour", "blue"}}
	frame := func(name string, d codecs.Direction, b []byte, want string) codectest.Frame {
		return codectest.Frame{Name: name, Direction: d, Bytes: b, Want: want}
	}
	return []codectest.Frame{
		frame("request", c2s, trpctest.Request{ID: 1, TimeoutMS: 5000, MessageType: 8, ContentType: 2, ContentEncoding: 1, TransInfo: info}.Bytes(),
			"request id=1 status=0 reply=false size=144+0"+op+ownProperties+
				` content_type="2" content_encoding="1" message_type="8" call_type="0" timeout="5000" tenant="acme" colour="blue"`),
		frame("oneway", c2s, trpctest.Request{ID: 7, Oneway: true, Body: []byte("body")}.Bytes(),
			"oneway id=7 status=0 reply=false size=105+4"+op+ownProperties+
				` content_type="0" content_encoding="0" message_type="0" call_type="1"`),
		frame("func that has but a name", c2s, trpctest.Request{ID: 7, Callee: "c", Caller: "d", Func: "say"}.Bytes(),
			`request id=7 status=0 reply=false size=29+0 op=c/say caller="d" callee="c" func="say" content_type="0" content_encoding="0" message_type="0" call_type="0"`),
		frame("names of the protocol's own", c2s, trpctest.Request{ID: 7, Callee: "c", Caller: "d", Func: "say", TransInfo: [][2]string{{"Func", "x"}, {"ret", "0"}, {"version", "2"}}}.Bytes(),
			`request id=7 status=0 reply=false size=64+0 op=c/say caller="d" callee="c" func="say" content_type="0" content_encoding="0" message_type="0" call_type="0" version="2"`),
		frame("attachment", c2s, trpctest.Request{ID: 7, Attachment: []byte("more")}.Bytes(), ""),
		frame("request of Java", c2s, trpctest.Request{ID: 1<<32 - 1, BareID: true}.Bytes(), ""),
		{Name: "request without an id", Direction: c2s, Bytes: trpctest.Request{}.Bytes(), Excuses: codectest.Excuses{codectest.LooseID: "an id of 0 is written out"}},
		frame("answer", s2c, trpctest.Response{ID: 1, TransInfo: [][2]string{{"k", "v"}, {"RET", "5"}}, Body: []byte("body")}.Bytes(),
			`response id=1 status=0 reply=false size=36+4 ret="0" func_ret="0" k="v"`),
		frame("answer of an application that has failed", s2c, trpctest.Response{ID: 1, FuncRet: 999, ErrorMsg: "no"}.Bytes(),
			`response id=1 code=999 status=1 reply=false size=25+0 ret="0" func_ret="999" error_msg="no"`),
		frame("answer of a framework that has failed", s2c, trpctest.Response{ID: 1, Ret: -1, ErrorMsg: "no"}.Bytes(),
			`error id=1 code=-1 status=2 reply=false size=33+0 ret="-1" func_ret="0" error_msg="no"`),
		frame("opening", c2s, trpctest.Request{ID: 100, Window: 65535, ContentType: 2, TransInfo: info}.Init(),
			"stream_init id=100 stream=100 status=0 reply=false size=16+125"+op+ownProperties+
				` content_type="2" content_encoding="0" message_type="0" tenant="acme" colour="blue"`),
		frame("opened", s2c, trpctest.Response{ID: 100, Window: 65535}.Init(),
			`stream_init id=100 stream=100 status=0 reply=false size=16+6 ret="0"`),
		frame("refused", s2c, trpctest.Response{ID: 100, Ret: 12, ErrorMsg: "no"}.Init(),
			`error id=100 stream=100 fixed code=12 status=2 reply=false size=16+8 ret="12" error_msg="no"`),
		frame("data", c2s, trpctest.StreamFrame(trpctest.Data, 100, []byte("data")), "stream_data id=100 stream=100 status=0 reply=false size=16+4"),
		frame("feedback", s2c, trpctest.FeedbackFrame(100, 5), "stream_data id=100 stream=100 status=0 reply=false size=16+2"),
		frame("half close", c2s, trpctest.CloseFrame(100, false, 0, ""), "stream_close_one_way id=100 stream=100 status=0 reply=false size=16+0"),
		frame("close of a server", s2c, trpctest.CloseFrame(100, false, 0, ""), "stream_close_two_way id=100 stream=100 status=0 reply=false size=16+0"),
		frame("reset", c2s, trpctest.CloseFrame(100, true, 21, "late"), "stream_close_two_way id=100 stream=100 status=0 reply=false size=16+10"),
	}
}

func malformedFrames() (frames []codectest.Frame) {
	add := func(name string, d codecs.Direction, b []byte) {
		frames = append(frames, codectest.Frame{Name: name, Direction: d, Bytes: b})
	}
	header := string(trpctest.Request{ID: 7}.Header())
	call := func(name, header string) { add(name, c2s, trpctest.Frame(7, []byte(header), []byte("body"))) }
	call("no header", "")
	add("header longer than the frame", c2s, withHeader(trpctest.Frame(7, nil, []byte("body")), 5))
	add("header of an answer longer than the frame", s2c, withHeader(trpctest.Frame(7, nil, []byte("body")), 5))
	add("unknown type of stream frame", c2s, trpctest.StreamFrame(5, 100, nil))
	add("opening with a header", c2s, withHeader(trpctest.Request{ID: 100}.Init(), 1))
	call("header that is cut off", header+"\x4a\x7f")
	call("attachment that is larger than the body", header+"\x60\x05")
	call("entry that cannot be read", header+"\x4a\x01\x0a")
	call("key that is not UTF-8", header+"\x4a\x03\x0a\x01\xff")
	call("too many entries", header+strings.Repeat("\x4a\x00", maxEntries+1))
	add("fault in a header without an id", c2s, trpctest.Frame(0, []byte("\xff"), nil))
	add("fault in an answer without an id", s2c, trpctest.Frame(0, []byte("\xff"), nil))
	add("close that cannot be read", c2s, trpctest.StreamFrame(trpctest.Close, 100, []byte("\xff")))
	add("answer that is cut off", s2c, trpctest.Frame(7, []byte("\x18\x07\xff"), nil))
	add("opening without a request", c2s, trpctest.StreamFrame(trpctest.Init, 100, nil))
	add("opening with two requests", c2s, trpctest.StreamFrame(trpctest.Init, 100, []byte("\x0a\x00\x0a\x00")))
	add("opening that is cut off", c2s, trpctest.StreamFrame(trpctest.Init, 100, append(trpctest.Request{}.Meta(), 0xff)))
	return frames
}

// withHeader is a frame that says that its header has n bytes.
func withHeader(frame []byte, n byte) []byte {
	frame[atHeaderLength], frame[atHeaderLength+1] = 0, n
	return frame
}

func invalidFrames() []codectest.Invalid {
	fixed := func(s string) []byte { return append([]byte("\x09\x30"+s), make([]byte, headerSize)...)[:headerSize] }
	in := func(name string, b []byte) codectest.Invalid {
		return codectest.Invalid{Name: name, Direction: c2s, Bytes: b}
	}
	return []codectest.Invalid{
		in("HTTP", []byte("GET / HTTP/1.1\r\n")),
		in("another magic", []byte("\x09\x31")),
		in("unknown type of frame", fixed("\x02")),
		in("shorter than its fixed header", fixed("\x00\x00\x00\x00\x00\x0f")),
		in("larger than the limit", fixed("\x01\x04\x00\xa0\x00\x01\x00\x00")),
		in("4 GiB", fixed("\x01\x03\xff\xff\xff\xff\x00\x00")),
		{Name: "unknown type of a server's stream frame", Direction: s2c, Bytes: trpctest.StreamFrame(5, 100, nil)},
		{Name: "stream frame of a server with a header", Direction: s2c, Bytes: withHeader(trpctest.StreamFrame(trpctest.Data, 100, []byte("data")), 1)},
		{Name: "close of a server that cannot be read", Direction: s2c, Bytes: trpctest.StreamFrame(trpctest.Close, 100, []byte("\xff"))},
		in("fault behind a request", bytes.Join([][]byte{trpctest.Request{ID: 1}.Bytes(), []byte("\x09\x00")}, nil)),
	}
}

func hostile() (frames []codectest.Frame) {
	const n = 1 << 20
	header := string(trpctest.Request{ID: 7}.Header())
	fill := func(s string) []byte { return []byte(header + strings.Repeat(s, (maxHeader-len(header))/len(s))) }
	for name, b := range map[string][]byte{
		"entries":                trpctest.Frame(7, fill("\x4a\x00"), nil),
		"unknown fields":         trpctest.Frame(7, fill("\x78\x00"), nil),
		"ids":                    trpctest.Frame(7, fill("\x18\x01"), nil),
		"groups":                 trpctest.Frame(7, fill("\x7b\x7c"), nil),
		"groups within groups":   trpctest.Frame(7, fill("\x7b"), nil),
		"a large body":           trpctest.Request{ID: 7, Body: make([]byte, n)}.Bytes(),
		"metas of a stream":      trpctest.StreamFrame(trpctest.Init, 7, bytes.Repeat([]byte("\x0a\x00"), n/2)),
		"entries of a stream":    trpctest.StreamFrame(trpctest.Init, 7, trpctest.Bytes(nil, 1, strings.Repeat("\x2a\x00", n/2))),
		"fields of a close":      trpctest.StreamFrame(trpctest.Close, 7, bytes.Repeat([]byte("\x78\x00"), n/2)),
		"an entry of many bytes": trpctest.StreamFrame(trpctest.Init, 7, trpctest.Bytes(nil, 1, string(trpctest.Bytes(nil, 5, strings.Repeat("\x0a\x00", n/2))))),
	} {
		for _, d := range directions {
			frames = append(frames, codectest.Frame{Name: name, Direction: d, Bytes: b})
		}
	}
	return frames
}

func suite() codectest.Suite {
	return codectest.Suite{
		New:       func(l codecs.Limits) (codecs.Codec, error) { return New(nil, l) },
		Captures:  []string{"testdata/captures/*.bin"},
		Golden:    "testdata/captures.golden",
		Frames:    frames(),
		Malformed: malformedFrames(),
		Invalid:   invalidFrames(),
		Hostile:   hostile(),
		Mutations: []codectest.Mutation{
			{Direction: c2s, Key: "tenant", Value: "changed"},
			{Direction: c2s, Key: "new", Value: strings.Repeat("ü", 500)},
			{Direction: c2s, Key: "version", Value: "v2"},
			{Direction: s2c, Key: "tenant", Value: ""},
		},
		Refused: []codectest.Mutation{
			{Key: ""},
			{Key: strings.Repeat("x", codecs.MaxText+1)},
			{Key: "k", Value: strings.Repeat("x", codecs.MaxText+1)},
			{Key: "bad\xff"},
			{Key: "bad", Value: "\xff"},
			{Key: "caller"},
			{Key: "Callee"},
			{Key: "FUNC"},
			{Key: "timeout", Value: "1"},
			{Key: "call_type", Value: "0"},
			{Key: "ret", Value: "0"},
		},
		// A server's INIT, and its refusal, have no trans_info.
		Immutable: func(_ string, m *codecs.Metadata) bool {
			return m.StreamID != 0 && m.Scratch[scratchFlags]&flagRequest == 0
		},
		OwnForeign: []string{"trpc"},
	}
}

func TestConformance(t *testing.T) { codectest.Run(t, suite()) }

func FuzzDecode(f *testing.F) { codectest.FuzzDecode(f, suite()) }

func FuzzEncode(f *testing.F) { codectest.FuzzEncode(f, suite()) }
