// Package dynamicmodules binds Meltemi to Envoy's dynamic-modules ABI: it is
// what makes a shared object that stock Envoy 1.38 and later loads. Link it by
// a blank import of package meltemi beside it, or call Serve with a module of
// your own from an init function.
//
// Its C half (hooks.c) holds Envoy's hooks. Each makes one call into this half,
// which records what is to be done; the C half carries that out afterwards. So
// Go code is never re-entered, whatever Envoy calls back in between.
package dynamicmodules

/*
#cgo CFLAGS: -O2 -Wall -Wextra -Wno-unused-function -fvisibility=hidden
#include <stdlib.h>
#include "hooks.h"

static void mt_log(int level, char* p, size_t n) {
  if (MT_CALL(log)) MT_CALL(log)(level, (mt_buf){p, n});
}
static bool mt_log_enabled(int level) { return !MT_CALL(log_enabled) || MT_CALL(log_enabled)(level); }
static uint32_t mt_concurrency(void) { return MT_CALL(get_concurrency) ? MT_CALL(get_concurrency)() : 0; }
static bool mt_validating(void) { return MT_CALL(is_validation_mode) && MT_CALL(is_validation_mode)(); }

static int mt_define(void* config, int kind, char* p, size_t n, size_t* id) {
  mt_buf name = {p, n};
  switch (kind) {
  case MT_COUNTER: return MT_CALL(network_filter_config_define_counter)(config, name, id);
  case MT_GAUGE: return MT_CALL(network_filter_config_define_gauge)(config, name, id);
  default: return MT_CALL(network_filter_config_define_histogram)(config, name, id);
  }
}
static void* mt_config_scheduler(void* config) {
  if (!MT_CALL(network_filter_config_scheduler_new)) return NULL;
  void* s = MT_CALL(network_filter_config_scheduler_new)(config);
  if (s) MT_CALL(network_filter_config_scheduler_commit)(s, MT_EVENT);
  return s;
}
static void mt_config_scheduler_delete(void* s) {
  if (s) MT_CALL(network_filter_config_scheduler_delete)(s);
}
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/carrier"
	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	proxyFilter   = "meta_protocol_proxy"
	carrierFilter = "carrier"
)

// Serve makes m the pipeline of this shared object. It is called once, from an
// init function.
func Serve(m host.Module) {
	if module != nil {
		panic("dynamicmodules: Serve called twice")
	}
	module = m
}

// concurrency is how many workers there are, 0 if unknown.
func concurrency() int { return int(C.mt_concurrency()) }

// published is called when Envoy has accepted the update that brought fc.
func (fc *filterConfig) published(id uint32) {
	if fc.proxy != nil {
		fc.proxy.Published()
	} else if !bool(C.mt_validating()) {
		dialer.Serve(fc.carrier.Path)
		operators.Serve(fc.carrier.Admin)
		push(fc.carrier.Push)
		time.AfterFunc(carrier.RenewTime, func() {
			everyWorker(func(w *worker) { w.carriers.Renew(id) })
		})
	}
}

//export mtConfigNew
func mtConfigNew(c *C.mt_config, envoy unsafe.Pointer, name *C.char, nameLen C.size_t, raw *C.char, rawLen C.size_t) (ok C.bool) {
	defer func() {
		if r := recover(); r != nil {
			panics.Caught("loading a configuration", r)
			ok = false
		}
	}()
	setUp(concurrency())
	fc := &filterConfig{}
	bytes := C.GoBytes(unsafe.Pointer(raw), C.int(rawLen))
	switch n := C.GoStringN(name, C.int(nameLen)); n {
	case proxyFilter:
		if module == nil {
			logf(host.Error, "meltemi: this shared object links no pipeline")
			return false
		}
		p, err := module.NewConfig(loading{envoy}, bytes)
		if err != nil {
			logf(host.Error, "meltemi: %s refused: %v", n, err)
			return false
		}
		fc.proxy = p
		c.role = C.MT_CLIENT
	case carrierFilter:
		cc, err := config.LoadCarrier(bytes)
		if err != nil {
			logf(host.Error, "meltemi: carrier refused: %v", err)
			return false
		}
		if !bool(C.mt_validating()) {
			dialer.Expect(cc.Path)
		}
		fc.carrier = cc
		c.role = C.MT_CARRIER
	default:
		logf(host.Error, "meltemi: filter_name %q is unknown: want %s or %s", n, proxyFilter, carrierFilter)
		return false
	}
	id, err := loading{envoy}.DefineCounter(panicsCounter)
	if err != nil {
		logf(host.Error, "meltemi: %v", err)
		return false
	}
	c.panics = C.size_t(id)
	added := configs.add(fc)
	c.id = C.uint32_t(added)
	// Its event comes when the main thread is done with what brought this
	// configuration, unless that was refused.
	if fc.scheduler = C.mt_config_scheduler(envoy); fc.scheduler == nil {
		fc.published(added)
	}
	return true
}

//export mtConfigScheduled
func mtConfigScheduled(id C.uint32_t) {
	defer barrier("publishing a configuration")
	if fc := configs.get(uint32(id)); fc != nil {
		fc.published(uint32(id))
	}
}

//export mtConfigDestroy
func mtConfigDestroy(id C.uint32_t) {
	defer barrier("dropping a configuration")
	fc := configs.get(uint32(id))
	configs.remove(uint32(id))
	if fc == nil {
		return
	}
	C.mt_config_scheduler_delete(fc.scheduler)
	if fc.proxy != nil {
		fc.proxy.Destroy()
	}
}

// loading implements host.Config during one mtConfigNew.
type loading struct{ envoy unsafe.Pointer }

func (l loading) define(kind C.int, name string) (host.MetricID, error) {
	var id C.size_t
	b := []byte(name)
	if len(b) == 0 {
		return 0, errors.New("metric without a name")
	}
	if r := C.mt_define(l.envoy, kind, (*C.char)(unsafe.Pointer(&b[0])), C.size_t(len(b)), &id); r != 0 {
		return 0, fmt.Errorf("metric %s cannot be defined (%d)", name, r)
	}
	return host.MetricID(id), nil
}

func (l loading) DefineCounter(name string) (host.MetricID, error) {
	return l.define(C.MT_COUNTER, name)
}
func (l loading) DefineGauge(name string) (host.MetricID, error) { return l.define(C.MT_GAUGE, name) }
func (l loading) DefineHistogram(name string) (host.MetricID, error) {
	return l.define(C.MT_HISTOGRAM, name)
}

func (l loading) Background() host.Background { return background{} }

// background implements host.Background.
type background struct{}

func (background) Logf(level host.Level, format string, args ...any) { logf(level, format, args...) }

func (background) DialCluster(ctx context.Context, cluster string) (net.Conn, error) {
	return dialer.Tunnel(ctx, cluster)
}

// logf logs with Envoy's logger; any thread may call it.
func logf(level host.Level, format string, args ...any) {
	if !bool(C.mt_log_enabled(C.int(level))) {
		return
	}
	b := fmt.Appendf(nil, format, args...)
	if len(b) > 0 {
		C.mt_log(C.int(level), (*C.char)(unsafe.Pointer(&b[0])), C.size_t(len(b)))
	}
}
