package rbac

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/route"
)

const (
	// namespace is that of metadata matchers: a request's properties, by their names.
	namespace = "meltemi"
	// The headers that requests have without being HTTP.
	headerPath   = ":path"
	headerMethod = ":method"
	// method is what headerMethod has in all requests, as in gRPC's.
	method = "POST"
)

// compile validates rules and makes an engine of them, or returns all their faults as
// *fields.Error.
func compile(from *rbacv3.RBAC) (*engine, error) {
	c := &compiler{engine: &engine{action: from.GetAction()}}
	c.Only(from, "", "action", "policies")
	if rbacv3.RBAC_Action_name[int32(from.GetAction())] == "" {
		c.Add("action", "unknown value %d", from.GetAction())
	}
	for _, name := range slices.Sorted(maps.Keys(from.GetPolicies())) {
		c.policy(name, from.GetPolicies()[name])
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	c.engine.rules.Freeze()
	c.engine.index.build(c.engine)
	return c.engine, nil
}

type compiler struct {
	fields.Faults
	engine *engine
}

func (c *compiler) policy(name string, p *rbacv3.Policy) {
	path := fields.Join("policies", "["+name+"]")
	c.Only(p, path, "permissions", "principals")
	perms := each(c, p.GetPermissions(), fields.Join(path, "permissions"), (*compiler).permission)
	ids := each(c, p.GetPrincipals(), fields.Join(path, "principals"), (*compiler).principal)
	c.engine.policies = append(c.engine.policies, policy{
		name:    name,
		details: "rbac_access_denied_matched_policy[" + strings.ReplaceAll(name, " ", "_") + "]",
		node:    join(and, join(or, perms...), join(or, ids...)),
	})
}

// each compiles what a list at path has, which may not be empty.
func each[T any](c *compiler, list []T, path string, one func(c *compiler, of T, path string) node) []node {
	if len(list) == 0 {
		c.Add(path, "required")
	}
	nodes := make([]node, len(list))
	for i, of := range list {
		nodes[i] = one(c, of, fmt.Sprintf("%s[%d]", path, i))
	}
	return nodes
}

// join is nodes under one that takes several.
func join(k kind, nodes ...node) node {
	if len(nodes) == 1 {
		return nodes[0]
	}
	return node{kind: k, of: nodes}
}

func not(n node) node { return node{kind: negated, of: []node{n}} }

// constant is a node that says the same of all requests.
func constant(t route.Truth) node { return node{kind: fixed, number: int(t)} }

func (c *compiler) permission(p *rbacv3.Permission, path string) node {
	at := func(field string) string { return fields.Join(path, field) }
	switch r := p.GetRule().(type) {
	case *rbacv3.Permission_AndRules:
		return join(and, each(c, r.AndRules.GetRules(), at("and_rules.rules"), (*compiler).permission)...)
	case *rbacv3.Permission_OrRules:
		return join(or, each(c, r.OrRules.GetRules(), at("or_rules.rules"), (*compiler).permission)...)
	case *rbacv3.Permission_NotRule:
		return not(c.permission(r.NotRule, at("not_rule")))
	case *rbacv3.Permission_Any:
		return c.any(r.Any, at("any"))
	case *rbacv3.Permission_Header:
		return c.header(r.Header, at("header"))
	case *rbacv3.Permission_UrlPath:
		return c.urlPath(r.UrlPath, at("url_path"))
	case *rbacv3.Permission_Metadata:
		return c.metadata(r.Metadata, at("metadata"))
	case *rbacv3.Permission_SourcedMetadata:
		return c.sourced(r.SourcedMetadata, at("sourced_metadata"))
	case *rbacv3.Permission_DestinationIp:
		return c.cidr(r.DestinationIp, local, at("destination_ip"))
	case *rbacv3.Permission_DestinationPort:
		if r.DestinationPort > 65535 {
			c.Add(at("destination_port"), "must be at most 65535, is %d", r.DestinationPort)
		}
		return c.fact(portRange{int(r.DestinationPort), int(r.DestinationPort) + 1})
	case *rbacv3.Permission_DestinationPortRange:
		pr := portRange{int(r.DestinationPortRange.GetStart()), int(r.DestinationPortRange.GetEnd())}
		if pr.start < 0 || pr.end > 65536 || pr.start >= pr.end {
			c.Add(at("destination_port_range"), "want start below end, from 0 to 65536, have %d and %d", pr.start, pr.end)
		}
		return c.fact(pr)
	case *rbacv3.Permission_RequestedServerName:
		return c.fact(serverName{c.text(r.RequestedServerName, at("requested_server_name"))})
	}
	return c.unsupported(p, path, p.GetRule() == nil)
}

func (c *compiler) principal(p *rbacv3.Principal, path string) node {
	at := func(field string) string { return fields.Join(path, field) }
	switch id := p.GetIdentifier().(type) {
	case *rbacv3.Principal_AndIds:
		return join(and, each(c, id.AndIds.GetIds(), at("and_ids.ids"), (*compiler).principal)...)
	case *rbacv3.Principal_OrIds:
		return join(or, each(c, id.OrIds.GetIds(), at("or_ids.ids"), (*compiler).principal)...)
	case *rbacv3.Principal_NotId:
		return not(c.principal(id.NotId, at("not_id")))
	case *rbacv3.Principal_Any:
		return c.any(id.Any, at("any"))
	case *rbacv3.Principal_Authenticated_:
		name := id.Authenticated.GetPrincipalName()
		if name == nil {
			return c.fact(authenticated{})
		}
		return c.fact(principalName{c.text(name, at("authenticated.principal_name"))})
	case *rbacv3.Principal_SourceIp:
		return c.cidr(id.SourceIp, remote, at("source_ip"))
	case *rbacv3.Principal_RemoteIp:
		return c.cidr(id.RemoteIp, remote, at("remote_ip"))
	case *rbacv3.Principal_DirectRemoteIp:
		return c.cidr(id.DirectRemoteIp, direct, at("direct_remote_ip"))
	case *rbacv3.Principal_Header:
		return c.header(id.Header, at("header"))
	case *rbacv3.Principal_UrlPath:
		return c.urlPath(id.UrlPath, at("url_path"))
	case *rbacv3.Principal_Metadata:
		return c.metadata(id.Metadata, at("metadata"))
	case *rbacv3.Principal_SourcedMetadata:
		return c.sourced(id.SourcedMetadata, at("sourced_metadata"))
	}
	return c.unsupported(p, path, p.GetIdentifier() == nil)
}

// unsupported refuses what a permission or principal is, by its name.
func (c *compiler) unsupported(m proto.Message, path string, empty bool) node {
	if empty {
		c.Add(path, "required")
	}
	c.Only(m, path)
	return constant(route.No)
}

func (c *compiler) any(is bool, path string) node {
	if !is {
		c.Add(path, "must be true")
	}
	return constant(route.Yes)
}

func (c *compiler) fact(f fact) node {
	c.engine.facts = append(c.engine.facts, f)
	return node{kind: known, number: len(c.engine.facts) - 1}
}

func (c *compiler) cidr(r *corev3.CidrRange, which end, path string) node {
	ip, err := netip.ParseAddr(r.GetAddressPrefix())
	bits := int(r.GetPrefixLen().GetValue())
	switch {
	case err != nil || ip.Zone() != "":
		c.Add(fields.Join(path, "address_prefix"), "%q is no IP address", r.GetAddressPrefix())
	case ip.Is4In6():
		c.Add(fields.Join(path, "address_prefix"), "connections of IPv4 addresses are in no range of IPv6: want one of IPv4")
	case bits > ip.BitLen():
		c.Add(fields.Join(path, "prefix_len"), "must be at most %d, is %d", ip.BitLen(), bits)
	default:
		return c.fact(cidr{which, netip.PrefixFrom(ip, bits).Masked()})
	}
	return constant(route.No)
}

// fault adds one of a matcher at path.
func (c *compiler) fault(path string, err *route.Error) {
	if err != nil {
		c.Add(fields.Join(path, err.Path), "%s", err.Reason)
	}
}

func (c *compiler) text(s *matcherv3.StringMatcher, path string) route.TextRule {
	rule, err := c.engine.rules.Text(s)
	c.fault(path, err)
	return rule
}

func (c *compiler) header(h *routev3.HeaderMatcher, path string) node {
	switch name := strings.ToLower(h.GetName()); {
	case name == headerPath:
		rule, err := c.engine.rules.Header(h)
		c.fault(path, err)
		return node{kind: operation, number: int(rule)}
	case name == headerMethod:
		var rules route.Rules
		rule, err := rules.Header(h)
		if c.fault(path, err); err != nil {
			return constant(route.No)
		}
		var look route.Look
		look.Begin(&rules, nil)
		defer look.End()
		return constant(look.Text(rule, []byte(method), true))
	case strings.HasPrefix(name, ":"):
		c.Add(fields.Join(path, "name"), "no request has %s: there are %s and %s", name, headerPath, headerMethod)
	}
	return c.property(h, path)
}

func (c *compiler) property(h *routev3.HeaderMatcher, path string) node {
	rule, err := c.engine.rules.Property(h)
	c.fault(path, err)
	return node{kind: property, number: int(rule)}
}

func (c *compiler) urlPath(p *matcherv3.PathMatcher, path string) node {
	if p.GetPath() == nil {
		c.Add(fields.Join(path, "path"), "required")
		return constant(route.No)
	}
	return node{kind: operation, number: int(c.text(p.GetPath(), fields.Join(path, "path")))}
}

func (c *compiler) sourced(s *rbacv3.SourcedMetadata, path string) node {
	if s.GetMetadataSource() != rbacv3.MetadataSource_DYNAMIC {
		c.Add(fields.Join(path, "metadata_source"), "%s is not supported", s.GetMetadataSource())
	}
	return c.metadata(s.GetMetadataMatcher(), fields.Join(path, "metadata_matcher"))
}

func (c *compiler) metadata(m *matcherv3.MetadataMatcher, path string) node {
	if m.GetFilter() != namespace {
		c.Add(fields.Join(path, "filter"), "there is no metadata but that of %s, want %q, is %q", namespace, namespace, m.GetFilter())
	}
	if len(m.GetPath()) != 1 || m.GetPath()[0].GetKey() == "" {
		c.Add(fields.Join(path, "path"), "want one key, the name of a property")
		return constant(route.No)
	}
	n := c.value(m.GetPath()[0].GetKey(), m.GetValue(), fields.Join(path, "value"))
	if m.GetInvert() {
		return not(n)
	}
	return n
}

func (c *compiler) value(name string, v *matcherv3.ValueMatcher, path string) node {
	h := &routev3.HeaderMatcher{Name: name}
	switch p := v.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_StringMatch:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: p.StringMatch}
	case *matcherv3.ValueMatcher_PresentMatch:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: p.PresentMatch}
	case *matcherv3.ValueMatcher_NullMatch_:
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: false}
	case *matcherv3.ValueMatcher_OrMatch:
		return join(or, each(c, p.OrMatch.GetValueMatchers(), fields.Join(path, "or_match.value_matchers"),
			func(c *compiler, v *matcherv3.ValueMatcher, path string) node { return c.value(name, v, path) })...)
	default:
		return c.unsupported(v, path, v.GetMatchPattern() == nil)
	}
	return c.property(h, path)
}
