package thrift

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/property"
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
	// maxTTHeader is the longest that Kitex reads: it counts bytes in 16 bits.
	maxTTHeader = wordSize * (1<<14 - 1)

	protocolBinary  = 0
	protocolCompact = 2

	transformZlib = 1

	infoKeyValue = 1
)

// maxHeaders bounds the headers that become properties of a message.
const maxHeaders = property.MaxEntries

var (
	errHeader  = errors.New("header ends too early")
	errHeaders = errors.New("too many headers")
	errZlib    = errors.New("no zlib")

	errInflated = fmt.Errorf("it has more than %d bytes inflated", maxInflated)
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
		return d.refuseHeader(min(sizeAt, len(b)), err)
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
		return d.behind(&r, b, m)
	}
	m.Scratch[scratchInfo] = uint32(info)
	d.putHeaders(&r, m)
	return nil
}

// behind decodes the message behind the header that r is about to read.
func (d *decoder) behind(r *infoReader, b []byte, m *codecs.Metadata) error {
	var h message
	at, info := len(r.b), r.at
	if err := d.open(&h, b, at, header, m); err != nil {
		return err
	}
	known := d.recall(&h, b[at:], r, m) != nil
	if !known {
		d.describe(h.name, nil, m)
	}
	d.close(&h, b, at, m)
	// An answer to a compressed request has the id that the request's header
	// was given only in its own.
	if id := binary.BigEndian.Uint32(b[seqidAt:]); d.dir == codecs.ServerToClient && id != 0 {
		m.ID = uint64(id)
		m.Scratch[scratchForm] |= headerID
	}
	m.Scratch[scratchInfo] = uint32(info)
	if known {
		return nil
	}
	d.putHeaders(r, m)
	d.learn(&h, b[at:], r, m)
	return nil
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

// maxInflated is how many bytes of a compressed call are inflated at most, which
// takes some 5 ms.
const maxInflated = 1 << 20

// adler is the length of the checksum behind what is compressed (RFC 1950).
const adler = 4

// inflater reads compressed messages. It is as large as hundreds of them, so it
// is used again.
type inflater struct {
	src   bytes.Reader
	z     io.ReadCloser
	bytes [maxHead]byte // the start of the message, later a part of its rest
	n     int           // how many they are
	all   int           // how many bytes there have been
	err   error         // behind them; io.EOF: the message ends
}

// spare is an inflater that nobody uses.
var spare atomic.Pointer[inflater]

func newInflater() *inflater {
	if i := spare.Swap(nil); i != nil {
		return i
	}
	return &inflater{z: flate.NewReader(strings.NewReader(""))}
}

// read inflates the start of b. What it returns is valid until done is called.
func (i *inflater) read(b []byte) (head []byte, err error) {
	// The header of zlib (RFC 1950): deflate, without a dictionary.
	if len(b) < 2 || b[0]&0x0f != 8 || b[1]&0x20 != 0 || binary.BigEndian.Uint16(b)%31 != 0 {
		return nil, errZlib
	}
	i.src.Reset(b[2:])
	if err := i.z.(flate.Resetter).Reset(&i.src, nil); err != nil {
		return nil, err
	}
	i.n, i.all, i.err = 0, 0, nil
	if i.fill(); i.n == 0 {
		return nil, i.err
	}
	return i.bytes[:i.n], nil // as far as it goes
}

// fill inflates what is behind the bytes that are there.
func (i *inflater) fill() {
	for i.n < len(i.bytes) && i.err == nil {
		var n int
		n, i.err = i.z.Read(i.bytes[i.n:])
		i.n += n
		i.all += n
	}
}

// tail is message.tail for the message that was read, whose head is h.
func (i *inflater) tail(h *message, limit int) error {
	var all [maxDepth]level
	s := skipper{stack: all[:]}
	s.start(h.protocol == compact, h.body, limit, maxValues)
	for {
		need, err := s.run(i.bytes[:i.n])
		eof := errors.Is(i.err, io.EOF)
		switch {
		case err != nil:
			return err
		case need == 0 && s.pos < i.n:
			return errBehind
		case eof && need > 0:
			return errEnds
		case eof && i.src.Len() != adler:
			return errZlib
		case eof:
			return nil
		case i.err != nil:
			return i.err
		case i.all > maxInflated:
			return errInflated
		}
		gone := min(s.pos, i.n)
		i.n = copy(i.bytes[:], i.bytes[gone:i.n])
		s.pos -= gone
		s.limit -= gone
		i.fill()
	}
}

func (i *inflater) done() {
	i.src.Reset(nil) // the frame is not the codec's to keep
	spare.Store(i)
}

// inflated reads the head of a compressed message. The message itself passes
// as it is, with its own sequence id, which servers answer with.
func (d *decoder) inflated(b []byte, at int, m *codecs.Metadata) {
	inflater := newInflater()
	defer inflater.done()
	var h message
	head, err := inflater.read(b[at:])
	if err == nil {
		_, err = h.read(head)
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
	m.FixedID = d.dir == codecs.ClientToServer
	m.ReplyInfo = append(m.ReplyInfo[:0], h.name...) // as head is used again
	d.describe(m.ReplyInfo, nil, m)
	if m.Malformed == "" && d.isCall(b) {
		if err := inflater.tail(&h, d.maxFrame); err != nil {
			m.Malformed = "compressed message: " + err.Error()
		}
	}
}
