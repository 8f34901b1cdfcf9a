// Package istiostats is the filter that counts requests under the names and labels of
// Istio's standard metrics. See README.md.
package istiostats

import (
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/telemetry"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.istio_stats"

func init() { filter.Register(Name, builder{}) }

type builder struct{}

// Parse implements filter.Builder.
func (builder) Parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	return parse(config, env)
}

// Build implements filter.Builder.
func (builder) Build(c filter.Config, scope *filter.Scope) (filter.Filter, error) {
	shown, err := scope.Collector(func() prometheus.Collector { return newMetrics() })
	if err != nil {
		return nil, err
	}
	s := &stats{settings: c.(*settings), shown: shown.(*metrics), prefix: scope.StatPrefix}
	own := s.settings.own // what is frozen stays as it is
	filter.ProcessEnvironment.Complete(&own)
	if own.WorkloadName+own.Namespace+own.ClusterID != "" || len(own.Labels) > 0 {
		s.own = &own
	}
	return s, nil
}

// stats is the filter.
type stats struct {
	*settings
	own    *filter.Workload // nil: neither configuration nor environment say who we are
	shown  *metrics
	prefix string // of the listener's statistics
}

// ForWorker implements filter.WorkerFilter.
func (s *stats) ForWorker(w *filter.Worker) filter.Filter {
	return &part{stats: s, w: w, cells: s.shown.table.Part()}
}

// OnRequest implements filter.Filter. It is that of parts that counts.
func (*stats) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

// part is a worker's.
type part struct {
	*stats
	w     *filter.Worker
	cells *telemetry.Part[labels, cell]
}

// ForgetsRequest implements filter.ForgetfulFilter.
func (*part) ForgetsRequest() {}

// client is what is known of a connection, from its first request that is counted on.
type client struct {
	known bool
	tls   *host.TLS
	peer  *filter.Workload // as Istio's own exchange has it, nil: it has none

	last  key // the next is often the same
	cell  *cell
	cells map[key]*cell // of those before it; nil: there was no other
}

// maxKeys are remembered of a connection; what comes beyond has the others forgotten.
const maxKeys = 64

// key is all that labels depend on, beside the connection. What it points to does not
// change.
type key struct {
	source, destination *filter.Workload
	server              *host.Server
	cluster, route      string
	code                int
	flags               filter.Flags
}

// OnConnect implements filter.ConnectionFilter.
func (*part) OnConnect(*filter.Connection) any { return &client{} }

// OnDisconnect implements filter.ConnectionFilter. Messages that are left have the client.
func (*part) OnDisconnect(*filter.Connection, any) {}

// OnRequest implements filter.Filter.
func (p *part) OnRequest(m *filter.Message) filter.Verdict {
	if !p.w.Observed() {
		return filter.Continue
	}
	c, _ := m.ConnectionState().(*client)
	if c == nil { // it has left, and what it has sent goes on
		c = &client{}
	}
	if !c.known {
		if c.known = true; p.inbound {
			c.tls, c.peer = m.Connection().TLS(), peer(m.Connection())
		}
	}
	m.SetState(c)
	return filter.Continue
}

// OnEnd implements filter.EndFilter.
func (p *part) OnEnd(m *filter.Message) {
	c, counts := m.State().(*client)
	if !counts {
		return
	}
	f := m.Ended()
	k := key{m.Source(), m.Destination(), f.Server, f.Cluster, f.Route, f.ResponseCode(), f.Flags}
	if k.code == 0 && k.flags == 0 {
		k.code = 200 // there is no answer, as there was to be none
	}
	if c.cell == nil || c.last != k {
		c.cell = p.find(c, k, f.Protocol)
		c.last = k
	}
	c.cell.count(f)
}

// find returns what is counted for a key that is not the connection's last.
func (p *part) find(c *client, k key, protocol string) *cell {
	if found := c.cells[k]; found != nil {
		return found
	}
	found, _ := p.cells.Cell(p.labels(c, k, protocol))
	if c.cell != nil { // there will be others
		if c.cells == nil || len(c.cells) >= maxKeys {
			c.cells = map[key]*cell{c.last: c.cell}
		}
		c.cells[k] = found
	}
	return found
}
