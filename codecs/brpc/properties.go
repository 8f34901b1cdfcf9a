package brpc

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
	"github.com/meltemi-mesh/meltemi/codecs/internal/property"
)

var (
	propService        = property.New("service")
	propMethod         = property.New("method")
	propCompressType   = property.New("compress_type")
	propAttachmentSize = property.New("attachment_size")
	propLogID          = property.New("log_id")
	propTraceID        = property.New("trace_id")
	propSpanID         = property.New("span_id")
	propParentSpanID   = property.New("parent_span_id")
	propRequestID      = property.New("request_id")
	propTimeout        = property.New("timeout_ms")
	propErrorCode      = property.New("error_code")
	propErrorText      = property.New("error_text")
)

var own = property.Set{
	propService, propMethod, propCompressType, propAttachmentSize, propLogID, propTraceID, propSpanID,
	propParentSpanID, propRequestID, propTimeout, propErrorCode, propErrorText,
}

// putEntries puts the entries that are the fields of a message with a number.
// It returns what is wrong with one that cannot be read.
func putEntries(m *codecs.Metadata, b []byte, number int32) (fault string) {
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		if !r.Is(number, pbwire.Bytes) {
			continue
		}
		key, value, err := pbwire.Entry(r.Bytes)
		if err != nil {
			return err.Error()
		}
		if !own.Has(key) {
			m.Put(key, value)
		}
	}
	return ""
}
