package filter_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	"github.com/meltemi-mesh/meltemi/filter"
)

// TestTheCPlusPlusProxysConfigurationsLoad: those of its own tests of RDS, of hashing and
// of mirrors, in the words that it has for them. (That of RDS has its one service without a list
// around it, as old parsers let pass.)
func TestTheCPlusPlusProxysConfigurationsLoad(t *testing.T) {
	const service = `outbound|20880||org.apache.dubbo.samples.basic.api.demoservice`
	for name, config := range map[string]string{
		"rds": `{"statPrefix": "` + service + `", "application_protocol": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"},
			"metaProtocolFilters": [{"name": "aeraki.meta_protocol.filters.router"}],
			"rds": {"route_config_name": "test", "config_source": {"resource_api_version": "V3", "api_config_source": {"api_type": "GRPC",
				"transport_api_version": "V3", "request_timeout": "10s", "grpc_services": [{"envoy_grpc": {"cluster_name": "aeraki_xds_server"}}]}}}}`,
		"hash_policy": `{"statPrefix": "outbound|9090||thrift-sample-server.thrift.svc.cluster.local", "application_protocol": "thrift",
			"codec": {"name": "aeraki.meta_protocol.codec.thrift"}, "metaProtocolFilters": [{"name": "aeraki.meta_protocol.filters.router"}],
			"routeConfig": {"routes": [{"name": "default", "route": {"cluster": "outbound|9090||thrift-sample-server.thrift.svc.cluster.local", "hash_policy": ["method"]}}]}}`,
		"dubbo": `{"statPrefix": "` + service + `", "application_protocol": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"},
			"metaProtocolFilters": [{"name": "aeraki.meta_protocol.filters.router"}],
			"routeConfig": {"routes": [{"name": "default", "match": {"metadata": [
				{"name": "interface", "exact_match": "org.apache.dubbo.samples.basic.api.DemoService"}, {"name": "method", "exact_match": "sayHello"}, {"name": "foo", "exact_match": "bar"}]},
				"route": {"cluster": "` + service + `", "request_mirror_policies": [{"cluster": "` + service + `.mirror", "runtime_fraction": {"default_value": {"numerator": 50}}}]}}]}}`,
	} {
		require.Empty(t, filter.Check([]byte(config)), name)
	}
}
