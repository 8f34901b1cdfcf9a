package route

import (
	_ "embed"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

//go:embed README.md
var readme string

func TestTheReadmesTableDoesWhatItSays(t *testing.T) {
	snippets := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(readme, -1)
	require.Len(t, snippets, 1)
	table := mustCompile(t, snippets[0][1])
	acme := table.Match(message("interface", "org.example.Greeter", "Tenant", "ACME"))
	require.Equal(t, "acme", acme.Name)
	require.Equal(t, "v2", picked(t, acme, 0))
	rest := table.Match(message("interface", "org.example.Greeter"))
	require.Equal(t, "rest", rest.Name)
	require.Equal(t, []string{"v1", "v2"}, rest.Clusters())
}
