package brpc

import (
	"bytes"

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

// putUserFields puts the user fields of a message's meta. It returns what is wrong
// with one that cannot be read, or that is not what the extension field says which
// has its name: servers in C++ go by the one, servers in Java by the other.
func putUserFields(entries *property.Entries, m *codecs.Metadata, b []byte) (fault string) {
	ext := len(m.Properties()) // behind the extension fields
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		if !r.Is(fieldUserFields, pbwire.Bytes) {
			continue
		}
		key, value, err := pbwire.Entry(r.Bytes)
		if err != nil {
			return err.Error()
		}
		if own.Has(key) {
			continue
		}
		switch i := entries.Find(key, true); {
		case i == property.None:
			m.Put(key, value)
		case i >= ext:
			m.Properties()[i].Value = value
		case !bytes.Equal(m.Properties()[i].Value, value):
			return faultDiffer
		}
	}
	return ""
}
