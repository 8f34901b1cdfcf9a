package brpc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// mutate appends m with the changes of mut, and with its id. What is not
// changed keeps its bytes and its place.
func (c *codec) mutate(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if !carriesID(m.Type) {
		return dst, mut.Refuse(fmt.Errorf("it is a %s", m.Type))
	}
	if m.Malformed != "" {
		return dst, mut.Refuse(errors.New(m.Malformed))
	}
	p, replaces := mut.Payload()
	attachment, more := int(m.Scratch[scratchMetaEnd]), 0 // where what stays behind the meta begins
	if replaces {
		old, err := c.Payload(m)
		if err == nil && p.Text {
			err = errText
		}
		if err != nil {
			return dst, mut.Refuse(err)
		}
		attachment += len(old.Bytes)
		more = len(p.Bytes) - len(old.Bytes)
	}
	start := len(dst)
	from := int(m.Scratch[scratchRPC]) + headerSize
	end := int(m.Scratch[scratchMetaEnd])
	dst = append(dst, m.Raw[:from]...)
	dst, added, err := appendMeta(dst, m, m.Raw[from:end], mut)
	size := len(dst) - start - from
	dst = append(dst, p.Bytes...)
	dst = append(dst, m.Raw[attachment:]...)
	switch {
	case err != nil:
	case size > maxMeta, len(dst)-start > c.maxFrame, int(m.Scratch[scratchFields])+added > maxFields:
		// Whoever reads it next may refuse it, or end the connection.
		err = errors.New("it would become larger than the limits")
	default:
		resize(dst[start:], m, len(dst)-start-len(m.Raw)-more, more)
		return dst, nil
	}
	return dst[:start], mut.Refuse(err)
}

// appendMeta appends the meta of m with its id set and the changes of mut.
func appendMeta(dst []byte, m *codecs.Metadata, meta []byte, mut *codecs.Mutation) (_ []byte, added int, err error) {
	// brpc reads user fields. brpc-java and jprotobuf read extension fields
	// only, and brpc takes such a field for its request id: there entries are
	// set if the client has used them already.
	user := pbwire.Entries{Mutation: mut}
	said := numbersOf(m, mut)
	idAt := int(m.Scratch[scratchID]) - int(m.Scratch[scratchRPC]) - headerSize
	p, _ := mut.Payload()
	from := 0
	var r pbwire.Reader
	for r.Reset(meta); r.Next(); { // to the end: it has been read before
		switch {
		case mut.Replaces() && isOfPayload(r.Number):
			dst = append(dst, meta[from:r.Start]...)
		case r.Is(fieldCorrelationID, pbwire.Varint) && r.Value == idAt && r.Uint != m.ID:
			dst = append(dst, meta[from:r.Value]...)
			dst = binary.AppendUvarint(dst, m.ID)
		case r.Is(fieldRequest, pbwire.Bytes) && (m.Scratch[scratchExtFields] > 0 || said != numbers{}):
			dst = append(dst, meta[from:r.Start]...)
			var ext pbwire.Entries
			if m.Scratch[scratchExtFields] > 0 {
				ext.Mutation = mut
			}
			dst = appendRequest(dst, r.Bytes, &ext, said)
			added += ext.Added
		case r.Is(fieldUserFields, pbwire.Bytes):
			key, _, err := pbwire.Entry(r.Bytes)
			if err != nil {
				return dst, 0, err
			}
			if !user.Touches(key) {
				continue
			}
			dst = append(dst, meta[from:r.Start]...)
			dst = user.Replace(dst, key, fieldUserFields)
		default:
			continue
		}
		from = r.End
	}
	dst = append(dst, meta[from:]...)
	if p.Compression != 0 {
		dst = pbwire.AppendVarint(dst, fieldCompressType, uint64(p.Compression))
	}
	dst = user.Append(dst, fieldUserFields)
	if m.Scratch[scratchID] == 0 && m.ID != 0 {
		dst = pbwire.AppendVarint(dst, fieldCorrelationID, m.ID)
	}
	return dst, added + user.Added, nil
}

// numbers are what fields of a request's meta are set to, by their numbers; 0: they
// stay.
type numbers [requestTimeout + 1]uint64

// numbersOf are those that mut sets in m.
func numbersOf(m *codecs.Metadata, mut *codecs.Mutation) (n numbers) {
	if mut == nil || !saysTimeout(m) {
		return n
	}
	n[requestTimeout] = uint64(mut.Millis())
	if t := &mut.Trace; t.ID != 0 {
		n[requestTraceID], n[requestSpanID], n[requestParentSpanID] = t.ID, t.Span, t.Parent
	}
	return n
}

// appendRequest appends the meta of a request, which has been read before, with
// ext made of its extension fields, and fields set to numbers.
func appendRequest(dst, b []byte, ext *pbwire.Entries, set numbers) []byte {
	dst, mark := pbwire.AppendFrame(dst, fieldRequest)
	from := 0
	left := set // to be added
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		if r.Type == pbwire.Varint && r.Number >= 0 && int(r.Number) < len(set) && set[r.Number] != 0 {
			dst = append(dst, b[from:r.Value]...)
			dst = binary.AppendUvarint(dst, set[r.Number])
			from, left[r.Number] = r.End, 0
			continue
		}
		if !r.Is(requestIDOrExtField, pbwire.Bytes) {
			continue
		}
		key, _, ok := extField(r.Bytes)
		if !ok {
			continue
		}
		if ext.Touches(key) {
			dst = append(dst, b[from:r.Start]...)
			dst = ext.Replace(dst, key, requestIDOrExtField)
			from = r.End
		}
	}
	dst = append(dst, b[from:]...)
	for number, v := range left {
		if v != 0 {
			dst = pbwire.AppendVarint(dst, int32(number), v)
		}
	}
	dst = ext.Append(dst, requestIDOrExtField)
	return pbwire.CloseFrame(dst, mark)
}
