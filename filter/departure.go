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
)

// departure is how the connection of a replaced listener comes to its end.
type departure struct {
	draining   bool
	saidGoAway bool
	leaveAfter time.Duration
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
// first, and has a while; behind that the moment must be good.
func (c *connection) takeTurn(good bool) {
	now := c.sh.w.Now()
	switch {
	case !c.draining || c.plain != nil || now < c.leaveAfter:
	case c.sayGoAway():
		c.leaveAfter = now + goAwayTime
		c.arm(c.leaveAfter)
	case good:
		c.depart()
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

// depart closes a draining connection whose turn has come, if it is idle now. That
// is a good moment right behind an answer, as the client hears of the end together
// with it, and when the client has sent nothing for a while; at any other a request
// may be on its way. In the middle of a lease there is none.
func (c *connection) depart() {
	if c.inFlight == 0 && c.frameStarted == 0 && !c.stopped() && !c.lines.Held() && !c.finishing && !c.closed {
		c.cfg.count(metrics.DrainClosed, 1)
		c.finish()
	}
}
