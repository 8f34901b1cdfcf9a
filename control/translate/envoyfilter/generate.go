// Package envoyfilter makes the EnvoyFilters that put Meltemi in front of a
// service in a stock Istio mesh.
//
// In each proxy Envoy's filter tcp_proxy, in the listeners of one service and
// port, is replaced by Meltemi's. All else stays Istio's: listeners, clusters,
// endpoints, mutual TLS. The filter's configuration, with the routes, comes by
// extension config discovery from istiod, so that a change of it reaches open
// connections and drains nothing.
//
// Everything is for proxies only whose metadata says that they have the shared
// object, and in the form that their version of Istio has: Envoy's dynamic modules, or
// its golang filter. A mesh in the middle of an upgrade gets both, and each proxy one.
//
// A proxy that lacks the shared object all the same refuses the loopback listener and the
// filter's configuration, if it has dynamic modules, and logs so. While it runs it
// forwards the service as plain TCP; one that starts does not become ready, as Istio's
// agent wants listeners of which none is refused. The golang filter takes all that, and
// Envoy dies of the first connection.
package envoyfilter

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
)

// object is a JSON object.
type object = ir.Object

const (
	types       = "type.googleapis.com/"
	network     = types + "envoy.extensions.filters.network."
	structType  = types + "google.protobuf.Struct"
	tcpType     = network + "tcp_proxy.v3.TcpProxy"
	tcpProxy    = "envoy.filters.network.tcp_proxy"
	codecPrefix = "aeraki.meta_protocol.codec."
	namespace   = "meta_protocol" // of the metrics
	pluginName  = "meta_protocol_proxy"

	// passthrough is the filter chain of a listener for what belongs to no
	// service.
	passthrough = "PassthroughFilterChain"
	// last has our patches come after those of other people, whichever are
	// newer: what they put before tcp_proxy is there when it is replaced.
	last = 1_000_000
)

// Filter is one EnvoyFilter.
type Filter struct {
	Name, Namespace     string
	Labels, Annotations map[string]string
	Spec                *networking.EnvoyFilter

	only     map[string]string // further metadata that its proxies must have
	meshWide bool              // it is for proxies of all namespaces
}

// Generate makes the EnvoyFilters of a service that is complete and without a
// fault, always the same and in the same order. The loopback listener of a
// namespace, which is the same for all services, comes first. The service stays
// as it is. What it is refused for may be told more than once, as several of its
// proxies have it in common.
func Generate(s *ir.Service) ([]*Filter, fault.List) {
	g := &generator{s: s}
	if len(s.Ports) > 0 || len(s.Observed) == 0 {
		g.metrics()
		g.loopbacks()
	}
	for i := range s.Ports {
		p, path := &s.Ports[i], fmt.Sprintf("ports[%d]", i)
		for _, c := range s.Clients {
			g.outbound(p, path, c)
		}
		if s.Server != nil && !p.Unresolved {
			g.inbound(p, path)
		}
		for _, w := range s.Gateways {
			if w.ServicePort == p.Port {
				g.gateway(p, path, w)
			}
		}
	}
	g.stockFilters()
	if len(g.faults) > 0 {
		return nil, g.faults
	}
	return g.filters, nil
}

type generator struct {
	s       *ir.Service
	form    form // for which patches are made now; nil: for what all proxies have
	filters []*Filter
	faults  fault.List
	// ahead is how many filters prepend has put before those of a service, in the
	// configuration that is made now.
	ahead int
}

func (g *generator) refuse(path, format string, args ...any) { g.faults.Add(path, format, args...) }

func (g *generator) add(component, name, ns string, selector map[string]string) *Filter {
	f := &Filter{
		Name: name, Namespace: ns, Spec: &networking.EnvoyFilter{},
		Labels: map[string]string{
			"app.kubernetes.io/managed-by": "meltemi",
			"app.kubernetes.io/component":  component,
		},
	}
	if component != "loopback" {
		f.Labels["app.kubernetes.io/instance"] = g.s.Name
	}
	if len(selector) > 0 {
		f.Spec.WorkloadSelector = &networking.WorkloadSelector{Labels: selector}
	}
	g.filters = append(g.filters, f)
	return f
}

// patch appends a patch for proxies that have the shared object. The namespace
// is named too, as EnvoyFilters in Istio's root namespace count for all, unless they
// are to.
func (g *generator) patch(f *Filter, to networking.EnvoyFilter_ApplyTo, op networking.EnvoyFilter_Patch_Operation, m *networking.EnvoyFilter_EnvoyConfigObjectMatch, value object) {
	var v *structpb.Struct
	if value != nil {
		var err error
		if v, err = structpb.NewStruct(value); err != nil {
			g.refuse("", "%v", err)
			return
		}
	}
	metadata := maps.Clone(g.s.ProxyMetadata)
	if !f.meshWide {
		metadata["NAMESPACE"] = f.Namespace
	}
	maps.Copy(metadata, f.only)
	m.Proxy = &networking.EnvoyFilter_ProxyMatch{Metadata: metadata}
	if g.form != nil {
		m.Proxy.ProxyVersion = g.form.version(g.s)
	}
	f.Spec.ConfigPatches = append(f.Spec.ConfigPatches, &networking.EnvoyFilter_EnvoyConfigObjectPatch{
		ApplyTo: to, Match: m, Patch: &networking.EnvoyFilter_Patch{Operation: op, Value: v},
	})
}

func suffixed(name, suffix string) string {
	if suffix == "" {
		return name
	}
	return name + "-" + suffix
}

func (g *generator) outbound(p *ir.Port, path string, c ir.Workloads) {
	name := suffixed(fmt.Sprintf("meltemi-outbound-%s-%d", g.s.Name, p.Port), c.Name)
	f := g.add("outbound", name, c.Namespace, c.Selector)
	f.meshWide = c.MeshWide
	cluster := clusterOf(g.self(p))
	before := len(g.faults)
	routes, to := g.routes(p)
	cfg := g.config(p, "outbound", cluster, routes)
	if g.s.Headless {
		upstream(cfg)["original_dst"] = "ALWAYS"
	}
	g.count(cfg, "outbound")
	g.check(before, cfg, p, path, "outbound")
	g.discover(cfg)
	for g.form = range g.forms() {
		g.steer(f, networking.EnvoyFilter_SIDECAR_OUTBOUND, g.listeners(f, name, cluster, p.Port), name, cluster, cfg)
		g.clusters(f, networking.EnvoyFilter_SIDECAR_OUTBOUND, to)
	}
}

// listeners are those of a port in its clients' proxies.
func (g *generator) listeners(f *Filter, name, cluster string, port int) (of []*networking.EnvoyFilter_ListenerMatch) {
	names, ranges := addresses(g.s)
	for _, a := range names {
		of = append(of, &networking.EnvoyFilter_ListenerMatch{Name: a + "_" + strconv.Itoa(port)})
	}
	of = append(of, g.chains(f, name, cluster, port, ranges)...)
	if g.s.Headless {
		of = append(of, &networking.EnvoyFilter_ListenerMatch{PortNumber: uint32(port)})
	}
	return of
}

// addresses are the names of the service's listeners, without their ports, and
// the ranges of its addresses.
func addresses(s *ir.Service) (names []string, ranges []netip.Prefix) {
	for _, a := range s.Addresses {
		if r, err := netip.ParsePrefix(a); err == nil {
			ranges = append(ranges, r)
			if r.IsSingleIP() { // Istio takes that of a ServiceEntry for the address
				names = append(names, r.Addr().String())
			}
			continue
		}
		// Istio has the spelling of a ServiceEntry in its listener's name, and
		// Kubernetes the usual one.
		names = append(names, a)
		if ip, err := netip.ParseAddr(a); err == nil && ip.String() != a {
			names = append(names, ip.String())
		}
	}
	return names, ranges
}

// chains gives the service filter chains of its own in the listener that services
// without an address share, for the ranges to which its clients connect. They
// begin as what Istio would have made, so that patches of other people find
// them as they do Istio's. Each range is cut in two: what is more specific than
// Istio's chain of the same range comes before it.
func (g *generator) chains(f *Filter, name, cluster string, port int, ranges []netip.Prefix) (of []*networking.EnvoyFilter_ListenerMatch) {
	var four, all []any
	seen := map[netip.Prefix]bool{} // Envoy refuses a listener that has one twice
	for _, r := range ranges {
		for _, half := range halves(r) {
			if seen[half] {
				continue
			}
			seen[half] = true
			entry := object{"address_prefix": half.Addr().String(), "prefix_len": half.Bits()}
			all = append(all, entry)
			if half.Addr().Is4() {
				four = append(four, entry)
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	add := func(address string, ranges []any) {
		l := &networking.EnvoyFilter_ListenerMatch{Name: address + "_" + strconv.Itoa(port)}
		g.patch(f, networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_Patch_MERGE,
			&networking.EnvoyFilter_EnvoyConfigObjectMatch{
				Context:     networking.EnvoyFilter_SIDECAR_OUTBOUND,
				ObjectTypes: &networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener{Listener: l},
			}, object{"filter_chains": []any{object{
				"name":               name,
				"filter_chain_match": object{"prefix_ranges": ranges},
				"filters":            []any{plainTCP(cluster)},
			}}})
		of = append(of, &networking.EnvoyFilter_ListenerMatch{
			Name:        l.Name,
			FilterChain: &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{Name: name},
		})
	}
	add("0.0.0.0", all)
	if len(four) < len(all) {
		add("::", all) // of a proxy that has IPv6 only
	}
	return of
}

func halves(r netip.Prefix) []netip.Prefix {
	if r.IsSingleIP() {
		return []netip.Prefix{r}
	}
	b := r.Addr().AsSlice()
	b[r.Bits()/8] |= 0x80 >> (r.Bits() % 8)
	upper, _ := netip.AddrFromSlice(b)
	return []netip.Prefix{netip.PrefixFrom(r.Addr(), r.Bits()+1), netip.PrefixFrom(upper, r.Bits()+1)}
}

// plainTCP is the filter that Istio has in the chains of a service.
func plainTCP(cluster string) object {
	return object{"name": tcpProxy, "typed_config": object{"@type": tcpType, "stat_prefix": cluster, "cluster": cluster}}
}

func (g *generator) inbound(p *ir.Port, path string) {
	name := fmt.Sprintf("meltemi-inbound-%s-%d", g.s.Name, p.TargetPort)
	for _, f := range g.filters {
		if f.Name == name {
			return // another port leads to the same one of the workload
		}
	}
	f := g.add("inbound", name, g.s.Server.Namespace, g.s.Server.Selector)
	before := len(g.faults)
	cluster := fmt.Sprintf("inbound|%d||", p.TargetPort)
	cfg := g.config(p, "inbound", cluster, []any{object{"route": object{"cluster": cluster}}})
	g.authorize(cfg)
	g.count(cfg, "inbound")
	if g.s.Server.PreserveSource {
		g.preserveSource(cfg, p)
		// Under REDIRECT nothing would come back to the proxy.
		f.only = map[string]string{"INTERCEPTION_MODE": "TPROXY"}
	}
	g.check(before, cfg, p, path, "inbound")
	for g.form = range g.forms() {
		g.steer(f, networking.EnvoyFilter_SIDECAR_INBOUND, inboundListener(p.TargetPort), name, cluster, cfg)
	}
	f.Spec.Priority = last + int32(p.Behind)
}

// inboundListener has a port of the workload, in its proxy.
func inboundListener(targetPort int) []*networking.EnvoyFilter_ListenerMatch {
	return []*networking.EnvoyFilter_ListenerMatch{{
		Name:        "virtualInbound",
		FilterChain: &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{DestinationPort: uint32(targetPort)},
	}}
}

func (g *generator) gateway(p *ir.Port, path string, w ir.Gateway) {
	name := suffixed(fmt.Sprintf("meltemi-gateway-%s-%d", g.s.Name, w.Port), w.Name)
	f := g.add("gateway", name, w.Namespace, w.Selector)
	before := len(g.faults)
	routes, to := g.routes(p)
	cfg := g.config(p, "outbound", fmt.Sprintf("gateway|%d||%s", w.Port, g.s.Host), routes)
	g.count(cfg, "outbound")
	g.check(before, cfg, p, path, "outbound")
	g.discover(cfg)
	var listeners []*networking.EnvoyFilter_ListenerMatch
	for _, h := range w.SNIHosts {
		listeners = append(listeners, &networking.EnvoyFilter_ListenerMatch{
			PortNumber:  uint32(w.Port),
			FilterChain: &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{Sni: h},
		})
	}
	if len(listeners) == 0 {
		listeners = append(listeners, &networking.EnvoyFilter_ListenerMatch{PortNumber: uint32(w.Port)})
	}
	for g.form = range g.forms() {
		g.steer(f, networking.EnvoyFilter_GATEWAY, listeners, name, clusterOf(g.self(p)), cfg)
		g.clusters(f, networking.EnvoyFilter_GATEWAY, to)
	}
	// Where gateways get only clusters that they use (istiod's
	// PILOT_FILTER_GATEWAY_CLUSTER_CONFIG) these are told to be used.
	var hosts []string
	for _, d := range hostPorts(to) {
		if len(hosts) == 0 || hosts[len(hosts)-1] != d.Host {
			hosts = append(hosts, d.Host)
		}
	}
	if rds := g.s.RDS; rds != nil && !slices.Contains(hosts, rds.Host) {
		hosts = append(hosts, rds.Host)
	}
	f.Annotations = map[string]string{"envoyfilter.istio.io/referenced-services": strings.Join(hosts, ",")}
}

// steer replaces tcp_proxy in the listeners. What goes on while the filter's
// configuration has not come, or was refused at the start, is what Istio would
// have done.
func (g *generator) steer(f *Filter, context networking.EnvoyFilter_PatchContext, listeners []*networking.EnvoyFilter_ListenerMatch, name, cluster string, cfg object) {
	typed := g.form.filter(g.s, cfg)
	filter := object{"name": name, "typed_config": typed}
	if g.s.Delivery == ir.ECDS {
		filter = object{"name": name, "config_discovery": object{
			"config_source": object{
				"ads": object{}, "resource_api_version": "V3",
				"initial_fetch_timeout": ir.Seconds(g.s.InitialFetchTimeout),
			},
			"type_urls":      []any{typed["@type"], tcpType},
			"default_config": object{"@type": tcpType, "stat_prefix": cluster, "cluster": cluster},
		}}
	}
	f.Spec.Priority = last
	patch := func(op networking.EnvoyFilter_Patch_Operation, l *networking.EnvoyFilter_ListenerMatch, chain, filter string, value object) {
		m := &networking.EnvoyFilter_ListenerMatch{
			Name: l.Name, PortNumber: l.PortNumber,
			FilterChain: &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{
				Name: cmp.Or(chain, l.FilterChain.GetName()), Sni: l.FilterChain.GetSni(),
				DestinationPort: l.FilterChain.GetDestinationPort(),
				Filter:          &networking.EnvoyFilter_ListenerMatch_FilterMatch{Name: filter},
			},
		}
		g.patch(f, networking.EnvoyFilter_NETWORK_FILTER, op, &networking.EnvoyFilter_EnvoyConfigObjectMatch{
			Context:     context,
			ObjectTypes: &networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener{Listener: m},
		}, value)
	}
	for _, l := range listeners {
		// Where a listener is found by its port alone it may have the chain for
		// what belongs to no service, which no match can leave out. So another
		// tcp_proxy is put before that chain's, replaced in its stead, and removed.
		byPort := g.s.Headless && context == networking.EnvoyFilter_SIDECAR_OUTBOUND
		if byPort {
			patch(networking.EnvoyFilter_Patch_INSERT_BEFORE, l, passthrough, tcpProxy, plainTCP(cluster))
		}
		patch(networking.EnvoyFilter_Patch_REPLACE, l, "", tcpProxy, filter)
		if byPort {
			patch(networking.EnvoyFilter_Patch_REMOVE, l, passthrough, name, nil)
		}
	}
	g.uncount(patch, listeners)
	if g.s.Delivery == ir.ECDS {
		g.patch(f, networking.EnvoyFilter_EXTENSION_CONFIG, networking.EnvoyFilter_Patch_ADD,
			&networking.EnvoyFilter_EnvoyConfigObjectMatch{Context: context}, object{"name": name, "typed_config": typed})
	}
}

// clusters has connections to hosts that fail their health checks or are
// ejected closed at once, and the load balancer be ours, if the service wants it.
func (g *generator) clusters(f *Filter, context networking.EnvoyFilter_PatchContext, to []ir.Destination) {
	for _, d := range hostPorts(to) {
		g.patch(f, networking.EnvoyFilter_CLUSTER, networking.EnvoyFilter_Patch_MERGE,
			&networking.EnvoyFilter_EnvoyConfigObjectMatch{
				Context: context,
				ObjectTypes: &networking.EnvoyFilter_EnvoyConfigObjectMatch_Cluster{
					Cluster: &networking.EnvoyFilter_ClusterMatch{Service: d.Host, PortNumber: uint32(d.Port)},
				},
			}, g.clusterPatch(d))
	}
}
