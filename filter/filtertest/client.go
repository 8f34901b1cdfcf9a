package filtertest

import (
	"net"
	"strconv"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Client is a client connection that the test plays.
type Client struct {
	h   *Host
	w   *worker
	cfg *Config
	d   *downstream
	ev  host.DownstreamEvents

	pending  []byte // sent, not yet consumed by the pipeline
	eof      bool
	eofTold  bool
	disabled int
	received []byte
	closed   bool
	busy     bool // a delivery is already to do
	sent     bool // the pipeline has got bytes

	blocked bool
	above   bool
	held    []byte
}

// Dial opens a client connection under cfg on worker 0.
func (h *Host) Dial(cfg *Config) *Client { return h.DialOn(cfg, 0) }

// DialAt is Dial to that address of the host; others go to 10.0.0.1:20880.
func (h *Host) DialAt(cfg *Config, address string) *Client {
	return h.dial(cfg, 0, "10.0.0.2", address)
}

// DialOn opens a client connection under cfg on a worker.
func (h *Host) DialOn(cfg *Config, worker int) *Client { return h.dial(cfg, worker, "10.0.0.2", usual) }

// DialFrom is Dial from that IP address; others come from 10.0.0.2.
func (h *Host) DialFrom(cfg *Config, ip string) *Client { return h.dial(cfg, 0, ip, usual) }

// DialTLS is Dial by a client of whose TLS the host knows that; others have none.
func (h *Host) DialTLS(cfg *Config, tls host.TLS) *Client {
	c := h.dial(cfg, 0, "10.0.0.2", usual)
	c.d.tls = &tls // the handshake comes behind the connection
	return c
}

// DialBehind is DialFrom by way of a proxy at the address direct, which has told ip.
func (h *Host) DialBehind(cfg *Config, direct, ip string) *Client {
	c := h.dial(cfg, 0, ip, usual)
	c.d.direct = direct
	return c
}

const usual = "10.0.0.1:20880"

func (h *Host) dial(cfg *Config, worker int, ip, local string) *Client {
	w := h.workers[worker]
	h.lastID++
	c := &Client{h: h, w: w, cfg: cfg}
	c.d = &downstream{c: c, id: h.lastID, ip: ip, local: local, limit: h.limit}
	w.clients = append(w.clients, c)
	w.event(c, func() { c.ev = w.shard.Accept(cfg.fc, c.d) })
	h.Settle()
	return c
}

// SetFilterState has the host know that of the connection from now on, see
// host.FilterState.
func (c *Client) SetFilterState(key, value string) {
	if c.d.state == nil {
		c.d.state = map[string]string{}
	}
	c.d.state[key] = value
}

// Send sends bytes to the pipeline and lets everything happen that follows.
func (c *Client) Send(b ...[]byte) {
	for _, p := range b {
		c.pending = append(c.pending, p...)
	}
	c.schedule()
	c.h.Settle()
}

// SendSplit sends b in pieces: one for each offset at which it is cut.
func (c *Client) SendSplit(b []byte, offsets ...int) {
	last := 0
	for _, at := range offsets {
		c.Send(b[last:at])
		last = at
	}
	c.Send(b[last:])
}

// CloseWrite ends what the client sends; it still reads.
func (c *Client) CloseWrite() {
	c.eof = true
	c.schedule()
	c.h.Settle()
}

// SendLast sends bytes that the end of what the client sends comes with.
func (c *Client) SendLast(b []byte) {
	c.eof = true
	c.Send(b)
}

// Close closes the connection.
func (c *Client) Close() {
	c.close(true)
	c.h.Settle()
}

// Received returns all that the client has got so far.
func (c *Client) Received() []byte { return c.received }

// Take returns what the client has got since the last Take.
func (c *Client) Take() []byte {
	b := c.received
	c.received = nil
	return b
}

// Closed reports whether the connection has ended.
func (c *Client) Closed() bool { return c.closed }

// ReadDisabled reports whether the pipeline reads this client no more for now.
func (c *Client) ReadDisabled() bool { return c.disabled > 0 }

// Block(true) lets the client read nothing; Block(false) reads all that waits.
func (c *Client) Block(block bool) {
	c.blocked = block
	if !block && !c.closed {
		c.received = append(c.received, c.held...)
		c.held = nil
		if c.above {
			c.above = false
			c.w.event(c, func() { c.ev.WriteBlocked(false) })
		}
	}
	c.h.Settle()
}

// schedule has the pipeline read when it may.
func (c *Client) schedule() {
	if c.busy || c.closed || c.disabled > 0 {
		return
	}
	c.busy = true
	c.h.todo = append(c.h.todo, func() {
		c.busy = false
		if c.closed || c.disabled > 0 || c.eofTold || len(c.pending) == 0 && !c.eof {
			return
		}
		read := c.pending
		if limit := c.d.limit; limit > 0 {
			read = read[:min(len(read), limit)]
		}
		total := len(read)
		more := total < len(c.pending)
		end := c.eof && !more
		c.eofTold = end // told once, whatever becomes of it
		c.sent = true
		n := 0
		deliver(read, func(b [][]byte) {
			if total == 0 {
				b = nil
			}
			c.w.event(c, func() { n = c.ev.Data(b, total, end) })
		})
		if n < 0 || n > total {
			c.h.t.Errorf("filtertest: Data consumed %d of %d bytes", n, total)
			n = total
		}
		c.pending = c.pending[n:]
		if more && n > 0 {
			c.schedule()
		}
	})
}

func (c *Client) close(remote bool) {
	if c.closed {
		return
	}
	c.closed = true
	for i, o := range c.w.clients {
		if o == c {
			c.w.clients = append(c.w.clients[:i], c.w.clients[i+1:]...)
			break
		}
	}
	c.w.event(nil, func() { c.ev.Closed(remote) })
	c.d.gone = true
}

func (c *Client) fail() {
	if c.ev != nil {
		c.w.guard(nil, c.ev.Aborted)
	}
	c.w.op(func() { c.close(false) })
}

// downstream implements host.Downstream.
type downstream struct {
	c      *Client
	id     uint64
	ip     string
	local  string
	limit  int
	tls    *host.TLS
	known  *host.TLS // what has been asked for
	gone   bool      // nothing is told any more
	direct string    // IP address, where a proxy has told another one
	state  map[string]string
}

// Write implements host.Downstream.
func (d *downstream) Write(b *host.Buffer) {
	c := d.c
	data := c.w.take(b)
	c.w.op(func() {
		switch {
		case c.closed:
		case c.blocked:
			c.held = append(c.held, data...)
			if len(c.held) > watermark && !c.above {
				c.above = true
				c.w.event(c, func() { c.ev.WriteBlocked(true) })
			}
		default:
			c.received = append(c.received, data...)
		}
	})
}

// Close implements host.Downstream.
func (d *downstream) Close(flush bool) {
	c := d.c
	c.w.op(func() {
		if flush && !c.closed {
			c.received = append(c.received, c.held...)
			c.held = nil
		}
		c.close(false)
	})
}

// ReadDisable implements host.Downstream.
func (d *downstream) ReadDisable(disable bool) {
	c := d.c
	if disable {
		c.disabled++
		return
	}
	if c.disabled == 0 {
		c.h.t.Error("filtertest: ReadDisable(false) without a ReadDisable(true)")
		return
	}
	if c.disabled--; c.disabled == 0 && (len(c.pending) > 0 || c.eof) {
		c.schedule()
	}
}

// BufferLimit implements host.Downstream.
func (d *downstream) BufferLimit() int { return d.limit }

// ID implements host.Downstream.
func (d *downstream) ID() uint64 { return d.id }

// LocalAddress implements host.Downstream.
func (d *downstream) LocalAddress() string { return d.local }

// RemoteAddress implements host.Downstream.
func (d *downstream) RemoteAddress() string {
	return net.JoinHostPort(d.ip, strconv.FormatUint(1024+d.id, 10))
}

// DirectRemoteAddress implements host.Downstream.
func (d *downstream) DirectRemoteAddress() string {
	if d.direct == "" {
		return d.RemoteAddress()
	}
	return net.JoinHostPort(d.direct, "1024")
}

// TLS implements host.Downstream.
func (d *downstream) TLS() *host.TLS {
	if !d.c.sent {
		d.c.h.t.Error("filtertest: TLS was asked for before the first Data")
	}
	if !d.gone {
		d.known = d.tls
	}
	return d.known
}

// FilterState implements host.FilterState.
func (d *downstream) FilterState(key string) string {
	if d.gone {
		return ""
	}
	return d.state[key]
}

// Count implements host.Downstream.
func (d *downstream) Count(id host.MetricID, delta int64) {
	if delta <= 0 {
		d.c.h.t.Errorf("filtertest: counter %s changed by %d", d.c.cfg.names[id], delta)
	}
	d.c.cfg.metrics[id].value += delta
}

// Add implements host.Downstream.
func (d *downstream) Add(id host.MetricID, delta int64) { d.c.cfg.metrics[id].value += delta }

// Record implements host.Downstream.
func (d *downstream) Record(id host.MetricID, values []uint64) {
	m := d.c.cfg.metrics[id]
	m.values = append(m.values, values...)
}
