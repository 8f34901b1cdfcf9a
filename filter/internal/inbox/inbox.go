// Package inbox joins the pieces in which a host hands over bytes, so that a
// decoder sees its frame in one stretch, and copies only what it must.
package inbox

// keepBytes is what an empty inbox may keep of its memory.
const keepBytes = 64 << 10

// Inbox belongs to one direction of one connection.
type Inbox struct {
	// partial holds the beginning of a frame that was taken from the host.
	partial []byte
	// need is how long the frame at the start has to become before it is worth
	// decoding again.
	need int
}

// Add takes bufs, total bytes together, behind what is kept. ready says that
// there may be a whole frame; b is all that is there, valid until the next
// Keep, Drop or Add. scratch is memory for joining, shared by many inboxes.
func (in *Inbox) Add(bufs [][]byte, total int, scratch *[]byte) (b []byte, ready bool) {
	if len(in.partial) == 0 {
		if total < in.need {
			return nil, false
		}
		if len(bufs) == 1 {
			return bufs[0], total > 0
		}
		s := (*scratch)[:0]
		for _, p := range bufs {
			s = append(s, p...)
		}
		*scratch = s
		return s, total > 0
	}
	for _, p := range bufs {
		in.partial = append(in.partial, p...)
	}
	return in.partial, len(in.partial) >= in.need
}

// Take keeps the bytes of bufs for later, as they are no whole frame yet.
func (in *Inbox) Take(bufs [][]byte) {
	for _, p := range bufs {
		in.partial = append(in.partial, p...)
	}
}

// Keep keeps rest, the undecoded end of what Add returned, of which need bytes
// must be there before it is worth decoding again.
func (in *Inbox) Keep(rest []byte, need int) {
	in.need = need
	// rest may be the end of partial itself: append moves it down.
	in.partial = append(in.partial[:0], rest...)
	if len(rest) == 0 && cap(in.partial) > keepBytes {
		in.partial = nil
	}
}

// Wait notes that the host keeps the rest itself and that a frame of need
// bytes begins there.
func (in *Inbox) Wait(need int) {
	in.partial, in.need = nil, need
}

// Need returns the length that the frame at the start must reach, 0 at the
// boundary of a frame.
func (in *Inbox) Need() int { return in.need }

// Buffered returns how many bytes the inbox itself holds.
func (in *Inbox) Buffered() int { return len(in.partial) }
