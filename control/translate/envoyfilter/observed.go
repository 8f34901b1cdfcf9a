package envoyfilter

import (
	"fmt"
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/meltemi-mesh/meltemi/control/ir"
)

// stock are the filters of Envoy's own that observe. As TypedStructs they need no istiod
// that knows their messages.
var stock = map[ir.StockFilter]struct{ name, message string }{
	ir.ZooKeeper: {"envoy.filters.network.zookeeper_proxy", network + "zookeeper_proxy.v3.ZooKeeperProxy"},
	ir.Kafka:     {"envoy.filters.network.kafka_broker", network + "kafka_broker.v3.KafkaBroker"},
}

const typedStruct = types + "udpa.type.v1.TypedStruct"

// stockFilters puts filters of Envoy's own before tcp_proxy, with Aeraki's names of their
// metrics. Nothing else of the ports changes, and they need no loopback listener.
func (g *generator) stockFilters() {
	g.form = nil
	for _, p := range g.s.Observed {
		self := ir.Destination{Host: g.s.Host, Port: p.Port}
		for _, c := range g.s.Clients {
			name := fmt.Sprintf("meltemi-outbound-%s-%d", g.s.Name, p.Port)
			f := g.add("outbound", suffixed(name, c.Name), c.Namespace, c.Selector)
			f.meshWide = c.MeshWide
			g.insert(f, p.Filter, networking.EnvoyFilter_SIDECAR_OUTBOUND, g.listeners(f, name, clusterOf(self), p.Port), clusterOf(self))
		}
		name := fmt.Sprintf("meltemi-inbound-%s-%d", g.s.Name, p.TargetPort)
		if g.s.Server == nil || p.Unresolved || slices.ContainsFunc(g.filters, func(f *Filter) bool { return f.Name == name }) {
			continue
		}
		f := g.add("inbound", name, g.s.Server.Namespace, g.s.Server.Selector)
		g.insert(f, p.Filter, networking.EnvoyFilter_SIDECAR_INBOUND, inboundListener(p.TargetPort), fmt.Sprintf("inbound|%d||", p.TargetPort))
	}
}

func (g *generator) insert(f *Filter, filter ir.StockFilter, context networking.EnvoyFilter_PatchContext, listeners []*networking.EnvoyFilter_ListenerMatch, statPrefix string) {
	if filter == ir.Kafka {
		f.only = map[string]string{ir.KafkaMetadata: "true"}
	}
	f.Spec.Priority = last
	patch := func(op networking.EnvoyFilter_Patch_Operation, l *networking.EnvoyFilter_ListenerMatch, filter string, value object) {
		chain := &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{
			Name: l.FilterChain.GetName(), DestinationPort: l.FilterChain.GetDestinationPort(),
			Filter: &networking.EnvoyFilter_ListenerMatch_FilterMatch{Name: filter},
		}
		g.patch(f, networking.EnvoyFilter_NETWORK_FILTER, op, &networking.EnvoyFilter_EnvoyConfigObjectMatch{
			Context: context,
			ObjectTypes: &networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener{
				Listener: &networking.EnvoyFilter_ListenerMatch{Name: l.Name, PortNumber: l.PortNumber, FilterChain: chain},
			},
		}, value)
	}
	for _, l := range listeners {
		// Another service of the same workloads, such as the headless one of an ensemble,
		// has it there, too: two would count all twice.
		patch(networking.EnvoyFilter_Patch_REMOVE, l, stock[filter].name, nil)
		patch(networking.EnvoyFilter_Patch_INSERT_BEFORE, l, tcpProxy, object{"name": stock[filter].name, "typed_config": object{
			"@type": typedStruct, "type_url": stock[filter].message, "value": object{"stat_prefix": statPrefix},
		}})
	}
}
