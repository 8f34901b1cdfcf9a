package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/control/convert"
)

// TestEnvoyLoadsWhatIsConverted: of dubbo_proxy, of thrift_proxy, and of what the C++
// proxy's tests have.
func TestEnvoyLoadsWhatIsConverted(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		dir := t.TempDir()
		for _, name := range []string{"dubbo", "thrift", "metaprotocol"} {
			r, fault := convert.File("in.yaml", []byte(source(t, "control/convert/testdata/"+name+".in.yaml")), convert.Options{})
			require.Nil(t, fault)
			require.Empty(t, r.Lost)
			file := filepath.Join(dir, name+".yaml")
			require.NoError(t, os.WriteFile(file, r.YAML, 0o600))
			ok, said := validate(v, file)
			require.True(t, ok, "%s: %s", name, said)
		}
	})
}
