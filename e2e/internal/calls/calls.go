// Package calls makes calls of every kind with real clients, and knows what must
// come of them, whatever lies between client and server.
package calls

import (
	"bytes"
	"encoding/base64"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

const (
	patience = 20 * time.Second
	tick     = 20 * time.Millisecond
)

func call(method string, args ...any) peers.Command {
	return peers.Command{Method: method, Args: args}
}

// ok makes a call and wants its value.
func ok(t *testing.T, c *peers.Consumer, want any, cmd peers.Command) {
	t.Helper()
	a := c.Call(cmd)
	require.Empty(t, a.Error)
	require.Equal(t, want, a.Value)
}

// megabyte has a server echo almost so much.
func megabyte(t *testing.T, c *peers.Consumer) {
	t.Helper()
	blob := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("meltemi\x00\xff"), 1<<20/9))
	ok(t, c, blob, call("Blob", blob))
}

// thousand makes that many calls, twenty at a time.
func thousand(t *testing.T, c *peers.Consumer, name string) {
	t.Helper()
	many := call("SayHello", "all")
	many.Count, many.Concurrency = 1000, 20
	s := c.Load(many)
	require.Empty(t, s.Errors)
	require.Equal(t, map[string]int{name + ": hello all": 1000}, s.Values)
}

// besideSlow makes a hundred calls while three others take a second and a half, and
// returns the slowest's latency in microseconds.
func besideSlow(t *testing.T, c *peers.Consumer, name string) (slowest int64) {
	t.Helper()
	slow := call("Sleep", 1500)
	slow.Count, slow.Concurrency, slow.Summary = 3, 3, true
	pending := c.Go(slow)
	fast := call("Who")
	fast.Count = 100
	s := c.Load(fast)
	require.Equal(t, map[string]int{name: 100}, s.Values)
	require.Equal(t, map[string]int{name: 3}, pending.Summary().Values)
	return s.LatencyUS["max"]
}
