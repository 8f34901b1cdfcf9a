package dynamicmodules

/*
#include "hooks.h"

static void mt_commit(void* s) { MT_CALL(network_filter_scheduler_commit)(s, 0); }
static void* mt_scheduler(mt_filter* f) { return MT_CALL(network_filter_scheduler_new)(f->envoy); }
static void mt_scheduler_delete(void* s) { MT_CALL(network_filter_scheduler_delete)(s); }
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
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// maxWorkers bounds Envoy's --concurrency.
const maxWorkers = 1024

var workers [maxWorkers]atomic.Pointer[worker]

// started is the zero of the workers' clocks.
var started = time.Now()

// conn is one connection of a worker: a client's or a carrier.
type conn interface {
	// closed is called once; alive tells whether Envoy's filter can be asked.
	closed(remote, alive bool)
	// failed is called after a panic in one of its events.
	failed()
}

// worker is the Go half of one Envoy worker thread. Everything in it is used
// on that thread only, but for what says otherwise. It implements host.Worker.
type worker struct {
	index int
	c     *C.mt_worker
	shard host.Shard
	now   time.Duration

	conns []slot
	free  []uint32
	views [][]byte // chunks of the event that is running
	buffers

	carriers  carriers
	lingering lingering

	wake waker
}

type slot struct {
	conn   conn
	filter *C.mt_filter
}

func workerOf(index uint32, c *C.mt_worker) *worker {
	w := workers[index].Load()
	if w == nil {
		w = &worker{index: int(index), c: c}
		w.now = time.Since(started)
		w.wake.w = w
		w.carriers.w = w
		w.lingering.w = w
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
	caught("worker "+strconv.Itoa(w.index)+" had an event", r)
	defer w.countPanics()
	if s == nil || s.conn == nil {
		return
	}
	guarded("giving up a connection", s.conn.failed)
	w.op(s.filter, C.MT_CLOSE, closeNoFlush)
	if w.shard != nil { // the event did not come to its end
		guarded("ending an event", w.shard.EndHook)
	}
}

// guarded runs what may panic, and reports whether it did not.
func guarded(doing string, f func()) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			caught(doing, r)
		}
	}()
	f()
	return true
}

// countPanics hands over to Envoy how many panics there were, as soon as there
// is a filter that can.
func (w *worker) countPanics() {
	if f := w.wake.filter; f != nil {
		if n := panics.Swap(0); n > 0 {
			C.mt_count_panics(f, C.uint64_t(n))
		}
	}
}

// Envoy's close types.
const (
	closeFlush   = 0
	closeNoFlush = 1
)

// op records an operation without bytes.
func (w *worker) op(f *C.mt_filter, kind, arg uint32) { w.record(f, kind, arg, nil, 0) }

func (w *worker) record(f *C.mt_filter, kind, arg uint32, p *byte, n int) {
	b := &w.c.batch[w.c.filling]
	if b.n == b.cap {
		C.mt_batch_grow(b)
	}
	o := (*C.mt_op)(unsafe.Add(unsafe.Pointer(b.ops), uintptr(b.n)*unsafe.Sizeof(C.mt_op{})))
	o.filter, o.kind, o.arg = f, C.uint32_t(kind), C.uint32_t(arg)
	// A plain store of the address: the array is pinned until the batch has
	// been carried out.
	*(*uintptr)(unsafe.Pointer(&o.ptr)) = uintptr(unsafe.Pointer(p))
	o.length = C.size_t(n)
	b.n++
}

func (w *worker) add(c conn, f *C.mt_filter) uint32 {
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
	w.wake.appeared(f)
	if panics.Load() > 0 {
		w.countPanics()
	}
	return i
}

func (w *worker) remove(i uint32) {
	f := w.conns[i].filter
	w.conns[i] = slot{}
	w.free = append(w.free, i)
	f.slot = C.MT_NO_SLOT
	w.wake.gone(f)
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
func mtNewConnection(f *C.mt_filter, c *C.mt_worker, outer C.bool) (ok C.bool) {
	var w *worker
	defer func() {
		if r := recover(); r != nil {
			caught("taking a connection", r)
			if f.slot != C.MT_NO_SLOT && f.config.role == C.MT_CLIENT {
				guarded("giving up a connection", func() { w.remove(uint32(f.slot)) })
			}
			ok = false
		}
	}()
	w = workerOf(uint32(f.worker), c)
	w.begin(bool(outer))
	if f.config.role == C.MT_CARRIER {
		return C.bool(w.carriers.arrived(f))
	}
	fc := configOf(uint32(f.config.id))
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
	return C.size_t(s.conn.(*carrier).mark(int(total), bool(end)))
}

//export mtAnswer
func mtAnswer(worker, slot C.uint32_t, chunks *C.mt_buf, n, total C.size_t, end, outer C.bool) {
	w := workers[worker].Load()
	s := &w.conns[slot]
	defer w.barrier(s)
	w.begin(bool(outer))
	s.conn.(*carrier).answer(w.gather(chunks, n), int(total), bool(end))
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
	case *carrier:
		c.writeBlocked()
	}
}

//export mtClosed
func mtClosed(worker, slot C.uint32_t, remote, alive, outer C.bool) {
	w := workers[worker].Load()
	s := &w.conns[slot]
	defer w.barrier(nil)
	w.begin(bool(outer))
	defer w.remove(uint32(slot))
	s.conn.closed(bool(remote), bool(alive))
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
	if w.wake.due() { // nobody could be woken: this event does
		w.run()
	}
	if w.shard != nil {
		w.shard.EndHook()
	}
}

func (w *worker) run() {
	w.wake.taken()
	w.carriers.run()
	if panics.Load() > 0 {
		w.countPanics()
	}
	if w.shard != nil {
		w.shard.Run()
	}
}

// Index implements host.Worker.
func (w *worker) Index() int { return w.index }

// Now implements host.Worker.
func (w *worker) Now() time.Duration { return w.now }

// Wake implements host.Worker.
func (w *worker) Wake() { w.wake.wake() }

// SetTimer implements host.Worker.
func (w *worker) SetTimer(d time.Duration) { w.wake.after(d) }

// Buffer implements host.Worker.
func (w *worker) Buffer(n int) *host.Buffer { return w.get(n) }

// Connect implements host.Worker.
func (w *worker) Connect(t host.Target, ev host.UpstreamEvents) host.Upstream {
	return w.carriers.connect(t, ev)
}

// Logf implements host.Worker.
func (w *worker) Logf(level host.Level, format string, args ...any) { logf(level, format, args...) }

// ClusterHosts implements host.Worker.
func (w *worker) ClusterHosts(cluster string) (h host.Hosts, known, ok bool) {
	f := w.wake.filter
	if f == nil || cluster == "" {
		return h, false, false
	}
	for priority := C.uint32_t(0); ; priority++ {
		var total, healthy C.size_t
		p := (*C.char)(unsafe.Pointer(unsafe.StringData(cluster)))
		if !bool(C.mt_hosts(f, p, C.size_t(len(cluster)), priority, &total, &healthy)) {
			return h, priority > 0, true
		}
		h.Total += int(total)
		h.Healthy += int(healthy)
		if h.Preferred == 0 {
			h.Preferred = int(healthy)
		}
	}
}

// waker is the one way by which other goroutines reach a worker: an event
// scheduled on a filter that is alive. Events of a filter that dies are lost,
// so when it does another one takes over, and is woken again.
type waker struct {
	w       *worker
	mu      sync.Mutex
	sched   unsafe.Pointer
	pending atomic.Bool
	timer   *time.Timer

	filter *C.mt_filter // whose scheduler it is; worker thread only
}

func (k *waker) wake() {
	if k.pending.Swap(true) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sched != nil {
		C.mt_commit(k.sched)
	}
}

// timerSlack is how late the timer may be. While events come by themselves
// they do what is due before it fires.
const timerSlack = 5 * time.Millisecond

func (k *waker) after(d time.Duration) {
	if d >= 0 {
		d += timerSlack
	}
	switch {
	case k.timer == nil && d >= 0:
		k.timer = time.AfterFunc(d, k.wake)
	case k.timer == nil:
	case d < 0:
		k.timer.Stop()
	default:
		k.timer.Reset(d)
	}
}

// due reports whether a wake-up is pending that no filter can deliver.
func (k *waker) due() bool { return k.filter == nil && k.pending.Load() }

func (k *waker) taken() { k.pending.Store(false) }

// appeared offers a filter of the worker.
func (k *waker) appeared(f *C.mt_filter) {
	if k.filter != nil {
		return
	}
	k.use(f)
}

func (k *waker) use(f *C.mt_filter) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.filter, k.sched = f, C.mt_scheduler(f)
	if k.pending.Load() {
		C.mt_commit(k.sched)
	}
}

// gone takes a filter away; another one takes over.
func (k *waker) gone(f *C.mt_filter) {
	if k.filter != f {
		return
	}
	k.mu.Lock()
	C.mt_scheduler_delete(k.sched)
	k.filter, k.sched = nil, nil
	k.mu.Unlock()
	if c := k.w.carriers.anyParked(); c != nil {
		k.use(c)
		return
	}
	for i := range k.w.conns {
		if o := k.w.conns[i].filter; o != nil && !bool(o.closed) {
			k.use(o)
			return
		}
	}
}
