package convert

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// metaProtocol is that of the C++ proxy: the message is the same, but for what that
// proxy has from its Envoy, and what it takes and ignores.
func (s *subject) metaProtocol() *yaml.Node {
	cfg := clone(s.Node)
	remove(cfg, "@type")
	lists(cfg, (*proxyv1alpha.MetaProtocolProxy)(nil).ProtoReflect().Descriptor())
	if _, tracing := field(cfg, "tracing"); tracing != nil && at(tracing, "provider") == nil {
		if s.tracer != nil && tracing.Kind == yaml.MappingNode {
			set(tracing, "provider", clone(s.tracer))
			s.fieldNote("tracing", "the provider is that of the bootstrap, which filters are not told")
		} else {
			remove(cfg, "tracing")
			s.fieldLoss("tracing", "there is no provider: Envoy's own is not told to filters")
		}
	}
	k, filters := field(cfg, "meta_protocol_filters")
	if filters != nil {
		elements(filters, k.Value, func(f *yaml.Node, path string) {
			switch text(f, "name") {
			case "aeraki.meta_protocol.filters.ratelimit":
				s.ratelimit(f, fault.Join(path, "config"))
			case "aeraki.meta_protocol.filters.istio_stats":
				s.istioStats = true
			}
		})
	}
	if k, table := field(cfg, "route_config"); table != nil {
		routesKey, routes := field(table, "routes")
		if routes != nil {
			elements(routes, fault.Join(k.Value, routesKey.Value), s.metaProtocolRoute)
		}
	}
	return cfg
}

func (s *subject) ratelimit(f *yaml.Node, path string) {
	config := at(f, "config")
	if strings.HasSuffix(text(config, "@type"), ".TypedStruct") {
		config = at(config, "value")
	}
	_, match := field(config, "match")
	if match == nil || at(match, "metadata") == nil {
		s.fieldNote(fault.Join(path, "match"), "without a matcher all requests are limited: the C++ proxy limits none then")
	}
	if at(config, "timeout") == nil {
		s.fieldNote(fault.Join(path, "timeout"), "the service is waited for 20ms, the default: the C++ proxy waits for ever")
	} else {
		s.fieldNote(fault.Join(path, "timeout"), "heeded here: the C++ proxy ignores it")
	}
}

func (s *subject) metaProtocolRoute(r *yaml.Node, path string) {
	if k, m := field(r, "response_mutation"); m != nil {
		s.fieldNote(fault.Join(path, k.Value), "applied here: the C++ proxy ignores it")
	}
	routeKey, action := field(r, "route")
	weightedKey, weighted := field(action, "weighted_clusters")
	if weighted == nil || weighted.Kind != yaml.MappingNode {
		return
	}
	path = fault.Join(fault.Join(path, routeKey.Value), weightedKey.Value)
	ignored := func(n *yaml.Node, path string, but ...string) {
		for _, name := range names(n, but...) {
			remove(n, name)
			s.fieldNote(fault.Join(path, name), "left out: the C++ proxy ignores it")
		}
	}
	ignored(weighted, path, "clusters")
	clustersKey, clusters := field(weighted, "clusters")
	if clusters != nil {
		elements(clusters, fault.Join(path, clustersKey.Value), func(e *yaml.Node, path string) { ignored(e, path, "name", "weight") })
	}
}
