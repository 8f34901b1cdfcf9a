package trpc

import "github.com/meltemi-mesh/meltemi/codecs/internal/property"

// The protocol's own version, which has always been 0, is none of them: the
// name is a popular one for entries of trans_info.
var (
	propCaller          = property.New("caller")
	propCallee          = property.New("callee")
	propFunc            = property.New("func")
	propContentType     = property.New("content_type")
	propContentEncoding = property.New("content_encoding")
	propMessageType     = property.New("message_type")
	propCallType        = property.New("call_type")
	propTimeout         = property.New("timeout")
	propRet             = property.New("ret")
	propFuncRet         = property.New("func_ret")
	propErrorMsg        = property.New("error_msg")
)

var own = property.Set{
	propCaller, propCallee, propFunc, propContentType, propContentEncoding, propMessageType, propCallType,
	propTimeout, propRet, propFuncRet, propErrorMsg,
}
