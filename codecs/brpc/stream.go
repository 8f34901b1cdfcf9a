package brpc

import (
	"encoding/binary"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// Fields of StreamFrameMeta (brpc's src/brpc/streaming_rpc_meta.proto). The
// stream's id is the receiver's, the source's the sender's.
const (
	frameStreamID = 1
	frameSourceID = 2
	frameType     = 3
)

// Types of a stream's frames. DATA (3) and FEEDBACK (4) belong to an open
// stream, as does whatever later versions add.
const (
	frameReset = 1
	frameClose = 2
	frameData  = 3
)

// streamOf fills in the client's id of the stream that a request opens.
func streamOf(m *codecs.Metadata, settings []byte) {
	fault, found := "", false
	var r pbwire.Reader
	for r.Reset(settings); r.Next(); {
		switch {
		case r.Is(settingsStreamID, pbwire.Varint):
			m.StreamID, found = r.Uint, true
		case r.Number == settingsExtraIDs:
			// Their frames would name streams that nobody has opened.
			fault = faultStreams
		}
	}
	switch {
	case m.Malformed != "":
	case r.Err() != nil:
		m.Malformed = r.Err().Error()
	case fault != "":
		m.Malformed = fault
	case !found:
		m.Malformed = faultStream
	}
}

// streamFrame reads the STRM frame that is m.Raw.
func (d *decoder) streamFrame(m *codecs.Metadata) error {
	var stream, source, kind uint64
	var toStream, fromSource bool
	var r pbwire.Reader
	for r.Reset(m.Raw[headerSize:m.HeaderSize]); r.Next(); {
		if r.Type != pbwire.Varint {
			continue
		}
		switch r.Number {
		case frameStreamID:
			stream, toStream = r.Uint, true
		case frameSourceID:
			source, fromSource = r.Uint, true
		case frameType:
			kind = r.Uint
		}
	}
	m.Type = codecs.StreamData
	if kind == frameReset || kind == frameClose {
		m.Type = codecs.StreamCloseTwoWay
	}
	fault := ""
	if err := r.Err(); err != nil {
		fault = err.Error()
	} else if m.HeaderSize > headerSize+maxMeta {
		fault = faultLong
	} else if !toStream {
		fault = "no stream_id"
	}
	if d.dir == codecs.ServerToClient {
		if fault != "" {
			return protocolError(headerSize, fault) // on the stream's own connection
		}
		m.StreamID = stream
		d.serverFrame(m, kind)
		return nil
	}
	switch m.StreamID = source; {
	case fromSource:
		m.Malformed = fault
	case fault == "" && kind == frameReset:
		// A client that does not know the stream of a frame, as it has given up
		// the call that was to open it, resets the server's without a word of
		// its own. Which of its streams that was cannot be told.
		m.Type = codecs.Ignored
	default: // nobody's: servers drop it
		m.Type, m.Malformed = codecs.Ignored, "no source_stream_id"
	}
	return nil
}

// serverFrame fills in what only a server sends: brpc wraps the answer to the
// request that opens a stream into the stream's first frame. What comes later
// is the application's, whatever it looks like.
func (d *decoder) serverFrame(m *codecs.Metadata, kind uint64) {
	answered := d.open && d.stream == m.StreamID
	switch {
	case m.Type == codecs.StreamCloseTwoWay:
		d.open = d.open && !answered
	case kind == frameData && !answered && isMessage(m.Raw[m.HeaderSize:]):
		d.open, d.stream = true, m.StreamID
		d.message(m, m.HeaderSize)
	}
}

// isMessage reports whether b is one PRPC frame.
func isMessage(b []byte) bool {
	if len(b) < headerSize || string(b[:len(magicRPC)]) != magicRPC {
		return false
	}
	body, meta := sizes(b)
	return int(body) == len(b)-headerSize && meta <= body && affordable(b[headerSize:headerSize+int(meta)])
}

// EncodeReset implements codecs.Streamer: the client's handler learns that the
// stream has failed, not that the server has closed it. There is no place for a
// reason.
func (c *codec) EncodeReset(dst []byte, stream *codecs.Metadata, _ *codecs.LocalError) ([]byte, error) {
	start := len(dst)
	dst = append(dst, magicStream...)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = pbwire.AppendVarint(dst, frameStreamID, stream.StreamID)
	dst = pbwire.AppendVarint(dst, frameType, frameReset)
	size := uint32(len(dst) - start - headerSize)
	binary.BigEndian.PutUint32(dst[start+atBodySize:], size)
	binary.BigEndian.PutUint32(dst[start+atMetaSize:], size)
	return dst, nil
}
