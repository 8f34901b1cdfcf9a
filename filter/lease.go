package filter

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// leases reports whether the request goes over a connection of its client's own.
func (m *Message) leases() bool {
	return m.req.Lease != codecs.NotLeased && m.stream == nil && m.proto.requests.Mode == upstream.InOrder
}

// LeaseLost implements upstream.Client. What the server kept of the client it cannot
// go on with; it is told as by a server whose connection ends.
func (c *connection) LeaseLost() {
	c.unleased = true
	if !c.finishing && !c.closed {
		c.sh.warn(c.cfg, "client %s: closed, as the upstream connection that it had leased has ended", c.d.RemoteAddress())
		c.finish()
	}
}

// Pushed implements upstream.Client.
func (c *connection) Pushed(md *codecs.Metadata) {
	c.lastUse = c.sh.w.Now()
	buf := c.buffer(md.HeaderSize + md.BodySize)
	var err error
	buf.B, err = guard.Append(buf.B, func(dst []byte) ([]byte, error) { return c.proto.codec.Encode(dst, md, nil) })
	if err != nil && !c.panicked(err) {
		c.cfg.count(metrics.LocalResponseError, 1)
		c.sh.warn(c.cfg, "client %s: what a server has pushed cannot be encoded: %v", c.d.RemoteAddress(), err)
	}
}
