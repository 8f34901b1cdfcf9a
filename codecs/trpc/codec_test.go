package trpc

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
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

func isStream(m *codecs.Metadata) bool { return m.Raw[atType] == typeStream }

func TestTheConfigurationIsChecked(t *testing.T) {
	f, ok := codecs.Lookup("aeraki.meta_protocol.codec.trpc")
	require.True(t, ok)
	_, err := f(&anypb.Any{TypeUrl: "type.googleapis.com/aeraki.meta_protocol.codec.TrpcCodec"}, codecs.Limits{})
	require.NoError(t, err)
	wrong, err := anypb.New(wrapperspb.String("x"))
	require.NoError(t, err)
	_, err = f(wrong, codecs.Limits{})
	require.ErrorContains(t, err, "google.protobuf.StringValue")
}

// TestAFrameAboveTheLimitTellsWhoseItIs, as soon as its header is there.
func TestAFrameAboveTheLimitTellsWhoseItIs(t *testing.T) {
	const limit = 200
	body := make([]byte, limit)
	c, err := New(nil, codecs.Limits{MaxFrameBytes: limit})
	require.NoError(t, err)
	for _, tc := range []struct {
		name  string
		dir   codecs.Direction
		frame []byte
		want  codecs.Metadata // the zero value: it ends the connection
	}{
		{"request", c2s, trpctest.Request{ID: 7, Body: body}.Bytes(), codecs.Metadata{Type: codecs.Request, ID: 7}},
		{"request of Java", c2s, trpctest.Request{ID: 7, BareID: true, Body: body}.Bytes(), codecs.Metadata{Type: codecs.Request, ID: 7}},
		{"attachment", c2s, trpctest.Request{ID: 7, Attachment: body, TransInfo: [][2]string{{"k", "v"}}}.Bytes(), codecs.Metadata{Type: codecs.Request, ID: 7}},
		{"oneway", c2s, trpctest.Request{ID: 7, Oneway: true, Body: body}.Bytes(), codecs.Metadata{Type: codecs.Oneway, ID: 7}},
		{"answer", s2c, trpctest.Response{ID: 7, Body: body}.Bytes(), codecs.Metadata{Type: codecs.Response, ID: 7}},
		{"error", s2c, trpctest.Response{ID: 7, Ret: 31, Body: body}.Bytes(), codecs.Metadata{Type: codecs.Error, ID: 7}},
		{"opening", c2s, trpctest.StreamFrame(trpctest.Init, 5, body), codecs.Metadata{Type: codecs.StreamInit, ID: 5, StreamID: 5}},
		{"data", c2s, trpctest.StreamFrame(trpctest.Data, 5, body), codecs.Metadata{Type: codecs.StreamData, ID: 5, StreamID: 5}},
		{"close", c2s, trpctest.StreamFrame(trpctest.Close, 5, body), codecs.Metadata{}},
		{"data of a server", s2c, trpctest.StreamFrame(trpctest.Data, 5, body), codecs.Metadata{}},
		{"header that cannot be read", c2s, trpctest.Frame(0, []byte("\xff"), body), codecs.Metadata{}},
		{"header above the limit", c2s, trpctest.Request{ID: 7, Func: string(body)}.Bytes(), codecs.Metadata{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dec := c.NewDecoder(tc.dir)
			var m codecs.Metadata
			for i := 1; i <= len(tc.frame); i++ {
				m.Reset()
				n, err := dec.Decode(tc.frame[:i], &m)
				if err == nil {
					require.Greater(t, n, i)
					require.LessOrEqual(t, n, limit)
					continue
				}
				require.LessOrEqual(t, i, len(tc.frame)-len(body)+1)
				var e *codecs.TooLarge
				if !errors.As(err, &e) {
					require.Zero(t, tc.want)
					return
				}
				require.Equal(t, codecs.TooLarge{Size: len(tc.frame), Limit: limit}, *e)
				require.Equal(t, tc.want.Type, m.Type)
				require.Equal(t, tc.want.ID, m.ID)
				require.Equal(t, tc.want.StreamID, m.StreamID)
				require.Nil(t, m.Raw)
				require.Empty(t, m.Properties())
				require.Equal(t, len(tc.frame), m.HeaderSize+m.BodySize)
				return
			}
			t.Fatal("it is not refused")
		})
	}
}

// TestFixedHeadersThatAreWrong cost the call or the stream of the frame, if it is
// known where that ends.
func TestFixedHeadersThatAreWrong(t *testing.T) {
	init := trpctest.Request{ID: 5}.Init()
	for _, tc := range []struct {
		name   string
		dir    codecs.Direction
		frame  []byte
		want   codecs.Metadata
		reason string
	}{
		{"call", c2s, withHeader(trpctest.Frame(7, nil, []byte("body")), 5), codecs.Metadata{Type: codecs.Request, ID: 7}, "header is longer than the frame"},
		{"answer", s2c, withHeader(trpctest.Frame(7, nil, []byte("body")), 5), codecs.Metadata{Type: codecs.Error, ID: 7}, "header is longer than the frame"},
		{"opening", c2s, withHeader(init, 1), codecs.Metadata{Type: codecs.StreamInit, ID: 5, StreamID: 5}, "stream frame with a header"},
		{"data", c2s, withHeader(trpctest.StreamFrame(trpctest.Data, 5, nil), 255), codecs.Metadata{Type: codecs.StreamData, ID: 5, StreamID: 5}, "stream frame with a header"},
		{"close", c2s, withHeader(trpctest.CloseFrame(5, true, 0, ""), 1), codecs.Metadata{Type: codecs.StreamCloseTwoWay, ID: 5, StreamID: 5}, "stream frame with a header"},
		{"no type", c2s, trpctest.StreamFrame(0, 5, nil), codecs.Metadata{Type: codecs.StreamData, ID: 5, StreamID: 5}, "unknown type of stream frame"},
		{"unknown type", c2s, trpctest.StreamFrame(5, 5, nil), codecs.Metadata{Type: codecs.StreamData, ID: 5, StreamID: 5}, "unknown type of stream frame"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := decodeOne(t, tc.dir, tc.frame)
			require.Equal(t, tc.reason, m.Malformed)
			require.Equal(t, tc.want.Type, m.Type)
			require.Equal(t, tc.want.ID, m.ID)
			require.Equal(t, tc.want.StreamID, m.StreamID)
			require.Equal(t, headerSize, m.HeaderSize)
			require.Equal(t, len(tc.frame), m.HeaderSize+m.BodySize)
			if tc.dir == c2s {
				return
			}
			m.ID = 300 // it is passed on all the same
			out, err := newCodec(t).Encode(nil, m, nil)
			require.NoError(t, err)
			require.Equal(t, withHeader(trpctest.Frame(300, nil, []byte("body")), 5), out)
		})
	}
}

// ids of every length that a varint of an id can have.
func ids() (ids []uint64) {
	ids = []uint64{0, 1}
	for i := 7; i < 32; i += 7 {
		ids = append(ids, 1<<i-1, 1<<i)
	}
	return append(ids, math.MaxInt32, 1<<31, math.MaxUint32)
}

// TestWhereTheIDStands: in the header, in the fixed header too or not, or in
// that alone.
func TestWhereTheIDStands(t *testing.T) {
	with := func(fixed uint32, fields string) []byte {
		return trpctest.Frame(fixed, []byte(fields), []byte("body"))
	}
	const fn = "\x3a\x02/m"
	for _, tc := range []struct {
		name   string
		before []byte
		id     uint64
		want   []byte // with id 300
	}{
		{"in both", with(7, "\x18\x07"+fn), 7, with(300, "\x18\xac\x02"+fn)},
		{"in the header, as with Java and C++", with(0, "\x18\x07"+fn), 7, with(0, "\x18\xac\x02"+fn)},
		{"in neither: it is 0", with(0, fn), 0, with(300, fn+"\x18\xac\x02")},
		{"0 in the header", with(0, "\x18\x00"+fn), 0, with(300, "\x18\xac\x02"+fn)},
		{"in the fixed header", with(7, fn), 7, with(300, fn+"\x18\xac\x02")},
		{"two that differ", with(9, "\x18\x07"+fn), 7, with(300, "\x18\xac\x02"+fn)},
		{"twice in the header: the last counts", with(7, "\x18\x05"+fn+"\x18\x07"), 7, with(300, "\x18\x05"+fn+"\x18\xac\x02")},
		{"in more bytes than it needs", with(7, "\x18\x87\x80\x00"+fn), 7, with(300, "\x18\xac\x02"+fn)},
		{"of more than 32 bits", with(7, "\x18\x87\x80\x80\x80\x10"+fn), 7, with(300, "\x18\xac\x02"+fn)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, d := range directions {
				c := newCodec(t)
				m := decodeOne(t, d, tc.before)
				require.Equal(t, tc.id, m.ID)
				out, err := c.Encode(nil, m, nil)
				require.NoError(t, err)
				require.Equal(t, tc.before, out)
				m.ID = 300
				out, err = c.Encode(nil, m, nil)
				require.NoError(t, err)
				require.Equal(t, tc.want, out)
				m.ID = tc.id
				again := decodeOne(t, d, out)
				require.EqualValues(t, 300, again.ID)
			}
		})
	}
}

// TestASizeThatFitsFitsWithAnyID: the server, or the next Meltemi, would end a
// connection that others share.
func TestASizeThatFitsFitsWithAnyID(t *testing.T) {
	const longest = len("\x18\xff\xff\xff\xff\x0f")
	for _, own := range []uint32{0, 1, 300, math.MaxUint32} {
		size := len(trpctest.Request{ID: own}.Bytes()) + longest
		if own > 0 {
			size -= len(trpctest.Varint(nil, 3, uint64(own)))
		}
		for _, tc := range []struct {
			limit int
			ok    bool
		}{{size, true}, {size - 1, false}} {
			c, err := New(nil, codecs.Limits{MaxFrameBytes: tc.limit})
			require.NoError(t, err)
			m := requestOf(t, trpctest.Request{ID: own}.Bytes())
			for _, m.ID = range ids() {
				for _, mut := range []*codecs.Mutation{nil, mutation("k", "v")} {
					out, err := c.Encode(nil, m, mut)
					switch {
					case !tc.ok:
						require.Equal(t, errTooLarge, err)
					case mut != nil:
						require.ErrorIs(t, err, codecs.ErrNoMutation)
					default:
						require.NoError(t, err)
						require.LessOrEqual(t, len(out), tc.limit)
					}
				}
			}
		}
	}
}

// TestAHeaderThatFitsFitsWithAnyID: its length has 16 bits.
func TestAHeaderThatFitsFitsWithAnyID(t *testing.T) {
	c := newCodec(t)
	header := func(size int) []byte {
		b := trpctest.Varint(nil, 3, 1)
		return trpctest.Bytes(b, 7, strings.Repeat("m", size-len(b)-len("\x3a\xff\xff\x03")))
	}
	for size, ok := range map[int]bool{maxHeader - 4: true, maxHeader - 3: false, maxHeader: false} {
		m := requestOf(t, trpctest.Frame(1, header(size), []byte("body")))
		require.Equal(t, headerSize+size, m.HeaderSize)
		for _, m.ID = range ids() {
			out, err := c.Encode([]byte("before"), m, nil)
			if !ok {
				require.Equal(t, errTooLarge, err)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, m.ID, requestOf(t, out[6:]).ID)
		}
	}
}

// TestErrorAnswersRepeatWhatServersDo of their calls.
func TestErrorAnswersRepeatWhatServersDo(t *testing.T) {
	header := trpctest.Request{ID: 7, ContentType: 2, ContentEncoding: 1, MessageType: 8}.Header()
	for name, tc := range map[string]struct{ header, want string }{
		"all":     {string(header) + "\x10\x02", "\x10\x02\x18\x07\x20\x0b\x32\x02no\x38\x08\x48\x02\x50\x01"},
		"nothing": {"\x18\x07", "\x18\x07\x20\x0b\x32\x02no"},
	} {
		req := requestOf(t, trpctest.Frame(7, []byte(tc.header), nil))
		b, err := newCodec(t).EncodeError(nil, req, &codecs.LocalError{Message: "no"})
		require.NoError(t, err)
		require.Equal(t, trpctest.Frame(7, []byte(tc.want), nil), b, name)
	}
}

func TestErrorAnswers(t *testing.T) {
	c := newCodec(t)
	long := strings.Repeat("ü", maxMessage)
	for e, code := range []int32{
		codecs.RouteNotFound: 11, codecs.ClusterNotFound: 11, codecs.NoHealthyUpstream: 111, codecs.BadResponse: 122,
		codecs.Unspecified: 31, codecs.OverLimit: 23, codecs.BadRequest: 1, codecs.Timeout: 21,
		codecs.ConnectFailure: 111, codecs.UpstreamReset: 141, codecs.Denied: 41,
	} {
		for text, want := range map[string]string{
			"": "", "why": "why", "bad \xff": "bad ?", long: long[:maxMessage], "x" + long: "x" + long[:maxMessage-2],
		} {
			local := &codecs.LocalError{Type: codecs.ErrorType(e), Message: text}
			for _, id := range ids() {
				for _, request := range []trpctest.Request{{ID: uint32(id)}, {ID: uint32(id), BareID: true}} {
					req := requestOf(t, request.Bytes())
					req.Release()
					b, err := c.EncodeError([]byte("before"), req, local)
					require.NoError(t, err)
					require.Equal(t, "before", string(b[:6]))
					m := answerOf(t, b[6:])
					require.Empty(t, m.Malformed)
					require.Equal(t, codecs.Error, m.Type)
					require.Equal(t, codecs.StatusError, m.Status)
					require.Equal(t, id, m.ID)
					frames, rest := trpctest.Parse(b[6:], false)
					require.Empty(t, rest)
					p := frames[0]
					require.False(t, p.Stream)
					require.EqualValues(t, 1, p.Version, "the client's")
					require.Equal(t, code, p.Ret)
					require.Zero(t, p.FuncRet)
					require.Equal(t, want, p.ErrorMsg)
					require.EqualValues(t, id, p.ID)
					if request.BareID {
						id = 0
					}
					require.EqualValues(t, id, p.FixedID)
					require.Empty(t, p.Payload)
				}
			}
			checkStreamErrors(t, local, code, want)
		}
	}
}

// TestErrorsWithACode are of the framework, of calls and of streams.
func TestErrorsWithACode(t *testing.T) {
	c := newCodec(t)
	for code, want := range map[int32]int32{1: 1, 22: 22, 999: 999, 1000: 23, -1: 23, 0: 23} {
		local := &codecs.LocalError{Type: codecs.OverLimit, Message: "why", Code: code}
		b, err := c.EncodeError(nil, requestOf(t, trpctest.Request{ID: 7}.Bytes()), local)
		require.NoError(t, err)
		frames, _ := trpctest.Parse(b, false)
		require.Equal(t, want, frames[0].Ret)
		checkStreamErrors(t, local, want, "why")
	}
	require.EqualError(t, c.(codecs.CodeChecker).CheckCode(1000), "must be between 1 and 999, the codes of the framework, is 1000")
}

func checkStreamErrors(t *testing.T, local *codecs.LocalError, code int32, text string) {
	t.Helper()
	c := newCodec(t)
	stream := requestOf(t, trpctest.Request{ID: 100}.Init())
	stream.Release()
	b, err := c.EncodeError([]byte("before"), stream, local)
	require.NoError(t, err)
	require.Equal(t, "before", string(b[:6]))
	m := answerOf(t, b[6:])
	require.Equal(t, codecs.Error, m.Type)
	require.EqualValues(t, 100, m.StreamID)
	got, err := parse(initSchema, b[6+headerSize:])
	require.NoError(t, err)
	require.EqualValues(t, code, got.at("response_meta").get("ret").Int())
	require.Equal(t, text, string(got.at("response_meta").get("error_msg").Bytes()))

	b, err = c.(codecs.Streamer).EncodeReset([]byte("before"), stream, local)
	require.NoError(t, err)
	require.Equal(t, "before", string(b[:6]))
	m = answerOf(t, b[6:])
	require.Equal(t, codecs.StreamCloseTwoWay, m.Type)
	require.EqualValues(t, 100, m.StreamID)
	got, err = parse(closeSchema, b[6+headerSize:])
	require.NoError(t, err)
	require.EqualValues(t, 1, got.get("close_type").Int())
	require.EqualValues(t, code, got.get("ret").Int())
	require.Equal(t, text, string(got.get("msg").Bytes()))
}

func TestSniffing(t *testing.T) {
	c := newCodec(t).(codecs.Sniffer)
	unary, stream := trpctest.Request{ID: 1}.Bytes(), trpctest.Request{ID: 100}.Init()
	for _, frame := range [][]byte{unary, stream, append(bytes.Clone(unary), stream...)} {
		for i := 1; i < len(frame); i++ {
			want := codecs.Yes
			if i < atID {
				want = codecs.Maybe
			}
			require.Equal(t, want, c.Sniff(frame[:i]), i)
		}
	}
	for _, first := range []string{
		"\x00", "\x30\x09", "\x09\x31", "G", "\xda\xbb", "\x09\x30\x02", "\x09\x30\x00\x01", "\x09\x30\x01\x00",
		"\x09\x30\x01\x02", "\x09\x30\x01\x05",
		"\x09\x30\x00\x00\x00\x00\x00\x0f\x00\x00", // shorter than its fixed header
		"\x09\x30\x00\x00\x00\x00\x00\x11\x00\x02", // header longer than it
		"\x09\x30\x00\x00\x00\x00\x00\x11\x00\x00", // no header
		"\x09\x30\x01\x01\x00\x00\x00\x11\x00\x01", // a stream with a header
	} {
		require.Equal(t, codecs.No, c.Sniff([]byte(first)), "%x", first)
	}
}

func typicalRequest() []byte {
	return trpctest.Request{
		ID: 1 << 20, Caller: "trpc.shop.web.Frontend", Callee: "trpc.shop.cart.Cart", Func: "/trpc.shop.cart.Cart/AddItem",
		TimeoutMS: 3000, TransInfo: [][2]string{{"tenant", "acme"}, {"colour", "blue"}},
		Body: bytes.Repeat([]byte("x"), 128),
	}.Bytes()
}

func BenchmarkDecodeEncode(b *testing.B) { benchmark(b, nil) }

func BenchmarkDecodeMutateEncode(b *testing.B) {
	benchmark(b, mutation("tenant", "other", "zone", "b"))
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
		m.ID = 1 << 30
		out, _ = c.Encode(out[:0], &m, mut)
	}
}

// TestRepeatedEntriesAsProtobufSeesThem: of all with one key protobuf takes the last.
func TestRepeatedEntriesAsProtobufSeesThem(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{2, 10, 100, maxEntries} {
		entries := [][2]string{{"K0", "differs in case"}}
		for i := range n - 1 {
			entries = append(entries, [2]string{fmt.Sprint("k", rnd.IntN(n/2)), fmt.Sprint(i)})
		}
		for _, tc := range []struct {
			dir   codecs.Direction
			frame []byte
			own   int
		}{
			{codecs.ClientToServer, trpctest.Request{ID: 1, TransInfo: entries}.Bytes(), 7},
			{codecs.ClientToServer, trpctest.Request{ID: 1, TransInfo: entries}.Init(), 6},
			{codecs.ServerToClient, trpctest.Response{ID: 1, TransInfo: entries}.Bytes(), 2},
		} {
			m := decodeOne(t, tc.dir, tc.frame)
			require.Empty(t, m.Malformed)
			b, _ := sections(t, m.Raw)
			message, err := parse(schemaOf(tc.dir, m.Raw), b)
			require.NoError(t, err)
			if message.Descriptor() == initSchema {
				message = message.at("request_meta")
			}
			want := map[string]string{}
			message.get("trans_info").Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				want[k.String()] = string(v.Bytes())
				return true
			})
			got := map[string]string{}
			for _, p := range m.Properties()[tc.own:] {
				got[string(p.Name)] = string(p.Value)
			}
			require.Equal(t, want, got)
			require.Len(t, m.Properties(), tc.own+len(want))

			mut := mutation(entries[1][0], "new")
			out, err := newCodec(t).Encode(nil, m, mut)
			require.NoError(t, err)
			after := decodeOne(t, tc.dir, out)
			sameBut(t, tc.dir, m, after, 1, mut)
			for _, p := range after.Properties() {
				if string(p.Name) == entries[1][0] {
					require.Equal(t, "new", string(p.Value))
				}
			}
		}
	}
}
