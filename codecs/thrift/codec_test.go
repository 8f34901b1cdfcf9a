package thrift

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
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

func describe(m *codecs.Metadata) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s id=%d status=%d variant=%d size=%d+%d op=%s", m.Type, m.ID, m.Status, m.Variant, m.HeaderSize, m.BodySize, m.AppendOperation(nil))
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
		decodeAll(t, c, direction(f), b, func(m *codecs.Metadata) { fmt.Fprintln(&got, describe(m)) })
	}
	const golden = "testdata/captures.golden"
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got.String()), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), got.String())
}

// TestPiecesDecodeAsTheWhole hands captures over byte by byte.
func TestPiecesDecodeAsTheWhole(t *testing.T) {
	c := newCodec(t)
	for _, f := range captures(t) {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		var want, got []string
		decodeAll(t, c, direction(f), b, func(m *codecs.Metadata) { want = append(want, describe(m)) })
		dec := c.NewDecoder(direction(f))
		var m codecs.Metadata
		at, need := 0, 1
		for end := 1; end <= len(b); end++ {
			if end-at < need {
				continue
			}
			m.Reset()
			n, err := dec.Decode(b[at:end], &m)
			require.NoError(t, err, f)
			if n > end-at {
				require.LessOrEqual(t, at+n, len(b), "%s: more is asked for than the frame has", f)
				need = n
				continue
			}
			got = append(got, describe(&m))
			at, need = at+n, 1
		}
		require.Equal(t, want, got, f)
	}
}

func TestEncodeGivesTheSameBytesAndOtherIDs(t *testing.T) {
	c := newCodec(t)
	for _, f := range captures(t) {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		decodeAll(t, c, direction(f), b, func(m *codecs.Metadata) {
			raw := bytes.Clone(m.Raw)
			same, err := c.Encode([]byte("before"), m, nil)
			require.NoError(t, err)
			require.Equal(t, "before"+string(raw), string(same), f)
			want := describe(m)
			was := m.ID
			for _, id := range []uint64{0, 1, 127, 128, 16383, 16384, 1 << 28, 1<<31 - 1} {
				m.ID = id
				out, err := c.Encode([]byte("before"), m, nil)
				require.NoError(t, err)
				require.Equal(t, raw, m.Raw)
				decodeAll(t, c, direction(f), out[len("before"):], func(o *codecs.Metadata) {
					require.Equal(t, id, o.ID)
					require.Len(t, o.Raw, len(out)-len("before"))
					o.ID, o.HeaderSize = was, m.HeaderSize
					require.Equal(t, want, describe(o), f)
					back, err := c.Encode(nil, o, nil)
					require.NoError(t, err)
					require.Equal(t, hex.EncodeToString(raw), hex.EncodeToString(back))
				})
			}
			m.ID = was
		})
	}
}

func TestMutationSetsHeaders(t *testing.T) {
	c := newCodec(t)
	headers, without := 0, 0
	for _, f := range captures(t) {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		decodeAll(t, c, direction(f), b, func(m *codecs.Metadata) {
			var mut codecs.Mutation
			mut.Set("tenant", "other")
			mut.Set("new", strings.Repeat("n", 300))
			was := m.ID
			m.ID = 1 << 20
			out, err := c.Encode(nil, m, &mut)
			m.ID = was
			if !form(m.Variant).hasHeader() {
				require.ErrorIs(t, err, codecs.ErrNoMutation)
				without++
				return
			}
			require.NoError(t, err)
			headers++
			want := map[string]string{"tenant": "other", "new": strings.Repeat("n", 300)}
			for _, p := range m.Properties() {
				if string(p.Name) != "tenant" {
					want[string(p.Name)] = string(p.Value)
				}
			}
			decodeAll(t, c, direction(f), out, func(o *codecs.Metadata) {
				got := map[string]string{}
				for _, p := range o.Properties() {
					require.NotContains(t, got, string(p.Name))
					got[string(p.Name)] = string(p.Value)
				}
				require.Equal(t, want, got, f)
				require.Equal(t, uint64(1<<20), o.ID)
				require.Equal(t, m.Type, o.Type)
				require.Equal(t, m.Status, o.Status)
				end, err := headerEnd(o.Raw)
				require.NoError(t, err)
				body, err := headerEnd(m.Raw)
				require.NoError(t, err)
				require.Equal(t, len(m.Raw)-body, len(o.Raw)-end+seqDiff(m, o))
			})
		})
	}
	require.NotZero(t, headers)
	require.NotZero(t, without)
}

// seqDiff is by how much the varint of the sequence id has shrunk.
func seqDiff(m, o *codecs.Metadata) int {
	return int(m.Scratch[scratchSeqLen]) - int(o.Scratch[scratchSeqLen])
}

func TestErrorsComeInTheClientsOwnForm(t *testing.T) {
	c := newCodec(t)
	seen := map[uint8]bool{}
	for _, f := range captures(t) {
		if direction(f) != codecs.ClientToServer {
			continue
		}
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		decodeAll(t, c, codecs.ClientToServer, b, func(m *codecs.Metadata) {
			seen[m.Variant] = true
			req := *m
			var name []byte
			if s := m.Variant; s != 0 {
				name = bytes.Clone(m.ReplyInfo)
			}
			req.Release()
			text := "no route \xff matches" + strings.Repeat("!", 200)
			out, err := c.EncodeError([]byte("before"), &req, &codecs.LocalError{Type: codecs.RouteNotFound, Message: text})
			require.NoError(t, err)
			out = out[len("before"):]
			n := 0
			decodeAll(t, c, codecs.ServerToClient, out, func(o *codecs.Metadata) {
				n++
				require.Equal(t, codecs.Error, o.Type)
				require.Equal(t, codecs.StatusError, o.Status)
				require.Equal(t, m.ID, o.ID)
				require.Equal(t, m.Variant, o.Variant)
				require.True(t, bytes.Contains(o.Raw, append(bytes.Clone(name), 0)) || bytes.Contains(o.Raw, name))
				require.Contains(t, string(o.Raw), "no route ? matches!!")
			})
			require.Equal(t, 1, n)
		})
	}
	require.GreaterOrEqual(t, len(seen), 8, "%v", seen)
}

// call is a message of the binary protocol.
func call(kind byte, name string, seqid uint32, body string) string {
	b := []byte{0x80, 1, 0, kind}
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(name))), name...)
	return string(binary.BigEndian.AppendUint32(b, seqid)) + body
}

func inFrame(s string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s }

func TestBytesThatAreNoThrift(t *testing.T) {
	deep := strings.Repeat("\x0c\x00\x01", 100)
	for name, tt := range map[string]struct {
		dir  codecs.Direction
		b    string
		want string
	}{
		"http":                {b: "GET / HTTP/1.1\r\n", want: "neither a transport nor a protocol"},
		"tls":                 {b: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", want: "neither"},
		"dubbo":               {b: "\xda\xbb\xc2\x00\x00\x00\x00\x00", want: "neither"},
		"json":                {b: inFrame(`[1,"hello",1,0,{}]`), want: "neither"},
		"too large":           {b: "\x01\x00\x00\x00\x80\x01", want: "neither"},
		"answer of a client":  {b: inFrame(call(2, "x", 1, "\x00")), want: "a client sent an answer"},
		"type":                {b: inFrame(call(5, "x", 1, "\x00")), want: "unknown message type"},
		"version":             {b: "\x80\x02\x00\x01", want: "neither"},
		"name":                {b: inFrame("\x80\x01\x00\x01\x7f\xff\xff\xff1234"), want: "too long"},
		"short frame":         {b: inFrame("\x80\x01\x00\x01\x00\x00\x00\x09"), want: "ends in its head"},
		"deep":                {b: call(1, "x", 1, deep), want: "nested too deeply"},
		"string":              {b: call(1, "x", 1, "\x0b\x00\x01\xff\xff\xff\xff"), want: "impossible size"},
		"list":                {b: call(1, "x", 1, "\x0f\x00\x01\x0c\x7f\xff\xff\xff"), want: "impossible size"},
		"map":                 {b: call(1, "x", 1, "\x0d\x00\x01\x0b\x0b\x7f\xff\xff\xff"), want: "impossible size"},
		"field":               {b: call(1, "x", 1, "\x07\x00\x01"), want: "unknown type of a field"},
		"element":             {b: call(1, "x", 1, "\x0f\x00\x01\x07\x00\x00\x00\x01"), want: "unknown type of a field"},
		"large list":          {b: call(1, "x", 1, "\x0f\x00\x01\x0a\x00\xf0\x00\x00"), want: "larger than the limit"},
		"header":              {b: inFrame("\x0f\xff\x00\x00\x00\x00\x00\x01\x00\xff\x00\x00\x00\x00"), want: "header ends too early"},
		"ttheader protocol":   {b: inFrame("\x10\x00\x00\x00\x00\x00\x00\x01\x00\x01\x04\x00\x00\x00"), want: "another protocol"},
		"ttheader transforms": {b: inFrame("\x10\x00\x00\x00\x00\x00\x00\x01\x00\x01\x00\x01\x00\x00"), want: "transforms"},
	} {
		t.Run(name, func(t *testing.T) {
			var m codecs.Metadata
			_, err := newCodec(t).NewDecoder(tt.dir).Decode([]byte(tt.b), &m)
			require.ErrorContains(t, err, tt.want)
			var pe *codecs.ProtocolError
			require.ErrorAs(t, err, &pe)
		})
	}
}

func TestTheTransportOfAConnectionStays(t *testing.T) {
	dec := newCodec(t).NewDecoder(codecs.ClientToServer)
	var m codecs.Metadata
	_, err := dec.Decode([]byte(call(1, "x", 1, "\x00")), &m)
	require.NoError(t, err)
	_, err = dec.Decode([]byte(inFrame(call(1, "x", 1, "\x00"))), &m)
	require.ErrorContains(t, err, "framed message on a connection of unframed ones")
}

func TestAHeaderCannotPoseAsTheMethod(t *testing.T) {
	head := "\x00\x00\x01\x02\x06Method\x05other\x03key\x01v"
	head += strings.Repeat("\x00", 4-(len(head)%4))
	b := inFrame("\x0f\xff\x00\x00\x00\x00\x00\x01\x00" + string(rune(len(head)/4)) + head + call(1, "svc:real", 1, "\x00"))
	decodeAll(t, newCodec(t), codecs.ClientToServer, []byte(b), func(m *codecs.Metadata) {
		require.Equal(t, `request id=1 status=0 variant=7 size=58+1 op=svc/real method="real" service="svc" transport="header" protocol="binary" key="v"`, describe(m))
	})
}

// TestManyPiecesCostWhatTheWholeCosts: an unframed message is not read from its
// start again for each piece.
func TestManyPiecesCostWhatTheWholeCosts(t *testing.T) {
	field := "\x0b\x00\x01\x00\x00\x00\x01x"
	b := []byte(call(1, "x", 1, strings.Repeat(field, 200_000)+"\x00"))
	dec := newCodec(t).NewDecoder(codecs.ClientToServer).(*decoder)
	var m codecs.Metadata
	for end := 1000; end < len(b); end += 1000 {
		_, err := dec.Decode(b[:end], &m)
		require.NoError(t, err)
		require.Greater(t, dec.skip.pos, end-20, "it goes on where it was")
	}
	n, err := dec.Decode(b, &m)
	require.NoError(t, err)
	require.Equal(t, len(b), n)
}

func TestNothingIsAllocated(t *testing.T) {
	c := newCodec(t)
	for _, f := range captures(t) {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		dec := c.NewDecoder(direction(f))
		var m codecs.Metadata
		out := make([]byte, 0, 1<<20)
		run := func() {
			for rest := b; len(rest) > 0; {
				m.Reset()
				n, err := dec.Decode(rest, &m)
				if err != nil || n > len(rest) {
					t.Fatal(n, err)
				}
				m.ID += 3
				if out, err = c.Encode(out[:0], &m, nil); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
		}
		require.Zero(t, testing.AllocsPerRun(10, run), f)
	}
}

func TestSniffing(t *testing.T) {
	c := newCodec(t).(codecs.Sniffer)
	for _, f := range captures(t) {
		if direction(f) != codecs.ClientToServer {
			continue
		}
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		var guesses []codecs.Guess
		for n := 1; n <= min(64, len(b)); n++ {
			guesses = append(guesses, c.Sniff(b[:n]))
		}
		require.True(t, slices.IsSorted(guesses), "%s: %v", f, guesses)
		require.Equal(t, codecs.Yes, guesses[len(guesses)-1], f)
	}
	for _, foreign := range []string{
		"GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01", "*1\r\n$4\r\nPING\r\n",
		"PRPC\x00\x00\x00\x20\x00\x00\x00\x10", "\x09\x30\x00\x00\x00\x00\x00\x80\x00\x40", "\xda\xbb\xc2\x00\x00\x00\x00\x00",
		"\x00\x00\x00\x00\x00\x00\x00\x00", "\x00\x00\x00\x10[1,\"hello\"",
	} {
		require.Equal(t, codecs.No, c.Sniff([]byte(foreign)), "%q", foreign)
	}
}

func FuzzDecode(f *testing.F) {
	for _, name := range captures(f) {
		b, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(direction(name) == codecs.ServerToClient, b[:min(len(b), 2000)])
	}
	c := newCodec(f)
	f.Fuzz(func(t *testing.T, toClient bool, b []byte) {
		d := codecs.ClientToServer
		if toClient {
			d = codecs.ServerToClient
		}
		dec, m := c.NewDecoder(d), codecs.Metadata{}
		for len(b) > 0 {
			m.Reset()
			n, err := dec.Decode(b, &m)
			if err != nil || n > len(b) {
				return
			}
			require.Positive(t, n)
			var mut codecs.Mutation
			mut.Set("k", "v")
			for _, change := range []*codecs.Mutation{nil, &mut} {
				out, err := c.Encode(nil, &m, change)
				if err != nil {
					require.ErrorIs(t, err, codecs.ErrNoMutation)
					continue
				}
				var o codecs.Metadata
				k, err := c.NewDecoder(d).Decode(out, &o)
				require.NoError(t, err)
				require.Equal(t, len(out), k)
				require.Equal(t, m.Type, o.Type)
			}
			if d == codecs.ClientToServer {
				_, err := c.EncodeError(nil, &m, &codecs.LocalError{Message: "no"})
				require.NoError(t, err)
			}
			b = b[n:]
		}
	})
}
