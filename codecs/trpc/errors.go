package trpc

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// Codes of the framework (TrpcRetCode), those below 100 a server's.
const (
	retServerDecode    = 1
	retServerNoService = 11
	retServerTimeout   = 21
	retServerOverload  = 22
	retServerLimited   = 23
	retServerSystem    = 31
	retServerAuth      = 41
	retClientConnect   = 111
	retClientDecode    = 122
	retClientNetwork   = 141
)

// maxRet is the last code of the framework, which has it for an unknown error.
// Services say in func_ret what they have to say.
const maxRet = 999

// CheckCode implements codecs.CodeChecker: codes are the framework's.
func (c *codec) CheckCode(code int32) error {
	if code < 1 || code > maxRet {
		return fmt.Errorf("must be between 1 and %d, the codes of the framework, is %d", maxRet, code)
	}
	return nil
}

// retOf chooses the code. No client does anything but show it.
func (c *codec) retOf(e *codecs.LocalError) uint64 {
	if e.Code != 0 && c.CheckCode(e.Code) == nil {
		return uint64(e.Code)
	}
	switch e.Type {
	case codecs.RouteNotFound, codecs.ClusterNotFound:
		return retServerNoService
	case codecs.NoHealthyUpstream, codecs.ConnectFailure:
		return retClientConnect
	case codecs.UpstreamReset:
		return retClientNetwork
	case codecs.Timeout:
		return retServerTimeout
	case codecs.OverLimit:
		return retServerLimited
	case codecs.BadRequest:
		return retServerDecode
	case codecs.BadResponse:
		return retClientDecode
	case codecs.Denied:
		return retServerAuth
	default:
		return retServerSystem
	}
}

// failureOf says of a ret that is not 0 whether another attempt may help. A server
// answers with 22 and 23 what its filters and its queue have not let pass. The codes
// of clients (from 101 on) a server passes on if a call of its own has failed so, and
// tRPC-Go's handlers as their own (codec.go): it may have done its part before.
func failureOf(ret int32) codecs.FailureClass {
	switch ret {
	case retServerOverload, retServerLimited:
		return codecs.Overloaded
	case retServerTimeout, retServerSystem, retClientConnect, retClientNetwork:
		return codecs.HostFailure
	}
	return codecs.NoFailure
}

// maxMessage is how much of an error's text is sent, in bytes: the header that
// it stands in has maxHeader.
const maxMessage = 60_000

func textOf(e *codecs.LocalError) string {
	text := strings.ToValidUTF8(e.Message, "?")
	if len(text) <= maxMessage {
		return text
	}
	n := maxMessage
	for !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// EncodeError implements codecs.Codec. A call is answered, with the id where
// its request had it, and with what servers repeat of it; of a stream that cannot be opened the server's INIT says
// so.
func (c *codec) EncodeError(dst []byte, req *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	start := len(dst)
	if req.Type == codecs.StreamInit {
		dst = appendFixed(dst, typeStream, streamInit, uint32(req.StreamID), req.Scratch[scratchVersion])
		dst, mark := pbwire.AppendFrame(dst, initResponseMeta)
		dst = pbwire.AppendVarint(dst, metaRet, c.retOf(e))
		dst = pbwire.AppendBytes(dst, metaErrorMsg, textOf(e))
		dst = pbwire.CloseFrame(dst, mark)
		binary.BigEndian.PutUint32(dst[start+atLength:], uint32(len(dst)-start))
		return dst, nil
	}
	dst = appendAnswer(dst, req, func(dst []byte) []byte {
		dst = pbwire.AppendVarint(dst, responseRet, c.retOf(e))
		return pbwire.AppendBytes(dst, responseErrorMsg, textOf(e))
	}, int32(req.Scratch[scratchContentEncoding]))
	closeAnswer(dst[start:], len(dst)-start-headerSize)
	return dst, nil
}

// EncodeReset implements codecs.Streamer: a CLOSE that ends the stream both
// ways and says why.
func (c *codec) EncodeReset(dst []byte, stream *codecs.Metadata, e *codecs.LocalError) ([]byte, error) {
	start := len(dst)
	dst = appendFixed(dst, typeStream, streamClose, uint32(stream.StreamID), stream.Scratch[scratchVersion])
	dst = pbwire.AppendVarint(dst, closeType, closeReset)
	dst = pbwire.AppendVarint(dst, closeRet, c.retOf(e))
	dst = pbwire.AppendBytes(dst, closeMsg, textOf(e))
	binary.BigEndian.PutUint32(dst[start+atLength:], uint32(len(dst)-start))
	return dst, nil
}
