package filtertest

import (
	"net/netip"
	"slices"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Cluster is one that routes may name. Its hosts are picked in turn.
type Cluster struct {
	h       *Host
	hosts   []string
	healthy int
	next    int
	members *host.Members
	// Pick, if set, chooses the host of the next connection instead.
	Pick func(hosts []string) string
	// Fail, if set, is how attempts to connect end instead.
	Fail func() (reason host.CloseReason, fails bool)
	// Serve, if set, is called with the bytes that a server has got. What it
	// does not consume it gets again.
	Serve func(s *Server, b []byte) (consumed int)
	// Describe, if set, is what the host knows of a server.
	Describe func(s *Server) host.Server
	// Hang makes attempts to connect neither succeed nor fail.
	Hang bool

	servers []*Server
	hanging []*Server
}

// Admit lets the attempts succeed that hang.
func (c *Cluster) Admit() {
	for _, s := range c.hanging {
		if s.state == serverConnecting {
			s.up()
		}
	}
	c.hanging = nil
	c.h.Settle()
}

// Queue tells of the attempts that hang that they may be waiting for a connection to end.
func (c *Cluster) Queue() {
	for _, s := range c.hanging {
		if q, ok := s.ev.(host.Queued); ok && s.state == serverConnecting {
			q.Queued()
		}
	}
	c.h.Settle()
}

// Cluster makes a cluster with some hosts.
func (h *Host) Cluster(name string, hosts ...string) *Cluster {
	c := &Cluster{h: h}
	c.SetHosts(hosts...)
	h.clusters[name] = c
	return c
}

// SetHosts replaces the hosts. Open connections stay.
func (c *Cluster) SetHosts(hosts ...string) { c.hosts, c.healthy = hosts, len(hosts) }

// Tell has the cluster tell its hosts, and connections lead to those that are wanted;
// without any it tells none any more.
func (c *Cluster) Tell(members ...host.Member) {
	c.members = nil
	if members == nil {
		return
	}
	var healthy []string
	for _, m := range members {
		if m.Healthy {
			healthy = append(healthy, m.Address)
		}
	}
	c.SetHosts(healthy...)
	c.members = &host.Members{Hosts: members}
}

// RemoveCluster removes a cluster. Open connections stay.
func (h *Host) RemoveCluster(name string) { delete(h.clusters, name) }

// Servers returns the connections to the cluster that are open.
func (c *Cluster) Servers() []*Server {
	var open []*Server
	for _, s := range c.servers {
		if s.state == serverReady {
			open = append(open, s)
		}
	}
	return open
}

type serverState uint8

const (
	serverConnecting serverState = iota
	serverReady
	serverClosed
)

// Server is the server's end of one upstream connection.
type Server struct {
	// Host is its address.
	Host string
	// Wanted is the host that it was to lead to, "" if any.
	Wanted string
	// Source is the address that it shall see, the zero value for the proxy's.
	Source   netip.Addr
	c        *Cluster
	w        *worker
	ev       host.UpstreamEvents
	state    serverState
	received []byte
	ended    bool
	blocked  bool
	disabled int
	unread   []byte
}

// Take returns what the server has got since the last Take.
func (s *Server) Take() []byte {
	b := s.received
	s.received = nil
	return b
}

// Open reports whether the connection is open.
func (s *Server) Open() bool { return s.state == serverReady }

// Ended reports whether the pipeline has sent an end of stream.
func (s *Server) Ended() bool { return s.ended }

// Send sends bytes to the pipeline. Within Cluster.Serve they go when it has
// returned.
func (s *Server) Send(b []byte) {
	data := append([]byte(nil), b...)
	s.c.h.todo = append(s.c.h.todo, func() {
		switch {
		case s.state != serverReady || len(data) == 0:
		case s.disabled > 0:
			s.unread = append(s.unread, data...)
		default:
			deliver(data, func(b [][]byte) {
				s.w.event(s, func() { s.ev.Data(b, len(data)) })
			})
		}
	})
}

// Unread returns how many bytes the pipeline does not read for now.
func (s *Server) Unread() int { return len(s.unread) }

// Close ends the connection from the server's side.
func (s *Server) Close() {
	s.c.h.todo = append(s.c.h.todo, func() { s.close(host.Remote) })
}

// Reset loses the connection.
func (s *Server) Reset() {
	s.c.h.todo = append(s.c.h.todo, func() { s.close(host.Reset) })
}

// Unmake ends the connection as a host does that learns late that it has never come about.
func (s *Server) Unmake() {
	s.c.h.todo = append(s.c.h.todo, func() { s.close(host.ConnectFailed) })
}

// Drain ends the connection as a host does that replaces its own way upstream.
func (s *Server) Drain() {
	s.c.h.todo = append(s.c.h.todo, func() { s.close(host.Draining) })
}

// Block(true) lets the server take no bytes, nor notice their end.
func (s *Server) Block(block bool) {
	s.blocked = block
	if !block && s.state == serverReady {
		if s.ended {
			s.finish()
			return
		}
		s.c.h.todo = append(s.c.h.todo, s.serve, func() {
			if s.state == serverReady {
				s.w.event(s, func() { s.ev.WriteBlocked(false) })
			}
		})
	}
}

func (s *Server) close(r host.CloseReason) {
	if s.state != serverClosed {
		s.state = serverClosed
		s.w.event(nil, func() { s.ev.Closed(r) })
	}
}

func (s *Server) fail() {
	s.w.guard(nil, s.ev.Aborted)
	s.w.op(func() { s.close(host.Local) })
}

// serve hands what has come to the cluster's Serve.
func (s *Server) serve() {
	if s.c.Serve == nil || len(s.received) == 0 || s.state != serverReady {
		return
	}
	n := s.c.Serve(s, s.received)
	s.received = s.received[n:]
}

// finish reads to the end, and closes.
func (s *Server) finish() {
	s.c.h.todo = append(s.c.h.todo, s.serve, func() { s.close(host.Local) })
}

// Connect implements host.Worker.
func (w *worker) Connect(t host.Target, ev host.UpstreamEvents) host.Upstream {
	c := w.h.clusters[t.Cluster]
	s := &Server{c: c, w: w, ev: ev, Source: t.Source, Wanted: t.Host}
	if c == nil {
		s.c = &Cluster{h: w.h}
	}
	w.h.todo = append(w.h.todo, func() {
		if s.state != serverConnecting {
			return
		}
		switch {
		case c == nil || w.h.clusters[t.Cluster] != c:
			s.close(host.NoCluster)
		case c.Hang:
			c.hanging = append(c.hanging, s)
		case c.Fail != nil:
			if r, fails := c.Fail(); fails {
				s.close(r)
				return
			}
			s.up()
		default:
			s.up()
		}
	})
	return &upstream{s}
}

// Server implements host.Describer.
func (u *upstream) Server() (s host.Server) {
	if u.s.c.Describe != nil {
		s = u.s.c.Describe(u.s)
	}
	return s
}

func (s *Server) up() {
	c := s.c
	if len(c.hosts) == 0 {
		s.close(host.NoHost)
		return
	}
	if c.members != nil && slices.Contains(c.hosts, s.Wanted) {
		s.Host = s.Wanted
	} else if c.Pick != nil {
		s.Host = c.Pick(c.hosts)
	} else {
		s.Host = c.hosts[c.next%len(c.hosts)]
		c.next++
	}
	s.state = serverReady
	c.servers = append(c.servers, s)
	s.w.event(s, func() { s.ev.Ready(s.Host) })
}

// ClusterHosts implements host.Worker.
func (w *worker) ClusterHosts(cluster string) (h host.Hosts, known, ok bool) {
	c := w.h.clusters[cluster]
	if c == nil {
		return h, false, true
	}
	return host.Hosts{Total: len(c.hosts), Healthy: c.healthy, Preferred: c.healthy}, true, true
}

// ClusterMembers implements host.Worker.
func (w *worker) ClusterMembers(cluster string) *host.Members {
	if c := w.h.clusters[cluster]; c != nil {
		return c.members
	}
	return nil
}

// upstream implements host.Upstream.
type upstream struct{ s *Server }

// Write implements host.Upstream.
func (u *upstream) Write(b *host.Buffer) {
	s := u.s
	data := s.w.take(b)
	s.w.op(func() {
		if s.state != serverReady {
			return
		}
		s.received = append(s.received, data...)
		if s.blocked {
			s.w.event(s, func() { s.ev.WriteBlocked(true) })
			return
		}
		s.c.h.todo = append(s.c.h.todo, s.serve)
	})
}

// ReadDisable implements host.Upstream.
func (u *upstream) ReadDisable(disable bool) {
	s := u.s
	s.w.op(func() {
		switch {
		case disable:
			s.disabled++
		case s.disabled == 0:
			s.c.h.t.Error("filtertest: ReadDisable(false) without a ReadDisable(true)")
		default:
			if s.disabled--; s.disabled == 0 {
				unread := s.unread
				s.unread = nil
				s.Send(unread)
			}
		}
	})
}

// Close implements host.Upstream.
func (u *upstream) Close(graceful bool) {
	s := u.s
	s.w.op(func() {
		if graceful && s.state == serverReady {
			if s.ended = true; !s.blocked {
				s.finish()
			}
			return
		}
		s.close(host.Local)
	})
}
