package upstream

import "fmt"

// toNamed chooses a connection to the host that c names. found is true without one if c
// had better wait for one, or may not go elsewhere: then it is hopeless if no connection
// leads there, and none is made. A host that is not used for other calls, as it is not
// healthy, ejected or unknown, is not used for this one either.
func (p *Pool) toNamed(c *Call) (cn *conn, found bool) {
	if !p.looked {
		p.look(p.m.now())
	}
	if !p.told() && len(p.ready) == 0 {
		return nil, true // the first connection tells more
	}
	ep := p.all[c.named]
	if ep != nil && (!p.told() || ep.weight != 0) {
		if cn = p.take(ep); cn != nil && !cn.shunned() {
			return cn, true
		}
		if p.told() && p.awaits(c, ep) {
			return nil, true
		}
		if c.strict && !ep.out && (ep.trying > 0 || len(ep.conns) > 0 && !ep.conns[0].shunned()) {
			c.sought = max(1, c.sought) // others may take what it does not
			return nil, true
		}
	}
	c.hopeless = c.strict
	return nil, c.strict
}

// misnamed tells of a call that is not sent to the host that it names, but to another, or
// if it is strict to none.
func (p *Pool) misnamed(c *Call, to string) string {
	if c.strict {
		to = "no host"
	}
	p.obs.Detoured(p.key.Cluster, to, NamedUnavailable)
	return fmt.Sprintf("no connection to host %.80q of cluster %s can take it", c.named, p.key.Cluster)
}
