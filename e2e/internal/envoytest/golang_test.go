package envoytest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDiscoveredFiltersAreTheGolangFiltersToo: an Envoy that has both would take the module's.
func TestDiscoveredFiltersAreTheGolangFiltersToo(t *testing.T) {
	g := &golang{modules: "/modules", scopes: map[string]bool{}}
	l := g.golangForm(Listener("l", Discovered("x"), Proxy(Dubbo("test"))))
	filters := filtersOf(l)
	require.Equal(t, []any{golangType}, filters[0]["config_discovery"].(M)["type_urls"])
	require.Equal(t, golangFilter, filters[1]["name"])
	x := g.extensionForm(Extension("x", Proxy(Dubbo("test"))))
	require.Equal(t, "x", x["name"])
	typed := x["typed_config"].(M)
	require.Equal(t, golangType, typed["@type"])
	require.Equal(t, "/modules/libmeltemi.so", typed["library_path"])
	require.Equal(t, "meta_protocol_proxy", typed["plugin_name"])
	require.Equal(t, true, typed["is_terminal_filter"])
	require.Equal(t, Proxy(Dubbo("test"))["typed_config"].(M)["filter_config"], typed["plugin_config"])
}
