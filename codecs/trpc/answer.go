package trpc

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// Fields of ResponseProtocol. The request id has the same number as in
// RequestProtocol.
const (
	responseCallType        = 2
	responseID              = 3
	responseRet             = 4
	responseFuncRet         = 5
	responseErrorMsg        = 6
	responseMessageType     = 7
	responseTransInfo       = 8
	responseContentType     = 9
	responseContentEncoding = 10
	responseAttachmentSize  = 12
)

// answer reads the unary frame of a server that is m.Raw. The properties, which
// are seldom asked for, are put when they are.
func answer(m *codecs.Metadata) {
	var (
		h            header
		ret, funcRet int32
		r            pbwire.Reader
	)
	for r.Reset(m.Raw[headerSize:m.HeaderSize]); r.Next(); {
		switch {
		case r.Type == pbwire.Varint:
			switch r.Number {
			case responseID:
				h.requestID, h.idAt = uint32(r.Uint), r.Value
			case responseRet:
				ret = pbwire.Int32(r.Uint)
			case responseFuncRet:
				funcRet = pbwire.Int32(r.Uint)
			case responseAttachmentSize:
				h.attachmentSize = uint32(r.Uint)
			}
		case r.Is(responseTransInfo, pbwire.Bytes):
			h.found(&r)
		}
	}
	h.identify(m, r.Err())
	switch {
	case m.Malformed != "":
		m.Type, m.Status, m.Failure = codecs.Error, codecs.StatusError, codecs.HostFailure
		return
	case ret != 0:
		m.Type, m.Status, m.Code, m.Failure = codecs.Error, codecs.StatusError, ret, failureOf(ret)
	case funcRet != 0:
		m.Type, m.Status, m.Code = codecs.Response, codecs.StatusBusinessException, funcRet
	default:
		m.Type = codecs.Response
	}
	m.Defer(answerLoader{})
}

type answerLoader struct{}

// Load implements codecs.Loader.
func (answerLoader) Load(m *codecs.Metadata) {
	var (
		ret, funcRet int32
		text         []byte
		t            transInfo
		r            pbwire.Reader
	)
	b := m.Raw[headerSize:m.HeaderSize]
	for r.Reset(b); r.Next(); { // to the end: it has been read before
		switch r.Type {
		case pbwire.Varint:
			switch r.Number {
			case responseRet:
				ret = pbwire.Int32(r.Uint)
			case responseFuncRet:
				funcRet = pbwire.Int32(r.Uint)
			}
		case pbwire.Bytes:
			switch r.Number {
			case responseErrorMsg:
				text = r.Bytes
			case responseTransInfo:
				t.found(&r)
			}
		}
	}
	propRet.PutNumber(m, int64(ret))
	propFuncRet.PutNumber(m, int64(funcRet))
	if len(text) > 0 {
		propErrorMsg.Put(m, text)
	}
	t.put(m, b, responseTransInfo)
}
