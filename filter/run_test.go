package filter

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

type idleWorker struct {
	host.Worker
	woken int
}

func (w *idleWorker) Now() time.Duration { return time.Hour }
func (w *idleWorker) Wake()              { w.woken++ }

// TestAPanicInRunKeepsNothingElseFromBeingDone: messages are paused until what
// was posted for them has run.
func TestAPanicInRunKeepsNothingElseFromBeingDone(t *testing.T) {
	w := &idleWorker{}
	s := NewModule().NewWorker(w).(*shard)
	var did []int
	for i := range 5 {
		s.post(posted{call: func(*shard) {
			did = append(did, i)
			if i == 1 {
				panic("boom")
			}
		}})
	}
	require.Panics(t, s.Run, "it is the host's to log")
	require.Equal(t, []int{0, 1}, did)
	require.Equal(t, 2, w.woken)
	s.Run()
	s.Run()
	require.Equal(t, []int{0, 1, 2, 3, 4}, did)
}
