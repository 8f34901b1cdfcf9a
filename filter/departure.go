package filter

import (
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

const (
	// drainSpread is the time over which idle connections of a replaced
	// listener are closed.
	drainSpread = 5 * time.Second
	// goAwayTime is how long a client has to go elsewhere when it has been told.
	goAwayTime = 500 * time.Millisecond
	// warmTime is how long a replaced listener may take connections because the new
	// version of it warms: Envoy waits 15 s for what that has to fetch, if it is told
	// nothing else.
	warmTime = 20 * time.Second
	// busyTime is how long a connection whose turn has come may always have requests in
	// flight until its client rests. With what is above it is less than the 45 s for
	// which listeners drain in Istio.
	busyTime = 12 * time.Second
	// restTime is how long the client waits at the most for what is in flight to end.
	restTime = time.Second
)

// departure is how the connection of a replaced listener comes to its end.
type departure struct {
	draining   bool
	saidGoAway bool
	leaveAfter time.Duration
	restUntil  time.Duration
}

// drain has the connection leave at some moment of the seconds behind from, or soon
// after it, unless it leaves as soon anyway: its client is told so if the protocol can,
// and it is closed when it is idle.
func (c *connection) drain(from time.Duration) {
	switch {
	case c.closed || c.plain != nil: // there is no moment between requests
	case c.draining && c.leaveAfter <= from+drainSpread:
	default:
		c.draining = true
		c.leaveAfter = from + time.Duration(c.sh.rand.Int64N(int64(drainSpread)))
		c.arm(c.leaveAfter)
	}
}

// takeTurn has a draining connection leave if its turn has come. The client is told
// first, and has a while; behind that the moment must be good. Should none come for long
// one is made.
func (c *connection) takeTurn(good bool) {
	now := c.sh.w.Now()
	switch {
	case !c.draining || c.plain != nil || c.finishing || c.closed || now < c.leaveAfter:
	case c.sayGoAway():
		c.leaveAfter = now + goAwayTime
		c.arm(c.leaveAfter)
	case c.resting && now >= c.restUntil:
		c.resting, c.leaveAfter = false, now // until the next time
		c.d.ReadDisable(true)                // and on again: the host brings what waits there
		c.goOn()
	case (good || c.resting) && c.idle():
		c.cfg.count(metrics.DrainClosed, 1)
		c.finish()
	case now >= c.leaveAfter+busyTime:
		c.rest(now)
	}
}

// sayGoAway tells the client, once, that it shall send no new requests, and reports
// whether it did.
func (c *connection) sayGoAway() bool {
	if c.requests == 0 || c.saidGoAway {
		return false
	}
	c.saidGoAway = true
	l, ok := c.proto.codec.(codecs.Leaver)
	if !ok {
		return false
	}
	buf := c.buffer(0)
	n := len(buf.B)
	var err error
	buf.B, err = guard.Append(buf.B, func(dst []byte) ([]byte, error) { return l.EncodeGoAway(dst, c.variant) })
	if err != nil && !c.panicked(err) {
		c.sh.warn(c.cfg, "client %s cannot be told that its listener has been replaced: %v", c.d.RemoteAddress(), err)
	}
	return len(buf.B) > n
}

// idle reports whether the connection can be closed now. That is a good moment right
// behind an answer, as the client hears of the end together with it, and when the client
// has sent nothing for a while; at any other a request may be on its way. In the middle
// of a lease there is none.
func (c *connection) idle() bool {
	unread := c.resting && !c.eof // what has come since then
	return c.inFlight == 0 && (unread || c.frameStarted == 0 && !c.stopped()) && !c.lines.Held()
}

// rest takes no more requests for a while, so that a client that always has some in
// flight becomes idle: what it sends meanwhile is not executed if the connection ends
// by that, and served late if not. The host reads on, as the end of a socket in which
// there are unread bytes is a reset, which may overtake answers.
func (c *connection) rest(now time.Duration) {
	if !c.resting && c.inFlight > 0 && len(c.streams) == 0 && !c.lines.Held() && !c.eof {
		c.resting, c.restUntil = true, now+restTime
	}
}
