package trpc

import (
	"strconv"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// property is the name of one of the codec's own properties.
type property struct {
	text string
	name []byte // the same
}

func propertyOf(name string) property { return property{name, []byte(name)} }

// The protocol's own version, which has always been 0, is none of them: the
// name is a popular one for entries of trans_info.
var (
	propCaller          = propertyOf("caller")
	propCallee          = propertyOf("callee")
	propFunc            = propertyOf("func")
	propContentType     = propertyOf("content_type")
	propContentEncoding = propertyOf("content_encoding")
	propMessageType     = propertyOf("message_type")
	propCallType        = propertyOf("call_type")
	propTimeout         = propertyOf("timeout")
	propRet             = propertyOf("ret")
	propFuncRet         = propertyOf("func_ret")
	propErrorMsg        = propertyOf("error_msg")
)

var own = [...]*property{
	&propCaller, &propCallee, &propFunc, &propContentType, &propContentEncoding, &propMessageType, &propCallType,
	&propTimeout, &propRet, &propFuncRet, &propErrorMsg,
}

// isOwn reports whether an entry of trans_info has the name of one of the
// codec's own properties. Rules, which are blind to case, must not take it for
// that.
func isOwn(name []byte) bool {
	for _, p := range own {
		if len(p.text) == len(name) && codecs.EqualFold(name, p.text) {
			return true
		}
	}
	return false
}

// numbers that are common, as text.
var numbers = func() (t [256][]byte) {
	for i := range t {
		t[i] = strconv.AppendInt(nil, int64(i), 10)
	}
	return t
}()

// putNumber puts a property of the codec's own.
func putNumber[T uint32 | int32](m *codecs.Metadata, p *property, v T) {
	if v >= 0 && int64(v) < int64(len(numbers)) {
		m.Put(p.name, numbers[v])
		return
	}
	var text [11]byte
	m.Set(p.text, string(strconv.AppendInt(text[:0], int64(v), 10)))
}
