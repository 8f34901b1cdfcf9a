package brpc

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
)

// TestAnotherPayloadHasAnotherCompressionAndNoChecksum, and the attachment stays.
func TestAnotherPayloadHasAnotherCompressionAndNoChecksum(t *testing.T) {
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	meta := func(compress uint64, checksum bool) []byte {
		b := brpctest.Bytes(nil, fieldResponse, "\x08\x00")
		if compress > 0 && checksum {
			b = brpctest.Varint(b, fieldCompressType, compress)
		}
		b = brpctest.Varint(b, fieldCorrelationID, 7)
		b = brpctest.Varint(b, fieldAttachmentSize, 3)
		if checksum {
			b = brpctest.Varint(b, fieldChecksumType, 1)
			b = brpctest.Bytes(b, fieldChecksum, "abcd")
		} else if compress > 0 {
			b = brpctest.Varint(b, fieldCompressType, compress)
		}
		return b
	}
	frame := brpctest.Frame(magicRPC, meta(2, true), []byte("gzippedatt"))
	var m codecs.Metadata
	_, err = c.NewDecoder(codecs.ServerToClient).Decode(frame, &m)
	require.NoError(t, err)
	p, err := c.(codecs.Payloader).Payload(&m)
	require.NoError(t, err)
	require.Equal(t, "gzipped", string(p.Bytes))
	require.EqualValues(t, 2, p.Compression)
	for _, compress := range []int32{0, 1} {
		var mut codecs.Mutation
		mut.SetPayload(codecs.Payload{Bytes: []byte("plain"), Compression: compress})
		got, err := c.Encode(nil, &m, &mut)
		require.NoError(t, err)
		require.Equal(t, brpctest.Frame(magicRPC, meta(uint64(compress), false), []byte("plainatt")), got)
	}
}

// TestAnAttachmentThatIsNotThere: what it says may be anything.
func TestAnAttachmentThatIsNotThere(t *testing.T) {
	c, err := New(nil, codecs.Limits{})
	require.NoError(t, err)
	for _, size := range []uint64{4, 1<<64 - 1, 1 << 31} {
		b := brpctest.Bytes(nil, fieldResponse, "\x08\x00")
		b = brpctest.Varint(b, fieldAttachmentSize, size)
		var m codecs.Metadata
		_, err = c.NewDecoder(codecs.ServerToClient).Decode(brpctest.Frame(magicRPC, b, []byte("abc")), &m)
		require.NoError(t, err)
		_, err = c.(codecs.Payloader).Payload(&m)
		require.ErrorIs(t, err, codecs.ErrNoPayload)
	}
}
