package dubbo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
)

var (
	errCompressed = errors.New("the protocol has no compression of its own")
	errReferences = errors.New("its attachments may refer to what stands before them")
	errBehind     = errors.New("unknown bytes behind its value")
	errLarge      = errors.New("it would become larger than the limits")
)

// Payload implements codecs.Payloader: of a call the arguments, of an answer the value or
// the exception, none of null.
func (c *codec) Payload(m *codecs.Metadata) (p codecs.Payload, err error) {
	switch {
	case m.Malformed != "":
		return p, codecs.NoPayload("%s", m.Malformed)
	case m.Type != codecs.Request && m.Type != codecs.Oneway && m.Type != codecs.Response:
		return p, codecs.NoPayload("a %s has none", m.Type)
	case m.Scratch[scratchSerial] != hessian2:
		return p, codecs.NoPayload("its serialization is %d", m.Scratch[scratchSerial])
	}
	var r hessian.Reader
	body := m.Raw[headerSize:]
	r.Reset(body)
	var from, to int
	if m.Type == codecs.Response {
		kind := r.Int()
		from = r.Pos()
		if kind%withExceptionAndAttachments != withNull {
			r.Skip()
		}
		to = r.Pos()
	} else {
		seekArguments(&r)
		from, to = r.Pos(), int(m.Scratch[scratchAttachments])-headerSize
	}
	if r.Err() != nil {
		return p, codecs.NoPayload("%w", r.Err())
	}
	return codecs.Payload{Bytes: body[from:to:to]}, nil
}

// seekArguments moves r from the start of a request's body to its arguments, and returns
// how many they are.
func seekArguments(r *hessian.Reader) (n int) {
	var c opening
	c.read(r)
	return c.types
}

// replaceArguments appends m up to its attachments with other arguments, and makes r
// stand at those.
func replaceArguments(dst []byte, r *hessian.Reader, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	p, _ := mut.Payload()
	n := seekArguments(r)
	switch {
	case p.Text:
		return dst, errors.New("a text is no argument")
	case p.Compression != 0:
		return dst, errCompressed
	}
	if err := values(p.Bytes, n); err != nil {
		return dst, err
	}
	from, to := headerSize+r.Pos(), int(m.Scratch[scratchAttachments])
	dst = append(dst, m.Raw[:from]...)
	dst = append(dst, p.Bytes...)
	if bytes.Equal(p.Bytes, m.Raw[from:to]) {
		seekAttachments(r, m)
		return dst, nil
	}
	r.Seek(to - headerSize)
	return dst, standAlone(r)
}

// replaceValue appends m, an answer of some kind, up to its attachments, at which r
// stands, with another value, or another exception. The old one is at offset at of the
// body.
func replaceValue(dst []byte, r *hessian.Reader, m *codecs.Metadata, mut *codecs.Mutation, kind int32, at int) ([]byte, error) {
	p, _ := mut.Payload()
	switch {
	case p.Compression != 0:
		return dst, errCompressed
	case kind%withExceptionAndAttachments != withException:
	case p.Text || len(p.Bytes) == 0:
		return dst, errors.New("the answer is an exception, and another one must be given")
	}
	if kind < withExceptionAndAttachments && !noAttachments(r) {
		return dst, errBehind
	}
	attached := kind >= withExceptionAndAttachments
	if attached && (p.Text || !bytes.Equal(p.Bytes, m.Raw[headerSize+at:headerSize+r.Pos()])) {
		if err := standAlone(r); err != nil {
			return dst, err
		}
	}
	switch kind % withExceptionAndAttachments {
	case withValue, withNull:
		if kind = withValue; len(p.Bytes) == 0 && !p.Text {
			kind = withNull
		}
	default:
		kind = withException
	}
	if attached || len(mut.Entries()) > 0 {
		kind += withExceptionAndAttachments
	}
	dst = append(dst, m.Raw[:headerSize]...)
	return appendValue(append(dst, 0x90+byte(kind)), p)
}

// appendValue appends the value that p is.
func appendValue(dst []byte, p codecs.Payload) ([]byte, error) {
	switch {
	case p.Text && !utf8.Valid(p.Bytes):
		return dst, errors.New("the text is not UTF-8")
	case p.Text:
		return hessian.AppendString(dst, string(p.Bytes)), nil
	case len(p.Bytes) == 0:
		return dst, nil
	}
	return append(dst, p.Bytes...), values(p.Bytes, 1)
}

// values says what is wrong with b, which should be n values of Hessian: whoever reads
// what comes behind them would look in another place.
func values(b []byte, n int) error {
	var r hessian.Reader
	r.Reset(b)
	for range n {
		r.Skip()
	}
	switch {
	case r.Err() != nil:
		return fmt.Errorf("the new payload: %w", r.Err())
	case r.More():
		return fmt.Errorf("the new payload has more than %d values", n)
	}
	return nil
}

// standAlone says why the attachments at which r stands, and stays, do not: values in
// Hessian are referred to by their numbers, in which those of other arguments differ.
func standAlone(r *hessian.Reader) error {
	at := r.Pos()
	defer r.Seek(at)
	if noAttachments(r) {
		return nil
	}
	if r.Peek() == 'M' {
		return errReferences // its type may be one
	}
	for r.Open(); r.More() && r.Peek() != 'Z'; {
		if t := r.Peek(); t == 'Q' || !r.Skip() && r.Err() == nil {
			return errReferences
		}
	}
	return r.Err()
}

// EncodeReply implements codecs.Payloader.
func (c *codec) EncodeReply(dst []byte, req *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	p, _ := mut.Payload()
	switch {
	case req.Scratch[scratchSerial] != hessian2:
		return dst, codecs.NoPayload("the serialization of the request is %d", req.Scratch[scratchSerial])
	case p.Compression != 0:
		return dst, codecs.NoPayload("%w", errCompressed)
	case len(mut.Entries()) > maxAttachments:
		return dst, mut.Refuse(errors.New(tooManyAttachments))
	case len(mut.Entries()) > 0 && req.Scratch[scratchAccepts] == 0:
		return dst, mut.Refuse(errors.New("its client reads no attachments of answers"))
	}
	for _, kv := range mut.Entries() {
		if isCall([]byte(kv.Key)) { // a filter's
			return dst, fmt.Errorf("%w: %q belongs to the call itself", codecs.ErrNoMutation, kv.Key)
		}
	}
	kind := byte(withValue)
	if len(p.Bytes) == 0 && !p.Text {
		kind = withNull
	}
	if len(mut.Entries()) > 0 {
		kind += withExceptionAndAttachments
	}
	start := len(dst)
	dst, err := appendValue(append(appendHeader(dst, hessian2, statusOK, req.ID), 0x90+kind), p)
	if err != nil {
		return dst[:start], codecs.NoPayload("%w", err)
	}
	if len(mut.Entries()) > 0 {
		dst = append(dst, 'H')
		for _, kv := range mut.Entries() {
			dst = hessian.AppendString(hessian.AppendString(dst, kv.Key), kv.Value)
		}
		dst = append(dst, 'Z')
	}
	if len(dst)-start > c.maxFrame {
		return dst[:start], mut.Refuse(errLarge)
	}
	binary.BigEndian.PutUint32(dst[start+12:], uint32(len(dst)-start-headerSize))
	return dst, nil
}

// CheckReply implements codecs.Payloader.
func (c *codec) CheckReply(p codecs.Payload) error {
	if p.Compression != 0 {
		return errCompressed
	}
	b, err := appendValue(nil, p)
	if err == nil && headerSize+1+len(b) > c.maxFrame {
		err = errLarge
	}
	return err
}

// accepts reports whether clients that write version read attachments of answers
// (Version.isSupportResponseAttachment): the protocol's 2.0.2 and later. Before, what they
// wrote was the version of their jar; 2.8 is Dubbox's.
func accepts(version []byte) bool {
	if string(version) == "2.0.2" {
		return true
	}
	var v [3]int
	part, digits := 0, 0
	for _, b := range version {
		switch {
		case b == '.' && digits > 0 && part < len(v)-1:
			part, digits = part+1, 0
		case b >= '0' && b <= '9' && digits < 3:
			v[part] = v[part]*10 + int(b-'0')
			digits++
		default:
			return false
		}
	}
	n := v[0]*1_000_000 + v[1]*10_000 + v[2]*100
	return digits > 0 && part == len(v)-1 && n >= 2_000_200 && (n < 2_001_000 || n > 2_060_300) && (n < 2_080_000 || n >= 2_090_000)
}
