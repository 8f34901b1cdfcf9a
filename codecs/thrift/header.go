package thrift

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"io"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Apache Thrift's header transport (doc/specs/HeaderFormat.md), behind the
// frame's length: magic, flags, sequence id, size of the header in words, and
// the header itself: protocol id, transforms, key-value parts, zeros.
const (
	headerFixed = 14 // up to the header itself, the frame's length included
	seqidAt     = 8
	sizeAt      = 12
	wordSize    = 4
	// maxHeader is what its 16-bit size in words can say.
	maxHeader = wordSize * (1<<16 - 1)

	protocolBinary  = 0
	protocolCompact = 2

	transformZlib = 1

	infoKeyValue = 1
)

// maxHeaders bounds the headers that become properties of a message.
const maxHeaders = 1024

var (
	errHeader  = errors.New("header ends too early")
	errHeaders = errors.New("too many headers")
)

func (d *decoder) refuseHeader(at int, err error) error {
	return &codecs.ProtocolError{Protocol: "thrift", Offset: at, Reason: err.Error()}
}

// headerEnd returns where the message begins behind a header of either kind.
func headerEnd(b []byte) (int, error) {
	if len(b) < headerFixed {
		return 0, errHeader
	}
	end := headerFixed + wordSize*int(binary.BigEndian.Uint16(b[sizeAt:]))
	if end > len(b) {
		return 0, errHeader
	}
	return end, nil
}

// header decodes a frame of the header transport.
func (d *decoder) header(b []byte, m *codecs.Metadata) error {
	end, err := headerEnd(b)
	if err != nil {
		return d.refuseHeader(sizeAt, err)
	}
	r := infoReader{b: b[:end], at: headerFixed}
	r.uvarint() // the protocol: the message tells it itself
	zlibbed, unknown := false, false
	for n := r.uvarint(); n > 0 && r.err == nil; n-- {
		if r.uvarint() == transformZlib {
			zlibbed = true
		} else {
			unknown = true
		}
	}
	if r.err != nil {
		return d.refuseHeader(r.at, r.err)
	}
	info := r.at
	switch {
	case unknown:
		d.unreadable(b, "transform of the header transport is not known", m)
	case zlibbed:
		d.inflated(b, end, m)
	default:
		if err := d.message(b, end, header, nil, m); err != nil {
			return err
		}
	}
	m.Scratch[scratchInfo] = uint32(info)
	return d.putHeaders(&r, m)
}

// unreadable is a message of which the header is all that can be read.
func (d *decoder) unreadable(b []byte, why string, m *codecs.Metadata) {
	if m.Type = codecs.Response; d.dir == codecs.ClientToServer {
		m.Type, m.Malformed = codecs.Request, why
	}
	f := formOf(header, strict)
	m.Variant = uint8(f)
	m.Scratch[scratchForm] = uint32(f) | transformed
	m.ID = uint64(binary.BigEndian.Uint32(b[seqidAt:]))
	m.HeaderSize = headerFixed
}

// maxHead is how much of a compressed message is looked at: its head and the
// first field of a result.
const maxHead = maxName + 32

// inflated reads the head of a compressed message. The message itself passes
// as it is, with its own sequence id: that of the header is the one that
// counts.
func (d *decoder) inflated(b []byte, at int, m *codecs.Metadata) {
	var h message
	head := make([]byte, maxHead)
	z, err := zlib.NewReader(bytes.NewReader(b[at:]))
	if err == nil {
		var n int
		n, err = io.ReadFull(z, head)
		head = head[:n]
		if n > 0 {
			_, err = h.read(head)
		}
	}
	if err == nil {
		err = h.fill(m, d.dir, head[h.body:])
	}
	if err != nil {
		d.unreadable(b, "compressed message: "+err.Error(), m)
		return
	}
	f := formOf(header, h.protocol)
	m.Variant = uint8(f)
	m.Scratch[scratchForm] = uint32(f) | transformed
	m.Scratch[scratchInnerID] = h.seqid
	m.ID = uint64(binary.BigEndian.Uint32(b[seqidAt:]))
	m.HeaderSize = at
	d.describe(h.name, nil, f, m)
}
