package filtertest_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/host/hosttest"
)

// TestConformance: what holds for every host holds for this one.
func TestConformance(t *testing.T) {
	hosttest.Run(t, hosttest.Features{}, func(t *testing.T, m host.Module) hosttest.Stage {
		h := filtertest.NewWith(t, m, 1)
		h.MayPanic()
		c := h.Cluster(hosttest.Cluster, "10.0.0.3:20880")
		h.Cluster(hosttest.Refused, "10.0.0.4:20880").Fail = func() (host.CloseReason, bool) { return host.ConnectFailed, true }
		return &stage{t: t, h: h, cluster: c}
	})
}

type stage struct {
	t       *testing.T
	h       *filtertest.Host
	cfg     *filtertest.Config
	cluster *filtertest.Cluster
	servers []hosttest.Peer
	known   map[*filtertest.Server]bool
	clients []*peer
}

func (s *stage) Load(raw string) error {
	cfg, err := s.h.Load(raw)
	if err == nil {
		s.cfg = cfg
	}
	return err
}

func (s *stage) Dial() hosttest.Peer {
	p := &peer{Client: s.h.Dial(s.cfg)}
	s.clients = append(s.clients, p)
	return p
}

func (s *stage) Servers() []hosttest.Peer {
	for _, srv := range s.cluster.Servers() {
		if !s.known[srv] {
			if s.known == nil {
				s.known = map[*filtertest.Server]bool{}
			}
			s.known[srv] = true
			s.servers = append(s.servers, &far{Server: srv})
		}
	}
	return s.servers
}

func (s *stage) Until(what string, done func() bool) {
	s.t.Helper()
	s.h.Settle()
	for _, p := range s.clients {
		if p.leaves {
			p.Close()
		}
	}
	for range 100 { // timers
		if done() {
			return
		}
		s.h.Advance(time.Millisecond)
	}
	s.h.WaitUntil(done) // other goroutines
	require.True(s.t, done(), what)
}

func (s *stage) Counter(name string) int64 { return s.cfg.Counter(name) }

type peer struct {
	*filtertest.Client
	leaves bool
}

// Close is the client's end of both directions, which comes behind what it has sent: it is seen when
// that has been read.
func (c *peer) Close() {
	if c.leaves = c.ReadDisabled(); !c.leaves {
		c.Client.Close()
	}
}

func (c *peer) Send(b []byte) { c.Client.Send(b) }
func (c *peer) Ended() bool   { return c.Closed() }

type far struct {
	*filtertest.Server
	received []byte
}

func (s *far) Received() []byte {
	s.received = append(s.received, s.Take()...)
	return s.received
}

func (s *far) Ended() bool { return s.Server.Ended() || !s.Open() }
