package filter

import (
	"strings"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// The host does not say whether a configuration is a new version of a listener
// or that of another one. A new version's routes are for the connections of the
// one before, too, and so are those of another listener that by mistake has its
// stat_prefix. What tells them apart is that a replaced listener takes no more
// connections: one that does, though a newer configuration has been published,
// gets its own routes back. It may also be that the new version is not in use
// yet; then its first connection comes to the same port.

// grace is how long a worker may take until it has the new version.
const grace = time.Second

// rivals reports whether l and o would have different tables in one slot.
func (l *listener) rivals(o *listener) bool {
	return l.key == o.key && !l.SameRoutes(o.Proxy)
}

// keyField is the field by which a listener's table is known.
func (l *listener) keyField() string {
	if l.TableScope != l.StatPrefix {
		return "table_scope"
	}
	return "stat_prefix"
}

func (s *shard) supersede(l *listener) { s.config(l).superseded = max(s.w.Now(), 1) }

// took tells that a connection has come under the configuration. Its first one shows
// that what it replaces takes no more: what has come there since its publication can
// leave now.
func (wl *workerListener) took(d host.Downstream) {
	l, now := wl.listener, wl.sh.w.Now()
	if l.accepted.Load() && (wl.superseded == 0 || now < wl.superseded+grace) {
		return
	}
	l.mod.mu.Lock()
	defer l.mod.mu.Unlock()
	if !l.accepted.Load() {
		l.address = d.LocalAddress()
		l.accepted.Store(true)
		l.rejoin(wl.sh)
		l.relieve(grace)
	}
	if wl.superseded != 0 && now >= wl.superseded+grace {
		l.leave(wl.sh)
	}
}

// rejoin gives connections of configurations that l turns out to replace its
// routes, and those of another listener their own.
func (l *listener) rejoin(s *shard) {
	for o := range l.mod.listeners {
		if o.batch >= l.batch || !o.rivals(l) || !o.accepted.Load() {
			continue
		}
		switch same := port(o.address) == port(l.address); {
		case same && o.apart:
			o.apart = false
			o.table.Store(l.mod.tables.Slot(l.key))
		case !same && (o.apart || l.Delivery == config.DeliveryListener):
			o.apart = true
			o.table.Store(o.own)
			s.tell(o, l)
		}
	}
}

// leave gives connections of l its own routes, as others still come.
func (l *listener) leave(s *shard) {
	if l.apart {
		return
	}
	l.apart = true
	l.table.Store(l.own)
	for o := range l.mod.listeners {
		if o.batch > l.batch && o.published && l.rivals(o) && o.accepted.Load() {
			s.tell(l, o)
			return
		}
	}
}

// tell warns of two listeners that have one table.
func (s *shard) tell(l, o *listener) {
	s.w.Logf(host.Warn, "meltemi: stat_prefix %q: listeners at %s and %s have the same %s and route_config.name, and other routes: each keeps its own; give one of them another stat_prefix, or another table_scope",
		l.StatPrefix, l.address, o.address, l.keyField())
}

func port(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }
