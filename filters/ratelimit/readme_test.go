package ratelimit_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/filter"
	_ "github.com/meltemi-mesh/meltemi/filters/ratelimit"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
)

func TestTheReadmesConfiguration(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(readme), "```yaml\n")
	require.True(t, ok)
	config, _, _ := strings.Cut(rest, "```")
	var proxy map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(config), &proxy))
	b, err := json.Marshal(proxy)
	require.NoError(t, err)
	require.Empty(t, filter.Check(b))
}
