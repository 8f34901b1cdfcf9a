package ir

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/meltemi-mesh/meltemi/control/fault"
)

// Authorization says who may call what, in the form of a spec of Istio's
// AuthorizationPolicy. Texts may begin or end with a "*", or be one.
type Authorization struct {
	// Name tells it in logs; default: its number.
	Name string
	// Action; default: Allow.
	Action Action
	// DryRun: it is only counted.
	DryRun bool
	// Rules, one of which must match. Without any nothing does.
	Rules []AuthorizationRule
}

// Action is what is done with requests that match.
type Action string

const (
	// Allow lets requests pass that match one of all Allows, and refuses the others.
	Allow Action = "ALLOW"
	// Deny refuses them, whatever is allowed.
	Deny Action = "DENY"
	// Audit only marks them for the log.
	Audit Action = "AUDIT"
)

// AuthorizationRule matches requests that are from one of the sources, to one of the
// operations, and fulfil all conditions. What is empty matches all.
type AuthorizationRule struct {
	From []Source
	To   []Operation
	When []Condition
}

// Source is who calls. Of each list one must match, of each Not none.
type Source struct {
	// Principals are "TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT".
	Principals, NotPrincipals []string
	Namespaces, NotNamespaces []string
	// IPBlocks are addresses or ranges: of the connection, and RemoteIPBlocks of who
	// is behind it.
	IPBlocks, NotIPBlocks             []string
	RemoteIPBlocks, NotRemoteIPBlocks []string
}

// Operation is what is called.
type Operation struct {
	// Methods of the service.
	Methods, NotMethods []string
	// Paths are "/SERVICE/METHOD".
	Paths, NotPaths []string
	// Ports of the workload.
	Ports, NotPorts []string
}

// Condition is a further one, by a key of Istio's.
type Condition struct {
	Key               string
	Values, NotValues []string
}

// The keys of conditions. Properties of requests are between HeaderKey and "]".
const (
	PrincipalKey = "source.principal"
	NamespaceKey = "source.namespace"
	IPKey        = "source.ip"
	RemoteIPKey  = "remote.ip"
	PortKey      = "destination.port"
	SNIKey       = "connection.sni"
	HeaderKey    = "request.headers["
)

func (c *completer) authorization() {
	s := c.s
	names := map[string]bool{}
	for i := range s.Authorization {
		a, path := &s.Authorization[i], fmt.Sprintf("authorization[%d]", i)
		if s.Server == nil && i == 0 {
			c.refuse("authorization", "needs server: its proxies are those that see to it")
		}
		if a.Name == "" {
			a.Name = fmt.Sprint(i)
		}
		if names[a.Name] {
			c.refuse(path+".name", "given twice")
		}
		names[a.Name] = true
		switch a.Action {
		case "":
			a.Action = Allow
		case Allow, Deny, Audit:
		case "CUSTOM":
			c.refuse(path+".action", "CUSTOM is not supported here: put a filter ext_authz into inbound")
		default:
			c.refuse(path+".action", "want %s, %s or %s", Allow, Deny, Audit)
		}
		if a.DryRun && a.Action == Audit {
			c.refuse(path+".dryRun", "does not go with %s, which refuses nothing anyway", Audit)
		}
		for j, r := range a.Rules {
			at := fmt.Sprintf("%s.rules[%d]", path, j)
			for k := range r.From {
				c.source(fmt.Sprintf("%s.from[%d].source", at, k), &r.From[k])
			}
			for k := range r.To {
				c.operation(fmt.Sprintf("%s.to[%d].operation", at, k), &r.To[k])
			}
			for k := range r.When {
				c.condition(fmt.Sprintf("%s.when[%d]", at, k), &r.When[k])
			}
		}
	}
}

// values are those of a field, and what is wrong with one of them.
type values struct {
	field string
	of    []string
	fault func(v string) string
}

func (c *completer) values(path string, all ...values) {
	empty := true
	for _, vs := range all {
		for i, v := range vs.of {
			empty = false
			if reason := vs.fault(v); reason != "" {
				c.refuse(fmt.Sprintf("%s[%d]", fault.Join(path, vs.field), i), "%s", reason)
			}
		}
	}
	if empty {
		c.refuse(path, "says nothing")
	}
}

func (c *completer) source(path string, s *Source) {
	c.values(
		path,
		values{"principals", s.Principals, textFault}, values{"notPrincipals", s.NotPrincipals, textFault},
		values{"namespaces", s.Namespaces, textFault}, values{"notNamespaces", s.NotNamespaces, textFault},
		values{"ipBlocks", s.IPBlocks, blockFault}, values{"notIpBlocks", s.NotIPBlocks, blockFault},
		values{"remoteIpBlocks", s.RemoteIPBlocks, blockFault}, values{"notRemoteIpBlocks", s.NotRemoteIPBlocks, blockFault},
	)
}

func (c *completer) operation(path string, o *Operation) {
	c.values(
		path,
		values{"methods", o.Methods, methodFault}, values{"notMethods", o.NotMethods, methodFault},
		values{"paths", o.Paths, pathFault}, values{"notPaths", o.NotPaths, pathFault},
		values{"ports", o.Ports, portFault}, values{"notPorts", o.NotPorts, portFault},
	)
}

func (c *completer) condition(path string, w *Condition) {
	judge := textFault
	switch name, header := strings.CutPrefix(w.Key, HeaderKey); {
	case header && len(name) > 1 && strings.HasSuffix(name, "]"):
	case w.Key == IPKey || w.Key == RemoteIPKey:
		judge = blockFault
	case w.Key == PortKey:
		judge = portFault
	case !slices.Contains([]string{PrincipalKey, NamespaceKey, SNIKey}, w.Key):
		c.refuse(path+".key", "%q is not supported, want %s, %s, %s, %s, %s, %s or %sNAME]",
			w.Key, PrincipalKey, NamespaceKey, IPKey, RemoteIPKey, PortKey, SNIKey, HeaderKey)
	}
	c.values(path, values{"values", w.Values, judge}, values{"notValues", w.NotValues, judge})
}

func textFault(v string) string {
	switch {
	case v == "":
		return "must not be empty"
	case strings.Contains(strings.TrimSuffix(v[1:], "*"), "*") || len(v) > 1 && v[0] == '*' && v[len(v)-1] == '*':
		return "may have one *, at its beginning or its end"
	}
	return ""
}

func methodFault(v string) string {
	if v == "POST" {
		return "a method is one of the service's here; that of HTTP, which gRPC's calls have, is left out"
	}
	return textFault(v)
}

func pathFault(v string) string {
	if strings.ContainsAny(v, "{}") {
		return "templates are not supported"
	}
	return textFault(v)
}

func portFault(v string) string {
	if n, err := strconv.Atoi(v); err != nil || n < 1 || n > 65535 {
		return WantPort
	}
	return ""
}

func blockFault(v string) string {
	if b, err := Block(v); err != nil {
		return fmt.Sprintf("%q is no IP address and no range", v)
	} else if b.Addr().Is4In6() {
		return "connections of IPv4 addresses are in no range of IPv6: want one of IPv4"
	}
	return ""
}

// Block is the range that an IP block of a Source is.
func Block(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is no IP address", s)
	}
	return netip.PrefixFrom(ip, ip.BitLen()), nil
}

// unknown refuses rules that proxies with the golang filter would judge wrongly: what is
// denied to a principal would be let pass.
func (c *completer) unknown() {
	if c.s.Golang.ProxyVersion == NoProxies || c.s.Server == nil {
		return
	}
	for _, path := range c.s.ByTLS() {
		c.refuse(path, "proxies before Istio 1.31 do not know it, and would let pass what is denied: golang: {proxyVersion: none} leaves them out")
	}
}

// ByTLS are the paths of what in Authorization asks for the TLS of callers, of which the
// golang filter is told nothing.
func (s *Service) ByTLS() (paths []string) {
	for i, a := range s.Authorization {
		for j, r := range a.Rules {
			at := fmt.Sprintf("authorization[%d].rules[%d]", i, j)
			for k, f := range r.From {
				for _, field := range []struct {
					name   string
					values []string
				}{
					{"principals", f.Principals},
					{"notPrincipals", f.NotPrincipals},
					{"namespaces", f.Namespaces},
					{"notNamespaces", f.NotNamespaces},
				} {
					if len(field.values) > 0 {
						paths = append(paths, fmt.Sprintf("%s.from[%d].source.%s", at, k, field.name))
					}
				}
			}
			for k, w := range r.When {
				if w.Key == PrincipalKey || w.Key == NamespaceKey || w.Key == SNIKey {
					paths = append(paths, fmt.Sprintf("%s.when[%d].key", at, k))
				}
			}
		}
	}
	return paths
}
