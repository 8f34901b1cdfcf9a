package brpc

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
	"github.com/meltemi-mesh/meltemi/codecs/internal/property"
)

// answer fills in how a call has ended. The properties, which are seldom asked
// for, are put when they are.
func answer(m *codecs.Metadata, meta *rpcMeta) {
	code, _, err := varint(meta.response, responseErrorCode)
	switch {
	case m.Malformed != "":
	case err != nil:
		m.Malformed = err.Error()
	case meta.userFields > maxFields:
		m.Malformed = faultFields
	}
	errno := pbwire.Int32(code)
	m.Code = errno
	switch {
	case m.Malformed != "":
		m.Type, m.Status, m.Failure = codecs.Error, codecs.StatusError, codecs.HostFailure
	case isFailure(errno):
		m.Type, m.Status, m.Failure = codecs.Error, codecs.StatusError, failureOf(errno)
		// A C++ server that stops says so before it looks at what is called.
		m.NotProcessed = errno == eLogOff
		m.GoesAway = m.NotProcessed
	case errno != 0:
		m.Type, m.Status = codecs.Response, codecs.StatusBusinessException
	case meta.settings != nil:
		m.Type = codecs.StreamInit
	default:
		m.Type = codecs.Response
	}
	if m.Malformed == "" {
		m.Defer(answerLoader{})
	}
}

type answerLoader struct{}

// Load implements codecs.Loader.
func (answerLoader) Load(m *codecs.Metadata) {
	var meta rpcMeta
	// It has been read before without a fault.
	_ = meta.read(m.Raw[m.Scratch[scratchRPC]+headerSize : m.Scratch[scratchMetaEnd]])
	var r pbwire.Reader
	var code int32
	var text []byte
	for r.Reset(meta.response); r.Next(); {
		switch {
		case r.Is(responseErrorCode, pbwire.Varint):
			code = pbwire.Int32(r.Uint)
		case r.Is(responseErrorText, pbwire.Bytes):
			text = r.Bytes
		}
	}
	propErrorCode.PutNumber(m, int64(code))
	if len(text) > 0 {
		propErrorText.Put(m, text)
	}
	propCompressType.PutNumber(m, int64(meta.compressType))
	propAttachmentSize.PutNumber(m, int64(meta.attachmentSize))
	if meta.userFields > 0 {
		entries := property.EntriesOf(m)
		putUserFields(&entries, m, meta.bytes)
		entries.Close()
	}
}
