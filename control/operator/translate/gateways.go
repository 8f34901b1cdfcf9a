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
			t.gateway(g, s, fmt.Sprintf("%s-%d", g.Name, j), port, path)
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

// gateway adds a server of a gateway.
func (t *translation) gateway(g *Gateway, s *networking.Server, name string, port int, path string) {
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
	sni := []string{}
	if s.Tls != nil {
		for _, h := range s.Hosts {
			if _, host, ok := strings.Cut(h, "/"); ok {
				h = host
			}
			if h == "*" {
				sni = []string{}
				break
			}
			sni = append(sni, h)
		}
	}
	for _, p := range slices.Compact(at) {
		t.comes(fmt.Sprintf("gateways[%d]", len(t.s.Gateways)), t.routerObject(), path)
		t.s.Gateways = append(t.s.Gateways, ir.Gateway{
			Namespace: p.namespace, Selector: g.Spec.Selector, Name: label(name),
			Port: p.port, ServicePort: port, SNIHosts: sni,
		})
	}
	if _, opened := t.routed(g, s); !opened {
		t.out.VirtualServices = append(t.out.VirtualServices, t.virtualService(g, s, port))
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

// routed says where VirtualServices of other people lead the connections to a gateway's
// port, if there are any, which have Istio open it.
func (t *translation) routed(g *Gateway, s *networking.Server) (to []ir.Destination, opened bool) {
	add := func(v *istio.VirtualService, routes []*networking.RouteDestination) {
		opened = true
		for _, r := range routes {
			d := r.GetDestination()
			to = append(to, ir.Destination{
				Host: FullName(d.GetHost(), v.Namespace, t.Mesh.Domain), Port: int(d.GetPort().GetNumber()),
			})
		}
	}
	for _, v := range sorted(g.VirtualServices) {
		if v.Labels[ManagedBy] == Manager {
			continue
		}
		for _, r := range v.Spec.Tcp {
			if len(r.Match) == 0 || slices.ContainsFunc(r.Match, func(m *networking.L4MatchAttributes) bool { return m.Port == 0 || m.Port == s.Port.Number }) {
				add(v, r.Route)
			}
		}
		for _, r := range v.Spec.Tls {
			if slices.ContainsFunc(r.Match, func(m *networking.TLSMatchAttributes) bool { return m.Port == 0 || m.Port == s.Port.Number }) {
				add(v, r.Route)
			}
		}
	}
	return to, opened
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

func (t *translation) virtualService(g *Gateway, s *networking.Server, port int) *istio.VirtualService {
	hosts := []string{}
	for _, h := range s.Hosts {
		if _, host, ok := strings.Cut(h, "/"); ok {
			h = host
		}
		hosts = append(hosts, h)
	}
	return &istio.VirtualService{
		TypeMeta: metav1.TypeMeta{APIVersion: "networking.istio.io/v1", Kind: "VirtualService"},
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("meltemi-gateway-%s.%s-%d", t.s.Name, label(g.Name), s.Port.Number), Namespace: g.Namespace,
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
