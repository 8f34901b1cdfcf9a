package config

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
)

const rdsBase = `{"stat_prefix": "t", "protocol": {"name": "d", "codec": {"name": "c"}}, "rds": `

// api is an rds with a service of gRPC.
func api(service string) string {
	return `{"route_config_name": "r", "config_source": {"api_config_source": {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [` + service + `]}}}`
}

func TestRDS(t *testing.T) {
	for cfg, want := range map[string]RDS{
		api(`{"envoy_grpc": {"cluster_name": "xds"}}`): {Service: grpcclient.Target{Cluster: "xds"}},
		api(`{"envoy_grpc": {"cluster_name": "xds", "authority": "a"}, "timeout": "1s", "initial_metadata": [{"key": "K", "value": "v"}]}`): {
			Service: grpcclient.Target{Cluster: "xds", Authority: "a", Metadata: []string{"k", "v"}, Timeout: time.Second},
		},
		api(`{"google_grpc": {"target_uri": "10.0.0.1:15010", "stat_prefix": "s"}}`):                                                          {Service: grpcclient.Target{Address: "10.0.0.1:15010"}},
		api(`{"google_grpc": {"target_uri": "dns:///[::1]:15010"}}`):                                                                          {Service: grpcclient.Target{Address: "[::1]:15010"}},
		api(`{"google_grpc": {"target_uri": "unix:/run/xds.sock"}}`):                                                                          {Service: grpcclient.Target{Address: "unix:/run/xds.sock"}},
		`{"route_config_name": "r", "config_source": {"path": "/etc/r.yaml"}}`:                                                                {File: "/etc/r.yaml"},
		`{"route_config_name": "r", "config_source": {"path_config_source": {"path": "/etc/r.yaml", "watched_directory": {"path": "/etc"}}}}`: {File: "/etc/r.yaml"},
		// As the C++ proxy's own test of it, and Aeraki have it.
		`{"route_config_name": "r", "config_source": {"resource_api_version": "V3", "initial_fetch_timeout": "0s", "api_config_source": {"api_type": "DELTA_GRPC",
			"transport_api_version": "V3", "request_timeout": "10s", "set_node_on_first_message_only": true,
			"grpc_services": [{"envoy_grpc": {"cluster_name": "aeraki-xds"}}]}}}`: {Service: grpcclient.Target{Cluster: "aeraki-xds"}, Delta: true, NodeOnce: true, FetchTimeout: -1},
	} {
		p, err := Load([]byte(rdsBase + cfg + "}"))
		require.NoError(t, err, cfg)
		want.Name, want.TypeURL, want.Node, want.Key = "r", EnvoyRoutes, p.RDS.Node, p.RDS.Key
		want.FetchTimeout = 15*time.Second + want.FetchTimeout*15*time.Second
		require.Equal(t, want, *p.RDS, cfg)
		require.NotNil(t, p.RDS.Node)
		require.NotEmpty(t, p.RDS.Key)
		require.Equal(t, "r", p.TableName())
		require.True(t, p.SameRoutes(p))
	}
}

// TestWhatSharesASubscription is all that would ask the same.
func TestWhatSharesASubscription(t *testing.T) {
	load := func(rds string) *Proxy {
		p, err := Load([]byte(rdsBase + rds + "}"))
		require.NoError(t, err)
		return p
	}
	const file = `{"route_config_name": "r", "config_source": {"path": "/r"}}`
	a := load(file)
	require.True(t, a.SameRoutes(load(file)))
	require.True(t, a.SameRoutes(load(`{"route_config_name": "r", "config_source": {"path": "/r", "initial_fetch_timeout": "1s"}}`)))
	for _, other := range []string{
		`{"route_config_name": "s", "config_source": {"path": "/r"}}`,
		`{"route_config_name": "r", "config_source": {"path": "/s"}}`,
		`{"route_config_name": "r", "config_source": {"path": "/r"}, "node": {"id": "n"}}`,
		`{"route_config_name": "r", "config_source": {"path": "/r"}, "type_url": "` + ProxyRoutes + `"}`,
	} {
		require.False(t, a.SameRoutes(load(other)), other)
	}
	inline, err := Load([]byte(good))
	require.NoError(t, err)
	require.False(t, a.SameRoutes(inline))
	require.False(t, inline.SameRoutes(a))
	require.True(t, inline.SameRoutes(inline))
}

func TestAnRDSThatIsRefused(t *testing.T) {
	const source = "rds.config_source"
	const service = source + ".api_config_source.grpc_services[0]"
	of := func(source string) string { return `{"route_config_name": "r", "config_source": ` + source + `}` }
	for cfg, want := range map[string]string{
		`{"config_source": {"path": "/r"}}`: "rds.route_config_name: required",
		`{"route_config_name": "r"}`:        source + ": required: api_config_source or path_config_source",
		of(`{}`):                            source + ": required: api_config_source or path_config_source",
		of(`{"ads": {}}`):                   source + ".ads: not supported",
		of(`{"self": {}}`):                  source + ".self: not supported",
		of(`{"path": ""}`):                  source + ".path: required",
		of(`{"path_config_source": {}}`):    source + ".path_config_source.path: required",
		of(`{"path": "/r", "initial_fetch_timeout": "-1s"}`):                             source + ".initial_fetch_timeout: must be at least 0s, is -1s",
		of(`{"path": "/r", "resource_api_version": "V2"}`):                               source + ".resource_api_version: want V3, is V2",
		of(`{"path": "/r", "authorities": [{"name": "a"}]}`):                             source + ".authorities: not supported",
		of(`{"api_config_source": {"api_type": "REST"}}`):                                source + ".api_config_source.api_type: want GRPC or DELTA_GRPC, is REST",
		of(`{"api_config_source": {"api_type": "AGGREGATED_GRPC"}}`):                     source + ".api_config_source.api_type: want GRPC",
		of(`{"api_config_source": {"api_type": "GRPC"}}`):                                source + ".api_config_source.grpc_services: want one, has 0",
		of(`{"api_config_source": {"api_type": "GRPC", "transport_api_version": "V2"}}`): source + ".api_config_source.transport_api_version: want V3, is V2",
		of(`{"api_config_source": {"refresh_delay": "1s"}}`):                             source + ".api_config_source.refresh_delay: not supported",
		of(`{"api_config_source": {"cluster_names": ["c"]}}`):                            source + ".api_config_source.cluster_names: not supported",
		of(`{"api_config_source": {"rate_limit_settings": {}}}`):                         source + ".api_config_source.rate_limit_settings: not supported",
		api(`{}`):                 service + ": want envoy_grpc or google_grpc",
		api(`{"envoy_grpc": {}}`): service + ".envoy_grpc.cluster_name: required",
		api(`{"envoy_grpc": {"cluster_name": "c", "retry_policy": {}}}`):                              service + ".envoy_grpc.retry_policy: not supported",
		api(`{"envoy_grpc": {"cluster_name": "c"}, "retry_policy": {}}`):                              service + ".retry_policy: not supported",
		api(`{"google_grpc": {}}`):                                                                    service + ".google_grpc.target_uri: required",
		api(`{"google_grpc": {"target_uri": "host"}}`):                                                service + `.google_grpc.target_uri: want host:port or unix:PATH, is "host"`,
		api(`{"google_grpc": {"target_uri": "unix:"}}`):                                               service + ".google_grpc.target_uri: want host:port",
		api(`{"google_grpc": {"target_uri": "h:1", "channel_credentials": {"ssl_credentials": {}}}}`): service + ".google_grpc.channel_credentials: not supported",
		api(`{"envoy_grpc": {"cluster_name": "c"}, "initial_metadata": [{"value": "v"}]}`):            service + ".initial_metadata[0].key: required",
		`{"route_config_name": "r", "config_source": {"path": "/r"}, "type_url": "x"}`:                "rds.type_url: want type.googleapis.com/envoy.config.route.v3.RouteConfiguration or type",
	} {
		_, err := Load([]byte(rdsBase + cfg + "}"))
		require.ErrorContains(t, err, `stat_prefix "t": `+want, cfg)
	}
}
