package filter_test

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// TestTheRoutesInTheDocumentsLoad: each snippet of docs/traffic.md that has routes is a
// whole RouteConfiguration, and each that has a stat_prefix a MetaProtocolProxy.
func TestTheRoutesInTheDocumentsLoad(t *testing.T) {
	doc, err := os.ReadFile("../docs/traffic.md")
	require.NoError(t, err)
	snippets := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(doc, -1)
	require.GreaterOrEqual(t, len(snippets), 3)
	for _, s := range snippets {
		var snippet map[string]any
		require.NoError(t, yaml.Unmarshal(s[1], &snippet))
		config, err := json.Marshal(snippet)
		require.NoError(t, err)
		switch {
		case snippet["stat_prefix"] != nil:
			_, err := filtertest.New(t).LoadUnpublished(string(config))
			require.NoError(t, err)
		case snippet["routes"] != nil:
			filtertest.New(t).MustLoad(listener(string(config), ""))
		}
	}
}
