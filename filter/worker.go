package filter

import (
	"slices"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

// Worker is what a worker's part of a filter has of its worker, until it is closed.
// But for Post its methods are to be called on that worker: in hooks, and in what Post
// and timers call.
type Worker struct {
	wl     *workerListener
	name   string // of the filter
	timers []*WorkerTimer
	closed bool
}

// Now is the worker's time, monotonic since an arbitrary point.
func (w *Worker) Now() time.Duration { return w.wl.sh.w.Now() }

// Rand returns a random number.
func (w *Worker) Rand() uint64 { return w.wl.sh.rand.Uint64() }

// Observed reports whether somebody looks at the module's metrics: what they alone show
// need not be counted otherwise. Once it is so it stays so.
func (w *Worker) Observed() bool { return w.wl.mod.telemetry.Counts() }

// Post has f run on the worker. Any goroutine may call it. When the part is closed f
// is not run.
func (w *Worker) Post(f func()) {
	w.wl.sh.post(posted{call: func(*shard) { w.run(f) }})
}

// Count adds n, which must not be negative, to a counter of the filter's.
func (w *Worker) Count(c *Counter, n int64) { w.wl.countOwn(c, n) }

// Record adds a value to a histogram of the filter's, as [Message.Record] does.
func (w *Worker) Record(h *Histogram, v uint64) { w.wl.recordOwn(h, v) }

// run calls f unless the part is closed. A panic is logged and counted.
func (w *Worker) run(f func()) {
	if w.closed {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			w.wl.filterPanicked(w.name, guard.New(r))
		}
	}()
	f()
}

// filterPanicked counts a panic in a filter and logs it.
func (wl *workerListener) filterPanicked(name string, p *guard.Panic) {
	wl.mod.panics.Add(1)
	wl.count(metrics.FilterPanic, 1)
	wl.sh.logPanic(wl.StatPrefix, " in filter "+name, p)
}

// WorkerTimer calls a function of a worker's part. It is stopped when that is closed.
type WorkerTimer struct {
	w *Worker
	t timer.Timer
}

// NewTimer returns a timer that is stopped. f may start it again.
func (w *Worker) NewTimer(f func()) *WorkerTimer {
	t := &WorkerTimer{w: w}
	t.t.Fire = func() { w.run(f) }
	w.timers = append(w.timers, t)
	return t
}

// Start has f called once d has passed, give or take a few milliseconds; when it was
// started before, then only once.
func (t *WorkerTimer) Start(d time.Duration) {
	if !t.w.closed {
		t.w.wl.sh.timers.Start(&t.t, t.w.Now()+d)
	}
}

// Stop stops the timer.
func (t *WorkerTimer) Stop() { t.w.wl.sh.timers.Stop(&t.t) }

// parts makes the worker's own chain.
func (wl *workerListener) parts() {
	wl.chain = wl.listener.chain
	for i := range wl.listener.chain {
		k := &wl.listener.chain[i]
		f, is := k.Filter.(WorkerFilter)
		if !is {
			continue
		}
		if len(wl.workers) == 0 {
			wl.chain = slices.Clone(wl.chain)
		}
		w := &Worker{wl: wl, name: k.name}
		part := wl.part(f, w)
		wl.chain[i].take(part)
		wl.workers = append(wl.workers, workerPart{w, part})
	}
	wl.hooks = hooksOf(wl.chain)
}

// part makes the worker's part of f. Should that panic, all messages end by it.
func (wl *workerListener) part(f WorkerFilter, w *Worker) (part Filter) {
	defer func() {
		if r := recover(); r != nil {
			wl.filterPanicked(w.name, guard.New(r))
			part = broken{}
		}
	}()
	if part = f.ForWorker(w); part == nil {
		panic("ForWorker has made nothing")
	}
	return part
}

// broken is a part that could not be made.
type broken struct{}

func (broken) OnRequest(m *Message) Verdict { return m.Reply(codecs.Unspecified, guard.Text) }

type workerPart struct {
	w    *Worker
	part Filter
}

// closeParts ends the worker's parts.
func (wl *workerListener) closeParts() {
	for _, p := range wl.workers {
		if c, is := p.part.(Closer); is {
			p.w.run(c.Close)
		}
		for _, t := range p.w.timers {
			t.Stop()
		}
		p.w.closed = true
	}
	wl.workers = nil
	// No hook runs any more. Should one all the same, this is what it finds.
	wl.chain = slices.Clone(wl.chain)
	for i := range wl.chain {
		wl.chain[i].take(over{})
	}
}

// over stands for a filter that is closed.
type over struct{}

func (over) hook() { panic("a hook is called after the end") }

func (o over) OnRequest(*Message) Verdict                { o.hook(); return Continue }
func (o over) OnResponse(*Message) Verdict               { o.hook(); return Continue }
func (o over) OnLocalReply(*Message, *codecs.LocalError) { o.hook() }
func (o over) OnAttempt(*Message, *Attempt)              { o.hook() }
func (o over) OnAttemptEnd(*Message, *Attempt)           { o.hook() }
func (o over) OnEnd(*Message)                            { o.hook() }
func (o over) OnAside(*Message)                          { o.hook() }
func (o over) OnConnect(*Connection) any                 { o.hook(); return nil }
func (o over) OnDisconnect(*Connection, any)             { o.hook() }
func (o over) OnStreamFrame(*Message, codecs.Direction, *codecs.Metadata) Verdict {
	o.hook()
	return Continue
}
