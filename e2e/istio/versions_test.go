package istio

import (
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	checker "github.com/meltemi-mesh/meltemi/control/check"
	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	_ "github.com/meltemi-mesh/meltemi/filters"
)

const (
	types     = "type.googleapis.com/envoy."
	network   = types + "extensions.filters.network."
	golang    = network + "golang.v3alpha.Config"
	modules   = network + "dynamic_modules.v3.DynamicModuleNetworkFilter"
	tcp       = network + "tcp_proxy.v3.TcpProxy"
	hcm       = network + "http_connection_manager.v3.HttpConnectionManager"
	state     = network + "set_filter_state.v3.Config"
	listener  = types + "config.listener.v3.Listener"
	extension = types + "config.core.v3.TypedExtensionConfig"
)

// filterTypes are, by the names of a proxy's listeners, the types of the filters in their
// chains, and of one whose configuration comes by discovery its name and those it may be.
func filterTypes(t *testing.T, p *mesh.Pod, version string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, r := range p.Ask(version, listener).Resources {
		var l listenerv3.Listener
		require.NoError(t, proto.Unmarshal(r.Value, &l))
		_, twice := all[l.Name]
		require.False(t, twice, "Envoy refuses two listeners of one name: %s", l.Name)
		all[l.Name] = nil
		for _, c := range append(l.FilterChains, l.DefaultFilterChain) {
			for _, f := range c.GetFilters() {
				if d := f.GetConfigDiscovery(); d != nil {
					all[l.Name] = append(all[l.Name], f.Name)
					all[l.Name] = append(all[l.Name], d.TypeUrls...)
				} else {
					all[l.Name] = append(all[l.Name], f.GetTypedConfig().GetTypeUrl())
				}
			}
		}
	}
	return all
}

// TestEachProxyGetsTheFormOfItsVersion: by one description, which a real proxy of this
// version runs, while those of versions that cannot run here are asked for what they would
// get.
func TestEachProxyGetsTheFormOfItsVersion(t *testing.T) {
	s := openShop(t, "v1")
	s.route("routes: [{route: {subset: v1}}]")
	require.True(t, inListeners(s.client, modules))
	require.False(t, inListeners(s.client, golang))
	service := s.vip + "_20880"
	outbound, inbound := "meltemi-outbound-greeter."+s.Name+"-20880", "meltemi-inbound-greeter."+s.Name+"-20881"

	for _, tc := range []struct {
		version, form string
		loopback      []string
	}{
		{"1.19.10", "", nil},
		{"1.20.0", golang, []string{state, hcm}},
		{"1.30.4", golang, []string{state, hcm}},
		{"1.31.0", modules, []string{modules, state, tcp}},
	} {
		client, server := filterTypes(t, s.client, tc.version), filterTypes(t, s.servers["v1"], tc.version)
		for _, of := range []map[string][]string{client, server} {
			require.Equal(t, tc.loopback, of["meltemi-loopback"], tc.version)
			for name, types := range of {
				for _, form := range []string{golang, modules} {
					require.True(t, form == tc.form || !slices.Contains(types, form), "%s: %s: %s", tc.version, name, types)
				}
			}
		}
		if tc.form == "" {
			require.NotContains(t, client[service], outbound)
			continue
		}
		require.Equal(t, []string{outbound, tc.form, tcp}, client[service], tc.version)
		i := slices.Index(server["virtualInbound"], inbound)
		require.GreaterOrEqual(t, i, 0, "%s: %s", tc.version, server["virtualInbound"])
		require.Equal(t, []string{tc.form, tcp}, server["virtualInbound"][i+1:i+3], tc.version)

		for name, p := range map[string]*mesh.Pod{outbound: s.client, inbound: s.servers["v1"]} {
			r := p.Ask(tc.version, extension, name)
			require.Len(t, r.Resources, 1)
			var e corev3.TypedExtensionConfig
			require.NoError(t, proto.Unmarshal(r.Resources[0].Value, &e))
			require.Equal(t, name, e.Name)
			require.Equal(t, tc.form, e.TypedConfig.GetTypeUrl())
			// What the filter gets is what it takes.
			text, err := protojson.Marshal(r)
			require.NoError(t, err)
			report := checker.File("ecds.json", text)
			require.Empty(t, report.Faults)
			require.Len(t, report.Found, 1)
			require.True(t, strings.HasPrefix(report.Found[0].What, "meta_protocol_proxy"), report.Found[0].What)
		}
	}
}
