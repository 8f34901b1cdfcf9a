package trpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// errText: content is whatever its content_type says.
var errText = errors.New("tRPC has no values of its own that a text could be")

// Payload implements codecs.Payloader: the body without the attachment at its end; its
// compression is content_encoding.
func (c *codec) Payload(m *codecs.Metadata) (p codecs.Payload, err error) {
	switch {
	case m.Malformed != "":
		return p, codecs.NoPayload("%s", m.Malformed)
	case m.Type == codecs.StreamData && m.Raw[atStreamType] == streamData:
		return codecs.Payload{Bytes: m.Raw[headerSize:]}, nil
	case m.Type != codecs.Request && m.Type != codecs.Oneway && m.Type != codecs.Response:
		return p, codecs.NoPayload("a %s has none", m.Type)
	}
	encoding, attachment := int32(responseContentEncoding), int32(responseAttachmentSize)
	if m.Type != codecs.Response {
		encoding, attachment = requestContentEncoding, requestAttachmentSize
	}
	end := len(m.Raw)
	var r pbwire.Reader
	for r.Reset(m.Raw[headerSize:m.HeaderSize]); r.Next(); { // to the end: it has been read before
		switch {
		case r.Is(encoding, pbwire.Varint):
			p.Compression = pbwire.Int32(r.Uint)
		case r.Is(attachment, pbwire.Varint):
			end = len(m.Raw) - int(uint32(r.Uint)) // which Decode has found to be that long
		}
	}
	p.Bytes = m.Raw[m.HeaderSize:max(end, m.HeaderSize):max(end, m.HeaderSize)]
	return p, nil
}

// EncodeReply implements codecs.Payloader: with the content_type of the request.
func (c *codec) EncodeReply(dst []byte, req *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	p, _ := mut.Payload()
	switch {
	case req.Type == codecs.StreamInit:
		return dst, codecs.NoPayload("a stream is not answered by one message")
	case p.Text:
		return dst, codecs.NoPayload("%w", errText)
	}
	for _, kv := range mut.Entries() {
		if !utf8.ValidString(kv.Key) {
			return dst, fmt.Errorf("%w: %w", codecs.ErrNoMutation, errKey)
		}
	}
	start := len(dst)
	dst = appendAnswer(dst, req, func(dst []byte) []byte { return dst }, p.Compression)
	entries := pbwire.Entries{Mutation: mut}
	dst = entries.Append(dst, responseTransInfo)
	header := len(dst) - start - headerSize
	dst = append(dst, p.Bytes...)
	if header > maxHeader || entries.Added > maxEntries || len(dst)-start > c.maxFrame {
		return dst[:start], mut.Refuse(errLimits)
	}
	closeAnswer(dst[start:], header)
	return dst, nil
}

// appendAnswer appends the header of the answer to a unary request, with what servers
// repeat of that, and what told appends of its outcome.
func appendAnswer(dst []byte, req *codecs.Metadata, told func(dst []byte) []byte, encoding int32) []byte {
	var fixed uint32
	if req.Scratch[scratchFlags]&flagFixedID != 0 {
		fixed = uint32(req.ID)
	}
	dst = appendFixed(dst, typeUnary, 0, fixed, req.Scratch[scratchVersion])
	number := func(number int32, v uint32) {
		if v != 0 {
			dst = pbwire.AppendVarint(dst, number, uint64(v))
		}
	}
	number(responseCallType, req.Scratch[scratchCallType])
	dst = pbwire.AppendVarint(dst, responseID, req.ID)
	dst = told(dst)
	number(responseMessageType, req.Scratch[scratchMessageType])
	number(responseContentType, req.Scratch[scratchContentType])
	number(responseContentEncoding, uint32(encoding))
	return dst
}

// closeAnswer writes the lengths into frame.
func closeAnswer(frame []byte, header int) {
	binary.BigEndian.PutUint32(frame[atLength:], uint32(len(frame)))
	binary.BigEndian.PutUint16(frame[atHeaderLength:], uint16(header))
}

// CheckReply implements codecs.Payloader.
func (c *codec) CheckReply(p codecs.Payload) error {
	switch {
	case p.Text:
		return errText
	case headerSize+len(p.Bytes) > c.maxFrame:
		return errLimits
	}
	return nil
}
