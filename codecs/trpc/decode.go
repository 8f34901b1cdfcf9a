package trpc

import (
	"math"
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbshape"
)

type decoder struct {
	codec *codec
	dir   codecs.Direction
	pbshape.Memory
}

func protocolError(offset int, reason string) error {
	return &codecs.ProtocolError{Protocol: "trpc", Offset: offset, Reason: reason}
}

// Decode implements codecs.Decoder.
func (d *decoder) Decode(buf []byte, m *codecs.Metadata) (int, error) {
	if at, reason := fault(buf); reason != "" {
		return 0, protocolError(at, reason)
	}
	if len(buf) < headerSize {
		return headerSize, nil
	}
	size := frameLength(buf)
	if int64(size) > int64(d.codec.maxFrame) {
		return d.head(buf, m)
	}
	n := int(size)
	if n > len(buf) {
		return n, nil
	}
	m.Raw = buf[:n:n]
	fixed(m, size)
	if buf[atType] == typeStream {
		return n, d.streamFrame(m)
	}
	d.unary(m)
	return n, nil
}

// fixed fills in what the fixed header of a frame of size bytes says.
func fixed(m *codecs.Metadata, size uint32) {
	m.HeaderSize = headerSize
	if _, reason := headerFault(m.Raw); reason == "" {
		m.HeaderSize += int(headerLength(m.Raw))
	}
	m.BodySize = int(size) - m.HeaderSize
	m.Scratch[scratchVersion] = uint32(m.Raw[atVersion])
}

func (d *decoder) unary(m *codecs.Metadata) {
	if d.dir == codecs.ServerToClient {
		answer(m)
		return
	}
	header := m.Raw[headerSize:m.HeaderSize]
	if f := d.Recall(&headerSchema, m, header); f != nil {
		d.known(m, f)
		return
	}
	if request(m); m.Malformed == "" {
		d.Remember(&headerSchema, m, header)
	}
}

// head reads the header of a frame that is too large to be read to its end. If it
// is a server's, of a stream, it ends that stream's connection.
func (d *decoder) head(buf []byte, m *codecs.Metadata) (int, error) {
	size, n := frameLength(buf), headerSize+int(headerLength(buf))
	switch {
	case buf[atType] == typeStream && (d.dir == codecs.ServerToClient || buf[atStreamType] == streamClose),
		n > d.codec.maxFrame, int64(size) > math.MaxInt:
		return 0, protocolError(atLength, "frame of "+strconv.FormatUint(uint64(size), 10)+
			" bytes is larger than the limit of "+strconv.Itoa(d.codec.maxFrame))
	case n > len(buf):
		return n, nil
	}
	m.Raw = buf[:n:n]
	fixed(m, size)
	if buf[atType] == typeStream {
		if m.Type = codecs.StreamData; buf[atStreamType] == streamInit {
			m.Type = codecs.StreamInit
		}
		m.ID = uint64(frameID(buf))
		m.StreamID = m.ID
	} else {
		d.unary(m)
	}
	m.Release()
	return 0, &codecs.TooLarge{Size: int(size), Limit: d.codec.maxFrame}
}
