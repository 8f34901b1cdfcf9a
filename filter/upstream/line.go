package upstream

import (
	"slices"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// crowded is how many calls may wait for those before them of their own client
// before that client is no longer read.
const crowded = 64

// maxOpen is how many calls of one client may be under way over a connection. Of those
// that nobody waits for the client's own limits know nothing.
const maxOpen = 4096

// Line keeps the calls of one client to one pool in their order, where answers
// have no ids. On one connection a server serves them in order; so a client's
// calls go to the one where its last ones are, for as long as one of those is not
// answered, or is a oneway that may not have been read yet. Otherwise the next
// call is free to go to any.
//
// While that connection takes nothing, as it drains, is blocked or, exclusive,
// serves somebody, the client's next calls wait, and nobody else's. One that
// drains still gets what comes behind oneways. The line does not wait for what
// will not be told any more: the rest of a connection that is lost, and a call
// whose deadline has passed or whose client has left. It may then be served late,
// or never, as its client has been told.
type Line struct {
	pool *Pool
	conn *conn // where the last call went
	open int   // calls there that have not ended
	// unread is until when a oneway behind them may not have been read.
	unread time.Duration

	waiting callList // but for the head
	head    *Call    // waits in the pool's queue, for any connection
	stalled int      // 1 + the place in conn.stalled; 0: none
	waiter  *Waiter  // the client, if it is not read because of the line
	idle    *Waiter  // the client, if it is not read until the line is idle

	client Client
	held   bool // conn stays the client's behind its calls, see codecs.Lease
}

// Lines are those of one client.
type Lines struct {
	// Client hears of the connections that it has leased.
	Client Client
	all    []*Line
}

// Client is one that leases connections.
type Client interface {
	// LeaseLost: a connection has ended that the client held, and with it what the
	// server kept of it; or it was to hold one, and the call has failed. It may be
	// told so more than once.
	LeaseLost()
	// Pushed hands over what the server sent over it that answers nothing. It is
	// valid during Pushed only.
	Pushed(m *codecs.Metadata)
}

// To returns the line to a pool, nil if its answers have ids.
func (ls *Lines) To(p *Pool) *Line {
	if !p.inOrder() {
		return nil
	}
	now := p.m.now()
	var free *Line
	for _, l := range ls.all {
		switch {
		case l.pool == p:
			return l
		case !l.bound(now) && !l.held && l.head == nil && l.waiting.n == 0:
			free = l
		}
	}
	if free == nil {
		free = &Line{}
		ls.all = append(ls.all, free)
	}
	*free = Line{pool: p, client: ls.Client}
	return free
}

// Wait reports whether calls of the client to p's cluster are under way over other
// connections than p's, so that one to p would overtake them. w is resumed when
// they are not.
func (ls *Lines) Wait(p *Pool, w *Waiter) bool {
	if !p.inOrder() {
		return false
	}
	for _, l := range ls.all {
		if l.pool != p && l.pool.key.Cluster == p.key.Cluster && l.busy() {
			l.idle, w.line = w, l
			if l.waiting.n == 0 && l.open == 0 && l.head == nil {
				l.stall() // for oneways
			}
			return true
		}
	}
	return false
}

// Leave gives back what the client, which has gone, holds.
func (ls *Lines) Leave() {
	for _, l := range ls.all {
		if l.client = nil; l.held {
			l.held = false
			l.conn.giveBack()
		}
	}
}

// Held reports whether the client holds a connection.
func (ls *Lines) Held() bool {
	return slices.ContainsFunc(ls.all, func(l *Line) bool { return l.held })
}

// alive reports whether the connection where the last call went may take another.
func (l *Line) alive() bool { return l.conn != nil && l.conn.state != closed && !l.conn.spoilt }

// busy reports whether a call is under way, or may not have been read. What is held
// and idle is in nobody's way.
func (l *Line) busy() bool {
	return l.head != nil || l.waiting.n > 0 || l.alive() && (l.open > 0 || l.pool.m.now() < l.unread)
}

// bound reports whether the next call must go where the last ones are.
func (l *Line) bound(now time.Duration) bool {
	return l.alive() && (l.open > 0 || l.held || now < l.unread)
}

// takes reports whether a call of l, which is bound, may go to its connection.
func (l *Line) takes() bool {
	cn := l.conn
	if cn.rite != nil || cn.blocked || l.open >= maxOpen || cn.leased() && cn.lease != l {
		return false
	}
	return l.held || (l.open == 0 || cn.state == ready) && (cn.pool.opts.Shared || cn.inFlight == 0)
}

// pick chooses the connection for c, the client's next call, nil if it has to wait.
func (l *Line) pick(c *Call) *conn {
	switch {
	case l.head != nil || l.waiting.n > 0:
		return nil
	case l.bound(l.pool.m.now()):
		if l.takes() {
			return l.conn
		}
		return nil
	case l.pool.queue.n > 0 && l.pool.queue.first.sought == 0:
		return nil
	}
	return l.free(c)
}

// free chooses a connection for c, a call of l, which is not bound. An exclusive one
// that it has just had is as good as any, and some servers keep state by it.
func (l *Line) free(c *Call) *conn {
	if cn := l.conn; cn != nil && !l.pool.opts.Shared && cn.idle != nil && !cn.shunned() && (!c.hashed || l.pool.hashing.table == nil) && (c.named == "" || c.named == cn.host) {
		return cn
	}
	return l.pool.choose(c)
}

// sent notes that c has gone to cn.
func (l *Line) sent(c *Call, cn *conn, oneway bool) {
	if l.conn != cn {
		l.conn, l.open = cn, 0
	}
	if cn.pool.opts.Mode == Leased {
		cn.lease = l
		l.held = c.lease == codecs.LeaseHeld
	}
	if oneway {
		l.unread = cn.keepUntil
	} else {
		l.unread = 0 // its answer will tell
		l.open++
	}
}

// ended notes that a call that had gone to cn is the line's no more.
func (l *Line) ended(cn *conn) {
	if l.conn != cn {
		return
	}
	if l.open--; (l.open == 0 || l.open == maxOpen/2) && (l.stalled > 0 || l.idle != nil) {
		l.next()
	}
}

// next moves what waits as far as it may go: over the connection to which the line
// is bound, or into the queue for any.
func (l *Line) next() {
	for l.head == nil && l.waiting.n > 0 {
		c := l.waiting.first
		if !l.bound(l.pool.m.now()) {
			l.resume()
			l.waiting.remove(c)
			l.pool.queue.push(c)
			l.head = c
			return
		}
		if !l.takes() {
			l.stall()
			return
		}
		l.conn.send(c)
	}
	if l.idle != nil {
		if l.busy() {
			if l.open == 0 && l.head == nil {
				l.stall()
			}
			return
		}
		l.resume()
		l.idle.resume()
		return
	}
	l.resume()
}

// lost ends a lease before its time, and its connection. What waits for it fails as
// well: over another connection it would be out of its context.
func (l *Line) lost(e codecs.ErrorType, reason string) {
	if l.held {
		l.held = false
		l.conn.close(e, reason)
	}
	l.next()
	for c := l.head; c != nil; c = l.head {
		c.end()
		c.owner.Failed(&Failure{Type: e, Reason: reason, Written: c.written})
	}
	if l.client != nil {
		l.client.LeaseLost()
	}
}

// stall has the connection call next when it takes calls again.
func (l *Line) stall() {
	if l.stalled == 0 {
		l.conn.stalled = append(l.conn.stalled, l)
		l.stalled = len(l.conn.stalled)
	}
}

// resume undoes stall.
func (l *Line) resume() {
	if l.stalled > 0 {
		s := l.conn.stalled
		last := s[len(s)-1]
		s[l.stalled-1], last.stalled = last, l.stalled
		s[len(s)-1] = nil
		l.conn.stalled, l.stalled = s[:len(s)-1], 0
	}
}

// resume lets the lines go on that wait for cn.
func (cn *conn) resume() {
	for i := 0; i < len(cn.stalled); {
		l := cn.stalled[i]
		if l.next(); l.stalled == i+1 {
			i++
		}
	}
}
