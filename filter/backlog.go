package filter

import (
	"time"

	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

const (
	// pieceBytes is how much of a backlog is handed over at a time: enough to fill
	// the host's buffer up to its watermark, so that it tells when the client has
	// read that.
	pieceBytes = 1 << 20
	// chunkBytes is what small answers are gathered into.
	chunkBytes = 64 << 10
	// slowTime is how long a client may take nothing while more than its limit comes
	// for it: what is in the host's buffer already must be read first, which tells of
	// itself only when it is almost all.
	slowTime = 5 * time.Second
	// atOnce is how many times its limit may come for it in that time.
	atOnce = 4
	// stuckTime is the same for one of which the host alone holds bytes. It is closed
	// only if too much waits on its worker.
	stuckTime = 10 * time.Second
	// hostBytes is what the host is taken to hold if it does not say.
	hostBytes = 1 << 20
)

// backlog is what waits for a client that does not take bytes. It waits here and
// not in the host, which would not tell how much of it has been read.
type backlog struct {
	chunks [][]byte
	size   int
	since  int           // bytes that came since the client has taken some
	bound  int           // of since
	inHost int           // bytes that the host holds besides, at the least
	taken  time.Duration // when that was
	timer  timer.Timer   // to hand over more, if the host says nothing
}

func (q *backlog) add(b []byte) {
	q.size += len(b)
	q.since += len(b)
	if n := len(q.chunks); n > 0 {
		last := &q.chunks[n-1]
		k := min(len(b), cap(*last)-len(*last))
		*last = append(*last, b[:k]...)
		b = b[k:]
	}
	if len(b) > 0 {
		c := make([]byte, 0, max(len(b), min(q.size, chunkBytes)))
		q.chunks = append(q.chunks, append(c, b...))
	}
}

// next takes up to pieceBytes off, at least one chunk.
func (q *backlog) next() (chunks [][]byte, size int) {
	n := 0
	for n < len(q.chunks) && (n == 0 || size+len(q.chunks[n]) <= pieceBytes) {
		size += len(q.chunks[n])
		n++
	}
	chunks, q.chunks = q.chunks[:n:n], q.chunks[n:]
	if q.size -= size; q.size == 0 {
		q.chunks = nil
	}
	return chunks, size
}

// keep takes b into the backlog. One write always fits; a client is closed when
// more than the limit has come and it has taken nothing for a while.
func (c *connection) keep(b []byte) {
	q := &c.unread
	q.add(b)
	c.sh.held += len(b)
	if q.bound = max(q.bound, c.cfg.Limits.MaxWriteBufferBytes, len(b)); q.since > q.bound {
		if q.since > atOnce*q.bound || c.sh.w.Now() >= q.taken+slowTime {
			c.doesNotRead()
			return
		}
		c.arm(q.taken + slowTime)
	}
	c.sh.shed(max(c.cfg.Limits.MaxUnreadBytes, len(b)))
}

func (c *connection) doesNotRead() { c.overflow("does not read its answers") }

// holds notes that the host holds as much for the client as it likes to, or that it
// does no more.
func (c *connection) holds(full bool) {
	n := 0
	if full {
		if n = c.d.BufferLimit(); n == 0 {
			n = hostBytes
		}
	}
	s := c.sh
	s.inHost += n - c.unread.inHost
	c.unread.inHost = n
	if full && !s.stuck.Running() {
		s.timers.Start(&s.stuck, s.w.Now()+stuckTime)
	}
}

// endStuck closes clients that have taken nothing for long, if too much waits on
// the worker, the bytes in the host's buffers included.
func (s *shard) endStuck() {
	now := s.w.Now()
	for _, wl := range s.listeners {
		for c := wl.conns; c != nil && s.held+s.inHost > wl.Limits.MaxUnreadBytes; c = c.next {
			if c.unread.inHost > 0 && now >= c.unread.taken+stuckTime {
				c.overflow("has taken nothing for long, with too much waiting on this worker")
			}
		}
	}
	if s.inHost > 0 {
		s.timers.Start(&s.stuck, now+stuckTime/10)
	}
}

// handOver gives the host some of the backlog, as the client takes bytes again.
func (c *connection) handOver() {
	if c.closed || c.dropped || c.blocked || c.unread.size == 0 {
		return
	}
	chunks, size := c.unread.next()
	c.sh.held -= size
	c.unread.since, c.unread.bound, c.unread.taken = 0, 0, c.sh.w.Now()
	buf := c.sh.w.Buffer(size)
	for _, b := range chunks {
		buf.B = append(buf.B, b...)
	}
	c.d.Write(buf)
	switch {
	case c.unread.size > 0: // unless this fills the host's buffer
		c.unread.timer.Fire = c.handOver
		c.sh.timers.Start(&c.unread.timer, c.unread.taken)
	case c.finishing && c.inFlight == 0:
		c.end()
	default:
		c.resumeServers()
	}
}

// overflow closes a connection for which too much waits.
func (c *connection) overflow(why string) {
	c.cfg.count(metrics.DownstreamOverflow, 1)
	c.sh.warn(c.cfg, "client %s %s: closed with %d bytes waiting", c.d.RemoteAddress(), why, c.unread.size+c.parked)
	c.drop()
}

// drop closes the connection with all that waits for it.
func (c *connection) drop() {
	c.dropped, c.finishing, c.ending = true, true, true
	c.forgetUnread()
	for m := c.first; m != nil; m = m.next {
		c.parked -= len(m.reply)
		c.sh.held -= len(m.reply)
		m.reply = nil
	}
	c.d.Close(false)
}

func (c *connection) forgetUnread() {
	c.sh.held -= c.unread.size
	c.holds(false)
	c.sh.timers.Stop(&c.unread.timer)
	c.unread = backlog{}
}

// shed closes the worst of the connections of which so much waits that it is more
// than limit: by how much, and for how long they have taken none of it.
func (s *shard) shed(limit int) {
	for s.held > limit {
		now := s.w.Now()
		var worst *connection
		var most float64
		for _, wl := range s.listeners {
			for c := wl.conns; c != nil; c = c.next {
				n := c.unread.size + c.parked
				if n == 0 {
					continue
				}
				bad := float64(n) * float64(now-c.unread.taken+time.Millisecond)
				if c.unread.size == 0 { // it reads, and waits for an answer
					bad = float64(n) * float64(time.Millisecond)
				}
				if worst == nil || bad > most || bad == most && c.d.ID() < worst.d.ID() {
					worst, most = c, bad
				}
			}
		}
		if worst == nil {
			return
		}
		worst.overflow("is the one that takes least, with too much waiting on this worker")
	}
}
