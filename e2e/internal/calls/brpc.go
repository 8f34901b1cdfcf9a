package calls

import (
	"bytes"
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
	ok(t, c, name, call("Who"))
	ok(t, c, name+": hello größer 世界 🙂", call("SayHello", "größer 世界 🙂"))
	ok(t, c, name+": hello ", call("SayHello", ""))
	audit := call("Who")
	audit.Interface = "meltemi.test.Audit"
	ok(t, c, name, audit)

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

	megabyte(t, c)
	thousand(t, c, name)

	slowest := besideSlow(t, c, name)
	if server == peers.JProtobuf {
		// A thread of brpc-java takes several calls at a time, one after the other.
		require.Less(t, slowest, int64(1_200_000))
	}

	slow := call("Sleep", 1000)
	slow.TimeoutMS = 100
	a = c.Call(slow)
	require.Equal(t, BRPCTimeout(client), a.ErrorType, a.Error)
	// Its late answer disturbs nobody.
	ok(t, c, name+": hello again", call("SayHello", "again"))
}
