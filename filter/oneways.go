package filter

import (
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

const (
	// Eight ways of so many sets are 32 KiB.
	onewaySets = 512
	onewayWays = 8
	// passesNeeded is how often clients must have gone on as if nothing had
	// happened before an operation is known for a oneway.
	passesNeeded = 2
	// maxAside is how many known oneways of a connection may still be answered.
	maxAside = 8
	// maxWithheld bounds the errors that a connection's client has not been told, in
	// bytes.
	maxWithheld = 64 << 10
	// maxAllWithheld bounds those of all clients of a worker.
	maxAllWithheld = 4 << 20
	// reviewTime is how often clients of whom errors are withheld, and who ask for
	// nothing else, are thought of: others may have shown what an operation is.
	reviewTime = 500 * time.Millisecond
)

// States of an operation; those between are passes.
const (
	unknownWay  = 0
	answeredWay = 1
	firstPass   = 2
	onewayWay   = firstPass + passesNeeded - 1
)

// oneways is what the process has learnt of operations whose requests do not tell
// whether they are answered. All workers share it without a lock, and no number of
// names fills it: a new one takes the place of another, see victim.
// A place holds the operation's hash, and its state in the lowest byte.
type oneways struct {
	seed maphash.Seed
	sets [onewaySets][onewayWays]atomic.Uint64
}

func newOneways() *oneways { return &oneways{seed: maphash.MakeSeed()} }

// scope is the part of all hashes of a listener, whichever version it has.
func (t *oneways) scope(scope, prefix string) uint64 {
	return maphash.String(t.seed, scope+"\x00"+prefix)
}

func (t *oneways) hash(scope uint64, operation []byte) uint64 {
	h := (maphash.Bytes(t.seed, operation) ^ scope) * 0x9e3779b97f4a7c15
	return h ^ h>>32
}

// lateSalt marks the names of answers that came when nobody waited any more.
const lateSalt = 0x5bd1e995

// late is the hash of such an answer, which has the method alone.
func (t *oneways) late(scope uint64, method []byte) uint64 { return t.hash(scope^lateSalt, method) }

// answered reports whether an operation is known to be answered, in time or late.
func (t *oneways) answered(op, late uint64) bool {
	return t.state(op) == answeredWay || t.state(late) == answeredWay
}

// find returns where an operation is, nil if nowhere.
func (t *oneways) find(op uint64) (place *atomic.Uint64, state uint8) {
	set := &t.sets[op%onewaySets]
	for i := range set {
		if v := set[i].Load(); v>>8 == op>>8 && uint8(v) != unknownWay {
			return &set[i], uint8(v)
		}
	}
	return nil, unknownWay
}

func (t *oneways) state(op uint64) uint8 {
	_, state := t.find(op)
	return state
}

// set changes the state of an operation. Of two workers that do so at once one
// may be forgotten; it will see the like again.
func (t *oneways) set(op uint64, state uint8) {
	place, _ := t.find(op)
	if place == nil {
		place = t.victim(op, state)
	}
	place.Store(op&^0xff | uint64(state))
}

// victim is where an operation that is new goes. Half of a set is for those that are
// answered, and half for the others: what clients call without an answer takes the place
// of what is answered no more than the reverse.
func (t *oneways) victim(op uint64, state uint8) *atomic.Uint64 {
	set := &t.sets[op%onewaySets]
	like := func(s uint8) bool { return (s == answeredWay) == (state == answeredWay) }
	n := 0
	for i := range set {
		if s := uint8(set[i].Load()); s != unknownWay && like(s) {
			n++
		}
	}
	at := op >> 60 // as good as chance
	best, least := &set[at%onewayWays], uint8(255)
	for i := range uint64(onewayWays) {
		place := &set[(at+i)%onewayWays]
		s := uint8(place.Load())
		if s < least && (s == unknownWay || like(s) == (n >= onewayWays/2)) {
			best, least = place, s
		}
	}
	return best
}

// answers notes that an operation has been answered. It is never taken for a
// oneway then; an error, as servers give for whatever name, only makes it start
// anew.
func (t *oneways) answers(op uint64, md *codecs.Metadata) {
	place, state := t.find(op)
	switch {
	case state == answeredWay:
	case md.Type != codecs.Error:
		t.set(op, answeredWay)
	case place != nil:
		place.Store(0)
	}
}

// passed notes that a client went on though its request had no answer in time.
func (t *oneways) passed(op uint64) {
	switch s := t.state(op); s {
	case answeredWay, onewayWay:
	case unknownWay:
		t.set(op, firstPass)
	default:
		t.set(op, s+1)
	}
}

// withheld is an error that may not be told: if its request was a oneway in
// disguise the client would read it as the answer to the next one.
type withheld struct {
	op, late uint64
	counter  metrics.Counter // that it counts under if it is told; Counters: none
	timeout  bool            // there was no answer, for whatever reason otherwise
	passed   bool            // the client has gone on since
	preceded uint64          // see Message
	frame    []byte
}

// weight is what w counts for: its frame, and about as much as itself.
func (w *withheld) weight() int { return len(w.frame) + 64 }

// suspicion is what a connection knows of its requests that may be oneways in
// disguise.
type suspicion struct {
	calls         calledAs   // that of the last of them that has shared one
	answers       uint64     // that the client has got
	pipelines     bool       // has sent a request before the answer to another
	aside         []*Message // known oneways that may still be answered
	withheld      []withheld
	withheldBytes int
	overtaken     bool // known oneways have been sent behind which it had gone on
}

// mayBeOneway reports whether a request that does not say so may be a oneway.
func (m *Message) mayBeOneway() bool {
	return m.proto.hiddenOneway && !m.req.ExpectsReply && m.stream == nil
}

// sameID reports whether the answers to both could not be told apart by their
// ids. Where oneways are hidden, answers may wait for one that never comes: only
// id 0, the one of clients that number nothing, is taken for the same.
func (m *Message) sameID(o *Message) bool {
	return m.req.ID == o.req.ID && (!m.mayBeOneway() || m.req.ID == 0)
}

// identify notes what the request calls, for when it has gone.
func (m *Message) identify() {
	c := m.conn
	m.preceded = c.answers
	s := m.req.Shape()
	if s != nil && s.ID() == c.calls.shape {
		m.op, m.method = c.calls.op, m.req.Method() // which is the shape's own
		return
	}
	m.operation = m.req.AppendOperation(m.operation[:0])
	m.method = m.operation[len(m.operation)-len(m.req.Method()):]
	m.op = m.cfg.mod.oneways.hash(m.cfg.oneways, m.operation)
	if s != nil {
		c.calls = calledAs{s.ID(), m.op}
	}
}

// calledAs is the operation of requests that share a shape.
type calledAs struct {
	shape uint64 // its ID: an idle connection is not to hold the shape itself
	op    uint64
}

// way is the state of the request's operation.
func (m *Message) way() uint8 {
	t := m.cfg.mod.oneways
	state := t.state(m.op)
	if state != answeredWay && t.state(t.late(m.cfg.oneways, m.method)) == answeredWay {
		return answeredWay
	}
	return state
}

// knownOneway reports whether a request that no cluster gets is a oneway whose
// client would take an error for its next answer.
func (m *Message) knownOneway() bool {
	if !m.mayBeOneway() || m.conn.pipelines || m.conn.eof && m.conn.ordered {
		return false
	}
	m.identify()
	return m.way() == onewayWay
}

// late notes an answer that nobody waited for.
func (wl *workerListener) late(md *codecs.Metadata) {
	if md.Type == codecs.Response && len(md.Method()) > 0 {
		t := wl.mod.oneways
		t.answers(t.late(wl.oneways, md.Method()), md)
	}
}

// wentOn is told that the client has sent another request, or will send no
// more. If the request is known to get no answer, that ends m, or sets it aside: nobody
// waits for one, and a connection upstream is free for the next request. What has not
// been sent yet is asked again when it is.
func (m *Message) wentOn() (over bool) {
	c := m.conn
	switch {
	case !m.mayBeOneway() || m.phase != inUpstream || m.exchange.Waiting():
		return false
	case m.oneway:
		if over = m.req.Type == codecs.Request; over { // it gave way, and is sent now
			m.discard()
		}
		return over
	case c.pipelines || m.way() != onewayWay:
		return false
	}
	m.cfg.count(metrics.OnewayPresumed, 1)
	m.cfg.gauge(metrics.RequestActive, -1)
	c.unlink(m)
	m.aside = true
	c.aside = append(c.aside, m)
	if c.finishing || c.ordered || !m.exchange.Call().Release() {
		m.discard()
		return true
	}
	m.settle(breaker.Unknown)
	if m.cfg.asideFilters > 0 {
		m.tellAside()
	}
	if len(c.aside) > maxAside {
		c.aside[0].discard()
	}
	return true
}

// givesWay reports whether the answers behind m, whose turn it is, go out before its own,
// as it is known to get none. If it has not been sent yet it is a oneway for good then: the
// client would take what comes later for another answer.
func (m *Message) givesWay() bool {
	switch {
	case m.replied: // as its client sends no more
		return false
	case m.wentOn():
		return true
	case !m.mayBeOneway() || m.conn.pipelines:
		return false
	case m.phase == inRequest:
		m.identify()
	case m.phase != inUpstream || !m.exchange.Waiting():
		return false
	}
	if m.way() != onewayWay {
		return false
	}
	m.cfg.count(metrics.OnewayPresumed, 1)
	m.oneway = true
	m.conn.release()
	return true
}

// goes is called when m is about to be sent. A known oneway behind which its client has gone
// on already is looked at again behind this event, before a server could answer it.
func (m *Message) goes() {
	c := m.conn
	if c.closed || c.overtaken || !m.isBehind() {
		return
	}
	if m.oneway || !c.pipelines && m.way() == onewayWay {
		c.overtaken = true
		c.sh.later = append(c.sh.later, c)
	}
}

// isBehind reports whether the client has gone on since it has sent m.
func (m *Message) isBehind() bool { return m.number < m.conn.requests || m.conn.finishing }

// lookBack has the known oneways behind which the client has gone on hear of it.
func (c *connection) lookBack() {
	c.overtaken = false
	for m := c.first; m != nil; {
		if m.isBehind() && m.wentOn() {
			m = c.first // others may have ended with it
		} else {
			m = m.next
		}
	}
}

// tellAside tells filters that m has been set aside.
func (m *Message) tellAside() {
	defer m.under(m.pos, m.replied, m.local)
	for i := m.seen - 1; i >= 0; i-- {
		if f := m.cfg.chain[i].aside; f != nil && m.saw(i) {
			m.pos = i
			m.onAside(f)
		}
	}
	m.succeeds, m.repeats = false, false
}

func (m *Message) onAside(f AsideFilter) {
	defer func() {
		if r := recover(); r != nil {
			m.panicked(r)
		}
	}()
	f.OnAside(m)
}

// discard ends a message that was set aside without a word.
func (m *Message) discard() {
	m.exchange.Call().Forget()
	m.end()
}

// takeBack takes off a message that was set aside that ends.
func (c *connection) takeBack(m *Message) {
	i := slices.Index(c.aside, m)
	c.aside = slices.Delete(c.aside, i, i+1)
}

// wasAnswered notes what an answer tells of its operation and its client.
func (m *Message) wasAnswered(md *codecs.Metadata) {
	m.cfg.mod.oneways.answers(m.op, md)
	c := m.conn
	if c.closed {
		return
	}
	if c.answers++; c.requests > m.number && !c.pipelines {
		// No client goes on before an answer that it reads next.
		c.pipelines = true
		c.tell(func(*withheld) bool { return true })
	}
}

// silent ends m without a word if its client may not be told an error, or not yet.
// counter is that of the error.
func (m *Message) silent(e codecs.ErrorType, reason string, counter metrics.Counter) bool {
	c := m.conn
	if !m.mayBeOneway() || m.oneway || c.closed {
		return false
	}
	switch way := m.way(); {
	case c.pipelines || way == answeredWay:
		return false
	case m.aside: // and counted
	case c.eof && c.ordered:
		return false
	case way == onewayWay:
		m.cfg.count(metrics.OnewayPresumed, 1)
	case c.eof && c.last == m: // else it is told behind the others
		return false
	case m.sent && (c.requests > m.number || c.hasPassed(m.op)):
		m.cfg.count(metrics.OnewayPresumed, 1)
		if !c.ordered {
			c.withhold(m, e, reason, counter)
		}
	default: // its client may be waiting, and then also for those before
		c.tell(func(w *withheld) bool { return w.op == m.op })
		return false
	}
	m.end()
	return true
}

// hasPassed reports whether the client has gone on without the answer to a request
// of the operation, and was told nothing.
func (c *connection) hasPassed(op uint64) bool {
	return slices.ContainsFunc(c.withheld, func(w withheld) bool { return w.op == op && w.passed })
}

// withhold keeps the error of m until its client has shown of which kind it is.
func (c *connection) withhold(m *Message, e codecs.ErrorType, reason string, counter metrics.Counter) {
	m.local = codecs.LocalError{Type: e, Message: reason}
	frame, err := guard.Append(nil, func(dst []byte) ([]byte, error) {
		return m.proto.codec.EncodeError(dst, &m.req, &m.local)
	})
	if err != nil {
		m.codecPanicked(err)
		return
	}
	late := m.cfg.mod.oneways.late(m.cfg.oneways, m.method)
	w := withheld{m.op, late, counter, e == codecs.Timeout, false, m.preceded, frame}
	switch {
	case w.weight() > maxWithheld:
		return
	case c.sh.withheld+w.weight() > maxAllWithheld:
		c.sh.shareWithheld()
	}
	c.withheld = append(c.withheld, w)
	c.withheldBytes += w.weight()
	c.sh.withheld += w.weight()
	c.keepWithheld(maxWithheld)
	if !c.sh.review.Running() {
		c.sh.timers.Start(&c.sh.review, c.sh.w.Now()+reviewTime)
	}
}

// keepWithheld drops withheld errors until they have most bytes at most: the oldest first,
// for which a client that did wait has most likely given up by now. To tell them would be
// worse: a client that sent oneways would take them for answers.
func (c *connection) keepWithheld(most int) {
	if c.withheldBytes > most {
		c.takeOff(func(*withheld) bool { return c.withheldBytes > most })
	}
}

// shareWithheld makes room for withheld errors: half of what there may be is left to the
// clients in equal parts, so that those with few lose none because of those with many.
func (s *shard) shareWithheld() {
	n := 0
	for _, wl := range s.listeners {
		for c := wl.conns; c != nil; c = c.next {
			if len(c.withheld) > 0 {
				n++
			}
		}
	}
	for _, wl := range s.listeners {
		for c := wl.conns; c != nil; c = c.next {
			if len(c.withheld) > 0 {
				c.keepWithheld(maxAllWithheld / 2 / n)
			}
		}
	}
}

// takeOff takes off the withheld errors that are chosen, which it asks about in their
// order.
func (c *connection) takeOff(chosen func(*withheld) bool) {
	c.withheld = slices.DeleteFunc(c.withheld, func(w withheld) bool {
		if !chosen(&w) {
			return false
		}
		c.withheldBytes -= w.weight()
		c.sh.withheld -= w.weight()
		return true
	})
	if cap(c.withheld) > 2*len(c.withheld) {
		c.withheld = append([]withheld(nil), c.withheld...) // nil if there are none
	}
}

// tell writes the withheld errors that are chosen.
func (c *connection) tell(chosen func(*withheld) bool) {
	c.takeOff(func(w *withheld) bool {
		if !chosen(w) {
			return false
		}
		if !c.closed && !c.ending {
			buf := c.buffer(len(w.frame))
			buf.B = append(buf.B, w.frame...)
			if w.counter < metrics.Counters {
				c.cfg.count(w.counter, 1)
			}
			c.cfg.count(metrics.LocalResponseBusinessException, 1)
			c.cfg.count(metrics.OnewayErrorTold, 1)
		}
		return true
	})
}

// tellLast writes what is withheld when all else is answered and no more is taken: there is
// no call for whose answer the client could take it. Of known oneways it is told nothing.
func (c *connection) tellLast() {
	t := c.cfg.mod.oneways
	c.tell(func(w *withheld) bool { return t.state(w.op) != onewayWay || t.answered(w.op, w.late) })
}

// tellAnswered writes the withheld errors of operations that have been answered since.
func (c *connection) tellAnswered() {
	t := c.cfg.mod.oneways
	c.tell(func(w *withheld) bool { return t.answered(w.op, w.late) })
}

// tellWaiting has clients that wait for an answer, and so send nothing, hear of the
// withheld errors of operations that have been answered since: to others, by other
// workers' servers, or late.
func (s *shard) tellWaiting() {
	for _, wl := range s.listeners {
		for c := wl.conns; c != nil && s.withheld > 0; c = c.next {
			if len(c.withheld) > 0 {
				c.tellAnswered()
			}
		}
	}
	if s.withheld > 0 {
		s.timers.Start(&s.review, s.w.Now()+reviewTime)
	}
}

// review is called when a client of whom errors are withheld has sent another
// request: whoever waits for all answers would not have.
func (c *connection) review() {
	t := c.cfg.mod.oneways
	c.tellAnswered()
	for i := range c.withheld {
		w := &c.withheld[i]
		if w.timeout && !w.passed {
			t.passed(w.op)
			// Those that came with no answer between them are one sign.
			for j := range c.withheld[i:] {
				if o := &c.withheld[i+j]; o.op == w.op && o.preceded == w.preceded {
					o.passed = true
				}
			}
		}
	}
	c.takeOff(func(w *withheld) bool { return t.state(w.op) == onewayWay })
}
