package lua

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// requireLogged asserts what scripts have logged, behind their names.
func (b *bed) requireLogged(want ...string) {
	b.t.Helper()
	var got []string
	for _, line := range b.logged() {
		_, rest, _ := strings.Cut(line, ": ")
		got = append(got, rest)
	}
	require.Equal(b.t, want, got)
}

// TestWhatScriptsSee: each row is an expression, and what it is, in the request's hook.
func TestWhatScriptsSee(t *testing.T) {
	attachments := [][2]string{{"Tenant", "acme"}, {"tenant", "x"}, {"bin", "a\xc3\xa9"}, {"empty", ""}}
	for expression, want := range map[string]string{
		// A property that is repeated.
		`h:headers():get("TENANT")`:                                          "acme,x",
		`h:headers():getNumValues("tenant")`:                                 "2",
		`h:headers():getAtIndex("tenant", 0)`:                                "acme",
		`h:headers():getAtIndex("tenant", 1)`:                                "x",
		`h:headers():getAtIndex("tenant", 2)`:                                "nil",
		`h:headers():getAtIndex("tenant", -1)`:                               "nil",
		`h:headers():get("none")`:                                            "nil",
		`h:headers():getNumValues("none")`:                                   "0",
		`h:headers():get("empty")`:                                           "",
		`#h:headers():get("bin")`:                                            "3",
		`h:headers():get("method")`:                                          "sayHello",
		`h:headers():get(":path")`:                                           "/org.example.Greeter/sayHello",
		`h:headers():get(":method")`:                                         "POST",
		`list(h:headers(), "tenant")`:                                        "acme x",
		`h:streamInfo():protocol()`:                                          "p",
		`h:streamInfo():kind()`:                                              "request",
		`h:streamInfo():service()`:                                           "org.example.Greeter",
		`h:streamInfo():method()`:                                            "sayHello",
		`h:streamInfo():routeName()`:                                         "rest",
		`h:streamInfo():virtualClusterName()`:                                "",
		`h:streamInfo():upstreamCluster()`:                                   "",
		`h:streamInfo():attempts()`:                                          "0",
		`h:streamInfo():responseStatus()`:                                    "nil",
		`h:streamInfo():responseCode()`:                                      "nil",
		`h:streamInfo():downstreamLocalAddress()`:                            "10.0.0.1:20880",
		`h:streamInfo():downstreamRemoteAddress():match("[^:]+")`:            "10.0.0.2",
		`h:streamInfo():downstreamDirectRemoteAddress()`:                     "10.0.0.2",
		`h:streamInfo():requestedServerName()`:                               "greeter.example",
		`h:streamInfo():principal()`:                                         "spiffe://c/ns/n/sa/s",
		`h:connection():ssl():peerCertificatePresented()`:                    "true",
		`h:connection():ssl():subjectPeerCertificate()`:                      "CN=s",
		`table.concat(h:connection():ssl():uriSanPeerCertificate())`:         "spiffe://c/ns/n/sa/s",
		`#h:streamInfo():downstreamSslConnection():dnsSansPeerCertificate()`: "0",
		`h:metadata():get("limit")`:                                          "5",
		`h:filterContext().zones[2]`:                                         "b",
		`h:filterContext().deep.on`:                                          "true",
		`list(h:metadata(), "name")`:                                         "orders",
		`h:base64Escape("a?b")`:                                              "YT9i",
		`h:timestamp() > 1.7e12`:                                             "true",
		`h:timestamp(EnvoyTimestampResolution.MICROSECOND) > 1.7e15`:         "true",
		`h:timestampString():match("^%d+$") ~= nil`:                          "true",
		`h:streamInfo():dynamicMetadata():get("any")`:                        "nil",
		`getmetatable(h)`:                                                    "handle",
		`math.random(3, 3) + math.random(1)`:                                 "4",
		`select("#", unpack({1, 2, nil, 4}, 1, 4))`:                          "4",
		`_VERSION`: "Lua 5.1",
		// What they do not have.
		`tostring(io) .. tostring(os) .. tostring(package) .. tostring(debug) .. tostring(channel)`:                                 strings.Repeat("nil", 5),
		`tostring(load) .. tostring(loadstring) .. tostring(loadfile) .. tostring(dofile) .. tostring(require) .. tostring(module)`: strings.Repeat("nil", 6),
		`tostring(getfenv) .. tostring(setfenv) .. tostring(newproxy) .. tostring(collectgarbage) .. tostring(string.dump)`:         strings.Repeat("nil", 5),
	} {
		t.Run(expression, func(t *testing.T) {
			b := newBed(t, `"filter_context": {"limit": 5, "name": "orders", "zones": ["a", "b"], "deep": {"on": true}}, `+scripted(`
				function list(of, name)
					local all = {}
					for k, v in pairs(of) do if k:lower() == name then all[#all + 1] = v end end
					return table.concat(all, " ")
				end
				function envoy_on_request(h) h:logInfo(tostring(`+expression+`)) end`), usualRoutes)
			b.c = b.DialTLS(b.cfg, host.TLS{Mutual: true, ServerName: "greeter.example", URISANs: []string{"spiffe://c/ns/n/sa/s"}, Subject: "CN=s"})
			if strings.Contains(expression, "LocalAddress") {
				b.c = b.DialAt(b.cfg, "10.0.0.1:20880")
			}
			b.ask(attachments...)
			require.Equal(t, "rest", b.at)
			b.requireLogged(want)
			b.counts(map[string]int{})
		})
	}
}

// TestWhatScriptsChange: rules see it, servers get it, and of a repeated property there is
// one value then.
func TestWhatScriptsChange(t *testing.T) {
	for _, tt := range []struct {
		statement string
		sent      [][2]string
		at, got   string // under "lane"
	}{
		{`h:headers():add("lane", "blue")`, nil, "blue", "blue"},
		{`h:headers():add("lane", "b")`, [][2]string{{"Lane", "a"}, {"lane", "c"}}, "rest", "a,c,b"},
		{`h:headers():replace("lane", "blue")`, nil, "blue", "blue"},
		{`h:headers():replace("lane", "blue")`, [][2]string{{"Lane", "a"}, {"lane", "c"}}, "blue", "blue"},
		{`h:headers():replace("lane", 5)`, nil, "rest", "5"},
		{`h:headers():remove("LANE")`, [][2]string{{"Lane", "blue"}, {"lane", "blue"}}, "rest", ""},
		{`h:headers():remove("none")`, [][2]string{{"lane", "blue"}}, "blue", "blue"},
		{`h:headers():remove("lane") h:headers():add("lane", "blue")`, [][2]string{{"Lane", "red"}}, "blue", "blue"},
		{`for k, v in pairs(h:headers()) do if v == "red" then h:headers():replace(k, "blue") end end`, [][2]string{{"lane", "red"}}, "blue", "blue"},
		// Rules see it, servers do not.
		{`h:streamInfo():dynamicMetadata():set("envoy.filters.http.lua", "lane", "blue")`, nil, "blue", ""},
		{`h:streamInfo():dynamicMetadata():set("f", "lane", nil)`, [][2]string{{"lane", "blue"}}, "rest", "blue"},
		// A route that was looked up before.
		{`h:streamInfo():routeName() h:headers():add("lane", "blue")`, nil, "blue", "blue"},
		{`h:clearRouteCache()`, [][2]string{{"lane", "blue"}}, "blue", "blue"},
	} {
		t.Run(tt.statement, func(t *testing.T) {
			b := newBed(t, scripted(`function envoy_on_request(h) `+tt.statement+` end`), usualRoutes)
			b.ask(tt.sent...)
			require.Equal(t, tt.at, b.at)
			require.Equal(t, tt.got, b.value("lane"))
			b.counts(map[string]int{})
		})
	}
}

// TestAnswers: the response's hook sees the answer, may change it, or put another one in
// its place.
func TestAnswers(t *testing.T) {
	b := newBed(t, scripted(`
		function envoy_on_request(h)
			h:streamInfo():dynamicMetadata():set("f", "user", {name = h:headers():get("user")})
		end
		function envoy_on_response(h)
			local i = h:streamInfo()
			h:logInfo(h:headers():get("load") .. " " .. i:responseStatus() .. " " .. i:responseCode() .. " " .. i:upstreamCluster() ..
				" " .. i:upstreamHost() .. " " .. i:attempts() .. " " .. i:routeName() .. " " .. i:dynamicMetadata():get("f").user.name)
			h:headers():add("seen", "yes")
			h:headers():remove("load")
			if h:headers():get("bad") then h:respond({status = "BAD_RESPONSE"}, "bad answer") end
		end`), usualRoutes)
	b.answers = [][2]string{{"load", "7"}}
	body := string(b.ask([2]string{"user", "alice"}).Body)
	b.requireLogged("7 ok 20 rest 10.0.0.3:20880 1 rest alice")
	require.Contains(t, body, "seen")
	require.NotContains(t, body, "load")
	b.answers = append(b.answers, [2]string{"bad", "1"})
	a := b.ask([2]string{"user", "bob"})
	require.Equal(t, "bad answer", a.Text())
	require.Equal(t, byte(50), a.Status)
	b.counts(map[string]int{"responded": 1})
}

// TestRespond: in the client's protocol, and nothing runs behind it.
func TestRespond(t *testing.T) {
	for respond, want := range map[string]struct {
		status byte
		text   string
		failed string
	}{
		`{status = "DENIED"}, "go away"`:       {40, "go away", ""},
		`{status = "OVER_LIMIT"}`:              {100, "over limit", ""},
		`{status = "DENIED", code = 90}, "no"`: {90, "no", ""},
		`{[":status"] = "403"}, "forbidden"`:   {40, "forbidden", ""},
		`{[":status"] = 429}, "slow down"`:     {100, "slow down", ""},
		`{status = "UNSPECIFIED"}, nil`:        {80, "unspecified", ""},
		`{}`:                                   {20, "rest", `respond: status ""`},
		`{status = "NONSENSE"}`:                {20, "rest", `respond: status "NONSENSE"`},
		`{[":status"] = "200"}`:                {20, "rest", `respond: status "200"`},
		`{status = "DENIED", code = 20}`:       {20, "rest", "respond.code: "},
		`{status = "DENIED", code = 1e99}`:     {20, "rest", "respond: code 1e+99"},
		`{status = "DENIED"}, ("x"):rep(5000)`: {20, "rest", "respond.body: "},
		`{status = "DENIED"}, {}`:              {20, "rest", "bad argument #3"},
		`nil`:                                  {20, "rest", "bad argument #2"},
	} {
		for _, how := range []string{"h:respond(%s)", "pcall(h.respond, h, %s)", "coroutine.wrap(function() pcall(function() h:respond(%s) end) end)()"} {
			t.Run(fmt.Sprintf(how, respond), func(t *testing.T) {
				b := newBed(t, scripted(`function envoy_on_request(h) `+fmt.Sprintf(how, respond)+` h:logInfo("behind it") end`), usualRoutes)
				a := b.ask()
				require.Equal(t, want.text, a.Text())
				require.Equal(t, want.status, a.Status)
				switch {
				case want.failed == "":
					require.Empty(t, b.logged())
					b.counts(map[string]int{"responded": 1})
				case strings.Contains(how, "pcall"):
					b.requireLogged("behind it")
					b.counts(map[string]int{})
				default:
					require.Contains(t, b.logged()[0], want.failed)
					b.counts(map[string]int{"errors": 1})
				}
			})
		}
	}
}

// TestFailures are told with their line, and go on or are refused.
func TestFailures(t *testing.T) {
	script := "function envoy_on_request(h)\n h:headers():add(\"lane\", \"blue\")\n if h:headers():get(\"fail\") then local x = nil + 1 end\nend\n" +
		"function envoy_on_response(h)\n error({})\nend"
	b := newBed(t, scripted(script), usualRoutes)
	require.Equal(t, "blue", b.ask([2]string{"fail", "1"}).Text())
	require.Equal(t, []string{"default_source_code:3: cannot perform add operation between nil and number"}, b.logged(), "one line a second")
	b.counts(map[string]int{"errors": 2})
	b.ask()
	require.Equal(t, "a table was thrown (1 more lines left out)", b.logged()[1])
	b.counts(map[string]int{"errors": 3})

	b = newBed(t, `"failure_mode_deny": true, `+scripted(script), usualRoutes)
	a := b.ask([2]string{"fail", "1"})
	require.Equal(t, "a script failed", a.Text())
	require.Equal(t, byte(80), a.Status)
	require.Empty(t, b.at)
	b.counts(map[string]int{"errors": 1})
	require.Equal(t, "a script failed", b.ask().Text(), "in place of the server's answer")
	require.Equal(t, "blue", b.at)

	b = newBed(t, `"failure_mode_deny": true, "status_on_error": {"status": "DENIED", "body": "not checked", "code": 90}, `+scripted(script), usualRoutes)
	a = b.ask([2]string{"fail", "1"})
	require.Equal(t, "not checked", a.Text())
	require.Equal(t, byte(90), a.Status)
}

// TestRoutesHaveTheirScripts: by name, of their own, with another context, or none.
func TestRoutesHaveTheirScripts(t *testing.T) {
	say := func(what string) string {
		return `{"inline_string": ` + quoted(`function envoy_on_request(h) h:logInfo("`+what+` " .. tostring(h:filterContext().k)) end`) + `}`
	}
	route := func(method, config string) string {
		return `{"match": {"metadata": [{"name": "to", "string_match": {"exact": "` + method + `"}}]}, "route": {"cluster": "rest"},
			"typed_per_filter_config": {"` + Name + `": {"@type": "` + perRoute + `", ` + config + `}}},`
	}
	b := newBed(t, `"filter_context": {"k": "general"}, "source_codes": {"named.lua": `+say("named")+`}, "default_source_code": `+say("default"), `[`+
		route("off", `"disabled": true`)+route("named", `"name": "named.lua", "filter_context": {"k": "routes"}`)+
		route("own", `"source_code": `+say("own"))+route("context", `"filter_context": {}`)+route("missing", `"name": "none.lua"`)+
		`{"route": {"cluster": "rest"}}]`)
	for _, to := range []string{"", "off", "named", "own", "context", "missing", "own"} {
		require.Equal(t, "rest", b.ask([2]string{"to", to}).Text())
	}
	require.Equal(t, []string{
		"default_source_code: default general", "named.lua: named routes", "source_code: own general", "default_source_code: default nil",
		`the route names "none.lua", which is none of source_codes`, "source_code: own general",
	}, b.logged())
	b.counts(map[string]int{"errors": 1})
}

// TestGlobalsPersist from one request to the next.
func TestGlobalsPersist(t *testing.T) {
	b := newBed(t, scripted(`n = 0 function envoy_on_request(h) n = n + 1 h:logInfo("is " .. n) end`), usualRoutes)
	b.ask()
	b.ask()
	b.requireLogged("is 1", "is 2")
}

// TestHandlesEndWithTheirHook: what a script has kept of one is of no use later, and of
// no harm.
func TestHandlesEndWithTheirHook(t *testing.T) {
	b := newBed(t, scripted(`
		function envoy_on_request(h)
			kept = kept or h
			if h ~= kept then error("another handle") end
			h.headers()
		end`), usualRoutes)
	b.ask()
	require.Equal(t, []string{"default_source_code:5: headers is a method: it is called with a colon"}, b.logged())
	_, err := compile("s", `local p = pairs({}) function envoy_on_request() end print("nobody hears that")`)
	require.NoError(t, err)
}

// TestWhatACodecCannotChange is told by line and counted; rules see it all the same.
func TestWhatACodecCannotChange(t *testing.T) {
	b := newBed(t, scripted("function envoy_on_request(h)\n h:headers():replace(\"lane\", \"\\255\")\n h:headers():remove(\"method\")\n end"), usualRoutes)
	var saw []string
	onPass = func(m *filter.Message) {
		lane, _ := m.Request().Get("lane")
		_, method := m.Request().Get("method")
		saw = append(saw, fmt.Sprintf("%q %v", lane, method))
	}
	b.ask([2]string{"lane", "blue"})
	require.Equal(t, []string{`"\xff" false`}, saw)
	require.Equal(t, "blue", b.value("lane"))
	require.Equal(t, "sayHello", b.value("method"))
	require.Len(t, b.logged(), 1)
	require.Contains(t, b.logged()[0], "default_source_code:2: the request goes out unchanged: value: ")
	b.counts(map[string]int{"mutation_skipped": 2})
}

// TestLines are not more than so many in a second.
func TestLines(t *testing.T) {
	b := newBed(t, scripted(`function envoy_on_request(h) for i = 1, 150 do h:logWarn(i) end print("at", "last", nil) end`), usualRoutes)
	b.ask()
	require.Len(t, b.logged(), maxLines)
	b.Advance(10e9)
	b.ask()
	require.Equal(t, "default_source_code: 1 (51 more lines left out)", b.logged()[maxLines])
	require.Contains(t, strings.Join(b.Log(), "\n"), "[3] meltemi: stat_prefix \"t\": lua: default_source_code: 1\n", "as a warning")
}

// TestConfigurations that are refused, by path and line.
func TestConfigurations(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.lua")
	require.NoError(t, os.WriteFile(file, []byte("function envoy_on_request(h)\n h:logInfo(\"from a file\")\nend"), 0o600))
	b := newBed(t, `"default_source_code": {"filename": "`+file+`"}`, usualRoutes)
	b.ask()
	b.requireLogged("from a file")
	t.Setenv("SCRIPT", "function envoy_on_response(h) end")

	const at = "meta_protocol_filters[0].config."
	for config, want := range map[string]string{
		``: "",
		`"default_source_code": {"environment_variable": "SCRIPT"}`:                               "",
		`"default_source_code": {"inline_bytes": "ZnVuY3Rpb24gZW52b3lfb25fcmVxdWVzdCgpIGVuZA=="}`: "",
		`"default_source_code": {}`:                                                               at + "default_source_code: required",
		`"default_source_code": {"filename": "/none"}`:                                            at + "default_source_code.filename: open /none: no such file",
		`"default_source_code": {"filename": "` + dir + `"}`:                                      at + "default_source_code.filename: " + dir + " is no regular file",
		`"default_source_code": {"environment_variable": "NONE"}`:                                 at + "default_source_code.environment_variable: must not be empty",
		`"default_source_code": {"filename": "` + file + `", "watched_directory": {"path": "/"}}`: at + "default_source_code.watched_directory: not supported",
		scripted("function envoy_on_request(h)\n local x = = 1\nend"):                             at + `default_source_code.inline_string: line 2: syntax error near "="`,
		scripted("function envoy_on_request(h)"):                                                  at + `default_source_code.inline_string: at its end: `,
		scripted("function envoy_on_request(h)\n goto nowhere\nend"):                              at + `default_source_code.inline_string: `,
		scripted("function envoy_on_request(h) end\nnone()"):                                      at + `default_source_code.inline_string: default_source_code:2: attempt to call a non-function object`,
		scripted("function envoy_on_request(h) end\nwhile true do end"):                           at + `default_source_code.inline_string: default_source_code:2: it has `,
		scripted("x = 1"): at + `default_source_code.inline_string: defines neither envoy_on_request nor envoy_on_response`,
		scripted("function envoy_on_request(h)\n h:httpCall()\nend"): at + `default_source_code.inline_string: line 2: httpCall is not supported: the filter ext_authz`,
		scripted("--" + strings.Repeat("x", maxSource)):              at + `default_source_code.inline_string: must have at most 262144 bytes, has 262146`,
		`"source_codes": {"b": {"inline_string": "x = "}}`:           at + `source_codes["b"].inline_string: at its end: `,
		`"max_instructions": 99`:                                     at + "max_instructions: must be between 100 and 1000000, is 99",
		`"status_on_error": {"code": 20}`:                            at + "status_on_error.code: ",
		`"inline_code": "x"`:                                         "inline_code",
	} {
		_, err := newBed(t, `"filter_context": {}`, usualRoutes).LoadUnpublished(listener(config+strings.Repeat(" ", 1)+map[bool]string{true: `"filter_context": {}`}[config == ""], usualRoutes))
		if want == "" {
			require.NoError(t, err, config)
		} else {
			require.ErrorContains(t, err, want, config)
		}
	}
	for config, want := range map[string]string{
		`"disabled": false`:                     ".disabled: must be true",
		`"name": ""`:                            ".name: must not be empty",
		`"source_code": {"inline_string": "("}`: ".source_code.inline_string: at its end",
		`"name": "x", "disabled": true`:         ".disabled: excludes name",
	} {
		_, err := newBed(t, `"filter_context": {}`, usualRoutes).LoadUnpublished(listener(`"filter_context": {}`,
			`[{"route": {"cluster": "rest"}, "typed_per_filter_config": {"`+Name+`": {"@type": "`+perRoute+`", `+config+`}}}]`))
		require.ErrorContains(t, err, want, config)
	}
}

// TestAMessageThatCannotBeChanged: what a script replaces or removes of what the client
// says does not go on if the script may not fail; else it does.
func TestAMessageThatCannotBeChanged(t *testing.T) {
	// THeader, its headers, and a part of an unknown kind.
	call := "\x00\x00\x00\x00\x0f\xff\x00\x00\x00\x00\x00\x07\x00\x05\x00\x00\x01\x01\x06x-user\x05admin\x77\x00\x00\x80\x01\x00\x01\x00\x00\x00\x01m\x00\x00\x00\x07\x00"
	framed := "\x00\x00\x00\x12\x80\x01\x00\x01\x00\x00\x00\x01m\x00\x00\x00\x07\x00"
	const replace, remove = `h:headers():replace("x-user", "alice")`, `h:headers():remove("x-user")`
	for _, tt := range []struct {
		script, frame string
		deny, passes  bool
		skipped       int
	}{
		{replace, call, true, false, 0},
		{remove, call, true, false, 0},
		{replace, call, false, true, 1},
		{remove, call, false, true, 1},
		{replace, framed, true, true, 1}, // where nothing is said
		{replace + replace, framed, true, true, 1},
		{remove, framed, true, true, 0},
	} {
		b := newBed(t, scripted("function envoy_on_request() end"), usualRoutes)
		up := b.Cluster("thrift", "h1")
		cfg := b.MustLoad(strings.Replace(listener(fmt.Sprintf(`"failure_mode_deny": %v, `, tt.deny)+scripted("function envoy_on_request(h) "+tt.script+" end"),
			`[{"route": {"cluster": "thrift"}}]`), "codec.dubbo", "codec.thrift", 1))
		c := b.Dial(cfg)
		frame := []byte(tt.frame)
		frame[3] = byte(len(frame) - 4)
		c.Send(frame)
		b.Advance(1e9)
		require.Equal(t, tt.passes, len(up.Servers()[0].Take()) > 0, tt)
		require.Equal(t, !tt.passes, strings.Contains(string(c.Take()), "the message cannot be changed: its header has parts of an unknown kind"), tt)
		require.EqualValues(t, tt.skipped, cfg.Counter("p.t.mutation_skipped"), tt)
		require.Equal(t, !tt.passes, cfg.Counter("p.t.mutation_refused") == 1, tt)
	}
}
