// Package filters_test holds the filters that are built in against what is promised of
// each.
package filters_test

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"

	// What configurations may name.
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	_ "github.com/meltemi-mesh/meltemi/filters"
)

const module = "github.com/meltemi-mesh/meltemi/"

// public is what filters are written against: the contract, as others' filters are.
var public = []string{
	"filter", "filter/fields", "filter/grpcclient", "filter/host", "filter/keyed", "filter/route", "filter/telemetry", "filter/tokenbucket", "codecs", "protos",
}

// folders are those of the filters.
func folders(t *testing.T) (names []string) {
	entries, err := os.ReadDir(".")
	require.NoError(t, err)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	require.Contains(t, names, "router")
	return names
}

// imports are the packages of Meltemi that a file imports, without its path.
func imports(t *testing.T, file string) (paths []string) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	require.NoError(t, err)
	for _, i := range f.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		require.NoError(t, err)
		if rest, own := strings.CutPrefix(path, module); own {
			paths = append(paths, rest)
		}
	}
	return paths
}

func TestFiltersAreWrittenAgainstTheContractAlone(t *testing.T) {
	for _, name := range folders(t) {
		files, err := filepath.Glob(name + "/*.go")
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, path := range imports(t, file) {
				require.True(t, slices.Contains(public, path) || strings.HasPrefix(path, "protos/") || strings.HasPrefix(path, "filters/"+name+"/"),
					"%s imports %s, which is not of the contract", file, path)
			}
		}
	}
}

func TestFiltersAreLinked(t *testing.T) {
	linked := imports(t, "filters.go")
	for _, name := range folders(t) {
		require.Contains(t, linked, "filters/"+name)
	}
	for _, user := range []string{"../envoy-build/meltemi/meltemi.go", "../cmd/meltemi/command/check.go"} {
		require.Contains(t, imports(t, user), "filters", user)
	}
}

var snippet = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")

// TestConfigurationsOfTheDocumentsLoad: those that are whole, and each filter has one.
// Others are parts of one. What they all count makes one page for Prometheus.
func TestConfigurationsOfTheDocumentsLoad(t *testing.T) {
	mod := filter.NewModule()
	for _, name := range folders(t) {
		t.Run(name, func(t *testing.T) {
			h := filtertest.NewWith(t, mod, 1)
			text, err := os.ReadFile(filepath.Join(name, "README.md"))
			require.NoError(t, err)
			whole := 0
			for _, s := range snippet.FindAllStringSubmatch(string(text), -1) {
				var v any
				require.NoError(t, yaml.Unmarshal([]byte(s[1]), &v), s[1])
				if !strings.HasPrefix(s[1], "stat_prefix:") {
					continue
				}
				whole++
				b, err := json.Marshal(v)
				require.NoError(t, err)
				require.Empty(t, filter.Check(b), s[1])
				_, err = h.LoadUnpublished(string(b))
				require.NoError(t, err)
				page, err := mod.Metrics().Gather()
				require.NoError(t, err)
				problems, err := promlint.NewWithMetricFamilies(page).Lint()
				require.NoError(t, err)
				require.Empty(t, problems)
			}
			require.Positive(t, whole, "no example begins with stat_prefix")
		})
	}
}
