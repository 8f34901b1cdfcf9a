package check

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	_ "github.com/meltemi-mesh/meltemi/examples/custom-protocol/parley"
	_ "github.com/meltemi-mesh/meltemi/filter/router"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestFile: what is found in each file of testdata, and what is wrong with it.
func TestFile(t *testing.T) {
	files, err := filepath.Glob("testdata/*.[yj]*")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			found, errs := File(text)
			var got strings.Builder
			for _, f := range found {
				fmt.Fprintf(&got, "%d: %s\n", f.Line, f.What)
			}
			fmt.Fprintf(&got, "---\n%v\n", errs)
			golden := strings.TrimSuffix(file, filepath.Ext(file)) + ".golden"
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got.String()), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String())
			if len(errs) > 0 {
				require.NotContains(t, errs.Error(), "\n:", "a fault without a line")
			}
		})
	}
}

// TestTheExamplesAreRight: whoever copies them begins with something that works.
func TestTheExamplesAreRight(t *testing.T) {
	for _, pattern := range []string{"../../examples/*/envoy.yaml", "../../examples/istio/greeter.yaml", "../envoyfilter/testdata/*.out.yaml"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			found, errs := File(text)
			require.Empty(t, errs, file)
			require.NotEmpty(t, found, file)
		}
	}
}
