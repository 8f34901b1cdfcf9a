package calls

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TRPC makes a call of every kind. name is the server's, c may reach it
// directly or through a proxy: nothing of this depends on it. A serial server
// handles the calls of a connection one after the other.
func TRPC(t *testing.T, c *peers.Consumer, name string, serial bool) {
	t.Helper()
	fails := func(kind, text string, cmd peers.Command) {
		t.Helper()
		a := c.Call(cmd)
		require.Equal(t, kind, a.ErrorType, a.Error)
		require.Contains(t, a.Error, text)
	}

	ok(t, c, name, call("Who"))
	ok(t, c, name+": hello größer 世界 🙂", call("SayHello", "größer 世界 🙂"))
	ok(t, c, name+": hello ", call("SayHello"))
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

	megabyte(t, c)
	thousand(t, c, name)

	if !serial {
		require.Less(t, besideSlow(t, c, name), int64(1_200_000))
	}

	slow := call("Sleep", 1000)
	slow.TimeoutMS = 100
	fails("framework 101", "", slow)
	// Its late answer disturbs nobody.
	ok(t, c, name+": hello again", call("SayHello", "again"))
}
