package golang

import (
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// echo is a pipeline that sends back what comes.
type echo struct {
	deaf    bool // or does not read its clients
	blocked atomic.Bool
	ends    atomic.Int32 // of events
	w       host.Worker
}

func (m *echo) NewConfig(host.Config, []byte) (host.FilterConfig, error) { return m, nil }
func (m *echo) Published()                                               {}
func (m *echo) Destroy()                                                 {}
func (m *echo) NewWorker(w host.Worker) host.Shard                       { m.w = w; return m }
func (m *echo) Run()                                                     {}
func (m *echo) EndHook()                                                 { m.ends.Add(1) }

func (m *echo) Accept(_ host.FilterConfig, d host.Downstream) host.DownstreamEvents {
	if m.deaf {
		d.ReadDisable(true)
	}
	return &echoed{m: m, d: d}
}

type echoed struct {
	m *echo
	d host.Downstream
}

func (c *echoed) Data(bufs [][]byte, total int, _ bool) int {
	b := c.m.w.Buffer(total)
	for _, v := range bufs {
		b.B = append(b.B, v...)
	}
	c.d.Write(b)
	return total
}

func (c *echoed) WriteBlocked(blocked bool) { c.m.blocked.Store(blocked) }
func (c *echoed) Closed(bool)               {}
func (c *echoed) Aborted()                  {}
