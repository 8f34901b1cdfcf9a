package trpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// errKey: servers may refuse the whole message.
var errKey = errors.New(faultKey)

// errLimits: whoever reads it next may refuse it, or end the connection.
var errLimits = errors.New("it would become larger than the limits")

// mutateUnary appends the unary frame m with the changes of mut, and with
// its id. What is not changed keeps its bytes and its place.
func (c *codec) mutateUnary(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if m.Malformed != "" {
		return dst, mut.Refuse(errors.New(m.Malformed))
	}
	s := set{Entries: pbwire.Entries{Mutation: mut}, number: responseTransInfo, idAt: int(m.Scratch[scratchID]) - headerSize, id: m.ID}
	if m.Scratch[scratchFlags]&flagRequest != 0 {
		s.number, s.millis = requestTransInfo, uint32(mut.Millis())
	}
	p, replaces := mut.Payload()
	if replaces {
		old, err := c.Payload(m)
		if err == nil && p.Text {
			err = errText
		}
		if err != nil {
			return dst, mut.Refuse(err)
		}
		if s.encoding = responseContentEncoding; s.number == requestTransInfo {
			s.encoding = requestContentEncoding
		}
		s.compression = p.Compression
		s.body = len(p.Bytes) - len(old.Bytes)
	}
	start := len(dst)
	dst = append(dst, m.Raw[:headerSize]...)
	dst, err := s.appendMessage(dst, m.Raw[headerSize:m.HeaderSize])
	old, n := idOf(m)
	if n == 0 && old != m.ID {
		dst = pbwire.AppendVarint(dst, requestID, m.ID)
	}
	if replaces {
		dst = append(dst, p.Bytes...)
		dst = append(dst, m.Raw[m.HeaderSize+len(p.Bytes)-s.body:]...) // the attachment
	} else {
		dst = append(dst, m.Raw[m.HeaderSize:]...)
	}
	if err == nil && (!c.fits(m, n, s.grown, s.body) || int(m.Scratch[scratchEntries])+s.Added > maxEntries) {
		err = errLimits
	}
	if err != nil {
		return dst[:start], mut.Refuse(err)
	}
	complete(dst[start:], m, s.body)
	return dst, nil
}

// mutateInit appends the frame m, if it opens a stream, with the changes of
// mut.
func (c *codec) mutateInit(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	switch {
	case m.Scratch[scratchFlags]&flagRequest == 0 && m.Type == codecs.StreamInit:
		return dst, fmt.Errorf("%w: a server's INIT has no trans_info", codecs.ErrNoMutation)
	case m.Scratch[scratchFlags]&flagRequest == 0:
		return dst, fmt.Errorf("%w: it is a %s", codecs.ErrNoMutation, m.Type)
	case m.Malformed != "":
		return dst, fmt.Errorf("%w: %s", codecs.ErrNoMutation, m.Malformed)
	}
	s := set{Entries: pbwire.Entries{Mutation: mut}, number: metaTransInfo, idAt: -1}
	start := len(dst)
	from := headerSize
	var err error
	var r pbwire.Reader
	for r.Reset(m.Raw[headerSize:]); r.Next(); { // to the end: it has been read before
		if r.Is(initRequestMeta, pbwire.Bytes) {
			var mark int
			dst = append(dst, m.Raw[:headerSize+r.Start]...)
			dst, mark = pbwire.AppendFrame(dst, initRequestMeta)
			dst, err = s.appendMessage(dst, r.Bytes)
			dst = pbwire.CloseFrame(dst, mark)
			from = headerSize + r.End
		}
	}
	dst = append(dst, m.Raw[from:]...)
	if err == nil && (len(dst)-start > c.maxFrame || int(m.Scratch[scratchEntries])+s.Added > maxEntries) {
		err = errLimits
	}
	if err != nil {
		return dst[:start], fmt.Errorf("%w: %w", codecs.ErrNoMutation, err)
	}
	binary.BigEndian.PutUint32(dst[start+atLength:], uint32(len(dst)-start))
	return dst, nil
}

// set changes entries of a message's trans_info, its request id, its timeout, and what is
// said of another body.
type set struct {
	pbwire.Entries
	number      int32 // of trans_info
	idAt        int   // offset of the value of the request id; no field's if there is none
	id          uint64
	millis      uint32 // the timeout; 0: as it is
	encoding    int32  // the field of the content's encoding; 0: it stays
	compression int32  // what that is to be
	grown       int    // by how many bytes, the id apart
	body        int    // by how many bytes the body grows
}

// appendMessage appends the message b, which has been read before, with the changes
// and the id.
func (s *set) appendMessage(dst, b []byte) ([]byte, error) {
	for _, kv := range s.Mutation.Entries() {
		if !utf8.ValidString(kv.Key) { // a filter's
			return dst, errKey
		}
	}
	from, says := 0, false // the timeout
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		switch {
		case s.millis > 0 && r.Is(requestTimeout, pbwire.Varint):
			dst = append(dst, b[from:r.Value]...)
			n := len(dst)
			dst = binary.AppendUvarint(dst, uint64(s.millis))
			s.grown += len(dst) - n - (r.End - r.Value)
			says = true
		case s.encoding > 0 && r.Is(s.encoding, pbwire.Varint):
			dst = append(dst, b[from:r.Start]...)
			s.grown -= r.End - r.Start
		case r.Type == pbwire.Varint && r.Value == s.idAt && uint64(uint32(r.Uint)) != s.id:
			dst = append(dst, b[from:r.Value]...)
			dst = binary.AppendUvarint(dst, s.id)
		case r.Is(s.number, pbwire.Bytes):
			key, _, err := pbwire.Entry(r.Bytes)
			if err == nil && !utf8.Valid(key) { // of an answer
				err = errKey
			}
			if err != nil {
				return dst, err
			}
			if !s.Touches(key) {
				continue
			}
			dst = append(dst, b[from:r.Start]...)
			n := len(dst)
			dst = s.Replace(dst, key, s.number)
			s.grown += len(dst) - n - (r.End - r.Start)
		default:
			continue
		}
		from = r.End
	}
	dst = append(dst, b[from:]...)
	n := len(dst)
	if s.millis > 0 && !says {
		dst = pbwire.AppendVarint(dst, requestTimeout, uint64(s.millis))
	}
	if s.compression != 0 {
		dst = pbwire.AppendVarint(dst, s.encoding, uint64(uint32(s.compression)))
	}
	dst = s.Append(dst, s.number)
	s.grown += len(dst) - n
	return dst, nil
}
