package dynamicmodules

/*
#include "hooks.h"

static void mt_read_disable(mt_filter* f, bool disable) {
  if (!f->closed) MT_CALL(network_filter_read_disable)(f->envoy, disable);
}
static uint32_t mt_buffer_limit(mt_filter* f) {
  return MT_CALL(network_filter_get_buffer_limit) ? MT_CALL(network_filter_get_buffer_limit)(f->envoy) : 0;
}
static uint64_t mt_id(mt_filter* f) { return MT_CALL(network_filter_get_connection_id)(f->envoy); }
static bool mt_address(mt_filter* f, bool local, mt_buf* out, uint32_t* port) {
  return local ? MT_CALL(network_filter_get_local_address)(f->envoy, out, port)
               : MT_CALL(network_filter_get_remote_address)(f->envoy, out, port);
}
static void mt_count(mt_filter* f, size_t id, uint64_t n) { MT_CALL(network_filter_increment_counter)(f->envoy, id, n); }
static void mt_gauge(mt_filter* f, size_t id, int64_t n) {
  if (n >= 0) MT_CALL(network_filter_increment_gauge)(f->envoy, id, n);
  else MT_CALL(network_filter_decrement_gauge)(f->envoy, id, -n);
}
static void mt_record(mt_filter* f, size_t id, const uint64_t* values, size_t n) {
  for (size_t i = 0; i < n; i++) MT_CALL(network_filter_record_histogram_value)(f->envoy, id, values[i]);
}
*/
import "C"

import (
	"math"
	"net"
	"strconv"
	"time"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// lingerTime is how long a closed client may read nothing of what is left, as
	// far as Envoy can see: the kernel takes more when a third of its buffer is free.
	lingerTime = 30 * time.Second
	// lingerTick is how often that is looked at.
	lingerTick = 5 * time.Second
)

// client is a client connection. It implements host.Downstream.
type client struct {
	w             *worker
	f             *C.mt_filter
	ev            host.DownstreamEvents
	gone          bool
	local, remote string

	place    int           // in the worker's lingering, from 1; 0: not there
	unsent   uint32        // bytes that it was seen to leave unread, at most
	progress time.Duration // when they became fewer
}

// lingering are the closed clients that have not read everything yet. Envoy waits
// for ever for one that does not read.
type lingering struct {
	w       *worker
	clients []*client
	swept   bool // now and then
}

func (l *lingering) add(c *client) {
	if c.place > 0 {
		return
	}
	l.clients = append(l.clients, c)
	c.place, c.unsent, c.progress = len(l.clients), math.MaxInt32, l.w.now
	if !l.swept {
		l.swept = true
		l.sweepLater()
	}
}

func (l *lingering) sweepLater() {
	time.AfterFunc(lingerTick, func() { l.w.carriers.post(l.sweep) })
}

func (l *lingering) remove(c *client) {
	if c.place == 0 {
		return
	}
	n := len(l.clients) - 1
	l.clients[c.place-1], l.clients[n].place = l.clients[n], c.place
	l.clients[n] = nil
	l.clients = l.clients[:n]
	c.place = 0
}

// sweep closes those that have read nothing for too long.
func (l *lingering) sweep() {
	for _, c := range l.clients {
		if left := uint32(C.mt_unsent(c.f, C.uint32_t(c.unsent))); left < c.unsent {
			c.unsent, c.progress = left, l.w.now
		} else if l.w.now-c.progress >= lingerTime {
			l.w.op(c.f, C.MT_CLOSE, closeNoFlush)
		}
	}
	if l.swept = len(l.clients) > 0; l.swept {
		l.sweepLater()
	} else {
		l.clients = nil
	}
}

func newClient(w *worker, f *C.mt_filter, cfg host.FilterConfig) {
	c := &client{w: w, f: f}
	w.add(c, f)
	c.ev = w.shard.Accept(cfg, c)
}

// Write implements host.Downstream.
func (c *client) Write(b *host.Buffer, end bool) {
	arg := uint32(0)
	if end {
		arg = 1
	}
	if b == nil {
		if !c.gone {
			c.w.record(c.f, C.MT_SEND_DOWN, arg, nil, 0)
		}
		return
	}
	p, n := c.w.take(b)
	if !c.gone {
		c.w.record(c.f, C.MT_SEND_DOWN, arg, p, n)
	}
}

// Close implements host.Downstream.
func (c *client) Close(flush bool) {
	if c.gone {
		return
	}
	if !flush {
		c.w.op(c.f, C.MT_CLOSE, closeNoFlush)
		return
	}
	c.w.op(c.f, C.MT_CLOSE, closeFlush)
	c.w.lingering.add(c)
}

// BufferLimit implements host.Downstream.
func (c *client) BufferLimit() int {
	if c.gone {
		return 0
	}
	return int(C.mt_buffer_limit(c.f))
}

// ReadDisable implements host.Downstream.
func (c *client) ReadDisable(disable bool) {
	if !c.gone {
		C.mt_read_disable(c.f, C.bool(disable))
	}
}

// ID implements host.Downstream.
func (c *client) ID() uint64 {
	if c.gone {
		return 0
	}
	return uint64(C.mt_id(c.f))
}

// LocalAddress implements host.Downstream.
func (c *client) LocalAddress() string {
	if c.local == "" && !c.gone {
		c.local = address(c.f, true)
	}
	return c.local
}

// RemoteAddress implements host.Downstream.
func (c *client) RemoteAddress() string {
	if c.remote == "" && !c.gone {
		c.remote = address(c.f, false)
	}
	return c.remote
}

func address(f *C.mt_filter, local bool) string {
	var b C.mt_buf
	var port C.uint32_t
	if !bool(C.mt_address(f, C.bool(local), &b, &port)) || b.length == 0 {
		return ""
	}
	return net.JoinHostPort(C.GoStringN(b.ptr, C.int(b.length)), strconv.Itoa(int(port)))
}

// Count implements host.Downstream.
func (c *client) Count(id host.MetricID, delta int64) {
	if !c.gone && delta > 0 {
		C.mt_count(c.f, C.size_t(id), C.uint64_t(delta))
	}
}

// Add implements host.Downstream.
func (c *client) Add(id host.MetricID, delta int64) {
	if !c.gone {
		C.mt_gauge(c.f, C.size_t(id), C.int64_t(delta))
	}
}

// Record implements host.Downstream.
func (c *client) Record(id host.MetricID, values []uint64) {
	if !c.gone {
		C.mt_record(c.f, C.size_t(id), (*C.uint64_t)(unsafe.SliceData(values)), C.size_t(len(values)))
	}
}

func (c *client) closed(remote, alive bool) {
	c.gone = !alive
	c.w.lingering.remove(c)
	if !guarded("closing a client", func() { c.ev.Closed(remote) }) {
		guarded("giving up a client", c.ev.Failed)
		c.w.countPanics()
	}
	c.gone = true
}

func (c *client) failed() { c.ev.Failed() }
