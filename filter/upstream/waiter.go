package upstream

// Waiter is a client that is not read until a pool, or its own line to it, has room
// again, or the line is idle. It belongs to the client.
type Waiter struct {
	// Resume is called once.
	Resume func()

	pool       *Pool // in whose list it is
	line       *Line
	next, prev *Waiter
}

// Cancel ends the waiting, if there is any.
func (w *Waiter) Cancel() {
	switch p := w.pool; {
	case w.line != nil:
		if w.line.idle == w {
			w.line.idle = nil
		} else {
			w.line.waiter = nil
		}
		w.line = nil
	case p != nil:
		if w.prev == nil {
			p.waiters = w.next
		} else {
			w.prev.next = w.next
		}
		if w.next == nil {
			p.lastWaiter = w.prev
		} else {
			w.next.prev = w.prev
		}
		w.pool, w.next, w.prev = nil, nil, nil
	}
}

func (w *Waiter) resume() {
	w.Cancel()
	w.Resume()
}

// Wait has w resumed once when there is room again: behind those that wait already,
// where the pool is full, and else in l.
func (p *Pool) Wait(w *Waiter, l *Line) {
	if !p.full() {
		l.waiter, w.line = w, l
		return
	}
	w.pool, w.prev = p, p.lastWaiter
	if w.prev == nil {
		p.waiters = w
	} else {
		w.prev.next = w
	}
	p.lastWaiter = w
}

// Full reports whether a client should not be read for now: too many requests
// wait, of all clients or in its own line.
func (p *Pool) Full(l *Line) bool { return l != nil && l.waiting.n >= crowded || p.full() }

func (p *Pool) full() bool {
	return p.pending >= p.opts.MaxPending || p.pendingBytes >= p.opts.MaxPendingBytes
}

func (p *Pool) resumeWaiters() {
	for p.waiters != nil && p.pending <= p.opts.MaxPending/2 && p.pendingBytes <= p.opts.MaxPendingBytes/2 {
		p.waiters.resume()
	}
}
