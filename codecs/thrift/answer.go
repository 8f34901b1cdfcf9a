package thrift

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// answer is an answer that is being written, in the transport and protocol of its
// request.
type answer struct {
	form         form
	start, inner int // where the frame begins, and the one within a TTHeader
}

// errEntries: whoever reads the header refuses it, or the connection.
var errEntries = errors.New("its header would become larger than the limits")

// open appends what stands before the message: lengths, to be filled in by close, and a
// header with entries.
func (a *answer) open(dst []byte, req *codecs.Metadata, entries []codecs.KeyValue) ([]byte, error) {
	transport := a.form.transport()
	switch {
	case transport == framed:
		dst = append(dst, 0, 0, 0, 0)
	case a.form.hasHeader():
		magic, id := uint32(headerMagic<<16), byte(protocolBinary)
		if transport != header {
			magic = ttheaderMagic << 16
		}
		if a.form.protocol() == compact {
			id = protocolCompact
		}
		if req.Variant&muxed != 0 {
			magic |= outOfOrder
		}
		dst = append(dst, 0, 0, 0, 0)
		dst = binary.BigEndian.AppendUint32(dst, magic)
		dst = binary.BigEndian.AppendUint32(dst, uint32(req.ID))
		at := len(dst)
		dst = append(dst, 0, 0, id, 0) // the size, and no transforms
		w := infoWriter{kitex: transport != header}
		if len(entries) > 0 {
			dst = w.number(append(dst, infoKeyValue), uint64(len(entries)))
			dst = w.entries(dst, entries)
		}
		for (len(dst)-at-2)%wordSize != 0 {
			dst = append(dst, 0)
		}
		size := len(dst) - at - 2
		if size > a.form.maxHeader() || w.tooLong || len(entries) > maxHeaders {
			return dst, errEntries
		}
		binary.BigEndian.PutUint16(dst[at:], uint16(size/wordSize))
	}
	a.inner = len(dst)
	if transport == ttheaderFramed {
		dst = append(dst, 0, 0, 0, 0)
	}
	return dst, nil
}

// head appends the head of the message.
func (a *answer) head(dst []byte, req *codecs.Metadata, kind byte) []byte {
	seqid := uint32(req.ID)
	if req.Scratch[scratchForm]&transformed != 0 {
		seqid = req.Scratch[scratchInnerID]
	}
	_, name := operation(req.ReplyInfo) // servers answer without the service, and clients compare
	switch a.form.protocol() {
	case compact:
		dst = append(dst, compactID, kind<<5|compactVersion)
		dst = binary.AppendUvarint(dst, uint64(seqid))
		return append(binary.AppendUvarint(dst, uint64(len(name))), name...)
	case lax:
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(name)))
		dst = append(append(dst, name...), kind)
	default:
		dst = binary.BigEndian.AppendUint32(dst, binaryVersion|uint32(kind))
		dst = append(binary.BigEndian.AppendUint32(dst, uint32(len(name))), name...)
	}
	return binary.BigEndian.AppendUint32(dst, seqid)
}

// close fills in the lengths of the answer, which ends with dst.
func (a *answer) close(dst []byte) {
	if a.form.transport() == ttheaderFramed {
		binary.BigEndian.PutUint32(dst[a.inner:], uint32(len(dst)-a.inner-4))
	}
	if a.form.transport() != unframed {
		binary.BigEndian.PutUint32(dst[a.start:], uint32(len(dst)-a.start-4))
	}
}

// EncodeReply implements codecs.Payloader: a REPLY, whose payload is the struct of the
// result.
func (c *codec) EncodeReply(dst []byte, req *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	a := answer{start: len(dst), form: form(req.Scratch[scratchForm] & 0xff)}
	if len(mut.Entries()) > 0 && !a.form.hasHeader() {
		return dst, mut.Refuse(fmt.Errorf("%s transport has no headers", transportNames[a.form.transport()]))
	}
	for _, kv := range mut.Entries() {
		if isCall(kv.Key) { // a filter's
			return dst, fmt.Errorf("%w: %q belongs to the call itself", codecs.ErrNoMutation, kv.Key)
		}
	}
	dst, err := a.open(dst, req, mut.Entries())
	if err == nil {
		p, _ := mut.Payload()
		dst, err = appendResult(a.head(dst, req, typeReply), a.form.protocol(), p, c.maxFrame)
	}
	if err == nil && len(dst)-a.start > c.maxFrame {
		err = errLarge
	}
	if err != nil {
		return dst[:a.start], mut.Refuse(err)
	}
	a.close(dst)
	return dst, nil
}
