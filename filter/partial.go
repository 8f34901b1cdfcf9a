package filter

import (
	"slices"
	"time"
)

const (
	// stallTime is how long a client may send nothing of its unfinished frame
	// while others are not read because of such frames.
	stallTime = time.Second
	// sweepTime is how often it is looked for such clients.
	sweepTime = 250 * time.Millisecond
	// stepBytes is how much of a frame must come to count as going on, or a 32nd
	// of it if that is less.
	stepBytes = 64 << 10
)

// partial is a connection's unfinished frame, as far as it is kept here and not in
// the host's buffer.
type partial struct {
	kept    int  // memory, counted in partials.bytes
	starved bool // not read, as there is no room for more of it
	marked  int  // how long it was when it went on last
	since   time.Duration
}

// partials are the unfinished frames of a worker's clients. There is room for
// limits.max_partial_bytes of them, and for one frame beyond: one client's goes on
// whatever the others do, so that frames are never in each other's way for good.
type partials struct {
	bytes    int
	favoured *connection   // may go beyond the limit
	starved  []*connection // are not read, in the order in which they came
}

// mayKeep reports whether the inbox may grow by n bytes. If not, the client is not
// read until it may.
func (c *connection) mayKeep(n int) bool {
	ps := &c.sh.partials
	switch {
	case n <= 0 || ps.favoured == c || ps.bytes+n <= c.cfg.Limits.MaxPartialBytes:
		return true
	case ps.favoured == nil:
		c.sh.favour(c)
		return true
	case !c.partial.starved:
		c.partial.starved = true
		c.cfg.count(partialFrameWait, 1)
		c.d.ReadDisable(true)
		ps.starved = append(ps.starved, c)
	}
	return false
}

func (s *shard) favour(c *connection) {
	s.partials.favoured = c
	c.partial.since = s.w.Now()
	if !s.sweep.Running() {
		s.timers.Start(&s.sweep, s.w.Now()+sweepTime)
	}
}

// keeps notes what the inbox holds after an event. another says that the frame at
// its start is not the one that was there before.
func (c *connection) keeps(another bool) {
	if c.in.Buffered() == 0 {
		c.in.Wait(c.in.Need()) // an idle connection keeps nothing
	}
	n := c.in.Size()
	s, p := c.sh, &c.partial
	s.partials.bytes += n - p.kept
	p.kept = n
	if have := c.in.Buffered(); another || have-p.marked >= min(stepBytes, c.in.Need()/32+1) {
		p.marked, p.since = have, s.w.Now()
	}
	if s.partials.favoured == c && c.in.Need() == 0 {
		s.partials.favoured = nil
	}
	s.feed()
}

// feed has clients read again for whose frames there is room.
func (s *shard) feed() {
	ps := &s.partials
	for len(ps.starved) > 0 {
		c := ps.starved[0]
		if ps.favoured == nil {
			s.favour(c)
		} else if ps.bytes+stepBytes > c.cfg.Limits.MaxPartialBytes {
			return
		}
		c.fed()
		c.goOn()
	}
}

// fed takes c off those that are starved.
func (c *connection) fed() {
	if !c.partial.starved {
		return
	}
	c.partial.starved = false
	c.partial.since = c.sh.w.Now()
	ps := &c.sh.partials
	i := slices.Index(ps.starved, c)
	if ps.starved = slices.Delete(ps.starved, i, i+1); len(ps.starved) == 0 {
		ps.starved = nil
	}
}

// forgetPartial gives up the frame that has begun.
func (c *connection) forgetPartial() {
	c.fed()
	c.in.Wait(0)
	c.keeps(true)
}

// sweepPartials ends those that send nothing more of their frames while others
// wait because of them.
func (s *shard) sweepPartials() {
	ps := &s.partials
	if ps.favoured == nil {
		return
	}
	s.timers.Start(&s.sweep, s.w.Now()+sweepTime)
	now := s.w.Now()
	for _, cs := range s.configs {
		for c := cs.conns; c != nil && len(ps.starved) > 0; c = c.next {
			p := &c.partial
			waits := c.stopped() && (!c.blocked || now < c.unread.taken+5*stallTime)
			if p.kept > 0 && !p.starved && !waits && now >= p.since+stallTime {
				cs.count(partialFrameOverflow, 1)
				s.warn(cs, "client %s sends no more of a frame of which it has sent %d bytes, with too many such frames on this worker",
					c.d.RemoteAddress(), c.in.Buffered())
				c.finish()
			}
		}
	}
}
