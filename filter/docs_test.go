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

// TestTheRoutesInTheDocumentsLoad: each snippet of docs/traffic.md is a whole
// RouteConfiguration.
func TestTheRoutesInTheDocumentsLoad(t *testing.T) {
	doc, err := os.ReadFile("../docs/traffic.md")
	require.NoError(t, err)
	snippets := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(doc, -1)
	require.GreaterOrEqual(t, len(snippets), 3)
	for _, s := range snippets {
		var routes any
		require.NoError(t, yaml.Unmarshal(s[1], &routes))
		config, err := json.Marshal(routes)
		require.NoError(t, err)
		filtertest.New(t).MustLoad(listener(string(config), ""))
	}
}
