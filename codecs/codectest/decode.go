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
		c.protocolError(w, b, err)
		return n, err
	}
	switch {
	case n <= 0:
		c.failf(w, b, "Decode returns a length of %d", n)
	case n > len(b):
	case len(m.Raw) != n || &m.Raw[0] != &lent[0]:
		c.failf(w, b, "Raw is not the first %d bytes of what Decode was given, but %d others", n, len(m.Raw))
	case m.HeaderSize < 0 || m.BodySize < 0 || m.HeaderSize+m.BodySize != n:
		c.failf(w, b, "HeaderSize %d and BodySize %d are not together the length of %d", m.HeaderSize, m.BodySize, n)
	case m.Type.String() == "unknown":
		c.failf(w, b, "there is no message type %d", m.Type)
	case m.Type == codecs.Error && m.Status != codecs.StatusError:
		c.failf(w, b, "the message is an error, but its status is %d", m.Status)
	}
	return n, nil
}

func (c *check) protocolError(w where, b []byte, err error) {
	var fault *codecs.ProtocolError
	switch {
	case isTooLarge(err):
	case !errors.As(err, &fault):
		c.failf(w, b, "the error is no *codecs.ProtocolError but a %T: %v", err, err)
	case fault.Protocol == "" || fault.Reason == "":
		c.failf(w, b, "the error does not say its protocol and reason: %v", err)
	case fault.Offset < 0 || fault.Offset > len(b):
		c.failf(w, b, "the fault is said to be at offset %d of %d bytes: %v", fault.Offset, len(b), err)
	}
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

// reads decodes b as a connection of its own that holds one frame and nothing
// else, as of a reply.
func (c *check) reads(w where, d codecs.Direction, m *codecs.Metadata, b []byte) {
	if len(b) == 0 {
		c.failf(w, b, "nothing was encoded")
	}
	c.whole(w, c.codec.NewDecoder(d), m, b, len(b))
}
