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

const numberToService = 6

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
)

var (
	errTransforms = errors.New("transforms of a TTHeader are not supported")
	errProtocolID = errors.New("TTHeader with another protocol than Thrift's binary or compact")
)

// ttheader decodes a frame with a TTHeader.
func (d *decoder) ttheader(b []byte, m *codecs.Metadata) (transport int, err error) {
	end, err := headerEnd(b)
	if err != nil {
		return 0, d.refuseHeader(sizeAt, err)
	}
	if end < headerFixed+wordSize {
		return 0, d.refuseHeader(sizeAt, errHeader)
	}
	if id := b[headerFixed]; id != protocolBinary && id != protocolCompact {
		return 0, d.refuseHeader(headerFixed, errProtocolID)
	}
	if b[headerFixed+1] != 0 {
		return 0, d.refuseHeader(headerFixed+1, errTransforms)
	}
	info := headerFixed + 2
	service, failed := d.peek(infoReader{b: b[:end], at: info, kitex: true})

	transport, at := ttheader, end
	if rest := b[end:]; len(rest) >= wordSize && rest[0] != binaryVersion>>24 && rest[0] != compactID &&
		int(binary.BigEndian.Uint32(rest)) == len(rest)-wordSize {
		transport, at = ttheaderFramed, end+wordSize
	}
	if err := d.message(b, at, transport, service, m); err != nil {
		return 0, err
	}
	if transport == ttheaderFramed {
		m.Scratch[scratchInner] = uint32(end)
	}
	m.ExpectsReply = m.Type == codecs.Request // Kitex tells oneways apart
	if failed && m.Type == codecs.Response {
		m.Status = codecs.StatusBusinessException
	}
	m.Scratch[scratchInfo] = uint32(info)
	return transport, d.putHeaders(&infoReader{b: b[:end], at: info, kitex: true}, m)
}

// peek looks for headers that say something of the message itself: its
// service, that of the IDL or, failing that, that of the registry, and whether
// it is an answer with a business error.
func (d *decoder) peek(r infoReader) (service []byte, failed bool) {
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
				service = value
			case kind == partHeaders && string(key) == keyBizStatus && d.dir == codecs.ServerToClient:
				failed = string(value) != "0"
			}
		}
	}
	if len(service) == 0 {
		service = registered
	}
	if len(service) == 0 {
		return nil, failed
	}
	return service, failed
}
