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

func TestFramesOfNoStream(t *testing.T) {
	for _, tc := range []struct {
		name, meta, c2s, s2c string
		ignored              bool
	}{
		{name: "empty", c2s: "no stream_id at offset 12", s2c: "no stream_id at offset 12"},
		{name: "no source", meta: "\x08\x01\x18\x03", c2s: "no source_stream_id at offset 12"},
		{name: "reset without a source", meta: "\x08\x01\x18\x01", ignored: true},
		{name: "no stream", meta: "\x10\x01\x18\x03", c2s: "no stream_id at offset 12", s2c: "no stream_id at offset 12"},
		{name: "stream that is a text", meta: "\x0a\x01x\x10\x01", c2s: "no stream_id", s2c: "no stream_id"},
		{name: "cut off", meta: "\x08\x01\x10", c2s: "cut off at offset 14", s2c: "cut off at offset 14"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			frame := brpctest.Frame("STRM", []byte(tc.meta), []byte("data"))
			for d, want := range map[codecs.Direction]string{codecs.ClientToServer: tc.c2s, codecs.ServerToClient: tc.s2c} {
				var m codecs.Metadata
				_, err := newCodec(t).NewDecoder(d).Decode(frame, &m)
				if want != "" {
					require.ErrorContains(t, err, want)
					continue
				}
				require.NoError(t, err)
				require.Equal(t, tc.ignored && d == codecs.ClientToServer, m.Type == codecs.Ignored)
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

// TestAnAnswerInAStreamThatCannotBeRead names its fault where it is.
func TestAnAnswerInAStreamThatCannotBeRead(t *testing.T) {
	frame := brpctest.StreamFrame(5, 7, brpctest.Data, brpctest.Frame("PRPC", []byte("\x18\x00\xff"), nil))
	var m codecs.Metadata
	_, err := newCodec(t).NewDecoder(codecs.ServerToClient).Decode(frame, &m)
	var fault *codecs.ProtocolError
	require.ErrorAs(t, err, &fault)
	require.Equal(t, len(frame)-1, fault.Offset)
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
