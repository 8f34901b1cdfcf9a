package dubbo

import (
	"strings"
	"testing"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
)

func suite() codectest.Suite {
	const c2s, s2c = codecs.ClientToServer, codecs.ServerToClient
	request := func(rest string) []byte { return dubbotest.Frame(0xc2, 0, 7, []byte(call+rest)) }
	answer := func(body string) []byte { return dubbotest.Frame(0x02, statusOK, 7, []byte(body)) }
	traces := func(from, to int) (frames []byte) { // differ by ids of two lengths, and by their timeouts
		for i := from; i < to; i++ {
			frames = append(frames, dubbotest.Request{ID: uint64(i), Argument: "a", Attachments: [][2]string{
				{"path", "org.example.Greeter"}, {"traceparent", strings.Repeat("7", 30+i)}, {"tenant", "acme"}, {"timeout", strings.Repeat("1", i)}, {"k", "v"},
			}}.Bytes()...)
		}
		return frames
	}
	const pojo = "C\x01P\x91\x01f\x60N"
	invalid := []codectest.Invalid{}
	for _, tc := range refused {
		invalid = append(invalid, codectest.Invalid{Name: tc.name, Direction: c2s, Bytes: tc.bytes})
	}
	malformed := []codectest.Frame{
		{Name: "answer of no kind", Direction: s2c, Bytes: answer("\x96HZ")},
		{Name: "answer without a body", Direction: s2c, Bytes: answer("")},
		{Name: "lists in lists", Direction: c2s, Bytes: request(strings.Repeat("\x79", 99))},
		{Name: "length that lies", Direction: c2s, Bytes: request("X\x49\x05\xf5\xe1\x00")},
	}
	for name, body := range hidden {
		malformed = append(malformed, codectest.Frame{Name: name, Direction: c2s, Bytes: dubbotest.Frame(0xc2, 0, 1, []byte(body))})
	}
	return codectest.Suite{
		New:      func(l codecs.Limits) (codecs.Codec, error) { return New(nil, l) },
		Captures: []string{"testdata/captures/*.bin"},
		Golden:   "testdata/captures.golden",
		Frames: []codectest.Frame{
			{Name: "request", Direction: c2s, Bytes: typicalRequest()},
			{Name: "oneway", Direction: c2s, Bytes: dubbotest.Request{ID: 1, Oneway: true}.Bytes()},
			{Name: "request without attachments", Direction: c2s, Bytes: request("")},
			{Name: "request with an object among its attachments", Direction: c2s, Bytes: request("H\x01o" + pojo + "\x06tenant" + "\x60N" + "\x01zQ\x91Z")},
			{Name: "request with twice the same key", Direction: c2s, Bytes: request("H\x06tenant\x01a\x06tenant\x01bZ")},
			{Name: "request with ids that differ from those before", Direction: c2s, Bytes: traces(7, 8), Prelude: traces(1, 7)},
			{Name: "request in another serialization", Direction: c2s, Bytes: dubbotest.Frame(0xd7, 0, 1, []byte("?"))},
			{Name: "request of the largest id", Direction: c2s, Bytes: dubbotest.Request{ID: 1<<64 - 1}.Bytes()},
			{Name: "answer", Direction: s2c, Bytes: dubbotest.Response(1, "x", [2]string{"k", "v"})},
			{Name: "answer with a null behind it", Direction: s2c, Bytes: answer("\x91\x01vN")},
			{Name: "answer with an object", Direction: s2c, Bytes: answer("\x94" + pojo + "H\x01o\x60NZ")},
			{Name: "exception", Direction: s2c, Bytes: answer("\x90" + pojo)},
			{Name: "error", Direction: s2c, Bytes: dubbotest.ErrorResponse(1, 40, "no")},
			{Name: "heartbeat", Direction: c2s, Bytes: dubbotest.Heartbeat(1)},
			{Name: "heartbeat of a server", Direction: s2c, Bytes: dubbotest.Heartbeat(1)},
			{Name: "heartbeat in another serialization", Direction: c2s, Bytes: dubbotest.Frame(0xf7, 0, 1, []byte("\x00\x00\x00\x01\xaf"))},
			{Name: "farewell", Direction: s2c, Bytes: dubbotest.ReadOnly(1)},
		},
		Malformed: malformed,
		Opaque:    func(_ string, m *codecs.Metadata) bool { return m.Scratch[scratchSerial] != hessian2 },
		Invalid:   invalid,
		Hostile:   hostile(),
		Mutations: []codectest.Mutation{
			{Direction: c2s, Key: "tenant", Value: "changed"},
			{Direction: c2s, Key: "new", Value: strings.Repeat("ü😀", 500)},
			{Direction: s2c, Key: "tenant", Value: ""},
		},
		Refused: []codectest.Mutation{
			{Key: ""},
			{Key: strings.Repeat("x", codecs.MaxText+1)},
			{Key: "k", Value: strings.Repeat("x", codecs.MaxText+1)},
			{Key: "bad\xff"},
			{Key: "bad", Value: "\xff"},
			{Key: "path"},
			{Key: "interface"},
			{Key: "version"},
			{Key: "group"},
			{Key: "dubbo"},
			{Key: "method"},
			{Key: "serialization"},
			{Key: "grouP"},
			{Key: "Path"},
		},
		Immutable: func(_ string, m *codecs.Metadata) bool {
			return m.Type == codecs.Error || m.Scratch[scratchSerial] != hessian2
		},
		OwnForeign: []string{"dubbo"},
	}
}

// hostile are bodies of a megabyte.
func hostile() (frames []codectest.Frame) {
	const n = 1 << 20
	repeated := func(s string) string { return strings.Repeat(s, n/len(s)) }
	for name, body := range map[string]string{
		"empty attachments":     call + "H" + repeated("\x00\x00") + "Z",
		"attachments of a kind": call + "H" + repeated("\x04path\x00") + "Z",
		"numbers as keys":       call + "H" + repeated("\x91") + "Z",
		"chunks of a key":       call + "H" + repeated("R\x00\x00") + "\x00\x00Z",
		"surrogates":            call + "H\x01kR\xff\xff" + strings.Repeat("\xed\xa0\xbd", 1<<16-1) + "\x00Z",
		"types of arguments":    "\x052.0.2\x01i\x00\x01m" + repeated("R\x00\x08IIIIIIII") + "\x00",
		"classes":               "\x052.0.2\x01i\x00\x01m\x01I" + repeated("C\x00\x90"),
		"depth":                 "\x052.0.2\x01i\x00\x01m\x01I" + repeated("\x79"),
		"a length that lies":    "\x052.0.2\x01i\x00\x01m\x01IX\x49\x7f\xff\xff\xff" + repeated("\x90"),
	} {
		frames = append(frames, codectest.Frame{Name: name, Direction: codecs.ClientToServer, Bytes: dubbotest.Frame(0xc2, 0, 1, []byte(body))})
	}
	for name, body := range map[string]string{
		"classes of an answer":     "\x94" + repeated("C\x00\x90\x60"),
		"attachments of an answer": "\x95H" + repeated("\x00\x00") + "Z",
	} {
		frames = append(frames, codectest.Frame{Name: name, Direction: codecs.ServerToClient, Bytes: dubbotest.Frame(0x02, statusOK, 1, []byte(body))})
	}
	return frames
}

func TestConformance(t *testing.T) { codectest.Run(t, suite()) }

func FuzzDecode(f *testing.F) { codectest.FuzzDecode(f, suite()) }

func FuzzEncode(f *testing.F) { codectest.FuzzEncode(f, suite()) }
