package filter_test

import (
	"cmp"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// accessLog is the configuration of a log of lines of text.
func accessLog(path, format string) string {
	b, _ := json.Marshal(format)
	return `{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
		"path": "` + path + `", "log_format": {"text_format_source": {"inline_string": ` + string(b) + `}}}}`
}

// logLines waits until there are n lines at path, and returns them.
func logLines(t *testing.T, h *filtertest.Host, path string, n int) []string {
	t.Helper()
	var ls []string
	deadline := time.Now().Add(10 * time.Second)
	for {
		h.Advance(time.Second)
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		if ls = strings.SplitAfter(string(b), "\n"); len(ls) > n || time.Now().After(deadline) {
			require.Len(t, ls, n+1)
			return ls[:n]
		}
		time.Sleep(time.Millisecond)
	}
}

// lineOf is what lines of TestALineForEachEnd tell: what it was, the outcome in HTTP's
// words and the protocol's, flags, details, bytes from and to the client and to and from
// the server, how often and where it was sent, and the text of a local reply.
const lineOf = "%MESSAGE_TYPE% %REQ(:PATH)% %RESPONSE_CODE% %STATUS_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% " +
	"%BYTES_RECEIVED%/%BYTES_SENT% %UPSTREAM_WIRE_BYTES_SENT%/%UPSTREAM_WIRE_BYTES_RECEIVED% " +
	"%UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_HOSTS_ATTEMPTED% %DOWNSTREAM_REMOTE_ADDRESS% %CONNECTION_ID% %DURATION% %LOCAL_REPLY_BODY%\n"

// ending is a way in which messages end.
type ending struct {
	name  string
	codec string // toy.exclusive by default, whose requests keep their ids
	route string // of the one route, beside the cluster up
	table string // of the route configuration
	more  string // of the configuration
	chain string // filters before the router
	do    func(e *toyEnv)
	want  []string
}

// ofOurs is a filter that is built in, in a chain.
func ofOurs(name, folder, message, config string) string {
	return `{"name": "aeraki.meta_protocol.filters.` + name + `", "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.` + folder + `.v1alpha.` + message + `", ` + config + `}},`
}

var endings = []ending{
	{name: "answered", do: func(e *toyEnv) {
		e.say("req 1 m hello")
		e.Advance(20 * time.Millisecond)
		e.answer(e.server(0), "res 0 m welcome")
	}, want: []string{"request /m 200 0 - via_upstream 14/16 14/16 1 h1 10.0.0.2:1025 1 20 -"}},
	{name: "the server's error", do: func(e *toyEnv) {
		e.say("req 1 m hello")
		e.answer(e.server(0), "err 0 m no")
	}, want: []string{"request /m 500 3 - via_upstream 14/11 14/11 1 h1 10.0.0.2:1025 1 0 -"}},
	{
		name: "a oneway", do: func(e *toyEnv) { e.say("one 1 m hello") },
		want: []string{"oneway /m 0 - - - 14/0 14/0 1 h1 10.0.0.2:1025 1 0 -"},
	},
	{name: "a oneway that is refused", do: func(e *toyEnv) {
		e.up.SetHosts()
		e.say("one 1 m hello")
	}, want: []string{"oneway /m 503 - UH no_healthy_upstream 14/0 0/0 1 - 10.0.0.2:1025 1 0 no healthy upstream in cluster up"}},
	{
		name: "no route", do: func(e *toyEnv) { e.say("req 1 lost hello") },
		want: []string{"request /lost 404 - NR route_not_found 17/30 0/0 0 - 10.0.0.2:1025 1 0 no route matches lost"},
	},
	{name: "no cluster", do: func(e *toyEnv) {
		e.RemoveCluster("up")
		e.say("req 1 m hello")
	}, want: []string{"request /m 503 - NC cluster_not_found 14/27 0/0 1 - 10.0.0.2:1025 1 0 unknown cluster up"}},
	{name: "no healthy host", do: func(e *toyEnv) {
		e.up.SetHosts()
		e.say("req 1 m hello")
	}, want: []string{"request /m 503 - UH no_healthy_upstream 14/42 0/0 1 - 10.0.0.2:1025 1 0 no healthy upstream in cluster up"}},
	{name: "no connection", do: func(e *toyEnv) {
		e.failing(host.ConnectFailed)
		e.say("req 1 m hello")
	}, want: []string{"request /m 503 - UF upstream_reset_before_response_started{remote_connection_failure} 14/47 0/0 1 - 10.0.0.2:1025 1 0 upstream connect failure in cluster up"}},
	{name: "no connection is allowed", do: func(e *toyEnv) {
		e.failing(host.Overflow)
		e.say("req 1 m hello")
		e.Advance(14 * time.Second)
	}, want: []string{"request /m 503 - UO upstream_reset_before_response_started{overflow} 14/42 0/0 1 - 10.0.0.2:1025 1 1008 upstream connection limit reached"}},
	{name: "no connection in time", do: func(e *toyEnv) {
		e.up.Hang = true
		e.say("req 1 m hello")
		e.Advance(15 * time.Second)
	}, want: []string{"request /m 504 - UT response_timeout 14/57 0/0 1 - 10.0.0.2:1025 1 15000 timeout while waiting for an upstream connection"}},
	{name: "no answer in time", do: func(e *toyEnv) {
		e.say("req 1 m hello")
		e.Advance(15 * time.Second)
	}, want: []string{"request /m 504 - UT response_timeout 14/33 14/0 1 h1 10.0.0.2:1025 1 15000 upstream request timeout"}},
	{
		name: "the client's deadline has passed", route: `, "timeout": "5s"`, do: func(e *toyEnv) { e.say("req 1 m in-5") },
		want: []string{"request /m 504 - UT response_timeout 13/71 0/0 0 - 10.0.0.2:1025 1 0 the deadline of the request has passed before it could be sent"},
	},
	{name: "the server leaves", do: func(e *toyEnv) {
		e.say("req 1 m hello")
		e.server(0).Close()
		e.Settle()
	}, want: []string{"request /m 503 - UC upstream_reset_before_response_started{connection_termination} 14/74 14/0 1 h1 10.0.0.2:1025 1 0 upstream connection ended before the answer: closed by the server"}},
	{name: "the server has not processed it", codec: "toy.speaker.inorder", do: func(e *toyEnv) {
		e.say("req 1 m hello")
		e.answer(e.server(0), "err 0 m unprocessed")
	}, want: []string{"request /m 503 - UC upstream_reset_before_response_started{connection_termination} 14/60 14/0 1 h1 10.0.0.2:1025 1 0 the server leaves and has not processed the request"}},
	{name: "no answer that can be read", do: func(e *toyEnv) {
		e.say("req 1 m hello")
		e.answer(e.server(0), "nonsense")
	}, want: []string{"request /m 502 - UPE upstream_reset_before_response_started{protocol_error} 14/64 14/0 1 h1 10.0.0.2:1025 1 0 undecodable response: toy: not a line of it at offset 0"}},
	{name: "an answer that is too large", codec: "toy.speaker.inorder", do: func(e *toyEnv) {
		e.say("req 1 m hello")
		e.server(0).Send(hugeAnswer("0", 500))
		e.Settle()
	}, want: []string{"request /m 502 - UPE upstream_reset_before_response_started{protocol_error} 14/71 14/0 1 h1 10.0.0.2:1025 1 0 response: a frame of 500 bytes is larger than the limit of 100"}},
	{name: "an answer that cannot be written", codec: "toy.speaker.inorder", do: func(e *toyEnv) {
		e.say("req 1 m w")
		e.answer(e.server(0), "res 0 m wordless")
	}, want: []string{"request /m 502 - UPE upstream_reset_before_response_started{protocol_error} 10/52 10/17 1 h1 10.0.0.2:1025 1 0 response cannot be encoded: no words for it"}},
	{
		name: "a request that cannot be written", codec: "toy.bare", do: func(e *toyEnv) { e.say("req 1 m bad") },
		want: []string{"request /m 400 - DPE bad_request 12/26 0/0 1 - 10.0.0.2:1025 1 0 cannot be encoded"},
	},
	{
		name: "a malformed request", do: func(e *toyEnv) { e.say("req 1 m malformed it is") },
		want: []string{"request /m 400 - DPE bad_request 24/43 0/0 0 - 10.0.0.2:1025 1 0 malformed request: malformed it is"},
	},
	{name: "a request that is too large", codec: "toy.bounded", do: func(e *toyEnv) {
		e.say("req 1 m size=50;" + strings.Repeat("x", 33))
		require.False(e.t, e.c.Closed())
	}, want: []string{"request - 400 - DPE bad_request 50/78 0/0 0 - 10.0.0.2:1025 1 0 malformed request: a frame of 50 bytes is larger than the limit of 40"}},
	{name: "a request that is far too large", codec: "toy.bounded", do: func(e *toyEnv) {
		e.say("req 1 m size=9999;")
		require.True(e.t, e.c.Closed())
	}, want: []string{"request - 400 - DPE bad_request 18/80 0/0 0 - 10.0.0.2:1025 1 0 malformed request: a frame of 9999 bytes is larger than the limit of 40"}},
	{name: "too many requests", more: `, "upstream": {"max_requests": 1}`, do: func(e *toyEnv) {
		e.say("req 1 m hello", "req 2 m hello")
		e.answer(e.server(0), "res 0 m ok")
	}, want: []string{
		"request /m 200 0 - via_upstream 14/11 14/11 1 h1 10.0.0.2:1025 1 0 -",
		"request /m 503 - UO upstream_reset_before_response_started{overflow} 14/40 0/0 1 - 10.0.0.2:1025 1 0 too many requests are in flight",
	}},
	{
		name: "a circuit breaker", table: `, "clusters": [{"name": "up", "circuit_breakers": {"max_requests": 0}}]`,
		do:   func(e *toyEnv) { e.say("req 1 m hello") },
		want: []string{"request /m 503 - UO upstream_reset_before_response_started{overflow} 14/52 0/0 0 - 10.0.0.2:1025 1 0 circuit breaker of cluster up: max_requests"},
	},
	{name: "answers that wait are too many", more: `, "limits": {"max_write_buffer_bytes": 40}`, do: func(e *toyEnv) {
		e.say("req 1 m a", "req 1 m b", "req 1 m c") // with one id, so that their order tells them apart
		for _, i := range []int{1, 2, 0} {
			e.answer(e.server(i), "res 1 m "+strings.Repeat("x", 20))
		}
	}, want: []string{
		"request /m 200 0 - via_upstream 10/29 10/29 1 h1 10.0.0.2:1025 1 0 -",
		"request /m 200 0 - via_upstream 10/29 10/29 1 h1 10.0.0.2:1025 1 0 -",
		"request /m 503 - UO upstream_reset_before_response_started{overflow} 10/58 10/29 1 h1 10.0.0.2:1025 1 0 too many bytes of answers wait for the one before",
	}},
	{name: "retried", route: `, "retry_policy": {` + quick + `}`, do: func(e *toyEnv) {
		e.up.SetHosts("h1", "h2")
		e.serveAs(map[string]string{"h1": "nope", "h2": "res"})
		e.say("req 1 m hello")
		e.Advance(50 * time.Millisecond)
	}, want: []string{"request /m 200 0 - via_upstream 14/14 22/14 2 h1,h2 10.0.0.2:1025 1 4 -"}},
	{name: "retried too often", route: `, "retry_policy": {` + quick + `}`, do: func(e *toyEnv) {
		e.serveAs(map[string]string{"h1": "nope"})
		e.say("req 1 m hello")
		e.Advance(50 * time.Millisecond)
	}, want: []string{"request /m 500 4 URX via_upstream 14/15 22/15 2 h1,h1 10.0.0.2:1025 1 4 -"}},
	{name: "a panic of a filter", chain: `{"name": "test"},`, do: func(e *toyEnv) {
		e.MayPanic()
		current.onRequest = func(*filter.Message) filter.Verdict { panic("boom") }
		e.say("req 1 m hello")
	}, want: []string{"request /m 500 - - internal_error 14/23 0/0 0 - 10.0.0.2:1025 1 0 internal error"}},
	{name: "a filter refuses", chain: `{"name": "test"},`, do: func(e *toyEnv) {
		current.onRequest = func(m *filter.Message) filter.Verdict {
			m.SetDetails("denied by test")
			return m.Reply(codecs.Denied, "no")
		}
		e.say("req 1 m hello")
	}, want: []string{"request /m 403 - UAEX denied_by_test 14/11 0/0 0 - 10.0.0.2:1025 1 0 no"}},
	{name: "a filter refuses an answer", chain: `{"name": "test"},`, do: func(e *toyEnv) {
		current.onResponse = func(m *filter.Message) filter.Verdict { return m.Reply(codecs.BadResponse, "no") }
		e.say("req 1 m hello")
		e.answer(e.server(0), "res 0 m ok")
	}, want: []string{"request /m 502 - UPE upstream_reset_before_response_started{protocol_error} 14/11 14/11 1 h1 10.0.0.2:1025 1 0 no"}},
	{
		name: "RBAC", chain: `{"name": "aeraki.meta_protocol.filters.rbac", "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.rbac.v1alpha.RBAC", "rules": {"policies": {}}}},`,
		do:   func(e *toyEnv) { e.say("req 1 m hello") },
		want: []string{"request /m 403 - UAEX rbac_access_denied_matched_policy[none] 14/28 0/0 0 - 10.0.0.2:1025 1 0 RBAC: access denied"},
	},
	{name: "a local rate limit", chain: `{"name": "aeraki.meta_protocol.filters.local_ratelimit", "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.local_ratelimit.v1alpha.LocalRateLimit",
		"stat_prefix": "l", "token_bucket": {"max_tokens": 1, "fill_interval": "3600s"}}},`, do: func(e *toyEnv) {
		e.say("req 1 m hello", "req 2 m hello")
		e.answer(e.server(0), "res 0 m ok")
	}, want: []string{
		"request /m 200 0 - via_upstream 14/11 14/11 1 h1 10.0.0.2:1025 1 0 -",
		"request /m 429 - RL local_rate_limited 14/60 0/0 0 - 10.0.0.2:1025 1 0 local rate limit: the request has been rate limited",
	}},
	{name: "an injected fault", chain: `{"name": "aeraki.meta_protocol.filters.fault", "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.fault.v1alpha.Fault",
		"delay": {"fixed_delay": "0.1s", "percentage": {"numerator": 100}}, "abort": {"reply": {"body": "fault"}, "percentage": {"numerator": 100}}}},`, do: func(e *toyEnv) {
		e.say("req 1 m hello")
		e.Advance(100 * time.Millisecond)
	}, want: []string{"request /m 500 - DI,FI fault_filter_abort 14/14 0/0 0 - 10.0.0.2:1025 1 100 fault"}},
	{name: "a rate limit service that says nothing", chain: ofOurs("ratelimit", "ratelimit", "RateLimit", `"domain": "d", "timeout": "0.05s", "failure_mode_deny": true,
		"rate_limit_service": {"grpc_service": {"envoy_grpc": {"cluster_name": "mute"}}}, "descriptors": [{"property": "method", "descriptor_key": "method"}]`), do: func(e *toyEnv) {
		e.Cluster("mute", "h").Hang = true
		e.say("req 1 m hello")
		e.Advance(100 * time.Millisecond)
	}, want: []string{"request /m 500 - RLSE rate_limiter_error 14/38 0/0 0 - 10.0.0.2:1025 1 52 the rate limit service failed"}},
	{name: "a service of policies that says nothing", chain: ofOurs("ext_authz", "ext_authz", "ExtAuthz", `"grpc_service": {"envoy_grpc": {"cluster_name": "mute"}, "timeout": "0.05s"}`), do: func(e *toyEnv) {
		e.Cluster("mute", "h").Hang = true
		e.say("req 1 m hello")
		e.Advance(100 * time.Millisecond)
	}, want: []string{"request /m 403 - UAEX ext_authz_error 14/41 0/0 0 - 10.0.0.2:1025 1 52 the authorization service failed"}},
	{
		name: "a quota of none", chain: ofOurs("rate_limit_quota", "rate_limit_quota", "RateLimitQuota", `"domain": "d", "rlqs_server": {"envoy_grpc": {"cluster_name": "mute"}},
		"buckets": [{"bucket_id_builder": {"name": {"string_value": "all"}}, "reporting_interval": "5s", "no_assignment_behavior": {"fallback_rate_limit": {"blanket_rule": "DENY_ALL"}}}]`),
		do: func(e *toyEnv) { e.Cluster("mute", "h").Hang = true; e.say("req 1 m hello") }, want: []string{"request /m 429 - RL rate_limited_by_quota 14/28 0/0 0 - 10.0.0.2:1025 1 0 rate limit exceeded"},
	},
	{
		name: "a consumer that nobody knows", chain: ofOurs("consumer", "consumer", "Consumers", `"key_names": ["key"], "consumers": [{"name": "c", "keys": ["long-enough-to-be-a-key"]}]`),
		do: func(e *toyEnv) { e.say("req 1 m hello") }, want: []string{"request /m 403 - UAEX consumer_unknown 14/25 0/0 0 - 10.0.0.2:1025 1 0 unknown consumer"},
	},
	{name: "a connection too many", chain: ofOurs("connection_limit", "connection_limit", "ConnectionLimit", `"stat_prefix": "c", "max_connections": 1`), do: func(e *toyEnv) {
		second := e.Dial(e.cfg)
		second.Send([]byte("req 1 m hello\n"))
		second.Close()
	}, want: []string{"request /m 429 - RL connection_limit_reached 14/57 0/0 0 - 10.0.0.2:1026 2 0 connection limit: there are too many connections"}},
	{name: "too much at once", chain: ofOurs("adaptive_concurrency", "adaptive_concurrency", "AdaptiveConcurrency", `"gradient_controller_config": {
		"concurrency_limit_params": {"concurrency_update_interval": "0.1s", "initial_concurrency_limit": 1}, "min_rtt_calc_params": {"interval": "30s", "min_concurrency": 1}}`), do: func(e *toyEnv) {
		e.say("req 1 m hello", "req 2 m hello")
		e.answer(e.server(0), "res 0 m ok")
	}, want: []string{
		"request /m 200 0 - via_upstream 14/11 14/11 1 h1 10.0.0.2:1025 1 0 -",
		"request /m 503 - UO reached_concurrency_limit 14/41 0/0 0 - 10.0.0.2:1025 1 0 the concurrency limit is reached",
	}},
	{
		name: "a script refuses", chain: ofOurs("lua", "lua", "Lua", `"default_source_code": {"inline_string": "function envoy_on_request(h) h:respond({status = 'DENIED'}, 'who?') end"}`),
		do: func(e *toyEnv) { e.say("req 1 m hello") }, want: []string{"request /m 403 - UAEX lua_response 14/13 0/0 0 - 10.0.0.2:1025 1 0 who?"},
	},
	{
		name: "a script fails", chain: ofOurs("lua", "lua", "Lua", `"failure_mode_deny": true, "default_source_code": {"inline_string": "function envoy_on_request(h) error('no') end"}`),
		do: func(e *toyEnv) { e.say("req 1 m hello") }, want: []string{"request /m 500 - - lua_error 14/24 0/0 0 - 10.0.0.2:1025 1 0 a script failed"},
	},
	{name: "left by its client", do: func(e *toyEnv) {
		e.say("req 1 m hello")
		e.c.Close()
	}, want: []string{"request /m 0 - DC downstream_remote_disconnect 14/0 14/0 1 h1 10.0.0.2:1025 1 0 -"}},
	{name: "left by its client, as its answer waits", do: func(e *toyEnv) {
		e.say("req 1 m a", "req 1 m b")
		e.answer(e.server(1), "res 1 m b")
		e.c.Close()
	}, want: []string{
		"request /m 200 0 DC downstream_remote_disconnect 10/0 10/10 1 h1 10.0.0.2:1025 1 0 -",
		"request /m 0 - DC downstream_remote_disconnect 10/0 10/0 1 h1 10.0.0.2:1025 1 0 -",
	}},
	{name: "a stream", do: func(e *toyEnv) {
		e.say("init 1 m hello")
		s := e.server(0)
		e.answer(s, "init 1 m ok", "data 1 - welcome")
		e.say("data 1 - more", "half 1 - done")
		e.answer(s, "half 1 - done")
	}, want: []string{"stream /m 200 0 - via_upstream 43/43 43/43 1 h1 10.0.0.2:1025 1 0 -"}},
	{name: "a stream that is lost", do: func(e *toyEnv) {
		e.say("init 1 m hello")
		e.answer(e.server(0), "init 1 m ok")
		e.server(0).Close()
		e.Settle()
	}, want: []string{"stream /m 503 - UC upstream_reset_after_response_started{connection_termination} 15/86 15/12 1 h1 10.0.0.2:1025 1 0 upstream connection ended before the answer: closed by the server"}},
	{name: "a stream on which nothing happens", do: func(e *toyEnv) {
		e.say("init 1 m hello")
		e.answer(e.server(0), "init 1 m ok")
		e.Advance(5 * time.Minute)
	}, want: []string{"stream /m 504 - SI stream_idle_timeout 15/40 15/12 1 h1 10.0.0.2:1025 1 300000 stream idle timeout"}},
	{name: "a stream with a malformed frame", do: func(e *toyEnv) {
		e.say("init 1 m hello")
		e.answer(e.server(0), "init 1 m ok")
		e.say("data 1 m malformed")
	}, want: []string{"stream /m 400 - DPE bad_request 15/59 15/12 1 h1 10.0.0.2:1025 1 0 malformed frame of a stream: malformed"}},
	{
		name: "too many streams", more: `, "limits": {"max_streams": 0}`, do: func(e *toyEnv) { e.say("init 1 m hello") },
		want: []string{"stream /m 503 - UO upstream_reset_before_response_started{overflow} 15/48 0/0 0 - 10.0.0.2:1025 1 0 too many open streams on one connection"},
	},
	{name: "a stream that its client leaves", do: func(e *toyEnv) {
		e.say("init 1 m hello")
		e.answer(e.server(0), "init 1 m ok")
		e.c.Close()
	}, want: []string{"stream /m 200 0 DC downstream_remote_disconnect 15/12 15/12 1 h1 10.0.0.2:1025 1 0 -"}},
	{name: "a client that is closed", do: func(e *toyEnv) {
		e.say("init 1 m hello")
		e.answer(e.server(0), "init 1 m ok")
		e.say("nonsense")
	}, want: []string{"stream /m 200 0 DC downstream_local_disconnect 15/12 15/12 1 h1 10.0.0.2:1025 1 0 -"}},
	{
		name: "a direct response", table: `, "routes": [{"direct_response": {"status": "BAD_REQUEST", "body": "closed"}}]`,
		do:   func(e *toyEnv) { e.say("req 1 m hello") },
		want: []string{"request /m 400 - - direct_response 14/15 0/0 0 - 10.0.0.2:1025 1 0 closed"},
	},
	{name: "heartbeats, unless they are asked for", do: func(e *toyEnv) { e.say("hb 1 - -") }},
	{
		name: "heartbeats", codec: "toy.bounded", more: `, "access_log_options": {"log_heartbeats": true}`, do: func(e *toyEnv) { e.say("hb 1 - -", "bye") },
		want: []string{
			"heartbeat /- 200 - - health_check_ok 9/12 0/0 0 - 10.0.0.2:1025 1 0 -",
			"heartbeat - 0 - - - 0/0 0/0 0 - 10.0.0.2:1025 1 0 -",
		},
	},
	{name: "heartbeats in their turn", codec: "toy.inorder", more: `, "access_log_options": {"log_heartbeats": true}`, do: func(e *toyEnv) {
		e.say("req 1 m a", "hb 2 - -")
		e.Advance(20 * time.Millisecond)
		e.answer(e.server(0), "res 0 m ok")
	}, want: []string{
		"request /m 200 0 - via_upstream 10/11 10/11 1 h1 10.0.0.2:1025 1 20 -",
		"heartbeat /- 200 - - health_check_ok 9/12 0/0 0 - 10.0.0.2:1025 1 20 -",
	}},
	{
		name: "copies, unless they are asked for", route: mirrored, do: mirrorOne,
		want: []string{"request /m 200 0 - via_upstream 14/11 14/11 1 h1 10.0.0.2:1025 1 0 -"},
	},
	{
		name: "copies", route: mirrored, more: `, "access_log_options": {"log_mirrors": true}`, do: mirrorOne,
		want: []string{
			"request /m 200 0 - via_upstream 14/11 14/11 1 h1 10.0.0.2:1025 1 0 -",
			"mirror /m 200 0 - via_upstream 0/0 14/15 1 m1 10.0.0.2:1025 1 30 -",
		},
	},
	{name: "copies that fail when the client has gone", route: mirrored, more: `, "access_log_options": {"log_mirrors": true}`, do: func(e *toyEnv) {
		m := e.Cluster("mirror", "m1")
		e.say("req 1 m hello")
		e.answer(e.server(0), "res 0 m ok")
		e.c.Close()
		m.Servers()[0].Close()
		e.Settle()
	}, want: []string{
		"request /m 200 0 - via_upstream 14/11 14/11 1 h1 10.0.0.2:1025 1 0 -",
		"mirror /m 503 - UC upstream_reset_before_response_started{connection_termination} 0/0 14/0 1 m1 10.0.0.2:1025 1 0 upstream connection ended before the answer: closed by the server",
	}},
}

const mirrored = `, "request_mirror_policies": [{"cluster": "mirror"}]`

func mirrorOne(e *toyEnv) {
	m := e.Cluster("mirror", "m1")
	e.say("req 1 m hello")
	e.answer(e.server(0), "res 0 m ok")
	e.Advance(30 * time.Millisecond)
	e.answer(m.Servers()[0], "res 0 m copied")
}

// TestEachFlagHasALine, and so does each type of local reply.
func TestEachFlagHasALine(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range endings {
		for _, line := range e.want {
			for _, field := range []int{2, 4} {
				for _, v := range strings.Split(strings.Fields(line)[field], ",") {
					seen[v] = true
				}
			}
		}
	}
	for f := facts.Flags(1); f <= facts.NoClusterFound; f <<= 1 {
		require.True(t, seen[f.String()], f)
	}
	for _, code := range []string{"0", "200", "400", "403", "404", "429", "500", "502", "503", "504"} {
		require.True(t, seen[code], code)
	}
}

// TestALineForEachEnd: whatever the end of a request is there is one line, with its flags
// and details, and the bytes the right way round.
func TestALineForEachEnd(t *testing.T) {
	for _, tt := range endings {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			current = &testFilter{}
			routes := `{"name": "r", "routes": [{"match": {"metadata": [{"name": "method", "string_match": {"prefix": "m"}}]}, "route": {"cluster": "up" ` + tt.route + `}}]` + tt.table + `}`
			if strings.Contains(tt.table, "routes") {
				routes = `{"name": "r"` + tt.table + `}`
			}
			mod := filter.NewModule()
			mod.Seed(1)
			h := filtertest.NewWith(t, mod, 1)
			// Services of filters say nothing: not even whether they are there.
			h.DialCluster = func(ctx context.Context, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			e := &toyEnv{Host: h, t: t, up: h.Cluster("up", "h1")}
			e.cfg = h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "toy", "codec": {"name": "` + cmp.Or(tt.codec, "toy.exclusive") + `"}}, "route_config": ` + routes + tt.more + `,
				"meta_protocol_filters": [` + tt.chain + `{"name": "aeraki.meta_protocol.filters.router"}],
				"access_log": [` + accessLog(path, lineOf) + `]}`)
			e.c = h.Dial(e.cfg)
			tt.do(e)
			e.c.Close()
			got := logLines(t, h, path, len(tt.want))
			for i := range got {
				got[i] = strings.TrimSuffix(got[i], "\n")
			}
			require.ElementsMatch(t, tt.want, got, "%s", strings.Join(got, "\n"))
		})
	}
}
