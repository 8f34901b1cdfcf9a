package dubbo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/codecs/hessian/hessiantest"
)

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

// content is a body, taken apart by a decoder that is not ours.
type content struct {
	outcome     int32 // of an answer: its kind, whether it has attachments or not
	before      []any
	attachments map[string]any
}

func contentOf(m *codecs.Metadata) (c content, err error) {
	vs, err := hessiantest.Values(m.Raw[headerSize:])
	if err != nil {
		return c, err
	}
	if m.Type == codecs.Response {
		kind, _ := vs[0].(int32)
		c.outcome, vs = kind%withExceptionAndAttachments, vs[1:]
		if c.outcome != withNull {
			if len(vs) == 0 {
				return c, errors.New("no value")
			}
			c.before, vs = vs[:1], vs[1:]
		}
	} else {
		if len(vs) < 5 {
			return c, errors.New("no types")
		}
		if _, number := vs[4].(int32); number {
			vs = slices.Delete(vs, 4, 5)
		}
		if len(vs) < 5 {
			return c, errors.New("no types")
		}
		desc, ok := vs[4].(string)
		n := 5 + countTypes([]byte(desc))
		if !ok || n > len(vs) {
			return c, errors.New("no arguments")
		}
		c.before, vs = vs[:n], vs[n:]
	}
	if len(vs) > 0 {
		if m, ok := vs[0].(*hessiantest.Map); ok {
			c.attachments = m.Last()
		}
	}
	return c, nil
}

// sameButFor asserts that after is before with mut's attachments set, and that
// every reference still means what it meant.
func sameButFor(t testing.TB, before, after *codecs.Metadata, mut *codecs.Mutation) {
	t.Helper()
	want, err := contentOf(before)
	require.NoError(t, err)
	got, err := contentOf(after)
	require.NoError(t, err)
	if want.attachments == nil {
		want.attachments = map[string]any{}
	}
	for _, kv := range mut.Entries() {
		want.attachments[kv.Key] = kv.Value
	}
	require.Equal(t, want, got)
	if before.Type == codecs.Response {
		require.GreaterOrEqual(t, after.Raw[headerSize], byte(0x93))
	}
	require.Equal(t, before.Raw[:4], after.Raw[:4])
	require.EqualValues(t, len(after.Raw)-headerSize, binary.BigEndian.Uint32(after.Raw[12:]))
}

func TestAttachmentsThatAreNoStringsSurviveMutation(t *testing.T) {
	c := newCodec(t)
	body := []byte("\x052.0.2\x01i\x00\x01m\x00" + // no parameters
		"H" +
		"\x04list\x7a\x91\x92" + // a list of two ints
		"\x03obj" + "C\x01P\x91\x01f" + "\x60\x05value" + // an object of a class defined here
		"\x03num\x95" +
		"\x05again\x51\x91" + // a reference to the list
		"\x04name\x01v" +
		"Z")
	var m codecs.Metadata
	_, err := c.NewDecoder(codecs.ClientToServer).Decode(dubbotest.Frame(0xc2, 0, 7, body), &m)
	require.NoError(t, err)
	require.Empty(t, m.Malformed)
	var mut codecs.Mutation
	mut.Set("name", "w")
	mut.Set("list", "s")
	mut.Set("num", "n")
	out, err := c.Encode(nil, &m, &mut)
	require.NoError(t, err)
	want := "H" +
		"\x04list\x7a\x91\x92" + // stays, as it may be referred to; the new one comes behind and wins
		"\x03objC\x01P\x91\x01f\x60\x05value" +
		"\x03num\x01n" +
		"\x05again\x51\x91" +
		"\x04name\x01w" +
		"\x04list\x01s" +
		"Z"
	require.Equal(t, "\x052.0.2\x01i\x00\x01m\x00"+want, string(out[headerSize:]))
}

func TestTheCallsOwnAttributesCannotBeForged(t *testing.T) {
	c := newCodec(t)
	var m codecs.Metadata
	b := dubbotest.Request{Interface: "a.Body", Method: "m", Version: "1", Attachments: [][2]string{
		{"path", "a.Path"}, {"interface", "a.Interface"}, {"method", "other"}, {"serialization", "9"}, {"dubbo", "9"}, {"version", "2"}, {"k", "v"},
	}}.Bytes()
	_, err := c.NewDecoder(codecs.ClientToServer).Decode(b, &m)
	require.NoError(t, err)
	require.Equal(t, "a.Path/m", string(m.AppendOperation(nil)))
	for name, want := range map[string]string{
		"interface": "a.Path", "path": "a.Path", "method": "m", "version": "2", "serialization": "2", "dubbo": "2.0.2", "K": "v",
	} {
		v, ok := m.Get(name)
		require.True(t, ok, name)
		require.Equal(t, want, string(v), name)
	}
}

var good = dubbotest.Request{ID: 1}.Bytes()

// refused are bytes that are no frames, with what is said of them.
var refused = []struct {
	name  string
	bytes []byte
	want  string
}{
	{"wrong magic", []byte("GET / HTTP/1.1\r\n\r\n"), "bad magic at offset 0"},
	{"wrong second byte", []byte{0xda, 0xbc}, "bad magic at offset 0"},
	{"too large", append(bytes.Clone(good[:12]), 0x7f, 0xff, 0xff, 0xff), "larger than the limit"},
	{"length with the top bit", append(bytes.Clone(good[:12]), 0xff, 0xff, 0xff, 0xff), "larger than the limit"},
}

func TestBadFramesAreRefused(t *testing.T) {
	for _, tc := range refused {
		t.Run(tc.name, func(t *testing.T) {
			var m codecs.Metadata
			_, err := newCodec(t).NewDecoder(codecs.ClientToServer).Decode(tc.bytes, &m)
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestErrorReplies(t *testing.T) {
	c := newCodec(t)
	for e, status := range []byte{
		codecs.RouteNotFound: 60, codecs.ClusterNotFound: 60, codecs.NoHealthyUpstream: 80,
		codecs.BadResponse: 50, codecs.Unspecified: 80, codecs.OverLimit: 100, codecs.BadRequest: 40,
		codecs.Timeout: 31, codecs.ConnectFailure: 80, codecs.UpstreamReset: 80, codecs.Denied: 40,
	} {
		for text, want := range map[string]string{
			"": "", "why": "why", "bad \xff": "bad ?", strings.Repeat("ü😀", 20000): strings.Repeat("ü😀", 20000),
		} {
			req := codecs.Metadata{ID: 1<<63 + 42}
			req.Scratch[scratchSerial] = 23
			b, err := c.EncodeError([]byte("before"), &req, &codecs.LocalError{Type: codecs.ErrorType(e), Message: text})
			require.NoError(t, err)
			require.Equal(t, "before", string(b[:6]))
			m := decodeOne(t, codecs.ServerToClient, b[6:])
			require.Equal(t, codecs.Error, m.Type)
			require.Equal(t, req.ID, m.ID)
			require.Equal(t, []byte{0x02, status}, m.Raw[2:4], codecs.ErrorType(e))
			vs, err := hessiantest.Values(m.Raw[headerSize:])
			require.NoError(t, err)
			require.Equal(t, []any{want}, vs)
		}
	}
}

func TestErrorsWithACode(t *testing.T) {
	c := newCodec(t)
	for code, want := range map[int32]byte{1: 1, 19: 19, 20: 100, 21: 21, 40: 40, 255: 255, 256: 100, -1: 100, 0: 100} {
		refused := c.(codecs.CodeChecker).CheckCode(code)
		require.Equal(t, want != byte(code), refused != nil, code)
		b, err := c.EncodeError(nil, &codecs.Metadata{ID: 1}, &codecs.LocalError{Type: codecs.OverLimit, Code: code})
		require.NoError(t, err)
		require.Equal(t, want, b[3], code)
	}
	require.EqualError(t, c.(codecs.CodeChecker).CheckCode(20), "must be between 1 and 255, and not 20, which is a success, is 20")
}

func typicalRequest() []byte {
	return dubbotest.Request{
		ID: 1, Argument: strings.Repeat("x", 128), Version: "1.0.0",
		Attachments: [][2]string{
			{"path", "org.example.Greeter"},
			{"interface", "org.example.Greeter"},
			{"version", "1.0.0"},
			{"tenant", "acme"},
			{"timeout", "3000"},
		},
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
		out, _ = c.Encode(out[:0], &m, mut)
	}
}
