package brpc

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
)

func TestFramesOfStreamsNameTheClientsID(t *testing.T) {
	const client, server = 1 << 40, 7
	frame := func(d codecs.Direction, kind int) []byte {
		if d == codecs.ClientToServer {
			return brpctest.StreamFrame(server, client, kind, []byte("data"))
		}
		return brpctest.StreamFrame(client, server, kind, []byte("data"))
	}
	for _, d := range directions {
		for kind, want := range map[int]codecs.MessageType{
			brpctest.Data: codecs.StreamData, brpctest.Feedback: codecs.StreamData, 0: codecs.StreamData,
			5: codecs.StreamData, brpctest.Close: codecs.StreamCloseTwoWay, brpctest.Reset: codecs.StreamCloseTwoWay,
		} {
			m := decodeOne(t, d, frame(d, kind))
			require.Equal(t, want, m.Type, kind)
			require.EqualValues(t, client, m.StreamID)
			require.Empty(t, m.Properties())
			out, err := newCodec(t).Encode(nil, m, nil)
			require.NoError(t, err)
			require.Equal(t, m.Raw, out)
		}
	}
}

// TestTheIDOfAStreamMayBeZero: brpc's first one is.
func TestTheIDOfAStreamMayBeZero(t *testing.T) {
	m := requestOf(t, brpctest.Frame("PRPC", brpctest.Bytes(brpctest.Request{ID: 1}.Meta(), 8, "\x08\x00"), nil))
	require.Equal(t, codecs.StreamInit, m.Type)
	require.Empty(t, m.Malformed)
	m = requestOf(t, brpctest.Frame("STRM", []byte("\x08\x07\x10\x00\x18\x03"), nil))
	require.Equal(t, codecs.StreamData, m.Type)
}

// TestFramesOfNoStream are dropped, as servers do. One that names its source ends
// that stream. A server's end its connection, which is that of one stream.
func TestFramesOfNoStream(t *testing.T) {
	for _, tc := range []struct {
		name, meta, fault, s2c string
		source                 uint64
	}{
		{name: "empty", fault: "no source_stream_id", s2c: "no stream_id at offset 12"},
		{name: "no source", meta: "\x08\x01\x18\x03", fault: "no source_stream_id"},
		{name: "reset without a source", meta: "\x08\x01\x18\x01"},
		{name: "no stream", meta: "\x10\x01\x18\x03", fault: "no stream_id", s2c: "no stream_id at offset 12", source: 1},
		{name: "stream that is a text", meta: "\x0a\x01x\x10\x01", fault: "no stream_id", s2c: "no stream_id", source: 1},
		{name: "cut off", meta: "\x08\x01\x10", fault: "no source_stream_id", s2c: "cut off at offset 12"},
		{name: "cut off behind the source", meta: "\x08\x01\x10\x05\x18", fault: "protobuf: field is cut off", s2c: "cut off at offset 12", source: 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			frame := brpctest.Frame("STRM", []byte(tc.meta), []byte("data"))
			m := requestOf(t, frame)
			require.Equal(t, tc.fault, m.Malformed)
			require.Equal(t, tc.source, m.StreamID)
			require.Equal(t, tc.source == 0, m.Type == codecs.Ignored)
			_, err := newCodec(t).NewDecoder(codecs.ServerToClient).Decode(frame, m)
			if tc.s2c == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, tc.s2c)
			}
		})
	}
}

// TestTheAnswerToAStreamsRequest stands in the stream's first frame, with brpc,
// or alone.
func TestTheAnswerToAStreamsRequest(t *testing.T) {
	accepted := brpctest.Response{ID: 9, Stream: 7, Body: []byte("yes")}
	in := answerOf(t, accepted.InStream(5))
	require.Equal(t, codecs.StreamInit, in.Type)
	require.EqualValues(t, 5, in.StreamID)
	require.EqualValues(t, 9, in.ID)
	alone := answerOf(t, accepted.Bytes())
	require.Equal(t, codecs.StreamInit, alone.Type)
	require.EqualValues(t, 9, alone.ID)
	require.Zero(t, alone.StreamID, "it does not say")
	require.Equal(t, properties(alone), properties(in))

	refused := answerOf(t, brpctest.Response{ID: 9}.InStream(5))
	require.Equal(t, codecs.Response, refused.Type, "there is no stream")
	failed := answerOf(t, brpctest.Response{ID: 9, Code: 2004, Stream: 7}.InStream(5))
	require.Equal(t, codecs.Error, failed.Type)
}

// TestOnlyTheFirstFrameIsAnAnswer: later ones are the application's data, even
// if it sends frames of brpc over its stream.
func TestOnlyTheFirstFrameIsAnAnswer(t *testing.T) {
	answer := brpctest.Response{ID: 9, Stream: 7, Code: 0}
	failure := brpctest.Response{ID: 9, Code: 2004}
	dec := newCodec(t).NewDecoder(codecs.ServerToClient)
	for i, step := range []struct {
		frame []byte
		want  codecs.MessageType
	}{
		{brpctest.StreamFrame(5, 7, brpctest.Feedback, nil), codecs.StreamData},
		{answer.InStream(5), codecs.StreamInit},
		{failure.InStream(5), codecs.StreamData},
		{answer.InStream(6), codecs.StreamInit}, // of another stream
		{answer.InStream(6), codecs.StreamData},
		{brpctest.StreamFrame(5, 7, brpctest.Close, nil), codecs.StreamCloseTwoWay},
		{answer.InStream(6), codecs.StreamData},
		{brpctest.StreamFrame(6, 7, brpctest.Reset, nil), codecs.StreamCloseTwoWay},
		{answer.InStream(6), codecs.StreamInit},
	} {
		var m codecs.Metadata
		_, err := dec.Decode(step.frame, &m)
		require.NoError(t, err)
		require.Equal(t, step.want, m.Type, i)
	}
}

// TestDataThatIsNoAnswer begins as one, but is not.
func TestDataThatIsNoAnswer(t *testing.T) {
	answer := brpctest.Response{ID: 9, Stream: 7}.Bytes()
	long := append(append([]byte(nil), answer...), 'x')
	meta := append([]byte(nil), answer...)
	meta[8] = 1
	for name, data := range map[string][]byte{
		"cut off": answer[:len(answer)-1], "longer": long, "header": answer[:headerSize-1], "none": nil,
		"a meta that is larger": meta, "a stream's frame": brpctest.StreamFrame(5, 7, brpctest.Data, nil),
		"one byte": []byte("P"),
	} {
		m := answerOf(t, brpctest.StreamFrame(5, 7, brpctest.Data, data))
		require.Equal(t, codecs.StreamData, m.Type, name)
	}
	m := requestOf(t, brpctest.StreamFrame(7, 5, brpctest.Data, answer))
	require.Equal(t, codecs.StreamData, m.Type, "clients answer nothing")
}

// TestAnAnswerInAStreamThatCannotBeRead is passed on if its id can be had.
func TestAnAnswerInAStreamThatCannotBeRead(t *testing.T) {
	for meta, id := range map[string]uint64{"\x18\x00\xff": 0, "\x20\x07\xff": 7} {
		m := answerOf(t, brpctest.StreamFrame(5, 7, brpctest.Data, brpctest.Frame("PRPC", []byte(meta), nil)))
		require.Equal(t, codecs.Error, m.Type)
		require.NotEmpty(t, m.Malformed)
		require.Equal(t, id, m.ID)
	}
}

func TestRequestsThatOpenStreams(t *testing.T) {
	for _, id := range []uint64{1, math.MaxInt64, 1 << 63, math.MaxUint64} {
		m := requestOf(t, brpctest.Request{ID: 3, Stream: id}.Bytes())
		require.Equal(t, codecs.StreamInit, m.Type)
		require.Equal(t, id, m.StreamID)
		require.EqualValues(t, 3, m.ID)
		require.Equal(t, "example.Echo/Echo", string(m.AppendOperation(nil)))
		out, err := newCodec(t).Encode(nil, m, mutation("k", "v"))
		require.NoError(t, err)
		frames, _ := brpctest.Parse(out)
		require.Equal(t, map[string]string{"k": "v"}, frames[0].UserFields)
		require.Equal(t, id, frames[0].Opens)
	}
}
