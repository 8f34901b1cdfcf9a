package brpc

import (
	"bytes"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
	"github.com/meltemi-mesh/meltemi/codecs/internal/property"
)

// lastChunk is the number of the last chunk of a message.
const lastChunk = -1

// request fills in what a client asks for.
func request(m *codecs.Metadata, meta *rpcMeta) {
	m.Type = codecs.Request
	if m.Malformed == "" && meta.chunk != nil {
		// jprotobuf, if told to, sends a large message as several frames of one
		// correlation id: they want one answer, and one connection.
		if n, ok, err := varint(meta.chunk, chunkID); ok && err == nil && int64(n) != lastChunk {
			m.Type = codecs.Ignored
			return
		}
		m.Malformed = faultChunks
	}
	if meta.settings != nil {
		m.Type = codecs.StreamInit
		streamOf(m, meta.settings)
	}
	var req requestMeta
	fault := req.read(meta.request)
	req.put(m, meta)
	m.SetOperation(req.service, req.method)
	m.Scratch[scratchExtFields] = uint32(req.extFields)
	m.Scratch[scratchFields] += uint32(req.extFields)
	switch {
	case m.Malformed != "":
	case meta.request == nil:
		m.Malformed = faultRequest
	case fault != "":
		m.Malformed = fault
	case !readable(meta.response): // servers end the connection, which others share
		m.Malformed = faultResponse
	case req.service == nil || req.method == nil:
		m.Malformed = faultNames // which servers end the connection for
	case bytes.IndexByte(req.method, '.') >= 0 && bytes.IndexByte(req.service, '.') >= 0:
		// Servers in C++ look for service.method, unless the service has no package:
		// a part of the service's name, by which rules go, may stand in the method's.
		m.Malformed = faultMethod
	case m.Scratch[scratchFields] > maxFields:
		m.Malformed = faultFields
	default:
		entries := property.EntriesOf(m)
		if req.extFields > 0 {
			putExtFields(&entries, meta.request)
		}
		if meta.userFields > 0 {
			m.Malformed = putUserFields(&entries, m, meta.bytes)
		}
		entries.Close()
	}
}

// readable reports whether b is a message of whatever schema.
func readable(b []byte) bool {
	var r pbwire.Reader
	r.Reset(b)
	for more := true; more; {
		more = r.Next()
	}
	return r.Err() == nil
}

// requestMeta is what a RpcRequestMeta says, but for its extension fields.
type requestMeta struct {
	service, method, requestID           []byte // nil: none
	logID, traceID, spanID, parentSpanID int64
	timeout                              int32
	has                                  uint16 // a bit for each number that there is
	extFields                            int
}

func (req *requestMeta) read(b []byte) (fault string) {
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		switch r.Type {
		case pbwire.Bytes:
			switch r.Number {
			case requestService:
				req.service = r.Bytes
			case requestMethod:
				req.method = r.Bytes
			case requestIDOrExtField:
				if _, _, ok := extField(r.Bytes); ok {
					req.extFields++
				} else {
					req.requestID = r.Bytes
				}
			}
		case pbwire.Varint:
			switch r.Number {
			case requestLogID:
				req.logID = int64(r.Uint)
			case requestTraceID:
				req.traceID = int64(r.Uint)
			case requestSpanID:
				req.spanID = int64(r.Uint)
			case requestParentSpanID:
				req.parentSpanID = int64(r.Uint)
			case requestTimeout:
				req.timeout = pbwire.Int32(r.Uint)
			default:
				continue
			}
			req.has |= 1 << r.Number
		}
	}
	if err := r.Err(); err != nil {
		return err.Error()
	}
	return ""
}

// put puts the properties that are the codec's own.
func (req *requestMeta) put(m *codecs.Metadata, meta *rpcMeta) {
	propService.Put(m, req.service)
	propMethod.Put(m, req.method)
	propCompressType.PutNumber(m, int64(meta.compressType))
	propAttachmentSize.PutNumber(m, int64(meta.attachmentSize))
	if req.requestID != nil {
		propRequestID.Put(m, req.requestID)
	}
	if req.has == 0 {
		return
	}
	number := func(field int, p *property.Property, v int64) {
		if req.has&(1<<field) != 0 {
			p.PutNumber(m, v)
		}
	}
	number(requestLogID, propLogID, req.logID)
	number(requestTraceID, propTraceID, req.traceID)
	number(requestSpanID, propSpanID, req.spanID)
	number(requestParentSpanID, propParentSpanID, req.parentSpanID)
	number(requestTimeout, propTimeout, int64(req.timeout))
}

// putExtFields puts the extension fields of a request's meta, which can be
// read.
func putExtFields(entries *property.Entries, b []byte) {
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		if !r.Is(requestIDOrExtField, pbwire.Bytes) {
			continue
		}
		if key, value, ok := extField(r.Bytes); ok && !own.Has(key) {
			entries.Put(key, value)
		}
	}
}
