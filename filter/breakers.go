package filter

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/breaker"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/outlier"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// rules are what the table says of requests to a cluster.
func (wl *workerListener) rules(cluster string) *route.Cluster {
	return wl.table.Load().Load().Cluster(cluster)
}

// admit lets the request pass the circuit breakers of its cluster. It reports false if
// that has ended the message.
func (m *Message) admit(p *upstream.Pool) bool {
	rules := m.cfg.rules(m.cluster)
	p.Watch(rules.Outliers)
	p.Limit(rules.Breakers)
	p.Balance(rules.Lightest)
	p.Allow(rules.Budget)
	m.unsure = rules.Outliers != nil && m.mayBeOneway() && m.way() != answeredWay
	if rules.Breakers == nil {
		return true
	}
	t := m.sh.newTaken()
	r, ok := p.Take(t, &m.req)
	if ok {
		m.taken = t
		return true
	}
	m.sh.freeTaken(t)
	m.cfg.Breaks(m.cluster, r.Limit)
	m.debug("refused by a circuit breaker (%s)", r.Limit)
	(*caller)(m).Failed(&upstream.Failure{Type: codecs.OverLimit, Reason: r.Reason(m.cluster)})
	return false
}

// settle gives back what the request has taken of circuit breakers, if it has not yet.
func (m *Message) settle(o breaker.Outcome) {
	if m.taken != nil {
		m.giveBack(o)
	}
}

func (m *Message) giveBack(o breaker.Outcome) {
	t := m.taken
	m.taken = nil
	opened := t.End(m.sh.w.Now(), o)
	m.sh.freeTaken(t)
	for i := 0; opened != 0; i, opened = i+1, opened>>1 {
		if opened&1 != 0 {
			m.cfg.count(metrics.BreakerOpened, 1)
			m.sh.warnOf(m.cluster, m.cfg, "cluster %s: circuit breaker keys[%d] has opened for a key", m.cluster, i)
		}
	}
}

// answeredAs is what an answer says to circuit breakers.
func answeredAs(resp *codecs.Metadata) breaker.Outcome {
	if resp.Status == codecs.StatusError {
		return breaker.Failure
	}
	return breaker.Success
}

// unanswered is what the end of a message without an answer says to them. What was not
// sent, as its deadline had passed, says nothing.
func (m *Message) unanswered() breaker.Outcome {
	if m.replied && m.exchange.Attempts() > 0 {
		switch m.local.Type {
		case codecs.Timeout, codecs.UpstreamReset, codecs.BadResponse, codecs.ConnectFailure,
			codecs.NoHealthyUpstream, codecs.ClusterNotFound:
			return breaker.Failure
		}
	}
	return breaker.Unknown
}

func (s *shard) newTaken() *breaker.Taken {
	n := len(s.freeTakens)
	if n == 0 {
		return new(breaker.Taken)
	}
	t := s.freeTakens[n-1]
	s.freeTakens = s.freeTakens[:n-1]
	return t
}

func (s *shard) freeTaken(t *breaker.Taken) {
	if len(s.freeTakens) < maxFree {
		s.freeTakens = append(s.freeTakens, t)
	}
}

var breaks = [...]metrics.Counter{
	breaker.Requests:    metrics.BreakerMaxRequests,
	breaker.Pending:     metrics.BreakerMaxPendingRequests,
	breaker.Connections: metrics.BreakerMaxConnections,
	breaker.KeyRequests: metrics.BreakerKeyMaxRequests,
	breaker.KeyOpen:     metrics.BreakerKeyOpen,
}

// Breaks implements upstream.Observer.
func (wl *workerListener) Breaks(_ string, l breaker.Limit) { wl.count(breaks[l], 1) }

var ejections = [...]metrics.Counter{
	outlier.Consecutive: metrics.OutlierEjectionsConsecutiveFailures,
	outlier.Percentage:  metrics.OutlierEjectionsFailurePercentage,
	outlier.Silent:      metrics.OutlierEjectionsSilence,
	outlier.ProbeFailed: metrics.OutlierProbeFailures,
}

// Ejects implements upstream.Observer.
func (wl *workerListener) Ejects(cluster, addr string, e outlier.Ejection) {
	if e.Withheld {
		wl.count(metrics.OutlierEjectionsOverflow, 1)
		wl.sh.warnOf(cluster, wl, "cluster %s: host %s would be ejected, were there not as many as may be: %s", cluster, addr, e.Reason)
		return
	}
	wl.count(metrics.OutlierEjectionsTotal, 1)
	wl.count(ejections[e.Reason], 1)
	wl.sh.warnOf(cluster, wl, "cluster %s: host %s is ejected for %v: %s", cluster, addr, e.For, e.Reason)
}

// Probes implements upstream.Observer.
func (wl *workerListener) Probes(cluster, addr string) {
	wl.count(metrics.OutlierProbes, 1)
	wl.sh.w.Logf(host.Debug, "%s: cluster %s: ejected host %s is tried with a request", wl.StatPrefix, cluster, addr)
}

// Ejected implements upstream.Observer.
func (wl *workerListener) Ejected(n int) {
	wl.gauge(metrics.OutlierEjectionsActive, int64(n))
	if wl.gone {
		wl.sh.bequeath(wl)
	}
}

// Readmits implements upstream.Observer.
func (wl *workerListener) Readmits(cluster, addr string) {
	wl.sh.log(host.Info, wl.StatPrefix, cluster, "cluster %s: host %s is not ejected any more", cluster, addr)
}
