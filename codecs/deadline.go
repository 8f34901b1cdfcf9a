package codecs

import "time"

// Deadliner is implemented by codecs whose protocol can say how long a client waits
// for its answer. Its Encode writes [Mutation.Timeout] into requests that can carry
// one.
type Deadliner interface {
	// Timeout returns how long the client of req waits, as the request says: 0 if it
	// does not, less than 0 if it waits no more. The frame of req is valid. It is
	// called for requests only, on routes that heed deadlines.
	Timeout(req *Metadata) time.Duration
}
