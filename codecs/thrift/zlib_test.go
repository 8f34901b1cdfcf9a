package thrift

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// compressed is a frame of the header transport, whose message is compressed.
func compressed(t testing.TB, id uint32, message string) []byte {
	t.Helper()
	b := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 0}, headerMagic<<16)
	b = binary.BigEndian.AppendUint32(b, id)
	b = append(b, 0, 1, protocolBinary, 1, transformZlib, 0)
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	_, err := w.Write([]byte(message))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	b = append(b, z.Bytes()...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func TestACompressedMessagePassesAsItIs(t *testing.T) {
	c := newCodec(t)
	dec := c.NewDecoder(codecs.ClientToServer)
	var m, other codecs.Metadata
	b := compressed(t, 7, call(typeCall, "Echo:who", 7, "\x00"))
	n, err := dec.Decode(b, &m)
	require.NoError(t, err)
	require.Equal(t, len(b), n)
	// Compressed messages of others do not show in it.
	_, err = dec.Decode(compressed(t, 8, call(typeCall, "Xxxx:yyy", 8, "\x00")), &other)
	require.NoError(t, err)
	require.Empty(t, m.Malformed)
	require.Equal(t, "Echo/who", string(m.AppendOperation(nil)))
	method, _ := m.Get("method")
	require.Equal(t, "who", string(method))
	require.EqualValues(t, 7, m.ID)
	require.True(t, m.FixedID, "servers answer with the id within")
	got, err := c.Encode(nil, &m, nil)
	require.NoError(t, err)
	require.Equal(t, b, got)

	// A local error need not be compressed.
	e, err := c.EncodeError(nil, &m, &codecs.LocalError{Message: "no"})
	require.NoError(t, err)
	_, err = c.NewDecoder(codecs.ServerToClient).Decode(e, &m)
	require.NoError(t, err)
	require.Equal(t, codecs.Error, m.Type)
	require.EqualValues(t, 7, m.ID)
}

// TestOneCallInACompressedFrame: what is behind it a server would take for the
// next call, which rules have not seen.
func TestOneCallInACompressedFrame(t *testing.T) {
	text := func(n int) string {
		return string(binary.BigEndian.AppendUint32([]byte{binString, 0, 1}, uint32(n))) + strings.Repeat("x", n) + "\x00"
	}
	one := call(typeCall, "open", 7, "\x00")
	whole := string(compressed(t, 7, one))
	reframed := func(frame string) string { return inFrame(frame[4:]) }
	for name, tc := range map[string]struct{ frame, want string }{
		"one":                    {whole, ""},
		"one of many reads":      {string(compressed(t, 7, call(typeCall, "open", 7, text(100_000)))), ""},
		"one that fills a read":  {string(compressed(t, 7, call(typeCall, "open", 7, text(maxHead-len(one)-7)))), ""},
		"fields across reads":    {string(compressed(t, 7, call(typeCall, "open", 7, strings.Repeat("\x0b\x00\x01\x00\x00\x00\x03abc", 5000)+"\x00"))), ""},
		"compact":                {string(compressed(t, 7, callCompact(typeCall, "open", 7, strings.Repeat("\x18\x03abc", 5000)+"\x00"))), ""},
		"two":                    {string(compressed(t, 7, one+call(typeCall, "closed", 8, "\x00"))), "compressed message: there are bytes behind the message"},
		"two, compact":           {string(compressed(t, 7, callCompact(typeCall, "open", 7, "\x00")+callCompact(typeCall, "closed", 8, "\x00"))), "compressed message: there are bytes behind the message"},
		"two, large":             {string(compressed(t, 7, call(typeCall, "open", 7, text(100_000))+one)), "compressed message: there are bytes behind the message"},
		"two, the first a read":  {string(compressed(t, 7, call(typeCall, "open", 7, text(maxHead-len(one)-7))+one)), "compressed message: there are bytes behind the message"},
		"cut arguments":          {string(compressed(t, 7, call(typeCall, "open", 7, text(5000)[:4900]))), "compressed message: message ends before its arguments do"},
		"no field":               {string(compressed(t, 7, call(typeCall, "open", 7, "\x07\x00\x01"))), "compressed message: unknown type of a field or element"},
		"cut in the checksum":    {reframed(whole[:len(whole)-2]), "compressed message: no zlib"},
		"bytes behind the zlib":  {reframed(whole + "\x00"), "compressed message: no zlib"},
		"cut zlib":               {reframed(whole[:len(whole)-8]), "compressed message: unexpected EOF"},
		"zeros without end":      {string(compressed(t, 7, call(typeCall, "open", 7, text(8<<20)))), "compressed message: it has more than 1048576 bytes inflated"},
		"values without end":     {string(compressed(t, 7, callCompact(typeCall, "open", 7, strings.Repeat("\x11", 8<<20)+"\x00"))), "compressed message: more than 524288 values"},
		"more than the limit is": {string(compressed(t, 7, call(typeCall, "open", 7, text(16<<20)))), "compressed message: impossible size of a string or container"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCodec(t)
			dec := c.NewDecoder(c2s)
			var m codecs.Metadata
			b := []byte(tc.frame)
			n, err := dec.Decode(b, &m)
			require.NoError(t, err)
			require.Equal(t, len(b), n)
			require.Equal(t, tc.want, m.Malformed)
			require.Equal(t, "open", string(m.Method()))
			require.EqualValues(t, 7, m.ID)
			// Its error is the call's own, and the connection goes on.
			e, err := c.EncodeError(nil, &m, &codecs.LocalError{Type: codecs.BadRequest, Message: "no"})
			require.NoError(t, err)
			require.Contains(t, string(e), "open")
			m.Reset()
			_, err = dec.Decode([]byte(whole), &m)
			require.NoError(t, err)
			require.Empty(t, m.Malformed)
			if tc.want == "" {
				require.Zero(t, raced.AllocsPerRun(t, 10, func() {
					m.Reset()
					if _, err := dec.Decode(b, &m); err != nil {
						t.Error(err)
					}
				}))
			}
		})
	}

	// Of an answer no more is looked at than its head.
	var m codecs.Metadata
	_, err := newCodec(t).NewDecoder(s2c).Decode(compressed(t, 7, call(typeReply, "open", 7, text(8<<20))), &m)
	require.NoError(t, err)
	require.Empty(t, m.Malformed)
}
