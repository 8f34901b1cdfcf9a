package trpc

import (
	"bytes"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// Fields of RequestProtocol.
const (
	requestCallType        = 2
	requestID              = 3
	requestTimeout         = 4
	requestCaller          = 5
	requestCallee          = 6
	requestFunc            = 7
	requestMessageType     = 8
	requestTransInfo       = 9
	requestContentType     = 10
	requestContentEncoding = 11
	requestAttachmentSize  = 12
)

// callOneway is the call type of a request that gets no answer. Servers answer
// all others.
const callOneway = 1

// call is what a client says of what it asks for.
type call struct {
	caller, callee, fn                        []byte
	contentType, contentEncoding, messageType uint32
}

// request reads the unary frame of a client that is m.Raw.
func request(m *codecs.Metadata) {
	var (
		h                 header
		c                 call
		callType, timeout uint32
		r                 pbwire.Reader
	)
	b := m.Raw[headerSize:m.HeaderSize]
	for r.Reset(b); r.Next(); {
		switch r.Type {
		case pbwire.Varint:
			v := uint32(r.Uint)
			switch r.Number {
			case requestCallType:
				callType = v
			case requestID:
				h.requestID, h.idAt = v, r.Value
			case requestTimeout:
				timeout = v
			case requestMessageType:
				c.messageType = v
			case requestContentType:
				c.contentType = v
			case requestContentEncoding:
				c.contentEncoding = v
			case requestAttachmentSize:
				h.attachmentSize = v
			}
		case pbwire.Bytes:
			switch r.Number {
			case requestCaller:
				c.caller = r.Bytes
			case requestCallee:
				c.callee = r.Bytes
			case requestFunc:
				c.fn = r.Bytes
			case requestTransInfo:
				h.found(&r)
			}
		}
	}
	m.Type = codecs.Request
	if callType == callOneway {
		m.Type = codecs.Oneway
	}
	m.Scratch[scratchFlags] = flagRequest
	m.Scratch[scratchCallType], m.Scratch[scratchMessageType] = callType, c.messageType
	m.Scratch[scratchContentType], m.Scratch[scratchContentEncoding] = c.contentType, c.contentEncoding
	h.identify(m, r.Err())
	c.put(m)
	propCallType.PutNumber(m, int64(callType))
	if timeout > 0 {
		propTimeout.PutNumber(m, int64(timeout))
	}
	if m.Malformed == "" {
		m.Malformed = h.put(m, b, requestTransInfo)
	}
}

// put names the operation and puts the properties that all requests have.
func (c *call) put(m *codecs.Metadata) {
	m.SetOperation(c.operation())
	propCaller.Put(m, c.caller)
	propCallee.Put(m, c.callee)
	propFunc.Put(m, c.fn)
	propContentType.PutNumber(m, int64(c.contentType))
	propContentEncoding.PutNumber(m, int64(c.contentEncoding))
	propMessageType.PutNumber(m, int64(c.messageType))
}

// operation takes the func apart, which is "/package.Service/Method" by
// convention. One that has but a name is the callee's.
func (c *call) operation() (service, method []byte) {
	fn := bytes.TrimPrefix(c.fn, []byte{'/'})
	if i := bytes.LastIndexByte(fn, '/'); i >= 0 {
		return fn[:i], fn[i+1:]
	}
	return c.callee, fn
}
