package protos_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol/codec"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/admin/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/istio_stats/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/local_ratelimit/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/metadata_exchange/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/rate_limit_quota/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/ratelimit/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/router/v1alpha"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// The messages of the C++ MetaProtocol Proxy: what serves its users' configs
// must not move. Fields of ours start at 100 and are not listed.
const inherited = `
aeraki.meta_protocol_proxy.v1alpha.MetaProtocolProxy stat_prefix=1 application_protocol=2 rds=3 route_config=4 codec=5 meta_protocol_filters=6* tracing=7 access_log=8* idle_timeout=11 protocol=12
aeraki.meta_protocol_proxy.v1alpha.Rds config_source=1 route_config_name=2
aeraki.meta_protocol_proxy.v1alpha.MetaProtocolFilter name=1 config=2
aeraki.meta_protocol_proxy.v1alpha.Codec name=1 config=2
aeraki.meta_protocol_proxy.v1alpha.ApplicationProtocol name=1 codec=2 multiplexing=3
aeraki.meta_protocol_proxy.v1alpha.Tracing client_sampling=3 random_sampling=4 overall_sampling=5 verbose=6 max_tag_length=7 provider=9
aeraki.meta_protocol_proxy.config.route.v1alpha.RouteConfiguration name=1 routes=2*
aeraki.meta_protocol_proxy.config.route.v1alpha.Route name=1 match=2 route=3 request_mutation=19* response_mutation=20*
aeraki.meta_protocol_proxy.config.route.v1alpha.RouteMatch metadata=1*
aeraki.meta_protocol_proxy.config.route.v1alpha.RouteAction cluster=1 weighted_clusters=2 hash_policy=10* request_mirror_policies=11*
aeraki.meta_protocol_proxy.config.route.v1alpha.RouteAction.RequestMirrorPolicy cluster=1 runtime_fraction=2
aeraki.meta_protocol_proxy.config.route.v1alpha.KeyValue key=1 value=2
aeraki.meta_protocol_proxy.filters.router.v1alpha.Router
aeraki.meta_protocol_proxy.filters.local_ratelimit.v1alpha.LocalRateLimit stat_prefix=1 token_bucket=2 conditions=3*
aeraki.meta_protocol_proxy.filters.local_ratelimit.v1alpha.LocalRateLimitCondition match=1 token_bucket=2
aeraki.meta_protocol_proxy.filters.ratelimit.v1alpha.RateLimit match=1 domain=2 timeout=3 failure_mode_deny=4 rate_limit_service=5 descriptors=6*
aeraki.meta_protocol_proxy.filters.ratelimit.v1alpha.RateLimit.Descriptor property=1 descriptor_key=2
aeraki.meta_protocol_proxy.filters.istio_stats.v1alpha.IstioStats destination_service=1
aeraki.meta_protocol_proxy.filters.metadata_exchange.v1alpha.MetadataExchange
aeraki.meta_protocol_proxy.admin.v1alpha.RoutesConfigDump static_route_configs=2* dynamic_route_configs=3*
aeraki.meta_protocol_proxy.admin.v1alpha.RoutesConfigDump.StaticRouteConfig route_config=1 last_updated=2
aeraki.meta_protocol_proxy.admin.v1alpha.RoutesConfigDump.DynamicRouteConfig version_info=1 route_config=2 last_updated=3 error_state=4 client_status=5
aeraki.meta_protocol.codec.DubboCodec
aeraki.meta_protocol.codec.ThriftCodec
aeraki.meta_protocol.codec.BrpcCodec
aeraki.meta_protocol.codec.TrpcCodec
`

func TestInheritedFieldsKeepTheirNumbers(t *testing.T) {
	for _, line := range strings.Split(strings.TrimSpace(inherited), "\n") {
		name, _, _ := strings.Cut(line, " ")
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		require.NoError(t, err, name)
		got := name
		fields := d.(protoreflect.MessageDescriptor).Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if f.Number() >= 100 {
				continue
			}
			got += fmt.Sprintf(" %s=%d", f.Name(), f.Number())
			if f.IsList() {
				got += "*"
			}
		}
		require.Equal(t, line, got)
	}
}
