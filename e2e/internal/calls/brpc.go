package calls

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// BRPCError is how a client tells an error of that code: brpc-java tells the
// text only.
func BRPCError(l peers.BRPC, code int) string {
	if l == peers.BRPCJava {
		return "RpcException 0"
	}
	return fmt.Sprintf("ErrorDataException %d", code)
}

// BRPCTimeout is how a client tells that its own timeout has passed.
func BRPCTimeout(l peers.BRPC) string {
	if l == peers.BRPCJava {
		return "RpcException 2"
	}
	return "ErrorDataException 62"
}

// BRPCMetadata is what a server has seen beside the arguments.
func BRPCMetadata(t *testing.T, a peers.Answer) (m map[string]string) {
	t.Helper()
	require.Empty(t, a.Error)
	require.NoError(t, json.Unmarshal([]byte(a.Value.(string)), &m))
	return m
}

// BRPC makes a call of every kind. name is the server's, c may reach it directly
// or through a proxy: nothing of this depends on it.
func BRPC(t *testing.T, client, server peers.BRPC, c *peers.Consumer, name string) {
	t.Helper()
	ok := func(want any, cmd peers.Command) {
		t.Helper()
		a := c.Call(cmd)
		require.Empty(t, a.Error)
		require.Equal(t, want, a.Value)
	}

	ok(name, call("Who"))
	ok(name+": hello größer 世界 🙂", call("SayHello", "größer 世界 🙂"))
	ok(name+": hello ", call("SayHello", ""))
	audit := call("Who")
	audit.Interface = "meltemi.test.Audit"
	ok(name, audit)

	a := c.Call(call("Fail", "on purpose"))
	require.Contains(t, a.Error, "on purpose")
	code := 2001
	if server == peers.JProtobuf {
		code = 10042
	}
	require.Equal(t, BRPCError(client, code), a.ErrorType)

	if server == peers.JProtobuf {
		// brpc-java's answer would say that it is for another call: see
		// TestBRPCUnknownMethodOfBRPCJava.
		for _, cmd := range []peers.Command{call("NoSuch"), {Interface: "meltemi.test.NoSuch", Method: "Who"}} {
			a = c.Call(cmd)
			require.Contains(t, a.Error, "not found")
			require.Equal(t, BRPCError(client, 1001), a.ErrorType)
		}
	}

	want := map[string]string{"tenant": "acme", "weird key": "väl\tue", "empty": ""}
	meta := call("Metadata")
	meta.LogID = 1<<62 + 1
	meta.Attachments = map[string]any{}
	for k, v := range want {
		meta.Attachments[k] = v
	}
	if server == peers.JProtobuf {
		// brpc-java keeps it to itself.
		want["log_id"] = fmt.Sprint(meta.LogID)
	}
	require.Equal(t, want, BRPCMetadata(t, c.Call(meta)))

	attach := call("Attach")
	for _, attach.Attachment = range [][]byte{[]byte("PRPC\x00\xff"), bytes.Repeat([]byte("x"), 200_000)} {
		a = c.Call(attach)
		require.Equal(t, name, a.Value, a.Error)
		require.Equal(t, name+"|"+string(attach.Attachment), string(a.Attachment))
	}

	blob := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("meltemi\x00\xff"), 1<<20/9))
	ok(blob, call("Blob", blob))

	many := call("SayHello", "all")
	many.Count, many.Concurrency = 1000, 20
	s := c.Load(many)
	require.Empty(t, s.Errors)
	require.Equal(t, map[string]int{name + ": hello all": 1000}, s.Values)

	slow := call("Sleep", 500)
	slow.Count, slow.Concurrency, slow.Summary = 3, 3, true
	pending := c.Go(slow)
	fast := call("Who")
	fast.Count = 100
	s = c.Load(fast)
	require.Equal(t, map[string]int{name: 100}, s.Values)
	if server == peers.JProtobuf {
		// A thread of brpc-java takes several calls at a time, one after the other.
		require.Less(t, s.LatencyUS["max"], int64(400_000))
	}
	require.Equal(t, map[string]int{name: 3}, pending.Summary().Values)

	slow = call("Sleep", 400)
	slow.TimeoutMS = 100
	require.Equal(t, BRPCTimeout(client), c.Call(slow).ErrorType)
	// Its late answer disturbs nobody.
	ok(name+": hello again", call("SayHello", "again"))
}
