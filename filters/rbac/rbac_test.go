package rbac

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// env is a listener with the filter, and a server that answers everything.
type env struct {
	*filtertest.Host
	t   *testing.T
	cfg *filtertest.Config
}

const anyType = `"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.rbac.v1alpha.`

func newEnv(t *testing.T, config string) *env {
	t.Helper()
	return newEnvOf(t, `{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [
			{"name": "aeraki.meta_protocol.filters.rbac", "config": {`+anyType+`RBAC", `+config+`}},
			{"name": "test.spy"}, {"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"routes": [{"route": {"cluster": "up"}}]}}`)
}

func newEnvOf(t *testing.T, listener string) *env {
	t.Helper()
	h := filtertest.New(t)
	h.Cluster("up", "10.0.0.3:20880").Serve = serve
	return &env{h, t, h.MustLoad(listener)}
}

func serve(s *filtertest.Server, b []byte) int {
	requests, rest := dubbotest.Parse(b)
	for _, r := range requests {
		s.Send(dubbotest.Response(r.ID, "served"))
	}
	return len(b) - len(rest)
}

// ask sends a request and returns what it is answered.
func (e *env) ask(c *filtertest.Client, r dubbotest.Request) string {
	e.t.Helper()
	r.ID = 7
	c.Send(r.Bytes())
	answers, _ := dubbotest.Parse(c.Take())
	require.Len(e.t, answers, 1)
	return answers[0].Text()
}

func (e *env) counted() map[string]int64 {
	e.Advance(100 * time.Millisecond)
	counts := map[string]int64{}
	for _, name := range []string{"allowed", "denied", "logged", "undecided", "shadow_allowed", "shadow_denied"} {
		if n := e.cfg.Counter("dubbo.t.rbac." + name); n > 0 {
			counts[name] = n
		}
	}
	return counts
}

// spy is behind rbac, and remembers the properties that it sees.
type spy struct{ seen map[string]string }

var spied = &spy{}

func init() {
	filter.Register("test.spy", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return spied, nil }))
}

func (s *spy) OnRequest(m *filter.Message) filter.Verdict {
	s.seen = map[string]string{}
	for _, p := range m.Request().Properties() {
		s.seen[string(p.Name)] = string(p.Value)
	}
	return filter.Continue
}

const denied = "RBAC: access denied"

// tenant is a policy on one property.
func tenant(action, value string) string {
	return `"rules": {"action": "` + action + `", "policies": {"p": {"permissions": [{"any": true}],
		"principals": [{"header": {"name": "tenant", "string_match": {"exact": "` + value + `"}}}]}}}`
}

func of(values ...string) dubbotest.Request {
	var r dubbotest.Request
	for i, v := range values {
		r.Attachments = append(r.Attachments, [2]string{[]string{"tenant", "Tenant", "TENANT"}[i], v})
	}
	return r
}

// TestRepeatedValuesEvadeNothing: scenario 17, CVE-2026-26308.
func TestRepeatedValuesEvadeNothing(t *testing.T) {
	for _, tt := range []struct {
		rules string
		r     dubbotest.Request
		want  string
	}{
		{tenant("DENY", "evil"), of(), "served"},
		{tenant("DENY", "evil"), of("good"), "served"},
		{tenant("DENY", "evil"), of("evil"), denied},
		{tenant("DENY", "evil"), of("good", "evil"), denied},
		{tenant("DENY", "evil"), of("evil", "good"), denied},
		{tenant("DENY", "evil"), of("good", "good,evil"), "served"},
		{tenant("ALLOW", "good"), of(), denied},
		{tenant("ALLOW", "good"), of("good"), "served"},
		{tenant("ALLOW", "good"), of("evil"), denied},
		{tenant("ALLOW", "good"), of("good", "evil"), denied},
		{tenant("ALLOW", "good"), of("evil", "good"), denied},
		{tenant("ALLOW", "good"), of("good", "good", "good"), "served"},
		{
			`"rules": {"action": "DENY", "policies": {"p": {"permissions": [{"not_rule": {"header": {"name": "tenant", "string_match": {"exact": "good"}}}}], "principals": [{"any": true}]}}}`,
			of("good", "evil"), denied,
		},
		{
			`"rules": {"action": "ALLOW", "policies": {"p": {"permissions": [{"header": {"name": "tenant", "invert_match": true, "string_match": {"exact": "evil"}}}], "principals": [{"any": true}]}}}`,
			of("good", "evil"), denied,
		},
	} {
		e := newEnv(t, tt.rules)
		require.Equal(t, tt.want, e.ask(e.Dial(e.cfg), tt.r), "%s %v", tt.rules, tt.r.Attachments)
	}
	e := newEnv(t, tenant("ALLOW", "good"))
	e.ask(e.Dial(e.cfg), of("good", "evil"))
	require.Equal(t, map[string]int64{"denied": 1, "undecided": 1}, e.counted())
}

func TestRulesWithoutPolicies(t *testing.T) {
	for rules, want := range map[string]string{
		`"rules": {"action": "ALLOW"}`: denied, `"rules": {"action": "DENY"}`: "served", `"rules": {"action": "LOG"}`: "served",
		`"shadow_rules": {"action": "ALLOW"}`:                               "served",
		`"rules": {}, "reply": {"status": "OVER_LIMIT", "body": "not now"}`: "not now",
	} {
		e := newEnv(t, rules)
		require.Equal(t, want, e.ask(e.Dial(e.cfg), of()), rules)
	}
}

func TestWhatIsCounted(t *testing.T) {
	e := newEnv(t, tenant("LOG", "a")+`, "shadow_`+tenant("DENY", "a")[1:])
	c := e.Dial(e.cfg)
	require.Equal(t, "served", e.ask(c, of("a")))
	require.Equal(t, "true", spied.seen["access_log_hint"])
	require.Equal(t, "denied", spied.seen["shadow_engine_result"])
	require.Equal(t, "p", spied.seen["shadow_effective_policy_id"])
	require.Equal(t, "served", e.ask(c, of("b")))
	require.Equal(t, "false", spied.seen["access_log_hint"])
	require.Equal(t, "allowed", spied.seen["shadow_engine_result"])
	require.Empty(t, spied.seen["shadow_effective_policy_id"])
	require.Equal(t, map[string]int64{"allowed": 2, "logged": 1, "shadow_allowed": 1, "shadow_denied": 1}, e.counted())
}

// TestWhatLogsTell of requests that are refused.
func TestWhatLogsTell(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	e := newEnvOf(t, `{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [
			{"name": "aeraki.meta_protocol.filters.rbac", "config": {`+anyType+`RBAC", `+strings.Replace(tenant("DENY", "evil"), `"p"`, `"no evil"`, 1)+`}},
			{"name": "aeraki.meta_protocol.filters.rbac", "config": {`+anyType+`RBAC", `+tenant("ALLOW", "good")+`}},
			{"name": "aeraki.meta_protocol.filters.router"}],
		"access_log": [{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
			"path": "`+path+`", "log_format": {"text_format_source": {"inline_string": "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n"}}}}],
		"route_config": {"routes": [{"route": {"cluster": "up"}}]}}`)
	c := e.Dial(e.cfg)
	require.Equal(t, denied, e.ask(c, of("evil")))
	require.Equal(t, denied, e.ask(c, of("other")))
	require.Equal(t, "served", e.ask(c, of("good")))
	require.Equal(t, map[string]int64{"denied": 2, "allowed": 3}, e.counted(), "of both filters")
	require.Eventually(t, func() bool {
		e.Advance(time.Second)
		b, err := os.ReadFile(path)
		return err == nil && string(b) == "UAEX rbac_access_denied_matched_policy[no_evil]\nUAEX rbac_access_denied_matched_policy[none]\n- via_upstream\n"
	}, 10*time.Second, time.Millisecond)
}

// called is a policy for one principal and one path.
func called(principal, path string) string {
	return `{"permissions": [{"url_path": {"path": {"prefix": "` + path + `"}}}], "principals": [{"authenticated": ` + principal + `}]}`
}

func TestPrincipals(t *testing.T) {
	e := newEnv(t, `"rules": {"action": "ALLOW", "policies": {
		"a": `+called(`{"principal_name": {"prefix": "spiffe://cluster.local/ns/shop/"}}`, "/org.example.Greeter/")+`,
		"b": `+called(`{}`, "/org.example.Health/check")+`}}`)
	greet, check := dubbotest.Request{}, dubbotest.Request{Interface: "org.example.Health", Method: "check"}
	for _, tt := range []struct {
		tls          *host.TLS
		greet, check string
	}{
		{nil, denied, denied},
		{&host.TLS{}, denied, denied},
		{&host.TLS{Mutual: true, Subject: "CN=x"}, denied, "served"},
		{&host.TLS{Mutual: true, URISANs: []string{"spiffe://other", "spiffe://cluster.local/ns/shop/sa/web"}}, "served", "served"},
		{&host.TLS{Mutual: true, DNSSANs: []string{"spiffe://cluster.local/ns/shop/"}}, "served", "served"},
		{&host.TLS{Mutual: true, Subject: "spiffe://cluster.local/ns/shop/", URISANs: []string{"x"}}, "served", "served"},
	} {
		var c *filtertest.Client
		if tt.tls == nil {
			c = e.Dial(e.cfg)
		} else {
			c = e.DialTLS(e.cfg, *tt.tls)
		}
		require.Equal(t, tt.greet, e.ask(c, greet))
		require.Equal(t, tt.check, e.ask(c, check))
	}
}

func TestAddressesAndNames(t *testing.T) {
	e := newEnv(t, `"rules": {"action": "ALLOW", "policies": {
		"a": {"permissions": [{"destination_port": 20880}], "principals": [{"and_ids": {"ids": [
			{"remote_ip": {"address_prefix": "192.0.2.77", "prefix_len": 24}}, {"direct_remote_ip": {"address_prefix": "10.0.0.9", "prefix_len": 32}}]}}]},
		"b": {"permissions": [{"requested_server_name": {"suffix": ".example.com"}}], "principals": [{"any": true}]},
		"c": {"permissions": [{"destination_ip": {"address_prefix": "2001:db8::", "prefix_len": 32}}], "principals": [{"any": true}]}}}`)
	require.Equal(t, denied, e.ask(e.DialFrom(e.cfg, "192.0.2.1"), of()))
	require.Equal(t, denied, e.ask(e.DialBehind(e.cfg, "10.0.0.9", "192.0.3.1"), of()))
	require.Equal(t, "served", e.ask(e.DialBehind(e.cfg, "10.0.0.9", "192.0.2.1"), of()))
	require.Equal(t, "served", e.ask(e.DialTLS(e.cfg, host.TLS{ServerName: "a.example.com"}), of()))
	require.Equal(t, denied, e.ask(e.DialTLS(e.cfg, host.TLS{ServerName: "example.org"}), of()))
	require.Equal(t, "served", e.ask(e.DialAt(e.cfg, "[2001:db8::7]:1"), of()))
	require.Equal(t, denied, e.ask(e.DialAt(e.cfg, "@pipe"), of()))
}

func TestWhatCannotBeToldIsRefused(t *testing.T) {
	long := strings.Repeat("x", route.MaxValueBytes+1)
	for _, action := range []string{"ALLOW", "DENY"} {
		for _, invert := range []string{"true", "false"} {
			e := newEnv(t, `"rules": {"action": "`+action+`", "policies": {"p": {"permissions": [{"header": {"name": "tenant", "invert_match": `+invert+`,
				"string_match": {"contains": "y"}}}], "principals": [{"any": true}]}}}`)
			require.Equal(t, denied, e.ask(e.Dial(e.cfg), of(long)))
			require.Equal(t, map[string]int64{"denied": 1, "undecided": 1}, e.counted())
		}
	}
	// Another policy may be known to match.
	e := newEnv(t, `"rules": {"policies": {
		"a": {"permissions": [{"header": {"name": "tenant", "string_match": {"contains": "y"}}}], "principals": [{"any": true}]},
		"b": {"permissions": [{"header": {"name": "method", "string_match": {"exact": "sayHello"}}}], "principals": [{"any": true}]}}}`)
	require.Equal(t, "served", e.ask(e.Dial(e.cfg), of(long)))
}

func TestAOnewayIsRefusedWithoutAWord(t *testing.T) {
	e := newEnv(t, `"rules": {}`)
	c := e.Dial(e.cfg)
	c.Send(dubbotest.Request{ID: 1, Oneway: true}.Bytes())
	require.Empty(t, c.Take())
	require.Equal(t, map[string]int64{"denied": 1}, e.counted())
}

func TestRoutes(t *testing.T) {
	own := func(rbac string) string {
		return `"typed_per_filter_config": {"aeraki.meta_protocol.filters.rbac": {` + anyType + `RBACPerRoute"` + rbac + `}}`
	}
	rt := func(method, own string) string {
		return `{"match": {"metadata": [{"name": "method", "string_match": {"exact": "` + method + `"}}]}, "route": {"cluster": "up"}, ` + own + `}`
	}
	var routes []string
	for i := range 2 * maxStandings {
		routes = append(routes, rt(fmt.Sprint("m", i), own(`, "rbac": {`+tenant("ALLOW", fmt.Sprint("t", i))+`}`)))
	}
	e := newEnvOf(t, `{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [
			{"name": "aeraki.meta_protocol.filters.rbac", "config": {`+anyType+`RBAC", "rules": {}}},
			{"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"routes": [`+rt("open", own(""))+`, `+strings.Join(routes, ", ")+`, {"route": {"cluster": "up"}}]}}`)
	c := e.Dial(e.cfg)
	ask := func(method, tenant string) string {
		r := of(tenant)
		r.Method = method
		return e.ask(c, r)
	}
	for range 3 {
		require.Equal(t, "served", ask("open", "t"))
		require.Equal(t, denied, ask("other", "t"))
		for i := range routes {
			require.Equal(t, "served", ask(fmt.Sprint("m", i), fmt.Sprint("t", i)))
			require.Equal(t, denied, ask(fmt.Sprint("m", i), "t"))
		}
	}
}

func TestFaults(t *testing.T) {
	policy := func(s string) string { return `"rules": {"policies": {"x y": {` + s + `}}}` }
	perm := func(s string) string {
		return policy(`"permissions": [{"any": true}, ` + s + `], "principals": [{"any": true}]`)
	}
	id := func(s string) string { return policy(`"permissions": [{"any": true}], "principals": [` + s + `]`) }
	const at = "rules.policies[x y]."
	for config, want := range map[string][]string{
		`"rules": {"action": 7}`: {"rules.action: unknown value 7"},
		`"rules": {"audit_logging_options": {"audit_condition": "ON_DENY"}}`: {"rules.audit_logging_options: not supported"},
		policy(``): {at + "permissions: required", at + "principals: required"},
		policy(`"permissions": [{"any": true}], "principals": [{"any": true}], "condition": {"id": "1"}`): {at + "condition: not supported"},
		policy(`"permissions": [{"any": true}], "principals": [{"any": true}], "checked_condition": {}`):  {at + "checked_condition: not supported"},
		policy(`"permissions": [{"any": true}], "principals": [{"any": true}], "cel_config": {}`):         {at + "cel_config: not supported"},
		perm(`{}`):                         {at + "permissions[1]: required"},
		perm(`{"any": false}`):             {at + "permissions[1].any: must be true"},
		perm(`{"matcher": {"name": "m"}}`): {at + "permissions[1].matcher: not supported"},
		perm(`{"and_rules": {"rules": [{"uri_template": {"name": "m"}}]}}`): {at + "permissions[1].and_rules.rules[0].uri_template: not supported"},
		perm(`{"or_rules": {}}`): {at + "permissions[1].or_rules.rules: required"},
		perm(`{"not_rule": {"header": {"name": ":authority", "present_match": true}}}`):   {at + "permissions[1].not_rule.header.name: no request has :authority: there are :path and :method"},
		perm(`{"header": {"name": "a", "string_match": {"safe_regex": {"regex": "("}}}}`): {at + "permissions[1].header.string_match.safe_regex.regex: error parsing regexp: missing closing ): `(`"},
		perm(`{"header": {"name": ":path", "string_match": {"prefix": ""}}}`):             {at + "permissions[1].header.string_match.prefix: must not be empty"},
		perm(`{"header": {"name": ":method", "range_match": {"start": 2, "end": 1}}}`):    {at + "permissions[1].header.range_match: start 2 must be less than end 1"},
		perm(`{"url_path": {}}`):                                   {at + "permissions[1].url_path.path: required"},
		perm(`{"url_path": {"path": {}}}`):                         {at + "permissions[1].url_path.path: required: one of exact, prefix, suffix, contains, safe_regex"},
		perm(`{"destination_port": 65536}`):                        {at + "permissions[1].destination_port: must be at most 65535, is 65536"},
		perm(`{"destination_port_range": {"start": 5, "end": 5}}`): {at + "permissions[1].destination_port_range: want start below end, from 0 to 65536, have 5 and 5"},
		perm(`{"destination_ip": {"address_prefix": "x"}}`):        {at + `permissions[1].destination_ip.address_prefix: "x" is no IP address`},
		perm(`{"metadata": {"filter": "envoy.lb", "path": [{"key": "a"}], "value": {"present_match": true}}}`):                                                          {at + `permissions[1].metadata.filter: there is no metadata but that of meltemi, want "meltemi", is "envoy.lb"`},
		perm(`{"metadata": {"filter": "meltemi", "value": {"present_match": true}}}`):                                                                                   {at + "permissions[1].metadata.path: want one key, the name of a property"},
		perm(`{"metadata": {"filter": "meltemi", "path": [{"key": "a"}]}}`):                                                                                             {at + "permissions[1].metadata.value: required"},
		perm(`{"metadata": {"filter": "meltemi", "path": [{"key": "a"}], "value": {"bool_match": true}}}`):                                                              {at + "permissions[1].metadata.value.bool_match: not supported"},
		perm(`{"sourced_metadata": {"metadata_source": "ROUTE", "metadata_matcher": {"filter": "meltemi", "path": [{"key": "a"}], "value": {"present_match": true}}}}`): {at + "permissions[1].sourced_metadata.metadata_source: ROUTE is not supported"},
		id(`{}`):                        {at + "principals[0]: required"},
		id(`{"custom": {"name": "m"}}`): {at + "principals[0].custom: not supported"},
		id(`{"or_ids": {"ids": [{"filter_state": {"key": "k"}}]}}`):                   {at + "principals[0].or_ids.ids[0].filter_state: not supported"},
		id(`{"authenticated": {"principal_name": {"suffix": ""}}}`):                   {at + "principals[0].authenticated.principal_name.suffix: must not be empty"},
		id(`{"remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 33}}`):         {at + "principals[0].remote_ip.prefix_len: must be at most 32, is 33"},
		id(`{"source_ip": {"address_prefix": "::ffff:10.0.0.0", "prefix_len": 104}}`): {at + "principals[0].source_ip.address_prefix: connections of IPv4 addresses are in no range of IPv6: want one of IPv4"},
		`"shadow_rules_stat_prefix": "a b"`:                                           {"shadow_rules_stat_prefix: want letters, digits, dots, dashes and underscores"},
		`"reply": {"status": 99}`:                                                     {"reply.status: unknown value 99"},
		`"shadow_` + id(`{}`)[1:]:                                                     {"shadow_" + at + "principals[0]: required"},
	} {
		_, err := builder{}.Parse(packed(t, `{`+anyType+`RBAC", `+config+`}`), &filter.Env{})
		var got []string
		fields.Each(err, func(e *fields.Error) { got = append(got, e.Error()) })
		require.Equal(t, want, got, config)
	}
	_, err := builder{}.ParseRoute(packed(t, `{`+anyType+`RBACPerRoute", "rbac": {`+perm(`{}`)+`}}`), &filter.Env{})
	require.EqualError(t, err, "rbac."+at+"permissions[1]: required")
	_, err = builder{}.ParseRoute(packed(t, `{`+anyType+`RBACPerRoute", "rbac": {"shadow_rules_stat_prefix": "a"}}`), &filter.Env{})
	require.EqualError(t, err, "rbac.shadow_rules_stat_prefix: routes count as the filter does: it is the filter's")
	_, err = builder{}.Parse(packed(t, `{`+anyType+`RBACPerRoute"}`), &filter.Env{})
	require.ErrorContains(t, err, "want aeraki.meta_protocol_proxy.filters.rbac.v1alpha.RBAC")
}

func packed(t *testing.T, json string) *anypb.Any {
	t.Helper()
	a := new(anypb.Any)
	require.NoError(t, protojson.Unmarshal([]byte(json), a))
	return a
}

//go:embed README.md
var readme string

// TestThePageLoads loads the configuration of README.md and asks of it what it says.
func TestThePageLoads(t *testing.T) {
	_, rest, _ := strings.Cut(readme, "```yaml\n")
	text, _, _ := strings.Cut(rest, "```")
	var listener any
	require.NoError(t, yaml.Unmarshal([]byte(text), &listener))
	b, err := json.Marshal(listener)
	require.NoError(t, err)
	h := filtertest.New(t)
	h.Cluster("orders", "10.0.0.3:20880").Serve = serve
	e := &env{h, t, h.MustLoad(string(b))}
	web := e.DialTLS(e.cfg, host.TLS{Mutual: true, URISANs: []string{"spiffe://cluster.local/ns/shop/sa/frontend"}})
	orders := func(method string) dubbotest.Request {
		return dubbotest.Request{Interface: "org.example.Orders", Method: method}
	}
	require.Equal(t, "served", e.ask(web, orders("getOrder")))
	require.Equal(t, "served", e.ask(web, orders("list")))
	require.Equal(t, "ask the shop's operators", e.ask(web, orders("cancel")))
	ops := e.DialTLS(e.cfg, host.TLS{Mutual: true, URISANs: []string{"spiffe://cluster.local/ns/ops/sa/x"}})
	require.Equal(t, "served", e.ask(ops, orders("cancel")))
	require.Equal(t, "served", e.ask(e.Dial(e.cfg), dubbotest.Request{Interface: "org.example.Health"}))
	e.Advance(time.Second)
	require.Equal(t, int64(4), e.cfg.Counter("dubbo.greeter.rbac.dry_run_shadow_allowed"))
}

// hundred are policies as people write them: a service's methods, some by prefix, some
// for all of the service, for one caller each, or for anybody.
func hundred(kind string) *rbacv3.RBAC {
	policies := map[string]any{}
	for i := range 100 {
		var permission any
		switch kind {
		case "paths":
			permission = path("exact", fmt.Sprintf("/org.example.Service%d/method%d", i%10, i))
		case "properties":
			permission = map[string]any{"and_rules": map[string]any{"rules": []any{
				map[string]any{"header": map[string]any{"name": "interface", "string_match": map[string]any{"exact": "org.example.Service7"}}},
				map[string]any{"header": map[string]any{"name": "method", "string_match": map[string]any{"exact": fmt.Sprint("method", i)}}},
			}}}
		case "prefixes":
			permission = path("prefix", fmt.Sprintf("/org.example.Service%d/meth", i%10))
		case "suffixes":
			permission = path("suffix", fmt.Sprint("/method", i))
		default: // nothing tells them apart but the principal
			permission = path("suffix", fmt.Sprint("ethod", i))
		}
		policies[fmt.Sprintf("p%02d", i)] = map[string]any{
			"permissions": []any{permission},
			"principals": []any{map[string]any{"authenticated": map[string]any{"principal_name": map[string]any{
				"exact": fmt.Sprintf("spiffe://cluster.local/ns/shop/sa/client%d", i),
			}}}},
		}
	}
	b, _ := json.Marshal(map[string]any{"policies": policies})
	rules := new(rbacv3.RBAC)
	if err := protojson.Unmarshal(b, rules); err != nil {
		panic(err)
	}
	return rules
}

func path(kind, text string) any {
	return map[string]any{"url_path": map[string]any{"path": map[string]any{kind: text}}}
}

// asked is a request for the method of policy 97, and who may call it.
func asked() (*codecs.Metadata, *peer) {
	q := request{service: "org.example.Service7", method: "method97", properties: [][2]string{
		{"interface", "org.example.Service7"}, {"method", "method97"}, {"version", "1.0"}, {"group", "g"}, {"tenant", "acme"}, {"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
	}}
	return q.metadata(), &peer{tls: &host.TLS{Mutual: true, URISANs: []string{"spiffe://cluster.local/ns/shop/sa/client97"}}}
}

func TestARequestAllocatesNothing(t *testing.T) {
	for _, kind := range []string{"paths", "properties", "prefixes", "suffixes", "others"} {
		e, err := compile(hundred(kind))
		require.NoError(t, err)
		md, p := asked()
		s := e.of(p)
		var x look
		got, policy := x.match(s, md)
		require.Equal(t, route.Yes, got)
		require.Equal(t, "p97", e.name(policy))
		require.Zero(t, raced.AllocsPerRun(t, 1000, func() { x.match(s, md) }), kind)
	}
}

// TestALongNameIsNotKept: what a request calls may be as long as its frame.
func TestALongNameIsNotKept(t *testing.T) {
	e, err := compile(hundred("paths"))
	require.NoError(t, err)
	_, p := asked()
	q := request{service: "s", method: strings.Repeat("x", 8<<20)}
	var x look
	matched, _ := x.match(e.of(p), q.metadata())
	require.Equal(t, route.No, matched)
	require.LessOrEqual(t, cap(x.path), maxPathKept)
}

// BenchmarkHundredPolicies: at most 1 µs.
func BenchmarkHundredPolicies(b *testing.B) {
	for _, kind := range []string{"paths", "properties", "prefixes", "suffixes", "others"} {
		e, _ := compile(hundred(kind))
		md, p := asked()
		for name, rules := range map[string]func(s *standing) *standing{
			"": func(s *standing) *standing { return s },
			// As if each policy were for anybody.
			"/anybody": func(s *standing) *standing {
				for i := range s.facts {
					s.facts[i] = route.Yes
				}
				for i := range e.policies {
					s.alive[i/64] |= 1 << (i % 64)
				}
				s.rest = e.index.rest
				return s
			},
		} {
			b.Run(kind+name, func(b *testing.B) {
				s := rules(e.of(p))
				var x look
				b.ReportAllocs()
				for b.Loop() {
					x.match(s, md)
				}
			})
		}
	}
}
