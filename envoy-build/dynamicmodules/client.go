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
enum { MT_LOCAL, MT_REMOTE, MT_DIRECT };
static bool mt_address(mt_filter* f, int which, mt_buf* out, uint32_t* port) {
  switch (which) {
  case MT_LOCAL:
    return MT_CALL(network_filter_get_local_address)(f->envoy, out, port);
  case MT_REMOTE:
    return MT_CALL(network_filter_get_remote_address)(f->envoy, out, port);
  default:
    return MT_CALL(network_filter_get_direct_remote_address) &&
           MT_CALL(network_filter_get_direct_remote_address)(f->envoy, out, port);
  }
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
	"unsafe"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/linger"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// client is a client connection. It implements host.Downstream and linger.Client.
type client struct {
	w         *worker
	f         *filter
	ev        host.DownstreamEvents
	gone      bool
	asked     bool // for tls
	tls       *host.TLS
	addresses *[3]string    // nil before one is asked for
	linger    *linger.Place // nil before it is closed
}

func newClient(w *worker, f *filter, cfg host.FilterConfig) {
	c := &client{w: w, f: f}
	w.add(c, f)
	c.ev = w.shard.Accept(cfg, c)
}

// Write implements host.Downstream.
func (c *client) Write(b *host.Buffer) {
	if c.gone {
		b.Free()
		return
	}
	p, n := c.w.take(b)
	c.w.record(c.f, C.MT_SEND_DOWN, 0, p, n)
}

// Close implements host.Downstream.
func (c *client) Close(flush bool) {
	if c.gone {
		return
	}
	if !flush {
		c.f.Close()
		return
	}
	c.f.op(C.MT_CLOSE, C.MT_FLUSH)
	c.linger = c.w.lingering.Add(c, c.linger)
}

// Unsent implements linger.Client.
func (c *client) Unsent(most uint32) uint32 {
	return uint32(C.mt_unsent(c.f.c(), C.uint32_t(most)))
}

// Cut implements linger.Client.
func (c *client) Cut() { c.f.Close() }

// BufferLimit implements host.Downstream.
func (c *client) BufferLimit() int {
	if c.gone {
		return 0
	}
	return int(C.mt_buffer_limit(c.f.c()))
}

// ReadDisable implements host.Downstream.
func (c *client) ReadDisable(disable bool) {
	if !c.gone {
		C.mt_read_disable(c.f.c(), C.bool(disable))
	}
}

// ID implements host.Downstream.
func (c *client) ID() uint64 {
	if c.gone {
		return 0
	}
	return uint64(C.mt_id(c.f.c()))
}

// LocalAddress implements host.Downstream.
func (c *client) LocalAddress() string { return c.address(C.MT_LOCAL) }

// RemoteAddress implements host.Downstream.
func (c *client) RemoteAddress() string { return c.address(C.MT_REMOTE) }

// DirectRemoteAddress implements host.Downstream.
func (c *client) DirectRemoteAddress() string { return c.address(C.MT_DIRECT) }

func (c *client) address(which C.int) string {
	if c.addresses == nil {
		c.addresses = new([3]string)
	}
	a := &c.addresses[which]
	if *a == "" && !c.gone {
		var b C.mt_buf
		var port C.uint32_t
		if bool(C.mt_address(c.f.c(), which, &b, &port)) {
			*a = joined(b, port)
		}
	}
	return *a
}

// TLS implements host.Downstream.
func (c *client) TLS() *host.TLS {
	if !c.asked && !c.gone {
		c.asked, c.tls = true, tls(c.f)
	}
	return c.tls
}

// FilterState implements host.FilterState.
func (c *client) FilterState(key string) string {
	if c.gone {
		return ""
	}
	return c.f.State(key)
}

// Count implements host.Downstream.
func (c *client) Count(id host.MetricID, delta int64) {
	if !c.gone && delta > 0 {
		C.mt_count(c.f.c(), C.size_t(id), C.uint64_t(delta))
	}
}

// Add implements host.Downstream.
func (c *client) Add(id host.MetricID, delta int64) {
	if !c.gone {
		C.mt_gauge(c.f.c(), C.size_t(id), C.int64_t(delta))
	}
}

// Record implements host.Downstream.
func (c *client) Record(id host.MetricID, values []uint64) {
	if !c.gone {
		C.mt_record(c.f.c(), C.size_t(id), (*C.uint64_t)(unsafe.SliceData(values)), C.size_t(len(values)))
	}
}

func (c *client) closed(remote, alive bool) {
	c.gone = !alive
	c.w.lingering.Remove(c.linger)
	if !c.w.Guard("closing a client", func() { c.ev.Closed(remote) }) {
		c.w.Guard("giving up a client", c.ev.Aborted)
	}
	c.gone = true
}

// Aborted implements conn.
func (c *client) Aborted() { c.ev.Aborted() }
