package brpc

import (
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// property is the name of one of the codec's own properties.
type property struct {
	text string
	name []byte // the same
}

func propertyOf(name string) property { return property{name, []byte(name)} }

var (
	propService        = propertyOf("service")
	propMethod         = propertyOf("method")
	propCompressType   = propertyOf("compress_type")
	propAttachmentSize = propertyOf("attachment_size")
	propLogID          = propertyOf("log_id")
	propTraceID        = propertyOf("trace_id")
	propSpanID         = propertyOf("span_id")
	propParentSpanID   = propertyOf("parent_span_id")
	propRequestID      = propertyOf("request_id")
	propTimeout        = propertyOf("timeout_ms")
	propErrorCode      = propertyOf("error_code")
	propErrorText      = propertyOf("error_text")
)

var own = [...]*property{
	&propService, &propMethod, &propCompressType, &propAttachmentSize, &propLogID, &propTraceID, &propSpanID,
	&propParentSpanID, &propRequestID, &propTimeout, &propErrorCode, &propErrorText,
}

// isOwn reports whether a field of a message has the name of one of the codec's
// own properties. Rules, which are blind to case, must not take it for that.
func isOwn(name []byte) bool {
	for _, p := range own {
		if len(p.text) == len(name) && codecs.EqualFold(name, p.text) {
			return true
		}
	}
	return false
}

// numbers that are common, as text: log ids and sizes that are not used,
// compression types.
var numbers = func() (t [256][]byte) {
	for i := range t {
		t[i] = strconv.AppendInt(nil, int64(i), 10)
	}
	return t
}()

// putNumber puts a property of the codec's own.
func putNumber(m *codecs.Metadata, p *property, v int64) {
	if v >= 0 && v < int64(len(numbers)) {
		m.Put(p.name, numbers[v])
		return
	}
	var text [20]byte
	m.Set(p.text, string(strconv.AppendInt(text[:0], v, 10)))
}

// putEntries puts the entries that are the fields of a message with a number.
// It returns what is wrong with one that cannot be read.
func putEntries(m *codecs.Metadata, b []byte, number int32) (fault string) {
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		if !r.Is(number, pbwire.Bytes) {
			continue
		}
		key, value, err := entry(r.Bytes)
		if err != nil {
			return err.Error()
		}
		if !isOwn(key) {
			m.Put(key, value)
		}
	}
	return ""
}
