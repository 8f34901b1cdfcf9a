package trpc

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
)

func mutation(kv ...string) *codecs.Mutation {
	var mut codecs.Mutation
	for i := 0; i < len(kv); i += 2 {
		mut.Set(kv[i], kv[i+1])
	}
	return &mut
}

const (
	kNew = "\x0a\x01k\x12\x03new"
	zNew = "\x0a\x01z\x12\x01y"
	kOld = "\x0a\x01k\x12\x03old"
	aOld = "\x0a\x01a\x12\x01b"
)

// field of a message, in bytes.
func bytesField(number int, v ...string) (s string) {
	for _, v := range v {
		s += string(trpctest.Bytes(nil, number, v))
	}
	return s
}

func TestMutatedMessages(t *testing.T) {
	for _, tc := range []struct {
		name         string
		before, want []string // entries
	}{
		{"none so far", nil, []string{kNew, zNew}},
		{"others", []string{aOld}, []string{aOld, kNew, zNew}},
		{"replaced in place", []string{kOld, aOld}, []string{kNew, aOld, zNew}},
		{"twice", []string{kOld, aOld, kOld}, []string{kNew, aOld, kNew, zNew}},
		{"value before the key", []string{"\x12\x03old\x0a\x01k"}, []string{kNew, zNew}},
		{"without a value", []string{"\x0a\x01k"}, []string{kNew, zNew}},
		{"with an unknown field", []string{kOld + "\x18\x01"}, []string{kNew, zNew}},
		{"with two keys: the last counts", []string{"\x0a\x01a" + kOld, kOld + "\x0a\x01a"}, []string{kNew, kOld + "\x0a\x01a", zNew}},
		{"without a key", []string{"\x12\x03old"}, []string{"\x12\x03old", kNew, zNew}},
		{"all of them", []string{zNew, kNew}, []string{zNew, kNew}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, mut := newCodec(t), mutation("k", "new", "z", "y")
			const tail = "\xfa\x07\x02zz"
			join := func(number int, head string, entries []string) string {
				if len(entries) == 0 {
					return head + tail
				}
				return head + bytesField(number, entries[0]) + tail + bytesField(number, entries[1:]...)
			}
			// What is added stands at the end, behind the tail.
			check := func(d codecs.Direction, frame func(entries []string) []byte) {
				t.Helper()
				m := decodeOne(t, d, frame(tc.before))
				require.Empty(t, m.Malformed)
				out, err := c.Encode([]byte("before"), m, mut)
				require.NoError(t, err)
				require.Equal(t, "before"+string(frame(tc.want)), string(out))
			}
			if len(tc.before) == 0 {
				join = func(number int, head string, entries []string) string {
					return head + tail + bytesField(number, entries...)
				}
			}
			body := []byte("body")
			check(codecs.ClientToServer, func(entries []string) []byte {
				return trpctest.Frame(7, []byte(join(9, "\x18\x07\x3a\x02/m", entries)), body)
			})
			check(codecs.ServerToClient, func(entries []string) []byte {
				return trpctest.Frame(7, []byte(join(8, "\x18\x07", entries)), body)
			})
			check(codecs.ServerToClient, func(entries []string) []byte {
				return trpctest.Frame(7, []byte(join(8, "\x18\x07\x20\x16\x32\x02no", entries)), nil)
			})
			check(codecs.ClientToServer, func(entries []string) []byte {
				meta := bytesField(1, join(5, "\x1a\x02/m", entries))
				return trpctest.StreamFrame(trpctest.Init, 100, []byte("\x18\xff\xff\x03"+meta+"\x20\x02"))
			})
		})
	}
}

// TestMutationAndANewID change the same header.
func TestMutationAndANewID(t *testing.T) {
	for name, tc := range map[string]struct{ before, want string }{
		"id before":  {"\x18\x07\x3a\x02/m" + bytesField(9, kOld), "\x18\xac\x02\x3a\x02/m" + bytesField(9, kNew)},
		"id between": {bytesField(9, kOld) + "\x18\x07" + bytesField(9, aOld), bytesField(9, kNew) + "\x18\xac\x02" + bytesField(9, aOld)},
		"id behind":  {bytesField(9, kOld) + "\x18\x07", bytesField(9, kNew) + "\x18\xac\x02"},
		"id twice":   {"\x18\x07" + bytesField(9, kOld) + "\x18\x07", "\x18\x07" + bytesField(9, kNew) + "\x18\xac\x02"},
		"no id":      {bytesField(9, kOld), bytesField(9, kNew) + "\x18\xac\x02"},
	} {
		t.Run(name, func(t *testing.T) {
			m := requestOf(t, trpctest.Frame(0, []byte(tc.before), []byte("body")))
			m.ID = 300
			out, err := newCodec(t).Encode(nil, m, mutation("k", "new"))
			require.NoError(t, err)
			fixed := uint32(0)
			if name == "no id" {
				fixed = 300
			}
			require.Equal(t, trpctest.Frame(fixed, []byte(tc.want), []byte("body")), out)
		})
	}
}

func TestWhatCannotBeMutatedSaysSo(t *testing.T) {
	var entries [][2]string
	for i := range maxEntries {
		entries = append(entries, [2]string{fmt.Sprint(i), ""})
	}
	unreadable := string(trpctest.Bytes(nil, 8, "\x0a"))
	for _, tc := range []struct {
		name  string
		dir   codecs.Direction
		frame []byte
		want  string
	}{
		{"data", codecs.ClientToServer, trpctest.StreamFrame(trpctest.Data, 100, nil), "it is a stream_data"},
		{"feedback", codecs.ServerToClient, trpctest.FeedbackFrame(100, 5), "it is a stream_data"},
		{"close", codecs.ServerToClient, trpctest.CloseFrame(100, false, 0, ""), "it is a stream_close_two_way"},
		{"half close", codecs.ClientToServer, trpctest.CloseFrame(100, false, 0, ""), "it is a stream_close_one_way"},
		{"opened stream", codecs.ServerToClient, trpctest.Response{ID: 100}.Init(), "a server's INIT has no trans_info"},
		{"refused stream", codecs.ServerToClient, trpctest.Response{ID: 100, Ret: 12}.Init(), "it is a error"},
		{"stream without a request", codecs.ClientToServer, trpctest.StreamFrame(trpctest.Init, 100, nil), faultNoMeta},
		{"unreadable answer", codecs.ServerToClient, trpctest.Frame(1, []byte("\xff"), nil), "cut off"},
		{"unreadable entry of an answer", codecs.ServerToClient, trpctest.Frame(1, []byte(unreadable), nil), "cut off"},
		{"too many entries", codecs.ClientToServer, trpctest.Request{ID: 1, TransInfo: entries}.Bytes(), "larger than the limits"},
		{"too many entries of a stream", codecs.ClientToServer, trpctest.Request{ID: 1, TransInfo: entries}.Init(), "larger than the limits"},
		{
			"too long a header", codecs.ClientToServer,
			trpctest.Request{ID: 1, Func: strings.Repeat("x", maxHeader-200)}.Bytes(), "larger than the limits",
		},
		{
			"too long a frame", codecs.ClientToServer,
			trpctest.Request{ID: 1, Body: make([]byte, maxFrame-200)}.Bytes(), "larger than the limits",
		},
		{
			"too long a frame of a stream", codecs.ClientToServer,
			trpctest.Request{ID: 1, Func: strings.Repeat("x", maxFrame-200)}.Init(), "larger than the limits",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := decodeOne(t, tc.dir, tc.frame)
			c := newCodec(t)
			out, err := c.Encode([]byte("before"), m, mutation("k", "new", "long", strings.Repeat("x", 200)))
			require.ErrorIs(t, err, codecs.ErrNoMutation)
			require.ErrorContains(t, err, tc.want)
			require.Equal(t, "before", string(out))
			out, err = c.Encode(nil, m, nil)
			require.NoError(t, err)
			require.Equal(t, tc.frame, out)
		})
	}
}

// TestMutationStaysWithinTheLimits counts the id of a call as the longest.
func TestMutationStaysWithinTheLimits(t *testing.T) {
	grows := len(bytesField(9, kNew))
	for _, tc := range []struct {
		name  string
		frame []byte
		limit int
	}{
		{"call", trpctest.Request{ID: 1}.Bytes(), maxID - 1},
		{"stream", trpctest.Request{ID: 1}.Init(), 0},
	} {
		for room, ok := range map[int]bool{grows: true, grows - 1: false} {
			c, err := New(nil, codecs.Limits{MaxFrameBytes: len(tc.frame) + tc.limit + room})
			require.NoError(t, err)
			var m codecs.Metadata
			_, err = c.NewDecoder(codecs.ClientToServer).Decode(tc.frame, &m)
			require.NoError(t, err)
			_, err = c.Encode(nil, &m, mutation("k", "new"))
			if ok {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, codecs.ErrNoMutation)
			}
		}
	}
}

// TestAFullTransInfoCanBeChanged as long as it does not grow.
func TestAFullTransInfoCanBeChanged(t *testing.T) {
	var entries [][2]string
	for i := range maxEntries {
		entries = append(entries, [2]string{fmt.Sprint(i), ""})
	}
	mut := mutation("7", "new")
	for _, frame := range [][]byte{trpctest.Request{ID: 1, TransInfo: entries}.Bytes(), trpctest.Request{ID: 1, TransInfo: entries}.Init()} {
		m := requestOf(t, frame)
		out, err := newCodec(t).Encode(nil, m, mut)
		require.NoError(t, err)
		sameBut(t, codecs.ClientToServer, m, requestOf(t, out), 1, mut)
	}
}

// TestMoreKeysThanAreRemembered are set all the same, some of them twice.
func TestMoreKeysThanAreRemembered(t *testing.T) {
	var kv []string
	var entries [][2]string
	for i := range 100 {
		kv = append(kv, fmt.Sprint("k", i), "new")
		entries = append(entries, [2]string{fmt.Sprint("k", i), "old"})
	}
	mut := mutation(kv...)
	for _, frame := range [][]byte{trpctest.Request{ID: 1, TransInfo: entries}.Bytes(), trpctest.Request{ID: 1, TransInfo: entries}.Init()} {
		m := requestOf(t, frame)
		out, err := newCodec(t).Encode(nil, m, mut)
		require.NoError(t, err)
		sameBut(t, codecs.ClientToServer, m, requestOf(t, out), 1, mut)
	}
}

// FuzzMutate: what is mutated differs in its trans_info only, as Google's
// protobuf sees it.
func FuzzMutate(f *testing.F) {
	for _, file := range captures(f) {
		b, err := os.ReadFile(file)
		require.NoError(f, err)
		if len(b) < 1<<12 {
			f.Add(direction(file) == codecs.ClientToServer, b, "tenant", "new")
		}
	}
	f.Fuzz(func(t *testing.T, toServer bool, b []byte, key, value string) {
		d := codecs.ServerToClient
		if toServer {
			d = codecs.ClientToServer
		}
		c := newCodec(t)
		if len(b) == 0 || c.(codecs.Mutator).CheckMutation(d, key, value) != nil {
			return
		}
		var before, after codecs.Metadata
		if n, err := c.NewDecoder(d).Decode(b, &before); err != nil || n > len(b) {
			return
		}
		mut := mutation(key, value, "another", "one")
		before.ID ^= math.MaxUint16
		out, err := c.Encode(nil, &before, mut)
		if err != nil {
			require.Empty(t, out)
			return
		}
		n, err := c.NewDecoder(d).Decode(out, &after)
		require.NoError(t, err)
		require.Equal(t, len(out), n)
		require.Empty(t, after.Malformed)
		require.Equal(t, before.Type, after.Type)
		if !isStream(&before) {
			require.Equal(t, before.ID, after.ID)
		}
		sameBut(t, d, &before, &after, before.ID, mut)
	})
}
