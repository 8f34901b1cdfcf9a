package translate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meltemi-mesh/meltemi/control/ir"
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
	for i, name := range r.Spec.Gateways {
		path := fmt.Sprintf("spec.gateways[%d]", i)
		g := t.Gateways[GatewayName(name, r.Namespace)]
		if g == nil {
			t.tell(t.routerObject(), path, "there is no Gateway %s", GatewayName(name, r.Namespace))
			continue
		}
		found := false
		for j, s := range g.Spec.Servers {
			if _, governed := Protocol(s.Port.GetName()); !governed {
				continue
			}
			port, ok := t.servicePort(int(s.Port.Number))
			if !ok {
				continue
			}
			found = true
			t.gateway(g, s, fmt.Sprintf("%s-%d", g.Name, j), port, path)
		}
		if !found {
			t.tell(t.routerObject(), path, "no server of the Gateway leads here: want one with a port named tcp-metaprotocol-PROTOCOL, and with a number that a destination or the host has, or a host with a single port")
		}
	}
}

// servicePort is the one of the host to which a gateway's port leads: the same one, or
// the only one.
func (t *translation) servicePort(gateway int) (port int, ok bool) {
	for _, p := range t.s.Ports {
		if p.Port == gateway {
			return p.Port, true
		}
	}
	if len(t.s.Ports) == 1 {
		return t.s.Ports[0].Port, true
	}
	return 0, false
}

// gateway adds a server of a gateway.
func (t *translation) gateway(g *Gateway, s *networking.Server, name string, port int, path string) {
	// Where its pods are, and at which port they listen, the services before them know.
	at := map[string]int{}
	for _, svc := range g.Services {
		for _, p := range svc.Spec.Ports {
			if int(p.Port) == int(s.Port.Number) && (p.TargetPort.StrVal == "" || p.TargetPort.IntVal != 0) {
				at[svc.Namespace] = cmp.Or(int(p.TargetPort.IntVal), int(p.Port))
			}
		}
	}
	if len(at) == 0 {
		at[g.Namespace] = int(s.Port.Number)
	}
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
	for _, ns := range slices.Sorted(maps.Keys(at)) {
		t.comes(fmt.Sprintf("gateways[%d]", len(t.s.Gateways)), t.routerObject(), path)
		t.s.Gateways = append(t.s.Gateways, ir.Gateway{
			Namespace: ns, Selector: g.Spec.Selector, Name: label(name),
			Port: at[ns], ServicePort: port, SNIHosts: sni,
		})
	}
	if !opened(g, s) {
		t.out.VirtualServices = append(t.out.VirtualServices, t.virtualService(g, s, port))
	}
}

func label(name string) string {
	return strings.Trim(strings.ReplaceAll(name[max(0, len(name)-63):], ".", "-"), "-")
}

// opened tells whether somebody else has a TCP route at the gateway's port.
func opened(g *Gateway, s *networking.Server) bool {
	return slices.ContainsFunc(g.VirtualServices, func(v *istio.VirtualService) bool {
		if v.Labels[ManagedBy] == Manager {
			return false
		}
		return slices.ContainsFunc(v.Spec.Tcp, func(r *networking.TCPRoute) bool {
			return len(r.Match) == 0 || slices.ContainsFunc(r.Match, func(m *networking.L4MatchAttributes) bool { return m.Port == 0 || m.Port == s.Port.Number })
		}) || slices.ContainsFunc(v.Spec.Tls, func(r *networking.TLSRoute) bool {
			return slices.ContainsFunc(r.Match, func(m *networking.TLSMatchAttributes) bool { return m.Port == 0 || m.Port == s.Port.Number })
		})
	})
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
			Name: fmt.Sprintf("meltemi-gateway-%s-%s-%d", t.s.Name, label(g.Name), s.Port.Number), Namespace: g.Namespace,
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
