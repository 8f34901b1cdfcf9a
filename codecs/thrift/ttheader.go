package thrift

import (
	"encoding/binary"
	"errors"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// Kitex's TTHeader (cloudwego.io, "Transport Protocol TTHeader"), behind the
// frame's length: magic, flags, sequence id, size of the header in words, and
// the header itself: protocol id, transforms, parts of the kinds of info.go.

// numbered are the names of the numbered headers, by their numbers
// (kitex/pkg/remote/transmeta, metakey.go).
var numbered = [...][]byte{
	1:  []byte("transport-type"),
	2:  []byte("log-id"),
	3:  []byte("from-service"),
	4:  []byte("from-cluster"),
	5:  []byte("from-idc"),
	6:  []byte("to-service"),
	7:  []byte("to-cluster"),
	8:  []byte("to-idc"),
	9:  []byte("to-method"),
	10: []byte("env"),
	11: []byte("dest-address"),
	12: []byte("rpc-timeout"),
	13: []byte("read-timeout"),
	14: []byte("ring-hash-key"),
	15: []byte("ddp-tag"),
	16: []byte("with-mesh-header"),
	17: []byte("connect-timeout"),
	18: []byte("span-context"),
	19: []byte("short-connection"),
	20: []byte("from-method"),
	21: []byte("stress-tag"),
	22: []byte("msg-type"),
	23: []byte("http-content-type"),
	24: []byte("raw-ring-hash-key"),
	25: []byte("lb-type"),
}

const (
	numberToService = 6
	numberTimeout   = 12
)

// nameToken is the name under which Kitex keeps the token, a part of its own.
var nameToken = []byte("RPC_TRANSIT_gdpr-token")

// numberedName is the name of a numbered header, nil if it has none.
func numberedName(key []byte) []byte {
	if n := int(binary.BigEndian.Uint16(key)); n < len(numbered) {
		return numbered[n]
	}
	return nil
}

// Names of headers with a meaning of their own.
const (
	keyService   = "isn"        // the service's name in the IDL
	keyBizStatus = "biz-status" // of an answer: a business error (BizStatusError)
	keyLeaves    = "crrst"      // of an answer: its connection is about to be closed
	// keyRetried, of a call: which retry it is, or an outer one in whose course it is
	// made (retry.TransitKey, among what is passed on).
	keyRetried = "RPC_PERSIST_RetryReq"
)

const (
	flagsAt = 6
	// outOfOrder is the flag of clients that share a connection among calls
	// (HeaderFlagSupportOutOfOrder).
	outOfOrder = 1
	// streaming is the flag of frames of streams (HeaderFlagsStreaming), which say in
	// their headers what they call.
	streaming = 2
	// muxed is set in the variant of their requests, and of local errors for them:
	// Kitex's servers do not repeat the flag. They alone understand control frames.
	muxed = 1 << 7
	// controlName is the method of control frames.
	controlName = "none"
)

var (
	errTransforms = errors.New("transforms of a TTHeader are not supported")
	errProtocolID = errors.New("TTHeader with another protocol than Thrift's binary or compact")
)

// Faults of a call whose frame Kitex would take for another one.
const (
	errLongHeader = "its TTHeader is longer than Kitex's servers can tell"
	errStreaming  = "streaming over TTHeader is not supported"
)

// ttheader decodes a frame with a TTHeader.
func (d *decoder) ttheader(b []byte, m *codecs.Metadata) (transport int, err error) {
	end, err := headerEnd(b)
	if err != nil {
		return 0, d.refuseHeader(min(sizeAt, len(b)), err)
	}
	if end < headerFixed+wordSize {
		return 0, d.refuseHeader(min(sizeAt, len(b)), errHeader)
	}
	if id := b[headerFixed]; id != protocolBinary && id != protocolCompact {
		return 0, d.refuseHeader(headerFixed, errProtocolID)
	}
	if b[headerFixed+1] != 0 {
		return 0, d.refuseHeader(headerFixed+1, errTransforms)
	}
	r := infoReader{b: b[:end], at: headerFixed + 2, kitex: true}
	transport, at := ttheader, end
	if rest := b[end:]; len(rest) >= wordSize && rest[0] != binaryVersion>>24 && rest[0] != compactID &&
		binary.BigEndian.Uint32(rest) == binary.BigEndian.Uint32(b)-uint32(end) {
		transport, at = ttheaderFramed, end+wordSize
	}
	var h message
	if err := d.open(&h, b, at, transport, m); err != nil {
		return 0, err
	}
	var told told
	known := d.recall(&h, b[at:], &r, m)
	if known != nil {
		told.retried = known.Info[infoRetried] != 0
	} else {
		told = d.peek(r)
		d.describe(h.name, told.service, m)
	}
	if transport == ttheaderFramed {
		m.Scratch[scratchInner] = uint32(end)
	}
	m.ExpectsReply = m.Type == codecs.Request // Kitex tells oneways apart
	flags := binary.BigEndian.Uint16(b[flagsAt:])
	if flags&outOfOrder != 0 {
		m.Variant |= muxed
	}
	switch {
	case d.dir != codecs.ClientToServer || m.Malformed != "":
	case end-headerFixed > maxTTHeader:
		m.Malformed = errLongHeader
	case flags&streaming != 0:
		m.Malformed = errStreaming
	default:
		d.close(&h, b, at, m)
	}
	switch {
	case d.dir == codecs.ClientToServer:
		m.Retried = told.retried
	case m.ID == 0 && string(m.Method()) == controlName:
		// The server's own (netpollmux, control_frame.go), answers nothing.
		if m.Type = codecs.Ignored; told.leaves {
			m.Type = codecs.GoAway
		}
	default:
		m.GoesAway = told.leaves && (m.Type == codecs.Response || m.Type == codecs.Error)
		if told.failed && m.Type == codecs.Response {
			m.Status = codecs.StatusBusinessException
		}
	}
	m.Scratch[scratchInfo] = uint32(r.at)
	if known != nil {
		return transport, nil
	}
	d.putHeaders(&r, m)
	d.learn(&h, b[at:], &r, m)
	return transport, nil
}

// told is what headers say of the message itself.
type told struct {
	service []byte // that of the IDL or, failing that, of the registry
	failed  bool   // an answer with a business error
	leaves  bool   // an answer whose server leaves
	retried bool   // a call with the mark of a retry
}

// peek looks for headers of that kind. Of equal ones the last one counts, as in
// Kitex.
func (d *decoder) peek(r infoReader) (t told) {
	var registered []byte
	for {
		kind, n := r.next()
		if r.err != nil || kind == partEnd || kind == partUnknown {
			break
		}
		for ; n > 0 && r.err == nil; n-- {
			key, value := r.pair(kind)
			switch {
			case r.err != nil:
			case kind == partNumbered && binary.BigEndian.Uint16(key) == numberToService:
				registered = value
			case kind == partHeaders && string(key) == keyService:
				t.service = value
			case kind == partHeaders && string(key) == keyBizStatus && d.dir == codecs.ServerToClient:
				t.failed = string(value) != "0"
			case kind == partHeaders && string(key) == keyLeaves && d.dir == codecs.ServerToClient:
				t.leaves = len(value) > 0
			case kind == partHeaders && string(key) == keyRetried && d.dir == codecs.ClientToServer:
				t.retried = len(value) > 0
			}
		}
	}
	if len(t.service) == 0 {
		t.service = registered
	}
	if len(t.service) == 0 {
		t.service = nil
	}
	return t
}

// EncodeGoAway implements codecs.Leaver: Kitex's control frame, which has its
// clients open another connection for what comes next.
func (c *codec) EncodeGoAway(dst []byte, variant uint8) ([]byte, error) {
	if variant&muxed == 0 {
		return dst, nil
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, ttheaderMagic<<16)
	dst = append(dst, 0, 0, 0, 0) // sequence id
	at := len(dst)
	dst = append(dst, 0, 0, protocolBinary, 0, infoTTKeyValue, 0, 1)
	dst = append(append(dst, 0, byte(len(keyLeaves))), keyLeaves...)
	dst = append(dst, 0, 1, '1')
	for (len(dst)-at-2)%wordSize != 0 {
		dst = append(dst, 0)
	}
	binary.BigEndian.PutUint16(dst[at:], uint16((len(dst)-at-2)/wordSize))
	dst = binary.BigEndian.AppendUint32(dst, binaryVersion|typeReply)
	dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(controlName))), controlName...)
	dst = append(dst, 0, 0, 0, 0, 0) // sequence id, and no field
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst, nil
}
