package scripted

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
)

// TRPCServer is a scripted server of tRPC.
type TRPCServer struct {
	*acceptor
	requests atomic.Int64
}

// ServeTRPC starts a server until the end of the test. It does with each frame what
// behaviour does, which is called in the order of arrival, on the connection's
// goroutine.
func ServeTRPC(t testing.TB, behaviour func(c *Conn, f trpctest.Parsed)) *TRPCServer {
	t.Helper()
	s := &TRPCServer{}
	s.acceptor = accept(t, "127.0.0.1:0", func(c *Conn, buf []byte) []byte {
		// The frames are views, and a behaviour may keep them.
		frames, rest := trpctest.Parse(slices.Clone(buf), true)
		for _, f := range frames {
			s.requests.Add(1)
			behaviour(c, f)
		}
		return rest
	})
	return s
}

// Requests is how many frames have arrived.
func (s *TRPCServer) Requests() int64 { return s.requests.Load() }
