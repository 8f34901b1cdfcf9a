package dubbo

import (
	"strconv"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
	"github.com/meltemi-mesh/meltemi/codecs/internal/decimal"
)

// Attachments that say how long a client waits, in ms. keyTimeout is what it has been
// told to, a string (DubboInvoker). keyLeft is what is left of that of the outermost
// call, an int, where clients have it counted down (RpcUtils.calculateTimeout);
// servers look for the one in lower case too.
const (
	keyTimeout   = "timeout"
	keyLeft      = "_TO"
	keyLeftLower = "_to"
)

// isLeft reports whether an attachment says what is left.
func isLeft(key []byte) bool { return string(key) == keyLeft || string(key) == keyLeftLower }

// Timeout implements codecs.Deadliner.
func (c *codec) Timeout(req *codecs.Metadata) time.Duration {
	if k := knownOf(req); k != nil && k.timed {
		return k.timeout
	}
	if !saysTimeout(req) {
		return 0
	}
	var r hessian.Reader
	seekAttachments(&r, req)
	return timeoutAt(&r)
}

// timeoutAt is Timeout of a request at whose attachments r stands.
func timeoutAt(r *hessian.Reader) time.Duration {
	if noAttachments(r) {
		return 0
	}
	var timeout, left, leftLower int32 // of two with one key the later counts
	for r.Open(); r.More() && r.Peek() != 'Z'; {
		if !hessian.IsString(r.Peek()) {
			r.Skip()
			r.Skip()
			continue
		}
		switch key := r.String(); string(key) {
		case keyTimeout:
			n, _ := number(r)
			timeout = max(n, 0) // dubbo-go writes 0 when it tries again
		case keyLeft:
			left = remainder(r)
		case keyLeftLower:
			leftLower = remainder(r)
		default:
			r.Skip()
		}
	}
	for _, n := range [...]int32{left, leftLower} {
		switch {
		case n == spent:
			return -time.Millisecond
		case n > 0 && (timeout == 0 || n < timeout):
			timeout = n
		}
	}
	return time.Duration(timeout) * time.Millisecond
}

// spent is the remainder of a client that has no time left.
const spent = -1

// remainder reads what is left, 0 if that is not said.
func remainder(r *hessian.Reader) int32 {
	if n, ok := number(r); ok && n <= 0 {
		return spent
	} else if ok {
		return n
	}
	return 0
}

// saysTimeout reports whether m is a message that can: a call whose attachments are
// known.
func saysTimeout(m *codecs.Metadata) bool {
	return (m.Type == codecs.Request || m.Type == codecs.Oneway) && m.Malformed == "" && m.Scratch[scratchAttachments] != 0
}

// number reads the value of an attachment, whatever it is. ok is false if it is no
// int, nor the text of one.
func number(r *hessian.Reader) (n int32, ok bool) {
	if hessian.IsInt(r.Peek()) {
		n = r.Int()
		return n, r.Err() == nil
	}
	digits, ok := text(r)
	if !ok {
		return 0, false
	}
	return decimal.Int32(digits)
}

// appendDigits appends n as the string that keyTimeout has.
func appendDigits(dst []byte, n int32) []byte {
	at := len(dst)
	dst = strconv.AppendInt(append(dst, 0), int64(n), 10)
	dst[at] = byte(len(dst) - at - 1) // the length, of a short string
	return dst
}
