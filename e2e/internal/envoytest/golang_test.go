package envoytest

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/control/check"
	_ "github.com/meltemi-mesh/meltemi/filters"
)

// TestListenersOfTheGolangFilterAreRight: of the type of its configuration a stock Envoy does not
// know, in which tests run, no field is wrong, nor of Meltemi's in it.
func TestListenersOfTheGolangFilterAreRight(t *testing.T) {
	for _, tunnels := range []Tunnels{ByTCPProxy, ByConnect} {
		g := &golang{modules: "/modules", tunnels: tunnels, scopes: map[string]bool{}}
		var listeners []Resource
		for _, l := range []Resource{Loopback("@meltemi"), Listener("l", Proxy(Dubbo("test", Route("one", nil))))} {
			l = g.golangForm(l)
			delete(l, "@type") // in a bootstrap there is no other
			listeners = append(listeners, l)
		}
		b, err := json.Marshal(M{"static_resources": M{"listeners": listeners, "clusters": []Resource{{"name": "one"}}}})
		require.NoError(t, err)
		r := check.File("bootstrap.json", b)
		require.Empty(t, r.Faults)
		require.NotEmpty(t, r.Found)
	}
}

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
