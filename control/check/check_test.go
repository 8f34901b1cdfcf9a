package check

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	_ "github.com/meltemi-mesh/meltemi/examples/custom-protocol/parley"
	_ "github.com/meltemi-mesh/meltemi/filters/consumer"
	_ "github.com/meltemi-mesh/meltemi/filters/fault"
	_ "github.com/meltemi-mesh/meltemi/filters/istiostats"
	_ "github.com/meltemi-mesh/meltemi/filters/metadataexchange"
	_ "github.com/meltemi-mesh/meltemi/filters/rbac"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestFile: what is found in each file of testdata, and what is wrong with it.
func TestFile(t *testing.T) {
	all, err := filepath.Glob("testdata/*")
	require.NoError(t, err)
	golden := func(file string) string { return strings.TrimSuffix(file, filepath.Ext(file)) + ".golden" }
	var files, goldens []string
	for _, file := range all {
		if filepath.Ext(file) == ".golden" {
			goldens = append(goldens, file)
		} else {
			files = append(files, file)
		}
	}
	require.NotEmpty(t, files)
	for _, g := range goldens {
		require.True(t, slices.ContainsFunc(files, func(file string) bool { return golden(file) == g }), "%s is stale", g)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			r := File(file, text)
			var got strings.Builder
			fmt.Fprintf(&got, "%s\n", r.Kind)
			for _, f := range r.Found {
				fmt.Fprintf(&got, "%d: %s\n", f.Line, f.What)
			}
			fmt.Fprintf(&got, "---\n%v\n", r.Faults)
			if len(r.Notes) > 0 {
				fmt.Fprintf(&got, "---\n%v\n", r.Notes)
			}
			if *update {
				require.NoError(t, os.WriteFile(golden(file), []byte(got.String()), 0o600))
			}
			want, err := os.ReadFile(golden(file))
			require.NoError(t, err)
			require.Equal(t, string(want), got.String())
			for _, e := range append(r.Faults, r.Notes...) {
				require.Positive(t, e.Line, e)
			}
		})
	}
}

// TestTheExamplesAreRight: whoever copies them begins with something that works.
func TestTheExamplesAreRight(t *testing.T) {
	for _, pattern := range []string{"../../examples/*/envoy.yaml", "../../examples/dubbo/contrib.yaml", "../../examples/istio/greeter.yaml", "../translate/envoyfilter/testdata/*.out.yaml"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), "go.mod")); err == nil {
				continue // a module of its own, with a codec that only its own tool knows
			}
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			r := File(file, text)
			require.Empty(t, r.Faults, file)
			require.Empty(t, r.Notes, file)
			require.NotEmpty(t, r.Found, file)
		}
	}
}
