package codectest

import (
	"errors"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// decode has dec decode a copy of b into m, and checks what holds of every call
// of every decoder.
func (c *check) decode(w where, dec codecs.Decoder, m *codecs.Metadata, b []byte) (n int, err error) {
	return c.decodeLent(w, dec, m, c.mem.lend(b), b)
}

// decodeLent does so in memory that was lent, which holds b.
func (c *check) decodeLent(w where, dec codecs.Decoder, m *codecs.Metadata, lent, b []byte) (n int, err error) {
	m.Reset()
	c.guard(w, b, func() {
		n, err = dec.Decode(lent, m)
		if err == nil && n <= len(lent) {
			m.Properties() // what a Loader puts
		}
	})
	if !intact(lent, b) {
		c.failf(w, b, "Decode writes to the bytes that it is lent: they are now\n%s", dump(lent[:min(cap(lent), len(lent)+room)]))
	}
	if err != nil {
		c.refusal(w, dec, m, b, err)
		return n, err
	}
	switch {
	case n <= 0:
		c.failf(w, b, "Decode returns a length of %d%s", n, howToAsk(n, b))
	case n > len(b):
	case n == len(b) && len(m.Raw) == 0:
		c.failf(w, b, "Decode takes all %d bytes for a frame, but there is no Raw%s", n, howToAsk(n, b))
	case len(m.Raw) != n || &m.Raw[0] != &lent[0]:
		c.failf(w, b, "Raw is not the first %d bytes of what Decode was given, but %d others", n, len(m.Raw))
	case m.HeaderSize < 0 || m.BodySize < 0 || m.HeaderSize+m.BodySize != n:
		c.failf(w, b, "HeaderSize %d and BodySize %d are not together the length of %d", m.HeaderSize, m.BodySize, n)
	default:
		c.sane(w, b, m)
	}
	return n, nil
}

// howToAsk is said of a length that may be meant to ask for more than b.
func howToAsk(n int, b []byte) string {
	if n > 0 && n != len(b) {
		return ""
	}
	return " (to ask for more it returns more than it was given)"
}

// sane checks what holds of every message.
func (c *check) sane(w where, b []byte, m *codecs.Metadata) {
	switch {
	case m.Type.String() == "unknown":
		c.failf(w, b, "there is no message type %d", m.Type)
	case m.Type == codecs.Error && m.Status != codecs.StatusError:
		c.failf(w, b, "the message is an error, but its status is %d", m.Status)
	case m.GoesAway && !isAnswer(m.Type):
		c.failf(w, b, "GoesAway is set on a %s, which is no answer", m.Type)
	case m.NotProcessed && m.Type != codecs.Error:
		c.failf(w, b, "NotProcessed is set on a %s, which is no error", m.Type)
	case m.MayClose && m.Type != codecs.Error:
		c.failf(w, b, "MayClose is set on a %s, which is no error", m.Type)
	case m.Failure > codecs.Overloaded:
		c.failf(w, b, "there is no class of failure %d", m.Failure)
	case m.Failure != codecs.NoFailure && (!isAnswer(m.Type) || m.Status != codecs.StatusError):
		c.failf(w, b, "Failure is %q, but it is a %s of status %d", m.Failure, m.Type, m.Status)
	case m.NotProcessed && m.Failure != codecs.Refused:
		c.failf(w, b, "NotProcessed is set, but Failure is %q", m.Failure)
	case m.Code != 0 && !isAnswer(m.Type):
		c.failf(w, b, "Code is set on a %s, which is no answer", m.Type)
	case m.Retried && !mayLease(m.Type):
		c.failf(w, b, "Retried is set on a %s, which is no request", m.Type)
	case m.Silent && !isAnswer(m.Type):
		c.failf(w, b, "Silent is set on a %s, which is no answer", m.Type)
	case m.Lease > codecs.LeaseEnds:
		c.failf(w, b, "there is no lease %d", m.Lease)
	case m.Lease != codecs.NotLeased && !mayLease(m.Type):
		c.failf(w, b, "Lease is set on a %s, which is no request", m.Type)
	}
}

// refusal checks the error of a Decode.
func (c *check) refusal(w where, dec codecs.Decoder, m *codecs.Metadata, b []byte, err error) {
	var fault *codecs.ProtocolError
	var large *codecs.TooLarge
	_, ofAnswers := dec.(*answers)
	switch {
	case ofAnswers && errors.Is(err, codecs.ErrUnanswered):
	case errors.As(err, &large):
		c.sane(w, b, m)
		switch {
		case large.Limit <= 0 || large.Size <= large.Limit:
			c.failf(w, b, "it is said to be too large, but it is not: %v", err)
		case m.Raw != nil || len(m.Properties()) > 0 || len(m.AppendOperation(nil)) > 0 && (!isAnswer(m.Type) || !c.traits.HiddenOneway):
			c.failf(w, b, "it is too large, but has a Raw, an operation or properties")
		}
	case !errors.As(err, &fault):
		c.failf(w, b, "the error is no *codecs.ProtocolError nor *codecs.TooLarge but a %T: %v", err, err)
	case fault.Protocol == "" || fault.Reason == "":
		c.failf(w, b, "the error does not say its protocol and reason: %v", err)
	case fault.Offset < 0 || fault.Offset > len(b):
		c.failf(w, b, "the fault is said to be at offset %d of %d bytes: %v", fault.Offset, len(b), err)
	}
}

// mayLease tells the types of messages that are sent upstream and no streams.
func mayLease(t codecs.MessageType) bool {
	return t == codecs.Request || t == codecs.Oneway || reserved(t)
}

func isStream(t codecs.MessageType) bool {
	return t >= codecs.StreamInit && t <= codecs.StreamCloseTwoWay
}

// whole decodes b, which is a whole frame and perhaps more, and fails if Decode
// finds another length than n.
func (c *check) whole(w where, dec codecs.Decoder, m *codecs.Metadata, b []byte, n int) {
	c.wholeLent(w, dec, m, c.mem.lend(b), b, n)
}

// wholeLent does so in memory that was lent, which holds b.
func (c *check) wholeLent(w where, dec codecs.Decoder, m *codecs.Metadata, lent, b []byte, n int) {
	got, err := c.decodeLent(w, dec, m, lent, b)
	switch {
	case err != nil:
		c.failf(w, b, "the frame is refused: %v", err)
	case got > len(b):
		c.failf(w, b, "Decode asks for %d bytes, but the frame is whole with %d of %d", got, n, len(b))
	case got != n:
		c.failf(w, b, "the frame has %d bytes, Decode takes %d", n, got)
	}
}

func tooLarge(err error) bool {
	var large *codecs.TooLarge
	return errors.As(err, &large)
}

// reads decodes b, which the method by has written, as a connection of its own that
// holds one frame and nothing else, as of a reply to one of requests, if there are any.
func (c *check) reads(w where, by string, d codecs.Direction, m *codecs.Metadata, b []byte, requests ...*codecs.Metadata) {
	if len(b) == 0 {
		c.failf(w, b, "nothing was encoded")
	}
	n, err := c.decode(w, answering(c.codec.NewDecoder(d), d, requests), m, b)
	switch {
	case err != nil:
		c.failf(w, b, "the frame is refused: %v", err)
	case n > len(b):
		c.failf(w, b, "Decode asks for %d bytes, but %s wrote %d", n, by, len(b))
	case n < len(b):
		hint := ""
		if takesText := by == "EncodeError" || by == "EncodeReset"; takesText && (b[n-1] == '\n' || b[n-1] == '\r') {
			hint = ": is there a line break of the text in it?"
		}
		c.failf(w, b, "%s wrote %d bytes, of which Decode takes %d for the frame%s", by, len(b), n, hint)
	}
}
