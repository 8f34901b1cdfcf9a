package thrift

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
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
