package brpc

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
)

func suite() codectest.Suite {
	const c2s, s2c = codecs.ClientToServer, codecs.ServerToClient
	user := [][2]string{{"tenant", "acme"}, {"colour", "blue"}}
	opened := brpctest.Response{ID: 1, Stream: 6, UserFields: user}
	invalid := []codectest.Invalid{
		{Name: "stream's frame of a server without a stream", Direction: s2c, Bytes: brpctest.Frame("STRM", []byte("\x10\x01\x18\x03"), nil)},
	}
	for _, tc := range refused {
		for _, d := range directions {
			invalid = append(invalid, codectest.Invalid{Name: tc.name, Direction: d, Bytes: tc.bytes})
		}
	}
	noID := codectest.Excuses{codectest.LooseID: "an id of 0 is written out"}
	inStream := codectest.Excuses{codectest.Stateful: "it comes in a stream, which has begun or not"}
	return codectest.Suite{
		New:      func(l codecs.Limits) (codecs.Codec, error) { return New(nil, l) },
		Captures: []string{"testdata/captures/*.bin"},
		Golden:   "testdata/captures.golden",
		Frames: []codectest.Frame{
			{Name: "request", Direction: c2s, Bytes: typicalRequest()},
			{Name: "request without an id", Direction: c2s, Bytes: brpctest.Request{}.Bytes(), Excuses: noID},
			{Name: "request of the largest id", Direction: c2s, Bytes: brpctest.Request{ID: 1<<63 - 1}.Bytes()},
			{Name: "request of brpc-java", Direction: c2s, Bytes: brpctest.Request{ExtFields: user, Zeros: true}.Bytes()},
			{Name: "request that opens a stream", Direction: c2s, Bytes: brpctest.Request{ID: 1, Stream: 5, UserFields: user}.Bytes()},
			{Name: "answer", Direction: s2c, Bytes: brpctest.Response{ID: 1, UserFields: user}.Bytes()},
			{Name: "answer without an id", Direction: s2c, Bytes: brpctest.Frame("PRPC", brpctest.Bytes(nil, 2, ""), []byte("body")), Excuses: noID},
			{Name: "error", Direction: s2c, Bytes: brpctest.Response{ID: 1, Code: 1003, Text: "no"}.Bytes()},
			{Name: "answer in a stream", Direction: s2c, Bytes: opened.InStream(5), Excuses: inStream},
			{
				Name: "another stream's answer", Direction: s2c, Bytes: opened.InStream(7),
				Prelude: bytes.Join([][]byte{opened.InStream(5), brpctest.StreamFrame(5, 6, brpctest.Data, opened.Bytes())}, nil),
			},
			{Name: "data", Direction: c2s, Bytes: brpctest.StreamFrame(6, 5, brpctest.Data, []byte("data"))},
			{Name: "close", Direction: s2c, Bytes: brpctest.StreamFrame(5, 6, brpctest.Close, nil)},
		},
		Invalid: invalid,
		Malformed: []codectest.Frame{
			{Name: "request without names", Direction: c2s, Bytes: brpctest.Frame("PRPC", []byte("\x0a\x00\x20\x07"), nil)},
			{Name: "fault behind the id", Direction: c2s, Bytes: brpctest.Frame("PRPC", []byte("\x20\x07\xff"), nil)},
			{Name: "fault behind the id of an answer", Direction: s2c, Bytes: brpctest.Frame("PRPC", []byte("\x20\x07\xff"), nil)},
			{Name: "fault before the id", Direction: c2s, Bytes: brpctest.Frame("PRPC", []byte("\x0f\x20\x01"), nil)},
			{Name: "fault before the id of an answer", Direction: s2c, Bytes: brpctest.Frame("PRPC", []byte("\xff\x20\x01"), nil)},
			{Name: "stream's frame without a stream", Direction: c2s, Bytes: brpctest.Frame("STRM", []byte("\x10\x01\x18\x03"), nil)},
		},
		Hostile: hostile(),
		Mutations: []codectest.Mutation{
			{Direction: c2s, Key: "tenant", Value: "changed"},
			{Direction: c2s, Key: "new", Value: strings.Repeat("ü", 500)},
			{Direction: c2s, Key: strings.Repeat("x", codecs.MaxText), Value: strings.Repeat("x", codecs.MaxText)},
			{Direction: s2c, Key: "tenant", Value: ""},
		},
		Refused: []codectest.Mutation{
			{Key: ""},
			{Key: strings.Repeat("x", codecs.MaxText+1)},
			{Key: "k", Value: strings.Repeat("x", codecs.MaxText+1)},
			{Key: "bad\xff"},
			{Key: "bad", Value: "\xff"},
			{Key: "service"},
			{Key: "Method"},
			{Key: "LOG_ID"},
			{Key: "request_id"},
			{Key: "timeout_ms", Value: "1"},
			{Key: "error_code", Value: "0"},
		},
		CaptureExcuses: map[string]codectest.Excuses{
			"cpp-stream-failed.s2c.bin":  inStream,
			"cpp-stream-refused.s2c.bin": inStream,
		},
		OwnForeign: []string{"brpc"},
	}
}

// longFields are keys that can hardly be told apart.
func longFields() (s string) {
	half := strings.Repeat("x", 500)
	for i := range 1000 {
		s += string(brpctest.Bytes(nil, 9, string(brpctest.Bytes(nil, 1, fmt.Sprintf("%s%03d%s", half, i, half)))))
	}
	return s
}

// hostile are metas of a megabyte.
func hostile() (frames []codectest.Frame) {
	request := string(brpctest.Request{}.Meta()) + "\x20\x01"
	repeated := func(s string) string { return strings.Repeat(s, (1<<20-len(request))/len(s)) }
	for name, meta := range map[string]string{
		"user fields":            request + repeated("\x4a\x00"),
		"extension fields":       "\x20\x01" + string(brpctest.Bytes(nil, 1, "\x0a\x01s\x12\x01m"+strings.Repeat("\x3a\x04\x0a\x00\x12\x00", 1<<17))),
		"request ids":            "\x20\x01" + string(brpctest.Bytes(nil, 1, "\x0a\x01s\x12\x01m"+strings.Repeat("\x3a\x00", 1<<18))),
		"unknown fields":         request + repeated("\x78\x00"),
		"requests":               "\x20\x01" + repeated("\x0a\x00"),
		"ids":                    request + repeated("\x20\x01"),
		"groups within groups":   request + repeated("\x7b"),
		"groups":                 request + repeated("\x7b\x7c"),
		"long user fields":       request + longFields(),
		"a user field of a name": request + string(brpctest.Bytes(nil, 9, "\x0a\x80\x80\x20"+strings.Repeat("x", 1<<19))),
	} {
		for _, d := range directions {
			frames = append(frames, codectest.Frame{Name: name, Direction: d, Bytes: brpctest.Frame("PRPC", []byte(meta), nil)})
		}
	}
	return frames
}

func TestConformance(t *testing.T) { codectest.Run(t, suite()) }

func FuzzDecode(f *testing.F) { codectest.FuzzDecode(f, suite()) }

func FuzzEncode(f *testing.F) { codectest.FuzzEncode(f, suite()) }
