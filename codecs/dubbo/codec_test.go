package dubbo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/codecs/hessian/hessiantest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

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

// describe prints what was decoded, for the golden file.
func describe(m *codecs.Metadata) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s status=%d reply=%t size=%d+%d", m.Type, m.Status, m.ExpectsReply, m.HeaderSize, m.BodySize)
	if op := m.AppendOperation(nil); len(op) > 0 {
		fmt.Fprintf(&b, " op=%s", op)
	}
	if m.Malformed != "" {
		fmt.Fprintf(&b, " malformed=%q", m.Malformed)
	}
	for _, p := range m.Properties() {
		fmt.Fprintf(&b, " %s=%.60q", p.Name, p.Value)
	}
	return b.String()
}

func decodeAll(t testing.TB, c codecs.Codec, d codecs.Direction, b []byte, visit func(m *codecs.Metadata)) {
	t.Helper()
	dec := c.NewDecoder(d)
	var m codecs.Metadata
	for len(b) > 0 {
		m.Reset()
		n, err := dec.Decode(b, &m)
		require.NoError(t, err)
		require.LessOrEqual(t, n, len(b), "a capture ends in the middle of a frame")
		visit(&m)
		b = b[n:]
	}
}

func TestCapturesDecodeAsRecorded(t *testing.T) {
	c := newCodec(t)
	var got strings.Builder
	for _, f := range captures(t) {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		fmt.Fprintf(&got, "# %s\n", filepath.Base(f))
		decodeAll(t, c, direction(f), b, func(m *codecs.Metadata) { got.WriteString(describe(m) + "\n") })
	}
	const golden = "testdata/captures.golden"
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got.String()), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), got.String())
}

// TestCapturesDecodeAtEverySplit hands a frame over in two parts at every
// offset: the decoder must ask for more, and for no more than there is.
func TestCapturesDecodeAtEverySplit(t *testing.T) {
	c := newCodec(t)
	for _, f := range captures(t) {
		all, err := os.ReadFile(f)
		require.NoError(t, err)
		dec := c.NewDecoder(direction(f))
		var m codecs.Metadata
		decodeAll(t, c, direction(f), all, func(whole *codecs.Metadata) {
			frame := bytes.Clone(whole.Raw)
			step := 1 + len(frame)/2000
			for i := 1; i < len(frame); i += step {
				m.Reset()
				n, err := dec.Decode(frame[:i], &m)
				require.NoError(t, err)
				require.Greater(t, n, i)
				require.LessOrEqual(t, n, len(frame))
			}
			m.Reset()
			n, err := dec.Decode(append(bytes.Clone(frame), "next"...), &m)
			require.NoError(t, err)
			require.Equal(t, len(frame), n)
			require.Equal(t, describe(whole), describe(&m))
		})
	}
}

func TestEncodeWithoutChangesIsTheSameFrame(t *testing.T) {
	c := newCodec(t)
	for _, f := range captures(t) {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		decodeAll(t, c, direction(f), b, func(m *codecs.Metadata) {
			out, err := c.Encode([]byte("before"), m, nil)
			require.NoError(t, err)
			require.Equal(t, "before"+string(m.Raw), string(out))
			id := m.ID
			m.ID = 0xfedcba9876543210
			out, err = c.Encode(nil, m, nil)
			require.NoError(t, err)
			require.Equal(t, uint64(0xfedcba9876543210), binary.BigEndian.Uint64(out[4:]))
			binary.BigEndian.PutUint64(out[4:], id)
			require.Equal(t, m.Raw, out)
		})
	}
}

// TestMutationChangesTheAttachmentsAndNothingElse mutates every captured
// message and reads it again.
func TestMutationChangesTheAttachmentsAndNothingElse(t *testing.T) {
	c := newCodec(t)
	var mut codecs.Mutation
	mut.Set("remote.application", "changed")
	mut.Set("a-new-key", strings.Repeat("ü😀", 500))
	mutated := 0
	for _, f := range captures(t) {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		decodeAll(t, c, direction(f), b, func(m *codecs.Metadata) {
			if m.Type == codecs.Heartbeat || m.Type == codecs.GoAway || m.Type == codecs.Ignored {
				return
			}
			before := map[string]string{}
			for _, p := range m.Properties() {
				before[string(p.Name)] = string(p.Value)
			}
			out, err := c.Encode(nil, m, &mut)
			if err != nil {
				require.ErrorIs(t, err, codecs.ErrNoMutation)
				require.True(t, m.Type == codecs.Error || m.Scratch[scratchSerial] != hessian2, describe(m))
				return
			}
			mutated++
			decodeAll(t, c, direction(f), out, func(n *codecs.Metadata) {
				require.Equal(t, m.Type, n.Type)
				require.Equal(t, m.Status, n.Status)
				after := map[string]string{}
				for _, p := range n.Properties() {
					after[string(p.Name)] = string(p.Value)
				}
				for k, v := range before {
					if k != "remote.application" {
						require.Equal(t, v, after[k], k)
					}
				}
				require.Equal(t, "changed", after["remote.application"])
				require.Equal(t, strings.Repeat("ü😀", 500), after["a-new-key"])
				// All that stands before the attachments is as it was.
				if m.Type == codecs.Request {
					at := m.Scratch[scratchAttachments]
					require.Equal(t, m.Raw[headerSize:at], n.Raw[headerSize:at])
				}
				sameButFor(t, m, n, &mut)
			})
		})
	}
	require.Greater(t, mutated, 50)
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
	b := dubbotest.Request{Interface: "a.Path", Method: "m", Version: "1", Attachments: [][2]string{
		{"interface", "a.Interface"}, {"method", "other"}, {"serialization", "9"}, {"version", "2"}, {"k", "v"},
	}}.Bytes()
	_, err := c.NewDecoder(codecs.ClientToServer).Decode(b, &m)
	require.NoError(t, err)
	require.Equal(t, "a.Interface/m", string(m.AppendOperation(nil)))
	for name, want := range map[string]string{
		"interface": "a.Interface", "path": "a.Path", "method": "m", "version": "2", "serialization": "2", "K": "v",
	} {
		v, ok := m.Get(name)
		require.True(t, ok, name)
		require.Equal(t, want, string(v), name)
	}
}

func TestBadFramesAreRefused(t *testing.T) {
	good := dubbotest.Request{ID: 1}.Bytes()
	for _, tc := range []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"wrong magic", []byte("GET / HTTP/1.1\r\n\r\n"), "bad magic at offset 0"},
		{"wrong second byte", []byte{0xda, 0xbc}, "bad magic at offset 0"},
		{"too large", append(bytes.Clone(good[:12]), 0x7f, 0xff, 0xff, 0xff), "larger than the limit"},
		{"length with the top bit", append(bytes.Clone(good[:12]), 0xff, 0xff, 0xff, 0xff), "larger than the limit"},
	} {
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

func TestDecodingAndEncodingDoNotAllocate(t *testing.T) {
	var mut codecs.Mutation
	mut.Set("tenant", "other")
	mut.Set("zone", "b")
	for _, tc := range []struct {
		name  string
		dir   codecs.Direction
		frame []byte
		mut   *codecs.Mutation
	}{
		{"request", codecs.ClientToServer, typicalRequest(), nil},
		{"request with a mutation", codecs.ClientToServer, typicalRequest(), &mut},
		{"answer", codecs.ServerToClient, dubbotest.Response(1, "x", [2]string{"k", "v"}), nil},
		{"answer with a mutation", codecs.ServerToClient, dubbotest.Response(1, "x", [2]string{"k", "v"}), &mut},
		{"heartbeat", codecs.ClientToServer, dubbotest.Heartbeat(1), nil},
		{"error", codecs.ServerToClient, dubbotest.ErrorResponse(1, 40, "no"), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCodec(t)
			dec := c.NewDecoder(tc.dir)
			var m codecs.Metadata
			out := make([]byte, 0, 4096)
			require.Zero(t, testing.AllocsPerRun(1000, func() {
				m.Reset()
				if _, err := dec.Decode(tc.frame, &m); err != nil {
					t.Fatal(err)
				}
				m.Properties()
				var err error
				if out, err = c.Encode(out[:0], &m, tc.mut); err != nil {
					t.Fatal(err)
				}
			}))
		})
	}
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

// FuzzDecode decodes anything in both directions, whole and cut, and encodes
// what could be decoded.
func FuzzDecode(f *testing.F) {
	f.Add(dubbotest.Request{ID: 1}.Bytes())                            // a request
	f.Add(dubbotest.Response(1, "x", [2]string{"k", "v"}))             // an answer with attachments
	f.Add(dubbotest.Heartbeat(1))                                      // a heartbeat
	f.Add(dubbotest.ReadOnly(1))                                       // a farewell
	f.Add(dubbotest.Frame(0xc2, 0, 1, bytes.Repeat([]byte{0x79}, 99))) // lists in lists
	f.Add(dubbotest.Frame(0xc2, 0, 1, []byte("\x58\x49\x05\xf5\xe1\x00")))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newCodec(t)
		var mut codecs.Mutation
		mut.Set("k", "changed")
		for _, d := range []codecs.Direction{codecs.ClientToServer, codecs.ServerToClient} {
			if len(b) == 0 {
				return
			}
			var m codecs.Metadata
			n, err := c.NewDecoder(d).Decode(b, &m)
			if err != nil || n > len(b) {
				continue
			}
			m.Properties()
			out, err := c.Encode(nil, &m, nil)
			require.NoError(t, err)
			require.Equal(t, b[:n], out)
			out, err = c.Encode(nil, &m, &mut)
			if err != nil {
				continue
			}
			var again codecs.Metadata
			k, err := c.NewDecoder(d).Decode(out, &again)
			require.NoError(t, err)
			require.Equal(t, len(out), k)
			require.Equal(t, m.Type, again.Type)
			if again.Malformed == "" {
				v, ok := last(&again, "k")
				require.True(t, ok)
				require.Equal(t, "changed", v)
			}
		}
	})
}

func last(m *codecs.Metadata, name string) (v string, ok bool) {
	for _, p := range m.Properties() {
		if string(p.Name) == name {
			v, ok = string(p.Value), true
		}
	}
	return v, ok
}

func TestSniffing(t *testing.T) {
	c := newCodec(t).(codecs.Sniffer)
	for b, want := range map[string]codecs.Guess{
		"\xda": codecs.Maybe, "\xda\xbb": codecs.Yes, "\xda\xbb\xc2\x00": codecs.Yes,
		"\xda\xbc": codecs.No, "G": codecs.No, "\x00\x00": codecs.No,
	} {
		require.Equal(t, want, c.Sniff([]byte(b)), "%x", b)
	}
}
