package convert

import (
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	dubbov3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/dubbo_proxy/v3"
	"go.yaml.in/yaml/v3"

	tablev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// dubbo is Envoy's dubbo_proxy. Its tables, which are looked at in turn, are one here.
func (s *subject) dubbo() *yaml.Node {
	if at(s.Node, "drds") != nil {
		s.fieldLoss("drds", "no server has such routes for Meltemi: it would need rds, or the routes here"+staysAsItIs)
		return nil
	}
	m := new(dubbov3.DubboProxy)
	rest, ok := s.read(m, "dubbo_filters")
	if !ok {
		return nil
	}
	s.filters(rest[0], "dubbo_filters", "envoy.filters.dubbo.router")
	tables, path, name := m.GetRouteConfig(), "route_config", "" //nolint:staticcheck // deprecated, and in use
	if multiple := m.GetMultipleRouteConfig(); multiple != nil {
		// dubbo_proxy takes route_config only where there is nothing else.
		tables, path, name = multiple.GetRouteConfig(), "multiple_route_config.route_config", multiple.GetName()
	}
	if name == "" && len(tables) == 1 {
		name = tables[0].GetName()
	}
	p := proxy(m.GetStatPrefix(), "dubbo", name)
	for i, t := range tables {
		s.dubboTable(p, t, index(path, i))
	}
	return s.made(p)
}

func (s *subject) dubboTable(p *proxyv1alpha.MetaProtocolProxy, t *dubbov3.RouteConfiguration, path string) {
	if t.GetInterface() == "" {
		s.fieldNote(path+".interface", "without it dubbo_proxy takes none of the routes: they are left out")
		return
	}
	service := wildcard("interface", t.GetInterface())
	if v := t.GetVersion(); v != "" {
		service = append(service, exactly("version", v))
	}
	if g := t.GetGroup(); g != "" {
		service = append(service, exactly("group", g))
	}
	for i, r := range t.GetRoutes() {
		at := index(path+".routes", i)
		match := append([]*routev3.HeaderMatcher(nil), service...)
		method := r.GetMatch().GetMethod()
		if n := method.GetName(); n.GetMatchPattern() != nil {
			match = append(match, matcher("method", n))
		}
		match = append(match, r.GetMatch().GetHeaders()...)
		if len(method.GetParamsMatch()) > 0 {
			s.fieldLoss(at+".match.method.params_match", "routes do not look at arguments; the route is left out")
			continue
		}
		s.subset(r.GetRoute().GetMetadataMatch(), at+".route.metadata_match")
		s.route(p, at, s.dubboAction(r.GetRoute(), at+".route"), match...)
	}
}

func (s *subject) dubboAction(a *dubbov3.RouteAction, path string) *tablev1alpha.RouteAction {
	w := a.GetWeightedClusters()
	if w == nil {
		return to(a.GetCluster())
	}
	var clusters []*routev3.WeightedCluster_ClusterWeight
	for i, c := range w.GetClusters() {
		path := index(path+".weighted_clusters.clusters", i)
		s.subset(c.GetMetadataMatch(), path+".metadata_match")
		own := weight(c.GetName(), c.GetWeight())
		clusters = append(clusters, own)
		s.ignored(c, own, path, "metadata_match")
	}
	s.ignored(w, &routev3.WeightedCluster{Clusters: w.GetClusters()}, path+".weighted_clusters")
	return weighted(clusters)
}
