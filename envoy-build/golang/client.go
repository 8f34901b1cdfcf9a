package golang

import (
	"sync"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/linger"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Client is a client's connection. Its exported methods but for those of
// host.Downstream are the events of Envoy, all on one thread. It implements
// host.Downstream and linger.Client.
type Client struct {
	w      *worker
	cfg    *configuration // nil: it is turned away
	conn   Connection
	id     uint64
	local  string
	remote string
	// metrics are those of cfg, which may be given up before the last is counted.
	metrics []*metric

	// Under the worker's lock.
	ev       host.DownstreamEvents
	gone     bool // its end has been told
	away     bool // it has ended, which is told behind what is held
	touched  bool
	closing  closing
	out      []*host.Buffer
	disabled int
	held     held // not consumed
	ended    bool // the client sends no more …
	told     bool // … and the pipeline knows
	resuming bool
	unread   unread
	linger   *linger.Place // nil before it is closed
}

type closing uint8

const (
	stays closing = iota
	flushes
	closes
)

// Accept takes a new connection under a configuration that Load has returned. It is
// called on the connection's thread, as its first event.
func (h *Host) Accept(id uint64, plugin string, conn Connection) (c *Client) {
	c = &Client{conn: conn}
	defer func() {
		if r := recover(); r != nil {
			h.panics.Caught("taking a connection", r)
			conn.Close(NoFlush)
		}
	}()
	c.w = h.worker()
	if plugin != PluginName {
		h.misnamed.Logf(h.log, host.Error, "meltemi: plugin_name %q is unknown: want %s", plugin, PluginName)
		conn.Close(NoFlush)
		return c
	}
	if c.cfg = h.configs.use(id); c.cfg == nil {
		h.unserved.Logf(h.log, host.Warn, "meltemi: a client was closed: the configuration of its listener was refused")
		conn.Close(NoFlush)
		return c
	}
	c.local, c.remote = conn.Addresses()
	c.id, c.metrics = h.lastID.Add(1), c.cfg.metrics
	if c.w.enter() {
		c.accept()
		c.w.leave()
	} else {
		c.w.put(item{kind: accepted, client: c})
	}
	return c
}

// Data hands over bytes that have come, total bytes together. end says that no more
// will.
func (c *Client) Data(chunks [][]byte, total int, end bool) {
	w := c.w
	if c.cfg == nil {
		return
	}
	if w.enter() {
		c.data(chunks, total, end)
		w.gather(c, total)
		return
	}
	b := copies.Get().(*[]byte)
	for _, chunk := range chunks {
		*b = append(*b, chunk...)
	}
	w.put(item{kind: data, client: c, data: b, flag: end})
}

// Turned is what [Connection.Later] has asked for.
func (c *Client) Turned() {
	if w := c.w; w.enter() {
		w.leave()
	} else {
		w.put(item{kind: nothing})
	}
}

// copies are for bytes that wait for a worker.
var copies = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

const keepCopy = 64 << 10

func giveBack(b *[]byte) {
	if cap(*b) <= keepCopy {
		*b = (*b)[:0]
		copies.Put(b)
	}
}

// Closed is the last event. remote says that the client has closed.
func (c *Client) Closed(remote bool) {
	switch w := c.w; {
	case c.cfg == nil:
		c.conn.Release()
	case w.enter():
		c.closed(remote)
		w.leave()
	default:
		w.put(item{kind: closed, client: c, flag: remote})
	}
}

func (c *Client) accept() {
	c.w.guard(c, func() { c.ev = c.w.shard.Accept(c.cfg.proxy, c) })
}

func (c *Client) data(chunks [][]byte, total int, end bool) {
	if c.gone || c.ev == nil || c.closing != stays {
		return
	}
	c.ended = c.ended || end
	if c.disabled > 0 || c.held.size > 0 {
		c.hold(chunks, 0)
		c.deliver()
		return
	}
	if n := c.hand(chunks, total); n < total {
		c.hold(chunks, n)
	}
}

// deliver hands over what is held, if it is wanted.
func (c *Client) deliver() {
	if c.gone || c.closing != stays || c.disabled > 0 || c.held.size == 0 && (c.told || !c.ended) {
		return
	}
	c.release(c.hand(c.held.chunks, c.held.size))
}

func (c *Client) hand(chunks [][]byte, total int) (consumed int) {
	c.told = c.ended
	if !c.w.guard(c, func() { consumed = c.ev.Data(chunks, total, c.ended) }) {
		return total
	}
	return consumed
}

// resume hands over what has come while the client was not read.
func (c *Client) resume() {
	c.resuming = false
	c.deliver()
	if c.away && !c.gone && !c.resuming && (c.disabled == 0 || c.closing != stays) {
		c.over(true)
	}
}

// resumeSoon has resume called within the event that is running.
func (c *Client) resumeSoon() {
	if !c.resuming {
		c.resuming = true
		c.w.resumed = append(c.w.resumed, c)
	}
}

func (c *Client) closed(remote bool) {
	c.w.gathering = false // it may be the one that was to tell
	if c.gone {
		return
	}
	c.w.lingering.Remove(c.linger)
	c.conn.Release()
	if remote && c.disabled > 0 && c.held.size > 0 && c.closing == stays {
		// A host that can make clients wait would not have read its end yet.
		c.away = true
		c.setBlocked(false)
		return
	}
	c.over(remote)
}

// over tells the client's end.
func (c *Client) over(remote bool) {
	if c.ev != nil && !c.w.guard(nil, func() { c.ev.Closed(remote) }) {
		c.w.guard(nil, c.ev.Aborted)
	}
	c.gone = true
	c.drop()
	c.release(c.held.size)
	c.w.h.configs.left(c.cfg)
}

// fail implements failer.
func (c *Client) fail() {
	if c.ev != nil {
		c.w.guard(nil, c.ev.Aborted)
	}
	c.Close(false)
}

func (c *Client) touch() {
	if !c.touched {
		c.touched = true
		c.w.touched = append(c.w.touched, c)
	}
}

// carryOut does what was recorded: what was written goes by one write.
func (c *Client) carryOut() {
	c.touched = false
	if c.gone || c.away {
		c.drop()
		return
	}
	switch {
	case c.closing == closes || len(c.out) == 0:
	case len(c.out) == 1:
		c.write(c.out[0].B)
	default:
		b := c.w.join[:0]
		for _, o := range c.out {
			b = append(b, o.B...)
		}
		c.w.join = b
		c.write(b)
	}
	c.drop()
	switch c.closing {
	case flushes:
		c.conn.Close(FlushWrite)
		c.linger = c.w.lingering.Add(c, c.linger)
	case closes:
		c.conn.Close(NoFlush)
	}
}

func (c *Client) write(b []byte) {
	if len(b) > 0 {
		c.conn.Write(b)
		c.wrote(len(b))
	}
}

func (c *Client) drop() {
	for i, b := range c.out {
		b.Free()
		c.out[i] = nil
	}
	c.out = c.out[:0]
}

// Write implements host.Downstream.
func (c *Client) Write(b *host.Buffer) {
	if c.gone || c.closing != stays {
		b.Free()
		return
	}
	c.out = append(c.out, b)
	c.touch()
}

// Close implements host.Downstream.
func (c *Client) Close(flush bool) {
	how := closes
	if flush {
		how = flushes
	}
	if c.gone || how <= c.closing {
		return
	}
	c.closing = how
	c.release(c.held.size)
	if c.away {
		c.resumeSoon()
		return
	}
	c.touch()
}

// ReadDisable implements host.Downstream. Envoy reads all the same: what comes is held.
func (c *Client) ReadDisable(disable bool) {
	switch {
	case c.gone:
	case disable:
		c.disabled++
	default:
		if c.disabled--; c.disabled == 0 && (c.held.size > 0 || c.ended && !c.told || c.away) {
			c.resumeSoon()
		}
	}
}

// BufferLimit implements host.Downstream.
func (c *Client) BufferLimit() int { return 0 }

// ID implements host.Downstream.
func (c *Client) ID() uint64 { return c.id }

// LocalAddress implements host.Downstream.
func (c *Client) LocalAddress() string { return c.local }

// RemoteAddress implements host.Downstream: what a proxy before Envoy has told is not
// known.
func (c *Client) RemoteAddress() string { return c.remote }

// DirectRemoteAddress implements host.Downstream.
func (c *Client) DirectRemoteAddress() string { return c.remote }

// TLS implements host.Downstream: nothing tells of it.
func (c *Client) TLS() *host.TLS { return nil }

// Count implements host.Downstream.
func (c *Client) Count(id host.MetricID, delta int64) { c.metrics[id].add(delta) }

// Add implements host.Downstream.
func (c *Client) Add(id host.MetricID, delta int64) { c.metrics[id].add(delta) }

// Record implements host.Downstream.
func (c *Client) Record(id host.MetricID, values []uint64) { c.metrics[id].record(values) }
