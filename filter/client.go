package filter

import (
	"net/netip"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
)

// Connection is a client connection as filters see it.
type Connection connection

// Connection returns the client's connection, which may have ended.
func (m *Message) Connection() *Connection { return (*Connection)(m.conn) }

// ID is unique among the connections of the process; 0 when it has ended.
func (c *Connection) ID() uint64 {
	if c.closed {
		return 0
	}
	return c.d.ID()
}

// RemoteAddress is the client's address as "ip:port" or a pipe's name, "" when unknown
// or gone.
func (c *Connection) RemoteAddress() string {
	if c.closed {
		return ""
	}
	return c.d.RemoteAddress()
}

// LocalAddress is that which the client has connected to, as RemoteAddress.
func (c *Connection) LocalAddress() string {
	if c.closed {
		return ""
	}
	return c.d.LocalAddress()
}

// RemoteIP is the client's IP address, the zero value if it has none.
func (c *Connection) RemoteIP() netip.Addr { return (*connection)(c).source() }

// DirectRemoteIP is the address of the connection itself, where RemoteIP may be what a
// proxy before the host has told (the PROXY protocol); the zero value if it has none.
func (c *Connection) DirectRemoteIP() netip.Addr { return (*connection)(c).located().direct }

// LocalAddrPort is LocalAddress, which is known of a connection that has ended, too, if
// it left messages behind; the zero value if it is no IP address.
func (c *Connection) LocalAddrPort() netip.AddrPort { return (*connection)(c).located().local }

// TLS is what the host knows of the client's TLS, nil if there is none. Not before the
// first message: the handshake has not come to its end.
func (c *Connection) TLS() *host.TLS { return c.d.TLS() }

// FilterState is what another filter of the host's, before ours, has left with the
// connection under a key, serialized; "" if there is nothing, the host does not tell, or
// the connection has ended. Envoy is asked each time, and a copy made: whoever needs it
// for each message keeps it.
func (c *Connection) FilterState(key string) string {
	if s, is := c.d.(host.FilterState); is {
		return s.FilterState(key)
	}
	return ""
}

// Codec is that which the connection speaks, nil as long as its first bytes have not
// told.
func (c *Connection) Codec() codecs.Codec {
	if c.proto == nil {
		return nil
	}
	return c.proto.codec
}

// Close has no more requests read, and the connection end when what is in flight is
// answered: also the request whose hook calls it.
func (c *Connection) Close() {
	if !c.leaving && !c.closed {
		c.leaving = true
		c.sh.later = append(c.sh.later, (*connection)(c))
	}
}

// ConnectionState is what the OnConnect of the filter that runs now has returned for the
// client's connection.
func (m *Message) ConnectionState() any {
	if m.pos >= len(m.conn.states) || m.conn.states[m.pos] == (unmet{}) {
		return nil
	}
	return m.conn.states[m.pos]
}

// connect tells filters of a new connection.
func (c *connection) connect() {
	if c.cfg.connFilters == 0 {
		return
	}
	c.states = make([]any, len(c.cfg.chain))
	for i := range c.cfg.chain {
		if k := &c.cfg.chain[i]; k.conn != nil {
			c.states[i] = unmet{} // should it panic
			c.tellFilter(k, func() { c.states[i] = k.conn.OnConnect((*Connection)(c)) })
		}
	}
	c.cfg.ownBatch() // gauges are told, though there may be no traffic
}

// unmet is the state of a connection that a filter has not taken in.
type unmet struct{}

// disconnect tells those that the connection has ended.
func (c *connection) disconnect() {
	if c.states == nil {
		return
	}
	for i, state := range c.states {
		if k := &c.cfg.chain[i]; k.conn != nil && state != (unmet{}) {
			c.tellFilter(k, func() { k.conn.OnDisconnect((*Connection)(c), state) })
		}
	}
	c.cfg.ownBatch()
	c.states = nil
}

// tellFilter runs a hook of a connection. A panic in it ends the connection.
func (c *connection) tellFilter(k *link, hook func()) {
	defer func() {
		if r := recover(); r != nil {
			c.cfg.filterPanicked(k.name, guard.New(r))
			(*Connection)(c).Close()
		}
	}()
	hook()
}
