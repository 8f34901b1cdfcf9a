// Package inbox joins the pieces in which a host hands over bytes, so that a
// decoder sees its frame in one stretch, and copies only what it must.
package inbox

const (
	// MaxOver is how many times the limit a frame may be too large for its
	// connection to go on behind it.
	MaxOver = 16
	// keepBytes is what an empty inbox may keep of its memory.
	keepBytes = 64 << 10
)

// Inbox belongs to one direction of one connection.
type Inbox struct {
	// partial holds the beginning of a frame that was taken from the host.
	partial []byte
	// need is how long the frame at the start has to become before it is worth
	// decoding again.
	need int
	skip int // bytes still to be passed over
}

// Skip has the next n bytes passed over: what is to come of a frame that is too
// large.
func (in *Inbox) Skip(n int) { in.skip = max(0, n) }

// Skipping reports whether there are bytes still to be passed over.
func (in *Inbox) Skipping() bool { return in.skip > 0 }

// Skipped passes over what is to be passed over at the start of bufs, total bytes
// together. It returns what is left of them, and how much that is.
func (in *Inbox) Skipped(bufs [][]byte, total int) (rest [][]byte, left int) {
	n := min(in.skip, total)
	in.skip -= n
	total -= n
	for n > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs = append([][]byte{bufs[0][n:]}, bufs[1:]...)
	}
	return bufs, total
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
	in.take(bufs, total)
	return in.partial, len(in.partial) >= in.need
}

func (in *Inbox) take(bufs [][]byte, total int) {
	if size := in.grown(total); size > cap(in.partial) {
		in.partial = append(make([]byte, 0, size), in.partial...)
	}
	for _, p := range bufs {
		in.partial = append(in.partial, p...)
	}
}

// grown is the memory for n bytes more. It doubles, so that little is copied, up to
// the length of the frame, so that nothing is left over; a frame may claim to be
// long and never come.
func (in *Inbox) grown(n int) int {
	have := len(in.partial) + n
	if have <= cap(in.partial) {
		return cap(in.partial)
	}
	return max(have, min(in.need, 2*cap(in.partial)))
}

// Growth returns how much more memory the inbox would have with n bytes more.
func (in *Inbox) Growth(n int) int { return in.grown(n) - cap(in.partial) }

// Size returns the memory that the inbox has.
func (in *Inbox) Size() int { return cap(in.partial) }

// Take keeps the bytes of bufs for later, as they are no whole frame yet.
func (in *Inbox) Take(bufs [][]byte) {
	total := 0
	for _, p := range bufs {
		total += len(p)
	}
	in.take(bufs, total)
}

// Keep keeps rest, the undecoded end of what Add returned, of which need bytes
// must be there before it is worth decoding again.
func (in *Inbox) Keep(rest []byte, need int) {
	in.need = need
	if n := cap(in.partial); n < len(rest) || n > keepBytes && n/4 > max(len(rest), need) {
		in.partial = nil // what a long frame needed
		if len(rest) == 0 {
			return
		}
		in.partial = make([]byte, 0, len(rest))
	}
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

// Bytes are those that the inbox itself holds, valid until they are forgotten or more
// come.
func (in *Inbox) Bytes() []byte { return in.partial }

// Buffered returns how many bytes the inbox itself holds.
func (in *Inbox) Buffered() int { return len(in.partial) }
