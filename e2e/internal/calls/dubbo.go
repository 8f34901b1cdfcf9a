package calls

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// person has no empty list: dubbo-go makes null of it.
func person() map[string]any {
	return map[string]any{
		"name": "Ada", "age": 36, "tags": []any{"a", "é"}, "labels": map[string]any{"k": "v"},
		"friend": map[string]any{"name": "Grace", "age": 45, "tags": []any{"b"}, "labels": map[string]any{"x": ""}, "friend": nil},
	}
}

// Patience is the timeout that clients are to have: longer than what any call here
// takes, also on a busy machine.
const Patience = 20 * time.Second

// Dubbo makes a call of every kind. name is the provider's, c may reach it
// directly or through a proxy: nothing of this depends on it.
func Dubbo(t *testing.T, consumer peers.Library, c *peers.Consumer, name string) {
	t.Helper()
	ok := func(t *testing.T, want any, cmd peers.Command) {
		t.Helper()
		a := c.Call(cmd)
		require.Empty(t, a.Error)
		require.EqualValues(t, want, a.Value)
	}

	t.Run("string", func(t *testing.T) {
		ok(t, name+": hello Ada", call("sayHello", "Ada"))
		ok(t, name+": hello größer 世界 🙂", call("sayHello", "größer 世界 🙂"))
		ok(t, name+": hello ", call("sayHello", ""))
	})
	t.Run("no argument", func(t *testing.T) { ok(t, name, call("who")) })
	t.Run("asynchronous", func(t *testing.T) { ok(t, name+": hello later", call("sayHelloAsync", "later")) })
	if consumer == peers.Java {
		t.Run("one thread goes on while its calls are pending", func(t *testing.T) {
			const n = 10
			a := c.Call(call("pending", n, 4000))
			require.Empty(t, a.Error)
			want := map[string]any{"pending": float64(n), "who": name, "futures": []any{}, "slow": []any{}}
			for i := range n {
				want["futures"] = append(want["futures"].([]any), fmt.Sprintf("%s: hello %d", name, i))
				want["slow"] = append(want["slow"].([]any), name)
			}
			require.Equal(t, want, a.Value)
		})
	}
	t.Run("object", func(t *testing.T) {
		a := c.Call(call("echo", person()))
		require.Empty(t, a.Error)
		want := person()
		want["age"] = float64(36)
		want["friend"].(map[string]any)["age"] = float64(45)
		require.Equal(t, want, a.Value)
	})
	t.Run("map", func(t *testing.T) {
		ok(t, map[string]any{"one": "1", "two": "zwei"}, call("echoMap", map[string]any{"one": "1", "two": "zwei"}))
	})
	t.Run("null result", func(t *testing.T) { ok(t, nil, call("returnNull", "x")) })
	if consumer == peers.Java {
		// dubbo-go cannot send a null argument: it has no type for it.
		t.Run("null argument", func(t *testing.T) { ok(t, nil, call("echo", nil)) })
	}
	t.Run("exception", func(t *testing.T) {
		a := c.Call(call("fail", "on purpose"))
		require.Contains(t, a.Error, "on purpose")
		require.Equal(t, "org.meltemi.test.GreetingException", a.ErrorType)
		require.Contains(t, a.Error, "(code 42)")
	})
	t.Run("unknown method", func(t *testing.T) {
		a := c.Call(call("noSuch", "x"))
		require.NotEmpty(t, a.Error)
		require.Less(t, a.LatencyUS, (Patience / 2).Microseconds(), "an error, not a timeout: %s", a.Error)
	})
	t.Run("unknown group", func(t *testing.T) {
		cmd := call("who")
		cmd.Group = "no-such-group"
		a := c.Call(cmd)
		require.NotEmpty(t, a.Error)
		require.Less(t, a.LatencyUS, (Patience / 2).Microseconds(), "an error, not a timeout: %s", a.Error)
	})
	t.Run("second interface", func(t *testing.T) {
		cmd := call("sayHello", "Ada")
		cmd.Interface = "org.meltemi.test.Audit"
		ok(t, name+": hello Ada", cmd)
	})
	t.Run("oneway", func(t *testing.T) {
		before := c.Call(call("told"))
		cmd := call("tell", "x")
		cmd.Oneway, cmd.Count, cmd.Concurrency = true, 10, 2
		require.Zero(t, c.Load(cmd).Failed())
		// Nobody answers a oneway, and it may take another connection than what
		// follows: ask until all have arrived.
		require.Eventually(t, func() bool {
			return c.Call(call("told")).Value == before.Value.(float64)+10
		}, patience, tick)
	})
	t.Run("attachments", func(t *testing.T) {
		cmd := call("attachments")
		cmd.Attachments = map[string]any{"tenant": "acme", "weird key": "väl\tue", "empty": ""}
		a := c.Call(cmd)
		require.Empty(t, a.Error)
		got := a.Value.(map[string]any)
		for k, v := range cmd.Attachments {
			require.Equal(t, v, got[k], k)
		}
	})
	t.Run("attachment that is no string", func(t *testing.T) {
		cmd := call("attachments")
		cmd.Attachments = map[string]any{"number": 5}
		a := c.Call(cmd)
		require.Empty(t, a.Error)
		require.EqualValues(t, 5, a.Value.(map[string]any)["number"])
	})
	t.Run("a megabyte", func(t *testing.T) {
		blob := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("meltemi\x00\xff"), 1<<20/9))
		a := c.Call(call("blob", blob))
		require.Empty(t, a.Error)
		require.Equal(t, blob, a.Value)
	})
	t.Run("50 callers", func(t *testing.T) {
		cmd := call("sayHello", "all")
		cmd.Count, cmd.Concurrency = 1000, 50
		s := c.Load(cmd)
		require.Empty(t, s.Errors)
		require.Equal(t, map[string]int{name + ": hello all": 1000}, s.Values)
	})
	t.Run("slow calls overtaken by fast ones", func(t *testing.T) {
		slow := call("sleep", 500)
		slow.Count, slow.Concurrency, slow.Summary = 5, 5, true
		pending := c.Go(slow)
		fast := call("who")
		fast.Count = 100
		require.Equal(t, map[string]int{name: 100}, c.Load(fast).Values)
		require.Equal(t, map[string]int{name: 5}, pending.Summary().Values)
	})
	t.Run("the client's own timeout", func(t *testing.T) {
		cmd := call("sleep", 1000)
		cmd.TimeoutMS = 100
		require.NotEmpty(t, c.Call(cmd).Error)
		// Its late answer disturbs nobody.
		ok(t, name+": hello Ada", call("sayHello", "Ada"))
	})
}
