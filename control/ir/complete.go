package ir

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/filter/consistent"
)

const (
	maxName = 63
	// maxVersion is the longest expression that istiod compiles.
	maxVersion    = 1024
	clusterDomain = ".svc.cluster.local"

	// WantTimeout is what InitialFetchTimeout has to be.
	WantTimeout = "want a duration of at least 1ms, such as 5s"
)

var (
	dnsName   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	dnsLabel  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	labelName = regexp.MustCompile(`^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	label     = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)
)

// Complete applies the defaults, and returns what cannot be. What is not judged
// is what the filter's loader judges: Outbound, Inbound, codecs and routes, but
// for their destinations.
func (s *Service) Complete() fault.List {
	c := &completer{s: s, taken: map[int]bool{}}
	c.names()
	c.addresses()
	c.ports()
	c.observed()
	c.loadBalancer()
	c.workloads()
	c.authorization()
	c.rest()
	c.unknown()
	return c.faults
}

type completer struct {
	s      *Service
	faults fault.List
	taken  map[int]bool // ports of the service
}

func (c *completer) refuse(path, format string, args ...any) { c.faults.Add(path, format, args...) }

func (c *completer) names() {
	s := c.s
	switch {
	case s.Host == "":
		c.refuse("host", "required")
		return
	case !isHost(s.Host):
		c.refuse("host", WantHost)
		return
	}
	short, kubernetes := strings.CutSuffix(s.Host, clusterDomain)
	if s.Name == "" {
		s.Name = short
		if len(short) > maxName {
			c.refuse("name", "required, because that of the host has more than %d bytes", maxName)
		}
	} else if !dnsName.MatchString(s.Name) || len(s.Name) > maxName {
		c.refuse("name", "want at most %d small letters, digits, dashes and dots", maxName)
	}
	if s.Namespace == "" && kubernetes {
		_, s.Namespace, _ = strings.Cut(short, ".")
	}
	c.namespace("namespace", &s.Namespace, "")
}

func (c *completer) namespace(path string, ns *string, def string) {
	if *ns == "" {
		*ns = def
	}
	switch {
	case *ns == "":
		c.refuse(path, "required")
	case !dnsLabel.MatchString(*ns) || len(*ns) > 63:
		c.refuse(path, "%q is no namespace", *ns)
	}
}

func (c *completer) selector(path string, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !labelName.MatchString(k) {
			c.refuse(fault.Join(path, k), "%q is no label", k)
		} else if !label.MatchString(labels[k]) {
			c.refuse(fault.Join(path, k), "%q is no label's value", labels[k])
		}
	}
}

func (c *completer) addresses() {
	s := c.s
	if s.Headless && len(s.Addresses) > 0 {
		c.refuse("addresses", "a headless service has none")
	}
	callers := s.Clients == nil || len(s.Clients) > 0
	if !s.Headless && len(s.Addresses) == 0 && callers {
		c.refuse("addresses", "required, unless the service is headless")
	}
	seen := map[netip.Prefix]bool{}
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
			c.refuse(path, "%q is no IP address and no range", a)
		case r.Addr().IsUnspecified() && (!isRange || r.Bits() == 0):
			c.refuse(path, "the listener of services without an address is shared with others, and with what is passed through: "+
				"name the addresses to which clients connect, such as 10.1.1.1/32 or 10.1.0.0/16, or give the service one")
		case r != r.Masked():
			c.refuse(path, "is not the first address of its range, which is %v", r.Masked())
		case seen[r]:
			c.refuse(path, "given twice")
		case isRange && r.Addr().Is4In6():
			c.refuse(path, "connections to IPv4 addresses are in no range of IPv6: want one of IPv4")
		}
		seen[r] = true
	}
}

func (c *completer) port(path string, p int) {
	if p < 1 || p > 65535 {
		c.refuse(path, "must be between 1 and 65535, is %d", p)
	}
}

// numbers completes those of a port, of which the service's own is no other port's.
func (c *completer) numbers(path string, port int, target *int, unresolved bool) {
	c.port(path+".port", port)
	if !unresolved {
		if *target == 0 {
			*target = port
		}
		c.port(path+".targetPort", *target)
	}
	if c.taken[port] {
		c.refuse(path+".port", "given twice")
	}
	c.taken[port] = true
}

// observed completes the ports that Istio keeps.
func (c *completer) observed() {
	for i := range c.s.Observed {
		p, path := &c.s.Observed[i], fmt.Sprintf("observed[%d]", i)
		c.numbers(path, p.Port, &p.TargetPort, p.Unresolved)
		if p.Filter != ZooKeeper && p.Filter != Kafka {
			c.refuse(path+".filter", "want %s or %s", ZooKeeper, Kafka)
		}
	}
}

func (c *completer) ports() {
	s := c.s
	if len(s.Ports) == 0 && len(s.Observed) == 0 {
		c.refuse("ports", "required")
	}
	targets := map[int]int{}
	for i := range s.Ports {
		p, path := &s.Ports[i], fmt.Sprintf("ports[%d]", i)
		c.numbers(path, p.Port, &p.TargetPort, p.Unresolved)
		switch {
		case len(p.Protocol) > 0 && p.Codec != nil:
			c.refuse(path+".codec", "there is protocol too")
		case len(p.Protocol) == 0 && p.Codec == nil:
			c.refuse(path+".protocol", "required")
		}
		first, twice := targets[p.TargetPort]
		switch o := s.Ports[first]; {
		case p.Unresolved: // there is nothing that its number could be held against
		case !twice:
			targets[p.TargetPort] = i
		case !slices.Equal(o.Protocol, p.Protocol) || o.Codec != nil || p.Codec != nil:
			c.refuse(path+".targetPort", "ports[%d] leads there too, with another protocol", first)
		}
		if s.Headless && !p.Unresolved && p.TargetPort != p.Port {
			c.refuse(path+".targetPort", "clients of a headless service connect to its endpoints at the service's port: it must be the same")
		}
		for j, r := range p.Routes {
			at := fmt.Sprintf("%s.routes[%d]", path, j)
			Clusters(r, func(part Object, key, field string) {
				if d, ok := part[key].(Destination); ok {
					c.destination(at+"."+field, d)
				}
			})
		}
	}
}

func (c *completer) destination(path string, d Destination) {
	if d.Host != "" && !isHost(d.Host) {
		c.refuse(path+".host", WantHost)
	}
	switch {
	case strings.Contains(d.Subset, "|"):
		c.refuse(path+".subset", WantSubset)
	case d.Subset != "" && c.s.Headless && (d.Host == "" || d.Host == c.s.Host):
		c.refuse(path+".subset", "a headless service has none: its clients have chosen the endpoint. Name the host of one with an address")
	}
	if d.Port < 0 || d.Port > 65535 {
		c.refuse(path+".port", WantPort)
	}
}

func (c *completer) loadBalancer() {
	lb := c.s.LoadBalancer
	if lb == nil {
		return
	}
	hash := lb.ConsistentHash
	switch {
	case c.s.Headless:
		c.refuse("loadBalancer", "a headless service has none: its clients have chosen the endpoint")
	case lb.Simple != "" && hash != nil:
		c.refuse("loadBalancer.simple", "there is consistentHash too")
	case lb.Simple == "" && hash == nil:
		c.refuse("loadBalancer", "want simple or consistentHash")
	case hash == nil && lb.Simple != RoundRobin && lb.Simple != LeastRequest:
		c.refuse("loadBalancer.simple", "want %s or %s", RoundRobin, LeastRequest)
	}
	if hash == nil {
		return
	}
	keys := 0
	for _, given := range []bool{hash.Metadata != "", hash.HTTPHeaderName != "", hash.UseSourceIP} {
		if given {
			keys++
		}
	}
	if keys != 1 {
		c.refuse("loadBalancer.consistentHash", "want one of metadata, httpHeaderName and useSourceIp: true")
	}
	if hash.RingHash != nil && hash.Maglev != nil {
		c.refuse("loadBalancer.consistentHash.maglev", "there is ringHash too")
	}
	if r := hash.RingHash; r != nil && (r.MinimumRingSize < 0 || r.MinimumRingSize > consistent.MaxRingSize) {
		c.refuse("loadBalancer.consistentHash.ringHash.minimumRingSize", "must be between 1 and %d, is %d", consistent.MaxRingSize, r.MinimumRingSize)
	}
	if m := hash.Maglev; m != nil && m.TableSize != 0 && (m.TableSize < 2 || m.TableSize > consistent.MaxTableSize || !consistent.Prime(uint32(m.TableSize))) {
		c.refuse("loadBalancer.consistentHash.maglev.tableSize", "must be a prime up to %d, is %d", consistent.MaxTableSize, m.TableSize)
	}
}

func isHost(s string) bool { return dnsName.MatchString(s) && strings.Contains(s, ".") }

func (c *completer) workloads() {
	s := c.s
	if s.Clients == nil {
		s.Clients = []Workloads{{}}
	}
	names := map[string]bool{}
	distinct := func(path string, w Workloads, port int) {
		key := fmt.Sprintf("%s/%s/%d", w.Namespace, w.Name, port)
		if names[key] {
			c.refuse(path+".name", "another one of namespace %s has this name", w.Namespace)
		}
		names[key] = true
		if w.Name != "" && (!dnsLabel.MatchString(w.Name) || len(w.Name) > maxName) {
			c.refuse(path+".name", "want at most %d small letters, digits and dashes", maxName)
		}
	}
	for i := range s.Clients {
		w, path := &s.Clients[i], fmt.Sprintf("clients[%d]", i)
		if w.MeshWide {
			c.namespace(path+".meshWide", &w.Namespace, s.RootNamespace)
		} else {
			c.namespace(path+".namespace", &w.Namespace, s.Namespace)
		}
		c.selector(path+".selector", w.Selector)
		distinct(path, *w, 0)
		for j := range s.Clients[:i] {
			c.apart(path, w, j)
		}
	}
	if s.Server != nil {
		c.namespace("server.namespace", &s.Server.Namespace, s.Namespace)
		c.selector("server.selector", s.Server.Selector)
		if len(s.Server.Selector) == 0 {
			c.refuse("server.selector", "required: other workloads of the namespace may listen at the same port")
		}
	}
	for i := range s.Gateways {
		g, path := &s.Gateways[i], fmt.Sprintf("gateways[%d]", i)
		c.namespace(path+".namespace", &g.Namespace, "")
		c.selector(path+".selector", g.Selector)
		if len(g.Selector) == 0 {
			c.refuse(path+".selector", "required")
		}
		c.port(path+".port", g.Port)
		c.sniHosts(path+".sniHosts", g.SNIHosts)
		for j, o := range s.Gateways[:i] {
			if o.Namespace == g.Namespace && o.Port == g.Port && o.Name != g.Name && maps.Equal(o.Selector, g.Selector) && shareHosts(o.SNIHosts, g.SNIHosts) {
				c.refuse(path+".sniHosts", "gateways[%d] has the same connections", j)
			}
		}
		distinct(path, Workloads{Namespace: g.Namespace, Name: g.Name}, g.Port)
		switch {
		case g.ServicePort == 0 && len(s.Ports) == 1:
			g.ServicePort = s.Ports[0].Port
		case g.ServicePort == 0:
			c.refuse(path+".servicePort", "required, as the service has several ports")
		case !slices.ContainsFunc(s.Ports, func(p Port) bool { return p.Port == g.ServicePort }):
			c.refuse(path+".servicePort", "the service has no port %d", g.ServicePort)
		}
	}
	if len(s.Clients) == 0 && s.Server == nil && len(s.Gateways) == 0 {
		c.refuse("clients", "nothing is left to be done: there are no clients, no server and no gateways")
	}
}

// apart refuses clients of which a proxy may be and be of the j-th as well, if it cannot
// have what there is for both.
func (c *completer) apart(path string, w *Workloads, j int) {
	o := &c.s.Clients[j]
	if !w.MeshWide && !o.MeshWide && w.Namespace != o.Namespace || !Agree(w.Selector, o.Selector) {
		return
	}
	isRange := func(a string) bool { return strings.Contains(a, "/") }
	switch {
	case w.Name == o.Name && w.Namespace != o.Namespace:
		c.refuse(path+".name", "clients[%d] may have the same proxies, and has this name", j)
	case w.Name != o.Name && slices.ContainsFunc(c.s.Addresses, isRange):
		c.refuse(path, "clients[%d] may have the same proxies, and Envoy refuses a listener that has a range of addresses twice", j)
	}
}

// Agree tells whether something may have all labels of two selectors.
func Agree(a, b map[string]string) bool {
	for k, v := range a {
		if other, also := b[k]; also && other != v {
			return false
		}
	}
	return true
}

func (c *completer) sniHosts(path string, hosts []string) {
	if hosts == nil {
		c.refuse(path, "required: those by which TLS connections to the service are told from others at this port, or [] if it leads to this service alone")
	}
	seen := map[string]bool{}
	for i, h := range hosts {
		at := fmt.Sprintf("%s[%d]", path, i)
		if !dnsName.MatchString(strings.TrimPrefix(h, "*.")) {
			c.refuse(at, "want a host, such as greeter.example.com or *.example.com")
		} else if seen[h] {
			c.refuse(at, "given twice")
		}
		seen[h] = true
	}
}

// shareHosts tells whether a connection may be to one of a and to one of b: no
// hosts are all.
func shareHosts(a, b []string) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(h string) bool { return slices.Contains(b, h) })
}

func (c *completer) rest() {
	s := c.s
	switch s.Delivery {
	case "":
		s.Delivery = ECDS
	case ECDS, Listener:
	default:
		c.refuse("delivery", "want %s or %s", ECDS, Listener)
	}
	if s.InitialFetchTimeout == 0 {
		s.InitialFetchTimeout = defaultTimeout
	}
	// Envoy would wait for ever with 0, and stay unready.
	if s.InitialFetchTimeout < time.Millisecond {
		c.refuse("initialFetchTimeout", WantTimeout)
	}
	if s.ProxyMetadata == nil {
		s.ProxyMetadata = DefaultProxyMetadata()
	}
	if len(s.ProxyMetadata) == 0 {
		c.refuse("proxyMetadata", "may not be empty: proxies without the shared object would get what they cannot load")
	}
	if s.Module == "" {
		s.Module = defaultModule
	}
	if strings.ContainsAny(s.Module, "/") {
		c.refuse("module", "want a name, not a path")
	}
	if s.Socket == "" {
		s.Socket = defaultSocket
	}
	if !strings.HasPrefix(s.Socket, "@") && !strings.HasPrefix(s.Socket, "/") {
		c.refuse("socket", "want an abstract socket, such as @meltemi, or an absolute path")
	}
	c.versions()
	if s.Admin == "" {
		s.Admin = DefaultAdmin
	}
	switch port, tcp := s.AdminPort(); {
	case s.Admin == NoAdmin, strings.HasPrefix(s.Admin, "unix:/") && len(s.Admin) > len("unix:/"):
	case !tcp:
		c.refuse("adminAddress", "want unix:/PATH, IP:PORT, or %s", NoAdmin)
	case slices.Contains(istioPorts, port):
		c.refuse("adminAddress", "the port is Istio's own")
	}
}

// versions says which proxies have which filter. It needs Module and Socket.
func (c *completer) versions() {
	s, g := c.s, &c.s.Golang
	modules := c.version("proxyVersion", &s.ProxyVersion, DefaultProxyVersion)
	golang := c.version("golang.proxyVersion", &g.ProxyVersion, DefaultGolangVersion)
	if s.ProxyVersion == NoProxies && g.ProxyVersion == NoProxies {
		c.refuse("golang.proxyVersion", "nothing is left to be done: proxyVersion is %s, too", NoProxies)
	}
	if modules != nil && golang != nil {
		// Of a loopback listener that is there twice Envoy refuses both, and all others.
		for minor := range 100 {
			if v := fmt.Sprintf("1.%d.0", minor); modules.MatchString(v) && golang.MatchString(v) {
				c.refuse("golang.proxyVersion", "proxies of Istio %s match proxyVersion, too", v)
				break
			}
		}
	}
	if g.LibraryPath == "" {
		g.LibraryPath = defaultFolder + "/lib" + s.Module + ".so"
	}
	if !strings.HasPrefix(g.LibraryPath, "/") {
		c.refuse("golang.libraryPath", "want an absolute path")
	}
	if g.Socket == "" {
		g.Socket = privateSocket
		if strings.HasPrefix(s.Socket, "/") {
			g.Socket = s.Socket
		}
	}
	if !strings.HasPrefix(g.Socket, "/") {
		c.refuse("golang.socket", "want an absolute path: who can connect has all clusters of the proxy, and to an abstract socket all of the pod can")
	}
}

// version reads a regular expression of versions, nil if it is none.
func (c *completer) version(path string, v *string, def string) *regexp.Regexp {
	if *v == "" {
		*v = def
	}
	if *v == NoProxies {
		return nil
	}
	r, err := regexp.Compile(*v)
	switch {
	case err != nil:
		c.refuse(path, "%v", err)
	case len(*v) > maxVersion:
		c.refuse(path, "may have at most %d bytes", maxVersion)
	default:
		return r
	}
	return nil
}

// istioPorts are those that Istio refuses to gather metrics from, as it has them itself.
var istioPorts = []uint16{15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090}

// AdminPort is the port of Admin, if that is one.
func (s *Service) AdminPort() (port uint16, ok bool) {
	a, err := netip.ParseAddrPort(s.Admin)
	return a.Port(), err == nil && a.Port() != 0
}
