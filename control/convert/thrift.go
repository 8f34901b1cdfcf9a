package convert

import (
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	thriftv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/thrift_proxy/v3"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
	tablev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

const thriftRouter = "envoy.filters.thrift.router"

// thrift is Envoy's thrift_proxy.
func (s *subject) thrift() *yaml.Node {
	if at(s.Node, "trds") != nil {
		s.fieldLoss("trds", "no server has such routes for Meltemi: it would need rds, or the routes here"+staysAsItIs)
		return nil
	}
	m := new(thriftv3.ThriftProxy)
	rest, ok := s.read(m, "thrift_filters", "access_log")
	if !ok {
		return nil
	}
	filters, logs := rest[0], rest[1]
	s.filters(filters, "thrift_filters", thriftRouter)
	elements(filters, "thrift_filters", func(f *yaml.Node, path string) {
		if config := at(f, "typed_config"); isRouter(f, thriftRouter) && at(config, "close_downstream_on_error") != nil {
			s.fieldNote(path+".typed_config.close_downstream_on_error", "left out: clients are answered, and stay connected where their protocol allows it")
		}
	})
	if t := m.GetTransport(); t != thriftv3.TransportType_AUTO_TRANSPORT {
		s.fieldNote("transport", "left out: the first bytes of a connection tell it, and clients of other transports are served too")
	}
	switch m.GetProtocol() {
	case thriftv3.ProtocolType_AUTO_PROTOCOL:
	case thriftv3.ProtocolType_TWITTER: //nolint:staticcheck // deprecated, and refused
		s.fieldLoss("protocol", "the codec does not know Twitter's protocol"+staysAsItIs)
		return nil
	default:
		s.fieldNote("protocol", "left out: each message tells it, and clients of other protocols are served too")
	}
	if m.GetPayloadPassthrough() {
		s.fieldNote("payload_passthrough", "left out: messages always go on as they came")
	}
	if m.GetHeaderKeysPreserveCase() {
		s.fieldNote("header_keys_preserve_case", "left out: the case of names always stays")
	}
	if m.GetMaxRequestsPerConnection() != nil {
		s.fieldLoss("max_requests_per_connection", "connections are not closed after a number of requests")
	}
	table := m.GetRouteConfig()
	if table.GetValidateClusters() != nil {
		s.fieldNote("route_config.validate_clusters", "left out: a cluster that is not there is an error of the requests for it, as it may come later")
	}
	p := proxy(m.GetStatPrefix(), "thrift", table.GetName())
	for i, r := range table.GetRoutes() {
		s.thriftRoute(p, r, index("route_config.routes", i))
	}
	n := s.made(p)
	if n != nil && logs != nil {
		set(n, "access_log", logs)
	}
	return n
}

func (s *subject) thriftRoute(p *proxyv1alpha.MetaProtocolProxy, r *thriftv3.Route, path string) {
	for i, h := range r.GetMatch().GetHeaders() {
		if strings.HasPrefix(h.GetName(), ":") {
			s.fieldLoss(index(path+".match.headers", i), "there is no property %s; the route is left out", h.GetName())
			return
		}
	}
	if r.GetMatch().GetMatchSpecifier() == nil {
		s.fieldLoss(path+".match", "want method_name or service_name; the route is left out")
		return
	}
	action := s.thriftAction(r.GetRoute(), path+".route")
	if action == nil {
		return
	}
	for _, match := range thriftMatches(r.GetMatch()) {
		s.route(p, path, action, append(match, r.GetMatch().GetHeaders()...)...)
	}
}

// thriftMatches says what a route matches, of which one must be fulfilled. thrift_proxy
// has no services: it looks at a method's whole name, SERVICE:METHOD where several share
// a server.
func thriftMatches(m *thriftv3.RouteMatch) [][]*routev3.HeaderMatcher {
	type all = []*routev3.HeaderMatcher
	service, method, both := "", m.GetMethodName(), false
	if by, ok := m.GetMatchSpecifier().(*thriftv3.RouteMatch_ServiceName); ok {
		service = strings.TrimSuffix(by.ServiceName, ":")
	} else {
		before, behind, multiplexed := strings.Cut(method, ":")
		if both = multiplexed; both {
			service, method = before, behind
		}
	}
	switch {
	case service == "" && method == "": // any; thrift_proxy refuses invert
		return []all{nil}
	case method == "" && m.GetInvert():
		return []all{{otherThan("service", service)}}
	case method == "":
		return []all{{exactly("service", service)}}
	case both && m.GetInvert():
		return []all{{otherThan("method", method)}, {otherThan("service", service)}}
	case both:
		return []all{{exactly("service", service), exactly("method", method)}}
	case m.GetInvert():
		return []all{{otherThan("method", method)}, {present("service", true)}}
	}
	return []all{{present("service", false), exactly("method", method)}}
}

func (s *subject) thriftAction(a *thriftv3.RouteAction, path string) *tablev1alpha.RouteAction {
	s.subset(a.GetMetadataMatch(), path+".metadata_match")
	if len(a.GetRateLimits()) > 0 {
		s.fieldLoss(path+".rate_limits", "limits are the filters' ratelimit and local_ratelimit, in meta_protocol_filters")
	}
	if a.GetStripServiceName() {
		s.fieldLoss(path+".strip_service_name", "servers get the name that the client said")
	}
	var action *tablev1alpha.RouteAction
	switch by := a.GetClusterSpecifier().(type) {
	case *thriftv3.RouteAction_WeightedClusters:
		var clusters []*routev3.WeightedCluster_ClusterWeight
		for i, c := range by.WeightedClusters.GetClusters() {
			s.subset(c.GetMetadataMatch(), index(path+".weighted_clusters.clusters", i)+".metadata_match")
			clusters = append(clusters, weight(c.GetName(), c.GetWeight()))
		}
		action = weighted(clusters)
	case *thriftv3.RouteAction_ClusterHeader:
		if len(s.clusters) == 0 {
			s.fieldLoss(path+".cluster_header", "cluster_from_metadata is the same, but wants the clusters that requests may name, and there are none here; the route is left out")
			return nil
		}
		s.fieldNote(path+".cluster_header", "requests may name the clusters of this file, which cluster_from_metadata lists: take out those that they may not")
		action = &tablev1alpha.RouteAction{ClusterSpecifier: &tablev1alpha.RouteAction_ClusterFromMetadata{
			ClusterFromMetadata: &tablev1alpha.ClusterFromMetadata{Name: by.ClusterHeader, AllowedClusters: slices.Clone(s.clusters)},
		}}
	default:
		action = to(a.GetCluster())
	}
	for _, m := range a.GetRequestMirrorPolicies() {
		action.RequestMirrorPolicies = append(action.RequestMirrorPolicies, &tablev1alpha.RouteAction_RequestMirrorPolicy{
			Cluster: m.GetCluster(), RuntimeFraction: m.GetRuntimeFraction(),
		})
	}
	return action
}

// protocolOptions takes away those of a cluster for thrift_proxy, which had it speak to
// servers in another form than the client does.
func (c *converter) protocolOptions(cluster *yaml.Node, path string) {
	k, options := field(cluster, "typed_extension_protocol_options")
	for i := 0; i < len(options.Content); i += 2 {
		key := options.Content[i]
		name, m, _ := typed(options.Content[i+1])
		if key.Value != "envoy.filters.network.thrift_proxy" && !strings.HasSuffix(name, "thrift_proxy.v3.ThriftProtocolOptions") {
			continue
		}
		for _, f := range names(m, "@type") {
			line, _ := field(m, f)
			c.lose(line.Line, fault.Join(fault.Join(fault.Join(path, k.Value), key.Value), f), "servers get requests in the form that the client has chosen")
		}
		remove(options, key.Value)
		if len(options.Content) == 0 {
			remove(cluster, k.Value)
		}
		return
	}
}
