package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// sameFormat is a format whose members say the same of a call by HTTP through Envoy's
// connection manager and of one by Dubbo through Meltemi; and kinds whose members have the
// same type in both.
var (
	sameFormat = envoytest.M{
		"code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "long_flags": "%RESPONSE_FLAGS_LONG%", "details": "%RESPONSE_CODE_DETAILS%",
		"attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "tenant": "%REQ(tenant)%", "cut": "%REQ(tenant):5%", "other": "%REQ(none?TENANT)%",
		"none": "%REQ(none)%", "none_of_answer": "%RESP(none)%", "in_text": "%REQ(none)% of %RESPONSE_CODE%: %REQ(tenant):3%, 100%%", "constant": "text",
		"nested": envoytest.M{"list": []any{"%RESPONSE_CODE%", "%REQ(none)%", "x%RESPONSE_CODE%", 1.5, -2, true, nil}, "object": envoytest.M{"route": "%ROUTE_NAME%"}},
		"method": "%REQ(:METHOD)%", "env": "%ENVIRONMENT(HOME)%", "env_none": "%ENVIRONMENT(MELTEMI_NONE)%", "host_name": "%HOSTNAME%", "type": "%ACCESS_LOG_TYPE%",
		"ip": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "masked": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(9)%", "direct_ip": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
		"local_ip": "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(16)%", "server": "%REQUESTED_SERVER_NAME%", "peer": "%DOWNSTREAM_PEER_URI_SAN%", "tls": "%DOWNSTREAM_TLS_VERSION%",
		"trace": "%TRACE_ID%", "span": "%SPAN_ID%", "terminated": "%CONNECTION_TERMINATION_DETAILS%", "transport": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
		"cluster": "%UPSTREAM_CLUSTER_RAW%", "upstream_ip": "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "upstream_masked": "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8)%",
		"zone": "%START_TIME(%z %Z)%", "dynamic": "%DYNAMIC_METADATA(none:none)%", "first": `%COALESCE({"operators": ["REQUESTED_SERVER_NAME", {"command": "REQ", "param": "tenant"}]})%`,
	}
	sameTypes = envoytest.M{
		"start": "%START_TIME%", "seconds": "%START_TIME(%s.%3f)%", "emit": "%EMIT_TIME%", "duration": "%DURATION%", "to_server": "%REQUEST_TX_DURATION%",
		"from_server": "%RESPONSE_DURATION%", "to_client": "%RESPONSE_TX_DURATION%", "common": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%", "unique": "%UNIQUE_ID%", "stream": "%STREAM_ID%",
		"protocol": "%PROTOCOL%", "remote": "%DOWNSTREAM_REMOTE_ADDRESS%", "remote_port": "%DOWNSTREAM_REMOTE_PORT%", "direct_port": "%DOWNSTREAM_DIRECT_REMOTE_PORT%", "local": "%DOWNSTREAM_LOCAL_ADDRESS%",
		"local_port": "%DOWNSTREAM_LOCAL_PORT%", "connection": "%CONNECTION_ID%", "host": "%UPSTREAM_HOST%", "upstream_name": "%UPSTREAM_HOST_NAME%", "upstream_port": "%UPSTREAM_REMOTE_PORT%",
		"upstream_protocol": "%UPSTREAM_PROTOCOL%", "path": "%REQ(:PATH)%", "received": "%BYTES_RECEIVED%", "sent": "%BYTES_SENT%", "hosts": "%UPSTREAM_HOSTS_ATTEMPTED%",
		"down_received": "%DOWNSTREAM_WIRE_BYTES_RECEIVED%", "down_sent": "%DOWNSTREAM_WIRE_BYTES_SENT%", "up_received": "%UPSTREAM_WIRE_BYTES_RECEIVED%", "up_sent": "%UPSTREAM_WIRE_BYTES_SENT%",
	}
)

// TestLinesAreEnvoys: of calls with the same end, an access log of Envoy's own for HTTP and
// one of Meltemi's with the same format say the same: values where they are known to both,
// else of the same type, null where there is nothing, and bytes the same way round.
func TestLinesAreEnvoys(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		if v.version < "1.40" {
			t.Skip("some operators of the format are newer")
		}
		waits := make(chan struct{})
		web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			switch _, _ = io.Copy(io.Discard, r.Body); r.URL.Path {
			case "/lost":
				panic(http.ErrAbortHandler)
			case "/waits":
				<-waits
			}
		}))
		defer web.Close()
		defer close(waits)
		httpPort := web.Listener.Addr().(*net.TCPAddr).Port
		rpc := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			switch {
			case strings.Contains(string(req.Body), "lost"):
				c.Close()
			case !strings.Contains(string(req.Body), "waits"):
				scripted.Answer("")(c, req)
			}
		})
		dir := t.TempDir()
		format := envoytest.M{"same": sameFormat, "types": sameTypes}
		log := func(name string) []any {
			return []any{envoytest.M{"name": "envoy.access_loggers.file", "typed_config": envoytest.M{
				"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": filepath.Join(dir, name),
				"log_format": envoytest.M{"json_format": format},
			}}}
		}
		ours := envoytest.Dubbo("test",
			envoytest.M{"name": "gone", "match": asks("gone"), "route": envoytest.M{"cluster": "gone"}},
			envoytest.M{"name": "empty", "match": asks("empty"), "route": envoytest.M{"cluster": "empty"}},
			envoytest.M{"name": "late", "match": asks("waits"), "route": envoytest.M{"cluster": "dubbo", "timeout": "3s"}},
			envoytest.M{"name": "direct", "match": asks("direct"), "direct_response": envoytest.M{"status": "DENIED", "body": "no"}},
			envoytest.M{"name": "all", "match": envoytest.M{"metadata": []any{envoytest.M{"name": "method", "string_match": envoytest.M{"exact": "none"}, "invert_match": true}}}, "route": envoytest.M{"cluster": "dubbo"}})
		ours["access_log"] = log("ours")
		route := func(name, path string, action envoytest.M) envoytest.M {
			r := envoytest.M{"name": name, "match": envoytest.M{"path": path}}
			for k, v := range action {
				r[k] = v
			}
			return r
		}
		to := func(cluster string) envoytest.M { return envoytest.M{"route": envoytest.M{"cluster": cluster}} }
		manager := envoytest.M{"name": "hcm", "typed_config": envoytest.M{
			"@type":       "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": "hcm", "access_log": log("envoys"),
			"http_filters": []any{envoytest.M{"name": "router", "typed_config": envoytest.M{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}},
			"route_config": envoytest.M{"virtual_hosts": []any{envoytest.M{"name": "all", "domains": []any{"*"}, "routes": []any{
				route("gone", "/gone", to("gone")),
				route("empty", "/empty", to("empty")),
				route("late", "/waits", envoytest.M{"route": envoytest.M{"cluster": "http", "timeout": "3s"}}),
				route("direct", "/direct", envoytest.M{"direct_response": envoytest.M{"status": 403, "body": envoytest.M{"inline_string": "no"}}}),
				route("all", "/ok", to("http")), route("all", "/lost", to("http")),
				route("all", "/left", envoytest.M{"route": envoytest.M{"cluster": "http", "prefix_rewrite": "/waits"}}),
			}}}},
		}}
		o := v.options()
		o.Args = []string{"--file-flush-interval-msec", "50"}
		o.Clusters = []envoytest.Resource{
			envoytest.Cluster("http", envoytest.At(httpPort)...), envoytest.Cluster("dubbo", envoytest.At(rpc.Port)...),
			envoytest.Cluster("gone", refused(t)...), envoytest.Cluster("empty"),
		}
		o.Listeners = []envoytest.Resource{envoytest.Loopback(envoytest.Socket()), envoytest.Listener("dubbo", envoytest.Proxy(ours)), envoytest.Listener("http", manager)}
		e := envoytest.Start(t, o)

		text := strings.Repeat("x", 1000)
		for i, call := range []string{"ok", "none", "direct", "gone", "empty", "lost", "waits", "left"} {
			t.Run(call, func(t *testing.T) {
				nc := e.Dial("http")
				_, err := io.WriteString(nc, "POST /"+call+" HTTP/1.1\r\nHost: x\r\ntenant: acme-corp\r\nContent-Length: "+strconv.Itoa(len(text))+"\r\n\r\n"+text)
				require.NoError(t, err)
				rpcMethod := map[string]string{"left": "left waits"}[call]
				if rpcMethod == "" {
					rpcMethod = call
				}
				c := scripted.Dial(t, e.Port("dubbo"))
				c.Ask(1, dubbotest.Request{Method: rpcMethod, Argument: text, Attachments: [][2]string{{"tenant", "acme-corp"}}})
				if call == "left" {
					e.WaitStat("cluster.http.upstream_rq_active", envoytest.Exactly(1))
					require.True(t, eventually(patience, func() bool { return rpc.Requests() == 4 }))
					for _, c := range []*net.TCPConn{nc, c.TCPConn} {
						require.NoError(t, c.SetLinger(0)) // it ends at once, and not only what it sends
						require.NoError(t, c.Close())
					}
				} else {
					resp := make([]byte, 12)
					_, err = io.ReadFull(nc, resp)
					require.NoError(t, err)
					nc.Close()
					c.Answers(1)
				}
				line := func(name string) (l struct{ Same, Types map[string]any }) {
					t.Helper()
					var ls []string
					require.Eventually(t, func() bool { ls = loggedLines(t, filepath.Join(dir, name)); return len(ls) > i }, patience, tick, name)
					require.Len(t, ls, i+1)
					require.NoError(t, json.Unmarshal([]byte(ls[i]), &l))
					return l
				}
				mine, theirs := line("ours"), line("envoys")
				if theirs.Same["cluster"] == "http" {
					theirs.Same["cluster"] = "dubbo"
				}
				if call == "gone" { // of which modules are not told
					delete(theirs.Same, "transport")
					delete(mine.Same, "transport")
					cause, _, _ := strings.Cut(theirs.Same["details"].(string), "|")
					theirs.Same["details"] = cause + "}"
					for _, k := range []string{"host", "upstream_name"} { // that was tried
						delete(theirs.Types, k)
						delete(mine.Types, k)
					}
					if v.golang { // there might be other hosts, so that it is tried once more
						require.EqualValues(t, 2, mine.Same["attempts"])
						theirs.Same["attempts"] = mine.Same["attempts"]
					}
				}
				require.Equal(t, theirs.Same, mine.Same)
				types := func(of map[string]any) map[string]string {
					all := map[string]string{}
					for k, v := range of {
						all[k] = fmt.Sprintf("%T", v)
					}
					return all
				}
				require.Equal(t, types(theirs.Types), types(mine.Types))
				if theirs.Same["attempts"] == 0.0 || theirs.Types["to_server"] == nil {
					return // HTTP's request need not have come to its end
				}
				for _, ways := range [][2]string{{"received", "sent"}, {"down_received", "down_sent"}, {"up_sent", "up_received"}} {
					require.Equal(t, more(theirs.Types, ways), more(mine.Types, ways), ways)
				}
			})
		}
	})
}

// more reports whether one of two numbers is greater.
func more(of map[string]any, which [2]string) bool {
	a, _ := of[which[0]].(float64)
	b, _ := of[which[1]].(float64)
	return a > b
}

func asks(name string) envoytest.M {
	return envoytest.M{"metadata": []any{envoytest.M{"name": "method", "string_match": envoytest.M{"exact": name}}}}
}
