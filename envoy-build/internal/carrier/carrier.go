package carrier

import (
	"github.com/meltemi-mesh/meltemi/envoy-build/internal/loopback"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Filter state that tcp_proxy reads.
const (
	stateCluster     = "envoy.tcp_proxy.cluster"
	stateOriginalDst = "envoy.network.transport_socket.original_dst_address"
)

// Filter state that the loopback listener may set of what tcp_proxy has found.
const (
	stateWorkload = "meltemi.workload"
	stateServices = "meltemi.services"
)

// Response flags (Envoy's StreamInfo::CoreResponseFlag), as bits.
const (
	flagOverflow  = 1 << 7
	flagNoCluster = 1 << 24
)

type state uint8

const (
	waiting state = iota // asked for: there is no filter yet
	parked               // nobody has asked for it
	claimed              // tcp_proxy connects
	ready                // the server is connected
	over
)

// Carrier is a carrier on its worker. As an upstream connection that was asked for
// it has no filter until one has come that it can claim. It implements
// host.Upstream; its other methods are the events of its filter.
type Carrier struct {
	set     *Set
	state   state
	filter  Filter
	conn    *loopback.Conn
	target  host.Target
	ev      host.UpstreamEvents
	blocked bool // the server takes no bytes
	paused  bool // the server is not read
	ended   bool // its end was asked for
	aborted bool // by a panic; its end is yet to be told
}

// claim lets tcp_proxy connect.
func (c *Carrier) claim() {
	c.state = claimed
	c.filter.SetState(stateCluster, c.target.Cluster)
	if c.target.OriginalDst != "" {
		c.filter.SetState(stateOriginalDst, c.target.OriginalDst)
	}
	c.filter.Continue(c.target.Host)
}

// discard closes a carrier that has been taken off its list.
func (c *Carrier) discard() {
	c.state = over
	c.filter.Close()
}

// Mark is told that bytes of the dialing side, of which there is one now and then,
// wait in the read buffer, total of them, and whether its end does. It returns how
// many of them to drain.
func (c *Carrier) Mark(total int, end bool) int {
	if end { // the dialing side has gone
		c.filter.Close()
		return total
	}
	switch c.state {
	case parked:
		return 0 // the mark waits for tcp_proxy, which stops reading until it is connected
	case claimed:
		c.state = ready
		c.filter.Connected()
		c.ev.Ready(c.filter.Upstream())
	case ready:
		if c.blocked {
			c.blocked = false
			c.filter.Unblocked()
			c.ev.WriteBlocked(false)
		}
	}
	return total
}

// Answer is told what the server has sent, bufs, total bytes together, and whether
// it sends no more. All of it is consumed.
func (c *Carrier) Answer(bufs [][]byte, total int, end bool) {
	if c.state == over {
		return
	}
	if total > 0 {
		c.ev.Data(bufs, total)
	}
	if end && c.state != over {
		// The server sends no more. No event of its own tells that.
		c.finish(host.Remote)
		c.filter.Close()
	}
}

// Blocked is told that the server does not take bytes. The mark that the dialing
// side sends now is read when it does again.
func (c *Carrier) Blocked() {
	if c.state == ready && !c.blocked {
		c.blocked = true
		c.conn.Mark()
		c.ev.WriteBlocked(true)
	}
}

// Closed is told that the connection has ended. alive says that the filter can be
// asked. It is the last event.
func (c *Carrier) Closed(alive bool) {
	switch c.state {
	case over:
		if c.aborted {
			c.aborted = false
			c.tellClosed(host.Local)
		}
	case parked:
		c.state = over
		c.set.lost(c)
	default:
		c.finish(c.reason(alive))
	}
}

// Aborted is told that there was a panic in one of the other events. The connection
// is closed then, and Closed follows.
func (c *Carrier) Aborted() {
	if c.state == claimed || c.state == ready {
		c.leave()
		c.aborted = true
		c.ev.Aborted()
	}
}

func (c *Carrier) finish(r host.CloseReason) {
	c.leave()
	c.tellClosed(r)
}

func (c *Carrier) leave() {
	c.state = over
	if c.paused {
		c.paused = false
		c.conn.Resume()
	}
}

func (c *Carrier) tellClosed(r host.CloseReason) {
	if !c.set.w.Guard("ending a carrier", func() { c.ev.Closed(r) }) {
		c.set.w.Guard("giving up a carrier", c.ev.Aborted)
	}
}

// reason tells why a carrier has ended: Envoy closes it locally in every case.
func (c *Carrier) reason(alive bool) host.CloseReason {
	switch {
	case c.ended:
		return host.Local
	case c.state == ready:
		return host.Reset
	case !alive:
		return host.Draining
	case c.filter.HasUpstream():
		return host.ConnectFailed
	}
	flags := c.filter.Flags()
	h, known, ok := c.set.w.ClusterHosts(c.target.Cluster)
	switch {
	case flags&flagOverflow != 0:
		return host.Overflow
	case flags&flagNoCluster != 0 || ok && !known:
		return host.NoCluster
	case flags == 0 && ok && h.Healthy > 0: // before 1.39 nothing else tells
		return host.Overflow
	case ok && h.Total > 0 && flags == 0 && c.target.OriginalDst != "":
		return host.ConnectFailed
	default:
		return host.NoHost
	}
}

// Write implements host.Upstream.
func (c *Carrier) Write(b *host.Buffer) {
	if c.state == ready {
		c.filter.Send(b)
	} else {
		b.Free()
	}
}

// Server implements host.Describer.
func (c *Carrier) Server() (s host.Server) {
	if c.state == ready && !c.filter.Closed() {
		s.Workload, s.Services = c.filter.State(stateWorkload), c.filter.State(stateServices)
		s.OwnPrincipal, s.Principal = c.filter.Principals()
	}
	return s
}

// ReadDisable implements host.Upstream.
func (c *Carrier) ReadDisable(disable bool) {
	if c.state != ready || c.paused == disable {
		return
	}
	c.paused = disable
	if disable {
		c.conn.Pause()
		c.filter.Pause()
	} else {
		c.filter.Resume()
		c.conn.Resume()
	}
}

// Close implements host.Upstream.
func (c *Carrier) Close(graceful bool) {
	switch {
	case c.state == waiting:
		c.state = over
		c.set.withdraw(c)
		c.set.w.Post(func() { c.tellClosed(host.Local) })
	case c.state == over:
	case graceful && c.state == ready:
		if !c.ended {
			c.ended = true
			c.filter.End()
		}
	default:
		c.ended = true
		c.filter.Close()
	}
}
