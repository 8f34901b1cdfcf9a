// Package loopback describes the listener on which Meltemi's upstream connections are
// born: what is generated, tested and measured has it from here, and a test holds what
// is written by hand to it. What its fields are for is told in
// examples/dubbo/envoy.yaml.
package loopback

const (
	types = "type.googleapis.com/envoy.extensions.filters."
	// The port that connections say they came to: without a source of their own, and with
	// one. Tunnels may have any other instead, the one that their client wanted.
	plainPort  = 1
	sourcePort = 2
)

// Listener is a loopback listener.
type Listener struct {
	// Module is the name of the shared object.
	Module string
	// Socket is a path, or the name of an abstract socket, with @ before it. It is
	// never empty.
	Socket string
	// Sources has servers see the addresses of clients (upstream.original_src).
	Sources bool
	// Mark is that of the packets that have such addresses, 0 for none.
	Mark uint32
	// Admin is where the process tells about itself: unix:/PATH or IP:PORT; "": nowhere.
	Admin string
	// Push is where its metrics are pushed to by OTLP, in the JSON form of the carrier's
	// metrics.otlp; nil: nowhere.
	Push map[string]any
	// Workloads has it told which workload and service each connection leads to, as far
	// as Istio says so of endpoints and clusters: for Istio's metrics.
	Workloads bool
	// Tunnels has the listener made of Envoy's own filters alone, for the golang filter:
	// it leads each connection to the cluster, and of one that is ORIGINAL_DST to the
	// address, that TLVs before its bytes name. Module, Admin, Push and Workloads are
	// for the carrier filter, which it lacks; so whoever can connect is served.
	Tunnels bool
	// Connect has tunnels name their cluster by HTTP's CONNECT instead, whose answer tells
	// which host they lead to, or why there is none.
	Connect bool
}

// The headers of Connect: of the request the cluster; of its answer the host, and Envoy's
// response flags if it failed.
const (
	ClusterHeader = "x-meltemi-cluster"
	HostHeader    = "x-meltemi-host"
	FlagsHeader   = "x-meltemi-flags"
)

// The types of the TLVs in the header of the PROXY protocol by which connections to the
// listener begin, and the keys of the namespace meltemi as which filters find them.
const (
	ClusterTLV     = 0xE0 // "cluster": the name of one
	TokenTLV       = 0xE1 // "token": proves to the carrier filter who connects
	DestinationTLV = 0xE2 // "destination": IP:PORT, of those that have a source; else the header's counts
)

// Config returns the listener (envoy.config.listener.v3.Listener) in its JSON form, of
// which the caller may change what it likes. It is what any Envoy has: one per process,
// but for the fields of l always the same.
func (l Listener) Config() map[string]any {
	pipe := object{"path": l.Socket}
	if l.Socket[0] == '/' {
		pipe["mode"] = 0o600 // its owner's
	}
	return object{
		"name":                                       "meltemi-loopback",
		"address":                                    object{"pipe": pipe},
		"traffic_direction":                          "OUTBOUND",
		"ignore_global_conn_limit":                   true,
		"bypass_overload_manager":                    true,
		"per_connection_buffer_limit_bytes":          1 << 20,
		"listener_filters_timeout":                   "0.5s",
		"max_connections_to_accept_per_socket_event": 1,
		"connection_balance_config":                  object{"exact_balance": object{}},
		"listener_filters":                           l.listenerFilters(),
		"filter_chains":                              []any{object{"filters": l.filters()}},
	}
}

type object = map[string]any

func (l Listener) listenerFilters() []any {
	metadata := func(tlv int, key string) object {
		return object{"tlv_type": tlv, "on_tlv_present": object{"metadata_namespace": "meltemi", "key": key}}
	}
	rules := []any{metadata(ClusterTLV, "cluster"), metadata(TokenTLV, "token")}
	if l.Tunnels {
		rules = []any{metadata(ClusterTLV, "cluster")}
		if l.Sources {
			rules = append(rules, metadata(DestinationTLV, "destination"))
		}
	}
	filters := []any{object{"name": "envoy.filters.listener.proxy_protocol", "typed_config": object{
		"@type": types + "listener.proxy_protocol.v3.ProxyProtocol",
		"rules": rules,
	}}}
	if l.Sources {
		source := object{"@type": types + "listener.original_src.v3.OriginalSrc"}
		if l.Mark != 0 {
			source["mark"] = l.Mark
		}
		disabled := port(plainPort)
		if l.Tunnels {
			disabled = object{"not_match": port(sourcePort)}
		}
		filters = append(filters, object{
			"name": "envoy.filters.listener.original_src", "typed_config": source,
			"filter_disabled": disabled,
		})
	}
	return filters
}

// port matches connections that came to it.
func port(n int) object {
	return object{"destination_port_range": object{"start": n, "end": n + 1}}
}

func (l Listener) filters() []any {
	if l.Tunnels {
		return l.tunnels()
	}
	if l.Workloads {
		return []any{l.carrier(), workloads(), tcpProxy()}
	}
	return []any{l.carrier(), tcpProxy()}
}

// tunnels are the filters of a listener that is of Envoy's own alone: what the TLVs say is
// done. The objects are those of which Envoy knows the factories since 1.28, as it has the
// filter.
func (l Listener) tunnels() []any {
	state := func(key, from string) object {
		return object{
			"object_key": key, "skip_if_empty": true,
			"format_string": object{"omit_empty_values": true, "text_format_source": object{"inline_string": "%DYNAMIC_METADATA(meltemi:" + from + ")%"}},
		}
	}
	var objects []any
	end := connect()
	if !l.Connect {
		objects = append(objects, state("envoy.tcp_proxy.cluster", "cluster"))
		end = tcpProxy()
	}
	if l.Sources { // else the header says it
		objects = append(objects, state("envoy.network.transport_socket.original_dst_address", "destination"))
	}
	if len(objects) == 0 {
		return []any{end}
	}
	return []any{object{"name": "meltemi.destinations", "typed_config": object{
		"@type": types + "network.set_filter_state.v3.Config", "on_new_connection": objects,
	}}, end}
}

// connect leads to the cluster that a CONNECT names.
func connect() object {
	header := func(key, value string) object { return object{"header": object{"key": key, "value": value}} }
	failed := object{
		"filter": object{"status_code_filter": object{"comparison": object{
			"op": "GE", "value": object{"default_value": 400, "runtime_key": "meltemi.none"},
		}}},
		"headers_to_add": []any{header(FlagsHeader, "%RESPONSE_FLAGS%")},
	}
	// With a delayed_close_timeout, by default a second, the end of a server's connection comes
	// so late, until when the tunnel is taken to be good; and what came before is lost if for so
	// long nobody has read. That pause is for clients by TCP, which a reset could reach before
	// it: what a unix socket holds stays.
	return object{"name": "meltemi.connect", "typed_config": object{
		"@type":       types + "network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix": "meltemi", "codec_type": "HTTP1", "generate_request_id": false,
		"stream_idle_timeout": "0s", "delayed_close_timeout": "0s", "common_http_protocol_options": object{"idle_timeout": "0s"},
		"upgrade_configs":    []any{object{"upgrade_type": "CONNECT"}},
		"local_reply_config": object{"mappers": []any{failed}},
		"http_filters": []any{object{"name": "envoy.filters.http.router", "typed_config": object{
			"@type": types + "http.router.v3.Router", "dynamic_stats": false, "suppress_envoy_headers": true,
		}}},
		"route_config": object{"virtual_hosts": []any{object{
			"name": "meltemi", "domains": []any{"*"},
			"response_headers_to_add": []any{header(HostHeader, "%UPSTREAM_REMOTE_ADDRESS%")},
			"routes": []any{object{"match": object{"connect_matcher": object{}}, "route": object{
				"cluster_header": ClusterHeader, "timeout": "0s",
				"upgrade_configs": []any{object{"upgrade_type": "CONNECT", "connect_config": object{}}},
			}}},
		}}},
	}}
}

// workloads notes what tcp_proxy has found when the first request is sent, for the
// carrier filter.
func workloads() object {
	state := func(key, format string) object {
		return object{
			"object_key": key, "factory_key": "envoy.string", "skip_if_empty": true,
			"format_string": object{"omit_empty_values": true, "text_format_source": object{"inline_string": format}},
		}
	}
	return object{"name": "meltemi.workloads", "typed_config": object{
		"@type": types + "network.set_filter_state.v3.Config",
		"on_downstream_data": []any{
			state("meltemi.workload", "%UPSTREAM_METADATA(istio:workload)%"),
			state("meltemi.services", "%CLUSTER_METADATA(istio:services)%"),
		},
	}}
}

// carrier is Meltemi's own filter in it.
func (l Listener) carrier() object {
	config := object{"path": l.Socket}
	if l.Admin != "" {
		config["admin_address"] = l.Admin
	}
	if l.Push != nil {
		config["metrics"] = object{"otlp": l.Push}
	}
	return object{"name": "meltemi.carrier", "typed_config": object{
		"@type":                 types + "network.dynamic_modules.v3.DynamicModuleNetworkFilter",
		"dynamic_module_config": object{"name": l.Module, "do_not_close": true, "metrics_namespace": "meta_protocol"},
		"filter_name":           "carrier",
		"filter_config": object{
			"@type": "type.googleapis.com/google.protobuf.Struct", "value": config,
		},
	}}
}

func tcpProxy() object {
	return object{"name": "envoy.filters.network.tcp_proxy", "typed_config": object{
		"@type": types + "network.tcp_proxy.v3.TcpProxy", "stat_prefix": "meltemi",
		"cluster":      "none", // a filter before it says which
		"idle_timeout": "0s", "max_connect_attempts": 2,
	}}
}
