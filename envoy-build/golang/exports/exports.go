// Package exports makes a shared object one that Envoy's golang network filter loads: it
// exports the functions that the filter looks for. Link it by calling Serve, which
// package meltemi does, or a main with a pipeline of its own. It takes the place of
// Envoy's own package for this, and must not be linked beside it.
package exports

/*
#cgo CFLAGS: -O2 -Wall -Wextra -Wno-unused-function -fvisibility=hidden
#cgo nocallback mg_write
#cgo noescape mg_write
#cgo nocallback mg_close
#cgo nocallback mg_finalize
#cgo nocallback mg_info
#cgo nocallback mg_log
#cgo noescape mg_log
#include <stdlib.h>
#include "abi.h"
#include "hooks.h"

static void mg_write(void* f, void* p, int n) { envoyGoFilterDownstreamWrite(f, p, n, 0); }
static void mg_close(void* f, int how) { envoyGoFilterDownstreamClose(f, how); }
static void mg_finalize(void* f) { envoyGoFilterDownstreamFinalize(f, 0); }

typedef struct {
  const char* p;
  intptr_t n;
} mg_string;

static mg_string mg_info(void* f, int which) {
  mg_string s = {NULL, 0};
  if (envoyGoFilterDownstreamInfo(f, which, &s) != 0) s.n = 0;
  return s;
}

static int mg_log_level(void) { return envoyGoFilterLogLevel ? (int)envoyGoFilterLogLevel() : -1; }
static void mg_log(int level, void* p, int n) { envoyGoFilterLog(level, p, n); }
*/
import "C"

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/envoy-build/golang"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// What the process has one of. C has no other way to reach it.
var (
	module host.Module
	// served is the host, made when Envoy first asks for it: an object may be loaded for
	// another of Envoy's filters.
	served = sync.OnceValue(func() *golang.Host { return golang.New(module, golang.FromEnvironment(logf), logf) })
	// connections are the live ones, by Envoy's filters: *connection.
	connections sync.Map
)

// Serve makes m the pipeline of this shared object. It is called once, from an init
// function.
func Serve(m host.Module) {
	if module != nil {
		panic("golang: Serve called twice")
	}
	module = m
}

// connection is one of Envoy's filters. It implements golang.Connection. What it asks of
// Envoy is asked under the worker's lock, and not behind Release.
type connection struct {
	envoy  unsafe.Pointer
	client *golang.Client
	chunks [][]byte // of the event that is running
}

// Write implements golang.Connection.
func (c *connection) Write(b []byte) {
	C.mg_write(c.envoy, unsafe.Pointer(unsafe.SliceData(b)), C.int(len(b)))
}

// Close implements golang.Connection.
func (c *connection) Close(how golang.CloseType) { C.mg_close(c.envoy, C.int(how)) }

// Later implements golang.Connection: a write of no bytes comes back as one, and leaves
// nothing.
func (c *connection) Later() bool {
	C.mg_write(c.envoy, nil, 0)
	return true
}

// The ConnectionInfoType of Envoy's cgo.cc.
const (
	infoLocal  = 0
	infoRemote = 1
)

// Addresses implements golang.Connection.
func (c *connection) Addresses() (local, remote string) { return c.info(infoLocal), c.info(infoRemote) }

func (c *connection) info(which C.int) string {
	s := C.mg_info(c.envoy, which)
	return C.GoStringN(s.p, C.int(s.n))
}

// Release implements golang.Connection.
func (c *connection) Release() { C.mg_finalize(c.envoy) }

func barrier(doing string) {
	if r := recover(); r != nil {
		served().Caught(doing, r)
	}
}

// none is the number of no configuration. Envoy wants one that is not 0.
const none = 1<<64 - 1

//export mgConfig
func mgConfig(p *C.char, n C.uint64_t) (id C.uint64_t) {
	defer func() {
		if r := recover(); r != nil {
			served().Caught("loading a configuration", r)
			id = none
		}
	}()
	return C.uint64_t(served().Load(C.GoBytes(unsafe.Pointer(p), C.int(n))))
}

//export mgConnection
func mgConnection(f unsafe.Pointer, plugin *C.char, n C.uint64_t, config C.uint64_t) {
	defer barrier("taking a connection")
	c := &connection{envoy: f}
	connections.Store(uintptr(f), c)
	c.client = served().Accept(uint64(config), C.GoStringN(plugin, C.int(n)), c)
}

func find(f unsafe.Pointer) *connection {
	if v, ok := connections.Load(uintptr(f)); ok {
		return v.(*connection)
	}
	return nil
}

//export mgData
func mgData(f unsafe.Pointer, total C.uint64_t, slices *C.mg_slice, n C.int64_t, end C.int) {
	defer barrier("reading")
	c := find(f)
	if c == nil || c.client == nil {
		return
	}
	c.chunks = c.chunks[:0]
	for _, s := range unsafe.Slice(slices, int(n)) {
		if s.length > 0 {
			c.chunks = append(c.chunks, unsafe.Slice((*byte)(unsafe.Pointer(s.ptr)), int(s.length)))
		}
	}
	c.client.Data(c.chunks, int(total), end != 0)
}

//export mgTurned
func mgTurned(f unsafe.Pointer) {
	defer barrier("ending a turn")
	if c := find(f); c != nil && c.client != nil {
		c.client.Turned()
	}
}

//export mgClosed
func mgClosed(f unsafe.Pointer, remote C.int) {
	defer barrier("ending a connection")
	c := find(f)
	if c == nil {
		return
	}
	connections.Delete(uintptr(f)) // Envoy may use the address again
	if c.client == nil {
		c.Release()
		return
	}
	c.client.Closed(remote != 0)
}

// levels are Envoy's, spdlog's.
var levels = [...]C.int{host.Debug: 1, host.Info: 2, host.Warn: 3, host.Error: 4}

// logf logs with Envoy's logger, of those that have it for this filter; any thread may
// call it.
func logf(level host.Level, format string, args ...any) {
	switch least := C.mg_log_level(); {
	case least < 0:
		if level >= host.Info {
			fmt.Fprintf(os.Stderr, strings.TrimSuffix(format, "\n")+"\n", args...)
		}
	case levels[level] >= least:
		b := fmt.Appendf(nil, format, args...)
		if len(b) > 0 {
			C.mg_log(levels[level], unsafe.Pointer(&b[0]), C.int(len(b)))
		}
	}
}
