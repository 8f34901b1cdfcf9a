package codecs

import (
	"math"
	"time"
)

// Deadliner is implemented by codecs whose requests can say how long their client
// will wait. What is to be written into them says [Mutation].
type Deadliner interface {
	// Timeout returns how long the client of req will wait from when it has sent it,
	// as req says: 0 if it does not, or nothing that makes sense, less than 0 if it
	// says that the time is over. It reads req.Raw, scalars, Scratch and ReplyInfo,
	// which are valid, and no properties, which may be others. It is asked only where
	// a route wants to know: Decode does nothing for it.
	Timeout(req *Metadata) time.Duration
}

// Millis is a timeout as protocols write it, from 1 on: in whole milliseconds, without
// what is beyond, as a server must not wait longer than its client; but what is left
// is not nothing. 0 stands for none.
func Millis(timeout time.Duration) int32 {
	if timeout <= 0 {
		return 0
	}
	return int32(min(max(timeout.Milliseconds(), 1), math.MaxInt32))
}
