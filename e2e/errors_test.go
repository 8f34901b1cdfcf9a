package e2e

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/calls"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// Codes of Dubbo Java's RpcException.
const (
	networkException = "org.apache.dubbo.rpc.RpcException 1"
	timeoutException = "org.apache.dubbo.rpc.RpcException 2"
)

// dubboStatuses of the errors.
var dubboStatuses = map[codecs.ErrorType]int{
	codecs.RouteNotFound: 60, codecs.ClusterNotFound: 60, codecs.NoHealthyUpstream: 80, codecs.BadResponse: 50,
	codecs.Unspecified: 80, codecs.OverLimit: 100, codecs.BadRequest: 40, codecs.Timeout: 31,
	codecs.ConnectFailure: 80, codecs.UpstreamReset: 80, codecs.Denied: 40,
}

// dubboError is how a real client must report an error of Meltemi's with that
// status. dubbo-go does not look at it.
func dubboError(lib peers.Library, status int) string {
	switch {
	case lib == peers.DubboGo:
		return "*errors.fundamental"
	case status == 31:
		return timeoutException
	default:
		return networkException
	}
}

// checkDubboError proves that a client has got the error, and not run into its own
// timeout.
func checkDubboError(t *testing.T, lib peers.Library, a peers.Answer, status int, text string) {
	t.Helper()
	require.Contains(t, a.Error, text)
	require.Equal(t, dubboError(lib, status), a.ErrorType, a.Error)
	if lib == peers.DubboGo {
		require.True(t, strings.HasPrefix(a.Error, "java exception:"), a.Error)
	}
	require.Less(t, a.LatencyUS, (calls.Patience / 2).Microseconds())
}

// TestDubboLocalErrors proves that real clients report Meltemi's own errors as
// the exceptions that they are, with Meltemi's text, and go on with the same
// connection.
func TestDubboLocalErrors(t *testing.T) {
	t.Parallel()
	buildFilterSO(t)
	// nested is a person with more friends of friends than the codec reads.
	var nested any
	for range 70 {
		nested = map[string]any{"name": "x", "age": 1, "tags": []any{"a"}, "labels": map[string]any{"k": "v"}, "friend": nested}
	}
	cases := []struct {
		name   string
		cmd    peers.Command
		status int
		text   string
	}{
		{"no route", peers.Command{Method: "returnNull", Args: []any{"x"}}, 60, "no route matches"},
		{"no such cluster", peers.Command{Method: "echoMap", Args: []any{map[string]any{"a": "b"}}}, 60, "unknown cluster never-defined"},
		{"no healthy upstream", peers.Command{Method: "told"}, 80, "no healthy upstream in cluster dead"},
		{"connect failure", peers.Command{Method: "blob", Args: []any{"AAAA"}}, 80, "upstream connect failure in cluster refused"},
		{"connection limit", peers.Command{Method: "attachments"}, 100, "upstream connection limit reached"},
		{"timeout", peers.Command{Method: "sleep", Args: []any{8000}}, 31, "upstream request timeout"},
		{"undecodable answer", peers.Command{Method: "sayHello", Args: []any{"x"}}, 50, "undecodable response"},
		{"lost connection", peers.Command{Method: "fail", Args: []any{"x"}}, 80, "upstream"},
		{"unreadable request", peers.Command{Method: "echo", Args: []any{nested}}, 40, "malformed request"},
	}
	once(t, func(t *testing.T, v variant) {
		s := peers.DubboGo.Provider(t, peers.ProviderOptions{Name: "s1"})
		garbage, closing := scripted.Serve(t, scripted.Garbage), scripted.Serve(t, scripted.Close)
		to := func(cluster, method string) any { return envoytest.Route(cluster, map[string]string{"method": method}) }
		config := envoytest.Dubbo("test",
			to("never-defined", "echoMap"), to("dead", "told"), to("refused", "blob"), to("full", "attachments"),
			to("s1", "sleep"), to("garbage", "sayHello"), to("closing", "fail"), to("s1", "who"))
		config["request_timeout"] = "1.8s"
		e := startCustom(t, v, config, []any{envoytest.M{"name": "test.reply"}},
			envoytest.Cluster("s1", envoytest.At(s.Port)...), envoytest.Cluster("dead"),
			envoytest.Cluster("refused", refused(t)...), envoytest.Cluster("full", envoytest.At(s.Port)...).With(noConnections),
			envoytest.Cluster("garbage", envoytest.At(garbage.Port)...), envoytest.Cluster("closing", envoytest.At(closing.Port)...))

		who := peers.Command{Method: "who"}
		for _, lib := range []peers.Library{peers.DubboGo, peers.Java} {
			t.Run(string(lib), func(t *testing.T) {
				const listener = "listener.127.0.0.1_0.downstream_cx_total"
				before := e.Stat(listener)
				c := lib.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{Connections: 1, Timeout: calls.Patience})
				require.Equal(t, "s1", c.Call(who).Value)
				opened := e.Stat(listener)
				require.Greater(t, opened, before)
				for _, tc := range cases {
					t.Run(tc.name, func(t *testing.T) {
						checkDubboError(t, lib, c.Call(tc.cmd), tc.status, tc.text)
						require.Equal(t, "s1", c.Call(who).Value)
					})
				}
				for kind, status := range dubboStatuses {
					t.Run("long text, "+kind.String(), func(t *testing.T) {
						text := strings.Repeat("größe 世界 ", 4000)[len("größe "):]
						cmd := who
						cmd.Attachments = map[string]any{"reply": strconv.Itoa(int(kind)), "text": text}
						checkDubboError(t, lib, c.Call(cmd), status, text)
						require.Equal(t, "s1", c.Call(who).Value)
					})
				}
				require.Equal(t, opened, e.Stat(listener), "still the first connection")
			})
		}
		t.Run("statuses", func(t *testing.T) {
			c := scripted.Dial(t, e.Port("dubbo"))
			for _, tc := range cases {
				switch tc.name {
				case "timeout": // needs a number for an argument
				case "unreadable request":
					c.Send(dubbotest.Frame(0xc2, 0, 1, []byte{'Z'})...)
					require.EqualValues(t, tc.status, c.Read().Status)
				default:
					c.Ask(1, dubbotest.Request{Method: tc.cmd.Method})
					a := c.Read()
					require.EqualValues(t, tc.status, a.Status, a.Text())
					require.Contains(t, a.Text(), tc.text)
				}
			}
			for kind, status := range dubboStatuses {
				c.Ask(1, dubbotest.Request{Attachments: [][2]string{{"reply", strconv.Itoa(int(kind))}, {"text", "so it is"}}})
				a := c.Read()
				require.EqualValues(t, status, a.Status, kind)
				require.Equal(t, "so it is", a.Text())
			}
		})
		checkCounters(t, e)
	})
}

// TestDubboJavaRepeatsCallsThatFail proves what the codec's README says of Dubbo
// Java's default cluster.
func TestDubboJavaRepeatsCallsThatFail(t *testing.T) {
	t.Parallel()
	buildFilterSO(t)
	once(t, func(t *testing.T, v variant) {
		e := startCustom(t, v, toOne("s1"), []any{envoytest.M{"name": "test.reply"}}, envoytest.Cluster("s1"))
		c := peers.Java.Consumer(t, e.Port("dubbo"), peers.ConsumerOptions{Retries: true})
		for kind := range dubboStatuses {
			a := c.Call(peers.Command{Method: "who", Attachments: map[string]any{"reply": strconv.Itoa(int(kind)), "text": "once more"}})
			require.Contains(t, a.Error, "once more", kind)
			require.Contains(t, a.Error, "Tried 3 times", kind)
		}
		e.WaitStat(stats+"request", envoytest.Exactly(int64(3*len(dubboStatuses))))
		checkCounters(t, e)
	})
}
