package accesslog_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/accesslog"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

const file = `"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "p"`

func parse(t *testing.T, logs ...string) (*accesslog.Logs, error) {
	t.Helper()
	var all []*accesslogv3.AccessLog
	for _, l := range logs {
		a := new(accesslogv3.AccessLog)
		require.NoError(t, protojson.Unmarshal([]byte(l), a))
		all = append(all, a)
	}
	return accesslog.Parse(all, nil)
}

// written is what the logs write of entries, to a file of the test's.
func written(t *testing.T, ls *accesslog.Logs, es ...*accesslog.Entry) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	var fs accesslog.Files
	var running sync.WaitGroup
	f, err := fs.Open(path, t.Logf)
	require.NoError(t, err)
	b := accesslog.NewBuffer(f)
	for _, e := range es {
		ls.Write(e, []*accesslog.Buffer{b})
	}
	b.Flush()
	fs.Begin(f, &running)
	fs.Close(f)
	running.Wait()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

type workload map[string]string

func (w workload) Field(name string) string { return w[name] }

func entry() *accesslog.Entry {
	req, resp := new(codecs.Metadata), new(codecs.Metadata)
	req.SetOperation([]byte("com.acme.Greeter"), []byte("hello"))
	req.Set("Tenant", "acme \"x\"\n\x01\xffü")
	resp.Set("cost", "12")
	return &accesslog.Entry{
		Facts: facts.Facts{
			Protocol: "dubbo", Route: "r", Cluster: "outbound|20880||greeter", Host: "10.0.0.3:20880", Attempts: 2,
			Hosts: []string{"[2001:db8::2]:20880", "10.0.0.3:20880"}, Trace: facts.Trace{ID: [16]byte{0x4b, 15: 1}, Span: [8]byte{0xab}},
			ReceivedBytes: 87, SentBytes: 19, ResponseBytes: 18, UpstreamSentBytes: 90, UpstreamReceivedBytes: 18, Code: 20, Flags: facts.UpstreamRetryLimitExceeded | facts.DelayInjected,
			Start: time.Second, Sent: time.Second + 5*time.Millisecond, Answered: time.Second + 40*time.Millisecond + 999*time.Microsecond, End: time.Second + 41*time.Millisecond,
		},
		Request: req, Response: resp, RemoteAddress: "[2001:db8::1]:4000", DirectRemoteAddress: "10.9.8.7:5000", LocalAddress: "10.1.2.3:20880", ConnectionID: 7,
		TLS: &host.TLS{
			ServerName: "shop", URISANs: []string{"spiffe://a", "spiffe://b"}, DNSSANs: []string{"a.b"}, Subject: "CN=a,O=x",
			Fingerprint: "c0ffee", Version: "TLSv1.3", OwnURISAN: "spiffe://me", OwnDNSSAN: "me", OwnSubject: "CN=me",
		},
		Source: workload{"workload": "web"}, Rand: [2]uint64{0x0706050403020100, 0x0f0e0d0c0b0a0908},
		StartTime: time.Date(2026, 11, 29, 1, 2, 3, 4_005_006, time.UTC),
	}
}

// TestALongPropertyIsCut: lines are written by workers.
func TestALongPropertyIsCut(t *testing.T) {
	const most = 16 << 10
	e := entry()
	long := strings.Repeat("x", most-1) + strings.Repeat("ü", 1<<20)
	e.Request.Set("long", long)
	e.Request.Set("x-request-id", long)
	e.Request.SetOperation([]byte(strings.Repeat("s", 1<<20)), []byte(strings.Repeat("m", 1<<20)))
	for op, want := range map[string]int{
		"%REQ(long)%": most - 1, "%REQ(none?long)%": most - 1, "%REQ(long):100000%": most - 1, "%REQ(long):10%": 10,
		"%DYNAMIC_METADATA(x:long)%": most - 1, "%STREAM_ID%": most - 1, "%REQ(:PATH)%": 2*most + 2,
	} {
		ls, err := parse(t, `{"typed_config": {`+file+`, "log_format": {"text_format_source": {"inline_string": "`+op+`"}}}}`)
		require.NoError(t, err)
		require.Len(t, written(t, ls, e), want, op)
	}
}

// TestOperators tells what each says, in a text and alone in JSON. Values are those of
// Envoy's formatter.
func TestOperators(t *testing.T) {
	t.Setenv("MELTEMI_TEST_ZONE", "eu-1")
	for op, want := range map[string]string{ // JSON
		"%PROTOCOL%":                                     `"dubbo"`,
		"%REQ(:PATH)%":                                   `"/com.acme.Greeter/hello"`,
		"%REQ(:METHOD)%":                                 `"POST"`,
		"%REQ(tenant)%":                                  `"acme \"x\"\n\u0001` + "\ufffdü\"",
		"%REQ(TENANT):4%":                                `"acme"`,
		"%REQ(none?tenant):3%":                           `"acm"`,
		"%REQ(none)%":                                    `null`,
		"%RESP(cost)%":                                   `"12"`,
		"%RESP(none)%":                                   `null`,
		"%DYNAMIC_METADATA(x:tenant):4%":                 `"acme"`,
		"%RESPONSE_CODE%":                                `200`,
		"%STATUS_CODE%":                                  `20`,
		"%RESPONSE_CODE_DETAILS%":                        `"via_upstream"`,
		"%RESPONSE_FLAGS%":                               `"DI,URX"`,
		"%RESPONSE_FLAGS_LONG%":                          `"DelayInjected,UpstreamRetryLimitExceeded"`,
		"%BYTES_RECEIVED%":                               `87`,
		"%BYTES_SENT%":                                   `19`,
		"%DURATION%":                                     `41`,
		"%REQUEST_TX_DURATION%":                          `5`,
		"%RESPONSE_DURATION%":                            `40`,
		"%RESPONSE_TX_DURATION%":                         `0`,
		"%COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%":      `35999`,
		"%START_TIME%":                                   `"2026-11-29T01:02:03.004Z"`,
		"%START_TIME(%s.%3f)%":                           `"1795914123.004"`,
		"%START_TIME(%Y/%m/%dT%H:%M:%S%z %6f %f)%":       `"2026/11/29T01:02:03+0000 004005 004005006"`,
		"%EMIT_TIME%":                                    `"2026-11-29T01:02:03.045Z"`,
		"%UPSTREAM_HOST%":                                `"10.0.0.3:20880"`,
		"%UPSTREAM_CLUSTER%":                             `"outbound|20880||greeter"`,
		"%UPSTREAM_REQUEST_ATTEMPT_COUNT%":               `2`,
		"%ROUTE_NAME%":                                   `"r"`,
		"%DOWNSTREAM_REMOTE_ADDRESS%":                    `"[2001:db8::1]:4000"`,
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%":       `"2001:db8::1"`,
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%":   `"2001::/16"`,
		"%DOWNSTREAM_REMOTE_PORT%":                       `4000`,
		"%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(24)%":    `"10.1.2.0/24"`,
		"%DOWNSTREAM_LOCAL_PORT%":                        `20880`,
		"%CONNECTION_ID%":                                `7`,
		"%MESSAGE_TYPE%":                                 `"request"`,
		"%ENVIRONMENT(MELTEMI_TEST_ZONE)%":               `"eu-1"`,
		"%EMIT_TIME_LOCAL(%Y)%":                          `"2026"`,
		"%TRACE_ID%":                                     `"4b000000000000000000000000000001"`,
		"%SPAN_ID%":                                      `"ab00000000000000"`,
		"%UNIQUE_ID%":                                    `"00010203-0405-4607-8809-0a0b0c0d0e0f"`,
		"%STREAM_ID%":                                    `"00010203-0405-4607-8809-0a0b0c0d0e0f"`,
		"%UPSTREAM_PROTOCOL%":                            `"dubbo"`,
		"%UPSTREAM_WIRE_BYTES_SENT%":                     `90`,
		"%UPSTREAM_WIRE_BYTES_RECEIVED%":                 `18`,
		"%UPSTREAM_HOST_NAME%":                           `"10.0.0.3:20880"`,
		"%UPSTREAM_HOST_NAME_WITHOUT_PORT%":              `"10.0.0.3"`,
		"%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8)%":      `"10.0.0.0/8"`,
		"%UPSTREAM_REMOTE_PORT%":                         `20880`,
		"%UPSTREAM_HOSTS_ATTEMPTED%":                     `"[2001:db8::2]:20880,10.0.0.3:20880"`,
		"%UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT%":        `"2001:db8::2,10.0.0.3"`,
		"%UPSTREAM_LOCAL_ADDRESS%":                       `null`,
		"%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%":             `"10.9.8.7:5000"`,
		"%DOWNSTREAM_DIRECT_REMOTE_PORT%":                `5000`,
		"%REQUESTED_SERVER_NAME%":                        `"shop"`,
		"%REQUESTED_SERVER_NAME(SNI_FIRST:HOST)%":        `"shop"`,
		"%DOWNSTREAM_PEER_URI_SAN%":                      `"spiffe://a,spiffe://b"`,
		"%DOWNSTREAM_PEER_DNS_SAN%":                      `"a.b"`,
		"%DOWNSTREAM_PEER_SUBJECT%":                      `"CN=a,O=x"`,
		"%DOWNSTREAM_PEER_FINGERPRINT_256%":              `"c0ffee"`,
		"%DOWNSTREAM_TLS_VERSION%":                       `"TLSv1.3"`,
		"%DOWNSTREAM_LOCAL_URI_SAN%":                     `"spiffe://me"`,
		"%DOWNSTREAM_LOCAL_DNS_SAN%":                     `"me"`,
		"%DOWNSTREAM_LOCAL_SUBJECT%":                     `"CN=me"`,
		"%FILTER_STATE(downstream_peer:FIELD:workload)%": `"web"`,
		"%FILTER_STATE(upstream_peer:FIELD:workload)%":   `null`,
		"%METADATA(DYNAMIC:x:tenant):4%":                 `"acme"`,
		"%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%":          `"35"`,
		"%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%":     `"via_upstream"`,
		"%ACCESS_LOG_TYPE%":                              `"DownstreamEnd"`,
		`%COALESCE({"operators": [{"command": "REQ", "param": "none"}, "LOCAL_REPLY_BODY", "ROUTE_NAME"]})%`:        `"r"`,
		`%COALESCE({"operators": ["LOCAL_REPLY_BODY", {"command": "REQ", "param": "tenant", "max_length": 4}]}):3%`: `"acm"`,
		`%COALESCE({"operators": ["DOWNSTREAM_REMOTE_PORT", "BYTES_SENT"]})%`:                                       `4000`,
		`%COALESCE({"operators": ["LOCAL_REPLY_BODY"]})%`:                                                           `null`,
		"%LOCAL_REPLY_BODY%":            `null`,
		"%ROUTE_NAME%%%":                `"r%"`,
		"in %DURATION% ms, %REQ(none)%": `"in 41 ms, -"`,
	} {
		b, err := json.Marshal(op)
		require.NoError(t, err)
		ls, err := parse(t, `{"typed_config": {`+file+`, "log_format": {"json_format": {"v": `+string(b)+`}}}}`)
		require.NoError(t, err, op)
		require.Equal(t, `{"v":`+want+"}\n", written(t, ls, entry()), op)
	}
}

func TestFormats(t *testing.T) {
	for _, tt := range []struct{ format, want string }{
		{`"format": "%REQ(none)% %DURATION%|"`, "- 41|"},
		{`"log_format": {"text_format_source": {"inline_string": "%REQ(none)% %DURATION%\n"}, "omit_empty_values": true}`, " 41\n"},
		{`"log_format": {"json_format": {"b": {"c": ["%DURATION%", "%REQ(none)%", 1.5, true, null]}, "a": "%REQ(none)%"}}`, `{"a":null,"b":{"c":[41,null,1.5,true,null]}}` + "\n"},
		{`"log_format": {"json_format": {"b": {"c": "%REQ(none)%"}, "a": "%DURATION%"}, "omit_empty_values": true}`, `{"a":41}` + "\n"},
		{`"typed_json_format": {"a": "%DURATION%"}`, `{"a":41}` + "\n"},
	} {
		ls, err := parse(t, `{"typed_config": {`+file+`, `+tt.format+`}}`)
		require.NoError(t, err)
		require.Equal(t, tt.want, written(t, ls, entry()))
	}
	ls, err := parse(t, `{"typed_config": {`+file+`}}`)
	require.NoError(t, err)
	require.Equal(t, `[2026-11-29T01:02:03.004Z] "dubbo /com.acme.Greeter/hello" 200 DI,URX via_upstream 87 19 41 2 "[2001:db8::1]:4000" "10.0.0.3:20880" outbound|20880||greeter r`+"\n", written(t, ls, entry()))
}

// TestNoLineIsForged: whatever bytes clients and servers put into what is logged, a request
// has one line, of text or JSON.
func TestNoLineIsForged(t *testing.T) {
	const hostile = "a\r\nb\x1b[2J\t\x00\x7f\"\\ü\xff\n"
	e := entry()
	e.Request = new(codecs.Metadata)
	e.Request.SetOperation([]byte(hostile), []byte(hostile))
	e.Request.Set("k", hostile)
	e.Response.Set("k", hostile)
	e.Replied, e.Local = true, codecs.LocalError{Message: hostile}
	e.RemoteAddress = "/tmp/s:1,\"forged\":2" // of a client's unix socket
	ls, err := parse(t, `{"typed_config": {`+file+`, "format": "%REQ(k)% %RESP(k):2%|%REQ(:PATH):3%|%LOCAL_REPLY_BODY%|%DOWNSTREAM_REMOTE_PORT%\n"}}`)
	require.NoError(t, err)
	const shown = `a\x0d\x0ab\x1b[2J\x09\x00\x7f"\ü` + "\xff" + `\x0a`
	require.Equal(t, shown+` a\x0d|/a\x0d|`+shown+"|-\n", written(t, ls, e))
	ls, err = parse(t, `{"typed_config": {`+file+`, "log_format": {"json_format": {
		"k": "%REQ(k)%", "in": "in %RESP(k)%", "port": "%DOWNSTREAM_REMOTE_PORT%"}}}}`)
	require.NoError(t, err)
	line := written(t, ls, e)
	require.Equal(t, 1, strings.Count(line, "\n"))
	var read map[string]any
	require.NoError(t, json.Unmarshal([]byte(line), &read))
	said := strings.ToValidUTF8(hostile, "\ufffd")
	require.Equal(t, map[string]any{"k": said, "in": "in " + said, "port": nil}, read)
}

func TestWhatIsRefused(t *testing.T) {
	for config, want := range map[string]string{
		`{}`: "access_log[0].typed_config: required",
		`{"typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"}}`: "access_log[0].typed_config.path: required",
		`{"typed_config": {` + file + `, "format": "%NOPE%"}}`:                                                     "access_log[0].typed_config.format: %NOPE%: unknown operator",
		`{"typed_config": {` + file + `, "format": "%TRAILER(x)%"}}`:                                               "access_log[0].typed_config.format: %TRAILER%: not supported: messages of RPC protocols do not have it: REQ and RESP name their properties",
		`{"typed_config": {` + file + `, "format": "%METADATA(CLUSTER:a:b)%"}}`:                                    "access_log[0].typed_config.format: %METADATA%: CLUSTER: Envoy does not tell modules of it",
		`{"typed_config": {` + file + `, "format": "%UPSTREAM_TLS_VERSION%"}}`:                                     "access_log[0].typed_config.format: %UPSTREAM_TLS_VERSION%: not supported: Envoy does not tell modules of its connections to servers",
		`{"typed_config": {` + file + `, "format": "%FILTER_STATE(x:PLAIN)%"}}`:                                    "access_log[0].typed_config.format: %FILTER_STATE%: is there only as downstream_peer:FIELD: or upstream_peer:FIELD: and one of app, cluster, name, namespace, revision, service, version, workload",
		`{"typed_config": {` + file + `, "format": "%COALESCE({\"operators\": [\"NOPE\"]})%"}}`:                    "access_log[0].typed_config.format: %COALESCE%: operators[0]: NOPE: unknown operator",
		`{"typed_config": {` + file + `, "format": "%COALESCE({})%"}}`:                                             "access_log[0].typed_config.format: %COALESCE%: want {\"operators\": [...]} in parentheses, with an operator or more",
		`{"typed_config": {` + file + `, "format": "%REQUESTED_SERVER_NAME(HOST_FIRST)%"}}`:                        "access_log[0].typed_config.format: %REQUESTED_SERVER_NAME%: \"HOST_FIRST\": it is HTTP's",
		`{"typed_config": {` + file + `, "format": "100 % sure"}}`:                                                 "access_log[0].typed_config.format: no operator begins at \"% sure\": a percent sign is written %%",
		`{"typed_config": {` + file + `, "format": "%START_TIME(%Q)%"}}`:                                           "access_log[0].typed_config.format: %START_TIME%: %Q is not supported in a time's format",
		`{"typed_config": {` + file + `, "format": "%COMMON_DURATION(US_CX_BEG:DS_TX_END:ms)%"}}`:                  "access_log[0].typed_config.format: %COMMON_DURATION%: unknown moment \"US_CX_BEG\"",
		`{"typed_config": {` + file + `, "log_format": {"json_format": {"a": {"b": ["%REQ%"]}}}}}`:                 "access_log[0].typed_config.log_format.json_format.a.b[0]: %REQ%: needs a name in parentheses",
		`{"typed_config": {` + file + `}, "filter": {"and_filter": {"filters": [{"traceable_filter": {}}, {"response_flag_filter": {"flags": ["XX"]}}]}}}`: "access_log[0].filter.and_filter.filters[0].traceable_filter: not supported\n" +
			"access_log[0].filter.and_filter.filters[1].response_flag_filter.flags[0]: unknown flag \"XX\"",
		`{"typed_config": {` + file + `}, "filter": {"header_filter": {"header": {"string_match": {"exact": "x"}}}}}`: "access_log[0].filter.header_filter.header.name: required",
		`{"typed_config": {` + file + `}, "filter": {"or_filter": {"filters": []}}}`:                                  "access_log[0].filter.or_filter.filters: want two or more, has 0",
	} {
		_, err := parse(t, config)
		var said []string
		fields.Each(err, func(e *fields.Error) { said = append(said, e.Error()) })
		require.Equal(t, want, strings.Join(said, "\n"), config)
	}
}

func TestFilters(t *testing.T) {
	denied := entry()
	denied.Replied, denied.Local = true, codecs.LocalError{Type: codecs.Denied}
	denied.Flags = facts.Unauthorized
	denied.Rand = [2]uint64{}
	fast := entry()
	fast.End = fast.Start
	fast.Flags = 0
	fast.Rand[0] = 60
	both := []*accesslog.Entry{denied, fast}
	for filter, want := range map[string]string{
		`{"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 400}}}}`: "d",
		`{"status_code_filter": {"comparison": {"op": "LE", "value": {"default_value": 400}}}}`: "f",
		`{"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": 200}}}}`: "f",
		`{"status_code_filter": {"comparison": {"op": "NE", "value": {"default_value": 200}}}}`: "d",
		`{"duration_filter": {"comparison": {"op": "GE", "value": {"default_value": 41}}}}`:     "d",
		`{"response_flag_filter": {}}`:                                                                                  "d",
		`{"response_flag_filter": {"flags": ["NR", "UAEX"]}}`:                                                           "d",
		`{"response_flag_filter": {"flags": ["NR", "UMSDR"]}}`:                                                          "",
		`{"not_health_check_filter": {}}`:                                                                               "df",
		`{"runtime_filter": {"percent_sampled": {"numerator": 60}}}`:                                                    "d",
		`{"runtime_filter": {"percent_sampled": {"numerator": 61, "denominator": "TEN_THOUSAND"}}}`:                     "df",
		`{"header_filter": {"header": {"name": "tenant", "present_match": true}}}`:                                      "df",
		`{"header_filter": {"header": {"name": "none", "present_match": true}}}`:                                        "",
		`{"log_type_filter": {"types": ["DownstreamEnd"]}}`:                                                             "df",
		`{"log_type_filter": {"types": ["DownstreamEnd"], "exclude": true}}`:                                            "",
		`{"and_filter": {"filters": [{"not_health_check_filter": {}}, {"response_flag_filter": {}}]}}`:                  "d",
		`{"or_filter": {"filters": [{"response_flag_filter": {}}, {"duration_filter": {"comparison": {"op": "EQ"}}}]}}`: "df",
	} {
		ls, err := parse(t, `{"filter": `+filter+`, "typed_config": {`+file+`, "format": "%RESPONSE_CODE%"}}`)
		require.NoError(t, err, filter)
		require.Equal(t, want, strings.NewReplacer("403", "d", "200", "f").Replace(written(t, ls, both...)), filter)
	}
}

// TestWhatAllFiltersMayCost, of all logs together, is what one may: each of a thousand could be
// told by itself, and what cannot be told behind those that have spent all is logged.
func TestWhatAllFiltersMayCost(t *testing.T) {
	var logs []string
	for i := range 10 {
		var filters []string
		for j := range 100 {
			filters = append(filters, fmt.Sprintf(`{"header_filter": {"header": {"name": "k", "string_match": {"safe_regex": {"regex": ".*(acme|globex|%d).*"}}}}}`, 100*i+j))
		}
		logs = append(logs, fmt.Sprintf(`{"filter": {"or_filter": {"filters": [%s]}}, "typed_config": {%s, "format": "%d"}}`, strings.Join(filters, ","), file, i))
	}
	ls, err := parse(t, logs...)
	require.NoError(t, err)
	of := func(value string) *accesslog.Entry {
		e := entry()
		e.Request = &codecs.Metadata{}
		e.Request.Set("k", value)
		return e
	}
	require.Empty(t, written(t, ls, of("nobody")))
	long := of(strings.Repeat("acm", 8192/3))
	require.Equal(t, "0123456789", written(t, ls, long))
	long.Request.Set("k", "nobody")
	require.Empty(t, written(t, ls, long), "the next entry may cost as much")
}

// TestFiltersOfWhatIsNoRequest: heartbeats are health checks, and copies entries of requests
// upstream.
func TestFiltersOfWhatIsNoRequest(t *testing.T) {
	beat, copied := entry(), entry()
	beat.Kind, copied.Kind = facts.Heartbeat, facts.Mirror
	for filter, want := range map[string]string{
		`{"not_health_check_filter": {}}`:                                    "mirror ",
		`{"log_type_filter": {"types": ["DownstreamEnd"]}}`:                  "heartbeat ",
		`{"log_type_filter": {"types": ["UpstreamEnd"]}}`:                    "mirror ",
		`{"log_type_filter": {"types": ["DownstreamStart", "UpstreamEnd"]}}`: "mirror ",
		`{"log_type_filter": {"types": ["UpstreamEnd"], "exclude": true}}`:   "heartbeat ",
	} {
		ls, err := parse(t, `{"filter": `+filter+`, "typed_config": {`+file+`, "format": "%MESSAGE_TYPE% "}}`)
		require.NoError(t, err, filter)
		require.Equal(t, want, written(t, ls, beat, copied), filter)
	}
}

// TestRotation: what is renamed away gets no more lines, a second later, and none is lost
// or torn.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	ls, err := parse(t, `{"typed_config": {`+file+`, "format": "%CONNECTION_ID%\n"}}`)
	require.NoError(t, err)
	var fs accesslog.Files
	var running sync.WaitGroup
	f, err := fs.Open(path, t.Logf)
	require.NoError(t, err)
	fs.Begin(f, &running)
	b := accesslog.NewBuffer(f)
	n := uint64(0)
	say := func() {
		e := entry()
		n++
		e.ConnectionID = n
		ls.Write(e, []*accesslog.Buffer{b})
		written, lost := b.Flush()
		require.EqualValues(t, 1, written)
		require.Zero(t, lost)
	}
	for range 100 {
		say()
	}
	require.NoError(t, os.Rename(path, path+".1"))
	for _, err := os.Stat(path); err != nil; _, err = os.Stat(path) {
		say()
		time.Sleep(5 * time.Millisecond) // lines come while the writer does not look
	}
	say()
	fs.Close(f)
	running.Wait()
	var all string
	for _, p := range []string{path + ".1", path} {
		text, err := os.ReadFile(p)
		require.NoError(t, err)
		require.NotEmpty(t, text)
		all += string(text)
	}
	var want strings.Builder
	for i := uint64(1); i <= n; i++ {
		fmt.Fprintln(&want, i)
	}
	require.Equal(t, want.String(), all)
}

// log is a file that is written to, by lines of the numbers 1, 2, 3, …
type log struct {
	t       *testing.T
	path    string
	ls      *accesslog.Logs
	fs      accesslog.Files
	f       *accesslog.File
	b       *accesslog.Buffer
	running sync.WaitGroup
	said    uint64
	lost    int64
}

func newLog(t *testing.T, path string) *log {
	l := &log{t: t, path: path}
	var err error
	l.ls, err = parse(t, `{"typed_config": {`+file+`, "format": "%CONNECTION_ID% `+strings.Repeat("x", 90)+`\n"}}`)
	require.NoError(t, err)
	l.f, err = l.fs.Open(path, t.Logf)
	require.NoError(t, err)
	l.fs.Begin(l.f, &l.running)
	l.b = accesslog.NewBuffer(l.f)
	return l
}

// say hands over n lines.
func (l *log) say(n int) {
	for range n {
		l.said++
		e := entry()
		e.ConnectionID = l.said
		l.ls.Write(e, []*accesslog.Buffer{l.b})
	}
	_, lost := l.b.Flush()
	l.lost += lost
}

// end waits until all is written, and tells what was lost.
func (l *log) end() {
	l.fs.Close(l.f)
	l.running.Wait()
	_, lost := l.b.Flush()
	l.lost += lost
}

// numbers are those of the lines of a file, each of which is whole.
func numbers(t *testing.T, path string) (ns []uint64) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, l := range strings.SplitAfter(string(text), "\n") {
		if l == "" {
			continue
		}
		var n uint64
		_, err := fmt.Sscanf(l, "%d "+strings.Repeat("x", 90)+"\n", &n)
		require.NoError(t, err, "%q", l)
		ns = append(ns, n)
	}
	return ns
}

func upTo(first, last uint64) (ns []uint64) {
	for n := first; n <= last; n++ {
		ns = append(ns, n)
	}
	return ns
}

// TestReopen: what is renamed away gets no more lines from then on, and none is lost; also
// when nothing is written, and of files that nobody writes to yet.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	l := newLog(t, filepath.Join(dir, "log"))
	waiting, err := l.fs.Open(filepath.Join(dir, "waiting"), t.Logf)
	require.NoError(t, err)
	defer l.fs.Close(waiting)
	out, err := l.fs.Open(accesslog.Stdout, t.Logf)
	require.NoError(t, err)
	defer l.fs.Close(out)
	reopen := func() error {
		paths, err := l.fs.Reopen(t.Context())
		if err == nil {
			require.Equal(t, []string{l.path, waiting.Path()}, paths)
		}
		return err
	}
	for i := range 3 {
		l.say(100)
		require.NoError(t, os.Rename(l.path, fmt.Sprint(l.path, i)))
		require.NoError(t, reopen())
		before := numbers(t, fmt.Sprint(l.path, i))
		_, err := os.Stat(l.path)
		require.NoError(t, err)
		l.say(1)
		require.NoError(t, reopen())
		require.Equal(t, before, numbers(t, fmt.Sprint(l.path, i)), "nothing comes behind the verb")
	}
	l.end()
	require.Zero(t, l.lost)
	var all []uint64
	for _, p := range []string{l.path + "0", l.path + "1", l.path + "2", l.path} {
		all = append(all, numbers(t, p)...)
	}
	require.Equal(t, upTo(1, l.said), all)
}

// TestAPathThatIsGone costs nothing as long as what waits has room: lines go nowhere else
// than to the file of that name.
func TestAPathThatIsGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	require.NoError(t, os.Mkdir(dir, 0o700))
	l := newLog(t, filepath.Join(dir, "log"))
	l.say(1)
	require.Eventually(t, func() bool { return len(numbers(t, l.path)) == 1 }, 10*time.Second, time.Millisecond)
	require.NoError(t, os.RemoveAll(dir))
	_, err := l.fs.Reopen(t.Context())
	require.ErrorContains(t, err, "access log "+l.path+": open "+l.path+": no such file or directory")
	l.say(100_000) // more than may wait
	require.Positive(t, l.lost)
	written := l.said - uint64(l.lost)
	require.NoError(t, os.Mkdir(dir, 0o700))
	_, err = l.fs.Reopen(t.Context())
	require.NoError(t, err)
	l.end()
	require.Len(t, numbers(t, l.path), int(written)-1, "but for the one that was removed with its file")
}

// TestADiskThatIsFull: a line is there as a whole or not at all, whatever fits, and what
// waits comes when there is room again. What it cannot take is the limit of a file's size,
// of a process of its own.
func TestADiskThatIsFull(t *testing.T) {
	path := os.Getenv("MELTEMI_TEST_FULL")
	if path == "" {
		path = filepath.Join(t.TempDir(), "log")
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestADiskThatIsFull$")
		cmd.Env = append(os.Environ(), "MELTEMI_TEST_FULL="+path)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	const limit = 1234 // 12 lines and a part
	signal.Ignore(syscall.SIGXFSZ)
	var old syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: old.Max}))
	lines := func(n int) { // of which part of another may be there for a moment
		t.Helper()
		require.Eventually(t, func() bool {
			b, err := os.ReadFile(path)
			return err == nil && bytes.Count(b, []byte("\n")) == n
		}, 10*time.Second, time.Millisecond)
	}
	l := newLog(t, path)
	l.say(20)
	lines(13)
	l.say(10)
	lines(13)
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old))
	lines(30)
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 3100, Max: old.Max}))
	l.say(10)
	l.end()
	require.Equal(t, upTo(1, l.said-uint64(l.lost)), numbers(t, path))
	require.Positive(t, l.lost)
}

// TestAPipeThatNobodyReads costs its lines, which are counted, and nothing else.
func TestAPipeThatNobodyReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	var fs accesslog.Files
	_, err := fs.Open(path, t.Logf)
	require.ErrorIs(t, err, syscall.ENXIO)
	r, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer r.Close()
	f, err := fs.Open(path, t.Logf)
	require.NoError(t, err)
	var running sync.WaitGroup
	fs.Begin(f, &running)
	ls, err := parse(t, `{"typed_config": {`+file+`, "format": "`+strings.Repeat("x", 1000)+`\n"}}`)
	require.NoError(t, err)
	b := accesslog.NewBuffer(f)
	var told, lost int64
	for range 10_000 {
		for range 10 {
			ls.Write(entry(), []*accesslog.Buffer{b})
		}
		w, l := b.Flush()
		told += w
		lost += l
	}
	require.EqualValues(t, 100_000, told+lost)
	require.InDelta(t, 4<<20, 1001*told, 256<<10, "what waits is bounded")
	go func() { // it is read after all
		fs.Close(f)
	}()
	read := 0
	buf := make([]byte, 1<<16)
	for read < int(1001*told) {
		n, err := r.Read(buf)
		require.NoError(t, err)
		require.Equal(t, strings.Count(string(buf[:n]), "x")+strings.Count(string(buf[:n]), "\n"), n)
		read += n
	}
	running.Wait()
}

// TestAPipeThatIsNeverRead does not hold up the end.
func TestAPipeThatIsNeverRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	r, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer r.Close()
	var fs accesslog.Files
	var running sync.WaitGroup
	f, err := fs.Open(path, t.Logf)
	require.NoError(t, err)
	ls, err := parse(t, `{"typed_config": {`+file+`, "format": "`+strings.Repeat("x", 1000)+`\n"}}`)
	require.NoError(t, err)
	b := accesslog.NewBuffer(f)
	for range 200 {
		ls.Write(entry(), []*accesslog.Buffer{b})
	}
	b.Flush()
	fs.Begin(f, &running)
	fs.Close(f)
	running.Wait()
	_, lost := b.Flush()
	require.Positive(t, lost)
}

func TestALineAllocatesNothing(t *testing.T) {
	ls, err := parse(t, `{"typed_config": {`+file+`, "log_format": {"json_format": {
		"t": "%START_TIME%", "p": "%REQ(:PATH)%", "tenant": "%REQ(tenant)%", "c": "%RESPONSE_CODE%", "f": "%RESPONSE_FLAGS%",
		"d": "%DURATION%", "h": "%UPSTREAM_HOST%", "a": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "s": "%START_TIME(%s.%3f)%",
		"hosts": "%UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT%", "trace": "%TRACE_ID%", "id": "%STREAM_ID%", "peer": "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_SUBJECT%",
		"type": "%ACCESS_LOG_TYPE%", "from": "%FILTER_STATE(downstream_peer:FIELD:workload)%", "first": "%COALESCE({\"operators\": [\"LOCAL_REPLY_BODY\", \"ROUTE_NAME\"]})%"}}}}`)
	require.NoError(t, err)
	e := entry()
	require.Zero(t, allocs(t, ls, e))
}
