package thrift

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/meltemi-mesh/meltemi/codecs"
)

var (
	errNoCompression = errors.New("what header transports compress is the message, not its payload")
	errText          = errors.New("a text is no argument")
	errUTF8          = errors.New("the text is not UTF-8")
)

// Payload implements codecs.Payloader: the struct of the arguments, or of the result, in
// which field 0 is the value and others are declared exceptions. It is in the binary or
// the compact protocol, as the message is.
func (c *codec) Payload(m *codecs.Metadata) (p codecs.Payload, err error) {
	switch {
	case m.Malformed != "":
		return p, codecs.NoPayload("%s", m.Malformed)
	case m.Type != codecs.Request && m.Type != codecs.Oneway && m.Type != codecs.Response:
		return p, codecs.NoPayload("a %s has none", m.Type)
	case m.Scratch[scratchForm]&transformed != 0:
		return p, codecs.NoPayload("the message is compressed")
	}
	return codecs.Payload{Bytes: m.Raw[m.HeaderSize:len(m.Raw):len(m.Raw)]}, nil
}

// replace puts another payload in the place of that with which dst ends. The frame of m
// begins at start, and its message is by shift bytes further behind than in m.Raw.
func (c *codec) replace(dst []byte, start, shift int, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	old, err := c.Payload(m)
	if err != nil {
		return dst, err
	}
	f := form(m.Scratch[scratchForm] & 0xff)
	p, _ := mut.Payload()
	at := len(dst) - len(old.Bytes)
	if p.Text && m.Type != codecs.Response {
		return dst, errText
	}
	dst, err = appendResult(dst[:at], f.protocol(), p, c.maxFrame)
	if err == nil && len(dst)-start+room(m) > c.maxFrame {
		err = errLarge
	}
	if err != nil {
		return dst, err
	}
	more := len(dst) - at - len(old.Bytes)
	if f.transport() != unframed {
		addTo(dst[start:], more)
	}
	if inner := m.Scratch[scratchInner]; inner != 0 {
		addTo(dst[start+shift+int(inner):], more)
	}
	return dst, nil
}

// appendResult appends the struct that p is: whoever reads an unframed message finds its
// end by that.
func appendResult(dst []byte, protocol int, p codecs.Payload, limit int) ([]byte, error) {
	switch {
	case p.Compression != 0:
		return dst, errNoCompression
	case p.Text && !utf8.Valid(p.Bytes):
		return dst, errUTF8
	case p.Text && protocol == compact:
		dst = append(dst, cmpBinary, 0) // the field's type and its id, 0
		dst = append(binary.AppendUvarint(dst, uint64(len(p.Bytes))), p.Bytes...)
		return append(dst, 0), nil
	case p.Text:
		dst = append(dst, binString, 0, 0)
		dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(p.Bytes))), p.Bytes...)
		return append(dst, 0), nil
	case len(p.Bytes) == 0:
		return append(dst, 0), nil
	}
	return append(dst, p.Bytes...), isStruct(p.Bytes, protocol, limit)
}

// isStruct says why b is not one struct and nothing else.
func isStruct(b []byte, protocol, limit int) error {
	var all [maxDepth]level
	s := skipper{stack: all[:]}
	s.start(protocol == compact, 0, limit, maxValues)
	switch need, err := s.run(b); {
	case err != nil:
		return fmt.Errorf("the new payload: %w", err)
	case need > 0 || s.pos < len(b):
		return fmt.Errorf("the new payload is not one struct of the %s protocol", protocolNames[protocol])
	}
	return nil
}

// CheckReply implements codecs.Payloader: a struct in one of the protocols.
func (c *codec) CheckReply(p codecs.Payload) error {
	_, err := appendResult(nil, strict, p, c.maxFrame)
	if err != nil {
		if _, e := appendResult(nil, compact, p, c.maxFrame); e == nil {
			err = nil
		}
	}
	if err == nil && len(p.Bytes)+maxHead > c.maxFrame {
		err = errLarge
	}
	return err
}
