// Package loopback describes the listener on which Meltemi's upstream connections are
// born: what is generated, tested and measured has it from here, and a test holds what
// is written by hand to it. What its fields are for is told in
// examples/dubbo/envoy.yaml.
package loopback

const (
	types     = "type.googleapis.com/envoy.extensions.filters."
	plainPort = 1 // what connections without a source of their own say they came to
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
}

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
	filters := []any{object{"name": "envoy.filters.listener.proxy_protocol", "typed_config": object{
		"@type": types + "listener.proxy_protocol.v3.ProxyProtocol",
		"rules": []any{metadata(0xE0, "cluster"), metadata(0xE1, "token")},
	}}}
	if l.Sources {
		source := object{"@type": types + "listener.original_src.v3.OriginalSrc"}
		if l.Mark != 0 {
			source["mark"] = l.Mark
		}
		filters = append(filters, object{
			"name": "envoy.filters.listener.original_src", "typed_config": source,
			"filter_disabled": object{"destination_port_range": object{"start": plainPort, "end": plainPort + 1}},
		})
	}
	return filters
}

func (l Listener) filters() []any {
	if l.Workloads {
		return []any{l.carrier(), workloads(), tcpProxy()}
	}
	return []any{l.carrier(), tcpProxy()}
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
		"cluster":      "none", // the carrier filter says which
		"idle_timeout": "0s", "max_connect_attempts": 2,
	}}
}
