package route

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/internal/raced"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// source is a message for formats.
type source struct {
	request, response             *codecs.Metadata
	remote, local, route, cluster string
}

func (s source) Request() *codecs.Metadata  { return s.request }
func (s source) Response() *codecs.Metadata { return s.response }
func (s source) RemoteAddress() string      { return s.remote }
func (s source) LocalAddress() string       { return s.local }
func (s source) RouteName() string          { return s.route }

func (s source) Direction() corev3.TrafficDirection { return corev3.TrafficDirection_INBOUND }

func (s source) TLS() *host.TLS {
	return &host.TLS{ServerName: "shop", URISANs: []string{"spiffe://a", "spiffe://b"}, DNSSANs: []string{"a.b"}, Subject: "CN=a"}
}

func (s source) SourceField(name string) string { return name + " of süd" }

func (s source) Cluster() string { return s.cluster }

func (s source) Check(key, value string) error { return codecs.CheckText(key, value) }

// applied is what the first route of a table changes in the request md.
func applied(t testing.TB, table *Table, md *codecs.Metadata, s source) (*codecs.Mutation, error) {
	t.Helper()
	target, err := table.routes[0].Pick(0, md)
	require.NoError(t, err)
	s.request = md
	mu := new(codecs.Mutation)
	return mu, target.Request.Apply(mu, md, s)
}

// TestWhatBecomesOfAnAttribute by each action, with and without a value that the
// message, or a filter, has brought.
func TestWhatBecomesOfAnAttribute(t *testing.T) {
	for _, tc := range []struct {
		action string
		md     *codecs.Metadata
		filter string // sets k
		want   string // "": not set
	}{
		{"OVERWRITE_IF_EXISTS_OR_ADD", message(), "", "v"},
		{"OVERWRITE_IF_EXISTS_OR_ADD", message("k", "old"), "", "v"},
		{"APPEND_IF_EXISTS_OR_ADD", message(), "", "v"},
		{"APPEND_IF_EXISTS_OR_ADD", message("k", "old"), "", "old,v"},
		{"APPEND_IF_EXISTS_OR_ADD", message("k", "old"), "filter", "filter,v"},
		{"APPEND_IF_EXISTS_OR_ADD", message("k", "first", "k", "last"), "", "last,v"},
		{"APPEND_IF_EXISTS_OR_ADD", message("K", "old"), "", "v"},
		{"APPEND_IF_EXISTS_OR_ADD", message("k", ""), "", ",v"},
		{"ADD_IF_ABSENT", message(), "", "v"},
		{"ADD_IF_ABSENT", message("K", "old"), "", "v"},
		{"ADD_IF_ABSENT", message("k", "old"), "", ""},
		{"ADD_IF_ABSENT", message(), "filter", "filter"},
		{"OVERWRITE_IF_EXISTS", message(), "", ""},
		{"OVERWRITE_IF_EXISTS", message("k", "old"), "", "v"},
		{"OVERWRITE_IF_EXISTS", message(), "filter", "v"},
	} {
		for _, value := range []string{`"value": "v"`, `"format": "v"`, `"format": "%REQ(from)%"`} {
			table := mustCompile(t, `{"routes": [{"route": {"cluster": "c"}, "request_mutation": [{"key": "k", `+value+`, "append_action": "`+tc.action+`"}]}]}`)
			tc.md.Set("from", "v")
			var mu codecs.Mutation
			if tc.filter != "" {
				mu.Set("k", tc.filter)
			}
			require.NoError(t, table.routes[0].targets[0].Request.Apply(&mu, tc.md, source{request: tc.md}))
			if i := mu.Find([]byte("k")); tc.want == "" {
				require.Negative(t, i, "%v", tc)
			} else {
				require.Equal(t, tc.want, mu.Entries()[i].Value, "%v", tc)
			}
		}
	}
}

func TestWhatIsRemovedIsRemovedFirst(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"route": {"cluster": "c"}, "request_keys_to_remove": ["K", "gone"],
		"request_mutation": [{"key": "k", "value": "v", "append_action": "APPEND_IF_EXISTS_OR_ADD"}, {"key": "kept", "format": "%REQ(gone)%"}]}]}`)
	mu, err := applied(t, table, message("k", "old", "gone", "value"), source{})
	require.NoError(t, err)
	require.Equal(t, []string{"K", "gone"}, mu.Removed())
	require.Equal(t, []codecs.KeyValue{{Key: "k", Value: "v"}, {Key: "kept", Value: "value"}}, mu.Entries(), "formats see the message as it came")
}

// TestTheOrderOfChanges is Envoy's: the table's come last, unless the most specific
// win.
func TestTheOrderOfChanges(t *testing.T) {
	const config = `{%s"request_mutation": [{"key": "k", "value": "table", "append_action": "APPEND_IF_EXISTS_OR_ADD"}, {"key": "w", "value": "table"}], "request_keys_to_remove": ["t"],
		"response_mutation": [{"key": "w", "value": "table"}],
		"routes": [{"request_mutation": [{"key": "k", "value": "route", "append_action": "APPEND_IF_EXISTS_OR_ADD"}, {"key": "w", "value": "route"}],
		"response_mutation": [{"key": "w", "value": "route"}], "request_keys_to_remove": ["r"],
		"route": {"weighted_clusters": {"clusters": [
			{"name": "a", "weight": 1, "request_headers_to_add": [{"header": {"key": "k", "value": "cluster"}}, {"header": {"key": "w", "value": "cluster"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
			 "request_headers_to_remove": ["c"], "response_headers_to_add": [{"header": {"key": "w", "value": "%%UPSTREAM_CLUSTER%%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}], "response_headers_to_remove": ["x"]},
			{"name": "b", "weight": 1}]}}}]}`
	for specific, want := range map[string]struct{ k, w, other, removed string }{
		"":                                      {"cluster,route,table", "table", "route,table", "c r t"},
		`"most_specific_mutations_wins": true,`: {"table,route,cluster", "cluster", "table,route", "t r c"},
	} {
		table := mustCompile(t, strings.ReplaceAll(strings.Replace(config, "%s", specific, 1), "%%", "%"))
		r := &table.routes[0]
		a, err := r.Pick(0, nil)
		require.NoError(t, err)
		require.Equal(t, "a", a.Cluster)
		var mu codecs.Mutation
		require.NoError(t, a.Request.Apply(&mu, message(), source{}))
		require.Equal(t, []codecs.KeyValue{{Key: "k", Value: want.k}, {Key: "w", Value: want.w}}, mu.Entries())
		require.Equal(t, want.removed, strings.Join(mu.Removed(), " "))
		mu.Reset()
		require.NoError(t, a.Response.Apply(&mu, message(), source{cluster: "cluster"}))
		require.Equal(t, []codecs.KeyValue{{Key: "w", Value: want.w}}, mu.Entries())
		require.Equal(t, []string{"x"}, mu.Removed())

		b, err := r.Pick(1, nil)
		require.NoError(t, err)
		require.Equal(t, "b", b.Cluster)
		mu.Reset()
		require.NoError(t, b.Request.Apply(&mu, message(), source{}))
		require.Equal(t, want.other, mu.Entries()[0].Value)
		require.Len(t, mu.Removed(), 2)
	}
}

func TestHeadersOfWeightedClusters(t *testing.T) {
	for header, want := range map[string]string{
		`{"header": {"key": "k", "value": "v"}}`:                                              "old,v",
		`{"header": {"key": "k", "value": "%REQ(other)%"}}`:                                   "old,o",
		`{"header": {"key": "k", "value": "%REQ(none)%"}, "append_action": 2}`:                "",
		`{"header": {"key": "k", "value": "100%%"}, "append_action": 2}`:                      "100%",
		`{"header": {"key": "k", "value": ""}, "append_action": 2}`:                           "",
		`{"header": {"key": "k", "value": ""}, "append_action": 2, "keep_empty_value": true}`: "empty",
		`{"header": {"key": "k", "value": "v"}, "append_action": "ADD_IF_ABSENT"}`:            "",
		`{"header": {"key": "k", "value": "v"}, "append_action": "OVERWRITE_IF_EXISTS"}`:      "v",
	} {
		table := mustCompile(t, `{"routes": [{"route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1, "request_headers_to_add": [`+header+`]}]}}}]}`)
		mu, err := applied(t, table, message("k", "old", "other", "o"), source{})
		require.NoError(t, err)
		switch i := mu.Find([]byte("k")); want {
		case "":
			require.Negative(t, i, header)
		case "empty":
			require.Empty(t, mu.Entries()[i].Value)
		default:
			require.Equal(t, want, mu.Entries()[i].Value, header)
		}
	}
}

func TestFormats(t *testing.T) {
	t.Setenv("ZONE", "north-1")
	s := source{remote: "10.0.0.9:1234", local: "[fd00::1]:20880", route: "r", cluster: "c"}
	md := message("tenant", "acme", "empty", "", "long", "größer")
	for format, want := range map[string]string{
		"plain":                       "plain",
		"100%%":                       "100%",
		"%REQ(tenant)%":               "acme",
		"%REQUEST_HEADER(Tenant)%":    "acme",
		"<%REQ(tenant):2%>":           "<ac>",
		"%REQ(long):4%":               "gr\u00f6",
		"%REQ(long):3%":               "gr",
		"%REQ(none?tenant)%":          "acme",
		"%REQ(none?tenant):1%":        "a",
		"%REQ(tenant?none)%":          "acme",
		"%REQ(empty?tenant)%":         "",
		"%REQ(none)%":                 "",
		"[%REQ(none)%]":               "[]",
		"%DOWNSTREAM_REMOTE_ADDRESS%": "10.0.0.9:1234",
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%":    "10.0.0.9",
		"%DOWNSTREAM_REMOTE_PORT%":                    "1234",
		"%DOWNSTREAM_LOCAL_ADDRESS%":                  "[fd00::1]:20880",
		"%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%":     "fd00::1",
		"%DOWNSTREAM_LOCAL_PORT%":                     "20880",
		"%ROUTE_NAME%@%UPSTREAM_CLUSTER%":             "r@c",
		"%ENVIRONMENT(ZONE)%":                         "north-1",
		"%ENVIRONMENT(ZONE):5%/%ENVIRONMENT(NONE)%%%": "north/%",
		"%ENVIRONMENT(NONE)%":                         "",
	} {
		table := mustCompile(t, `{"routes": [{"route": {"cluster": "c"}, "request_mutation": [{"key": "k", "format": "`+format+`"}]}]}`)
		mu, err := applied(t, table, md, s)
		require.NoError(t, err)
		if want == "" {
			require.True(t, mu.Empty(), format)
			continue
		}
		require.Equal(t, want, mu.Entries()[0].Value, format)
	}
	// Nothing is known of a client that has gone, nor of a pipe's port.
	table := mustCompile(t, `{"routes": [{"route": {"cluster": "c"}, "request_mutation": [{"key": "k", "format": "%DOWNSTREAM_REMOTE_ADDRESS%%DOWNSTREAM_REMOTE_PORT%%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}]}]}`)
	mu, err := applied(t, table, md, source{})
	require.NoError(t, err)
	require.True(t, mu.Empty())
	mu, err = applied(t, table, md, source{remote: "@pipe"})
	require.NoError(t, err)
	require.Equal(t, "@pipe@pipe", mu.Entries()[0].Value)
}

// TestFormatsOfAnswers see the answer only.
func TestFormatsOfAnswers(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"route": {"cluster": "c"}, "response_mutation": [{"key": "k", "format": "%RESP(a)%%RESPONSE_HEADER(b?a)%"}]}]}`)
	md := message("a", "1")
	var mu codecs.Mutation
	require.NoError(t, table.routes[0].targets[0].Response.Apply(&mu, md, source{response: md}))
	require.Equal(t, "11", mu.Entries()[0].Value)
	require.Equal(t, table.routes[0].targets[0].Response, table.routes[0].Response)
}

// TestAValueThatCannotBeSet is left out, and the rest is not.
func TestAValueThatCannotBeSet(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"route": {"cluster": "c"}, "request_mutation": [
		{"key": "a", "format": "%REQ(bad)%"}, {"key": "b", "format": "%REQ(good)%"}, {"key": "long", "value": "x", "append_action": "APPEND_IF_EXISTS_OR_ADD"}]}]}`)
	mu, err := applied(t, table, message("bad", "\xff", "good", "x", "long", strings.Repeat("x", codecs.MaxText)), source{})
	require.ErrorContains(t, err, `value: that of key "a" is not UTF-8`)
	require.Equal(t, []codecs.KeyValue{{Key: "b", Value: "x"}}, mu.Entries())
}

// TestAValueThatIsFarTooLong is left out as well, and not made first, of whatever parts.
func TestAValueThatIsFarTooLong(t *testing.T) {
	const far = 4 << 20
	md := message("far", strings.Repeat("x", far))
	md.SetOperation([]byte(strings.Repeat("s", far)), []byte(strings.Repeat("m", far)))
	for _, format := range []string{"%REQ(far)%", "%REQ(far):100000%", "%SERVICE%", "%METHOD%", "%OPERATION%", strings.Repeat("%REQ(far):16000%", 100)} {
		f, err := ParseFormat(format, codecs.ClientToServer)
		require.NoError(t, err)
		n := len(f.Append([]byte("before"), source{request: md})) - len("before")
		require.Greater(t, n, codecs.MaxText)
		require.LessOrEqual(t, n, 3*codecs.MaxText)
	}
	operation, err := ParseFormat("%OPERATION%", codecs.ClientToServer)
	require.NoError(t, err)
	for _, half := range [][2]string{{strings.Repeat("s", far), ""}, {"", strings.Repeat("m", far)}} {
		md := message("k", "v")
		md.SetOperation([]byte(half[0]), []byte(half[1]))
		require.Greater(t, len(operation.Append(nil, source{request: md})), codecs.MaxText, "what is cut is none to send")
	}
	table := mustCompile(t, `{"routes": [{"route": {"cluster": "c"}, "request_mutation": [
		{"key": "a", "format": "%REQ(far)%"}, {"key": "b", "value": "x"}, {"key": "far", "value": "x", "append_action": "APPEND_IF_EXISTS_OR_ADD"}]}]}`)
	mu, err := applied(t, table, md, source{})
	require.ErrorContains(t, err, `value: that of key "a" is longer than 16384 bytes`)
	require.Equal(t, []codecs.KeyValue{{Key: "b", Value: "x"}}, mu.Entries())
}

// noRemover is a codec that cannot remove.
type noRemover struct{}

func (noRemover) CheckMutation(codecs.Direction, string, string) error { return nil }

// remover refuses to remove what begins with an x, and to set nothing.
type remover struct{}

func (remover) CheckMutation(_ codecs.Direction, _, value string) error {
	if value == "" {
		return errors.New("value: must not be empty")
	}
	return nil
}

func (remover) CheckRemoval(_ codecs.Direction, key string) error {
	if strings.HasPrefix(key, "x") {
		return errors.New("key: it stays")
	}
	return nil
}

func TestImpossibleChangesAreRefusedWithTheirPath(t *testing.T) {
	long := strings.Repeat("x", codecs.MaxText+1)
	weighted := func(fields string) string {
		return `"routes": [{"route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1, ` + fields + `}]}}}]`
	}
	route := func(fields string) string { return `"routes": [{"route": {"cluster": "c"}, ` + fields + `}]` }
	for config, want := range map[string]string{
		route(`"request_mutation": [{"key": "k", "value": "v", "append_action": 9}]`):                      "routes[0].request_mutation[0].append_action: unknown value 9",
		route(`"request_mutation": [{"key": "k", "value": "v", "format": "f"}]`):                           "routes[0].request_mutation[0].format: there is a value, too",
		route(`"request_mutation": [{"format": "f"}]`):                                                     "routes[0].request_mutation[0].key: must have 1 to 16384 bytes, has 0",
		route(`"request_mutation": [{"key": "k", "format": "` + long + `"}]`):                              "routes[0].request_mutation[0].format: must have at most 16384 bytes, has 16385",
		route(`"request_mutation": [{"key": "k", "format": "%START_TIME%"}]`):                              "routes[0].request_mutation[0].format: %START_TIME%: unknown operator",
		route(`"request_mutation": [{"key": "k", "format": "100 %"}]`):                                     `routes[0].request_mutation[0].format: no operator begins at "%": a percent sign is written %%`,
		route(`"request_mutation": [{"key": "k", "format": "%REQ(a"}]`):                                    `routes[0].request_mutation[0].format: no operator begins at "%REQ(a": a percent sign is written %%`,
		route(`"request_mutation": [{"key": "k", "format": "%REQ%"}]`):                                     "routes[0].request_mutation[0].format: %REQ%: needs a name in parentheses",
		route(`"request_mutation": [{"key": "k", "format": "%REQ(?a)%"}]`):                                 "routes[0].request_mutation[0].format: %REQ%: needs a name in parentheses",
		route(`"request_mutation": [{"key": "k", "format": "%REQ(a):0%"}]`):                                "routes[0].request_mutation[0].format: %REQ%: length 0 is not between 1 and 2147483647",
		route(`"request_mutation": [{"key": "k", "format": "%REQ(a):99999999999%"}]`):                      "routes[0].request_mutation[0].format: %REQ%: length 99999999999 is not between 1 and 2147483647",
		route(`"request_mutation": [{"key": "k", "format": "%RESP(a)%"}]`):                                 "routes[0].request_mutation[0].format: %RESP%: there is no answer yet",
		route(`"response_mutation": [{"key": "k", "format": "%REQ(a)%"}]`):                                 "routes[0].response_mutation[0].format: %REQ%: the request's properties are gone when the answer comes",
		route(`"request_mutation": [{"key": "k", "format": "%ROUTE_NAME(a)%"}]`):                           "routes[0].request_mutation[0].format: %ROUTE_NAME%: takes nothing in parentheses",
		route(`"request_mutation": [{"key": "k", "format": "%ROUTE_NAME:3%"}]`):                            "routes[0].request_mutation[0].format: %ROUTE_NAME%: takes no length",
		route(`"request_keys_to_remove": ["a", "xa"]`):                                                     "routes[0].request_keys_to_remove[1]: it stays",
		route(`"response_keys_to_remove": [""]`):                                                           "routes[0].response_keys_to_remove[0]: must have 1 to 16384 bytes, has 0",
		route(`"response_keys_to_remove": [` + strings.Repeat(`"a", `, 1000) + `"a"]`):                     "routes[0].response_keys_to_remove: at most 1000 entries, has 1001",
		`"response_keys_to_remove": ["xa"]`:                                                                "response_keys_to_remove[0]: it stays",
		`"request_keys_to_remove": ["xa"]`:                                                                 "request_keys_to_remove[0]: it stays",
		`"response_mutation": [{"key": "k"}]`:                                                              "response_mutation[0].value: must not be empty",
		`"request_mutation": [{"key": "k"}]`:                                                               "request_mutation[0].value: must not be empty",
		weighted(`"request_headers_to_remove": ["xa"]`):                                                    "routes[0].route.weighted_clusters.clusters[0].request_headers_to_remove[0]: it stays",
		weighted(`"response_headers_to_remove": ["xa"]`):                                                   "routes[0].route.weighted_clusters.clusters[0].response_headers_to_remove[0]: it stays",
		weighted(`"request_headers_to_add": [{"header": {"value": "v"}}]`):                                 "routes[0].route.weighted_clusters.clusters[0].request_headers_to_add[0].header.key: must have 1 to 16384 bytes, has 0",
		weighted(`"response_headers_to_add": [{"header": {"key": "k", "value": "%NO%"}}]`):                 "routes[0].route.weighted_clusters.clusters[0].response_headers_to_add[0].header.value: %NO%: unknown operator",
		weighted(`"request_headers_to_add": [{"header": {"key": "k", "raw_value": "eA=="}}]`):              "routes[0].route.weighted_clusters.clusters[0].request_headers_to_add[0].header.raw_value: not supported",
		weighted(`"request_headers_to_add": [{"header": {"key": "k", "value": "v"}, "append": true}]`):     "routes[0].route.weighted_clusters.clusters[0].request_headers_to_add[0].append: not supported",
		weighted(`"request_headers_to_add": [{"header": {"key": "k", "value": "v"}, "append_action": 7}]`): "routes[0].route.weighted_clusters.clusters[0].request_headers_to_add[0].append_action: unknown value 7",
	} {
		rc := new(routev1alpha.RouteConfiguration)
		require.NoError(t, protojson.Unmarshal([]byte("{"+config+"}"), rc))
		_, faults := Compile(rc, Env{Mutator: remover{}})
		require.NotEmpty(t, faults, want)
		require.Equal(t, want, faults[0].Error())
	}
	rc := new(routev1alpha.RouteConfiguration)
	require.NoError(t, protojson.Unmarshal([]byte(`{`+route(`"request_keys_to_remove": ["a"]`)+`}`), rc))
	_, faults := Compile(rc, Env{Mutator: noRemover{}})
	require.EqualError(t, faults[0], "routes[0].request_keys_to_remove[0]: the codec cannot remove anything from messages")
	_, faults = Compile(rc, Env{})
	require.Empty(t, faults)
	// What a format makes of a message is not known yet.
	require.NoError(t, protojson.Unmarshal([]byte(`{`+route(`"request_mutation": [{"key": "k", "format": "%REQ(a)%"}]`)+`}`), rc))
	_, faults = Compile(rc, Env{Mutator: remover{}})
	require.Empty(t, faults)
}

// TestOperatorsOfRequests beside those of properties and addresses.
func TestOperatorsOfRequests(t *testing.T) {
	md := message()
	md.SetOperation([]byte("Greeter"), []byte("hello"))
	for text, want := range map[string]string{
		"%OPERATION%": "Greeter/hello", "%SERVICE%.%METHOD%": "Greeter.hello", "%TRAFFIC_DIRECTION%": "INBOUND",
		"%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_PEER_SUBJECT% %REQUESTED_SERVER_NAME%": "spiffe://a,spiffe://b a.b CN=a shop",
		"%FILTER_STATE(downstream_peer:FIELD:workload)%":                                                        "workload of süd",
		"%FILTER_STATE(downstream_peer:FIELD:app):9%":                                                           "app of s",
		"%FILTER_STATE(downstream_peer:FIELD:namespace):3%":                                                     "nam",
	} {
		f, err := ParseFormat(text, codecs.ClientToServer)
		require.NoError(t, err)
		require.Equal(t, want, string(f.Append(nil, source{request: md})))
		require.False(t, f.AsksRoute())
	}
	f, err := ParseFormat("to %UPSTREAM_CLUSTER%", codecs.ClientToServer)
	require.NoError(t, err)
	require.True(t, f.AsksRoute())
	for text, want := range map[string]string{
		"%FILTER_STATE(x:PLAIN)%": "%FILTER_STATE%: is there only as downstream_peer:FIELD: and one of app, cluster, name, namespace, revision, service, version, workload",
		"%FILTER_STATE%":          "%FILTER_STATE%: needs a name in parentheses",
		"%METHOD(x)%":             "%METHOD%: takes nothing in parentheses",
	} {
		_, err := ParseFormat(text, codecs.ClientToServer)
		require.EqualError(t, err, want)
	}
	_, err = ParseFormat("%METHOD%", codecs.ServerToClient)
	require.EqualError(t, err, "%METHOD%: the request's properties are gone when the answer comes")
}

// TestChangesAllocateTheStringsTheyMake and nothing else.
func TestChangesAllocateTheStringsTheyMake(t *testing.T) {
	table := mustCompile(t, `{"routes": [{"name": "r", "route": {"cluster": "c"}, "request_keys_to_remove": ["gone"], "request_mutation": [
		{"key": "constant", "value": "v"}, {"key": "tenant", "value": "v", "append_action": "ADD_IF_ABSENT"}, {"key": "none", "value": "v", "append_action": "OVERWRITE_IF_EXISTS"},
		{"key": "from", "format": "%REQ(tenant)%@%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%/%ROUTE_NAME%"}, {"key": "tenant", "value": "v", "append_action": "APPEND_IF_EXISTS_OR_ADD"}]}]}`)
	md := message("tenant", "acme", "gone", "x")
	s := &source{request: md, remote: "10.0.0.9:1234", route: "r"}
	m := table.routes[0].targets[0].Request
	mu := new(codecs.Mutation)
	require.Equal(t, 2, int(raced.AllocsPerRun(t, 100, func() {
		mu.Reset()
		require.NoError(t, m.Apply(mu, md, s))
	})))
	require.Equal(t, []codecs.KeyValue{{Key: "constant", Value: "v"}, {Key: "from", Value: "acme@10.0.0.9/r"}, {Key: "tenant", Value: "acme,v"}}, mu.Entries())
}
