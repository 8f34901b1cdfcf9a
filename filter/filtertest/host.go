// Package filtertest runs Meltemi's pipeline in a plain Go test: an in-process
// host with virtual time, client connections that the test types bytes into,
// and clusters whose servers the test plays. A filter behaves here as it does
// in Envoy; what Envoy decides (which host, when a connection is up, when a
// buffer is full) the test decides.
//
// Nothing happens by itself: bytes, connections and timers move only in
// [Host.Settle] and [Host.Advance], on the caller's goroutine and in one order,
// so a test that passes once passes always.
package filtertest

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/metrics"

	// Without any filters a chain is the router alone.
	_ "github.com/meltemi-mesh/meltemi/filters/router"
)

// watermark is how many bytes a blocked peer takes before the host tells the
// pipeline.
const watermark = 64 << 10

// poison is what memory is filled with that the pipeline must no longer use.
const poison = 0xdb

// Host is an in-process host.
type Host struct {
	// DialCluster, if set, connects goroutines of the pipeline to a cluster: see
	// host.Background.
	DialCluster func(ctx context.Context, cluster string) (net.Conn, error)

	t        testing.TB
	module   host.Module
	workers  []*worker
	configs  []*Config // that are loaded
	loaded   []*Config // all that ever were
	clusters map[string]*Cluster
	now      time.Duration
	todo     []func()
	panics   int
	mayPanic bool
	buffers  int // handed out and not come back
	lastID   uint64
	limit    int // of the bytes of a client that wait for the pipeline, 0: none
	woken    chan struct{}

	mu  sync.Mutex
	log []string
}

// New returns a host with one worker that runs the pipeline of package filter.
// When the test ends it checks that every buffer has come back, that nothing has
// panicked, and that filters have left no goroutine behind, and prints the log if the
// test has failed.
func New(t testing.TB) *Host {
	mod := filter.NewModule()
	mod.Seed(1)
	return NewWith(t, mod, 1)
}

// NewWith returns a host with n workers that runs m.
func NewWith(t testing.TB, m host.Module, n int) *Host {
	h := &Host{t: t, module: m, clusters: map[string]*Cluster{}, now: time.Hour, woken: make(chan struct{}, 1)}
	for range n {
		w := &worker{h: h, timerAt: -1}
		w.shard = m.NewWorker(w)
		h.workers = append(h.workers, w)
	}
	t.Cleanup(h.finish)
	return h
}

func (h *Host) finish() {
	for _, w := range h.workers {
		for len(w.clients) > 0 {
			w.clients[0].Close()
			h.Settle()
		}
	}
	// What drains is given the time to do so.
	for range 200 {
		h.Advance(time.Second)
	}
	for len(h.configs) > 0 {
		h.configs[0].Destroy()
	}
	h.checkGoroutines()
	h.checkPanics()
	if h.buffers != 0 {
		h.t.Errorf("filtertest: %d buffers were not given back", h.buffers)
	}
	if h.t.Failed() {
		for _, l := range h.Log() {
			h.t.Log(l)
		}
	}
}

// MayPanic is for tests in which the pipeline, a codec or a filter panics.
func (h *Host) MayPanic() { h.mayPanic = true }

func (h *Host) checkPanics() {
	n := int64(h.panics)
	if m, ok := h.module.(interface{ Panics() int64 }); ok {
		n += m.Panics()
	}
	for _, c := range h.loaded {
		for i, name := range c.names {
			if strings.HasSuffix(name, "."+metrics.ConnectionPanic.String()) {
				n += c.metrics[i].value
			}
		}
	}
	if n > 0 && !h.mayPanic {
		h.t.Errorf("filtertest: %d panics", n)
	}
}

func (h *Host) checkGoroutines() {
	m, ok := h.module.(interface{ Wait() })
	if !ok {
		return
	}
	over := make(chan struct{})
	go func() {
		m.Wait()
		close(over)
	}()
	// A goroutine may have been about to wake a worker, for which there is more to do:
	// it takes leave of configurations by the same way.
	late := time.After(patience)
	for {
		select {
		case <-over:
			return
		case <-h.woken:
			h.Settle()
		case <-late:
			h.t.Errorf("filtertest: goroutines of filters run on %v after the last configuration's end", patience)
			return
		}
	}
}

// LimitBuffers has the host stop reading clients that are dialled from now on when
// it holds n of their bytes that the pipeline has not consumed; 0 is no limit.
func (h *Host) LimitBuffers(n int) { h.limit = n }

// Config is one configuration of the meta_protocol_proxy filter.
type Config struct {
	h      *Host
	fc     host.FilterConfig
	frozen bool

	names   []string
	metrics []*metric
}

type metric struct {
	value  int64
	values []uint64
}

// Load loads a configuration, as JSON, and publishes it. An error is what
// Envoy would refuse the listener with.
func (h *Host) Load(json string) (*Config, error) {
	c, err := h.LoadUnpublished(json)
	if err == nil {
		c.Publish()
	}
	return c, err
}

// MustLoad is Load for configurations that are known to be good.
func (h *Host) MustLoad(json string) *Config {
	h.t.Helper()
	c, err := h.Load(json)
	if err != nil {
		h.t.Fatalf("filtertest: %v", err)
	}
	return c
}

// LoadUnpublished loads a configuration that the host may still refuse.
func (h *Host) LoadUnpublished(json string) (*Config, error) {
	c := &Config{h: h}
	fc, err := h.module.NewConfig(c, []byte(json))
	if err != nil {
		return nil, err
	}
	c.fc, c.frozen = fc, true
	h.configs = append(h.configs, c)
	h.loaded = append(h.loaded, c)
	return c, nil
}

// Publish tells the pipeline that the configuration is accepted.
func (c *Config) Publish() { c.fc.Published(); c.h.Settle() }

// Destroy drops the configuration. Its connections must have ended. The end of the test
// drops those that are left.
func (c *Config) Destroy() {
	c.h.configs = slices.DeleteFunc(c.h.configs, func(o *Config) bool { return o == c })
	c.fc.Destroy()
	c.h.Settle()
}

func (c *Config) define(name string) (host.MetricID, error) {
	if c.frozen {
		return 0, fmt.Errorf("metric %s: defined after the load", name)
	}
	c.names = append(c.names, name)
	c.metrics = append(c.metrics, &metric{})
	return host.MetricID(len(c.names) - 1), nil
}

// DefineCounter implements host.Config.
func (c *Config) DefineCounter(name string) (host.MetricID, error) { return c.define(name) }

// DefineGauge implements host.Config.
func (c *Config) DefineGauge(name string) (host.MetricID, error) { return c.define(name) }

// DefineHistogram implements host.Config.
func (c *Config) DefineHistogram(name string) (host.MetricID, error) { return c.define(name) }

// Background implements host.Config.
func (c *Config) Background() host.Background { return background{c.h} }

// background implements host.Background.
type background struct{ h *Host }

func (b background) Logf(level host.Level, format string, args ...any) {
	b.h.logf(level, format, args...)
}

func (b background) DialCluster(ctx context.Context, cluster string) (net.Conn, error) {
	if b.h.DialCluster == nil {
		return nil, fmt.Errorf("filtertest: nobody dials cluster %s", cluster)
	}
	return b.h.DialCluster(ctx, cluster)
}

func (c *Config) metric(name string) *metric {
	c.h.t.Helper()
	for i, n := range c.names {
		if n == name {
			return c.metrics[i]
		}
	}
	c.h.t.Fatalf("filtertest: no metric %q", name)
	return nil
}

// Counter returns the value of a counter or gauge by its full name, such as
// "dubbo.bench.request". Metrics are reported with a delay: Advance first.
func (c *Config) Counter(name string) int64 { c.h.t.Helper(); return c.metric(name).value }

// Histogram returns the values that a histogram was given.
func (c *Config) Histogram(name string) []uint64 { c.h.t.Helper(); return c.metric(name).values }

func (h *Host) logf(level host.Level, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, fmt.Sprintf("[%d] ", level)+fmt.Sprintf(format, args...))
}

// Log returns what the pipeline has logged.
func (h *Host) Log() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.log...)
}

// Panics returns how many panics of the pipeline the host has caught.
func (h *Host) Panics() int { return h.panics }

// Settle lets everything happen that is to happen now.
func (h *Host) Settle() {
	for {
		switch {
		case len(h.todo) > 0:
			f := h.todo[0]
			h.todo = h.todo[1:]
			f()
		case h.deliverWakes():
		default:
			return
		}
	}
}

func (h *Host) deliverWakes() (any bool) {
	for _, w := range h.workers {
		if w.takeWake() {
			any = true
			w.event(nil, w.shard.Run)
		}
	}
	return any
}

// Advance lets d pass, and timers fire in their order.
func (h *Host) Advance(d time.Duration) {
	h.Settle()
	end := h.now + d
	for {
		var next *worker
		for _, w := range h.workers {
			if w.timerAt >= 0 && w.timerAt <= end && (next == nil || w.timerAt < next.timerAt) {
				next = w
			}
		}
		if next == nil {
			break
		}
		h.now = max(h.now, next.timerAt)
		next.timerAt = -1
		next.event(nil, next.shard.Run)
		h.Settle()
	}
	h.now = end
}

// patience is how long the test waits for another goroutine.
const patience = 5 * time.Second

// WaitWake waits until another goroutine has called for a worker, and lets
// happen what it wants. It fails the test after five seconds. Calls that come
// together are one wake-up: a test that expects several uses WaitUntil.
func (h *Host) WaitWake() {
	h.t.Helper()
	select {
	case <-h.woken:
		h.Settle()
	case <-time.After(patience):
		h.t.Fatalf("filtertest: no wake-up within %v", patience)
	}
}

// WaitUntil lets happen what other goroutines want of the workers until done
// reports true, which it looks at also when nobody wants anything: goroutines that
// filters run have real time. It fails the test after five seconds. It calls done on
// the goroutine of the test.
func (h *Host) WaitUntil(done func() bool) {
	h.t.Helper()
	late := time.After(patience)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for h.Settle(); !done(); h.Settle() {
		select {
		case <-h.woken:
		case <-look.C:
		case <-late:
			h.t.Fatalf("filtertest: what was waited for has not happened within %v", patience)
		}
	}
}

// worker implements host.Worker.
type worker struct {
	h       *Host
	shard   host.Shard
	timerAt time.Duration
	clients []*Client

	depth int
	ended bool
	batch []func()
	sent  []*buffer

	mu    sync.Mutex
	awake bool
}

// event runs f, one event of the pipeline, and, when it is an outermost one,
// carries out what was recorded, with all that this brings about.
func (w *worker) event(c failer, f func()) {
	w.depth++
	w.guard(c, f)
	w.ended = false
	if w.depth == 1 {
		for {
			if len(w.batch) > 0 {
				batch := w.batch
				w.batch = nil
				for _, op := range batch {
					op()
				}
			} else if !w.ended {
				w.ended = true
				w.guard(nil, w.shard.EndHook)
			} else {
				break
			}
		}
		for _, b := range w.sent {
			b.Recycle(&b.Buffer)
		}
		w.sent = nil
	}
	w.depth--
}

type failer interface{ fail() }

func (w *worker) guard(c failer, f func()) {
	defer func() {
		if r := recover(); r != nil {
			w.h.panics++
			w.h.logf(host.Error, "panic: %v\n%s", r, debug.Stack())
			if c != nil {
				c.fail()
			}
		}
	}()
	f()
}

func (w *worker) op(f func()) { w.batch = append(w.batch, f) }

func (w *worker) takeWake() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.awake
	w.awake = false
	return a
}

// Now implements host.Worker.
func (w *worker) Now() time.Duration { return w.h.now }

// SetTimer implements host.Worker.
func (w *worker) SetTimer(d time.Duration) {
	if w.timerAt = -1; d >= 0 {
		w.timerAt = w.h.now + d
	}
}

// Wake implements host.Worker.
func (w *worker) Wake() {
	w.mu.Lock()
	w.awake = true
	w.mu.Unlock()
	select {
	case w.h.woken <- struct{}{}:
	default:
	}
}

// Logf implements host.Worker.
func (w *worker) Logf(level host.Level, format string, args ...any) {
	w.h.logf(level, format, args...)
}

// Buffer implements host.Worker.
func (w *worker) Buffer(n int) *host.Buffer {
	if n >= 0 { // as in Envoy: a buffer may hold several frames
		n = max(n, 4096)
	}
	b := &buffer{h: w.h}
	b.Host, b.B = b, make([]byte, 0, n)
	w.h.buffers++
	return &b.Buffer
}

type buffer struct {
	host.Buffer
	h    *Host
	back bool
}

// Recycle implements host.Recycler.
func (b *buffer) Recycle(*host.Buffer) {
	if b.back {
		b.h.t.Error("filtertest: a buffer was given back twice")
		return
	}
	b.back = true
	b.h.buffers--
	for i := range b.B[:cap(b.B)] {
		b.B[:cap(b.B)][i] = poison
	}
}

// take is called when the pipeline hands b over.
func (w *worker) take(hb *host.Buffer) []byte {
	b := hb.Host.(*buffer)
	w.sent = append(w.sent, b)
	return b.B
}

// deliver gives data to f in memory that is poisoned afterwards.
func deliver(data []byte, f func(b [][]byte)) {
	view := append([]byte(nil), data...)
	f([][]byte{view})
	for i := range view {
		view[i] = poison
	}
}

// Metrics returns the full names of all metrics.
func (c *Config) Metrics() []string { return slices.Clone(c.names) }
