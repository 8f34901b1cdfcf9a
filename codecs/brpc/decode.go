package brpc

import (
	"encoding/binary"
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbshape"
)

type decoder struct {
	codec *codec
	dir   codecs.Direction
	pbshape.Memory
	// stream is the one whose answer has come, if any, of a server's.
	stream uint64
	open   bool
}

func protocolError(offset int, reason string) error {
	return &codecs.ProtocolError{Protocol: "brpc", Offset: offset, Reason: reason}
}

// Decode implements codecs.Decoder.
func (d *decoder) Decode(buf []byte, m *codecs.Metadata) (int, error) {
	n := min(len(buf), len(magicRPC))
	magic := magicRPC
	if buf[0] == magicStream[0] {
		magic = magicStream
	}
	if string(buf[:n]) != magic[:n] {
		return 0, protocolError(0, "bad magic")
	}
	if len(buf) < headerSize {
		return headerSize, nil
	}
	body, meta := sizes(buf)
	large := int64(body)+headerSize > int64(d.codec.maxFrame)
	switch {
	case large && (int64(meta)+headerSize > int64(d.codec.maxFrame) || magic == magicStream && d.dir == codecs.ServerToClient):
		return 0, d.tooLarge(body)
	case meta > body:
		return 0, protocolError(atMetaSize, "meta is larger than the body")
	}
	n = headerSize + int(body)
	if large {
		return d.head(buf, m, n)
	}
	if n > len(buf) {
		return n, nil
	}
	if !affordable(buf[headerSize : headerSize+int(meta)]) {
		return 0, longMeta(meta)
	}
	m.Raw = buf[:n:n]
	m.HeaderSize = headerSize + int(meta)
	m.BodySize = n - m.HeaderSize
	if magic == magicStream {
		return n, d.streamFrame(m)
	}
	d.message(m, 0)
	return n, nil
}

// tooLarge is the error for a frame that ends its connection: it does not tell
// whose it is, or the connection is that of the one stream whose it is.
func (d *decoder) tooLarge(body uint32) error {
	return protocolError(atBodySize, "frame of "+strconv.FormatUint(uint64(body)+headerSize, 10)+
		" bytes is larger than the limit of "+strconv.Itoa(d.codec.maxFrame))
}

// longMeta is the error for a meta that is not read at all.
func longMeta(meta uint32) error {
	return protocolError(atMetaSize, "meta of "+strconv.FormatUint(uint64(meta), 10)+
		" bytes, and of many fields, is larger than the limit of "+strconv.Itoa(maxMeta))
}

// head reads the meta of a frame of size bytes, which is too large to be read to
// its end.
func (d *decoder) head(buf []byte, m *codecs.Metadata, size int) (int, error) {
	body, meta := sizes(buf)
	n := headerSize + int(meta)
	if n > len(buf) {
		return n, nil
	}
	if !affordable(buf[headerSize:n]) {
		return 0, longMeta(meta)
	}
	m.Raw, m.HeaderSize, m.BodySize = buf[:n:n], n, size-n
	if buf[0] == magicStream[0] {
		if err := d.streamFrame(m); err != nil {
			return 0, err
		}
	} else if d.message(m, 0); d.dir == codecs.ServerToClient && m.Type == codecs.StreamInit {
		return 0, d.tooLarge(body)
	}
	m.Release()
	return 0, &codecs.TooLarge{Size: size, Limit: d.codec.maxFrame}
}

// sizes reads those of a header: of the body, and of the meta in it.
func sizes(b []byte) (body, meta uint32) {
	return binary.BigEndian.Uint32(b[atBodySize:]), binary.BigEndian.Uint32(b[atMetaSize:])
}

// message reads the PRPC frame at offset rpc of m.Raw. Its direction tells what
// it is: answers of jprotobuf have the meta of their requests, too.
func (d *decoder) message(m *codecs.Metadata, rpc int) {
	_, size := sizes(m.Raw[rpc:])
	from := rpc + headerSize
	b := m.Raw[from : from+int(size)]
	if d.dir == codecs.ClientToServer && size <= maxMeta {
		if f := d.Recall(&metaSchema, m, b); f != nil {
			d.known(m, f)
			return
		}
	}
	var meta rpcMeta
	err := meta.read(b)
	switch {
	case err != nil:
		m.Malformed = err.Error()
		m.FixedID = meta.id == 0 // it may have one that cannot be found
	case size > maxMeta:
		m.Malformed = faultLong
		meta.request, meta.response = nil, nil // which are as long as they like
	case meta.twice:
		m.Malformed = faultTwice
	}
	m.ID = meta.correlationID
	m.Scratch[scratchRPC] = uint32(rpc)
	m.Scratch[scratchMetaEnd] = uint32(from) + size
	m.Scratch[scratchFields] = uint32(meta.userFields)
	if meta.id > 0 {
		m.Scratch[scratchID] = uint32(from + meta.id)
	}
	if d.dir == codecs.ClientToServer {
		request(m, &meta)
		if m.Type == codecs.Request && m.Malformed == "" {
			d.Remember(&metaSchema, m, b)
		}
	} else {
		answer(m, &meta)
	}
}
