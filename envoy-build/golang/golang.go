// Package golang binds Meltemi to Envoy's golang network filter, which contrib Envoy has
// since 1.27 and Istio's proxies since 1.19. It knows neither cgo nor the official
// package: what calls it are the entrances, package exports with our own functions for
// Envoy, and the module register for shared objects that link the official package.
//
// That filter shows its connection and little else: it copies and drains what is read,
// posts what is written, has no timers, no metrics, and no TCP client that would be of
// use. What it lacks is here: workers with a lock and a poller of their own, tunnels
// (upstream connections that go over the loopback listener of the same Envoy, made of
// stock filters only), metrics, and what clients have not read.
package golang

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/admin"
	"github.com/meltemi-mesh/meltemi/envoy-build/internal/process"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// PluginName is the plugin_name under which the filter's configuration asks for us.
const PluginName = "meta_protocol_proxy"

// Connection is a client's connection as an entrance shows it. Any goroutine may write
// and close; Envoy does so later, in the order of the calls. Nothing is called behind
// Release.
type Connection interface {
	// Write has b, which is copied and not empty, sent.
	Write(b []byte)
	// Close closes the connection.
	Close(how CloseType)
	// Addresses are those of this side and of the peer, "ip:port" or a pipe's name. It is
	// called once, on the connection's own thread, before all else.
	Addresses() (local, remote string)
	// Release is called behind the connection's last event.
	Release()
}

// CloseType is Envoy's Network::ConnectionCloseType, as far as it is used.
type CloseType int

const (
	// FlushWrite closes when everything is sent.
	FlushWrite CloseType = 0
	// NoFlush closes at once.
	NoFlush CloseType = 1
)

// Host is the golang filter's side of one pipeline: the whole process's. It is made once.
type Host struct {
	module   host.Module
	log      process.Log
	panics   *process.Panics
	settings Settings
	metrics  metrics
	configs  configs
	hosts    hosts
	admin    *admin.Server
	// What clients, and connections that fail, can cause as often as they like.
	misnamed, unserved, overrun, unlinked process.Sometimes

	setUp sync.Once

	mu      sync.RWMutex
	workers map[int]*worker // by their threads

	lastID atomic.Uint64 // of clients
}

// New returns a host of m with those settings. It logs by log.
func New(m host.Module, s Settings, log process.Log) *Host {
	h := &Host{module: m, log: log, panics: process.NewPanics(log), settings: s, workers: map[int]*worker{}}
	h.configs.h, h.metrics.panics = h, h.panics
	h.admin = admin.New(h.pages, log)
	return h
}

// begin is what the first configuration brings about.
func (h *Host) begin() {
	h.setUp.Do(func() {
		process.SetUp(0, h.log, func() { h.everyWorker(func(w *worker) { w.trim() }) })
		h.admin.Serve(h.settings.Admin)
		if p, ok := h.module.(pusher); ok {
			p.Push(h.settings.Push, background{h})
		}
	})
}

// worker is that of the thread which calls.
func (h *Host) worker() *worker {
	thread := unix.Gettid()
	h.mu.RLock()
	w := h.workers[thread]
	h.mu.RUnlock()
	if w != nil {
		return w
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	w = newWorker(h, len(h.workers))
	h.workers[thread] = w
	process.Workers(len(h.workers), h.log)
	return w
}

// everyWorker has f run on every worker, soon.
func (h *Host) everyWorker(f func(w *worker)) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, w := range h.workers {
		w.Post(func() { f(w) })
	}
}

// Close ends the workers' pollers. It is for tests: a process has its host for good.
func (h *Host) Close() {
	h.configs.close()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.workers {
		w.close()
	}
	h.admin.Serve("")
}

// barrier is deferred in what goroutines do beside a worker's events.
func (h *Host) barrier(doing string) {
	if r := recover(); r != nil {
		h.Caught(doing, r)
	}
}

// Caught records a panic that an entrance has recovered from.
func (h *Host) Caught(doing string, r any) { h.panics.Caught(doing, r) }

// background implements host.Background.
type background struct{ h *Host }

func (b background) Logf(level host.Level, format string, args ...any) {
	b.h.log(level, format, args...)
}

func (b background) DialCluster(ctx context.Context, cluster string) (net.Conn, error) {
	return b.h.settings.dial(ctx, cluster)
}

// pages are what the process tells about itself.
func (h *Host) pages() http.Handler {
	t, ok := h.module.(host.Teller)
	if !ok {
		return http.NotFoundHandler()
	}
	mux := http.NewServeMux()
	mux.Handle("/", t.Pages())
	if g, ok := h.module.(gatherer); ok {
		mux.Handle("GET /metrics", h.metrics.handler(g.Scrapes()))
	}
	return mux
}
