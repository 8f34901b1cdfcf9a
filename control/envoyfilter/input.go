package envoyfilter

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/source"
)

// Service is a service to be governed, as its owner describes it.
type Service struct {
	// Host is its full name in Istio: of a Kubernetes service
	// name.namespace.svc.cluster.local, of a ServiceEntry the first host.
	Host string `yaml:"host"`
	// Name is what the names of the EnvoyFilters are made of, at most 63
	// letters, digits, dashes and dots. Default: the host without
	// ".svc.cluster.local".
	Name string `yaml:"name"`
	// Namespace of its workloads, and of those that call it unless they say
	// otherwise. Default: the one in the host.
	Namespace string `yaml:"namespace"`

	// Addresses at which clients find it: cluster IPs, or the addresses of a
	// ServiceEntry, spelled as there. Required, unless Headless.
	//
	// A service without an address has no listener of its own: those of a port
	// share 0.0.0.0_PORT, with what is passed through. For it, and for one whose
	// addresses are ranges, they are the ranges to which clients connect, such as
	// 10.1.0.0/16 or 10.1.1.1/32.
	Addresses []string `yaml:"addresses"`
	// Headless: clients connect to the endpoints themselves. The filter is put
	// into every outbound listener of the port, of whatever service, and a
	// connection goes where its client wanted it to go: there are no subsets.
	Headless bool `yaml:"headless"`
	// Ports of the service. At least one.
	Ports []Port `yaml:"ports"`
	// Protocol and Routes of the ports that have none of their own.
	Protocol string     `yaml:"protocol"`
	Routes   *yaml.Node `yaml:"routes"`

	// Server are the workloads behind the service. Absent: nothing is done on
	// their side.
	Server *Server `yaml:"server"`
	// Clients are the workloads that call it. Absent: all of the namespace;
	// empty: none.
	Clients []Workloads `yaml:"clients"`
	// Gateways that lead to it.
	Gateways []Gateway `yaml:"gateways"`

	// Outbound and Inbound are further fields of MetaProtocolProxy, for clients
	// and gateways, and for servers: request_timeout, upstream, limits, ….
	Outbound *yaml.Node `yaml:"outbound"`
	Inbound  *yaml.Node `yaml:"inbound"`

	// Delivery is ECDS (default), by which changes reach open connections and
	// nothing drains, or LISTENER.
	Delivery string `yaml:"delivery"`
	// InitialFetchTimeout is how long a listener that is new to a proxy waits
	// for the filter's configuration before it goes on as plain TCP. Default
	// 5s.
	InitialFetchTimeout string `yaml:"initialFetchTimeout"`
	// ProxyMetadata is what the metadata of a proxy must have for it to get
	// anything at all. Default: MELTEMI: "true". A pod sets it by the annotation
	// proxy.istio.io/config, see PodPatch.
	ProxyMetadata map[string]string `yaml:"proxyMetadata"`
	// ProxyVersion is a regular expression that the proxy's version of Istio must
	// match, too. Default: 1.31 and later, as those before it do not know the
	// filters' type, and refuse every listener that has it.
	ProxyVersion string `yaml:"proxyVersion"`
	// Module is the name of the shared object without lib and .so. Default:
	// meltemi.
	Module string `yaml:"module"`
	// Socket is the loopback listener's. Default: @meltemi, which is its own in
	// every pod. It must be the same for all services of a proxy.
	Socket string `yaml:"socket"`

	root    *yaml.Node
	timeout time.Duration
	ranges  []netip.Prefix // of Addresses, which then has only the others
}

// Port is a port of a service.
type Port struct {
	// Port at which clients call, and TargetPort at which the workload listens;
	// default: Port.
	Port       int `yaml:"port"`
	TargetPort int `yaml:"targetPort"`
	// Protocol is a codec's name, long or short, several separated by commas,
	// or "auto".
	Protocol string `yaml:"protocol"`
	// Codec has options for the codec, instead of Protocol's: {name, config}.
	Codec *yaml.Node `yaml:"codec"`
	// Routes are those of config.route.v1alpha.RouteConfiguration. Instead of a
	// cluster they may name {subset, host, port}. Default: everything to the
	// service itself.
	Routes *yaml.Node `yaml:"routes"`

	inherits bool // the service's protocol
}

// Workloads are proxies of one namespace.
type Workloads struct {
	// Namespace; default: the service's.
	Namespace string `yaml:"namespace"`
	// Selector holds labels of the pods. Absent: all of the namespace.
	Selector map[string]string `yaml:"selector"`
	// Name tells those of one namespace apart.
	Name string `yaml:"name"`
}

// Server are the workloads behind a service.
type Server struct {
	Namespace string            `yaml:"namespace"`
	Selector  map[string]string `yaml:"selector"`
	// PreserveSource has the workload see its clients' IP addresses, as it does
	// without Meltemi if its pods are intercepted by TPROXY; those that are not
	// get no inbound filter. Needs Inbound's protocol.connection_mode to be
	// EXCLUSIVE.
	PreserveSource bool `yaml:"preserveSource"`
}

// Gateway is a port of a gateway that leads to the service.
type Gateway struct {
	Namespace string            `yaml:"namespace"`
	Selector  map[string]string `yaml:"selector"`
	Name      string            `yaml:"name"`
	// Port at which the gateway's pods listen.
	Port int `yaml:"port"`
	// ServicePort is the one of Ports that it leads to. May be left out if there
	// is just one.
	ServicePort int `yaml:"servicePort"`
	// SNIHosts are the sniHosts or hosts by which TLS connections to the service
	// are told from others at the same port: only theirs get the filter. Required;
	// empty if the port leads to this service alone.
	SNIHosts []string `yaml:"sniHosts"`
}

const (
	maxName        = 63
	defaultModule  = "meltemi"
	defaultSocket  = "@meltemi"
	defaultTimeout = 5 * time.Second
	defaultVersion = `^(1\.(3[1-9]|[4-9]\d|\d{3,})|[2-9]|[1-9]\d+)\b`
	// maxVersion is the longest expression that istiod compiles.
	maxVersion    = 1024
	clusterDomain = ".svc.cluster.local"

	deliveryECDS     = "ECDS"
	deliveryListener = "LISTENER"
)

func defaultMetadata() map[string]string { return map[string]string{"MELTEMI": "true"} }

// Load reads a service from its YAML. A returned error is source.Errors.
func Load(text []byte) (*Service, error) {
	docs, fault := source.Parse(text)
	if fault != nil {
		return nil, source.Errors{fault}
	}
	if len(docs) != 1 {
		return nil, source.Errors{{Reason: fmt.Sprintf("want one document, there are %d", len(docs))}}
	}
	return New(docs[0])
}

// New is Load of a document that was parsed.
func New(root *yaml.Node) (*Service, error) {
	s := &Service{root: root}
	errs := source.Decode(root, s)
	if len(errs) == 0 {
		errs = s.complete()
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return s, nil
}

// faults gathers what is wrong with a service.
type faults struct {
	s    *Service
	errs source.Errors
}

func (f *faults) refuse(path, format string, args ...any) {
	f.errs = append(f.errs, &source.Error{Line: source.Line(f.s.root, path), Path: path, Reason: fmt.Sprintf(format, args...)})
}

var (
	dnsName   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	dnsLabel  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	labelName = regexp.MustCompile(`^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	label     = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)
)

// complete applies the defaults and refuses what cannot be.
func (s *Service) complete() source.Errors {
	f := &faults{s: s}
	f.names()
	f.addresses()
	f.ports()
	f.workloads()
	f.rest()
	return f.errs
}

func (f *faults) names() {
	s := f.s
	switch {
	case s.Host == "":
		f.refuse("host", "required")
		return
	case !dnsName.MatchString(s.Host) || !strings.Contains(s.Host, "."):
		f.refuse("host", "want the full name of one service, such as greeter.demo%s", clusterDomain)
		return
	}
	short, kubernetes := strings.CutSuffix(s.Host, clusterDomain)
	if s.Name == "" {
		s.Name = short
		if len(short) > maxName {
			f.refuse("name", "required, because that of the host has more than %d bytes", maxName)
		}
	} else if !dnsName.MatchString(s.Name) || len(s.Name) > maxName {
		f.refuse("name", "want at most %d small letters, digits, dashes and dots", maxName)
	}
	if s.Namespace == "" && kubernetes {
		_, s.Namespace, _ = strings.Cut(short, ".")
	}
	f.namespace("namespace", &s.Namespace, "")
}

func (f *faults) namespace(path string, ns *string, def string) {
	if *ns == "" {
		*ns = def
	}
	switch {
	case *ns == "":
		f.refuse(path, "required")
	case !dnsLabel.MatchString(*ns) || len(*ns) > 63:
		f.refuse(path, "%q is no namespace", *ns)
	}
}

func (f *faults) selector(path string, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !labelName.MatchString(k) {
			f.refuse(source.Join(path, k), "%q is no label", k)
		} else if !label.MatchString(labels[k]) {
			f.refuse(source.Join(path, k), "%q is no label's value", labels[k])
		}
	}
}

func (f *faults) addresses() {
	s := f.s
	if s.Headless && len(s.Addresses) > 0 {
		f.refuse("addresses", "a headless service has none")
	}
	callers := s.Clients == nil || len(s.Clients) > 0
	if !s.Headless && len(s.Addresses) == 0 && callers {
		f.refuse("addresses", "required, unless the service is headless")
	}
	seen := map[netip.Prefix]bool{}
	var names []string // of listeners, without their ports
	for i, a := range s.Addresses {
		path := fmt.Sprintf("addresses[%d]", i)
		r, err := netip.ParsePrefix(a)
		isRange := err == nil
		if !isRange {
			var ip netip.Addr
			ip, err = netip.ParseAddr(a)
			r = netip.PrefixFrom(ip.WithZone(""), ip.BitLen())
			if ip.Zone() != "" {
				err = fmt.Errorf("zone")
			}
		}
		switch {
		case err != nil:
			f.refuse(path, "%q is no IP address and no range", a)
		case r.Addr().IsUnspecified() && (!isRange || r.Bits() == 0):
			f.refuse(path, "the listener of services without an address is shared with others, and with what is passed through: "+
				"name the addresses to which clients connect, such as 10.1.1.1/32 or 10.1.0.0/16, or give the service one")
		case r != r.Masked():
			f.refuse(path, "is not the first address of its range, which is %v", r.Masked())
		case seen[r]:
			f.refuse(path, "given twice")
		case isRange && r.Addr().Is4In6():
			f.refuse(path, "connections to IPv4 addresses are in no range of IPv6: want one of IPv4")
		case isRange:
			s.ranges = append(s.ranges, r)
			if r.IsSingleIP() { // Istio takes that of a ServiceEntry for the address
				names = append(names, r.Addr().String())
			}
		default:
			// Istio has the spelling of a ServiceEntry in its listener's name, and
			// Kubernetes the usual one.
			names = append(names, a)
			if usual := r.Addr().String(); usual != a {
				names = append(names, usual)
			}
		}
		seen[r] = true
	}
	s.Addresses = names
}

func (f *faults) port(path string, p int) {
	if p < 1 || p > 65535 {
		f.refuse(path, "must be between 1 and 65535, is %d", p)
	}
}

func (f *faults) ports() {
	s := f.s
	if len(s.Ports) == 0 {
		f.refuse("ports", "required")
	}
	ports, targets := map[int]bool{}, map[int]int{}
	for i := range s.Ports {
		p, path := &s.Ports[i], fmt.Sprintf("ports[%d]", i)
		f.port(path+".port", p.Port)
		if p.TargetPort == 0 {
			p.TargetPort = p.Port
		}
		f.port(path+".targetPort", p.TargetPort)
		if ports[p.Port] {
			f.refuse(path+".port", "given twice")
		}
		ports[p.Port] = true
		switch {
		case p.Protocol != "" && p.Codec != nil:
			f.refuse(path+".codec", "there is protocol too")
		case p.Protocol == "" && p.Codec == nil && s.Protocol == "":
			f.refuse(path+".protocol", "required")
		case p.Protocol == "" && p.Codec == nil:
			p.Protocol, p.inherits = s.Protocol, true
		}
		if first, twice := targets[p.TargetPort]; twice {
			if o := s.Ports[first]; o.Protocol != p.Protocol || o.Codec != nil || p.Codec != nil {
				f.refuse(path+".targetPort", "ports[%d] leads there too, with another protocol", first)
			}
		} else {
			targets[p.TargetPort] = i
		}
		if s.Headless && p.TargetPort != p.Port {
			f.refuse(path+".targetPort", "clients of a headless service connect to its endpoints at the service's port: it must be the same")
		}
	}
}

func (f *faults) workloads() {
	s := f.s
	if s.Clients == nil {
		s.Clients = []Workloads{{}}
	}
	names := map[string]bool{}
	distinct := func(path string, w Workloads, port int) {
		key := fmt.Sprintf("%s/%s/%d", w.Namespace, w.Name, port)
		if names[key] {
			f.refuse(path+".name", "another one of namespace %s has this name", w.Namespace)
		}
		names[key] = true
		if w.Name != "" && (!dnsLabel.MatchString(w.Name) || len(w.Name) > maxName) {
			f.refuse(path+".name", "want at most %d small letters, digits and dashes", maxName)
		}
	}
	for i := range s.Clients {
		c, path := &s.Clients[i], fmt.Sprintf("clients[%d]", i)
		f.namespace(path+".namespace", &c.Namespace, s.Namespace)
		f.selector(path+".selector", c.Selector)
		distinct(path, *c, 0)
	}
	if s.Server != nil {
		f.namespace("server.namespace", &s.Server.Namespace, s.Namespace)
		f.selector("server.selector", s.Server.Selector)
		if len(s.Server.Selector) == 0 {
			f.refuse("server.selector", "required: other workloads of the namespace may listen at the same port")
		}
	}
	for i := range s.Gateways {
		g, path := &s.Gateways[i], fmt.Sprintf("gateways[%d]", i)
		f.namespace(path+".namespace", &g.Namespace, "")
		f.selector(path+".selector", g.Selector)
		if len(g.Selector) == 0 {
			f.refuse(path+".selector", "required")
		}
		f.port(path+".port", g.Port)
		f.sniHosts(path+".sniHosts", g.SNIHosts)
		for j, o := range s.Gateways[:i] {
			if o.Namespace == g.Namespace && o.Port == g.Port && o.Name != g.Name && maps.Equal(o.Selector, g.Selector) && shareHosts(o.SNIHosts, g.SNIHosts) {
				f.refuse(path+".sniHosts", "gateways[%d] has the same connections", j)
			}
		}
		distinct(path, Workloads{Namespace: g.Namespace, Name: g.Name}, g.Port)
		switch {
		case g.ServicePort == 0 && len(s.Ports) == 1:
			g.ServicePort = s.Ports[0].Port
		case g.ServicePort == 0:
			f.refuse(path+".servicePort", "required, as the service has several ports")
		case !slices.ContainsFunc(s.Ports, func(p Port) bool { return p.Port == g.ServicePort }):
			f.refuse(path+".servicePort", "the service has no port %d", g.ServicePort)
		}
	}
	if len(s.Clients) == 0 && s.Server == nil && len(s.Gateways) == 0 {
		f.refuse("clients", "nothing is left to be done: there are no clients, no server and no gateways")
	}
}

func (f *faults) sniHosts(path string, hosts []string) {
	if hosts == nil {
		f.refuse(path, "required: those by which TLS connections to the service are told from others at this port, or [] if it leads to this service alone")
	}
	seen := map[string]bool{}
	for i, h := range hosts {
		at := fmt.Sprintf("%s[%d]", path, i)
		if !dnsName.MatchString(strings.TrimPrefix(h, "*.")) {
			f.refuse(at, "want a host, such as greeter.example.com or *.example.com")
		} else if seen[h] {
			f.refuse(at, "given twice")
		}
		seen[h] = true
	}
}

// shareHosts tells whether a connection may be to one of a and to one of b: no
// hosts are all.
func shareHosts(a, b []string) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(h string) bool { return slices.Contains(b, h) })
}

func (f *faults) rest() {
	s := f.s
	switch s.Delivery {
	case "":
		s.Delivery = deliveryECDS
	case deliveryECDS, deliveryListener:
	default:
		f.refuse("delivery", "want %s or %s", deliveryECDS, deliveryListener)
	}
	s.timeout = defaultTimeout
	if s.InitialFetchTimeout != "" {
		d, err := time.ParseDuration(s.InitialFetchTimeout)
		// Envoy would wait for ever with 0, and stay unready.
		if err != nil || d < time.Millisecond {
			f.refuse("initialFetchTimeout", "want a duration of at least 1ms, such as 5s")
		}
		s.timeout = d
	}
	if s.ProxyMetadata == nil {
		s.ProxyMetadata = defaultMetadata()
	}
	if len(s.ProxyMetadata) == 0 {
		f.refuse("proxyMetadata", "may not be empty: proxies without the shared object would get what they cannot load")
	}
	if s.ProxyVersion == "" {
		s.ProxyVersion = defaultVersion
	}
	if _, err := regexp.Compile(s.ProxyVersion); err != nil {
		f.refuse("proxyVersion", "%v", err)
	} else if len(s.ProxyVersion) > maxVersion {
		f.refuse("proxyVersion", "may have at most %d bytes", maxVersion)
	}
	if s.Module == "" {
		s.Module = defaultModule
	}
	if strings.ContainsAny(s.Module, "/") {
		f.refuse("module", "want a name, not a path")
	}
	if s.Socket == "" {
		s.Socket = defaultSocket
	}
	if !strings.HasPrefix(s.Socket, "@") && !strings.HasPrefix(s.Socket, "/") {
		f.refuse("socket", "want an abstract socket, such as @meltemi, or an absolute path")
	}
}
