package trpc

import (
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// decoder remembers nothing between frames.
type decoder struct {
	codec *codec
	dir   codecs.Direction
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
	if at, reason := lengthFault(buf); reason != "" {
		return 0, protocolError(at, reason)
	}
	size := frameLength(buf)
	if int64(size) > int64(d.codec.maxFrame) {
		return 0, protocolError(atLength, "frame of "+strconv.FormatUint(uint64(size), 10)+
			" bytes is larger than the limit of "+strconv.Itoa(d.codec.maxFrame))
	}
	n := int(size)
	if n > len(buf) {
		return n, nil
	}
	m.Raw = buf[:n:n]
	m.HeaderSize = headerSize + int(headerLength(buf))
	m.BodySize = n - m.HeaderSize
	m.Scratch[scratchVersion] = uint32(buf[atVersion])
	switch {
	case buf[atType] == typeStream:
		return n, d.streamFrame(m)
	case d.dir == codecs.ClientToServer:
		return n, request(m)
	default:
		return n, answer(m)
	}
}
