// Package timer keeps the deadlines of one worker: a wheel of intrusive lists.
// Starting and stopping a timer costs a few nanoseconds and no memory.
package timer

import (
	"math"
	"math/bits"
	"time"
)

const (
	// granularity is how late a timer may be. Deadlines of requests are
	// counted in hundreds of milliseconds.
	granularity = 4 * time.Millisecond
	slots       = 1 << 12 // 16.4 s a turn: the default deadline of 15 s needs one
)

// Timer is one deadline. The zero value, with Fire set, is stopped. It must
// not move while it runs.
type Timer struct {
	// Fire is called once when the deadline has passed; the timer is stopped
	// then and may be started again.
	Fire func()

	next, prev *Timer
	tick       int64
}

// Running reports whether the timer is started.
func (t *Timer) Running() bool { return t.next != nil }

// Wheel holds the running timers of one worker. It is not safe for concurrent
// use.
type Wheel struct {
	ring [slots]Timer // list heads
	used [slots / 64]uint64
	now  int64 // the last tick that was run
	soon int64 // no timer is due before this tick
	n    int
}

const never = math.MaxInt64

// New returns a wheel that starts at now.
func New(now time.Duration) *Wheel {
	w := &Wheel{now: int64(now / granularity), soon: never}
	for i := range w.ring {
		h := &w.ring[i]
		h.next, h.prev = h, h
	}
	return w
}

// Start starts t, or moves it when it runs, to fire at the first Advance at or
// after at.
func (w *Wheel) Start(t *Timer, at time.Duration) {
	if t.next != nil {
		w.Stop(t)
	}
	// Rounded up: a timer is never early, and one that is due fires at the
	// next tick, not inside the call that is running.
	t.tick = max(int64((at+granularity-1)/granularity), w.now+1)
	i := t.tick & (slots - 1)
	h := &w.ring[i]
	t.prev, t.next = h.prev, h
	h.prev.next, h.prev = t, t
	w.used[i/64] |= 1 << (i % 64)
	w.soon = min(w.soon, t.tick)
	w.n++
}

// Stop stops t; nothing happens when it does not run.
func (w *Wheel) Stop(t *Timer) {
	if t.next == nil {
		return
	}
	t.prev.next, t.next.prev = t.next, t.prev
	t.next, t.prev = nil, nil
	w.n--
}

// Advance fires what is due at now. Timers that Fire starts are kept for later
// calls.
func (w *Wheel) Advance(now time.Duration) {
	target := int64(now / granularity)
	for w.now < target {
		i, ok := w.nextUsed(min(target-w.now, slots))
		if !ok {
			w.now = target
			break
		}
		w.now = i
		w.fire(i & (slots - 1))
	}
	w.soon = never
	if i, ok := w.nextUsed(slots); ok && w.n > 0 {
		w.soon = i
	}
}

func (w *Wheel) fire(i int64) {
	h := &w.ring[i]
	// What is due is moved to a list of its own first: Fire may stop or start
	// any timer, its neighbours included.
	var due Timer
	due.next, due.prev = &due, &due
	for t := h.next; t != h; {
		next := t.next
		if t.tick <= w.now {
			t.prev.next, t.next.prev = t.next, t.prev
			t.prev, t.next = due.prev, &due
			due.prev.next, due.prev = t, t
		}
		t = next
	}
	if h.next == h {
		w.used[i/64] &^= 1 << (i % 64)
	}
	defer w.putBack(&due)
	for due.next != &due {
		t := due.next
		w.Stop(t)
		t.Fire()
	}
}

// putBack starts what a panic of a timer has kept from firing.
func (w *Wheel) putBack(due *Timer) {
	for due.next != due {
		w.Start(due.next, 0)
	}
}

// nextUsed finds the first tick after now, at most span ahead, whose slot may
// hold timers.
func (w *Wheel) nextUsed(span int64) (int64, bool) {
	for d := int64(1); d <= span; {
		i := (w.now + d) & (slots - 1)
		if word := w.used[i/64] >> (i % 64); word != 0 {
			d += int64(bits.TrailingZeros64(word))
			return w.now + d, d <= span
		}
		d += 64 - i%64
	}
	return 0, false
}

// Next returns when Advance should be called next. ok is false when no timer
// runs. It can be too early, when timers were stopped since, never too late.
func (w *Wheel) Next() (at time.Duration, ok bool) {
	if w.n == 0 {
		return 0, false
	}
	return time.Duration(w.soon) * granularity, true
}
