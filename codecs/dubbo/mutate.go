package dubbo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
)

// mutate appends m with the attachments of mut removed and set. What is not
// changed keeps its bytes: references between Hessian values count the values
// before them, so nothing that a reference can mean is ever taken out.
func (c *codec) mutate(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if m.Scratch[scratchSerial] != hessian2 {
		return dst, fmt.Errorf("%w: its serialization is %d", codecs.ErrNoMutation, m.Scratch[scratchSerial])
	}
	if m.Malformed != "" {
		return dst, fmt.Errorf("%w: %s", codecs.ErrNoMutation, m.Malformed)
	}
	for _, kv := range mut.Entries() {
		if isCall([]byte(kv.Key)) { // a filter's
			return dst, fmt.Errorf("%w: %q belongs to the call itself", codecs.ErrNoMutation, kv.Key)
		}
	}
	for _, key := range mut.Removed() {
		if isCall([]byte(key)) {
			return dst, fmt.Errorf("%w: %q belongs to the call itself", codecs.ErrNoMutation, key)
		}
	}
	var r hessian.Reader
	r.Reset(m.Raw[headerSize:])
	start := len(dst)
	switch m.Type {
	case codecs.Request, codecs.Oneway:
		if m.Scratch[scratchClasses] == 0 {
			r.Seek(int(m.Scratch[scratchAttachments]) - headerSize)
		} else { // objects among the attachments may be of classes defined before
			for range 4 {
				r.String()
			}
			skipArguments(&r)
		}
		dst = append(dst, m.Raw[:headerSize+r.Pos()]...)
	case codecs.Response:
		kind := r.Int()
		value := r.Pos() // the kind may be written in more than one byte
		if kind%withExceptionAndAttachments != withNull {
			r.Skip()
		}
		if kind < withExceptionAndAttachments && len(mut.Entries()) == 0 {
			return append(dst, m.Raw...), nil // nothing is there to be removed
		}
		if kind < withExceptionAndAttachments {
			// The kind says from now on that there are attachments. In their place
			// may be a null, which dubbo-go writes behind every answer.
			kind += withExceptionAndAttachments
			if !noAttachments(&r) {
				return dst, fmt.Errorf("%w: unknown bytes behind its value", codecs.ErrNoMutation)
			}
		}
		dst = append(dst, m.Raw[:headerSize]...)
		dst = append(dst, 0x90+byte(kind))
		dst = append(dst, m.Raw[headerSize+value:headerSize+r.Pos()]...)
	default:
		return dst, fmt.Errorf("%w: it is an %s", codecs.ErrNoMutation, m.Type)
	}
	dst, err := appendAttachments(dst, &r, m.Raw[headerSize:], mut)
	if err == nil && len(dst)-start > c.maxFrame {
		err = errors.New("it would become larger than the limits") // which ends connections
	}
	if err != nil {
		return dst[:start], fmt.Errorf("%w: %w", codecs.ErrNoMutation, err)
	}
	binary.BigEndian.PutUint32(dst[start+12:], uint32(len(dst)-start-headerSize))
	return dst, nil
}

// appendAttachments appends the rest of body, from the map on at which r
// stands, with those of mut removed and set.
func appendAttachments(dst []byte, r *hessian.Reader, body []byte, mut *codecs.Mutation) ([]byte, error) {
	entries := mut.Entries()
	// Entries that stand in the map already. Those beyond are set again at its
	// end, which does no harm.
	var done [64]bool
	if noAttachments(r) {
		if len(entries) == 0 {
			return append(dst, body[r.Pos():]...), r.Err()
		}
		if r.More() {
			r.Skip()
		}
		dst = append(dst, 'H')
	} else {
		from := r.Pos()
		if !r.Open() {
			return dst, r.Err()
		}
		for n := 0; r.More() && r.Peek() != 'Z'; n++ {
			if n == maxAttachments {
				return dst, errors.New(tooManyAttachments)
			}
			i, removed, at := -1, false, r.Pos()
			if hessian.IsString(r.Peek()) {
				key := r.String()
				i, removed = mut.Find(key), mut.Removes(key)
			} else {
				r.Skip()
			}
			value := r.Pos()
			simple := r.Skip()
			switch {
			case i < 0 && removed && r.Err() == nil:
				dst = append(dst, body[from:at]...)
				if from = r.Pos(); !simple {
					// It stays, as below, under a name that nobody asks for.
					dst = hessian.AppendString(dst, "")
					from = value
				}
			case i < 0:
			case simple && r.Err() == nil:
				dst = append(dst, body[from:value]...)
				dst = hessian.AppendString(dst, entries[i].Value)
				from = r.Pos()
				if i < len(done) {
					done[i] = true
				}
			default:
				// A map or object stays even if its key is set: a later reference may
				// mean it. Of two entries with one key the later wins, in Java as in
				// Go, so the new one goes behind it.
				if i < len(done) {
					done[i] = false
				}
			}
		}
		dst = append(dst, body[from:r.Pos()]...)
		if !r.Close() {
			return dst, r.Err()
		}
	}
	for i, kv := range entries {
		if i >= len(done) || !done[i] {
			dst = hessian.AppendString(dst, kv.Key)
			dst = hessian.AppendString(dst, kv.Value)
		}
	}
	dst = append(dst, 'Z')
	return append(dst, body[r.Pos():]...), r.Err()
}
