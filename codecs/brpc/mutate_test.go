package brpc

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
)

func mutation(kv ...string) *codecs.Mutation {
	var mut codecs.Mutation
	for i := 0; i < len(kv); i += 2 {
		mut.Set(kv[i], kv[i+1])
	}
	return &mut
}

// TestMutatedMetas byte by byte: what is not changed stays as it is, and where
// it is.
func TestMutatedMetas(t *testing.T) {
	const (
		kOld = "\x4a\x08\x0a\x01k\x12\x03old"
		kNew = "\x4a\x08\x0a\x01k\x12\x03new"
		zNew = "\x4a\x06\x0a\x01z\x12\x01y"
		ab   = "\x4a\x06\x0a\x01a\x12\x01b"
		id   = "\x20\x07"
	)
	within := func(s string) string { return string(brpctest.Bytes(nil, 1, "\x0a\x01s\x12\x01m"+s)) }
	req := func(seven ...string) string { return within(strings.Join(seven, "") + "\x18\x00") }
	ext := func(field string) string { return "\x3a" + field[1:] }
	for _, tc := range []struct{ name, before, want string }{
		{"none so far", req() + id, req() + id + kNew + zNew},
		{"replaced in place", req() + ab + kOld + ab + id, req() + ab + kNew + ab + id + zNew},
		{"twice", req() + kOld + id + kOld, req() + kNew + id + kNew + zNew},
		{"value before the key", req() + id + "\x4a\x06\x12\x01o\x0a\x01k", req() + id + kNew + zNew},
		{"no value", req() + id + "\x4a\x03\x0a\x01k", req() + id + kNew + zNew},
		{"more than key and value", req() + id + "\x4a\x0a\x0a\x01k\x12\x03old\x18\x01", req() + id + kNew + zNew},
		{"no key", req() + id + "\x4a\x03\x12\x01k", req() + id + "\x4a\x03\x12\x01k" + kNew + zNew},
		{"length in more bytes than it needs", req() + id + "\xca\x00\x86\x00\x0a\x01a\x12\x01b", req() + id + "\xca\x00\x86\x00\x0a\x01a\x12\x01b" + kNew + zNew},
		{"field 9 of another type", req() + id + "\x48\x01", req() + id + "\x48\x01" + kNew + zNew},
		{"a request id", req("\x3a\x02id") + id, req("\x3a\x02id") + id + kNew + zNew},
		{
			"extension fields of brpc-java", req(ext(ab)) + id,
			within(ext(ab)+"\x18\x00"+ext(kNew)+ext(zNew)) + id + kNew + zNew,
		},
		{
			"extension fields that are replaced", req(ext(kOld), ext(ab), ext(kOld)) + id,
			within(ext(kNew)+ext(ab)+ext(kNew)+"\x18\x00"+ext(zNew)) + id + kNew + zNew,
		},
		{
			"extension field and request id", req(ext(ab), "\x3a\x02id") + id,
			within(ext(ab)+"\x3a\x02id"+"\x18\x00"+ext(kNew)+ext(zNew)) + id + kNew + zNew,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := requestOf(t, brpctest.Frame("PRPC", []byte(tc.before), []byte("body")))
			require.Empty(t, m.Malformed)
			mut := mutation("k", "new", "z", "y")
			out, err := newCodec(t).Encode([]byte("before"), m, mut)
			require.NoError(t, err)
			require.Equal(t, "before"+string(brpctest.Frame("PRPC", []byte(tc.want), []byte("body"))), string(out))
			m.ID = 200
			out, err = newCodec(t).Encode(nil, m, mut)
			require.NoError(t, err)
			want := strings.Replace(tc.want, id, "\x20\xc8\x01", 1)
			require.Equal(t, brpctest.Frame("PRPC", []byte(want), []byte("body")), out)
		})
	}
}

// TestMutatedAnswers have the meta of the request, which jprotobuf's bring
// along, left alone.
func TestMutatedAnswers(t *testing.T) {
	request := string(brpctest.Bytes(nil, 1, string(brpctest.Request{ExtFields: [][2]string{{"k", "old"}}}.RequestMeta())))
	before := request + "\x12\x02\x08\x00\x20\x07"
	want := brpctest.Frame("PRPC", []byte(before+"\x4a\x08\x0a\x01k\x12\x03new"), []byte("body"))
	m := answerOf(t, brpctest.Frame("PRPC", []byte(before), []byte("body")))
	out, err := newCodec(t).Encode(nil, m, mutation("k", "new"))
	require.NoError(t, err)
	require.Equal(t, want, out)

	in := brpctest.StreamFrame(5, 7, brpctest.Data, brpctest.Frame("PRPC", []byte(before), []byte("body")))
	m = answerOf(t, in)
	out, err = newCodec(t).Encode(nil, m, mutation("k", "new"))
	require.NoError(t, err)
	require.Equal(t, brpctest.StreamFrame(5, 7, brpctest.Data, want), out)
}

func TestWhatCannotBeMutatedSaysSo(t *testing.T) {
	var fields [][2]string
	for i := range maxFields {
		fields = append(fields, [2]string{fmt.Sprint(i), ""})
	}
	for _, tc := range []struct {
		name  string
		dir   codecs.Direction
		frame []byte
		want  string
	}{
		{"data", codecs.ClientToServer, brpctest.StreamFrame(1, 2, brpctest.Data, nil), "it is a stream_data"},
		{"close", codecs.ServerToClient, brpctest.StreamFrame(1, 2, brpctest.Close, nil), "it is a stream_close_two_way"},
		{"request without a name", codecs.ClientToServer, brpctest.Frame("PRPC", []byte("\x0a\x00"), nil), faultNames},
		{"unreadable answer", codecs.ServerToClient, brpctest.Frame("PRPC", []byte("\x20\x01\xff"), nil), "cut off"},
		{"unreadable field of an answer", codecs.ServerToClient, brpctest.Frame("PRPC", []byte("\x4a\x01\x0a"), nil), "cut off"},
		{"too many fields", codecs.ClientToServer, brpctest.Request{UserFields: fields}.Bytes(), "larger than the limits"},
		{"too many fields of two kinds", codecs.ClientToServer, brpctest.Request{UserFields: fields[2:], ExtFields: fields[:1]}.Bytes(), "larger than the limits"},
		{
			"too long a meta", codecs.ClientToServer,
			brpctest.Request{UserFields: [][2]string{{"x", strings.Repeat("x", maxMeta-60)}}}.Bytes(), "larger than the limits",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := decodeOne(t, tc.dir, tc.frame)
			c := newCodec(t)
			out, err := c.Encode([]byte("before"), m, mutation("k", "new", "long", strings.Repeat("x", 100)))
			require.ErrorIs(t, err, codecs.ErrNoMutation)
			require.ErrorContains(t, err, tc.want)
			require.Equal(t, "before", string(out))
			out, err = c.Encode(nil, m, nil)
			require.NoError(t, err)
			require.Equal(t, tc.frame, out)
		})
	}
}

func TestMutationStaysWithinTheFrameLimit(t *testing.T) {
	frame := brpctest.Request{ID: 1}.Bytes()
	for room, ok := range map[int]bool{len("\x4a\x08\x0a\x01k\x12\x03new"): true, len("\x4a\x08\x0a\x01k\x12\x03new") - 1: false} {
		c, err := New(nil, codecs.Limits{MaxFrameBytes: len(frame) + room})
		require.NoError(t, err)
		var m codecs.Metadata
		_, err = c.NewDecoder(codecs.ClientToServer).Decode(frame, &m)
		require.NoError(t, err)
		_, err = c.Encode(nil, &m, mutation("k", "new"))
		if ok {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, codecs.ErrNoMutation)
		}
	}
}

// TestMoreKeysThanAreRemembered are set all the same, some of them twice.
func TestMoreKeysThanAreRemembered(t *testing.T) {
	var kv []string
	var fields [][2]string
	for i := range 100 {
		kv = append(kv, fmt.Sprint("k", i), "new")
		fields = append(fields, [2]string{fmt.Sprint("k", i), "old"})
	}
	m := requestOf(t, brpctest.Request{ID: 1, UserFields: fields}.Bytes())
	mut := mutation(kv...)
	out, err := newCodec(t).Encode(nil, m, mut)
	require.NoError(t, err)
	sameBut(t, m, requestOf(t, out), 1, mut)
}

// FuzzMutate: what is mutated differs in its fields only, as Google's protobuf
// sees it.
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
		before.ID ^= 1 << 40
		out, err := c.Encode(nil, &before, mut)
		if err != nil {
			require.ErrorIs(t, err, codecs.ErrNoMutation)
			return
		}
		n, err := c.NewDecoder(d).Decode(out, &after)
		require.NoError(t, err)
		require.Equal(t, len(out), n)
		require.Empty(t, after.Malformed)
		require.Equal(t, before.Type, after.Type)
		require.Equal(t, before.ID, after.ID)
		sameBut(t, &before, &after, before.ID, mut)
	})
}
