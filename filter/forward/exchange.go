// Package forward brings a request to one outcome. What that takes, one attempt
// at a cluster or several, is known here and nowhere else: not to the message,
// which wants an answer, nor to the pools, which make calls.
package forward

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// Owner is the message on whose behalf an Exchange is made. Of Sent, Answered and
// Failed one is called, once, unless the Exchange is cancelled before.
type Owner interface {
	// Hold is called when the request has to wait: its frame must outlive the
	// event in which it came.
	Hold()
	// Request returns the request's metadata, of which the scalar fields, Scratch
	// and ReplyInfo are valid until the exchange has ended.
	Request() *codecs.Metadata
	// Encode appends the request to dst, with id in place of its own. It changes
	// nothing: it is called for each attempt.
	Encode(dst []byte, id uint64) ([]byte, error)
	// Release is called when no further attempt can start: the frame, and all that
	// only encoding needs, may go.
	Release()
	// Sent ends a request that expects no answer: it has been handed over.
	Sent()
	// Answered ends the exchange. resp and its frame are valid during Answered only.
	Answered(resp *codecs.Metadata)
	// Failed ends the exchange without an answer, or an open stream.
	Failed(f *upstream.Failure)
	// Streamed and Blocked are those of upstream.Owner.
	Streamed(m *codecs.Metadata)
	Blocked(blocked bool)
}

// Exchange is one request on its way to one outcome. It is embedded in the message
// that owns it and used again and again.
type Exchange struct {
	owner    Owner
	first    attempt // by value: most requests need no other
	attempts int
}

// Init binds x to its owner for good.
func (x *Exchange) Init(o Owner) {
	x.owner = o
	x.first.x = x
	x.first.call.Init(&x.first)
}

// Start sends the request to the pool p. The owner may hear of its end before Start
// returns.
func (x *Exchange) Start(p *upstream.Pool, s upstream.Send) {
	x.attempts = 1
	p.Send(&x.first.call, s)
}

// Cancel ends the exchange, if it has not ended, as nobody wants its outcome any
// more: the owner hears no more of it.
func (x *Exchange) Cancel() { x.first.call.Cancel() }

// Call returns the call that carries the request now, or did last: the one that a
// stream, once it is open, goes on with.
func (x *Exchange) Call() *upstream.Call { return &x.first.call }

// Waiting reports whether no attempt has been handed to a connection yet.
func (x *Exchange) Waiting() bool { return x.first.call.Waiting() }

// Attempts returns how many attempts have been made since Start.
func (x *Exchange) Attempts() int { return x.attempts }

// Reset prepares x for the next request.
func (x *Exchange) Reset() { x.attempts = 0 }

// attempt is one call on behalf of an exchange. It implements upstream.Owner.
type attempt struct {
	x    *Exchange
	call upstream.Call
}

func (a *attempt) Hold()                     { a.x.owner.Hold() }
func (a *attempt) Request() *codecs.Metadata { return a.x.owner.Request() }

func (a *attempt) Encode(dst []byte, id uint64) ([]byte, error) {
	b, err := a.x.owner.Encode(dst, id)
	if err == nil {
		a.x.owner.Release()
	}
	return b, err
}

func (a *attempt) Sent()                          { a.x.owner.Sent() }
func (a *attempt) Answered(resp *codecs.Metadata) { a.x.owner.Answered(resp) }
func (a *attempt) Failed(f *upstream.Failure)     { a.x.owner.Failed(f) }
func (a *attempt) Streamed(m *codecs.Metadata)    { a.x.owner.Streamed(m) }
func (a *attempt) Blocked(blocked bool)           { a.x.owner.Blocked(blocked) }
