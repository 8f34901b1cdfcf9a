package thrift

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// decoder decodes one direction of one connection. The transport of the first
// message is that of the connection.
type decoder struct {
	*codec
	dir       codecs.Direction
	known     bool
	transport int
	skip      *skipper // unframed only
	skipping  bool     // it stands in the midst of the message that comes next
	head      message  // of that one
	memory
}

func (d *decoder) refuse(at int, reason string) (int, error) {
	return 0, &codecs.ProtocolError{Protocol: "thrift", Offset: at, Reason: reason}
}

// Decode implements codecs.Decoder.
func (d *decoder) Decode(b []byte, m *codecs.Metadata) (int, error) {
	if d.last != nil && d.transport == framed {
		if n := d.again(b, m); n > 0 {
			return n, nil
		}
	}
	transport, guess := detect(b, d.maxFrame)
	switch {
	case guess == codecs.Maybe:
		return len(b) + 1, nil
	case guess == codecs.No:
		return d.refuse(0, "neither a transport nor a protocol of Thrift")
	case d.known && !d.same(transport):
		return d.refuse(0, fmt.Sprintf("%s message on a connection of %s ones", transportNames[transport], transportNames[d.transport]))
	}
	var n int
	var err error
	if transport == unframed {
		n, err = d.unframed(b, m)
	} else {
		n = 4 + int(binary.BigEndian.Uint32(b))
		if n > d.maxFrame {
			return d.tooLarge(b, n, transport, m)
		}
		if n > len(b) {
			return n, nil
		}
		transport, err = d.frame(b[:n], transport, m)
	}
	if err != nil || n > len(b) {
		return n, err
	}
	d.known, d.transport = true, transport
	m.Raw = b[:n]
	m.BodySize = n - m.HeaderSize
	return n, nil
}

// frame decodes a frame, or as much of one as tells what it is.
func (d *decoder) frame(b []byte, transport int, m *codecs.Metadata) (int, error) {
	switch transport {
	case framed:
		return framed, d.plain(b, 4, framed, m)
	case header:
		return header, d.header(b, m)
	}
	return d.ttheader(b, m)
}

// tooLarge reads the head of a frame of n bytes, which are above the limit.
func (d *decoder) tooLarge(b []byte, n, transport int, m *codecs.Metadata) (int, error) {
	head := 4 + maxHead
	if transport != framed {
		head = headerFixed + 2*maxHead // as compressed bytes may be more
	}
	if transport != framed && head <= d.maxFrame {
		if len(b) < headerFixed {
			return headerFixed, nil
		}
		head += wordSize * int(binary.BigEndian.Uint16(b[sizeAt:]))
	}
	if transport != header { // of whose compressed bytes a part may tell nothing
		head = min(head, d.maxFrame)
	}
	switch {
	case head > d.maxFrame:
		return d.refuse(0, fmt.Sprintf("frame of %d bytes is larger than the limit of %d", n, d.maxFrame))
	case head > len(b):
		return head, nil
	}
	transport, err := d.frame(b[:head], transport, m)
	if err != nil {
		return 0, err
	}
	d.known, d.transport = true, transport
	m.Malformed = ""
	method := m.Method()
	m.Release()
	if m.Type == codecs.Response || m.Type == codecs.Error {
		m.SetOperation(nil, bytes.Clone(method)) // which is no view of b
	}
	return 0, &codecs.TooLarge{Size: n, Limit: d.maxFrame}
}

// same reports whether a transport is the connection's. Whether a TTHeader has
// frames within is seen later, and may differ.
func (d *decoder) same(transport int) bool {
	return transport == d.transport || transport == ttheader && d.transport == ttheaderFramed
}

// unframed finds the end of a message by skipping its struct.
func (d *decoder) unframed(b []byte, m *codecs.Metadata) (int, error) {
	if d.skip == nil {
		d.skip = &skipper{stack: make([]level, maxDepth)}
	}
	if !d.skipping {
		need, err := d.head.read(b)
		if errors.Is(err, errShort) {
			return d.atLeast(max(need, len(b)+1))
		}
		if err != nil {
			return d.refuse(0, err.Error())
		}
		values := maxValues
		if d.dir == codecs.ServerToClient {
			values = d.maxFrame // answers come bit by bit
		}
		d.skip.start(d.head.protocol == compact, d.head.body, d.maxFrame, values)
		d.skipping, d.head.name = true, nil // it is a view of b
	}
	need, err := d.skip.run(b)
	if err != nil {
		return d.refuse(min(d.skip.pos, len(b)), err.Error())
	}
	if need > 0 {
		return d.atLeast(need)
	}
	d.skipping = false
	n := d.skip.pos
	return n, d.plain(b[:n], 0, unframed, m)
}

// atLeast asks for n bytes of an unframed message.
func (d *decoder) atLeast(n int) (int, error) {
	if n > d.maxFrame {
		return d.refuse(0, errLarge.Error())
	}
	return n, nil
}

// plain decodes the message at offset at of the frame b, which has no header.
func (d *decoder) plain(b []byte, at, transport int, m *codecs.Metadata) error {
	var h message
	if err := d.open(&h, b, at, transport, m); err != nil {
		return err
	}
	if d.shapes == nil {
		d.describe(h.name, nil, m)
	} else if d.recall(&h, b[at:], nil, m) == nil {
		d.describe(h.name, nil, m)
		d.learn(&h, b[at:], nil, m)
	}
	if transport == framed {
		d.close(&h, b, at, m)
	}
	return nil
}

// open reads the head of the message at offset at of the frame b.
func (d *decoder) open(h *message, b []byte, at, transport int, m *codecs.Metadata) error {
	if _, err := h.read(b[at:]); err != nil {
		return d.refuseHeader(at, err)
	}
	if err := h.fill(m, d.dir, b[at+h.body:]); err != nil {
		return d.refuseHeader(at, err)
	}
	f := formOf(transport, h.protocol)
	m.Variant = uint8(f)
	m.HeaderSize = at + h.body
	m.Scratch[scratchForm] = uint32(f)
	m.Scratch[scratchMessage] = uint32(at)
	m.Scratch[scratchSeqid] = uint32(at + h.seqAt)
	m.Scratch[scratchSeqLen] = uint32(h.seqLen)
	return nil
}

// close looks for what is wrong with the arguments of a call of which nothing else is, and
// which b is the frame of.
func (d *decoder) close(h *message, b []byte, at int, m *codecs.Metadata) {
	if m.Malformed == "" && d.isCall(b) {
		m.Malformed = h.tail(b[at:], d.maxFrame)
	}
}

// isCall reports whether b is the whole frame of a call, not only its head: one
// that has to be skipped through.
func (d *decoder) isCall(b []byte) bool {
	return d.dir == codecs.ClientToServer && len(b) == 4+int(binary.BigEndian.Uint32(b))
}

var (
	nameMethod    = []byte(propMethod)
	nameService   = []byte(propService)
	nameTransport = []byte(propTransport)
	nameProtocol  = []byte(propProtocol)
)

// describe puts the properties of the message itself. told is the service as a header says
// it, for methods that do not say it themselves.
func (d *decoder) describe(name, told []byte, m *codecs.Metadata) {
	f := form(m.Variant)
	service, method := operation(name)
	if d.dir == codecs.ClientToServer {
		switch {
		case hasControl(name):
			m.Malformed = errControl
		case service != nil && (len(service) == 0 || len(method) == 0 || bytes.IndexByte(method, ':') >= 0):
			m.Malformed = errOperation
		}
	}
	if service == nil {
		service = told
	}
	m.SetOperation(service, method)
	if d.dir == codecs.ServerToClient {
		return
	}
	m.ReplyInfo = append(m.ReplyInfo[:0], name...)
	m.Put(nameMethod, method)
	if service != nil {
		m.Put(nameService, service)
	}
	m.Put(nameTransport, transportNames[f.transport()])
	m.Put(nameProtocol, protocolNames[f.protocol()])
}
