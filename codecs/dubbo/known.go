package dubbo

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/hessian"
)

// known is what a decoder knows of the attachments of a shape, so that nobody has to read
// those of the messages that share it: where each is, and what they say of a timeout. It
// is the codecs.Loader of the values that holes have.
type known struct {
	shape *codecs.Shape
	// timeout of codec.Timeout, unless it is in a hole.
	timeout time.Duration
	timed   bool
	// placed says that entries are all that there are. Of more than maxKnown none is.
	placed  bool
	lengths lengths // of their keys
	entries []entry
}

// maxKnown is how many attachments of a shape are known.
const maxKnown = 64

// entry is an attachment, whose value is simple: where it, that and what comes behind it
// begin in the shape's tail.
type entry struct {
	key            []byte
	at, value, end uint16
}

// lengths are of keys, as bits.
type lengths uint64

func lengthOf[S string | []byte](key S) lengths { return 1 << (len(key) % 64) }

// newKnown returns what is known of a shape whose tail is plain.
func newKnown(s *codecs.Shape) *known {
	k := &known{shape: s, timed: true, placed: true}
	var r hessian.Reader
	r.Reset(s.Tail)
	k.timeout = timeoutAt(&r)
	if r.Reset(s.Tail); !r.More() {
		return k
	}
	holes := s.Holes
	for r.Open(); r.More() && r.Peek() != 'Z'; {
		e := entry{at: uint16(r.Pos())}
		e.key = r.String()
		e.value = uint16(r.Pos())
		r.Skip()
		e.end = uint16(r.Pos())
		if len(holes) > 0 && holes[0].From == int(e.value) {
			holes = holes[1:]
			k.timed = k.timed && string(e.key) != keyTimeout && !isLeft(e.key)
		}
		if len(k.entries) == maxKnown {
			k.placed, k.entries = false, nil
		}
		if k.placed {
			k.entries = append(k.entries, e)
			k.lengths |= lengthOf(e.key)
		}
	}
	return k
}

// knownOf returns what is known of the attachments of m's frame, nil if nothing is.
func knownOf(m *codecs.Metadata) *known {
	if s := m.FrameShape(); s != nil {
		k, _ := s.Rest.(*known)
		return k
	}
	return nil
}

// Load implements codecs.Loader.
func (k *known) Load(m *codecs.Metadata) {
	var r hessian.Reader
	r.Reset(m.Raw[m.Scratch[scratchAttachments]:])
	fits(&r, k.shape, m) // as it has done before
}

// appendKnown appends the frame of m, whose attachments are known, with what is to be
// removed and set, as appendAttachments does by reading them.
func (s *set) appendKnown(dst []byte, m *codecs.Metadata, k *known) ([]byte, error) {
	raw := m.Raw
	if len(k.shape.Tail) == 0 {
		dst = append(dst, raw...)
		if len(s.Entries()) == 0 && s.millis == 0 {
			return dst, nil
		}
		return s.appendNew(append(dst, 'H'), 0)
	}
	n, from := len(k.entries), 0 // from: of raw, what is not yet appended
	if touched := s.lengths(); touched&k.lengths != 0 {
		base, holes := int(m.Scratch[scratchAttachments]), k.shape.Holes // base: where the tail begins but for the holes before
		for i := range k.entries {
			e := &k.entries[i]
			if touched&lengthOf(e.key) == 0 {
				continue
			}
			i := s.find(e.key)
			if i == untouched {
				continue
			}
			for len(holes) > 0 && holes[0].From < int(e.value) {
				base += longer(raw, base, holes[0])
				holes = holes[1:]
			}
			at, value, end := base+int(e.at), base+int(e.value), base+int(e.end)
			if len(holes) > 0 && holes[0].From == int(e.value) {
				end += longer(raw, base, holes[0])
			}
			if i == removed {
				dst = append(dst, raw[from:at]...)
				n--
			} else {
				dst = append(dst, raw[from:value]...)
				dst = s.appendValue(dst, i)
				s.stands(i, true)
			}
			from = end
		}
	}
	return s.appendNew(append(dst, raw[from:len(raw)-1]...), n)
}

// lengths returns those of all keys that are looked for.
func (s *set) lengths() (l lengths) {
	for i := range s.Entries() {
		l |= lengthOf(s.Entries()[i].Key)
	}
	for _, key := range s.Removed() {
		l |= lengthOf(key)
	}
	if s.millis > 0 {
		l |= lengthOf(keyTimeout) | lengthOf(keyLeft)
	}
	return l
}

// longer returns by how much the value that a frame has in a hole of a tail, which begins
// at base, is longer than that of the tail.
func longer(raw []byte, base int, hole codecs.Hole) int {
	return hessian.ASCIISize(raw[base+hole.From:]) - (hole.To - hole.From)
}
