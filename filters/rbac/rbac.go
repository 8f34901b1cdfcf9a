// Package rbac is the filter that lets requests pass, or refuses them, by who sends
// them and what they call: Envoy's role-based access control for RPC.
package rbac

import (
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/route"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.rbac"

// Properties that a request has behind the filter.
const (
	// propHint is "true" if rules whose action is LOG match, else "false".
	propHint = "access_log_hint"
	// What shadow rules say, "allowed" or "denied", and the policy that says so. Behind
	// the configured prefix.
	propShadowResult = "shadow_engine_result"
	propShadowPolicy = "shadow_effective_policy_id"
)

func init() { filter.Register(Name, builder{}) }

// control is the filter.
type control struct {
	config                             *config
	shadowResult, shadowPolicy         string // names of properties
	allowed, denied, logged, undecided *filter.Counter
	shadowAllowed, shadowDenied        *filter.Counter
}

// Build implements filter.Builder.
func (builder) Build(c filter.Config, s *filter.Scope) (filter.Filter, error) {
	f := &control{config: c.(*config)}
	prefix := f.config.prefix
	f.shadowResult, f.shadowPolicy = prefix+propShadowResult, prefix+propShadowPolicy
	shadow := filter.Label{"shadow_rules_stat_prefix", prefix}
	var err error
	count := func(to **filter.Counter, name string, labels ...filter.Label) {
		if err == nil {
			*to, err = s.Counter("rbac."+name, labels...)
		}
	}
	count(&f.allowed, "allowed")
	count(&f.denied, "denied")
	count(&f.logged, "logged")
	count(&f.undecided, "undecided")
	count(&f.shadowAllowed, "{shadow_rules_stat_prefix}shadow_allowed", shadow)
	count(&f.shadowDenied, "{shadow_rules_stat_prefix}shadow_denied", shadow)
	return f, err
}

// ForWorker implements filter.WorkerFilter.
func (f *control) ForWorker(*filter.Worker) filter.Filter { return &part{control: f} }

// OnRequest implements filter.Filter. Workers have parts.
func (f *control) OnRequest(m *filter.Message) filter.Verdict {
	return (&part{control: f}).OnRequest(m)
}

// part is a worker's part of the filter.
type part struct {
	*control
	look look
}

// client is what the filter knows of a connection: the standings that engines have
// found, those of routes, too.
type client struct {
	standings []*standing
	next      int // that is replaced
}

// maxStandings are those that are kept for a connection.
const maxStandings = 8

// OnConnect implements filter.ConnectionFilter.
func (p *part) OnConnect(*filter.Connection) any { return new(client) }

// OnDisconnect implements filter.ConnectionFilter.
func (p *part) OnDisconnect(*filter.Connection, any) {}

// standing is what e knows of the message's connection.
func standingOf(e *engine, m *filter.Message) *standing {
	c, _ := m.ConnectionState().(*client)
	if c == nil {
		c = new(client)
	}
	for _, s := range c.standings {
		if s.engine == e {
			return s
		}
	}
	conn := m.Connection()
	s := e.of(&peer{remote: conn.RemoteIP(), direct: conn.DirectRemoteIP(), local: conn.LocalAddrPort(), tls: conn.TLS()})
	if len(c.standings) < maxStandings {
		c.standings = append(c.standings, s)
	} else {
		c.standings[c.next] = s
		c.next = (c.next + 1) % maxStandings
	}
	return s
}

// OnRequest implements filter.Filter.
func (p *part) OnRequest(m *filter.Message) filter.Verdict {
	c := p.config
	if own, is := m.RouteConfig().(*config); is {
		c = own
	}
	if c.shadow != nil {
		p.try(c.shadow, m)
	}
	if c.enforced == nil {
		return filter.Continue
	}
	matched, which := p.look.match(standingOf(c.enforced, m), m.Request())
	if matched == route.Unknown {
		m.Count(p.undecided, 1)
	}
	if c.enforced.action == rbacv3.RBAC_LOG {
		hint := "false"
		if matched != route.No {
			m.Count(p.logged, 1)
			hint = "true"
		}
		m.Request().Set(propHint, hint)
	}
	if c.enforced.allows(matched) {
		m.Count(p.allowed, 1)
		return filter.Continue
	}
	m.Count(p.denied, 1)
	m.SetDetails(c.enforced.details(which))
	m.AddFlags(filter.Unauthorized)
	return m.ReplyWith(c.reply)
}

// try counts what rules would do.
func (p *part) try(e *engine, m *filter.Message) {
	matched, which := p.look.match(standingOf(e, m), m.Request())
	result := "denied"
	if e.allows(matched) {
		m.Count(p.shadowAllowed, 1)
		result = "allowed"
	} else {
		m.Count(p.shadowDenied, 1)
	}
	m.Request().Set(p.shadowResult, result)
	m.Request().Set(p.shadowPolicy, e.name(which))
}

// allows tells what is done with a request. What cannot be told is refused.
func (e *engine) allows(matched route.Truth) bool {
	switch e.action {
	case rbacv3.RBAC_ALLOW:
		return matched == route.Yes
	case rbacv3.RBAC_DENY:
		return matched == route.No
	}
	return true
}

// details of a refusal, for access logs.
func (e *engine) details(policy int) string {
	if policy == none {
		return "rbac_access_denied_matched_policy[none]"
	}
	return e.policies[policy].details
}

// name of a policy, "" of none.
func (e *engine) name(policy int) string {
	if policy == none {
		return ""
	}
	return e.policies[policy].name
}
