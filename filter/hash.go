package filter

import (
	"time"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// hashed finds what the request's host is to be chosen by, as its route wants it to be.
// Without any key it goes to any host.
func (m *Message) hashed() {
	h := m.route.Hash
	key, ok := h.Key(&m.req, m.conn.source(), m.conn.d.TLS().Principal())
	if !ok {
		m.cfg.count(metrics.RequestHashNoKey, 1)
		m.debug("it has nothing that its host could be chosen by")
		return
	}
	m.hash, m.hashing = key, m.cfg.rules(m.cluster).Hashing
}

var detours = [...]metrics.Counter{
	upstream.HostsUnknown:    metrics.RequestHashHostsUnknown,
	upstream.HostUnavailable: metrics.RequestHashHostUnavailable,
	upstream.HostBusy:        metrics.RequestHashHostBusy,

	upstream.NamedUnavailable: metrics.RequestHostUnavailable,
}

// Detoured implements upstream.Observer. As it may be so for each request, one a second
// is told of.
func (wl *workerListener) Detoured(cluster, to string, d upstream.Detour) {
	wl.count(detours[d], 1)
	if now := wl.sh.w.Now(); now >= wl.detoured[d]+time.Second {
		wl.detoured[d] = now
		wl.sh.w.Logf(host.Debug, "%s: request to %s: sent to %s: %v", wl.StatPrefix, cluster, to, d)
	}
}
