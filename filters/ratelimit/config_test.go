package ratelimit_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
)

// TestTheCxxProxysConfiguration is that of its own test of the global limit.
func TestTheCxxProxysConfiguration(t *testing.T) {
	require.Empty(t, filter.Check([]byte(`{"applicationProtocol": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"},
		"statPrefix": "outbound|9090||thrift-sample-server.thrift.svc.cluster.local",
		"metaProtocolFilters": [{"name": "aeraki.meta_protocol.filters.ratelimit", "config": {
			"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ratelimit.v1alpha.RateLimit",
			"match": {"metadata": [{"name": "method", "exact_match": "sayHello"}]}, "domain": "production", "failure_mode_deny": true,
			"descriptors": [{"property": "method", "descriptor_key": "method"}],
			"rate_limit_service": {"grpc_service": {"envoy_grpc": {"cluster_name": "ratelimit"}}}}},
			{"name": "aeraki.meta_protocol.filters.router"}],
		"routeConfig": {"routes": [{"name": "default", "match": {"metadata": [{"name": "method", "exact_match": "sayHello"}]},
			"route": {"cluster": "outbound|9090||thrift-sample-server.thrift.svc.cluster.local"}}]}}`)))
}

func TestWhatIsRefused(t *testing.T) {
	const at = "meta_protocol_filters[1].config."
	limit := func(l string) string { return service + `, "rate_limits": [` + l + `]` }
	action := func(a string) string { return limit(`{"actions": [` + a + `]}`) }
	for config, want := range map[string]string{
		byMethod + `, "timeout": "-1s"`: "timeout: must be at least 0s, is -1s",
		service:                         "descriptors: must be between 1 and 16, together with rate_limits, are 0",
		service + `, "descriptors": [{"property": "p"}]`:       "descriptors[0].descriptor_key: required",
		service + `, "descriptors": [{"descriptor_key": "k"}]`: "descriptors[0].property: required",
		`"rate_limit_service": {"grpc_service": {"envoy_grpc": {"cluster_name": "c"}}}, "descriptors": [{"property": "p", "descriptor_key": "k"}]`:               "domain: required",
		`"domain": "d", "descriptors": [{"property": "p", "descriptor_key": "k"}]`:                                                                               "rate_limit_service: required",
		`"domain": "d", "descriptors": [{"property": "p", "descriptor_key": "k"}], "rate_limit_service": {}`:                                                     "rate_limit_service.grpc_service: required",
		`"domain": "d", "descriptors": [{"property": "p", "descriptor_key": "k"}], "rate_limit_service": {"transport_api_version": "V2", "grpc_service": {}}`:    "rate_limit_service.transport_api_version: want V3, is V2",
		`"domain": "d", "descriptors": [{"property": "p", "descriptor_key": "k"}], "rate_limit_service": {"grpc_service": {"google_grpc": {"target_uri": "h"}}}`: `rate_limit_service.grpc_service.google_grpc.target_uri: want host:port or unix:PATH, is "h"`,
		byMethod + `, "match": {"metadata": [{"name": "m", "safe_regex_match": {"regex": "("}}]}`:                                                                "match.metadata[0]",
		byMethod + `, "filter_enabled": {}`:                                     "filter_enabled.default_value: required",
		byMethod + `, "filter_enforced": {"default_value": {"numerator": 101}}`: "filter_enforced.default_value.numerator: must be at most 100, is 101",
		byMethod + `, "rate_limited_response": {"code": 20}`:                    "rate_limited_response.code",
		byMethod + `, "hits_addend": {"number": 0}`:                             "hits_addend.number: must be between 1 and 1000000000, is 0",
		byMethod + `, "hits_addend": {}`:                                        "hits_addend: want number or property",
		limit(`{}`):                                                             "rate_limits[0].actions: must be between 1 and 16, are 0",
		action(`{}`):                                                            "rate_limits[0].actions[0]: want property, generic_key, remote_address or match",
		action(`{"property": {}}`):                                              "rate_limits[0].actions[0].property.name: required",
		action(`{"generic_key": {}}`):                                           "rate_limits[0].actions[0].generic_key.descriptor_value: required",
		action(`{"match": {"descriptor_value": "v"}}`):                          "rate_limits[0].actions[0].match.match: required",
		action(`{"remote_address": {"v4_prefix_mask_len": 33}}`):                "rate_limits[0].actions[0].remote_address.v4_prefix_mask_len: must be between 0 and 32, is 33",
		action(`{"property": {"name": "p", "skip_if_absent": true, "default_value": "d"}}`): "rate_limits[0].actions[0].property.skip_if_absent: goes not with default_value",
		limit(`{"actions": [{"remote_address": {}}], "limit": {"requests_per_unit": 1}}`):   "rate_limits[0].limit.unit: want SECOND to YEAR, is UNKNOWN",
		limit(`{"actions": [{"remote_address": {}}], "hits_addend": {"property": ""}}`):     "rate_limits[0].hits_addend.property: required",
	} {
		errs := filter.Check([]byte(listener(config, toServer)))
		require.NotEmpty(t, errs, config)
		require.Contains(t, errs[0].Error(), at+want, config)
	}
	errs := filter.Check([]byte(listener(byMethod, `{"route": {"cluster": "c"}, "typed_per_filter_config": {"aeraki.meta_protocol.filters.ratelimit": {
		"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ratelimit.v1alpha.RateLimitPerRoute", "rate_limits": [{}]}}}`)))
	require.Len(t, errs, 1)
	require.Contains(t, errs[0].Error(), "route_config.routes[0].typed_per_filter_config[aeraki.meta_protocol.filters.ratelimit].rate_limits[0].actions: must be")
}
