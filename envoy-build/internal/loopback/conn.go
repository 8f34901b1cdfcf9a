package loopback

import (
	"net"
	"net/netip"
	"sync/atomic"
)

// fillerSize is how much is read at once of the bytes with which a host keeps a
// carrier's server from being read.
const fillerSize = 32 << 10

// Conn is the dialing side of one carrier.
type Conn struct {
	id   uint64
	conn net.Conn
	from Order       // without a source: any worker may have it
	born atomic.Bool // it has appeared on a worker, or never will
	gate atomic.Pointer[chan struct{}]
}

// Worker and Source are what the carrier was dialled for. Without a source any
// worker may have it.
func (c *Conn) Worker() int { return c.from.Worker }

// Source is the address that the carrier's server sees, the zero value for that of
// the host.
func (c *Conn) Source() netip.Addr { return c.from.Source }

// Mark sends the byte that is read as soon as the carrier's server takes bytes
// again.
func (c *Conn) Mark() {
	// The socket has room for it, and no deadline is missed if not. A broken one
	// ends by itself.
	go func() { c.conn.Write([]byte{mark}) }() //nolint:errcheck // as said
}

// Pause has no more read of what the host writes than is read just now.
func (c *Conn) Pause() {
	gate := make(chan struct{})
	c.gate.Store(&gate)
}

// Resume ends a pause. A carrier that ends during one needs it, too.
func (c *Conn) Resume() {
	if gate := c.gate.Swap(nil); gate != nil {
		close(*gate)
	}
}

// hold keeps the dialing side open as long as the host does. What comes are bytes
// that kept tcp_proxy from reading.
func (c *Conn) hold(d *Dialer) {
	buf := make([]byte, 1) // most are never sent any
	for {
		for gate := c.gate.Load(); gate != nil; gate = c.gate.Load() {
			<-*gate
		}
		if _, err := c.conn.Read(buf); err != nil {
			break
		}
		if len(buf) == 1 {
			buf = make([]byte, fillerSize)
		}
	}
	c.conn.Close()
	d.settle(c, nowhere)
	d.forget(c)
}
