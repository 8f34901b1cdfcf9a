package brpc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// errText: a payload is a message of a schema that is not known.
var errText = errors.New("bRPC has no values of its own that a text could be")

// errReply: the client may refuse it, or end the connection.
var errReply = errors.New("it is larger than the limits")

// Payload implements codecs.Payloader: what is behind the meta without the attachment at
// its end; its compression is compress_type.
func (c *codec) Payload(m *codecs.Metadata) (p codecs.Payload, err error) {
	switch {
	case m.Malformed != "":
		return p, codecs.NoPayload("%s", m.Malformed)
	case m.Type == codecs.StreamData:
		return codecs.Payload{Bytes: m.Raw[m.HeaderSize:]}, nil
	case !carriesID(m.Type) || m.Type == codecs.Error:
		return p, codecs.NoPayload("a %s has none", m.Type)
	}
	from, end := m.Scratch[scratchRPC]+headerSize, m.Scratch[scratchMetaEnd]
	var meta rpcMeta
	_ = meta.read(m.Raw[from:end]) // it has been read before without a fault
	rest := m.Raw[end:]
	n := len(rest) - int(meta.attachmentSize)
	if n < 0 || n > len(rest) {
		return p, codecs.NoPayload("its attachment_size is %d, of %d bytes", meta.attachmentSize, len(rest))
	}
	return codecs.Payload{Bytes: rest[:n:n], Compression: meta.compressType}, nil
}

// isOfPayload reports whether a field of the meta tells how the payload is to be read,
// which another one has none of, or its own.
func isOfPayload(number int32) bool {
	return number == fieldCompressType || number == fieldChecksumType || number == fieldChecksum
}

// EncodeReply implements codecs.Payloader: without an attachment.
func (c *codec) EncodeReply(dst []byte, req *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	p, _ := mut.Payload()
	switch {
	case req.Type == codecs.StreamInit:
		return dst, codecs.NoPayload("a stream is not answered by one message")
	case p.Text:
		return dst, codecs.NoPayload("%w", errText)
	}
	for _, kv := range mut.Entries() {
		if own.Has([]byte(kv.Key)) { // a filter's
			return dst, fmt.Errorf("%w: %q belongs to the call itself", codecs.ErrNoMutation, kv.Key)
		}
	}
	start := len(dst)
	dst = appendHead(dst)
	dst, mark := pbwire.AppendFrame(dst, fieldResponse)
	dst = pbwire.AppendVarint(dst, responseErrorCode, 0) // as servers write it
	dst = pbwire.CloseFrame(dst, mark)
	if p.Compression != 0 {
		dst = pbwire.AppendVarint(dst, fieldCompressType, uint64(p.Compression))
	}
	dst = pbwire.AppendVarint(dst, fieldCorrelationID, req.ID)
	entries := pbwire.Entries{Mutation: mut}
	dst = entries.Append(dst, fieldUserFields)
	meta := len(dst) - start - headerSize
	dst = append(dst, p.Bytes...)
	if meta > maxMeta || entries.Added > maxFields || len(dst)-start > c.maxFrame {
		return dst[:start], mut.Refuse(errReply)
	}
	closeHead(dst[start:], meta)
	return dst, nil
}

// appendHead appends the header of a message without its lengths, which closeHead writes.
func appendHead(dst []byte) []byte { return append(append(dst, magicRPC...), 0, 0, 0, 0, 0, 0, 0, 0) }

func closeHead(frame []byte, meta int) {
	binary.BigEndian.PutUint32(frame[atBodySize:], uint32(len(frame)-headerSize))
	binary.BigEndian.PutUint32(frame[atMetaSize:], uint32(meta))
}

// CheckReply implements codecs.Payloader.
func (c *codec) CheckReply(p codecs.Payload) error {
	switch {
	case p.Text:
		return errText
	case headerSize+len(p.Bytes) > c.maxFrame:
		return errReply
	}
	return nil
}
