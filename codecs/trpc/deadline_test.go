package trpc

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire/pbwiretest"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
)

func timeoutOf(t testing.TB, m *codecs.Metadata) time.Duration {
	t.Helper()
	return newCodec(t).(codecs.Deadliner).Timeout(m)
}

// written are the timeouts in a header, as a reader sees them that is not ours.
func written(header []byte) (all []uint64) {
	pbwiretest.Fields(header, func(n int, v uint64, _ []byte) {
		if n == 4 {
			all = append(all, v)
		}
	})
	return all
}

func TestTimeouts(t *testing.T) {
	const head = "\x18\x07" // id 7
	for _, tc := range []struct {
		name, fields string
		want         time.Duration
		written      []uint64
	}{
		{"none", "", 0, []uint64{1234}},
		{"0 is none", "\x20\x00", 0, []uint64{1234}},
		{"a millisecond", "\x20\x01", time.Millisecond, []uint64{1234}},
		{"of two the later", "\x20\x01\x20\x02", 2 * time.Millisecond, []uint64{1234, 1234}},
		{"the largest", "\x20\xff\xff\xff\xff\x0f", math.MaxUint32 * time.Millisecond, []uint64{1234}},
		{"of more bits the lower 32", "\x20\x81\x80\x80\x80\x10", time.Millisecond, []uint64{1234}},
		{"in more bytes than it needs", "\x20\x85\x80\x00", 5 * time.Millisecond, []uint64{1234}},
		{"of another type", "\x22\x01\x05", 0, []uint64{0, 1234}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, oneway := range []string{"", "\x10\x01"} {
				fields := oneway + head + tc.fields + "\x3a\x02/f\x4a\x06\x0a\x01k\x12\x01v"
				m := requestOf(t, trpctest.Frame(7, []byte(fields), []byte("body")))
				require.Empty(t, m.Malformed)
				require.Equal(t, tc.want, timeoutOf(t, m))
				for _, mut := range []*codecs.Mutation{{}, mutation("k", "new", "z", "y")} {
					mut.Timeout, mut.Retry = 1234567*time.Microsecond, 1
					m.ID = 1 << 30
					out, err := newCodec(t).Encode(nil, m, mut)
					require.NoError(t, err)
					frames, rest := trpctest.Parse(out, true)
					require.Empty(t, rest)
					require.Equal(t, tc.written, written(frames[0].Header))
					require.EqualValues(t, 1<<30, frames[0].ID)
					require.Equal(t, "/f", frames[0].Func)
					require.Equal(t, oneway != "", frames[0].Oneway)
					require.Equal(t, "body", string(frames[0].Payload))
					require.Len(t, frames[0].TransInfo, max(1, len(mut.Entries())))
					require.Equal(t, 1234*time.Millisecond, timeoutOf(t, requestOf(t, out)))
				}
			}
		})
	}
}

// TestWithoutATimeout: what has no place for one, or no room, goes out as it is.
func TestWithoutATimeout(t *testing.T) {
	timeout := func() *codecs.Mutation { return &codecs.Mutation{Timeout: time.Second} }
	for name, m := range map[string]*codecs.Metadata{
		"INIT":       requestOf(t, trpctest.Request{ID: 100}.Init()),
		"answer":     answerOf(t, trpctest.Response{ID: 1}.Bytes()),
		"unreadable": requestOf(t, trpctest.Frame(7, []byte("\x20\x05\xff"), nil)),
		"no room":    requestOf(t, trpctest.Request{ID: 7, Caller: strings.Repeat("x", maxHeader-72)}.Bytes()),
	} {
		t.Run(name, func(t *testing.T) {
			require.Zero(t, timeoutOf(t, m))
			want, err := newCodec(t).Encode(nil, m, nil)
			require.NoError(t, err)
			out, err := newCodec(t).Encode(nil, m, timeout())
			require.NoError(t, err)
			require.Equal(t, want, out)
			if name == "no room" { // with less there is
				less := requestOf(t, trpctest.Request{ID: 7, Caller: strings.Repeat("x", maxHeader-100)}.Bytes())
				out, err := newCodec(t).Encode(nil, less, timeout())
				require.NoError(t, err)
				require.Equal(t, time.Second, timeoutOf(t, requestOf(t, out)))
			}
		})
	}
}

// TestFailures: of the codes, those after which another attempt may help.
func TestFailures(t *testing.T) {
	want := map[int32]codecs.FailureClass{
		21: codecs.HostFailure, 22: codecs.Overloaded, 23: codecs.Overloaded, 31: codecs.HostFailure,
		111: codecs.HostFailure, 141: codecs.HostFailure,
	}
	for ret := int32(-1); ret < 1000; ret++ {
		if ret == 0 {
			continue
		}
		for _, frame := range [][]byte{trpctest.Response{ID: 1, Ret: ret}.Bytes(), trpctest.Response{ID: 1, Ret: ret}.Init()} {
			m := answerOf(t, frame)
			require.Equal(t, codecs.Error, m.Type)
			require.Equal(t, ret, m.Code)
			require.Equal(t, want[ret], m.Failure, ret)
		}
		m := answerOf(t, trpctest.Response{ID: 1, FuncRet: ret}.Bytes())
		require.Equal(t, codecs.StatusBusinessException, m.Status)
		require.Equal(t, ret, m.Code)
		require.Equal(t, codecs.NoFailure, m.Failure)
	}
	require.Zero(t, answerOf(t, trpctest.Response{ID: 1}.Bytes()).Code)
	require.Equal(t, codecs.HostFailure, answerOf(t, trpctest.Frame(7, []byte("\x20\x05\xff"), nil)).Failure)
}
