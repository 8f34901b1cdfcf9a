package filter

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/forward"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// AttemptFilter is a Filter that also sees each attempt to have a message served which
// its OnRequest has seen: the first one, retries, and second ones beside those that go
// on. Copies for mirrors are none. Its hooks run when the message is under way: what they
// return elsewhere (Reply, Answer, Repeat, Forward) does nothing there.
type AttemptFilter interface {
	Filter
	// OnAttempt is called when the connection of an attempt has been chosen, before the
	// request is written, in the order of the chain. Where order or a lease decides, the
	// connection is the one of the requests before. a ends with the hook.
	OnAttempt(m *Message, a *Attempt)
	// OnAttemptEnd is called when an attempt has ended, before it is decided whether
	// there is another, in the reverse order of the chain: also where OnAttempt was not,
	// as there was no connection. a ends with the hook.
	OnAttemptEnd(m *Message, a *Attempt)
}

// Attempt is one attempt to have a message served.
type Attempt struct {
	// Number among the attempts of the message, from 1.
	Number int
	// Hedge: it is made beside another one that goes on.
	Hedge bool
	// Host is the address of the server, "" if there was no connection. It is what Envoy
	// tells of the connection, the original destination included.
	Host string
	// Sent is when it was handed to the connection, on the clock of [Message.Now]; 0 in
	// OnAttempt, and if it was not.
	Sent time.Duration
	// Response is its answer, nil if there is none. It is that of the message unless there
	// is another attempt.
	Response *codecs.Metadata
	// Failure is why it has failed, nil if it has not. Without a Response, too, it was
	// handed over and that is all (a oneway), or nobody wants its answer any more, or a
	// stream has ended.
	Failure *codecs.LocalError

	changes *codecs.Mutation
	refusal *upstream.Refusal
}

// Mutate returns the changes that will be made to the request in this attempt: those of
// the message, and what is added here. Only in OnAttempt.
func (a *Attempt) Mutate() *codecs.Mutation { return a.changes }

// Refuse has the attempt not be sent to its host. It fails as if that could not be reached
// ([codecs.ConnectFailure]): unless it could be nowhere else, there is another one once,
// which prefers other hosts, and then as the route's retry policy says. Filters behind do
// not see it. Only in OnAttempt.
func (a *Attempt) Refuse(reason string) {
	a.refusal = &upstream.Refusal{Type: codecs.ConnectFailure, Reason: reason}
}

// Begins implements forward.Owner.
func (o *caller) Begins(n forward.Attempt) error {
	m := (*Message)(o)
	a := &m.sh.attempt
	*a = Attempt{Number: n.Number, Hedge: n.Hedge, Host: n.Host, changes: &m.sh.attemptMut}
	a.changes.Assign(m.MutateRequest())
	defer m.under(m.pos, m.replied, m.local)
	for i := 0; i < m.seen && a.refusal == nil; i++ {
		if f := m.cfg.chain[i].attempt; f != nil && m.saw(i) {
			m.pos = i
			m.onAttempt(f, a)
		}
	}
	if a.refusal != nil {
		return a.refusal
	}
	return nil
}

// Ended implements forward.Owner.
func (o *caller) Ended(n forward.Attempt, resp *codecs.Metadata, f *upstream.Failure) {
	m := (*Message)(o)
	a := &m.sh.attempt
	*a = Attempt{Number: n.Number, Hedge: n.Hedge, Host: n.Host, Sent: n.Sent, Response: resp}
	if f != nil {
		m.sh.attemptErr = codecs.LocalError{Type: f.Type, Message: f.Reason}
		a.Failure = &m.sh.attemptErr
	}
	defer m.under(m.pos, m.replied, m.local)
	for i := m.seen - 1; i >= 0; i-- {
		if f := m.cfg.chain[i].attempt; f != nil && m.saw(i) {
			m.pos = i
			m.onAttemptEnd(f, a)
		}
	}
}

// inAttempt reports whether a hook of an attempt runs, which decides nothing on the message.
func (m *Message) inAttempt() bool { return m.sh.attempt.Number != 0 }

// under is deferred: behind hooks that decide nothing the message goes on as it was.
func (m *Message) under(pos int, replied bool, local codecs.LocalError) {
	m.pos, m.replied, m.local, m.sh.attempt = pos, replied, local, Attempt{}
}

func (m *Message) onAttempt(f AttemptFilter, a *Attempt) {
	m.spent = 0
	defer func() {
		if r := recover(); r != nil {
			m.panicked(r)
			a.refusal = &upstream.Refusal{Type: codecs.Unspecified, Reason: guard.Text}
		}
	}()
	f.OnAttempt(m, a)
}

func (m *Message) onAttemptEnd(f AttemptFilter, a *Attempt) {
	m.spent = 0
	defer func() {
		if r := recover(); r != nil {
			m.panicked(r)
		}
	}()
	f.OnAttemptEnd(m, a)
}
