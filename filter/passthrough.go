package filter

import (
	"net/netip"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

const (
	// plainIdleTimeout is tcp_proxy's.
	plainIdleTimeout = time.Hour
	// plainLinger is how long a server may take to read what its client has sent
	// before it was gone.
	plainLinger = 5 * time.Second
)

// passthrough carries the bytes of a client whose protocol no codec recognises,
// and those of its server, as they are. It has an upstream connection to itself
// and implements host.UpstreamEvents.
type passthrough struct {
	c     *connection
	up    host.Upstream
	early []byte // what the client has sent before there was a server
	ready bool
	over  bool // the upstream connection has ended

	stopped bool // the client is not read, as the server does not read
	paused  bool // the server is not read, as the client does not read
	linger  timer.Timer
}

// passOn makes c one that is carried plainly; first are its bytes so far.
func (c *connection) passOn(first []byte) {
	wl := c.cfg
	wl.count(metrics.PassthroughConnection, 1)
	wl.gauge(metrics.PassthroughActive, 1)
	p := &passthrough{c: c, early: append([]byte(nil), first...)}
	c.plain = p
	p.stop(true)
	dst, src := wl.addresses(c, wl.Passthrough)
	p.up = c.sh.w.Connect(host.Target{Cluster: wl.Passthrough, OriginalDst: dst, Source: src}, p)
	c.arm(c.wakeAt())
}

// addresses are those by which the upstream connections for c to cluster differ
// from others to it, each the zero value if it does not count.
func (wl *workerListener) addresses(c *connection, cluster string) (dst string, src netip.Addr) {
	if wl.byOriginalDst(cluster) {
		dst = c.d.LocalAddress()
	}
	if wl.Upstream.OriginalSrc {
		src = c.source()
	}
	return dst, src
}

// byAddress reports whether they may differ: not all connections have one.
func (wl *workerListener) byAddress(cluster string) bool {
	return wl.Upstream.OriginalSrc || wl.byOriginalDst(cluster)
}

// stop stops or resumes the reading of the client.
func (p *passthrough) stop(stop bool) {
	if p.stopped != stop {
		p.stopped = stop
		p.c.d.ReadDisable(stop)
	}
}

// fromClient takes bytes of the client, and with them its end of stream.
func (p *passthrough) fromClient(bufs [][]byte, total int) {
	switch {
	case p.over:
		return
	case !p.ready: // read before reading was stopped
		for _, b := range bufs {
			p.early = append(p.early, b...)
		}
		return
	case total > 0:
		b := p.c.sh.w.Buffer(total)
		for _, part := range bufs {
			b.B = append(b.B, part...)
		}
		p.up.Write(b)
	}
	if p.c.eof {
		p.up.Close(true) // the server may still answer
	}
}

// resume has the server read again.
func (p *passthrough) resume() {
	if p.paused && !p.over {
		p.paused = false
		p.up.ReadDisable(false)
	}
}

// clientGone ends the upstream connection of a client that has gone. What it has
// sent still arrives.
func (p *passthrough) clientGone() {
	p.c.cfg.gauge(metrics.PassthroughActive, -1)
	p.early = nil
	switch {
	case p.over:
	case !p.ready:
		p.over = true
		p.up.Close(false)
	default:
		p.resume() // else the server's end would not be seen
		p.up.Close(true)
		p.linger.Fire = func() { p.up.Close(false) }
		p.c.sh.timers.Start(&p.linger, p.c.sh.w.Now()+plainLinger)
	}
}

// Ready implements host.UpstreamEvents.
func (p *passthrough) Ready(string) {
	if p.over {
		return
	}
	p.ready = true
	early := p.early
	p.early = nil
	p.fromClient([][]byte{early}, len(early))
	p.stop(false)
}

// Data implements host.UpstreamEvents.
func (p *passthrough) Data(bufs [][]byte, total int) {
	c := p.c
	if c.closed || c.ending {
		return
	}
	c.lastUse = c.sh.w.Now()
	out := c.buffer(total)
	for _, b := range bufs {
		out.B = append(out.B, b...)
	}
	if c.behind() && !p.paused && !p.over {
		p.paused = true
		p.up.ReadDisable(true)
	}
}

// WriteBlocked implements host.UpstreamEvents.
func (p *passthrough) WriteBlocked(blocked bool) {
	if !p.c.closed {
		p.stop(blocked)
	}
}

// Closed implements host.UpstreamEvents.
func (p *passthrough) Closed(r host.CloseReason) {
	c := p.c
	p.over = true
	c.sh.timers.Stop(&p.linger)
	if c.closed {
		return
	}
	if !p.ready {
		c.cfg.count(metrics.PassthroughConnectFail, 1)
		c.sh.warn(c.cfg, "client %s: no connection to cluster %s, to which unrecognised bytes are carried: %s",
			c.d.RemoteAddress(), c.cfg.Passthrough, r)
	}
	c.finish()
}

// Aborted implements host.UpstreamEvents: the pipeline has panicked.
func (p *passthrough) Aborted() {
	p.over = true
	if c := p.c; !c.closed {
		c.cfg.Panicked(nil)
		c.finish()
	}
}
