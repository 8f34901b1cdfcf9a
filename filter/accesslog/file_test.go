package accesslog

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAWriterIsWoken by a flush if there is something to write, and else by much.
func TestAWriterIsWoken(t *testing.T) {
	var fs Files
	f, err := fs.Open(filepath.Join(t.TempDir(), "log"), t.Logf)
	require.NoError(t, err)
	defer fs.Close(f)
	woken := func() bool {
		select {
		case <-f.more:
			return true
		default:
			return false
		}
	}
	a, b := NewBuffer(f), NewBuffer(f)
	gather := func(n int) {
		a.data, a.lines = append(a.data, make([]byte, n)...), a.lines+1
	}
	a.Flush()
	require.False(t, woken(), "there is nothing")
	gather(1)
	written, _ := a.Queue()
	require.EqualValues(t, 1, written)
	require.False(t, woken())
	written, _ = b.Flush()
	require.Zero(t, written)
	require.True(t, woken(), "what another worker has handed over waits")
	gather(wakeBytes - 2)
	a.Queue()
	require.False(t, woken())
	gather(1)
	a.Queue()
	require.True(t, woken())
	for taken, n := f.take(); taken != nil; taken, n = f.take() {
		require.Equal(t, 1, n)
	}
	gather(1)
	a.Flush()
	require.True(t, woken())
}

// TestALongLineIsNotKept where it is lost.
func TestALongLineIsNotKept(t *testing.T) {
	var fs Files
	f, err := fs.Open(filepath.Join(t.TempDir(), "log"), t.Logf)
	require.NoError(t, err)
	defer fs.Close(f)
	b := NewBuffer(f)
	b.data, b.lines = make([]byte, maxQueued+1), 1
	written, lost := b.Flush()
	require.Zero(t, written)
	require.EqualValues(t, 1, lost)
	require.LessOrEqual(t, cap(b.data), 2*fullBytes)
}
