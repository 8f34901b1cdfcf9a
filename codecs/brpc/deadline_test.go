package brpc

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire/pbwiretest"
)

func timeoutOf(t testing.TB, m *codecs.Metadata) time.Duration {
	t.Helper()
	return newCodec(t).(codecs.Deadliner).Timeout(m)
}

// written are the timeouts in a meta, as a reader sees them that is not ours.
func written(meta []byte) (all []int32) {
	pbwiretest.Fields(meta, func(n int, _ uint64, b []byte) {
		if n == 1 {
			pbwiretest.Fields(b, func(n int, v uint64, _ []byte) {
				if n == 8 {
					all = append(all, int32(v))
				}
			})
		}
	})
	return all
}

func TestTimeouts(t *testing.T) {
	for _, tc := range []struct {
		name, fields string
		want         time.Duration
		written      []int32
	}{
		{"none", "", 0, []int32{1234}},
		{"0 is none", "\x40\x00", 0, []int32{1234}},
		{"brpc's default", "\x40\xf4\x03", 500 * time.Millisecond, []int32{1234}},
		{"of two the later", "\x40\x01\x40\x02", 2 * time.Millisecond, []int32{1234, 1234}},
		{"less than nothing is none", "\x40\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0, []int32{1234}},
		{"the largest", "\x40\xff\xff\xff\xff\x07", math.MaxInt32 * time.Millisecond, []int32{1234}},
		{"too much is less than nothing", "\x40\x80\x80\x80\x80\x08", 0, []int32{1234}},
		{"of another type", "\x42\x01\x05", 0, []int32{0, 1234}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for name, r := range map[string]brpctest.Request{
				"call": {ID: 7}, "extension fields": {ID: 7, ExtFields: [][2]string{{"k", "v"}}}, "stream": {ID: 7, Stream: 3},
				"request id": {ID: 7, RequestID: "abc", UserFields: [][2]string{{"k", "v"}}},
			} {
				meta := brpctest.Bytes(nil, 1, string(r.RequestMeta())+tc.fields)
				whole := r.Meta()
				meta = append(meta, whole[len(brpctest.Bytes(nil, 1, string(r.RequestMeta()))):]...)
				m := requestOf(t, brpctest.Frame("PRPC", meta, []byte("body")))
				require.Empty(t, m.Malformed)
				require.Equal(t, tc.want, timeoutOf(t, m))
				for _, mut := range []*codecs.Mutation{{}, mutation("k", "new", "z", "y")} {
					mut.Timeout, mut.Retry = 1234567*time.Microsecond, 1
					m.ID = 1 << 40
					out, err := newCodec(t).Encode(nil, m, mut)
					require.NoError(t, err)
					frames, rest := brpctest.Parse(out)
					require.Empty(t, rest)
					f := frames[0]
					require.Equal(t, tc.written, written(f.Meta), name)
					require.EqualValues(t, 1<<40, f.ID)
					require.Equal(t, "example.Echo/Echo", f.Service+"/"+f.Method)
					require.Equal(t, "body", string(f.Payload))
					require.Equal(t, r.Stream, f.Opens)
					if len(mut.Entries()) == 0 {
						require.Len(t, f.ExtFields, len(r.ExtFields))
						require.Len(t, f.UserFields, len(r.UserFields))
					}
					require.Equal(t, 1234*time.Millisecond, timeoutOf(t, requestOf(t, out)))
				}
			}
		})
	}
}

// TestWithoutATimeout: what has no place for one, or no room, goes out as it is.
func TestWithoutATimeout(t *testing.T) {
	frame := brpctest.Request{ID: 7}.Bytes()
	small, err := New(nil, codecs.Limits{MaxFrameBytes: len(frame) + 2})
	require.NoError(t, err)
	for _, tc := range []struct {
		name  string
		codec codecs.Codec
		m     *codecs.Metadata
	}{
		{"no room", small, requestOf(t, frame)},
		{"unreadable", newCodec(t), requestOf(t, brpctest.Frame("PRPC", []byte("\x0a\x02\x40\x05\xff"), nil))},
		{"answer", newCodec(t), answerOf(t, brpctest.Response{ID: 7}.Bytes())},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.Zero(t, timeoutOf(t, tc.m))
			out, err := tc.codec.Encode(nil, tc.m, &codecs.Mutation{Timeout: time.Second})
			require.NoError(t, err)
			require.Equal(t, tc.m.Raw, out)
		})
	}
}

// TestFailures: of the codes, those after which another attempt may help.
func TestFailures(t *testing.T) {
	want := map[int32]codecs.FailureClass{
		101: codecs.HostFailure, 104: codecs.HostFailure, 110: codecs.HostFailure, 111: codecs.HostFailure,
		112: codecs.HostFailure, 113: codecs.HostFailure,
		1008: codecs.HostFailure, 1009: codecs.HostFailure, 1011: codecs.Overloaded, 1014: codecs.HostFailure,
		2001: codecs.HostFailure, 2003: codecs.Refused, 2004: codecs.Overloaded,
	}
	for code := int32(-1); code < 4000; code++ {
		m := answerOf(t, brpctest.Response{ID: 1, Code: code, Text: "no"}.Bytes())
		require.Equal(t, code, m.Code)
		require.Equal(t, want[code], m.Failure, code)
		if m.Failure != codecs.NoFailure {
			require.Equal(t, codecs.Error, m.Type)
		}
		require.Equal(t, code == 2003, m.NotProcessed)
	}
	require.Equal(t, codecs.HostFailure, answerOf(t, brpctest.Frame("PRPC", []byte("\x12\x02\x08\xff"), nil)).Failure)
}
