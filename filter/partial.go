package filter

import (
	"time"

	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

// stallTime is how long a client may send nothing of its unfinished frame while
// others are not read because of such frames.
const stallTime = time.Second

// Starve implements inbox.Peer. What the host has read stays in its buffer.
func (c *connection) Starve(starve bool) {
	if !starve {
		c.goOn()
		return
	}
	c.cfg.count(metrics.PartialFrameWait, 1)
	c.d.ReadDisable(true)
}

// Held implements inbox.Peer: a client is not read for many reasons, and for its
// own not reading it is not excused for long.
func (c *connection) Held() bool {
	return c.stopped() && (!c.blocked || c.sh.w.Now() < c.unread.taken+4*stallTime)
}

// Stalled implements inbox.Peer.
func (c *connection) Stalled() {
	c.cfg.count(metrics.PartialFrameOverflow, 1)
	c.sh.warn(c.cfg, "client %s sends no more of a frame of which it has sent %d bytes, with too many such frames on this worker",
		c.d.RemoteAddress(), c.in.Buffered())
	c.finish()
}

// keeps notes what the inbox holds after an event.
func (c *connection) keeps(another bool) {
	if c.in.Buffered() == 0 {
		c.in.Wait(c.in.Need()) // an idle connection keeps nothing
	}
	c.partial.Kept(another)
}

// forgetPartial gives up the frame that has begun.
func (c *connection) forgetPartial() {
	c.in.Wait(0)
	c.partial.Forget()
}
