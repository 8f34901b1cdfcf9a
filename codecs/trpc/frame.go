package trpc

import "encoding/binary"

// The fixed header of a frame, 16 bytes in network byte order: magic, type of
// the frame, type of a stream's frame, length of the frame with this header,
// length of the header that follows, id, version, a reserved byte.
const (
	headerSize = 16

	atType         = 2
	atStreamType   = 3
	atLength       = 4
	atHeaderLength = 8
	atID           = 10
	atVersion      = 14

	magic = 0x0930
)

// Types of frames. In unary ones, says the protocol, the type of a stream's
// frame is without meaning.
const (
	typeUnary  = 0
	typeStream = 1
)

// Types of a stream's frames.
const (
	streamInit     = 1
	streamData     = 2
	streamFeedback = 3
	streamClose    = 4
)

// fault says what is wrong with the beginning of a frame, of which there is a
// byte at least, and at which offset; "" if nothing is so far.
func fault(b []byte) (at int, reason string) {
	switch {
	case b[0] != magic>>8 || len(b) > 1 && b[1] != magic&0xff:
		return 0, "bad magic"
	case len(b) > atType && b[atType] > typeStream:
		return atType, "unknown type of frame"
	case len(b) >= atHeaderLength && frameLength(b) < headerSize:
		return atLength, "frame is shorter than its fixed header"
	}
	return 0, ""
}

// headerFault says what is wrong with the rest of a fixed header. Where the frame
// ends is known all the same, so peers refuse that frame alone.
func headerFault(b []byte) (at int, reason string) {
	stream := b[atType] == typeStream
	switch header := headerLength(b); {
	case stream && (b[atStreamType] < streamInit || b[atStreamType] > streamClose):
		return atStreamType, "unknown type of stream frame"
	case stream && header > 0:
		return atHeaderLength, "stream frame with a header"
	case uint32(header) > frameLength(b)-headerSize:
		return atHeaderLength, "header is longer than the frame"
	}
	return 0, ""
}

func frameLength(b []byte) uint32  { return binary.BigEndian.Uint32(b[atLength:]) }
func headerLength(b []byte) uint16 { return binary.BigEndian.Uint16(b[atHeaderLength:]) }
func frameID(b []byte) uint32      { return binary.BigEndian.Uint32(b[atID:]) }

// appendFixed appends a fixed header without lengths.
func appendFixed(dst []byte, frameType, streamType byte, id, version uint32) []byte {
	dst = binary.BigEndian.AppendUint16(dst, magic)
	dst = append(dst, frameType, streamType, 0, 0, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, id)
	return append(dst, byte(version), 0)
}
