package export

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// maxBytes of items wait for a collector, or are on their way to it.
	maxBytes = 8 << 20
	// maxBatch and maxBatchBytes bound one upload; servers of gRPC take 4 MiB.
	maxBatch      = 8192
	maxBatchBytes = 1 << 20
	// An upload that fails is tried again after a pause that doubles, and of which a
	// random half is left out. A batch that has failed for patience is dropped.
	minPause = 500 * time.Millisecond
	maxPause = 15 * time.Second
	patience = time.Minute
	// flushTime is how long an upload may take behind the end of a user, and then the
	// rest behind the last one.
	flushTime = 2 * time.Second
	// quiet is how long nothing is said of failures behind the last time.
	quiet = time.Minute
)

// exporter sends what it is offered to one collector. It is used by configurations for as
// long as their lives last, and the goroutine of one of them does the work.
type exporter[T any] struct {
	limits
	state
	items string // for people, such as "spans"
	// upload brings items to the collector, which may refuse some of them. It is not
	// called concurrently. closed lets go of what it holds.
	upload func(ctx context.Context, items []T) (refused int, err error)
	closed func()
	counts *counts
	more   chan struct{} // something waits, or much
	turn   chan struct{} // is full while somebody works

	mu      sync.Mutex
	users   int
	over    bool // the last user has left
	waiting []entry[T]
	waits   weight // of waiting
	all     weight // … and of sending

	lost atomic.Int64 // as all was full, since the last batch

	// Of whose turn it is.
	sending []entry[T]
	sends   weight
	since   time.Time // of its first failure
	pause   time.Duration
}

// state has what becomes of a collector told once.
type state struct {
	what    string // for people, such as "traces to cluster c"
	logf    func(level host.Level, format string, args ...any)
	failing bool // and that was said
	said    time.Time
}

// weight is how many things there are, and their bytes.
type weight struct{ n, bytes int }

func (w *weight) add(o weight)           { w.n, w.bytes = w.n+o.n, w.bytes+o.bytes }
func (w *weight) take(o weight)          { w.n, w.bytes = w.n-o.n, w.bytes-o.bytes }
func (w weight) plus(o weight) weight    { return weight{w.n + o.n, w.bytes + o.bytes} }
func (w weight) reaches(o weight) bool   { return w.n >= o.n || w.bytes >= o.bytes }
func (w weight) within(most weight) bool { return w.n <= most.n && w.bytes <= most.bytes }

type entry[T any] struct {
	item T
	weight
}

// limits of an exporter.
type limits struct {
	most     weight        // that may wait or be on its way
	due      weight        // of which one is enough to be sent at once
	interval time.Duration // that it waits otherwise
}

// failure is why an upload came to nothing.
type failure struct {
	err   error
	again bool          // it may be tried again,
	after time.Duration // and not sooner
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func newExporter[T any](e *exporter[T]) *exporter[T] {
	e.more, e.turn = make(chan struct{}, 1), make(chan struct{}, 1)
	return e
}

// offer takes an item, or counts it as dropped. It may be called concurrently.
func (e *exporter[T]) offer(item T, w weight) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.over:
		e.counts.drop(atTheEnd, w.n)
		return false
	case !e.all.plus(w).within(e.most):
		e.counts.drop(full, w.n)
		e.lost.Add(int64(w.n))
		return false
	}
	e.waiting = append(e.waiting, entry[T]{item, w})
	e.waits.add(w)
	e.all.add(w)
	e.counts.waiting.Add(int64(w.n))
	if len(e.waiting) == 1 || e.waits.reaches(e.due) {
		select {
		case e.more <- struct{}{}:
		default:
		}
	}
	return true
}

// use has the exporter work as long as life lasts.
func (e *exporter[T]) use(life Life) {
	e.enter(0)
	life.Go(func(ctx context.Context) {
		e.enter(1)
		defer e.leave()
		select {
		case <-ctx.Done():
			return
		case e.turn <- struct{}{}:
		}
		defer func() { <-e.turn }()
		e.run(ctx)
	})
}

func (e *exporter[T]) enter(users int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.users += users
	e.over = false
}

// leave has what is left sent behind the last user.
func (e *exporter[T]) leave() {
	e.mu.Lock()
	e.users--
	last := e.users == 0
	e.over = last
	e.mu.Unlock()
	if !last {
		return
	}
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	e.flush()
	e.closed()
}

// run sends what comes until ctx is done.
func (e *exporter[T]) run(ctx context.Context) {
	for ctx.Err() == nil {
		if len(e.sending) == 0 && !e.await(ctx) {
			return
		}
		pause := e.send(ctx)
		if pause == 0 {
			continue
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// await takes a batch when one is due.
func (e *exporter[T]) await(ctx context.Context) bool {
	var late <-chan time.Time
	for {
		some, due := e.waitingNow()
		if due {
			return e.take()
		}
		if some && late == nil {
			t := time.NewTimer(e.interval)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-ctx.Done():
			return false
		case <-e.more:
		case <-late:
			return e.take()
		}
	}
}

func (e *exporter[T]) waitingNow() (some, due bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	some = len(e.waiting) > 0
	return some, some && e.waits.reaches(e.due)
}

// take makes what has waited longest the batch that is sent. It reports whether there is
// one.
func (e *exporter[T]) take() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	k := 0
	for ; k < len(e.waiting); k++ {
		if w := e.sends.plus(e.waiting[k].weight); k == 0 || w.within(weight{maxBatch, maxBatchBytes}) {
			e.sends = w
		} else {
			break
		}
	}
	if k == len(e.waiting) {
		e.sending, e.waiting = e.waiting, e.sending[:0]
	} else {
		e.sending = append(e.sending[:0], e.waiting[:k]...)
		rest := copy(e.waiting, e.waiting[k:])
		clear(e.waiting[rest:])
		e.waiting = e.waiting[:rest]
	}
	e.waits.take(e.sends)
	return k > 0
}

// send tries to have the batch taken. It returns how long to wait until it is tried
// again, 0 if there is no more to be done for it.
func (e *exporter[T]) send(ctx context.Context) time.Duration {
	// An upload that is cut off may have come through or not: so it has some time.
	its, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		t := time.AfterFunc(flushTime, cancel)
		context.AfterFunc(its, func() { t.Stop() })
	})()
	f := e.try(its)
	switch now := time.Now(); {
	case f == nil:
		return 0
	case !f.again:
		e.done(0, refused)
	case e.since.IsZero():
		e.since, e.pause = now, minPause
		fallthrough
	case now.Sub(e.since) < patience:
		pause := max(e.pause-rand.N(e.pause/2), min(f.after, maxPause))
		e.pause = min(2*e.pause, maxPause)
		return pause
	default:
		e.done(0, unavailable)
	}
	return 0
}

// try sends the batch once.
func (e *exporter[T]) try(ctx context.Context) *failure {
	items := make([]T, len(e.sending))
	for i := range e.sending {
		items[i] = e.sending[i].item
	}
	n, err := e.upload(ctx, items)
	var f *failure
	switch {
	case errors.As(err, &f):
		e.counts.failed.Add(1)
		e.fail(f, e.so())
		return f
	case err != nil: // it was taken, and something is told besides
		e.fail(err, e.so())
	case e.lost.Swap(0) > 0:
		e.fail(errors.New("it takes too little"), e.so())
	default:
		e.well(fmt.Sprintf("takes %s again, %d were dropped so far", e.items, e.counts.lost()))
	}
	e.done(e.sends.n-min(max(n, 0), e.sends.n), refused)
	return nil
}

// so is what a failure means.
func (e *exporter[T]) so() string {
	return fmt.Sprintf("%s wait, and are dropped beyond %d", e.items, e.most.n)
}

// done counts n of the batch as sent and the rest as dropped.
func (e *exporter[T]) done(n int, why reason) {
	e.mu.Lock()
	e.all.take(e.sends)
	e.mu.Unlock()
	e.counts.sent.Add(int64(n))
	e.counts.drop(why, e.sends.n-n)
	e.counts.waiting.Add(int64(-e.sends.n))
	clear(e.sending)
	e.sending, e.sends, e.since = e.sending[:0], weight{}, time.Time{}
}

// flush sends what is left, as far as it is taken in time, and drops the rest.
func (e *exporter[T]) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	for well := true; len(e.sending) > 0 || e.take(); {
		if !well {
			e.done(0, atTheEnd)
			continue
		}
		switch f := e.try(ctx); {
		case f == nil:
		case f.again:
			well = false
			e.done(0, atTheEnd)
		default:
			e.done(0, refused)
		}
	}
}

// fail tells that the collector does not take what it should, once until it does, and
// not all the time; so is what that means.
func (s *state) fail(err error, so string) {
	now := time.Now()
	if s.failing || !s.said.IsZero() && now.Sub(s.said) < quiet {
		return
	}
	s.failing, s.said = true, now
	s.logf(host.Warn, "meltemi: %s: %s: %s", s.what, cut(err), so)
}

// well tells that it does again.
func (s *state) well(how string) {
	if s.failing {
		s.failing = false
		s.logf(host.Info, "meltemi: %s: %s", s.what, how)
	}
}

// cut is what a peer has said, on one line that is not too long.
func cut(err error) string {
	s := fmt.Sprintf("%.200q", err.Error())
	return s[1 : len(s)-1]
}
