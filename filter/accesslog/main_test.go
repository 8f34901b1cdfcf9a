package accesslog_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/meltemi-mesh/meltemi/filter/accesslog"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// allocs is how often a line allocates.
func allocs(t *testing.T, ls *accesslog.Logs, e *accesslog.Entry) float64 {
	t.Helper()
	var fs accesslog.Files
	f, err := fs.Open(filepath.Join(t.TempDir(), "log"), t.Logf)
	require.NoError(t, err)
	defer fs.Close(f)
	to := []*accesslog.Buffer{accesslog.NewBuffer(f)}
	return raced.AllocsPerRun(t, 10_000, func() { ls.Write(e, to) })
}
