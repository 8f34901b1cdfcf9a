package brpc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/internal/pbwire"
)

// mutate appends m with the entries of mut set, and with its id. What is not
// changed keeps its bytes and its place.
func (c *codec) mutate(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if !carriesID(m.Type) {
		return dst, fmt.Errorf("%w: it is a %s", codecs.ErrNoMutation, m.Type)
	}
	if m.Malformed != "" {
		return dst, fmt.Errorf("%w: %s", codecs.ErrNoMutation, m.Malformed)
	}
	start := len(dst)
	from := int(m.Scratch[scratchRPC]) + headerSize
	end := int(m.Scratch[scratchMetaEnd])
	dst = append(dst, m.Raw[:from]...)
	dst, added, err := appendMeta(dst, m, m.Raw[from:end], mut.Entries())
	size := len(dst) - start - from
	dst = append(dst, m.Raw[end:]...)
	switch {
	case err != nil:
	case size > maxMeta, len(dst)-start > c.maxFrame, int(m.Scratch[scratchFields])+added > maxFields:
		// Whoever reads it next may refuse it, or end the connection.
		err = errors.New("it would become larger than the limits")
	default:
		resize(dst[start:], m, len(dst)-start-len(m.Raw))
		return dst, nil
	}
	return dst[:start], fmt.Errorf("%w: %w", codecs.ErrNoMutation, err)
}

// set remembers which of some entries a message has already. Those beyond are
// set again at its end, where the later of two equal keys wins.
type set struct {
	entries []codecs.KeyValue
	done    [64]bool
	added   int // how many were appended
}

// appendMeta appends the meta of m with its id and entries set.
func appendMeta(dst []byte, m *codecs.Metadata, meta []byte, entries []codecs.KeyValue) (_ []byte, added int, err error) {
	// brpc reads user fields. brpc-java and jprotobuf read extension fields
	// only, and brpc takes such a field for its request id: there entries are
	// set if the client has used them already.
	user := set{entries: entries}
	idAt := int(m.Scratch[scratchID]) - int(m.Scratch[scratchRPC]) - headerSize
	from := 0
	var r pbwire.Reader
	for r.Reset(meta); r.Next(); { // to the end: it has been read before
		switch {
		case r.Is(fieldCorrelationID, pbwire.Varint) && r.Value == idAt && r.Uint != m.ID:
			dst = append(dst, meta[from:r.Value]...)
			dst = binary.AppendUvarint(dst, m.ID)
		case r.Is(fieldRequest, pbwire.Bytes) && m.Scratch[scratchExtFields] > 0:
			dst = append(dst, meta[from:r.Start]...)
			ext := set{entries: entries}
			dst = ext.appendRequest(dst, r.Bytes)
			added += ext.added
		case r.Is(fieldUserFields, pbwire.Bytes):
			key, _, err := entry(r.Bytes)
			if err != nil {
				return dst, 0, err
			}
			i := user.find(key)
			if i < 0 {
				continue
			}
			dst = append(dst, meta[from:r.Start]...)
			dst = user.put(dst, i, fieldUserFields)
		default:
			continue
		}
		from = r.End
	}
	dst = append(dst, meta[from:]...)
	dst = user.append(dst, fieldUserFields)
	if m.Scratch[scratchID] == 0 && m.ID != 0 {
		dst = pbwire.AppendVarint(dst, fieldCorrelationID, m.ID)
	}
	return dst, added + user.added, nil
}

// appendRequest appends the meta of a request, which has been read before, with
// the entries set among its extension fields.
func (s *set) appendRequest(dst, b []byte) []byte {
	dst, mark := pbwire.AppendFrame(dst, fieldRequest)
	from := 0
	var r pbwire.Reader
	for r.Reset(b); r.Next(); {
		if !r.Is(requestIDOrExtField, pbwire.Bytes) {
			continue
		}
		key, _, ok := extField(r.Bytes)
		if !ok {
			continue
		}
		if i := s.find(key); i >= 0 {
			dst = append(dst, b[from:r.Start]...)
			dst = s.put(dst, i, requestIDOrExtField)
			from = r.End
		}
	}
	dst = append(dst, b[from:]...)
	dst = s.append(dst, requestIDOrExtField)
	return pbwire.CloseFrame(dst, mark)
}

// find returns the number of the entry with that key, -1 if there is none.
func (s *set) find(key []byte) int {
	for i := range s.entries {
		if s.entries[i].Key == string(key) {
			return i
		}
	}
	return -1
}

// put appends entry i as a field.
func (s *set) put(dst []byte, i int, number int32) []byte {
	if i < len(s.done) {
		s.done[i] = true
	}
	kv := &s.entries[i]
	dst, mark := pbwire.AppendFrame(dst, number)
	dst = pbwire.AppendBytes(dst, entryKey, kv.Key)
	dst = pbwire.AppendBytes(dst, entryValue, kv.Value)
	return pbwire.CloseFrame(dst, mark)
}

// append appends the entries that the message did not have.
func (s *set) append(dst []byte, number int32) []byte {
	for i := range s.entries {
		if i >= len(s.done) || !s.done[i] {
			dst = s.put(dst, i, number)
			s.added++
		}
	}
	return dst
}
