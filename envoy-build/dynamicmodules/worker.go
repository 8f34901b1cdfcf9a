package dynamicmodules

/*
#include "hooks.h"

static void mt_count_panics(mt_filter* f, uint64_t n) {
  MT_CALL(network_filter_increment_counter)(f->envoy, f->config->panics, n);
}
static bool mt_hosts(mt_filter* f, char* p, size_t n, uint32_t priority, size_t* total, size_t* healthy) {
  size_t degraded = 0;
  if (!MT_CALL(network_filter_get_cluster_host_count)(f->envoy, (mt_buf){p, n}, priority, total, healthy, &degraded))
    return false;
  *healthy += degraded;
  return true;
}
*/
import "C"

import (
	"strconv"
	"time"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/carrier"
	"github.com/meltemi-mesh/meltemi/envoy-build/internal/linger"
	"github.com/meltemi-mesh/meltemi/envoy-build/internal/waker"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/host/mailbox"
)

// started is the zero of the workers' clocks.
var started = time.Now()

// conn is one connection of a worker: a client's or a carrier.
type conn interface {
	// Aborted is called after a panic in one of its events.
	Aborted()
}

// worker is the Go half of one Envoy worker thread. Everything in it is used on that
// thread only, but for what says otherwise. It implements host.Worker and
// carrier.Worker.
type worker struct {
	index int
	c     *C.mt_worker
	shard host.Shard
	now   time.Duration

	conns []slot
	free  []uint32
	views [][]byte // chunks of the event that is running
	buffers

	carriers  *carrier.Set
	lingering linger.List

	posted *mailbox.Mailbox[func()]
	waker  waker.Waker
}

type slot struct {
	conn   conn
	filter *filter
}

func newWorker(index int, c *C.mt_worker) *worker {
	w := &worker{index: index, c: c, now: time.Since(started)}
	w.posted = mailbox.New[func()](w.waker.Wake)
	w.carriers = carrier.NewSet(w, dialer)
	w.lingering.Now, w.lingering.Post = w.Now, w.Post
	return w
}

func workerOf(index uint32, c *C.mt_worker) *worker {
	w := workers[index].Load()
	if w == nil {
		w = newWorker(int(index), c)
		workers[index].Store(w)
		if module != nil {
			w.shard = module.NewWorker(w)
		}
	}
	return w
}

// begin is called at the start of each event. outer tells that everything
// that was recorded before has been carried out.
func (w *worker) begin(outer bool) {
	if outer {
		w.now = time.Since(started)
		w.carriedOut()
	}
}

// finish is called at the end of the outermost events that carry bytes, which
// saves a call of mtEndEvent.
func (w *worker) finish(outer bool) {
	if outer {
		w.end()
	}
}

// barrier is deferred in each event: a panic ends the connection on which it
// happened, and that alone.
func (w *worker) barrier(s *slot) {
	r := recover()
	if r == nil {
		return
	}
	panics.Caught("worker "+strconv.Itoa(w.index)+" had an event", r)
	defer w.countPanics()
	if s == nil || s.conn == nil {
		return
	}
	panics.Guard("giving up a connection", s.conn.Aborted)
	s.filter.Close()
	if w.shard != nil { // the event did not come to its end
		panics.Guard("ending an event", w.shard.EndHook)
	}
}

// Guard implements carrier.Worker.
func (w *worker) Guard(doing string, f func()) bool {
	ok := panics.Guard(doing, f)
	if !ok {
		w.countPanics()
	}
	return ok
}

// countPanics hands over to Envoy how many panics there were, as soon as there
// is a filter that can.
func (w *worker) countPanics() {
	if f, ok := w.waker.Filter().(*filter); ok {
		if n := panics.Take(); n > 0 {
			C.mt_count_panics(f.c(), C.uint64_t(n))
		}
	}
}

// record notes what is to be done for f when the event has ended.
func (w *worker) record(f *filter, kind, arg uint32, p *byte, n int) {
	b := &w.c.batch[w.c.filling]
	if b.n == b.cap {
		C.mt_batch_grow(b)
	}
	o := (*C.mt_op)(unsafe.Add(unsafe.Pointer(b.ops), uintptr(b.n)*unsafe.Sizeof(C.mt_op{})))
	o.filter, o.kind, o.arg = f.c(), C.uint32_t(kind), C.uint32_t(arg)
	// A plain store of the address: the array is pinned until the batch has
	// been carried out.
	*(*uintptr)(unsafe.Pointer(&o.ptr)) = uintptr(unsafe.Pointer(p))
	o.length = C.size_t(n)
	b.n++
}

func (w *worker) add(c conn, f *filter) {
	var i uint32
	if n := len(w.free); n > 0 {
		i = w.free[n-1]
		w.free = w.free[:n-1]
	} else {
		i = uint32(len(w.conns))
		w.conns = append(w.conns, slot{})
	}
	w.conns[i] = slot{c, f}
	f.slot = C.uint32_t(i)
	w.waker.Use(f)
	if panics.Any() {
		w.countPanics()
	}
}

func (w *worker) remove(i uint32) {
	f := w.conns[i].filter
	w.conns[i] = slot{}
	w.free = append(w.free, i)
	f.slot = C.MT_NO_SLOT
	if w.waker.Gone(f) {
		if o := w.anyAlive(); o != nil {
			w.waker.Use(o)
		}
	}
}

// anyAlive returns a filter through which the worker can be woken, a parked carrier's
// if there is one, which no peer ends; nil if there is none.
func (w *worker) anyAlive() *filter {
	if f, ok := w.carriers.AnyParked().(*filter); ok {
		return f
	}
	for i := range w.conns {
		if f := w.conns[i].filter; f != nil && !f.Closed() {
			return f
		}
	}
	return nil
}

// gather makes views of n chunks.
func (w *worker) gather(chunks *C.mt_buf, n C.size_t) [][]byte {
	w.views = w.views[:0]
	for _, c := range unsafe.Slice(chunks, int(n)) {
		if c.length > 0 {
			w.views = append(w.views, unsafe.Slice((*byte)(unsafe.Pointer(c.ptr)), int(c.length)))
		}
	}
	return w.views
}

//export mtNewConnection
func mtNewConnection(cf *C.mt_filter, c *C.mt_worker, outer C.bool) (ok C.bool) {
	f := (*filter)(cf)
	var w *worker
	defer func() {
		if r := recover(); r != nil {
			panics.Caught("taking a connection", r)
			if f.slot != C.MT_NO_SLOT {
				panics.Guard("giving up a connection", func() { w.remove(uint32(f.slot)) })
			}
			ok = false
		}
	}()
	w = workerOf(uint32(f.worker), c)
	w.begin(bool(outer))
	if f.config.role == C.MT_CARRIER {
		if w.carriers.Tunnel(f) {
			f.tunnel = true
			return true
		}
		c := w.carriers.Arrived(f)
		if c != nil {
			w.add(c, f)
		}
		return C.bool(c != nil)
	}
	fc := configs.get(uint32(f.config.id))
	if fc == nil {
		return false
	}
	newClient(w, f, fc.proxy)
	return true
}

//export mtRead
func mtRead(worker, slot C.uint32_t, chunks *C.mt_buf, n, total C.size_t, end, outer C.bool) C.size_t {
	w := workers[worker].Load()
	s := &w.conns[slot]
	defer w.barrier(s)
	w.begin(bool(outer))
	consumed := s.conn.(*client).ev.Data(w.gather(chunks, n), int(total), bool(end))
	w.finish(bool(outer))
	return C.size_t(consumed)
}

//export mtMark
func mtMark(worker, slot C.uint32_t, total C.size_t, end, outer C.bool) C.size_t {
	w := workers[worker].Load()
	s := &w.conns[slot]
	defer w.barrier(s)
	w.begin(bool(outer))
	return C.size_t(s.conn.(*carrier.Carrier).Mark(int(total), bool(end)))
}

//export mtAnswer
func mtAnswer(worker, slot C.uint32_t, chunks *C.mt_buf, n, total C.size_t, end, outer C.bool) {
	w := workers[worker].Load()
	s := &w.conns[slot]
	defer w.barrier(s)
	w.begin(bool(outer))
	s.conn.(*carrier.Carrier).Answer(w.gather(chunks, n), int(total), bool(end))
	w.finish(bool(outer))
}

//export mtBlocked
func mtBlocked(worker, slot C.uint32_t, blocked, outer C.bool) {
	w := workers[worker].Load()
	s := &w.conns[slot]
	defer w.barrier(s)
	w.begin(bool(outer))
	switch c := s.conn.(type) {
	case *client:
		c.ev.WriteBlocked(bool(blocked))
	case *carrier.Carrier:
		c.Blocked()
	}
}

//export mtClosed
func mtClosed(worker, slot C.uint32_t, remote, alive, outer C.bool) {
	w := workers[worker].Load()
	s := &w.conns[slot]
	defer w.barrier(nil)
	w.begin(bool(outer))
	defer w.remove(uint32(slot))
	switch c := s.conn.(type) {
	case *client:
		c.closed(bool(remote), bool(alive))
	case *carrier.Carrier:
		c.Closed(bool(alive))
	}
}

//export mtRun
func mtRun(worker C.uint32_t, outer C.bool) {
	w := workers[worker].Load()
	defer w.barrier(nil)
	w.begin(bool(outer))
	w.run()
}

//export mtEndEvent
func mtEndEvent(worker C.uint32_t) {
	w := workers[worker].Load()
	if w == nil {
		return
	}
	defer w.barrier(nil)
	w.end()
}

func (w *worker) end() {
	if w.waker.Due() { // nobody could be woken: this event does
		w.run()
	}
	if w.shard != nil {
		w.shard.EndHook()
	}
}

func (w *worker) run() {
	w.waker.Taken()
	w.posted.Run(w.do)
	if panics.Any() {
		w.countPanics()
	}
	if w.shard != nil {
		w.shard.Run()
	}
}

// Post has f run on the worker, soon. Any goroutine may call it.
func (w *worker) Post(f func()) { w.posted.Post(f) }

func (w *worker) do(f func()) { w.Guard("doing what was posted to a worker", f) }

// Index implements carrier.Worker.
func (w *worker) Index() int { return w.index }

// Now implements host.Worker.
func (w *worker) Now() time.Duration { return w.now }

// Wake implements host.Worker.
func (w *worker) Wake() { w.waker.Wake() }

// SetTimer implements host.Worker.
func (w *worker) SetTimer(d time.Duration) { w.waker.After(d) }

// Buffer implements host.Worker.
func (w *worker) Buffer(n int) *host.Buffer { return w.get(n) }

// Connect implements host.Worker.
func (w *worker) Connect(t host.Target, ev host.UpstreamEvents) host.Upstream {
	return w.carriers.Connect(t, ev)
}

// Logf implements host.Worker.
func (w *worker) Logf(level host.Level, format string, args ...any) { logf(level, format, args...) }

// ClusterHosts implements host.Worker.
func (w *worker) ClusterHosts(cluster string) (h host.Hosts, known, ok bool) {
	f, alive := w.waker.Filter().(*filter)
	if !alive || cluster == "" {
		return h, false, false
	}
	for priority := C.uint32_t(0); ; priority++ {
		var total, healthy C.size_t
		p := (*C.char)(unsafe.Pointer(unsafe.StringData(cluster)))
		if !bool(C.mt_hosts(f.c(), p, C.size_t(len(cluster)), priority, &total, &healthy)) {
			return h, priority > 0, true
		}
		h.Total += int(total)
		h.Healthy += int(healthy)
		if h.Preferred == 0 {
			h.Preferred = int(healthy)
		}
	}
}
