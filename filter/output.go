package filter

import "github.com/meltemi-mesh/meltemi/filter/host"

// output are the bytes for a client that the host has not been given.
type output struct {
	out    *host.Buffer
	unread backlog
}

// buffer returns the outgoing buffer with room for size bytes and a bit.
func (c *connection) buffer(size int) *host.Buffer {
	const slack = 64
	if c.out != nil && cap(c.out.B)-len(c.out.B) < size+slack && len(c.out.B) > 0 {
		c.flush()
	}
	if c.out == nil {
		c.out = c.sh.w.Buffer(size + slack)
		c.sh.touched = append(c.sh.touched, c)
	}
	return c.out
}

func (c *connection) flush() {
	b := c.out
	if b == nil {
		return
	}
	c.out = nil
	switch {
	case len(b.B) == 0 || c.closed || c.dropped:
		b.Free()
	case c.behind():
		c.keep(b.B)
		b.Free()
	default:
		c.d.Write(b)
	}
}

// behind reports whether the client takes less than there is for it: servers that
// send it what nobody has asked for one by one are not read meanwhile.
func (c *connection) behind() bool { return c.blocked || c.unread.size > 0 }

// resumeServers has them read again.
func (c *connection) resumeServers() {
	c.resumeStreams()
	if c.plain != nil {
		c.plain.resume()
	}
}

// WriteBlocked implements host.DownstreamEvents.
func (c *connection) WriteBlocked(blocked bool) {
	if c.closed || c.blocked == blocked {
		return
	}
	c.blocked = blocked
	c.holds(blocked)
	if blocked {
		c.unread.taken = c.sh.w.Now()
	} else if c.handOver(); c.unread.size == 0 {
		c.resumeServers()
	}
	switch {
	case c.plain != nil: // its directions know nothing of each other
	case blocked:
		c.d.ReadDisable(true)
	default:
		c.goOn()
	}
}
