package calls

import (
	"bytes"
	"encoding/base64"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TRPC makes a call of every kind. name is the server's, c may reach it
// directly or through a proxy: nothing of this depends on it. A serial server
// handles the calls of a connection one after the other.
func TRPC(t *testing.T, c *peers.Consumer, name string, serial bool) {
	t.Helper()
	ok := func(want any, cmd peers.Command) {
		t.Helper()
		a := c.Call(cmd)
		require.Empty(t, a.Error)
		require.Equal(t, want, a.Value)
	}
	fails := func(kind, text string, cmd peers.Command) {
		t.Helper()
		a := c.Call(cmd)
		require.Equal(t, kind, a.ErrorType, a.Error)
		require.Contains(t, a.Error, text)
	}

	ok(name, call("Who"))
	ok(name+": hello größer 世界 🙂", call("SayHello", "größer 世界 🙂"))
	ok(name+": hello ", call("SayHello"))
	fails("business 10042", "on purpose", call("Fail", "on purpose"))
	fails("callee 12", "NoSuch", call("NoSuch"))
	fails("callee 12", "meltemi.test.NoSuch", peers.Command{Interface: "meltemi.test.NoSuch", Method: "Who"})

	told := func() float64 {
		t.Helper()
		a := c.Call(call("Told"))
		require.Empty(t, a.Error)
		return a.Value.(float64)
	}
	before := told()
	oneway := call("Tell", "x")
	oneway.Oneway, oneway.Count, oneway.Concurrency = true, 10, 2
	require.Zero(t, c.Load(oneway).Failed())
	// Nobody answers a oneway, and it may take another connection than what
	// follows: ask until all have arrived.
	require.Eventually(t, func() bool { return told() == before+10 }, patience, tick)

	meta := call("Metadata")
	meta.Attachments = map[string]any{"tenant": "acme", "weird key": "väl\tue", "empty": ""}
	a := c.Call(meta)
	require.Empty(t, a.Error)
	require.Equal(t, meta.Attachments, a.Value)
	require.Equal(t, name, a.Attachments["served-by"])

	blob := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("meltemi\x00\xff"), 1<<20/9))
	ok(blob, call("Blob", blob))

	many := call("SayHello", "all")
	many.Count, many.Concurrency = 1000, 20
	s := c.Load(many)
	require.Empty(t, s.Errors)
	require.Equal(t, map[string]int{name + ": hello all": 1000}, s.Values)

	if !serial {
		slow := call("Sleep", 500)
		slow.Count, slow.Concurrency, slow.Summary = 3, 3, true
		pending := c.Go(slow)
		fast := call("Who")
		fast.Count = 100
		s = c.Load(fast)
		require.Equal(t, map[string]int{name: 100}, s.Values)
		require.Less(t, s.LatencyUS["max"], int64(400_000))
		require.Equal(t, map[string]int{name: 3}, pending.Summary().Values)
	}

	slow := call("Sleep", 400)
	slow.TimeoutMS = 100
	fails("framework 101", "", slow)
	// Its late answer disturbs nobody.
	ok(name+": hello again", call("SayHello", "again"))
}
