// Package exampletest builds the example. It is not beside it, as code that links Envoy's
// package runs in Envoy only.
package exampletest

import (
	"debug/elf"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTheExampleIsWhatEnvoyLoads: it has every function that the golang network filter looks
// for in a shared object.
func TestTheExampleIsWhatEnvoyLoads(t *testing.T) {
	so := filepath.Join(t.TempDir(), "libexample.so")
	out, err := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", so, "../example").CombinedOutput()
	require.NoError(t, err, "%s", out)
	f, err := elf.Open(so)
	require.NoError(t, err)
	defer f.Close()
	symbols, err := f.DynamicSymbols()
	require.NoError(t, err)
	has := map[string]bool{}
	for _, s := range symbols {
		has[s.Name] = s.Section != elf.SHN_UNDEF
	}
	for _, name := range []string{
		"NetworkFilterConfig", "DownstreamConnection", "DownstreamData", "DownstreamEvent", "DownstreamWrite",
		"UpstreamConnectionReady", "UpstreamConnectionFailure", "UpstreamData", "UpstreamEvent", "SemaDec",
	} {
		require.True(t, has["envoyGoFilterOn"+name], name)
	}
}
