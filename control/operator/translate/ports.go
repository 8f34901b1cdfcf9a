package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	istio "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/control/ir"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
)

const (
	// exportTo is Istio's annotation of Kubernetes services.
	exportTo = "networking.istio.io/exportTo"
	// trafficDistribution is another, of ServiceEntries, too.
	trafficDistribution = "networking.istio.io/traffic-distribution"
	// workloadSelector is Aeraki's annotation of ServiceEntries.
	workloadSelector = "workloadSelector"
	codecPrefix      = "aeraki.meta_protocol.codec."
)

// Protocol is what the name of a port says that it speaks. The name of one that is
// Meltemi's is tcp-metaprotocol-PROTOCOL, and what else there is behind another dash.
func Protocol(port string) (protocol string, governed bool) {
	parts := strings.Split(port, "-")
	if len(parts) < 2 || !strings.EqualFold(parts[0], "tcp") || !strings.EqualFold(parts[1], "metaprotocol") {
		return "", false
	}
	if len(parts) > 2 {
		protocol = parts[2]
	}
	return protocol, true
}

// Observed is the filter of Envoy's own that the name of a port says, as Aeraki has them:
// tcp-zookeeper or tcp-kafka, and what else there is behind another dash; "" for none.
func Observed(port string) ir.StockFilter {
	parts := strings.Split(strings.ToLower(port), "-")
	if len(parts) < 2 || parts[0] != "tcp" {
		return ""
	}
	switch f := ir.StockFilter(parts[1]); f {
	case ir.ZooKeeper, ir.Kafka:
		return f
	}
	return ""
}

// Governed tells whether the name of a port says that something is to be done.
func Governed(port string) bool {
	_, governed := Protocol(port)
	return governed || Observed(port) != ""
}

// ports reads the service or the entries.
func (t *translation) ports() {
	s := &t.s
	s.Host, s.Name, s.RootNamespace = t.Host, Name(t.Host, t.Mesh.Domain), t.Mesh.RootNamespace
	switch {
	case t.Service != nil:
		svc := t.Service
		t.out.Owner, t.out.OwnerMeta = of(Service, svc), &svc.ObjectMeta
		t.visible = exported(strings.Split(svc.Annotations[exportTo], ","), svc.Namespace)
		s.Headless = svc.Spec.ClusterIP == corev1.ClusterIPNone
		if !s.Headless {
			s.Addresses = svc.Spec.ClusterIPs
			if len(s.Addresses) == 0 && svc.Spec.ClusterIP != "" {
				s.Addresses = []string{svc.Spec.ClusterIP}
			}
		}
		for i, p := range svc.Spec.Ports {
			t.port(fmt.Sprintf("spec.ports[%d]", i), p.Name, int(p.Port), func() (int, string) {
				switch {
				case p.TargetPort.StrVal != "":
					return oneOf(t.TargetPorts[p.Name])
				case p.TargetPort.IntVal != 0:
					return int(p.TargetPort.IntVal), ""
				}
				return int(p.Port), ""
			})
		}
	case len(t.Entries) > 0:
		entries := sorted(t.Entries)
		first := entries[0]
		t.out.Owner, t.out.OwnerMeta = of(ServiceEntry, first), &first.ObjectMeta
		t.visible = exported(first.Spec.ExportTo, first.Namespace)
		for _, e := range entries {
			if e.Namespace != first.Namespace {
				continue // of another namespace it is another service
			}
			for _, a := range entryAddresses(e, t.Host) {
				if !slices.Contains(s.Addresses, a) {
					s.Addresses = append(s.Addresses, a)
				}
			}
			t.out.Owner = of(ServiceEntry, e)
			for i, p := range e.Spec.Ports {
				if slices.ContainsFunc(s.Ports, func(q ir.Port) bool { return q.Port == int(p.Number) }) ||
					slices.ContainsFunc(s.Observed, func(q ir.ObservedPort) bool { return q.Port == int(p.Number) }) {
					continue
				}
				t.port(fmt.Sprintf("spec.ports[%d]", i), p.Name, int(p.Number), func() (int, string) {
					if p.TargetPort != 0 {
						return int(p.TargetPort), ""
					}
					return int(p.Number), ""
				})
			}
			t.out.Owner = of(ServiceEntry, first)
		}
	}
	if t.out.OwnerMeta != nil {
		s.Namespace = t.out.OwnerMeta.Namespace
	}
	if !t.out.Governed {
		return
	}
	if r := t.out.Router; r != nil && len(s.Ports) == 0 && len(s.Observed) > 0 {
		t.tell(t.routerObject(), "spec.hosts[0]", "nothing of this is for ZooKeeper and Kafka, and no other port of the host has a name that counts: want tcp-metaprotocol-PROTOCOL")
	}
	t.comes("addresses", t.out.Owner, "spec.addresses")
	if !s.Headless && len(s.Addresses) == 0 {
		t.refuse(t.out.Owner, "spec.addresses", "the service has none, by which its listener in proxies is found: "+
			"name some, or have Istio allocate one")
	}
}

func oneOf(ports []int32) (port int, reason string) {
	switch len(ports) {
	case 0:
		return 0, "has a name that none of the service's endpoints tells the number of yet"
	case 1:
		return int(ports[0]), ""
	}
	return 0, fmt.Sprintf("has a name that stands for different numbers: %v", ports)
}

// port appends one, if it is Meltemi's and nothing is wrong with it.
func (t *translation) port(path, name string, number int, target func() (int, string)) {
	if !Governed(name) {
		return
	}
	t.out.Governed = true
	protocol, governed := Protocol(name)
	if governed && protocol == "" {
		t.tell(t.out.Owner, path+".name", "names no protocol: want tcp-metaprotocol-PROTOCOL, such as tcp-metaprotocol-dubbo")
		return
	}
	targetPort, reason := target()
	unresolved := reason != ""
	if unresolved {
		t.tell(t.out.Owner, path+".targetPort", "%s", reason)
	}
	if f := Observed(name); f != "" {
		at := fmt.Sprintf("observed[%d]", len(t.s.Observed))
		t.comes(at+".port", t.out.Owner, path+".port")
		t.comes(at+".targetPort", t.out.Owner, path+".targetPort")
		t.s.Observed = append(t.s.Observed, ir.ObservedPort{Port: number, TargetPort: targetPort, Unresolved: unresolved, Filter: f})
		return
	}
	a := t.applicationProtocol(protocol)
	if a == nil && !KnownCodec(protocol) {
		t.tell(t.out.Owner, path+".name", "unknown codec %q (built in: %s), and no ApplicationProtocol says which %s has", codecPrefix+protocol, strings.Join(codecs.Names(), ", "), protocol)
		return
	}
	if a != nil && !KnownCodec(a.Spec.Codec) {
		t.tell(of(ApplicationProtocol, a), "spec.codec", "unknown codec %q (built in: %s)", a.Spec.Codec, strings.Join(codecs.Names(), ", "))
		return
	}
	p := ir.Port{Port: number, TargetPort: targetPort, Unresolved: unresolved}
	t.protocols[number] = protocol
	t.s.Ports = append(t.s.Ports, p)
	at := &t.s.Ports[len(t.s.Ports)-1]
	prefix := fmt.Sprintf("ports[%d]", len(t.s.Ports)-1)
	if a != nil {
		codec := codecName(a.Spec.Codec)
		at.Protocol = []string{codec}
		if a.Spec.CodecConfig != nil {
			config, err := object(a.Spec.CodecConfig)
			if err != nil {
				t.refuse(of(ApplicationProtocol, a), "spec.codecConfig", "%v", err)
			}
			at.Protocol, at.Codec = nil, ir.Object{"name": codec, "config": config}
		}
		t.comes(prefix+".protocol", of(ApplicationProtocol, a), "spec.codec")
		t.comes(prefix+".codec.config", of(ApplicationProtocol, a), "spec.codecConfig")
		t.comes(prefix+".codec.name", of(ApplicationProtocol, a), "spec.codec")
		t.comes(prefix+".codec", of(ApplicationProtocol, a), "spec.codec")
	} else {
		at.Protocol = []string{codecName(protocol)}
		t.comes(prefix+".protocol", t.out.Owner, path+".name")
	}
	t.comes(prefix+".port", t.out.Owner, path+".port")
	t.comes(prefix+".targetPort", t.out.Owner, path+".targetPort")
}

// codecName is the long name of a codec that may have its short one.
func codecName(codec string) string {
	if strings.Contains(codec, ".") {
		return codec
	}
	return codecPrefix + codec
}

// KnownCodec tells whether there is a codec of a name, long or short.
func KnownCodec(codec string) bool {
	_, there := codecs.Lookup(codecName(codec))
	return there || codecName(codec) == autoCodec
}

// exported are the namespaces that a service is visible in; nil: all.
func exported(to []string, own string) (namespaces []string) {
	for _, n := range to {
		switch n = strings.TrimSpace(n); n {
		case "":
		case "*":
			return nil
		case ".":
			namespaces = append(namespaces, own)
		case "~":
			return []string{}
		default:
			namespaces = append(namespaces, n)
		}
	}
	slices.Sort(namespaces)
	return slices.Compact(namespaces)
}

// entryAddresses are those of a host of an entry. What an entry says holds for all of
// its hosts, of which Istio then has the first one's listener; what Istio has allocated
// is each host's own.
func entryAddresses(e *istio.ServiceEntry, host string) (addresses []string) {
	if len(e.Spec.Addresses) > 0 {
		if e.Spec.Hosts[0] == host {
			return e.Spec.Addresses
		}
		return nil
	}
	for _, a := range e.Status.Addresses {
		if a.Host == host || a.Host == "" && e.Spec.Hosts[0] == host {
			addresses = append(addresses, a.Value)
		}
	}
	slices.SortFunc(addresses, func(a, b string) int {
		x, _ := netip.ParseAddr(a)
		y, _ := netip.ParseAddr(b)
		return x.Compare(y)
	})
	return addresses
}

// clients are the workloads whose proxies get the rules.
func (t *translation) clients() {
	var to []string
	if r := t.out.Router; r != nil {
		to = exported(r.Spec.ExportTo, r.Namespace)
	}
	switch {
	case to == nil:
		to = t.visible
	case t.visible != nil:
		to = slices.DeleteFunc(to, func(n string) bool { return !slices.Contains(t.visible, n) })
	}
	if t.s.Headless {
		// Its filter is in the listeners of others, too, which in other namespaces is
		// not its own affair.
		if to == nil || slices.Contains(to, t.s.Namespace) {
			to = []string{t.s.Namespace}
		} else {
			to = []string{}
		}
	}
	if to == nil {
		t.s.Clients = []ir.Workloads{{MeshWide: true}}
		return
	}
	t.s.Clients = []ir.Workloads{}
	for _, n := range to {
		t.s.Clients = append(t.s.Clients, ir.Workloads{Namespace: n})
	}
}

// applicationProtocol is the oldest object of a protocol.
func (t *translation) applicationProtocol(protocol string) *api.ApplicationProtocol {
	var all []*api.ApplicationProtocol
	for _, a := range t.Protocols {
		if a.Spec.Protocol == protocol {
			all = append(all, a)
		}
	}
	return Oldest(all)
}
