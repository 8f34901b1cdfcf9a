package translate

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
)

// GatewayName is a gateway that a router of a namespace names, by namespace/name.
func GatewayName(name, namespace string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return namespace + "/" + name
}

// gateways are those that the router names.
func (t *translation) gateways() {
	r := t.out.Router
	if r == nil {
		return
	}
	ports := make([]hostPort, len(t.s.Ports))
	for i, p := range t.s.Ports {
		ports[i] = hostPort{p.Port, t.protocols[p.Port]}
	}
	for i, name := range r.Spec.Gateways {
		path := fmt.Sprintf("spec.gateways[%d]", i)
		name = GatewayName(name, r.Namespace)
		g := t.Gateways[name]
		if g == nil {
			t.tell(t.routerObject(), path, "there is no Gateway %s", name)
			continue
		}
		found := false
		for j, s := range g.Spec.Servers {
			if _, governed := Protocol(s.Port.GetName()); !governed {
				continue
			}
			port, ok := t.leads(g, s, t.Host, ports)
			if !ok {
				continue
			}
			found = true
			if other, host := t.rival(name, g, s); other != r {
				t.note(Fault{Object: t.routerObject(), Conflicted: true, Fault: fault.Fault{
					Path: path, Reason: fmt.Sprintf("%s/%s is older and has port %d of the Gateway %s, for %s", other.Namespace, other.Name, s.Port.GetNumber(), name, host),
				}})
				continue
			}
			if reason := t.shut(g, s, port, ports); reason != "" {
				t.tell(t.routerObject(), path, "servers[%d] of the Gateway %s, of port %d, %s", j, name, s.Port.GetNumber(), reason)
				continue
			}
			t.gateway(g, j, port, path)
		}
		if !found {
			t.tell(t.routerObject(), path, "no server of the Gateway leads here: want one with a port named tcp-metaprotocol-PROTOCOL that a VirtualService leads here, or with a number that the host has, or the only one of a protocol that one port of the host has")
		}
	}
}

// hostPort is a port of a host, and what it speaks as its name says.
type hostPort struct {
	number   int
	protocol string
}

// said are the ports of a host as its objects name them, whatever may be wrong with them.
func (in *Input) said() (ports []hostPort) {
	add := func(name string, number int) {
		protocol, governed := Protocol(name)
		if governed && !slices.ContainsFunc(ports, func(p hostPort) bool { return p.number == number }) {
			ports = append(ports, hostPort{number, protocol})
		}
	}
	if in.Service != nil {
		for _, p := range in.Service.Spec.Ports {
			add(p.Name, int(p.Port))
		}
		return ports
	}
	entries := sorted(in.Entries)
	for _, e := range entries {
		if e.Namespace != entries[0].Namespace {
			continue
		}
		for _, p := range e.Spec.Ports {
			add(p.Name, int(p.Number))
		}
	}
	return ports
}

// leads is the port of a host to which a server of a gateway leads, if it does: the one
// that VirtualServices say; else that of the same number; else the only one of its protocol,
// if the server is the gateway's only one of it.
func (t *translation) leads(g *Gateway, s *networking.Server, host string, ports []hostPort) (port int, ok bool) {
	if to, opened := t.routed(g, s); opened {
		for _, d := range to {
			if d.Host != host {
				continue
			}
			for _, p := range ports {
				if d.Port == p.number || d.Port == 0 && len(ports) == 1 {
					return p.number, true
				}
			}
		}
		return 0, false
	}
	protocol, _ := Protocol(s.Port.GetName())
	var alike []int
	for _, p := range ports {
		if p.number == int(s.Port.Number) {
			return p.number, true
		}
		if p.protocol == protocol {
			alike = append(alike, p.number)
		}
	}
	if len(alike) != 1 {
		return 0, false
	}
	for _, other := range g.Spec.Servers {
		if o, _ := Protocol(other.Port.GetName()); other != s && o == protocol {
			return 0, false
		}
	}
	return alike[0], true
}

// shut says why a server that leads to a port of the host cannot do so, "" if it can.
func (t *translation) shut(g *Gateway, s *networking.Server, port int, ports []hostPort) string {
	if passesThrough(s) {
		return "passes TLS through, so that nothing can be seen of the calls: want one that ends it, or is without"
	}
	if s.Tls == nil {
		return ""
	}
	own, foreign := g.others(s)
	if len(serverNames(s)) == 0 {
		// A patch that is for no names is for the chains of all.
		own = slices.DeleteFunc(own, func(o *networking.Server) bool {
			_, governed := Protocol(o.Port.GetName())
			p, leads := t.leads(g, o, t.Host, ports)
			return governed && leads && p == port
		})
		if len(own)+len(foreign) > 0 {
			return `has the host "*", and there are other servers of this port: want its hosts by their names, by which EnvoyFilters tell connections apart`
		}
		return ""
	}
	if _, opened := t.routed(g, s); !opened {
		for _, o := range own {
			if slices.ContainsFunc(o.Hosts, func(h string) bool {
				return slices.ContainsFunc(s.Hosts, func(mine string) bool { return shareHost(unqualified(h), unqualified(mine)) })
			}) {
				return "has hosts that another server of this port has, too: want a VirtualService that says which of them leads where"
			}
		}
	}
	return ""
}

// serverNames are those by which connections to a server are told from others of its port;
// none: all are its.
func serverNames(s *networking.Server) []string {
	names := []string{}
	if s.Tls == nil {
		return names
	}
	for _, h := range s.Hosts {
		if h = unqualified(h); h == "*" {
			return []string{}
		}
		names = append(names, h)
	}
	return names
}

// unqualified is a server's host without the namespace that it is limited to.
func unqualified(host string) string {
	if _, h, limited := strings.Cut(host, "/"); limited {
		return h
	}
	return host
}

// rival is the router of another host that has a server of a gateway, as it is older: a
// port's connections can be one service's only.
func (t *translation) rival(name string, g *Gateway, s *networking.Server) (router *api.MetaRouter, host string) {
	router = t.out.Router
	for _, in := range t.Rivals {
		other := Oldest(in.Routers)
		if other == nil || older(other, router) >= 0 {
			continue
		}
		named := slices.ContainsFunc(other.Spec.Gateways, func(n string) bool { return GatewayName(n, other.Namespace) == name })
		if _, leads := t.leads(g, s, in.Host, in.said()); named && leads {
			router, host = other, in.Host
		}
	}
	return router, host
}

// gateway adds a server of a gateway, the i-th.
func (t *translation) gateway(g *Gateway, i, port int, path string) {
	s := g.Spec.Servers[i]
	// Where its pods are, and at which port they listen, the services before them know.
	type place struct {
		namespace string
		port      int
	}
	var at []place
	for _, svc := range g.Services {
		for _, p := range svc.Spec.Ports {
			if int(p.Port) == int(s.Port.Number) && (p.TargetPort.StrVal == "" || p.TargetPort.IntVal != 0) {
				at = append(at, place{svc.Namespace, cmp.Or(int(p.TargetPort.IntVal), int(p.Port))})
			}
		}
	}
	if len(at) == 0 {
		at = append(at, place{g.Namespace, int(s.Port.Number)})
	}
	slices.SortFunc(at, func(a, b place) int { return cmp.Or(strings.Compare(a.namespace, b.namespace), a.port-b.port) })
	for _, p := range slices.Compact(at) {
		t.comes(fmt.Sprintf("gateways[%d]", len(t.s.Gateways)), t.routerObject(), path)
		t.s.Gateways = append(t.s.Gateways, ir.Gateway{
			Namespace: p.namespace, Selector: g.Spec.Selector, Name: label(fmt.Sprintf("%s-%d", g.Name, i)),
			Port: p.port, ServicePort: port, SNIHosts: serverNames(s),
		})
	}
	if _, opened := t.routed(g, s); !opened {
		t.out.VirtualServices = append(t.out.VirtualServices, t.virtualService(g, i, port))
	}
}

// label is a name without dots, of 63 bytes at most. Two names never have the same.
func label(name string) string {
	if len(name) <= 63 && !strings.Contains(name, ".") && !hashedLabel.MatchString(name) {
		return name
	}
	return strings.ReplaceAll(cut(name, "-", name), ".", "-")
}

var hashedLabel = regexp.MustCompile(`-[0-9a-f]{16}$`)

// routed says where a VirtualService of other people leads the connections to a gateway's
// server, if there is one, which has Istio open it. It is the one that istiod takes: the
// oldest that has one of the server's hosts, and of it the first route for its port and
// gateway.
func (t *translation) routed(g *Gateway, s *networking.Server) (to []ir.Destination, opened bool) {
	for _, v := range sorted(g.VirtualServices) {
		if v.Labels[ManagedBy] == Manager || !t.binds(g, s, v) {
			continue
		}
		for _, r := range v.Spec.Tcp {
			matches := func(m *networking.L4MatchAttributes) bool {
				named := func(name string) bool { return GatewayName(name, v.Namespace) == g.Namespace+"/"+g.Name }
				return (m.Port == 0 || m.Port == s.Port.Number) && (len(m.Gateways) == 0 || slices.ContainsFunc(m.Gateways, named))
			}
			if len(r.Route) == 0 || len(r.Match) > 0 && !slices.ContainsFunc(r.Match, matches) {
				continue
			}
			for _, r := range r.Route {
				d := r.GetDestination()
				to = append(to, ir.Destination{
					Host: FullName(d.GetHost(), v.Namespace, t.Mesh.Domain), Port: int(d.GetPort().GetNumber()),
				})
			}
			return to, true
		}
	}
	return nil, false
}

// binds tells whether a VirtualService has one of a server's hosts.
func (t *translation) binds(g *Gateway, s *networking.Server, v *istio.VirtualService) bool {
	for _, h := range s.Hosts {
		namespace, host, limited := strings.Cut(h, "/")
		if !limited {
			host = h
		}
		if namespace == "." {
			namespace = g.Namespace
		}
		if limited && namespace != "*" && namespace != v.Namespace {
			continue
		}
		for _, named := range v.Spec.Hosts {
			if shareHost(host, FullName(named, v.Namespace, t.Mesh.Domain)) {
				return true
			}
		}
	}
	return false
}

// shareHost tells whether two hosts, either of which may be all of a domain, have one in
// common.
func shareHost(a, b string) bool {
	within := func(host, domain string) bool {
		suffix, wild := strings.CutPrefix(domain, "*")
		return wild && strings.HasSuffix(strings.TrimPrefix(host, "*"), suffix)
	}
	return a == b || within(a, b) || within(b, a)
}

// others are the further servers of a gateway's port that forward bytes, of the gateway and
// of those that share its pods. Those of it come first.
func (g *Gateway) others(s *networking.Server) (own, foreign []*networking.Server) {
	forwards := func(o *networking.Server) bool {
		switch strings.ToUpper(o.Port.GetProtocol()) {
		case "HTTP", "HTTP2", "GRPC", "GRPC-WEB":
			return false
		case "HTTPS":
			return passesThrough(o)
		}
		return true
	}
	for _, o := range g.Spec.Servers {
		if o != s && o.Port.GetNumber() == s.Port.GetNumber() && forwards(o) {
			own = append(own, o)
		}
	}
	for _, other := range g.Beside {
		for _, o := range other.Spec.Servers {
			if o.Port.GetNumber() == s.Port.GetNumber() && forwards(o) {
				foreign = append(foreign, o)
			}
		}
	}
	return own, foreign
}

// passesThrough tells whether a server leaves TLS as it is.
func passesThrough(s *networking.Server) bool {
	switch s.Tls.GetMode() {
	case networking.ServerTLSSettings_PASSTHROUGH, networking.ServerTLSSettings_AUTO_PASSTHROUGH:
		return s.Tls != nil
	}
	return false
}

// ManagedBy is the label by which objects of the operator's own are known, and Manager
// its value.
const (
	ManagedBy = "app.kubernetes.io/managed-by"
	Manager   = "meltemi-operator"
	Instance  = "app.kubernetes.io/instance"
	Component = "app.kubernetes.io/component"
	// Host is the annotation that says for which host an object is.
	Host = "meltemi-mesh.io/host"
)

// virtualService has Istio open the i-th server of a gateway.
func (t *translation) virtualService(g *Gateway, i, port int) *istio.VirtualService {
	s := g.Spec.Servers[i]
	hosts := make([]string, len(s.Hosts))
	for i, h := range s.Hosts {
		hosts[i] = unqualified(h)
	}
	name := fmt.Sprintf("meltemi-gateway-%s.%s-%d", t.s.Name, label(g.Name), s.Port.Number)
	if slices.ContainsFunc(g.Spec.Servers[:i], func(o *networking.Server) bool { return o.Port.GetNumber() == s.Port.Number }) {
		name = fmt.Sprintf("%s-%d", name, i) // the first of a port has its number alone
	}
	return &istio.VirtualService{
		TypeMeta: metav1.TypeMeta{APIVersion: "networking.istio.io/v1", Kind: "VirtualService"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: g.Namespace,
			Labels: map[string]string{ManagedBy: Manager, Component: "gateway", Instance: t.s.Name},
		},
		Spec: networking.VirtualService{
			Hosts: hosts, Gateways: []string{g.Namespace + "/" + g.Name},
			Tcp: []*networking.TCPRoute{{
				Match: []*networking.L4MatchAttributes{{Port: s.Port.Number}},
				Route: []*networking.RouteDestination{{Destination: &networking.Destination{
					Host: t.Host, Port: &networking.PortSelector{Number: uint32(port)},
				}}},
			}},
		},
	}
}
