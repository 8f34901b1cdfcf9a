package golang

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/linger"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/host/mailbox"
)

// started is the zero of the workers' clocks.
var started = time.Now()

// timerSlack is how late a timer may be: events that come by themselves do what is due
// before it fires.
const timerSlack = 5 * time.Millisecond

// worker is the pipeline's part for the connections of one of Envoy's threads. Whoever
// holds its lock does what there is to do: that thread for what its hooks bring, the
// poller for what tunnels bring. Envoy's thread never waits for the lock. What it brings
// while another has it is put into the mailbox, which is emptied by whoever has the lock
// before it is let go. It implements host.Worker.
type worker struct {
	h     *Host
	index int

	lock   sync.Mutex
	queued atomic.Int32 // items in the mailbox
	box    *mailbox.Mailbox[item]
	due    atomic.Bool // Run is to be called
	poller *poller

	// Under the lock.
	shard     host.Shard
	now       time.Duration
	timer     *time.Timer
	lingering linger.List
	touched   []*Client // have something to be carried out
	resumed   []*Client // are read again
	gathering bool      // the end of Envoy's turn will be told
	gathered  int       // bytes, in this turn
	holding   holding
	tunnels
	buffers
	input [1][]byte
}

// item is work for a worker that could not be done at once.
type item struct {
	kind   kind
	client *Client
	data   *[]byte // a copy
	flag   bool    // of data: its end; of closed: by the peer
	event  unix.EpollEvent
	do     func()
}

type kind uint8

const (
	toDo    kind = iota
	nothing      // but what is due
	polled
	accepted
	data
	closed
)

func newWorker(h *Host, index int) *worker {
	w := &worker{h: h, index: index}
	w.box = mailbox.New[item](func() {})
	w.lingering.Now, w.lingering.Post = w.Now, w.Post
	w.tunnels = tunnels{w: w}
	w.poller = newPoller(w)
	w.lock.Lock()
	w.now = time.Since(started)
	w.shard = h.module.NewWorker(w)
	w.lock.Unlock()
	return w
}

func (w *worker) close() {
	w.lock.Lock()
	if w.timer != nil {
		w.timer.Stop()
	}
	w.lock.Unlock()
	w.poller.close()
}

// enter begins an event, unless somebody else is at work.
func (w *worker) enter() bool {
	if !w.lock.TryLock() {
		return false
	}
	w.begin()
	return true
}

// begin has what waits done first, so that events of a connection keep their order.
func (w *worker) begin() {
	w.now = time.Since(started)
	w.work()
}

// leave ends an event, with all that it brings about.
func (w *worker) leave() {
	w.finish()
	w.lock.Unlock()
	w.help()
}

// maxGathered is how much of a turn waits for its end.
const maxGathered = 64 << 10

// gather ends an event that has brought n bytes of c. What clients send together goes over
// a tunnel together, by one write: so if Envoy's thread can tell when it has been through
// all that it has found to be read, the end of the event is then.
func (w *worker) gather(c *Client, n int) {
	w.gathered += n
	if c.gone || c.closing != stays || w.gathered > maxGathered {
		w.leave()
		return
	}
	if !w.gathering && !c.conn.Later() {
		w.leave()
		return
	}
	w.gathering = true
	w.lock.Unlock()
	w.help()
}

// help does what was put into the mailbox by those who found the lock taken when it was
// about to be let go.
func (w *worker) help() {
	for w.queued.Load() > 0 && w.lock.TryLock() {
		w.begin()
		w.finish()
		w.lock.Unlock()
	}
}

// put has i done by whoever has the lock.
func (w *worker) put(i item) {
	w.box.Post(i)
	w.queued.Add(1) // may be done already: then it was negative
	w.help()
}

// work does what waits, and reports whether there was anything.
func (w *worker) work() (any bool) {
	if w.due.Swap(false) {
		any = true
		w.guard(nil, w.shard.Run)
	}
	for w.queued.Load() > 0 {
		any = true
		w.box.Run(w.do)
	}
	return any
}

func (w *worker) do(i item) {
	w.queued.Add(-1)
	switch i.kind {
	case toDo:
		w.guard(nil, i.do)
	case accepted:
		i.client.accept()
	case polled:
		w.happened(i.event)
	case data:
		w.input[0] = *i.data
		i.client.data(w.input[:], len(*i.data), i.flag)
		giveBack(i.data)
	case closed:
		i.client.closed(i.flag)
	}
}

// finish carries out what was recorded, and what comes of it, until nothing more does.
func (w *worker) finish() {
	w.gathering, w.gathered = false, 0
	for {
		w.guard(nil, w.shard.EndHook)
		w.carryOut()
		again := w.work()
		for i := 0; i < len(w.resumed); i++ {
			again = true
			w.resumed[i].resume()
		}
		clear(w.resumed)
		w.resumed = w.resumed[:0]
		if w.endTunnels() {
			again = true
		}
		if !again {
			return
		}
	}
}

func (w *worker) carryOut() {
	for i, c := range w.touched {
		c.carryOut()
		w.touched[i] = nil
	}
	w.touched = w.touched[:0]
	w.carryOutTunnels()
}

// failer is a connection on which there was a panic.
type failer interface{ fail() }

// guard runs f, an event. A panic ends the connection c on which it happened, and that
// alone.
func (w *worker) guard(c failer, f func()) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			w.caught(c, r)
		}
	}()
	f()
	return true
}

func (w *worker) caught(c failer, r any) {
	w.h.panics.Caught("worker "+strconv.Itoa(w.index)+" had an event", r)
	if c != nil {
		c.fail()
	}
}

// Post has f run on the worker, soon. Any goroutine may call it; f does not run on it.
func (w *worker) Post(f func()) {
	w.box.Post(item{do: f})
	w.queued.Add(1)
	w.poller.poke()
}

// Now implements host.Worker.
func (w *worker) Now() time.Duration { return w.now }

// Wake implements host.Worker. Whoever calls it may hold locks that the pipeline takes, so
// that it is the poller that does what there is to do.
func (w *worker) Wake() {
	if !w.due.Swap(true) {
		w.poller.poke()
	}
}

// SetTimer implements host.Worker.
func (w *worker) SetTimer(d time.Duration) {
	switch {
	case w.timer == nil && d >= 0:
		w.timer = time.AfterFunc(d+timerSlack, w.Wake)
	case w.timer == nil:
	case d < 0:
		w.timer.Stop()
	default:
		w.timer.Reset(d + timerSlack)
	}
}

// Buffer implements host.Worker.
func (w *worker) Buffer(n int) *host.Buffer { return w.get(n) }

// Logf implements host.Worker.
func (w *worker) Logf(level host.Level, format string, args ...any) { w.h.log(level, format, args...) }

// ClusterMembers implements host.Worker: nothing tells them.
func (w *worker) ClusterMembers(string) *host.Members { return nil }
