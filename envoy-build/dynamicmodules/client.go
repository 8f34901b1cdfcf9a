package dynamicmodules

/*
#include "hooks.h"

static void mt_read_disable(mt_filter* f, bool disable) {
  if (!f->closed) MT_CALL(network_filter_read_disable)(f->envoy, disable);
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
	"net"
	"strconv"
	"time"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// lingerTime is how long a closed client may take to read what is left.
const lingerTime = 30 * time.Second

// client is a client connection. It implements host.Downstream.
type client struct {
	w             *worker
	f             *C.mt_filter
	ev            host.DownstreamEvents
	gone          bool
	local, remote string
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
	// Envoy waits for ever for a client that does not read.
	time.AfterFunc(lingerTime, func() {
		c.w.carriers.post(func() {
			if !c.gone {
				c.w.op(c.f, C.MT_CLOSE, closeNoFlush)
			}
		})
	})
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
	if !alive {
		c.gone = true
	}
	c.ev.Closed(remote)
	c.gone = true
}

func (c *client) failed() { c.ev.Failed() }
