package golang

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// TestEventsAllocateNothing: what a client sends is handed over, and answered, without any
// memory of our own.
func TestEventsAllocateNothing(t *testing.T) {
	m := &echo{}
	h := New(m, Settings{}, func(host.Level, string, ...any) {})
	defer h.Close()
	for _, later := range []nowhere{false, true} {
		c := h.Accept(h.Load(wrapped(t, "{}")), PluginName, later)
		chunks := [][]byte{make([]byte, 100), make([]byte, 28)}
		require.Zero(t, raced.AllocsPerRun(t, 1000, func() {
			c.Data(chunks, 128, false)
			c.Turned()
		}))
		c.Closed(true)
	}
}

// nowhere is a connection whose other side takes everything. True tells of the ends of turns.
type nowhere bool

func (nowhere) Write([]byte)                {}
func (nowhere) Close(CloseType)             {}
func (n nowhere) Later() bool               { return bool(n) }
func (nowhere) Addresses() (string, string) { return "10.0.0.1:1", "10.0.0.2:1" }
func (nowhere) Release()                    {}
