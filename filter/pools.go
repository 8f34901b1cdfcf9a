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
func (wl *workerListener) pool(m *Message) *upstream.Pool {
	opts := &m.proto.requests
	switch {
	case m.stream != nil:
		opts = &m.proto.streams
	case m.leases():
		opts = &m.proto.leased
	case m.req.FixedID:
		opts = &m.proto.fixed
	}
	k := poolKey{m.cluster, m.proto, m.req.Variant, opts.Mode}
	if p := wl.last.pool; p != nil && wl.last.key == k && !p.Gone() {
		p.Observe(wl)
		return p
	}
	dst, src := wl.addresses(m.conn, m.cluster)
	common := dst == "" && !src.IsValid()
	if p := wl.pools[k]; common && p != nil && !p.Gone() {
		if !wl.byAddress(m.cluster) {
			wl.last.key, wl.last.pool = k, p
		}
		p.Observe(wl)
		return p
	}
	p := wl.sh.up.Pool(upstream.Key{
		Scope: wl.StatPrefix, Cluster: m.cluster, OriginalDst: dst, Source: src,
		Profile: m.proto.profile, Variant: k.variant, Mode: k.mode,
	}, m.proto.codec, opts, wl)
	if common {
		wl.pools[k] = p
	}
	return p
}

// Stray implements upstream.Observer.
func (wl *workerListener) Stray(md *codecs.Metadata) {
	wl.count(metrics.UpstreamStrayResponse, 1)
	wl.late(md)
}

// Event implements upstream.Observer.
func (wl *workerListener) Event() { wl.count(metrics.UpstreamEvent, 1) }

// Unserved implements upstream.Observer.
func (wl *workerListener) Unserved() { wl.count(metrics.UpstreamUnserved, 1) }

// DecodingError implements upstream.Observer.
func (wl *workerListener) DecodingError(cluster, addr string, err error, closes bool) {
	wl.count(metrics.ResponseDecodingError, 1)
	if closes {
		wl.count(metrics.ResponseErrorCausedConnectionClose, 1)
	}
	wl.sh.warnOf(cluster, wl, "cluster %s: host %s: %v", cluster, addr, err)
}

// Closes implements upstream.Observer.
func (wl *workerListener) Closes(cluster, addr, reason string) {
	wl.count(metrics.UpstreamAbuse, 1)
	wl.sh.warn(wl, "cluster %s: host %s: connection closed: %s", cluster, addr, reason)
}

// Starves implements upstream.Observer.
func (wl *workerListener) Starves() { wl.count(metrics.UpstreamPartialFrameWait, 1) }

// Panicked implements upstream.Observer.
func (wl *workerListener) Panicked(p *guard.Panic) {
	if p != nil {
		if p.Logged {
			return
		}
		p.Logged = true
		wl.sh.logPanic(wl.StatPrefix, "", p)
	}
	wl.count(metrics.ConnectionPanic, 1)
}

// ConnectFailed implements upstream.Observer.
func (wl *workerListener) ConnectFailed(cluster string, r host.CloseReason, why string) {
	wl.count(metrics.UpstreamConnectFail, 1)
	wl.sh.warnOf(cluster+" "+r.String(), wl, "cluster %s: no connection: %s", cluster, why)
}
