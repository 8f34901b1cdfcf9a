package e2e

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"testing"

	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/dynamic_modules/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
	_ "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

const proxyType = "type.googleapis.com/aeraki.meta_protocol_proxy.v1alpha.MetaProtocolProxy"

// withConfig is Proxy with its configuration in another form.
func withConfig(filterConfig envoytest.M) envoytest.M {
	f := envoytest.Proxy(nil)
	typed := maps.Clone(f["typed_config"].(envoytest.M))
	typed["filter_config"] = filterConfig
	f["typed_config"] = typed
	return f
}

func asJSON(t *testing.T, v any) string {
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

func TestAllFormsOfAConfiguration(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket())}
		config := toOne("one")
		forms := map[string]envoytest.M{
			"struct":      {"@type": "type.googleapis.com/google.protobuf.Struct", "value": config},
			"stringvalue": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": asJSON(t, config)},
			"bytesvalue":  {"@type": "type.googleapis.com/google.protobuf.BytesValue", "value": base64.StdEncoding.EncodeToString([]byte(asJSON(t, config)))},
			"xds":         {"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": proxyType, "value": config},
			"udpa":        {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": proxyType, "value": config},
		}
		for name, form := range forms {
			o.Listeners = append(o.Listeners, envoytest.Listener(name, withConfig(form)))
		}
		e := envoytest.Start(t, o)
		for name := range forms {
			c := scripted.Dial(t, e.Port(name))
			c.Ask(1, dubbotest.Request{})
			require.Equal(t, "here", c.Read().Text(), name)
		}
	})
}

// TestAConfigurationInProtobuf as a control plane sends it: Envoy hands over the
// message's bytes.
func TestAConfigurationInProtobuf(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer("here"))
		o := v.options()
		o.Clusters = []envoytest.Resource{envoytest.Cluster("one", envoytest.At(s.Port)...)}
		config := toOne("one")
		config["@type"] = proxyType
		o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket()), envoytest.Listener("dubbo", withConfig(config))}
		o.Binary = func(b []byte) []byte {
			var r discoveryv3.DiscoveryResponse
			require.NoError(t, protojson.Unmarshal(b, &r))
			b, err := proto.Marshal(&r)
			require.NoError(t, err)
			return b
		}
		e := envoytest.Start(t, o)
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(1, dubbotest.Request{})
		require.Equal(t, "here", c.Read().Text())
	})
}

func TestARefusedListenerLeavesTheOldOneServing(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		one, two := scripted.Serve(t, scripted.Answer("one")), scripted.Serve(t, scripted.Answer("two"))
		loopback := envoytest.Loopback(envoytest.Socket())
		o := v.options()
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("one", envoytest.At(one.Port)...), envoytest.Cluster("two", envoytest.At(two.Port)...),
		}
		o.Listeners = []envoytest.Resource{loopback, envoytest.Listener("dubbo", envoytest.Proxy(toOne("one")))}
		e := envoytest.Start(t, o)
		open := scripted.Dial(t, e.Port("dubbo"))
		serves := func(want string) {
			t.Helper()
			for _, c := range []*scripted.Client{open, scripted.Dial(t, e.Port("dubbo"))} {
				c.Ask(1, dubbotest.Request{})
				require.Equal(t, want, c.Read().Text())
			}
		}
		serves("one")

		// The configuration itself is bad: each with the reason in the log.
		for _, tc := range []struct {
			set    func(envoytest.M)
			reason string
		}{
			{func(c envoytest.M) { c["no_such_field"] = 1 }, `stat_prefix "test": no_such_field: unknown field`},
			{func(c envoytest.M) { c["rds"] = envoytest.M{}; delete(c, "route_config") }, `stat_prefix "test": rds.route_config_name: required`},
			{func(c envoytest.M) { c["protocol"] = envoytest.M{"name": "x", "codec": envoytest.M{"name": "nope"}} }, `protocol.codec.name: unknown codec "nope"`},
			{func(c envoytest.M) { c["request_timeout"] = "-1s" }, "request_timeout: must be at least 1ms"},
		} {
			bad := toOne("two")
			tc.set(bad)
			require.False(t, e.SetListeners(loopback, envoytest.Listener("dubbo", envoytest.Proxy(bad))), tc.reason)
			require.Contains(t, e.Log(), tc.reason)
			serves("one")
		}

		// Ours is good, but another filter of the same update is not: its
		// routes must not become valid.
		next := toOne("two")
		unknown := envoytest.M{"name": "x", "typed_config": envoytest.M{
			"@type":        "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
			"stat_prefix":  "x", // and no cluster
			"hash_policy":  []any{envoytest.M{}, envoytest.M{}},
			"idle_timeout": "1s",
		}}
		require.False(t, e.SetListeners(loopback, envoytest.Listener("dubbo", envoytest.Proxy(next)).With(envoytest.M{
			"filter_chains": []any{
				envoytest.M{"filters": []any{envoytest.Proxy(next)}, "filter_chain_match": envoytest.M{"destination_port": 1}},
				envoytest.M{"filters": []any{unknown}},
			},
		})))
		serves("one")

		require.True(t, e.SetListeners(loopback, envoytest.Listener("dubbo", envoytest.Proxy(next))))
		require.Eventually(t, func() bool {
			open.Ask(1, dubbotest.Request{})
			return open.Read().Text() == "two"
		}, patience, tick, "the open connection follows")
		serves("two")
	})
}

func TestBadCarriersAreRefused(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		o := v.options()
		o.Listeners = []envoytest.Resource{envoytest.Listener("tcp", envoytest.TCPProxy("none"))}
		e := envoytest.Start(t, o)
		for reason, filter := range map[string]envoytest.M{
			`unknown field "pth"`:            envoytest.Module("meltemi", "carrier", envoytest.M{"pth": "@x"}),
			"path: required":                 envoytest.Module("meltemi", "carrier", envoytest.M{}),
			`filter_name "bogus" is unknown`: envoytest.Module("meltemi", "bogus", envoytest.M{}),
		} {
			require.False(t, e.SetListeners(envoytest.Listener("tcp", filter, envoytest.TCPProxy("none"))), reason)
			require.Contains(t, e.Log(), reason)
		}
	})
}
