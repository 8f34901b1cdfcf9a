package envoyfilter

import (
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/meltemi-mesh/meltemi/control/ir"
)

// loopbacks are the loopback listeners, once per proxy: one EnvoyFilter per
// namespace and kind of proxies, of the same name and content whichever service
// brings it, and for the proxies of that namespace only, even if it is Istio's
// root namespace.
func (g *generator) loopbacks() {
	namespaces := map[string]bool{}
	for _, c := range g.s.Clients {
		namespaces[c.Namespace] = true
	}
	if g.s.Server != nil {
		namespaces[g.s.Server.Namespace] = true
	}
	for _, w := range g.s.Gateways {
		namespaces[w.Namespace] = true
	}
	for _, ns := range slices.Sorted(maps.Keys(namespaces)) {
		f := g.add("loopback", suffixed("meltemi-loopback", kind(g.s)), ns, nil)
		// In any context: istiod then adds it where it builds a sidecar's outbound
		// listeners and a gateway's, once for each proxy.
		g.patch(f, networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_Patch_ADD,
			&networking.EnvoyFilter_EnvoyConfigObjectMatch{Context: networking.EnvoyFilter_ANY}, g.loopback())
	}
}

// kind names the proxies that have the shared object, where they are told by
// other signs than the usual ones: services that use others in one namespace are
// not to replace each other's loopback listener.
func kind(s *ir.Service) string {
	if s.ProxyVersion == ir.DefaultProxyVersion && maps.Equal(s.ProxyMetadata, ir.DefaultProxyMetadata()) {
		return ""
	}
	var signs strings.Builder
	for _, k := range slices.Sorted(maps.Keys(s.ProxyMetadata)) {
		fmt.Fprintf(&signs, "%q=%q\n", k, s.ProxyMetadata[k])
	}
	fmt.Fprintf(&signs, "%q", s.ProxyVersion)
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(signs.String())))
}

// loopback is the listener on which Meltemi's upstream connections are born.
// What its fields are for is told in examples/dubbo/envoy.yaml.
func (g *generator) loopback() object {
	address := object{"path": g.s.Socket}
	if g.s.Socket[0] == '/' {
		address["mode"] = 0o600
	}
	return object{
		"name":                                       "meltemi-loopback",
		"address":                                    object{"pipe": address},
		"traffic_direction":                          "OUTBOUND",
		"ignore_global_conn_limit":                   true,
		"bypass_overload_manager":                    true,
		"per_connection_buffer_limit_bytes":          1 << 20,
		"listener_filters_timeout":                   "0.5s",
		"max_connections_to_accept_per_socket_event": 1,
		"connection_balance_config":                  object{"exact_balance": object{}},
		"listener_filters": []any{
			object{
				"name": "envoy.filters.listener.proxy_protocol",
				"typed_config": object{
					"@type": types + "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
					"rules": []any{
						object{"tlv_type": 0xE0, "on_tlv_present": object{"metadata_namespace": "meltemi", "key": "cluster"}},
						object{"tlv_type": 0xE1, "on_tlv_present": object{"metadata_namespace": "meltemi", "key": "token"}},
					},
				},
			},
			// For server.preserveSource. Connections without a source of their own
			// say that they came to port 1. The mark is the one by which Istio's
			// TPROXY rules know the proxy's own packets.
			object{
				"name": "envoy.filters.listener.original_src",
				"typed_config": object{
					"@type": types + "envoy.extensions.filters.listener.original_src.v3.OriginalSrc", "mark": 1337,
				},
				"filter_disabled": object{"destination_port_range": object{"start": 1, "end": 2}},
			},
		},
		"filter_chains": []any{object{"filters": []any{
			object{"name": "meltemi.carrier", "typed_config": object{
				"@type":                 moduleType,
				"dynamic_module_config": g.module(),
				"filter_name":           "carrier",
				"filter_config":         object{"@type": types + "google.protobuf.Struct", "value": object{"path": g.s.Socket}},
			}},
			object{"name": tcpProxy, "typed_config": object{
				"@type": tcpType, "stat_prefix": "meltemi", "cluster": "none",
				"idle_timeout": "0s", "max_connect_attempts": 2,
			}},
		}}},
	}
}
