package dubbo

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
)

// mutate appends m with the attachments of mut set. What is not changed keeps
// its bytes: references between Hessian values count the values before them,
// so nothing that a reference can mean is ever taken out.
func (c *codec) mutate(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if m.Scratch[scratchSerial] != hessian2 {
		return dst, fmt.Errorf("%w: its serialization is %d", codecs.ErrNoMutation, m.Scratch[scratchSerial])
	}
	if m.Malformed != "" {
		return dst, fmt.Errorf("%w: %s", codecs.ErrNoMutation, m.Malformed)
	}
	var r hessian.Reader
	start := len(dst)
	at := len(m.Raw)
	switch m.Type {
	case codecs.Request, codecs.Oneway:
		if at = int(m.Scratch[scratchAttachments]); at == 0 {
			return dst, codecs.ErrNoMutation
		}
		// Class definitions before the attachments count for them too.
		r.Reset(m.Raw[headerSize:])
		for range 4 {
			r.String()
		}
		for n := countTypes(r.String()); n > 0 && r.Err() == nil; n-- {
			r.Skip()
		}
		dst = append(dst, m.Raw[:at]...)
	case codecs.Response:
		if found := attachmentsOf(&r, m); found > 0 {
			at = found
			dst = append(dst, m.Raw[:at]...)
			break
		}
		// Without attachments so far: the kind says that there are some now.
		r.Reset(m.Raw[headerSize:])
		kind := byte(r.Int())
		switch kind {
		case withException, withValue:
			r.Skip()
		case withExceptionAndAttachments, withValueAndAttachments:
			r.Skip()
			kind -= withExceptionAndAttachments
		case withNullAndAttachments:
			kind -= withExceptionAndAttachments
		}
		if r.Err() != nil || r.More() || m.Raw[headerSize]-0x90 > withNullAndAttachments {
			return dst, codecs.ErrNoMutation
		}
		dst = append(dst, m.Raw...)
		dst[start+headerSize] = 0x90 + kind + withExceptionAndAttachments
	default:
		return dst, fmt.Errorf("%w: it is an %s", codecs.ErrNoMutation, m.Type)
	}
	dst, err := appendAttachments(dst, &r, m.Raw[at:], mut)
	if err != nil {
		return dst[:start], fmt.Errorf("%w: %w", codecs.ErrNoMutation, err)
	}
	binary.BigEndian.PutUint32(dst[start+12:], uint32(len(dst)-start-headerSize))
	return dst, nil
}

// appendAttachments appends the map old, at which r stands, with mut applied.
func appendAttachments(dst []byte, r *hessian.Reader, old []byte, mut *codecs.Mutation) ([]byte, error) {
	base := r.Pos()
	from := func(pos int) []byte { return old[pos-base : r.Pos()-base] }
	var done [64]bool // more keys than that are set again at the end, which does no harm
	set := func(i int) bool { return i < len(done) && done[i] }
	entries := mut.Entries()
	if len(old) == 0 || r.Peek() == 'N' {
		if len(old) > 0 {
			r.Skip()
		}
		dst = append(dst, 'H')
	} else {
		if !r.Open() {
			return dst, r.Err()
		}
		dst = append(dst, from(base)...)
		for r.More() && r.Peek() != 'Z' {
			pos := r.Pos()
			var key []byte
			named := hessian.IsString(r.Peek())
			if named {
				key = r.String()
			} else {
				r.Skip()
			}
			dst = append(dst, from(pos)...)
			pos = r.Pos()
			simple := r.Skip()
			if i := indexOf(entries, key); named && simple && i >= 0 {
				if i < len(done) {
					done[i] = true
				}
				dst = hessian.AppendString(dst, entries[i].Value)
				continue
			}
			// A map or object stays even if its key is set: a later reference may
			// mean it. Of two entries with one key the later wins, in Java as in
			// Go, so the new one goes behind it.
			dst = append(dst, from(pos)...)
		}
		if !r.Close() {
			return dst, r.Err()
		}
	}
	for i, kv := range entries {
		if !set(i) {
			dst = hessian.AppendString(dst, kv.Key)
			dst = hessian.AppendString(dst, kv.Value)
		}
	}
	dst = append(dst, 'Z')
	return append(dst, old[r.Pos()-base:]...), r.Err()
}

func indexOf(entries []codecs.KeyValue, key []byte) int {
	for i := range entries {
		if bytes.Equal(key, []byte(entries[i].Key)) {
			return i
		}
	}
	return -1
}
