package convert

import (
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/control/source"
	"github.com/meltemi-mesh/meltemi/filter/config"
	tablev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// read fills m with the configuration, but for some fields, which are returned. It
// tells of what m does not know.
func (s *subject) read(m proto.Message, but ...string) (rest []*yaml.Node, ok bool) {
	s.Node = clone(s.Node)
	lists(s.Node, m.ProtoReflect().Descriptor())
	n := *s.Node
	n.Content = slices.Clone(n.Content)
	remove(&n, "@type")
	for _, name := range but {
		rest = append(rest, remove(&n, name))
	}
	b, err := raw(&n)
	if err != nil {
		s.lose(err.Line, behind(s.path, err.Path), "%s%s", err.Reason, staysAsItIs)
		return nil, false
	}
	if errs := config.Shape(b, m); len(errs) > 0 {
		for _, e := range errs {
			s.fieldLoss(e.Path, "%s%s", e.Reason, staysAsItIs)
		}
		return nil, false
	}
	if err := protojson.Unmarshal(b, m); err != nil {
		s.fieldLoss("", "%v%s", err, staysAsItIs)
		return nil, false
	}
	return rest, true
}

// proxy begins the configuration of a listener with one protocol.
func proxy(statPrefix, protocol, table string) *proxyv1alpha.MetaProtocolProxy {
	return &proxyv1alpha.MetaProtocolProxy{
		StatPrefix: statPrefix,
		Protocol: &proxyv1alpha.ApplicationProtocol{
			Name: protocol, Codec: &proxyv1alpha.Codec{Name: "aeraki.meta_protocol.codec." + protocol},
		},
		RouteSpecifier: &proxyv1alpha.MetaProtocolProxy_RouteConfig{
			RouteConfig: &tablev1alpha.RouteConfiguration{Name: table},
		},
	}
}

// made is the configuration as nodes, its routes' last.
func (s *subject) made(p *proxyv1alpha.MetaProtocolProxy) *yaml.Node {
	n, err := message(p)
	if err != nil {
		s.fieldLoss("", "%v", err)
		return nil
	}
	set(n, "route_config", remove(n, "route_config"))
	return n
}

// route adds one, which is made of what is at a path.
func (s *subject) route(p *proxyv1alpha.MetaProtocolProxy, path string, action *tablev1alpha.RouteAction, match ...*routev3.HeaderMatcher) {
	r := &tablev1alpha.Route{Route: action}
	if len(match) > 0 {
		r.Match = &tablev1alpha.RouteMatch{Metadata: match}
	}
	table := p.GetRouteConfig()
	table.Routes = append(table.Routes, r)
	s.from = append(s.from, path)
}

// filters tells of all but the router, of which there is nothing to carry over.
func (s *subject) filters(list *yaml.Node, path, router string) {
	elements(list, path, func(f *yaml.Node, path string) {
		if isRouter(f, router) {
			return
		}
		kind := text(f, "name")
		if kind == router {
			kind, _, _ = typed(at(f, "typed_config"))
		}
		s.fieldLoss(path, "there is no filter of that kind: %q", kind)
	})
}

// isRouter tells whether a filter is the router of that name. Envoy knows filters by the
// types of their configurations, and by their names only where these tell nothing.
func isRouter(f *yaml.Node, name string) bool {
	switch kind, _, _ := typed(at(f, "typed_config")); kind {
	case "envoy.extensions.filters.network.dubbo_proxy.router.v3.Router", "envoy.config.filter.dubbo.router.v2alpha1.Router",
		"envoy.extensions.filters.network.thrift_proxy.router.v3.Router", "envoy.config.filter.thrift.router.v2alpha1.Router":
		return true
	case "", "google.protobuf.Empty", "google.protobuf.Struct":
		return text(f, "name") == name
	}
	return false
}

// matcher, and those below, are of a property.
func matcher(name string, m *matcherv3.StringMatcher) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m}}
}

func exactly(name, value string) *routev3.HeaderMatcher {
	return matcher(name, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}})
}

// otherThan matches any other value, and none.
func otherThan(name, value string) *routev3.HeaderMatcher {
	m := exactly(name, value)
	m.InvertMatch, m.TreatMissingHeaderAsEmpty = true, true
	return m
}

func present(name string, is bool) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}, InvertMatch: !is}
}

// wildcard matches as dubbo_proxy does an interface: with * at the beginning or at the
// end, which stands for at least one character.
func wildcard(name, pattern string) []*routev3.HeaderMatcher {
	switch {
	case pattern == "*":
		return []*routev3.HeaderMatcher{present(name, true)}
	case strings.HasPrefix(pattern, "*"):
		return []*routev3.HeaderMatcher{
			matcher(name, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: pattern[1:]}}),
			otherThan(name, pattern[1:]),
		}
	case strings.HasSuffix(pattern, "*"):
		prefix := strings.TrimSuffix(pattern, "*")
		return []*routev3.HeaderMatcher{
			matcher(name, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}}),
			otherThan(name, prefix),
		}
	}
	return []*routev3.HeaderMatcher{exactly(name, pattern)}
}

// to is an action that goes to a cluster.
func to(cluster string) *tablev1alpha.RouteAction {
	return &tablev1alpha.RouteAction{ClusterSpecifier: &tablev1alpha.RouteAction_Cluster{Cluster: cluster}}
}

// weighted is an action that goes to one of several.
func weighted(clusters []*routev3.WeightedCluster_ClusterWeight) *tablev1alpha.RouteAction {
	return &tablev1alpha.RouteAction{ClusterSpecifier: &tablev1alpha.RouteAction_WeightedClusters{
		WeightedClusters: &routev3.WeightedCluster{Clusters: clusters},
	}}
}

func weight(name string, weight *wrapperspb.UInt32Value) *routev3.WeightedCluster_ClusterWeight {
	return &routev3.WeightedCluster_ClusterWeight{Name: name, Weight: weight}
}

// subset tells of what only Envoy's own router asks of a load balancer.
func (s *subject) subset(m *corev3.Metadata, path string) {
	if m != nil {
		s.fieldLoss(path, "routes choose clusters, no subsets of their hosts: make clusters of these")
	}
}

// ignored tells of the fields that m has and carried has not: dubbo_proxy takes them and
// looks at none, but those that are told of already.
func (s *subject) ignored(m, carried proto.Message, path string, told ...string) {
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		name := string(fd.Name())
		if !carried.ProtoReflect().Has(fd) && !slices.Contains(told, name) {
			s.fieldNote(path+"."+name, "left out: %s ignores it", s.name)
		}
		return true
	})
}

// names are the fields that n has beside some.
func names(n *yaml.Node, but ...string) (list []string) {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i < len(n.Content); i += 2 {
		name := n.Content[i].Value
		if !slices.ContainsFunc(but, func(b string) bool { return source.SameName(b, name) }) {
			list = append(list, name)
		}
	}
	return list
}

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
