package codecs

import (
	"errors"
	"fmt"
)

// Payload is what a message carries for the application: what a call is given, or what
// it returns.
type Payload struct {
	// Bytes are those of the wire, in the serialization that the message has.
	Bytes []byte
	// Compression is the protocol's own number of how Bytes are compressed; 0: they are
	// not, or the protocol knows nothing of it.
	Compression int32
	// Text says that Bytes are a text in UTF-8, of which an answer's codec makes a value:
	// Dubbo's a string, Thrift's the result of a method that returns one. No message that
	// has been decoded has it.
	Text bool
}

// Payloader is implemented by codecs that know where the payload of a message is.
type Payloader interface {
	// Payload returns that of m, whose Raw is valid: a view. It is asked only if a filter
	// wants to know; Decode does nothing for it. Calls and answers that are no Error have
	// one, and frames with data of a stream. The error wraps [ErrNoPayload].
	Payload(m *Metadata) (Payload, error)
	// EncodeReply appends what a server would answer to req, of which only the scalar
	// fields, Scratch and ReplyInfo are valid: a success with the payload and the entries
	// of mut. Without bytes it is an answer that says nothing: null, void, an empty
	// message. It fails as Encode does: with [ErrNoMutation] if it is for the entries.
	EncodeReply(dst []byte, req *Metadata, mut *Mutation) ([]byte, error)
	// CheckReply tells whether some request can be answered with p, as CheckMutation does
	// for configurations.
	CheckReply(p Payload) error
}

// ErrNoPayload is returned, wrapped, when the payload of a message cannot be read or
// replaced. A message whose payload shall be another does not go out as it is.
var ErrNoPayload = errors.New("the payload cannot be read or changed")

// NoPayload is an ErrNoPayload with a reason.
func NoPayload(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrNoPayload, fmt.Errorf(format, args...))
}

// SetPayload has the message go out with another payload, of which mu keeps a copy. It
// is in the serialization of the message's own.
func (mu *Mutation) SetPayload(p Payload) {
	p.Bytes = append(mu.payload.Bytes[:0], p.Bytes...) // which may be a part of what is there
	mu.payload, mu.replaces = p, true
}

// Payload returns what the payload shall be, a view that ends with the next change; ok is
// false if it stays as it is. A nil Mutation has none.
func (mu *Mutation) Payload() (p Payload, ok bool) {
	if mu == nil || !mu.replaces {
		return Payload{}, false
	}
	return mu.payload, true
}

// Replaces reports whether the payload shall be another. A nil Mutation has none.
func (mu *Mutation) Replaces() bool { return mu != nil && mu.replaces }

// DropPayload forgets the payload, and its memory if it is large.
func (mu *Mutation) DropPayload() {
	b := mu.payload.Bytes[:0]
	if cap(b) > keepBytes {
		b = nil
	}
	mu.payload, mu.replaces = Payload{Bytes: b}, false
}

// Refuse is what Encode returns when a message cannot carry mu, for the reason why:
// [ErrNoMutation], as it may go out without some of the entries, or [ErrNoPayload] if there
// are none.
func (mu *Mutation) Refuse(why error) error {
	if mu.Replaces() && !mu.ChangesAttributes() {
		if errors.Is(why, ErrNoPayload) {
			return why
		}
		return fmt.Errorf("%w: %w", ErrNoPayload, why)
	}
	return fmt.Errorf("%w: %w", ErrNoMutation, why)
}
