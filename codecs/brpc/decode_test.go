package brpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

func properties(m *codecs.Metadata) (kvs [][2]string) {
	for _, p := range m.Properties() {
		kvs = append(kvs, [2]string{string(p.Name), string(p.Value)})
	}
	return kvs
}

func TestPropertiesOfRequests(t *testing.T) {
	for _, tc := range []struct {
		name    string
		request brpctest.Request
		want    [][2]string
	}{
		{"nothing else", brpctest.Request{Service: "s", Method: "m"}, nil},
		{
			"all there are", brpctest.Request{
				Service: "s", Method: "m", LogID: 1, TraceID: math.MinInt64, SpanID: math.MaxInt64, ParentID: -1,
				RequestID: "r", TimeoutMS: 3000, UserFields: [][2]string{{"k", "v"}, {"", ""}},
			}, [][2]string{
				{"request_id", "r"},
				{"log_id", "1"},
				{"trace_id", "-9223372036854775808"},
				{"span_id", "9223372036854775807"},
				{"parent_span_id", "-1"},
				{"timeout_ms", "3000"},
				{"k", "v"},
				{"", ""},
			},
		},
		{
			"extension fields", brpctest.Request{
				Service: "s", Method: "m", LogID: 256, ExtFields: [][2]string{{"a", "b"}, {"c", ""}, {"a", "d"}},
				UserFields: [][2]string{{"a", "d"}, {"A", "e"}},
			}, [][2]string{{"log_id", "256"}, {"a", "d"}, {"c", ""}, {"A", "e"}},
		},
		{
			"repeated user fields", brpctest.Request{
				Service: "s", Method: "m", UserFields: [][2]string{{"a", "1"}, {"b", "2"}, {"A", "3"}, {"a", "4"}, {"b", ""}},
			}, [][2]string{{"a", "4"}, {"b", ""}, {"A", "3"}},
		},
		{
			"names of the codec's own", brpctest.Request{
				Service: "s", Method: "m", LogID: 255, ExtFields: [][2]string{{"Service", "other"}, {"log_id", "9"}},
				UserFields: [][2]string{{"METHOD", "other"}, {"timeout_ms", "1"}, {"services", "x"}, {"error_code", "0"}},
			}, [][2]string{{"log_id", "255"}, {"services", "x"}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := requestOf(t, tc.request.Bytes())
			require.Empty(t, m.Malformed)
			require.Equal(t, codecs.Request, m.Type)
			require.Equal(t, "s/m", string(m.AppendOperation(nil)))
			want := [][2]string{{"service", "s"}, {"method", "m"}, {"compress_type", "0"}, {"attachment_size", "0"}}
			require.Equal(t, append(want, tc.want...), properties(m))
		})
	}
}

// TestRepeatedFieldsAsProtobufSeesThem: of all the orders of a few keys, in all
// numbers, protobuf takes the last.
func TestRepeatedFieldsAsProtobufSeesThem(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{2, 10, 100, maxFields} {
		var fields [][2]string
		for i := range n {
			fields = append(fields, [2]string{fmt.Sprint("key", rnd.IntN(n/2)), fmt.Sprint(i)})
		}
		check := func(m *codecs.Metadata, own int) {
			require.Empty(t, m.Malformed)
			_, b, _ := sections(t, m.Raw)
			meta, err := parse(brpcMeta, b)
			require.NoError(t, err)
			want := map[string]string{}
			meta.get("user_fields").Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				want[k.String()] = v.String()
				return true
			})
			got := map[string]string{}
			for _, p := range m.Properties()[own:] {
				got[string(p.Name)] = string(p.Value)
			}
			require.Equal(t, want, got)
			require.Len(t, m.Properties(), own+len(want))

			mut := mutation(fields[0][0], "new")
			out, err := newCodec(t).Encode(nil, m, mut)
			require.NoError(t, err)
			after := decodeOne(t, codecs.ClientToServer, out)
			sameBut(t, m, after, m.ID, mut)
			for _, p := range after.Properties() {
				if string(p.Name) == fields[0][0] {
					require.Equal(t, "new", string(p.Value))
				}
			}
		}
		check(requestOf(t, brpctest.Request{ID: 1, UserFields: fields}.Bytes()), 4)
		check(answerOf(t, brpctest.Response{ID: 1, UserFields: fields}.Bytes()), 3)
	}
}

// TestAFieldThatSaysTwoThings to servers in C++ and in Java.
func TestAFieldThatSaysTwoThings(t *testing.T) {
	old, other := [2]string{"k", "old"}, [2]string{"k", "other"}
	for _, tc := range []struct {
		ext, user [][2]string
		want      string
	}{
		{[][2]string{old}, [][2]string{old}, ""},
		{[][2]string{other, old}, [][2]string{old}, ""},
		{[][2]string{old}, [][2]string{other}, faultDiffer},
		{[][2]string{old, other}, [][2]string{old}, faultDiffer},
		{[][2]string{old}, [][2]string{old, other}, faultDiffer},
		{[][2]string{old}, [][2]string{{"l", ""}, {"K", "other"}}, ""},
	} {
		m := requestOf(t, brpctest.Request{ID: 1, ExtFields: tc.ext, UserFields: tc.user}.Bytes())
		require.Equal(t, tc.want, m.Malformed)
		if tc.want != "" {
			continue
		}
		v, _ := m.Get("k")
		require.Equal(t, "old", string(v))
		mut := mutation("k", "new", "z", "")
		out, err := newCodec(t).Encode(nil, m, mut)
		require.NoError(t, err)
		after := requestOf(t, out)
		require.Empty(t, after.Malformed)
		sameBut(t, m, after, 1, mut)
		v, _ = after.Get("k")
		require.Equal(t, "new", string(v))
	}
}

func TestAttributesComeFirstInEveryRequest(t *testing.T) {
	for _, frame := range [][]byte{
		brpctest.Request{ID: 1, Compress: 2, Attachment: make([]byte, 300)}.Bytes(),
		brpctest.Frame("PRPC", nil, nil),
		brpctest.Request{ID: 1, Stream: 5}.Bytes(),
	} {
		m := requestOf(t, frame)
		for i, name := range newCodec(t).Traits().Attributes {
			require.Equal(t, name, string(m.Properties()[i].Name))
		}
	}
}

func TestPropertiesOfAnswers(t *testing.T) {
	m := answerOf(t, brpctest.Response{
		ID: 1, Code: 2004, Text: "full", Compress: 2, Attachment: make([]byte, 300),
		UserFields: [][2]string{{"k", "v"}, {"Error_Code", "0"}},
	}.Bytes())
	require.Equal(t, [][2]string{
		{"error_code", "2004"},
		{"error_text", "full"},
		{"compress_type", "2"},
		{"attachment_size", "300"},
		{"k", "v"},
	}, properties(m))
	require.Empty(t, m.AppendOperation(nil))
}

// TestRequestsAsProtobufSeesThem compares what is decoded with what Google's
// protobuf has written, whatever the order of the fields.
func TestRequestsAsProtobufSeesThem(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	text := func() string { return strings.Repeat(string(rune('a'+rnd.IntN(26))), rnd.IntN(200)) }
	number := func() int64 { return int64(rnd.Uint64()) >> rnd.IntN(64) }
	for range 500 {
		meta := pb{dynamicpb.NewMessage(javaMeta)}
		want := map[string]string{"compress_type": "0", "attachment_size": "0"}
		req := meta.at("request")
		for name, property := range map[protoreflect.Name]string{"service_name": "service", "method_name": "method"} {
			want[property] = text()
			req.set(name, want[property])
		}
		for _, name := range []protoreflect.Name{"log_id", "trace_id", "span_id", "parent_span_id"} {
			if v := number(); rnd.IntN(2) == 0 {
				req.set(name, v)
				want[string(name)] = strconv.FormatInt(v, 10)
			}
		}
		if v := int32(number()); rnd.IntN(2) == 0 {
			req.set("timeout_ms", v)
			want["timeout_ms"] = strconv.Itoa(int(v))
		}
		for range rnd.IntN(4) {
			key, value := "ext-"+text(), text()
			e := pb{req.Mutable(brpcField(req.Descriptor(), "ext_fields")).List().AppendMutable().Message()}
			e.set("key", key)
			e.set("value", value)
			want[key] = value
		}
		for range rnd.IntN(4) {
			key, value := "user-"+text(), text()
			meta.Mutable(brpcField(javaMeta, "user_fields")).Map().Set(
				protoreflect.ValueOf(key).MapKey(), protoreflect.ValueOf(value))
			want[key] = value
		}
		for _, name := range []protoreflect.Name{"compress_type", "attachment_size"} {
			if v := int32(number()); rnd.IntN(2) == 0 {
				meta.set(name, v)
				want[string(name)] = strconv.Itoa(int(v))
			}
		}
		id := number()
		meta.set("correlation_id", id)
		meta.set("authentication_data", []byte(text()))
		wantType, wantStream := codecs.Request, int64(0)
		if rnd.IntN(2) == 0 {
			wantType, wantStream = codecs.StreamInit, number()
			meta.at("stream_settings").set("stream_id", wantStream)
			meta.at("stream_settings").set("writable", true)
		}
		b, err := proto.Marshal(meta.Interface())
		require.NoError(t, err)

		m := requestOf(t, brpctest.Frame("PRPC", b, []byte(text())))
		require.Empty(t, m.Malformed)
		require.Equal(t, wantType, m.Type)
		require.Equal(t, uint64(id), m.ID)
		require.Equal(t, uint64(wantStream), m.StreamID)
		got := map[string]string{}
		for _, p := range m.Properties() {
			got[string(p.Name)] = string(p.Value)
		}
		require.Equal(t, want, got)
	}
}

func TestTheOutcomeOfAnswers(t *testing.T) {
	type outcome struct {
		codecs.MessageType
		codecs.Status
	}
	wantOK := outcome{codecs.Response, codecs.StatusOK}
	business := outcome{codecs.Response, codecs.StatusBusinessException}
	failure := outcome{codecs.Error, codecs.StatusError}
	for code, want := range map[int32]outcome{
		0: wantOK, 1: business, -1: business, 42: business, 100: business, 101: failure, 104: failure, 110: failure,
		111: failure, 112: failure, 113: failure, 114: business, 1000: business, 1001: failure, 1019: failure,
		1020: business, 2000: business, 2001: failure, 2007: failure, 2008: business, 2999: business, 3000: failure,
		3002: failure, 3003: business, math.MinInt32: business, math.MaxInt32: business,
	} {
		m := answerOf(t, brpctest.Response{ID: 1, Code: code}.Bytes())
		require.Equal(t, want, outcome{m.Type, m.Status}, code)
		in := answerOf(t, brpctest.Response{ID: 1, Code: code}.InStream(5))
		require.Equal(t, want, outcome{in.Type, in.Status}, code)
		require.EqualValues(t, 5, in.StreamID)
	}
	m := answerOf(t, brpctest.Frame("PRPC", brpctest.Varint(nil, 4, 1), nil))
	require.Equal(t, wantOK, outcome{m.Type, m.Status}, "no response meta")
	m = answerOf(t, brpctest.Frame("PRPC", brpctest.Bytes(nil, 2, "\x08\x80\x80\x80\x80\x10"), nil))
	require.Equal(t, wantOK, outcome{m.Type, m.Status}, "a code whose lower 32 bits are 0")
}

// TestAnswersWithTheMetaOfTheRequest, as jprotobuf's have it.
func TestAnswersWithTheMetaOfTheRequest(t *testing.T) {
	meta := append(brpctest.Request{ID: 7}.Meta(), brpctest.Bytes(nil, 2, "\x08\xe9\x07\x12\x02no")...)
	m := answerOf(t, brpctest.Frame("PRPC", meta, nil))
	require.Equal(t, codecs.Error, m.Type)
	require.EqualValues(t, 7, m.ID)
	require.Equal(t, [][2]string{
		{"error_code", "1001"}, {"error_text", "no"}, {"compress_type", "0"}, {"attachment_size", "0"},
	}, properties(m))
}

// TestAMethodWithADot is that of a service in C++ if the service has one, too.
func TestAMethodWithADot(t *testing.T) {
	for _, tc := range []struct{ service, method, want string }{
		{"a.b.Echo", "m", ""},
		{"a.b", "Echo.m", faultMethod},
		{"a", "b.Echo.m", ""}, // as they look for a service by that name first
		{"echo", "user.get", ""},
	} {
		m := requestOf(t, brpctest.Request{ID: 1, Service: tc.service, Method: tc.method}.Bytes())
		require.Equal(t, tc.want, m.Malformed)
	}
}

// head is the header of a frame.
func head(magic string, body, meta uint32) []byte {
	b := binary.BigEndian.AppendUint32([]byte(magic), body)
	return binary.BigEndian.AppendUint32(b, meta)
}

// refused are bytes that end a connection, with what is said of them.
var refused = []struct {
	name  string
	bytes []byte
	want  string
}{
	{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), "bad magic at offset 0"},
	{"HTTP/2", []byte("PRI"), "bad magic at offset 0"},
	{"one byte", []byte{0}, "bad magic at offset 0"},
	{"other fourth byte", []byte("PRPD"), "bad magic at offset 0"},
	{"other fourth byte of a stream", []byte("STRX"), "bad magic at offset 0"},
	{"body and meta of 4 GiB", head("PRPC", math.MaxUint32, math.MaxUint32), "brpc: frame of 4294967307 bytes is larger than the limit of 67108876 at offset 4"},
	{"meta beyond the limit of the frame", head("STRM", math.MaxUint32, 64<<20+1), "larger than the limit"},
	{"meta larger than the body", head("PRPC", 10, 11), "meta is larger than the body at offset 8"},
	{"stream's meta larger than the body", head("STRM", 0, 1), "meta is larger than the body at offset 8"},
}

func TestBadFramesAreRefused(t *testing.T) {
	for _, tc := range refused {
		t.Run(tc.name, func(t *testing.T) {
			for _, d := range directions {
				var m codecs.Metadata
				_, err := newCodec(t).NewDecoder(d).Decode(tc.bytes, &m)
				require.ErrorContains(t, err, tc.want)
			}
		})
	}
}

// TestAFrameAboveTheLimitTellsWhoseItIs, as soon as its meta is there.
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
		{"request", codecs.ClientToServer, brpctest.Request{ID: 7, Body: body}.Bytes(), codecs.Metadata{Type: codecs.Request, ID: 7}},
		{"request of id 0", codecs.ClientToServer, brpctest.Request{Body: body}.Bytes(), codecs.Metadata{Type: codecs.Request}},
		{"request that opens a stream", codecs.ClientToServer, brpctest.Request{ID: 7, Stream: 5, Body: body}.Bytes(), codecs.Metadata{Type: codecs.StreamInit, ID: 7, StreamID: 5}},
		{"request with attachments", codecs.ClientToServer, brpctest.Request{ID: 7, UserFields: [][2]string{{"k", "v"}}, Attachment: body}.Bytes(), codecs.Metadata{Type: codecs.Request, ID: 7}},
		{"chunk", codecs.ClientToServer, brpctest.Frame("PRPC", append(brpctest.Request{ID: 7}.Meta(), "\x32\x04\x08\x01\x10\x01"...), body), codecs.Metadata{Type: codecs.Ignored, ID: 7}},
		{"answer", codecs.ServerToClient, brpctest.Response{ID: 7, Body: body}.Bytes(), codecs.Metadata{Type: codecs.Response, ID: 7}},
		{"error", codecs.ServerToClient, brpctest.Frame("PRPC", brpctest.Response{ID: 7, Code: 1003}.Meta(), body), codecs.Metadata{Type: codecs.Error, ID: 7}},
		{"data", codecs.ClientToServer, brpctest.StreamFrame(6, 5, brpctest.Data, body), codecs.Metadata{Type: codecs.StreamData, StreamID: 5}},
		{"close", codecs.ClientToServer, brpctest.StreamFrame(6, 5, brpctest.Close, body), codecs.Metadata{Type: codecs.StreamCloseTwoWay, StreamID: 5}},
		{"data of a server", codecs.ServerToClient, brpctest.StreamFrame(5, 6, brpctest.Data, body), codecs.Metadata{}},
		{"answer that opens a stream", codecs.ServerToClient, brpctest.Response{ID: 7, Stream: 6, Body: body}.Bytes(), codecs.Metadata{}},
		{"meta that cannot be read", codecs.ClientToServer, brpctest.Frame("PRPC", []byte("\xff"), body), codecs.Metadata{}},
		{"meta above the limit", codecs.ClientToServer, brpctest.Request{ID: 7, Service: string(body)}.Bytes(), codecs.Metadata{}},
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

// TestAServerThatStops answers 2003 before it looks at what is called. A client
// that gets that leaves its connection.
func TestAServerThatStops(t *testing.T) {
	answer := brpctest.Response{ID: 7, Code: 2003, Text: "Server is stopping"}
	for _, frame := range [][]byte{answer.Bytes(), answer.InStream(5)} {
		m := answerOf(t, frame)
		require.Equal(t, codecs.Error, m.Type)
		require.True(t, m.NotProcessed)
		require.True(t, m.GoesAway)
	}
	for code := range int32(4000) {
		if code == 2003 {
			continue
		}
		m := answerOf(t, brpctest.Response{ID: 7, Code: code}.Bytes())
		require.False(t, m.NotProcessed || m.GoesAway, code)
	}
	unread := brpctest.Frame("PRPC", append(answer.Meta(), 0xff), nil)
	require.False(t, answerOf(t, unread).NotProcessed)
}

func TestTheLimitsAreReached(t *testing.T) {
	c := newCodec(t)
	for _, tc := range []struct{ body, meta uint32 }{{64 << 20, 0}, {1 << 20, 1 << 20}} {
		var m codecs.Metadata
		n, err := c.NewDecoder(codecs.ClientToServer).Decode(head("PRPC", tc.body, tc.meta), &m)
		require.NoError(t, err)
		require.EqualValues(t, headerSize+tc.body, n)
	}
}

// TestMetasAboveTheLimit cost what they belong to, and not the connection.
func TestMetasAboveTheLimit(t *testing.T) {
	long := strings.Repeat("x", maxMeta)
	user := [][2]string{{"k", long}}
	for _, tc := range []struct {
		name  string
		dir   codecs.Direction
		frame []byte
		want  codecs.Metadata
	}{
		{"request", codecs.ClientToServer, brpctest.Request{ID: 7, UserFields: user}.Bytes(), codecs.Metadata{Type: codecs.Request, ID: 7}},
		{"request of a long service", codecs.ClientToServer, brpctest.Request{ID: 7, Service: long}.Bytes(), codecs.Metadata{Type: codecs.Request, ID: 7}},
		{"request that opens a stream", codecs.ClientToServer, brpctest.Request{ID: 7, Stream: 5, UserFields: user}.Bytes(), codecs.Metadata{Type: codecs.StreamInit, ID: 7, StreamID: 5}},
		{"answer", codecs.ServerToClient, brpctest.Response{ID: 7, UserFields: user}.Bytes(), codecs.Metadata{Type: codecs.Error, ID: 7}},
		{"error", codecs.ServerToClient, brpctest.Response{ID: 7, Code: 2001, Text: long}.Bytes(), codecs.Metadata{Type: codecs.Error, ID: 7}},
		{"answer in a stream", codecs.ServerToClient, brpctest.Response{ID: 7, Stream: 6, UserFields: user}.InStream(5), codecs.Metadata{Type: codecs.Error, ID: 7, StreamID: 5}},
		{"data", codecs.ClientToServer, brpctest.Frame("STRM", brpctest.Bytes([]byte("\x08\x06\x10\x05\x18\x03"), 15, long), nil), codecs.Metadata{Type: codecs.StreamData, StreamID: 5}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCodec(t)
			var m codecs.Metadata
			n, err := c.NewDecoder(tc.dir).Decode(tc.frame, &m)
			require.NoError(t, err)
			require.Equal(t, len(tc.frame), n)
			require.Equal(t, faultLong, m.Malformed)
			require.Equal(t, tc.want.Type, m.Type)
			require.Equal(t, tc.want.ID, m.ID)
			require.Equal(t, tc.want.StreamID, m.StreamID)
			require.Empty(t, m.AppendOperation(nil))
			for _, p := range m.Properties() {
				require.Less(t, len(p.Value), 10)
			}
			if tc.dir == codecs.ClientToServer {
				return
			}
			m.ID = 1 << 40 // it is passed on all the same
			out, err := c.Encode(nil, &m, nil)
			require.NoError(t, err)
			after := decodeOne(t, tc.dir, out)
			require.EqualValues(t, 1<<40, after.ID)
			require.Equal(t, m.Code, after.Code)
		})
	}
	stream := brpctest.Frame("STRM", brpctest.Bytes([]byte("\x08\x05\x18\x03"), 15, long), nil)
	_, err := newCodec(t).NewDecoder(codecs.ServerToClient).Decode(stream, new(codecs.Metadata))
	require.ErrorContains(t, err, faultLong, "on the stream's own connection")
}

// TestLongMetasThatWouldTakeLong to read are not.
func TestLongMetasThatWouldTakeLong(t *testing.T) {
	const id = "\x20\x07"
	for name, meta := range map[string]string{
		"fields":          id + strings.Repeat("\x78\x00", maxMeta/2),
		"user fields":     id + strings.Repeat("\x4a\x00", maxMeta),
		"a group":         id + "\x7b" + strings.Repeat("\x78\x00", maxMeta/2) + "\x7c",
		"stream settings": id + string(brpctest.Bytes(nil, 8, strings.Repeat("\x78\x00", maxMeta))),
	} {
		for _, d := range directions {
			for _, size := range []int{0, headerSize + maxBody} {
				frame := brpctest.Frame("PRPC", []byte(meta), nil)
				if size > 0 { // it is too large as a whole, too
					binary.BigEndian.PutUint32(frame[atBodySize:], uint32(size))
				}
				_, err := newCodec(t).NewDecoder(d).Decode(frame, new(codecs.Metadata))
				require.ErrorContains(t, err, "is larger than the limit of 1048576 at offset 8", name)
			}
		}
	}
}

// TestMetasThatCannotBeRead are answered if it is known what the answer has to
// be called, and end the connection otherwise.
func TestMetasThatCannotBeRead(t *testing.T) {
	request := brpctest.Bytes(nil, 1, string(brpctest.Request{}.RequestMeta()))
	id := brpctest.Varint(nil, 4, 77)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tc := range []struct {
		name  string
		meta  []byte
		fault string // "": the connection ends
		id    uint64
	}{
		{"empty", nil, faultRequest, 0},
		{"no request", id, faultRequest, 77},
		{"request without names", join(brpctest.Bytes(nil, 1, ""), id), faultNames, 77},
		{"request without a method", join(brpctest.Bytes(nil, 1, "\x0a\x01s"), id), faultNames, 77},
		{"request without a service", join(brpctest.Bytes(nil, 1, "\x12\x01m"), id), faultNames, 77},
		{"request that is a number", join(brpctest.Varint(nil, 1, 1), id), faultRequest, 77},
		{"request that is a group", join([]byte("\x0b\x0a\x01s\x12\x01m\x0c"), id), faultRequest, 77},
		{"method with a part of the service", join(brpctest.Bytes(nil, 1, "\x0a\x03a.b\x12\x06Echo.m"), id), faultMethod, 77},
		{"service that is a number", join(brpctest.Bytes(nil, 1, "\x08\x01\x12\x01m"), id), faultNames, 77},
		{"two requests", join(request, request, id), faultTwice, 77},
		{"two requests without an id", join(request, request), faultTwice, 0},
		{"two settings", join(request, id, []byte("\x42\x02\x08\x01\x42\x02\x08\x02")), faultTwice, 77},
		{"request that is cut off within", join(brpctest.Bytes(nil, 1, "\x0a\x01s\x12\x01m\x18"), id), pbwire.ErrTruncated.Error(), 77},
		{"request that ends its message early", join(brpctest.Bytes(nil, 1, "\x0a\x01s\x12\x01m\x00\x00"), id), pbwire.ErrTag.Error(), 77},
		{"fault behind the id", join(id, request, []byte("\xff")), pbwire.ErrTruncated.Error(), 77},
		{"fault before the id", join(request, []byte("\x0f"), id), pbwire.ErrTag.Error(), 0},
		{"fault within the id", join(request, []byte("\x20\xff")), pbwire.ErrTruncated.Error(), 0},
		{"id of 65 bits", join(request, []byte("\x20"), bytes.Repeat([]byte("\xff"), 9), []byte("\x02")), pbwire.ErrVarint.Error(), 0},
		{"id of eleven bytes", join(request, []byte("\x20"), bytes.Repeat([]byte("\x80"), 10), []byte("\x00")), pbwire.ErrVarint.Error(), 0},
		{"request beyond the meta", join(id, []byte("\x0a\x7f")), pbwire.ErrTruncated.Error(), 77},
		{"length of 2^64-1", join(id, []byte("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")), pbwire.ErrLength.Error(), 77},
		{"length in more bytes than C++ takes", join(id, []byte("\x0a\x80\x80\x80\x80\x80\x00")), pbwire.ErrLength.Error(), 77},
		{"tag in more bytes than C++ takes", join(id, request, []byte("\xf8\x80\x80\x80\x80\x00\x01")), pbwire.ErrTag.Error(), 77},
		{"response that cannot be read", join(request, id, []byte("\x12\x01\x08")), faultResponse, 77},
		{"length that 32 bits make short", join(id, []byte("\x0a\x80\x80\x80\x80\x10")), pbwire.ErrTruncated.Error(), 77},
		{"tag that 32 bits make a request", join(id, []byte("\x8a\x80\x80\x80\x80\x01\x00")), pbwire.ErrTag.Error(), 77},
		{"groups", join(id, bytes.Repeat([]byte("\x7b"), 1<<16)), pbwire.ErrDepth.Error(), 77},
		{"user field that cannot be read", join(request, id, []byte("\x4a\x02\x0a\x02")), pbwire.ErrTruncated.Error(), 77},
		{"settings that cannot be read", join(request, id, []byte("\x42\x01\x08")), pbwire.ErrTruncated.Error(), 77},
		{"settings without an id", join(request, id, []byte("\x42\x00")), faultStream, 77},
		{"several streams", join(request, id, []byte("\x42\x04\x08\x01\x20\x02")), faultStreams, 77},
		{"several streams, packed", join(request, id, []byte("\x42\x05\x08\x01\x22\x01\x02")), faultStreams, 77},
		{"last of several chunks", join(request, id, []byte("\x32\x0d\x08\x05\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")), faultChunks, 77},
		{"chunk without a number", join(request, id, []byte("\x32\x02\x08\x05")), faultChunks, 77},
		{"chunk that cannot be read", join(request, id, []byte("\x32\x01\x08")), faultChunks, 77},
	} {
		t.Run(tc.name, func(t *testing.T) {
			frame := brpctest.Frame("PRPC", tc.meta, []byte("body"))
			var m codecs.Metadata
			n, err := newCodec(t).NewDecoder(codecs.ClientToServer).Decode(frame, &m)
			require.NoError(t, err)
			require.Equal(t, len(frame), n)
			require.Equal(t, tc.fault, m.Malformed)
			require.Equal(t, tc.id, m.ID)
			require.Contains(t, []codecs.MessageType{codecs.Request, codecs.StreamInit}, m.Type)
		})
	}
}

// TestAnswersThatCannotBeRead are passed on, with the client's id.
func TestAnswersThatCannotBeRead(t *testing.T) {
	id := string(brpctest.Varint(nil, 4, 77))
	for name, meta := range map[string]string{
		"fault behind the id": id + "\xff", "response that cannot be read": "\x12\x01\x08" + id,
		"two responses":        "\x12\x02\x08\x01\x12\x02\x08\x00" + id,
		"too many user fields": id + strings.Repeat("\x4a\x00", maxFields+1),
	} {
		t.Run(name, func(t *testing.T) {
			m := answerOf(t, brpctest.Frame("PRPC", []byte(meta), []byte("body")))
			require.NotEmpty(t, m.Malformed)
			require.Equal(t, codecs.Error, m.Type)
			require.Equal(t, codecs.StatusError, m.Status)
			require.Empty(t, m.Properties())
			m.ID = 5
			out, err := newCodec(t).Encode(nil, m, nil)
			require.NoError(t, err)
			want := strings.Replace(meta, "\x20\x4d", "\x20\x05", 1)
			require.Equal(t, brpctest.Frame("PRPC", []byte(want), []byte("body")), out)
		})
	}
	m := answerOf(t, brpctest.Frame("PRPC", []byte("\xff"+id), nil))
	require.NotEmpty(t, m.Malformed)
	require.Zero(t, m.ID, "nobody's")
}

// TestChunksThatAreNotTheLast ask for nothing: the last one is answered.
func TestChunksThatAreNotTheLast(t *testing.T) {
	for _, number := range []uint64{0, 1, math.MaxInt64} {
		chunk := string(brpctest.Varint(brpctest.Varint(nil, 1, 5), 2, number))
		m := requestOf(t, brpctest.Frame("PRPC", brpctest.Bytes(brpctest.Request{ID: 1}.Meta(), 6, chunk), nil))
		require.Equal(t, codecs.Ignored, m.Type)
		require.Empty(t, m.Malformed)
	}
}

// TestWhatABrpcJavaExtensionFieldIs and what a request id of brpc.
func TestWhatABrpcJavaExtensionFieldIs(t *testing.T) {
	names := "\x0a\x01s\x12\x01m"
	for _, tc := range []struct{ name, seven, requestID, key, value string }{
		{"key and value", "\x0a\x01k\x12\x01v", "", "k", "v"},
		{"value before the key", "\x12\x01v\x0a\x01k", "", "k", "v"},
		{"the later counts", "\x0a\x01a\x0a\x01k\x12\x01v", "", "k", "v"},
		{"both empty", "\x0a\x00\x12\x00", "", "", ""},
		{"and something else", "\x0a\x01k\x12\x01v\x18\x01", "", "k", "v"},
		{"a text", "8d3f2a", "8d3f2a", "", ""},
		{"a text that begins as a key", "\nk", "\nk", "", ""},
		{"no value", "\x0a\x01k", "\x0a\x01k", "", ""},
		{"no key", "\x12\x01v", "\x12\x01v", "", ""},
		{"cut off", "\x0a\x01k\x12\x02v", "\x0a\x01k\x12\x02v", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := requestOf(t, brpctest.Frame("PRPC", brpctest.Bytes(nil, 1, names+string(brpctest.Bytes(nil, 7, tc.seven))), nil))
			require.Empty(t, m.Malformed)
			got := properties(m)[4:]
			if tc.requestID != "" {
				require.Equal(t, [][2]string{{"request_id", tc.requestID}}, got)
			} else {
				require.Equal(t, [][2]string{{tc.key, tc.value}}, got)
			}
		})
	}
}

// TestUnknownFieldsHideNothing: neither groups nor other wire types.
func TestUnknownFieldsHideNothing(t *testing.T) {
	unknown := "\xf8\x07\x01" + "\xf9\x0712345678" + "\xfa\x07\x03abc" + "\xfb\x07\x0a\x01x\xfc\x07" + "\xfd\x071234"
	in := unknown + "\x0a\x01s" + unknown + "\x12\x01m" + unknown
	meta := unknown + string(brpctest.Bytes(nil, 1, in)) + unknown + "\x20\x07" + unknown + "\x4a\x06\x0a\x01k\x12\x01v" + unknown
	frame := brpctest.Frame("PRPC", []byte(meta), nil)
	m := requestOf(t, frame)
	require.Empty(t, m.Malformed)
	require.Equal(t, "s/m", string(m.AppendOperation(nil)))
	require.EqualValues(t, 7, m.ID)
	v, ok := m.Get("k")
	require.True(t, ok)
	require.Equal(t, "v", string(v))
	out, err := newCodec(t).Encode(nil, m, mutation("k", "new"))
	require.NoError(t, err)
	want := strings.Replace(meta, "\x4a\x06\x0a\x01k\x12\x01v", "\x4a\x08\x0a\x01k\x12\x03new", 1)
	require.Equal(t, brpctest.Frame("PRPC", []byte(want), nil), out)
}

func TestManyFields(t *testing.T) {
	fields := func(n int) (kvs [][2]string) {
		for i := range n {
			kvs = append(kvs, [2]string{fmt.Sprint("k", i), "v"})
		}
		return kvs
	}
	for _, tc := range []struct {
		user, ext int
		ok        bool
	}{{maxFields, 0, true}, {0, maxFields, true}, {maxFields - 1, 1, true}, {maxFields, 1, false}, {maxFields + 1, 0, false}} {
		m := requestOf(t, brpctest.Request{ID: 3, UserFields: fields(tc.user), ExtFields: fields(tc.ext)}.Bytes())
		require.Equal(t, tc.ok, m.Malformed == "", m.Malformed)
		require.LessOrEqual(t, len(m.Properties()), 4+maxFields)
		require.EqualValues(t, 3, m.ID)
	}
}
