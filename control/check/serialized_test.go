package check

import (
	"bytes"
	"os"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	modulesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/dynamic_modules/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/control/source"
	"github.com/meltemi-mesh/meltemi/filter/config"
)

// example is the bootstrap of an example with something replaced, and the filter
// of its clients.
func example(t *testing.T, old, by string) (text []byte, m *bootstrapv3.Bootstrap, filter *anypb.Any) {
	t.Helper()
	text, err := os.ReadFile("../../examples/dubbo/envoy.yaml")
	require.NoError(t, err)
	require.Contains(t, string(text), old)
	text = bytes.ReplaceAll(text, []byte(old), []byte(by))
	root, _, fault := source.Envoy(text)
	require.Nil(t, fault)
	m = new(bootstrapv3.Bootstrap)
	r := &libprotobuf{checker: &checker{root: root}}
	r.root(place{Node: root}, m.ProtoReflect())
	require.Empty(t, r.errs)
	return text, m, m.StaticResources.Listeners[0].FilterChains[0].Filters[0].GetTypedConfig()
}

func serialize(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	require.NoError(t, err)
	return b
}

// TestSerializedBootstraps: the binary form and the text have what YAML has, but
// for lines.
func TestSerializedBootstraps(t *testing.T) {
	for _, change := range [][2]string{
		{"", ""},
		{"request_timeout: 5s", "request_timeout: -5s"},
		{"filter_name: carrier", "filter_name: porter"},
		{"listener_filters_timeout: 0.5s", "continue_on_listener_filters_timeout: false"},
	} {
		text, m, _ := example(t, change[0], change[1])
		want := File("x.yaml", text)
		require.NotEmpty(t, want.Found)
		inText, err := prototext.MarshalOptions{Multiline: true}.Marshal(m)
		require.NoError(t, err)
		for name, b := range map[string][]byte{"x.pb": serialize(t, m), "X.PB": serialize(t, m), "x.pb_text": inText} {
			got := File(name, b)
			require.Len(t, got.Found, len(want.Found), "%s as %s", change[1], name)
			for i := range got.Found {
				require.Equal(t, Found{What: want.Found[i].What}, got.Found[i])
			}
			require.ElementsMatch(t, withoutTheirLines(want.Faults), got.Faults, "%s as %s", change[1], name)
			require.ElementsMatch(t, withoutTheirLines(want.Notes), got.Notes, "%s as %s", change[1], name)
		}
	}
}

func withoutTheirLines(es source.Errors) (same source.Errors) {
	for _, e := range es {
		same = append(same, &source.Error{Fault: e.Fault})
	}
	return same
}

// TestTheModuleMayGetItsMessageItself: in the binary form Envoy need not know a
// type to pass its bytes on.
func TestTheModuleMayGetItsMessageItself(t *testing.T) {
	for _, prefix := range []string{"demo", ""} {
		_, m, filter := example(t, "", "")
		var module modulesv3.DynamicModuleNetworkFilter
		require.NoError(t, filter.UnmarshalTo(&module))
		var value structpb.Struct
		require.NoError(t, module.FilterConfig.UnmarshalTo(&value))
		raw, err := value.MarshalJSON()
		require.NoError(t, err)
		proxy, err := config.Parse(raw)
		require.NoError(t, err)
		proxy.StatPrefix = prefix
		module.FilterConfig, err = anypb.New(proxy)
		require.NoError(t, err)
		require.NoError(t, filter.MarshalFrom(&module))
		r := File("x.pb", serialize(t, m))
		require.Len(t, r.Found, 2)
		if prefix != "" {
			require.Empty(t, r.Faults)
			continue
		}
		require.Equal(t, "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.filter_config.stat_prefix: required", r.Faults.Error())
		inText, err := prototext.Marshal(m)
		require.NoError(t, err)
		require.ErrorContains(t, File("x.pb_text", inText).Faults, "unable to resolve")
	}
}

func TestSerializedBootstrapsRefused(t *testing.T) {
	const filter = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config"
	const module = "envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter"
	unknown := []byte{0xfa, 0x7d, 1, 'x'} // field 2015
	binary := func(change func(m *bootstrapv3.Bootstrap, filter *anypb.Any)) []byte {
		_, m, a := example(t, "", "")
		change(m, a)
		return serialize(t, m)
	}
	for name, tc := range map[string]struct {
		file, text, want string
	}{
		"YAML":                    {"x.pb", "static_resources: {}\n", "want a serialized envoy.config.bootstrap.v3.Bootstrap: Envoy goes on with what it could read of this, and says nothing"},
		"no field of a bootstrap": {"x.pb", string(unknown), "unknown field 2015 of envoy.config.bootstrap.v3.Bootstrap"},
		"no field of a message within": {
			"x.pb", string(binary(func(m *bootstrapv3.Bootstrap, _ *anypb.Any) {
				m.StaticResources.Clusters[1].LoadAssignment.ProtoReflect().SetUnknown(unknown)
			})),
			"static_resources.clusters[1].load_assignment: unknown field 2015 of envoy.config.endpoint.v3.ClusterLoadAssignment",
		},
		"no field of a filter":      {"x.pb", string(binary(func(_ *bootstrapv3.Bootstrap, a *anypb.Any) { a.Value = append(a.Value, unknown...) })), filter + ": unknown field 2015 of " + module},
		"no filter":                 {"x.pb", string(binary(func(_ *bootstrapv3.Bootstrap, a *anypb.Any) { a.Value = []byte{0xff} })), filter + ": want a serialized " + module},
		"a type without a host":     {"x.pb", string(binary(func(_ *bootstrapv3.Bootstrap, a *anypb.Any) { a.TypeUrl = module })), filter + ".@type: want a host before the type: type.googleapis.com/" + module},
		"a cluster without a name":  {"x.pb", string(binary(func(m *bootstrapv3.Bootstrap, _ *anypb.Any) { m.StaticResources.Clusters[0].Name = "" })), "static_resources.clusters[0].name: value length must be at least 1 runes"},
		"a text that is none":       {"x.pb_text", "admin {}\n}", "2: want the text of an envoy.config.bootstrap.v3.Bootstrap: invalid field name: }"},
		"a text of something else":  {"x.pb_text", "admin {}\n\nadmim {}", "3: want the text of an envoy.config.bootstrap.v3.Bootstrap: unknown field: admim"},
		"a text with an extension":  {"x.pb_text", "[a.b]: 1", "1: want the text of an envoy.config.bootstrap.v3.Bootstrap: unknown field: [a.b]"},
		"a text with Envoy's types": {"x.pb_text", "admin { access_log { name: 'x' typed_config { [type.googleapis.com/envoy.unknown.v3.X] {} } } }", "1: want the text of an envoy.config.bootstrap.v3.Bootstrap: unable to resolve message [type.googleapis.com/envoy.unknown.v3.X]: a type of Envoy's that this program does not know: give it YAML, JSON or a binary file"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, File(tc.file, []byte(tc.text)).Faults.Error())
		})
	}
}
