package upstream

// Waiter is a client that is not read until a pool, or its own line to it, has room
// again, or the line is idle. It belongs to the client.
type Waiter struct {
	// Resume is called once.
	Resume func()

	list       *Waiters
	line       *Line
	next, prev *Waiter
}

// Waiters are clients that wait for the same, in the order in which they came.
type Waiters struct{ first, last *Waiter }

// Add has w, which waits for nothing, wait behind all others.
func (ws *Waiters) Add(w *Waiter) {
	w.list, w.prev = ws, ws.last
	if w.prev == nil {
		ws.first = w
	} else {
		w.prev.next = w
	}
	ws.last = w
}

// Resume resumes the first one, and reports false if there is none.
func (ws *Waiters) Resume() bool {
	if ws.first == nil {
		return false
	}
	ws.first.resume()
	return true
}

// Cancel ends the waiting, if there is any.
func (w *Waiter) Cancel() {
	switch ws := w.list; {
	case w.line != nil:
		if w.line.idle == w {
			w.line.idle = nil
		} else {
			w.line.waiter = nil
		}
		w.line = nil
	case ws != nil:
		if w.prev == nil {
			ws.first = w.next
		} else {
			w.prev.next = w.next
		}
		if w.next == nil {
			ws.last = w.prev
		} else {
			w.next.prev = w.prev
		}
		w.list, w.next, w.prev = nil, nil, nil
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
	p.waiters.Add(w)
}

// Full reports whether a client should not be read for now: too many requests
// wait, of all clients or in its own line.
func (p *Pool) Full(l *Line) bool { return l != nil && l.waiting.n >= crowded || p.full() }

func (p *Pool) full() bool {
	return p.pending >= p.opts.MaxPending || p.pendingBytes >= p.opts.MaxPendingBytes
}

func (p *Pool) resumeWaiters() {
	for p.pending <= p.opts.MaxPending/2 && p.pendingBytes <= p.opts.MaxPendingBytes/2 && p.waiters.Resume() {
	}
}
