package codecs

import "time"

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
