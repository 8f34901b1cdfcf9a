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
		return dst, mut.Refuse(fmt.Errorf("its serialization is %d", m.Scratch[scratchSerial]))
	}
	if m.Malformed != "" {
		return dst, mut.Refuse(errors.New(m.Malformed))
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
	s := set{Mutation: mut}
	if m.Type == codecs.Request || m.Type == codecs.Oneway {
		s.millis = mut.Millis()
		if k := knownOf(m); k != nil && k.placed && !mut.Replaces() {
			out, err := s.appendKnown(dst, m, k)
			return c.closed(out, len(dst), mut, err)
		}
	}
	var r hessian.Reader
	r.Reset(m.Raw[headerSize:])
	start := len(dst)
	switch m.Type {
	case codecs.Request, codecs.Oneway:
		if !mut.Replaces() {
			seekAttachments(&r, m)
			dst = append(dst, m.Raw[:headerSize+r.Pos()]...)
			break
		}
		var err error
		if dst, err = replaceArguments(dst, &r, m, mut); err != nil {
			return dst[:start], mut.Refuse(err)
		}
	case codecs.Response:
		kind := r.Int()
		value := r.Pos() // the kind may be written in more than one byte
		if kind%withExceptionAndAttachments != withNull {
			r.Skip()
		}
		if kind < withExceptionAndAttachments && len(mut.Entries()) == 0 && !mut.Replaces() {
			return append(dst, m.Raw...), nil // nothing is there to be removed
		}
		if mut.Replaces() {
			var err error
			if dst, err = replaceValue(dst, &r, m, mut, kind, value); err != nil {
				return dst[:start], mut.Refuse(err)
			}
			break
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
		return dst, mut.Refuse(fmt.Errorf("it is an %s", m.Type))
	}
	dst, err := s.appendAttachments(dst, &r, m.Raw[headerSize:])
	return c.closed(dst, start, mut, err)
}

// closed has the frame that begins at start in dst say how long it is, unless it cannot be.
func (c *codec) closed(dst []byte, start int, mut *codecs.Mutation, err error) ([]byte, error) {
	if err == nil && len(dst)-start > c.maxFrame {
		err = errors.New("it would become larger than the limits") // which ends connections
	}
	if err != nil {
		return dst[:start], mut.Refuse(err)
	}
	binary.BigEndian.PutUint32(dst[start+12:], uint32(len(dst)-start-headerSize))
	return dst, nil
}

// seekAttachments makes r stand at those of the request m.
func seekAttachments(r *hessian.Reader, m *codecs.Metadata) {
	r.Reset(m.Raw[headerSize:])
	if m.Scratch[scratchClasses] == 0 {
		r.Seek(int(m.Scratch[scratchAttachments]) - headerSize)
		return
	}
	var c opening
	c.read(r)
	c.skipArguments(r) // objects among the attachments may be of classes defined before
}

// set is what becomes of attachments.
type set struct {
	*codecs.Mutation
	millis int32 // what keyTimeout is set to, and keyLeft if it is there; 0: as they are
	// Of entries and keyTimeout, those that stand in the map already. Entries beyond
	// are set again at its end, which does no harm.
	done  [64]bool
	waits bool
}

// What find returns in place of the number of an entry.
const (
	untouched  = -1
	setTimeout = -2
	setLeft    = -3
	removed    = -4
)

func (s *set) find(key []byte) int {
	i := s.Find(key)
	switch {
	case s.millis > 0 && string(key) == keyTimeout:
		return setTimeout
	case i < 0 && s.Removes(key):
		return removed
	case s.millis > 0 && isLeft(key):
		return setLeft
	}
	return i
}

// stands notes whether what find has found is the last of its key in the map.
func (s *set) stands(i int, yes bool) {
	switch {
	case i == setTimeout:
		s.waits = yes
	case i >= 0 && i < len(s.done):
		s.done[i] = yes
	}
}

func (s *set) appendValue(dst []byte, i int) []byte {
	switch i {
	case setTimeout:
		return appendDigits(dst, s.millis)
	case setLeft:
		return hessian.AppendInt(dst, s.millis)
	default:
		return hessian.AppendString(dst, s.Entries()[i].Value)
	}
}

// appendAttachments appends the rest of body, from the map on at which r
// stands, with what is to be removed and set.
func (s *set) appendAttachments(dst []byte, r *hessian.Reader, body []byte) ([]byte, error) {
	n := 0 // attachments
	if noAttachments(r) {
		if len(s.Entries()) == 0 && s.millis == 0 {
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
		for ; r.More() && r.Peek() != 'Z'; n++ {
			if n == maxAttachments {
				return dst, errors.New(tooManyAttachments)
			}
			i, at := untouched, r.Pos()
			if hessian.IsString(r.Peek()) {
				i = s.find(r.String())
			} else {
				r.Skip()
			}
			value := r.Pos()
			simple := r.Skip()
			switch {
			case i == untouched:
			case i == removed && r.Err() == nil:
				dst = append(dst, body[from:at]...)
				if from = r.Pos(); simple {
					n--
				} else {
					// It stays, as below, under a name that nobody asks for.
					dst = hessian.AppendString(dst, "")
					from = value
				}
			case simple && r.Err() == nil:
				dst = append(dst, body[from:value]...)
				dst = s.appendValue(dst, i)
				from = r.Pos()
				s.stands(i, true)
			default:
				// A map or object stays even if its key is set: a later reference may
				// mean it. Of two entries with one key the later wins, in Java as in
				// Go, so the new one goes behind it.
				s.stands(i, false)
			}
		}
		dst = append(dst, body[from:r.Pos()]...)
		if !r.Close() {
			return dst, r.Err()
		}
	}
	dst, err := s.appendNew(dst, n)
	if err != nil {
		return dst, err
	}
	return append(dst, body[r.Pos():]...), r.Err()
}

// appendNew appends what does not stand in the map of n attachments yet, and its end.
func (s *set) appendNew(dst []byte, n int) ([]byte, error) {
	for i, kv := range s.Entries() {
		if (i >= len(s.done) || !s.done[i]) && (s.millis == 0 || kv.Key != keyTimeout) {
			dst = hessian.AppendString(dst, kv.Key)
			dst = hessian.AppendString(dst, kv.Value)
			n++
		}
	}
	if s.millis > 0 && !s.waits {
		dst = hessian.AppendString(dst, keyTimeout)
		dst = appendDigits(dst, s.millis)
		n++
	}
	if n > maxAttachments {
		return dst, errors.New(tooManyAttachments) // whoever reads it next refuses it
	}
	return append(dst, 'Z'), nil
}
