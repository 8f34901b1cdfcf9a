// Package forward brings a request to one outcome. What that takes, one attempt
// at a cluster or several, is known here and nowhere else: not to the message,
// which wants an answer, nor to the pools, which make calls.
package forward

import (
	"math/rand/v2"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
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
	// nothing: it is called for each attempt. left is how long an answer will be
	// waited for, 0 if the server is not to be told; retry numbers the retries, from 1.
	Encode(dst []byte, id uint64, left time.Duration, retry int) ([]byte, error)
	// Keep is called in place of Release while a further attempt may start: the frame,
	// and no more of the request, must outlive the event.
	Keep()
	// Release is called when no further attempt can start: the frame, and all that
	// only encoding needs, may go. It may be called again.
	Release()
	// Again returns where a further attempt is to be sent, and how. It is not called
	// for a request that has a line.
	Again() (*upstream.Pool, upstream.Send)
	// Happened tells what has become of an attempt. None of it ends the exchange.
	Happened(e Event, why Conditions)
	// Begins is called when the connection of an attempt has been chosen, before Encode.
	// An error, which may be a *upstream.Refusal, has the attempt fail. Only of a Watched
	// exchange, as Ended.
	Begins(a Attempt) error
	// Ended is called at the end of each attempt, also where Begins was not: with its
	// answer, its failure, or neither if nobody wants to know. All that it is given is
	// valid during Ended only.
	Ended(a Attempt, resp *codecs.Metadata, f *upstream.Failure)
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

// Attempt is what is known of one attempt.
type Attempt struct {
	// Number from 1.
	Number int
	// Hedge: it is made beside another one.
	Hedge bool
	// Host is the address of the server, "" if there is none, or that is unknown.
	Host string
	// Sent is when it was handed to a connection, 0 if it was not.
	Sent time.Duration
}

// Event is what an Owner is told of beside the end.
type Event uint8

const (
	// Retried: a further attempt is made, as the one before has failed.
	Retried Event = iota
	// RetrySucceeded: an answer that needs no retry came after one.
	RetrySucceeded
	// RetryLimit: a further one would be made, were there not as many as are allowed.
	RetryLimit
	// RetryOverflow: the budget of the cluster has allowed none.
	RetryOverflow
	// PerTryTimeout: an attempt has taken too long.
	PerTryTimeout
	// Hedged: a second attempt is made while the first goes on.
	Hedged
	// HedgeWon: its answer came first.
	HedgeWon
)

// Expects is what is known of the answer to a request.
type Expects uint8

const (
	// NoAnswer: there is none, or the request may not be repeated for another reason.
	NoAnswer Expects = iota
	// PerhapsAnAnswer: only an answer shows that there is one. A further attempt needs
	// one that says that the request has failed.
	PerhapsAnAnswer
	// AnAnswer: there is one for sure.
	AnAnswer
)

// Env is what the exchanges of a worker have in common.
type Env struct {
	timers *timer.Wheel
	now    func() time.Duration
	rand   *rand.Rand

	free []*plan
	kept int // bytes of frames that may be needed again
}

// NewEnv returns that of a worker.
func NewEnv(timers *timer.Wheel, now func() time.Duration, rng *rand.Rand) *Env {
	return &Env{timers: timers, now: now, rand: rng}
}

// Exchange is one request on its way to one outcome. It is embedded in the message
// that owns it and used again and again.
type Exchange struct {
	// Watched: the owner hears of each attempt.
	Watched bool

	owner    Owner
	env      *Env
	first    attempt // by value: most requests need no other
	plan     *plan   // for further ones; nil: there is none
	attempts int
	hosts    []string // of attempts that were sent, of a request with a plan
	won      won
}

// won is what is told of a second attempt whose answer came first.
type won struct {
	host   string
	server *host.Server
	sent   time.Duration
}

// Init binds x to its owner for good.
func (x *Exchange) Init(o Owner, env *Env) {
	x.owner, x.env = o, env
	x.first.x = x
	x.first.call.Init(&x.first)
}

// Start sends the request to the pool p. policy, which may be nil, says what else may
// be done, as far as what the request expects allows it; repeatable, that the owner may
// want it repeated. The owner may hear of its end before Start returns.
func (x *Exchange) Start(p *upstream.Pool, s *upstream.Send, policy *Policy, expects Expects, repeatable bool) {
	x.first.begin()
	if policy == nil && repeatable {
		policy = &unplanned
	}
	if policy != nil {
		s.Timeout = x.devise(p, s, policy, expects, repeatable)
	}
	p.Send(&x.first.call, s)
}

// Cancel ends the exchange, if it has not ended, as nobody wants its outcome any
// more: the owner hears no more of it.
func (x *Exchange) Cancel() {
	x.first.call.Cancel()
	x.settle()
	x.first.end(nil, nil)
}

// Abandon is called when nobody wants the answer any more, but the request is to be
// delivered: no attempt is made once a server may have got it.
func (x *Exchange) Abandon() {
	if x.plan != nil {
		x.plan.may = false
	}
}

// Keeps reports whether the request, which has been answered, is kept for [Exchange.Repeat].
func (x *Exchange) Keeps() bool { return x.plan != nil && x.plan.keeps && x.plan.kept > 0 }

// Repeat makes a further attempt, as the owner does not want the answer that it has got,
// and reports whether it does: if not, the owner has that answer still. If it does, the
// exchange goes on, with the frame that the owner has been told to keep.
func (x *Exchange) Repeat() bool {
	if !x.Keeps() {
		return false
	}
	pl := x.plan
	pl.retried = false // it needed another
	a := &x.first
	if x.won.sent != 0 {
		a = &pl.second
	}
	if !pl.again(a, OnDemand) {
		return false
	}
	x.won, pl.hedged = won{}, false
	return true
}

// Call returns the call of the first attempt: the one that a stream, once it is open,
// goes on with.
func (x *Exchange) Call() *upstream.Call { return &x.first.call }

// Host returns the address of the server that the attempt that counts was sent to, ""
// if it was sent to none, or that is unknown; at is when, on the worker's clock.
func (x *Exchange) Host() (host string, at time.Duration) {
	if x.won.sent != 0 {
		return x.won.host, x.won.sent
	}
	return x.first.call.Host(), x.first.call.SentAt()
}

// Hosts returns the addresses of the servers that attempts were sent to, in their order,
// if there could be more than one. It is valid until Reset.
func (x *Exchange) Hosts() []string { return x.hosts }

// Server returns what is known of that server beside its address, nil if nothing.
func (x *Exchange) Server() *host.Server {
	if x.won.sent != 0 {
		return x.won.server
	}
	return x.first.call.Server()
}

// Waiting reports whether no attempt has been handed to a connection yet.
func (x *Exchange) Waiting() bool {
	if pl := x.plan; pl != nil {
		return !pl.written && (x.first.call.Waiting() || pl.wait.Running())
	}
	return x.first.call.Waiting()
}

// Attempts returns how many attempts have been made since Start.
func (x *Exchange) Attempts() int { return x.attempts }

// Over tells the owner what it has not heard of yet, as the request ends: how the answer
// came about, and that attempts have ended which have an open stream.
func (x *Exchange) Over() {
	if x.plan != nil {
		x.plan.tell()
	}
	x.first.end(nil, nil)
}

// Reset prepares x for the next request.
func (x *Exchange) Reset() {
	x.settle()
	clear(x.hosts)
	x.attempts, x.hosts, x.won, x.Watched = 0, x.hosts[:0], won{}, false
}

// settle ends the plan, and the attempts that are under way because of it.
func (x *Exchange) settle() {
	if pl := x.plan; pl != nil {
		x.plan = nil
		pl.end()
	}
}

// attempt is one call on behalf of an exchange. It implements upstream.Owner.
type attempt struct {
	x      *Exchange
	call   upstream.Call
	number int
	open   bool // the owner is to hear of its end
}

// begin is called before the attempt is sent to a pool.
func (a *attempt) begin() {
	x := a.x
	x.attempts++
	a.number, a.open = x.attempts, x.Watched
}

// end tells of the attempt's end, once.
func (a *attempt) end(resp *codecs.Metadata, f *upstream.Failure) {
	if a.open {
		a.ended(resp, f)
	}
}

func (a *attempt) ended(resp *codecs.Metadata, f *upstream.Failure) {
	a.open = false
	a.x.owner.Ended(a.known(), resp, f)
}

func (a *attempt) known() Attempt {
	return Attempt{Number: a.number, Hedge: a != &a.x.first, Host: a.call.Host(), Sent: a.call.SentAt()}
}

func (a *attempt) Hold()                     { a.x.owner.Hold() }
func (a *attempt) Request() *codecs.Metadata { return a.x.owner.Request() }

func (a *attempt) Encode(dst []byte, id uint64) ([]byte, error) {
	x := a.x
	if a.open {
		if err := x.owner.Begins(a.known()); err != nil {
			return dst, err
		}
	}
	if x.plan != nil {
		return x.plan.encode(a, dst, id)
	}
	b, err := x.owner.Encode(dst, id, 0, 0)
	if err == nil {
		x.owner.Release()
	}
	return b, err
}

func (a *attempt) Sent() {
	a.end(nil, nil)
	a.x.settle()
	a.x.owner.Sent()
}

func (a *attempt) Answered(resp *codecs.Metadata) {
	a.end(resp, nil)
	x := a.x
	if pl := x.plan; pl != nil {
		if pl.declines(a, resp) {
			return
		}
		if x.Keeps() {
			pl.rest(a)
		} else {
			pl.tell()
			x.settle()
		}
	}
	x.owner.Answered(resp)
}

func (a *attempt) Failed(f *upstream.Failure) {
	a.end(nil, f)
	x := a.x
	if x.plan != nil && x.plan.failed(a, f) || x.plan == nil && x.rescue(f) {
		return
	}
	x.settle()
	x.owner.Failed(f)
}

func (a *attempt) Streamed(m *codecs.Metadata) { a.x.owner.Streamed(m) }
func (a *attempt) Blocked(blocked bool)        { a.x.owner.Blocked(blocked) }
