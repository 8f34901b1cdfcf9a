package calls

import (
	"bytes"
	"encoding/base64"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// The types of a TApplicationException that clients tell.
const (
	ThriftUnknownMethod = "TApplicationException 1"
	ThriftInternalError = "TApplicationException 6"
)

// Thrift makes a call of every kind. name is the server's, c may reach
// it directly or through a proxy: nothing of this depends on it.
func Thrift(t *testing.T, w peers.Wire, c *peers.Consumer, name string) {
	t.Helper()
	ok := func(want any, cmd peers.Command) {
		t.Helper()
		a := c.Call(cmd)
		require.Empty(t, a.Error)
		require.EqualValues(t, want, a.Value)
	}
	fails := func(kind, text string, cmd peers.Command) {
		t.Helper()
		a := c.Call(cmd)
		require.Equal(t, kind, a.ErrorType, a.Error)
		require.Contains(t, a.Error, text)
	}
	told := func() int {
		t.Helper()
		a := c.Call(call("told"))
		require.Empty(t, a.Error)
		return int(a.Value.(float64))
	}

	ok(name, call("who"))
	ok(name+": größer 世界 🙂", call("echo", "größer 世界 🙂"))
	ok(name+": ", call("echo", ""))
	ok(-1, call("add", 1<<31-1, -1<<31))

	before := told()
	ok(nil, call("touch", "k"))
	require.Equal(t, before+1, told(), "void")

	fails("Refusal", "refused by "+name+" (code -7)", call("fail", -7))
	fails(ThriftInternalError, "Internal error", call("crash"))
	fails(ThriftUnknownMethod, "noSuch", call("noSuch", "x"))

	oneway := call("tell", "x")
	oneway.Count, oneway.Concurrency = 10, 2
	require.Zero(t, c.Load(oneway).Failed())
	// Nobody answers a oneway, and it may take another connection than what
	// follows: ask until all have arrived.
	require.Eventually(t, func() bool { return told() == before+11 }, patience, tick, "oneway")

	multiplexed := call("echo", "x")
	for _, multiplexed.Interface = range []string{"Echo", "Audit"} {
		ok(name+": x", multiplexed)
	}
	multiplexed.Interface = "NoSuch"
	// Servers close the connection.
	a := c.Call(multiplexed)
	require.NotEmpty(t, a.Error)
	require.Less(t, a.LatencyUS, int64(2_500_000), "an error, not a timeout: %s", a.Error)

	if w.Transport == "header" {
		cmd := call("headers")
		cmd.Attachments = map[string]any{"tenant": "acme", "Weird Key": "väl\tue", "empty": ""}
		a := c.Call(cmd)
		require.Empty(t, a.Error)
		require.Equal(t, cmd.Attachments, a.Value)
		require.Equal(t, map[string]any{"served-by": name}, a.Attachments)
		ok(map[string]any{}, call("headers"))
	}

	blob := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("meltemi\x00\xff"), 1<<20/9))
	ok(blob, call("blob", blob))

	many := call("echo", "all")
	many.Count, many.Concurrency = 300, 10
	s := c.Load(many)
	require.Empty(t, s.Errors)
	require.Equal(t, map[string]int{name + ": all": 300}, s.Values)

	slow := call("slow", 1500)
	slow.TimeoutMS = 100
	fails("transport", "", slow)
	ok(name+": still here", call("echo", "still here"))
}
