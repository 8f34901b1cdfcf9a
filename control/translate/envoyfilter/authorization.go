package envoyfilter

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/meltemi-mesh/meltemi/control/ir"
)

const (
	rbacName = "aeraki.meta_protocol.filters.rbac"
	rbacType = "type.googleapis.com/aeraki.meta_protocol_proxy.filters.rbac.v1alpha.RBAC"
)

// authorize puts filters that do what the service's Authorization says before those of
// an inbound configuration. They stand in Istio's order: what is denied is not let pass
// by what is allowed.
func (g *generator) authorize(cfg object) {
	var filters []any
	for _, a := range []struct {
		action       ir.Action
		name, dryRun string
	}{
		{ir.Audit, "LOG", ""}, {ir.Deny, "DENY", "istio_dry_run_deny_"}, {ir.Allow, "ALLOW", "istio_dry_run_allow_"},
	} {
		config := object{"@type": rbacType}
		for _, dry := range []bool{false, true} {
			policies, any := object{}, false
			for _, from := range g.s.Authorization {
				if from.Action == a.action && from.DryRun == dry {
					any = true
					for i, r := range from.Rules {
						policies[fmt.Sprintf("%s[%d]", from.Name, i)] = policy(r)
					}
				}
			}
			rules := object{"action": a.name, "policies": policies}
			switch {
			case any && dry:
				config["shadow_rules"], config["shadow_rules_stat_prefix"] = rules, a.dryRun
			case any:
				config["rules"] = rules
			}
		}
		if len(config) > 1 {
			filters = append(filters, object{"name": rbacName, "config": config})
		}
	}
	g.prepend(cfg, filters)
}

// policy is one of envoy.config.rbac.v3.RBAC.
func policy(r ir.AuthorizationRule) object {
	var permissions, principals []any
	var alsoTo, alsoFrom terms
	for _, w := range r.When {
		switch w.Key {
		case ir.PortKey:
			alsoTo.add(permission, w.Values, w.NotValues, port)
		case ir.SNIKey:
			alsoTo.add(permission, w.Values, w.NotValues, serverName)
		default:
			alsoFrom.add(principal, w.Values, w.NotValues, source(w.Key))
		}
	}
	for _, t := range r.To {
		var all terms
		all.add(permission, t.Methods, t.NotMethods, method)
		all.add(permission, t.Paths, t.NotPaths, path)
		all.add(permission, t.Ports, t.NotPorts, port)
		permissions = append(permissions, permission.all(append(all, alsoTo...)))
	}
	if len(r.To) == 0 {
		permissions = append(permissions, permission.all(alsoTo))
	}
	for _, f := range r.From {
		var all terms
		all.add(principal, f.Principals, f.NotPrincipals, principalName)
		all.add(principal, f.Namespaces, f.NotNamespaces, ofNamespace)
		all.add(principal, f.IPBlocks, f.NotIPBlocks, block("direct_remote_ip"))
		all.add(principal, f.RemoteIPBlocks, f.NotRemoteIPBlocks, block("remote_ip"))
		principals = append(principals, principal.all(append(all, alsoFrom...)))
	}
	if len(r.From) == 0 {
		principals = append(principals, principal.all(alsoFrom))
	}
	return object{"permissions": permissions, "principals": principals}
}

// words are those that permissions or principals are joined by.
type words struct{ and, or, list, not string }

var (
	permission = words{"and_rules", "or_rules", "rules", "not_rule"}
	principal  = words{"and_ids", "or_ids", "ids", "not_id"}
)

// terms are permissions or principals all of which shall hold.
type terms []any

// add adds that one of values shall hold, and none of others, as each tells.
func (t *terms) add(w words, values, others []string, each func(v string) object) {
	any := func(of []string) object {
		var list []any
		for _, v := range of {
			list = append(list, each(v))
		}
		return w.join(w.or, list)
	}
	if len(values) > 0 {
		*t = append(*t, any(values))
	}
	if len(others) > 0 {
		*t = append(*t, object{w.not: any(others)})
	}
}

func (w words) join(by string, list []any) object {
	if len(list) == 1 {
		return list[0].(object)
	}
	return object{by: object{w.list: list}}
}

// all is what holds if all of t do.
func (w words) all(t terms) object {
	if len(t) == 0 {
		return object{"any": true}
	}
	return w.join(w.and, t)
}

// text is the matcher of a text that may begin or end with "*".
func text(v string) object {
	if rest, ok := strings.CutPrefix(v, "*"); ok {
		return object{"suffix": rest}
	}
	if rest, ok := strings.CutSuffix(v, "*"); ok {
		return object{"prefix": rest}
	}
	return object{"exact": v}
}

// matching is the matcher of a text around which others stand: expressions, and one for
// what takes the place of a "*".
func matching(before, v, star, behind string) object {
	quoted := strings.ReplaceAll(regexp.QuoteMeta(v), `\*`, star)
	return object{"safe_regex": object{"regex": before + quoted + behind}}
}

// header is a rule on a property.
func header(name, v string) object {
	if v == "*" {
		return object{"header": object{"name": name, "present_match": true}}
	}
	return object{"header": object{"name": name, "string_match": text(v)}}
}

// path is a rule on what is called.
func path(v string) object {
	if v == "*" {
		return header(":path", v)
	}
	return object{"url_path": object{"path": text(v)}}
}

// method is a rule on the end of what is called, behind its last slash.
func method(v string) object {
	switch {
	case strings.HasPrefix(v, "*"):
		return path(v)
	case strings.HasSuffix(v, "*"):
		return object{"url_path": object{"path": matching(".*/", v, "[^/]*", "")}}
	}
	return object{"url_path": object{"path": object{"suffix": "/" + v}}}
}

func port(v string) object {
	n, _ := strconv.Atoi(v)
	return object{"destination_port": int64(n)}
}

func serverName(v string) object {
	if v == "*" {
		return object{"requested_server_name": object{"safe_regex": object{"regex": ".+"}}}
	}
	return object{"requested_server_name": text(v)}
}

func authenticated(name object) object {
	return object{"authenticated": object{"principal_name": name}}
}

const spiffe = "spiffe://"

// principalName is a principal, as Istio has it, as that of a certificate.
func principalName(v string) object {
	switch {
	case v == "*":
		return object{"authenticated": object{}}
	case strings.HasPrefix(v, "*"):
		return authenticated(matching(spiffe, v, ".*", ""))
	}
	return authenticated(text(spiffe + v))
}

func ofNamespace(v string) object {
	return authenticated(matching(spiffe+"[^/]*/ns/", v, "[^/]*", "/sa/.*"))
}

// block is a rule on the address of kind.
func block(kind string) func(v string) object {
	return func(v string) object {
		p, _ := ir.Block(v)
		return object{kind: object{"address_prefix": p.Addr().String(), "prefix_len": int64(p.Bits())}}
	}
}

// source is what the values of a condition's key are.
func source(key string) func(v string) object {
	switch key {
	case ir.PrincipalKey:
		return principalName
	case ir.NamespaceKey:
		return ofNamespace
	case ir.IPKey:
		return block("direct_remote_ip")
	case ir.RemoteIPKey:
		return block("remote_ip")
	}
	name := strings.TrimSuffix(strings.TrimPrefix(key, ir.HeaderKey), "]")
	return func(v string) object { return header(name, v) }
}
