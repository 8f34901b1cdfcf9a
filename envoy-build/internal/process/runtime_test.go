package process

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// TestAnOutputThatNobodyReads fails, and does not end the process.
func TestAnOutputThatNobodyReads(t *testing.T) {
	if os.Getenv("NOBODY_READS") != "" {
		SetUp(1, func(host.Level, string, ...any) {}, func() {})
		_, err := os.Stdout.WriteString("x\n")
		require.ErrorIs(t, err, syscall.EPIPE)
		os.Exit(7) // without another word to the standard output
	}
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	defer w.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestAnOutputThatNobodyReads$")
	cmd.Env, cmd.Stdout = append(os.Environ(), "NOBODY_READS=1"), w
	var end *exec.ExitError
	require.ErrorAs(t, cmd.Run(), &end)
	require.Equal(t, 7, end.ExitCode(), end)
}
