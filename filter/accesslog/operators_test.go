package accesslog

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/substitution"
)

// withArguments are the names that withArgument knows.
var withArguments = []string{
	"START_TIME", "START_TIME_LOCAL", "EMIT_TIME", "EMIT_TIME_LOCAL", "COMMON_DURATION", "RESPONSE_CODE_DETAILS", "REQ", "REQUEST_HEADER",
	"RESP", "RESPONSE_HEADER", "DYNAMIC_METADATA", "METADATA", "FILTER_STATE", "REQUESTED_SERVER_NAME", "ENVIRONMENT",
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
	"UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "COALESCE",
}

// TestEachOperatorIsKnown or is refused with a reason, and the page tells of those that are
// known, and of no others.
func TestEachOperatorIsKnown(t *testing.T) {
	known := append(slices.Collect(maps.Keys(plain)), withArguments...)
	for _, name := range withArguments {
		require.NotContains(t, plain, name)
		_, err := withArgument(name, "")
		require.NotErrorIs(t, err, errUnknown, name)
	}
	for name, why := range refused {
		require.NotContains(t, known, name)
		_, err := parseOperator(substitution.Operator{Name: name})
		require.EqualError(t, err, "not supported: "+why)
	}
	page, err := os.ReadFile("../../docs/observability.md")
	require.NoError(t, err)
	_, section, _ := strings.Cut(string(page), "### Operators\n")
	section, _, _ = strings.Cut(section, "### What has a line\n")
	told := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\| (.*?) \|`).FindAllStringSubmatch(section, -1) {
		for _, m := range regexp.MustCompile("`([A-Z0-9_]+)(\\(.*?\\))?`").FindAllStringSubmatch(row[1], -1) {
			told[m[1]] = true
		}
		if strings.Contains(row[1], "DOWNSTREAM_DIRECT_REMOTE_…") {
			for _, of := range []string{"DOWNSTREAM_DIRECT_REMOTE_", "DOWNSTREAM_LOCAL_"} {
				for _, what := range []string{"ADDRESS", "ADDRESS_WITHOUT_PORT", "PORT"} {
					told[of+what] = true
				}
			}
		}
	}
	require.ElementsMatch(t, known, slices.Collect(maps.Keys(told)))
}
