package brpc

import (
	"bytes"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
)

var directions = []codecs.Direction{codecs.ClientToServer, codecs.ServerToClient}

func newCodec(t testing.TB) codecs.Codec {
	t.Helper()
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	return c
}

func direction(file string) codecs.Direction {
	if strings.HasSuffix(file, ".c2s.bin") {
		return codecs.ClientToServer
	}
	return codecs.ServerToClient
}

func captures(t testing.TB) (files []string) {
	t.Helper()
	files, err := filepath.Glob("testdata/captures/*.bin")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

// decodeOne decodes a frame that is whole and sound.
func decodeOne(t testing.TB, d codecs.Direction, frame []byte) *codecs.Metadata {
	t.Helper()
	m := new(codecs.Metadata)
	n, err := newCodec(t).NewDecoder(d).Decode(frame, m)
	require.NoError(t, err)
	require.Equal(t, len(frame), n)
	require.Equal(t, frame, m.Raw)
	return m
}

func requestOf(t testing.TB, frame []byte) *codecs.Metadata {
	t.Helper()
	return decodeOne(t, codecs.ClientToServer, frame)
}

func answerOf(t testing.TB, frame []byte) *codecs.Metadata {
	t.Helper()
	return decodeOne(t, codecs.ServerToClient, frame)
}

func TestTheConfigurationIsChecked(t *testing.T) {
	f, ok := codecs.Lookup("aeraki.meta_protocol.codec.brpc")
	require.True(t, ok)
	_, err := f(&anypb.Any{TypeUrl: "type.googleapis.com/aeraki.meta_protocol.codec.BrpcCodec"}, codecs.Limits{})
	require.NoError(t, err)
	wrong, err := anypb.New(wrapperspb.String("x"))
	require.NoError(t, err)
	_, err = f(wrong, codecs.Limits{})
	require.ErrorContains(t, err, "google.protobuf.StringValue")
}

// ids of every length that a varint of an id can have.
func ids() (ids []uint64) {
	ids = []uint64{0, 1}
	for i := 7; i < 64; i += 7 {
		ids = append(ids, 1<<i-1, 1<<i)
	}
	return append(ids, math.MaxInt64, 1<<63, math.MaxUint64)
}

// TestMessagesWithoutAnID get one, and lose nothing with it.
func TestMessagesWithoutAnID(t *testing.T) {
	c := newCodec(t)
	for _, tc := range []struct {
		name  string
		dir   codecs.Direction
		frame []byte
	}{
		{"request", codecs.ClientToServer, brpctest.Request{Body: []byte("body"), Attachment: []byte("a")}.Bytes()},
		{"answer", codecs.ServerToClient, brpctest.Frame("PRPC", brpctest.Bytes(nil, 2, ""), []byte("body"))},
		{"answer without a meta", codecs.ServerToClient, brpctest.Frame("PRPC", nil, []byte("body"))},
		{"within a stream", codecs.ServerToClient, brpctest.StreamFrame(5, 6, brpctest.Data,
			brpctest.Frame("PRPC", brpctest.Bytes(nil, 8, "\x08\x06"), []byte("body")))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := decodeOne(t, tc.dir, tc.frame)
			require.Zero(t, m.ID)
			for _, id := range ids() {
				m.ID = id
				out, err := c.Encode(nil, m, nil)
				require.NoError(t, err)
				if id == 0 {
					require.Equal(t, tc.frame, out)
				}
				again := decodeOne(t, tc.dir, out)
				require.Equal(t, id, again.ID)
				require.Equal(t, m.Type, again.Type)
				sameBut(t, m, again, id, nil)
			}
		})
	}
}

// TestOfSeveralIDsTheLastCounts, as to all readers of protobuf.
func TestOfSeveralIDsTheLastCounts(t *testing.T) {
	meta := brpctest.Varint(brpctest.Varint(brpctest.Request{ID: 1}.Meta(), 4, 2), 4, 3)
	m := requestOf(t, brpctest.Frame("PRPC", meta, nil))
	require.EqualValues(t, 3, m.ID)
	m.ID = 300
	out, err := newCodec(t).Encode(nil, m, nil)
	require.NoError(t, err)
	want := brpctest.Varint(brpctest.Varint(brpctest.Request{ID: 1}.Meta(), 4, 2), 4, 300)
	require.Equal(t, brpctest.Frame("PRPC", want, nil), out)
}

// TestAnIDInMoreBytesThanItNeeds keeps them unless it changes.
func TestAnIDInMoreBytesThanItNeeds(t *testing.T) {
	meta := brpctest.Request{}.Meta()
	m := requestOf(t, brpctest.Frame("PRPC", append(meta, "\x20\x87\x80\x80\x00"...), nil))
	require.EqualValues(t, 7, m.ID)
	out, err := newCodec(t).Encode(nil, m, nil)
	require.NoError(t, err)
	require.Equal(t, m.Raw, out)
	m.ID = 8
	out, err = newCodec(t).Encode(nil, m, nil)
	require.NoError(t, err)
	require.Equal(t, brpctest.Frame("PRPC", append(meta, "\x20\x08"...), nil), out)
}

// TestAnIDDoesNotMakeAFrameTooLarge: the server would end a connection that
// others share.
func TestAnIDDoesNotMakeAFrameTooLarge(t *testing.T) {
	frame := brpctest.Request{ID: 1}.Bytes()
	for room, ok := range map[int]bool{1: true, 0: false} {
		c, err := New(nil, codecs.Limits{MaxFrameBytes: len(frame) + room})
		require.NoError(t, err)
		var m codecs.Metadata
		_, err = c.NewDecoder(codecs.ClientToServer).Decode(frame, &m)
		require.NoError(t, err)
		m.ID = 128
		_, err = c.Encode(nil, &m, nil)
		require.Equal(t, ok, err == nil, err)
	}
}

func TestErrorAnswers(t *testing.T) {
	c := newCodec(t)
	for e, code := range []int32{
		codecs.RouteNotFound: 1001, codecs.ClusterNotFound: 1001, codecs.NoHealthyUpstream: 112,
		codecs.BadResponse: 2002, codecs.Unspecified: 2001, codecs.OverLimit: 2004, codecs.BadRequest: 1003,
		codecs.Timeout: 1008, codecs.ConnectFailure: 1009, codecs.UpstreamReset: 1009, codecs.Denied: 1018,
	} {
		for text, want := range map[string]string{
			"": "", "why": "why", "bad \xff": "bad ?", strings.Repeat("ü", 20000): strings.Repeat("ü", 20000),
		} {
			req := codecs.Metadata{Type: codecs.Request, ID: math.MaxInt64}
			if e%2 == 0 {
				req.Type, req.StreamID = codecs.StreamInit, 9
			}
			b, err := c.EncodeError([]byte("before"), &req, &codecs.LocalError{Type: codecs.ErrorType(e), Message: text})
			require.NoError(t, err)
			require.Equal(t, "before", string(b[:6]))
			m := answerOf(t, b[6:])
			require.Equal(t, codecs.Error, m.Type)
			require.Equal(t, codecs.StatusError, m.Status, "what we answer is a failure to those before us")
			require.Equal(t, req.ID, m.ID)
			_, meta, payload := sections(t, m.Raw)
			require.Empty(t, payload)
			got, err := parse(brpcMeta, meta)
			require.NoError(t, err)
			// Clients leave a connection over which they get one of these.
			require.NotContains(t, []int32{22, 101, 111, 113, 2003}, code)
			require.EqualValues(t, code, got.sub("response").get("error_code").Int(), codecs.ErrorType(e))
			require.Equal(t, want, got.sub("response").get("error_text").String())
			require.EqualValues(t, req.ID, got.get("correlation_id").Int())
		}
	}
}

func TestErrorsWithACode(t *testing.T) {
	for _, code := range []int32{1, 2003, 2004, 4711, math.MaxInt32, -1, math.MinInt32} {
		b, err := newCodec(t).EncodeError(nil, &codecs.Metadata{ID: 3}, &codecs.LocalError{Type: codecs.OverLimit, Code: code})
		require.NoError(t, err)
		_, meta, _ := sections(t, answerOf(t, b).Raw)
		got, err := parse(brpcMeta, meta)
		require.NoError(t, err)
		require.EqualValues(t, code, got.sub("response").get("error_code").Int())
	}
}

func TestTheResetOfAStream(t *testing.T) {
	for _, id := range ids() {
		stream := codecs.Metadata{Type: codecs.StreamInit, ID: 3, StreamID: id}
		b, err := newCodec(t).(codecs.Streamer).EncodeReset([]byte("before"), &stream, &codecs.LocalError{Message: "why"})
		require.NoError(t, err)
		require.Equal(t, "before", string(b[:6]))
		m := answerOf(t, b[6:])
		require.Equal(t, codecs.StreamCloseTwoWay, m.Type)
		require.Equal(t, id, m.StreamID)
		got, err := parse(streamMeta, m.Raw[headerSize:])
		require.NoError(t, err)
		require.EqualValues(t, id, got.get("stream_id").Int())
		require.EqualValues(t, brpctest.Reset, got.get("frame_type").Int())
	}
}

func TestSniffing(t *testing.T) {
	c := newCodec(t).(codecs.Sniffer)
	for first, want := range map[string]codecs.Guess{
		"P": codecs.Maybe, "PR": codecs.Maybe, "PRP": codecs.Maybe, "PRPC": codecs.Yes, "PRPC\x00": codecs.Yes,
		"PRI * HTTP/2.0": codecs.No, "PUT": codecs.No, "STRM": codecs.No, "S": codecs.No, "\x00": codecs.No, "prpc": codecs.No,
	} {
		require.Equal(t, want, c.Sniff([]byte(first)), first)
	}
}

func typicalRequest() []byte {
	return brpctest.Request{
		ID: 1 << 33, Service: "org.example.Greeter", Method: "SayHello", LogID: 123456789, TraceID: -1, SpanID: 1 << 40,
		RequestID: "8d3f2a", TimeoutMS: 3000,
		UserFields: [][2]string{{"tenant", "acme"}, {"colour", "blue"}},
		Body:       bytes.Repeat([]byte("x"), 128),
	}.Bytes()
}

func BenchmarkDecodeEncode(b *testing.B) { benchmark(b, nil) }

func BenchmarkDecodeMutateEncode(b *testing.B) {
	var mut codecs.Mutation
	mut.Set("tenant", "other")
	mut.Set("zone", "b")
	benchmark(b, &mut)
}

func benchmark(b *testing.B, mut *codecs.Mutation) {
	c := newCodec(b)
	dec := c.NewDecoder(codecs.ClientToServer)
	frame := typicalRequest()
	var m codecs.Metadata
	out := make([]byte, 0, 4096)
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		m.Reset()
		if _, err := dec.Decode(frame, &m); err != nil {
			b.Fatal(err)
		}
		m.ID = 1 << 52
		out, _ = c.Encode(out[:0], &m, mut)
	}
}
