package filter

import (
	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
)

// poolKey says which messages of a listener share a pool.
type poolKey struct {
	cluster string
	proto   *protocol
	variant uint8
	mode    upstream.Mode
}

// pool returns the pool for m.
func (cs *workerListener) pool(m *Message) *upstream.Pool {
	opts := &m.proto.requests
	switch {
	case m.stream != nil:
		opts = &m.proto.streams
	case m.req.FixedID:
		opts = &m.proto.fixed
	}
	k := poolKey{m.cluster, m.proto, m.req.Variant, opts.Mode}
	dst, src := cs.addresses(m.conn, m.cluster)
	common := dst == "" && !src.IsValid()
	if common {
		if cs.last.pool == nil || cs.last.key != k {
			cs.last.key, cs.last.pool = k, cs.pools[k]
		}
		if p := cs.last.pool; p != nil && !p.Gone() {
			p.Observe(cs)
			return p
		}
	}
	p := cs.sh.up.Pool(upstream.Key{
		Scope: cs.StatPrefix, Cluster: m.cluster, OriginalDst: dst, Source: src,
		Profile: m.proto.profile, Variant: k.variant, Mode: k.mode,
	}, m.proto.codec, opts, cs)
	if common {
		cs.pools[k], cs.last.pool = p, p
	}
	return p
}

// Stray implements upstream.Observer.
func (cs *workerListener) Stray(md *codecs.Metadata) {
	cs.count(metrics.UpstreamStrayResponse, 1)
	cs.late(md)
}

// Event implements upstream.Observer.
func (cs *workerListener) Event() { cs.count(metrics.UpstreamEvent, 1) }

// Unserved implements upstream.Observer.
func (cs *workerListener) Unserved() { cs.count(metrics.UpstreamUnserved, 1) }

// DecodingError implements upstream.Observer.
func (cs *workerListener) DecodingError(cluster, addr string, err error, closes bool) {
	cs.count(metrics.ResponseDecodingError, 1)
	if closes {
		cs.count(metrics.ResponseErrorCausedConnectionClose, 1)
	}
	cs.sh.warnOf(cluster, cs, "cluster %s: host %s: %v", cluster, addr, err)
}

// Closes implements upstream.Observer.
func (cs *workerListener) Closes(cluster, addr, reason string) {
	cs.count(metrics.UpstreamAbuse, 1)
	cs.sh.warn(cs, "cluster %s: host %s: connection closed: %s", cluster, addr, reason)
}

// Starves implements upstream.Observer.
func (cs *workerListener) Starves() { cs.count(metrics.UpstreamPartialFrameWait, 1) }

// Panicked implements upstream.Observer.
func (cs *workerListener) Panicked(p *guard.Panic) {
	if p != nil {
		if p.Logged {
			return
		}
		p.Logged = true
		cs.sh.logPanic(cs.StatPrefix, "", p)
	}
	cs.count(metrics.ConnectionPanic, 1)
}

// ConnectFailed implements upstream.Observer.
func (cs *workerListener) ConnectFailed(cluster string, r host.CloseReason) {
	cs.count(metrics.UpstreamConnectFail, 1)
	cs.sh.warnOf(cluster+" "+r.String(), cs, "cluster %s: no connection: %s", cluster, r)
}
