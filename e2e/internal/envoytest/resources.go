package envoytest

import (
	"maps"

	"github.com/meltemi-mesh/meltemi/control/loopback"
)

// Resource is an xDS resource in its JSON form.
type Resource map[string]any

// M is a JSON object.
type M = map[string]any

const (
	types             = "type.googleapis.com/"
	initialEndpoints  = "-initial-endpoints"
	networkExtensions = types + "envoy.extensions.filters.network."
)

func socketAddress(host string, port int) M {
	return M{"socket_address": M{"address": host, "port_value": port}}
}

// Endpoint of a cluster, at 127.0.0.1 unless Host is set, or at a Unix socket.
type Endpoint struct {
	Pipe     string
	Host     string
	Port     int
	Weight   int
	Priority int
	// HealthPort is where health checks go; 0: to Port.
	HealthPort int
	// Unhealthy endpoints get no traffic.
	Unhealthy bool
	// HashKey is what consistent hashing goes by, "" for the address.
	HashKey string
	// Workload is what Istio says of it.
	Workload string
}

// At makes endpoints at ports of 127.0.0.1.
func At(ports ...int) []Endpoint {
	endpoints := make([]Endpoint, len(ports))
	for i, p := range ports {
		endpoints[i].Port = p
	}
	return endpoints
}

func assignment(cluster string, endpoints []Endpoint) Resource {
	localities := []any{}
	for priority := 0; ; priority++ {
		lb, more := []any{}, false
		for _, ep := range endpoints {
			more = more || ep.Priority > priority
			if ep.Priority != priority {
				continue
			}
			host := ep.Host
			if host == "" {
				host = "127.0.0.1"
			}
			endpoint := M{"address": socketAddress(host, ep.Port)}
			if ep.Pipe != "" {
				endpoint["address"] = M{"pipe": M{"path": ep.Pipe}}
			}
			if ep.HealthPort != 0 {
				endpoint["health_check_config"] = M{"port_value": ep.HealthPort}
			}
			m := M{"endpoint": endpoint}
			if ep.Weight > 0 {
				m["load_balancing_weight"] = ep.Weight
			}
			metadata := M{}
			if ep.HashKey != "" {
				metadata["envoy.lb"] = M{"hash_key": ep.HashKey}
			}
			if ep.Workload != "" {
				metadata["istio"] = M{"workload": ep.Workload}
			}
			if len(metadata) > 0 {
				m["metadata"] = M{"filter_metadata": metadata}
			}
			if ep.Unhealthy {
				m["health_status"] = "UNHEALTHY"
			}
			lb = append(lb, m)
		}
		localities = append(localities, M{"priority": priority, "lb_endpoints": lb})
		if !more {
			break
		}
	}
	return Resource{
		"@type":        types + "envoy.config.endpoint.v3.ClusterLoadAssignment",
		"cluster_name": cluster, "endpoints": localities,
	}
}

// Cluster is a cluster whose endpoints SetEndpoints changes.
func Cluster(name string, endpoints ...Endpoint) Resource {
	return Resource{
		"@type": types + "envoy.config.cluster.v3.Cluster", "name": name, "type": "EDS",
		"connect_timeout": "1s", "eds_cluster_config": M{}, initialEndpoints: endpoints,
	}
}

// Told returns a copy of a cluster whose load balancer is Meltemi's, so that it tells its
// hosts.
func (r Resource) Told() Resource { return r.ToldBy("meltemi") }

// ToldBy is Told with another module that has Meltemi in it.
func (r Resource) ToldBy(module string) Resource {
	return r.With(M{"load_balancing_policy": M{"policies": []any{M{"typed_extension_config": M{
		"name": "envoy.load_balancing_policies.dynamic_modules", "typed_config": M{
			"@type":                 types + "envoy.extensions.load_balancing_policies.dynamic_modules.v3.DynamicModulesLoadBalancerConfig",
			"dynamic_module_config": M{"name": module, "do_not_close": true},
			"lb_policy_name":        "hosts",
		},
	}}}}})
}

// With returns a copy of r with other values of some fields.
func (r Resource) With(fields M) Resource {
	c := maps.Clone(r)
	maps.Copy(c, fields)
	return c
}

// Listener is a TCP listener on a port of 127.0.0.1 that the kernel chooses.
func Listener(name string, filters ...M) Resource {
	return Resource{
		"@type": types + "envoy.config.listener.v3.Listener", "name": name,
		"address":       socketAddress("127.0.0.1", 0),
		"filter_chains": []any{M{"filters": filters}},
	}
}

// On returns a copy of a listener that is bound to that port.
func (r Resource) On(port int) Resource {
	return r.With(M{"address": socketAddress("127.0.0.1", port)})
}

// TCPProxy is Envoy's own filter that forwards bytes.
func TCPProxy(cluster string) M {
	return M{"name": "envoy.filters.network.tcp_proxy", "typed_config": M{
		"@type": networkExtensions + "tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp", "cluster": cluster,
	}}
}

// Module is a filter of a dynamic module, configured by a Struct.
func Module(module, filter string, config M) M {
	return M{"name": module + "." + filter, "typed_config": M{
		"@type":                 networkExtensions + "dynamic_modules.v3.DynamicModuleNetworkFilter",
		"dynamic_module_config": M{"name": module, "do_not_close": true, "metrics_namespace": "meta_protocol"},
		"filter_name":           filter,
		"filter_config":         M{"@type": types + "google.protobuf.Struct", "value": config},
		"terminal_filter":       filter == "meta_protocol_proxy",
	}}
}

// Proxy is Meltemi's filter of client connections.
func Proxy(config M) M { return Module("meltemi", "meta_protocol_proxy", config) }

// Discovered is a filter whose configuration is an Extension of that name.
func Discovered(name string) M {
	return M{"name": name, "config_discovery": M{
		"type_urls": []any{networkExtensions + "dynamic_modules.v3.DynamicModuleNetworkFilter"},
	}}
}

// Extension is the configuration of a discovered filter.
func Extension(name string, filter M) M {
	return M{"@type": types + "envoy.config.core.v3.TypedExtensionConfig", "name": name, "typed_config": filter["typed_config"]}
}

// Dubbo is a configuration of Proxy.
func Dubbo(statPrefix string, routes ...any) M { return Protocol("dubbo", statPrefix, routes...) }

// Protocol is a configuration of Proxy with the codec of that name.
func Protocol(codec, statPrefix string, routes ...any) M {
	return M{
		"stat_prefix":  statPrefix,
		"protocol":     M{"name": codec, "codec": M{"name": "aeraki.meta_protocol.codec." + codec}},
		"route_config": M{"name": statPrefix, "routes": routes},
	}
}

// Route sends what has all the metadata, given as exact values, to a cluster.
func Route(cluster string, metadata map[string]string) M {
	matchers := []any{}
	for k, v := range metadata {
		matchers = append(matchers, M{"name": k, "string_match": M{"exact": v}})
	}
	return M{"match": M{"metadata": matchers}, "route": M{"cluster": cluster}}
}

// Loopback is the listener on which Meltemi's upstream connections are born.
func Loopback(socket string) Resource { return LoopbackOf("meltemi", socket) }

// LoopbackOf is Loopback for another shared object that links Meltemi.
func LoopbackOf(module, socket string) Resource {
	return typed(loopback.Listener{Module: module, Socket: socket})
}

// LoopbackWithSources is Loopback for upstream.original_src.
func LoopbackWithSources(socket string) Resource {
	return typed(loopback.Listener{Module: "meltemi", Socket: socket, Sources: true})
}

// LoopbackWithAdmin is Loopback for a process that tells about itself at an address.
func LoopbackWithAdmin(socket, admin string) Resource {
	return typed(loopback.Listener{Module: "meltemi", Socket: socket, Admin: admin})
}

// LoopbackWithPush is Loopback for a process that pushes its metrics by OTLP.
func LoopbackWithPush(socket string, otlp M) Resource {
	return typed(loopback.Listener{Module: "meltemi", Socket: socket, Push: otlp})
}

// LoopbackWithWorkloads is LoopbackWithAdmin that notes what Envoy knows of servers.
func LoopbackWithWorkloads(socket, admin string) Resource {
	return typed(loopback.Listener{Module: "meltemi", Socket: socket, Admin: admin, Workloads: true})
}

// LoopbackOfTunnels is the loopback listener of the golang filter, as Istio's proxies get it.
func LoopbackOfTunnels(socket string, connect bool) Resource {
	return typed(loopback.Listener{Socket: socket, Tunnels: true, Connect: connect, Sources: true})
}

func typed(l loopback.Listener) Resource {
	return Resource(l.Config()).With(M{"@type": types + "envoy.config.listener.v3.Listener"})
}
