package lua

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	lua "github.com/yuin/gopher-lua"
)

// TestHostileScripts end, whatever they do, with the error that is theirs; the request
// goes on, and so does the next one on the same state, or a new one.
func TestHostileScripts(t *testing.T) {
	const budget, text, deep, index = "it has ", "a string would be longer than 65536 bytes", "stack overflow", "an index is larger"
	for script, want := range map[string]string{
		`while true do end`:                      budget,
		`repeat until false`:                     budget,
		`for i = 1, math.huge do end`:            budget,
		`::again:: goto again`:                   budget,
		`local function f() return f() end f()`:  budget, // a tail call
		`while true do h:headers():get("a") end`: budget,
		`while true do h:logInfo("a") end`:       budget,
		`while true do h:streamInfo():dynamicMetadata():set("f", "k", {}) end`:                  budget,
		`while true do h:headers():add("k", "v") end`:                                           budget,
		`while true do h:streamInfo():dynamicMetadata():set("f", "k" .. math.random(), {}) end`: "dynamic metadata has 100 entries already",
		// Recursion, of Lua and through Go.
		`local function f() return 1 + f() end f()`:                                                              deep,
		`local function f() pcall(f) end f() while true do end`:                                                  budget,
		`local t = setmetatable({}, {}) getmetatable(t).__index = function(t, k) return t[k + 1] end t.x = t[1]`: deep,
		`local function f() string.gsub("a", "a", f) end f()`:                                                    deep,
		`local function f() table.sort({1, 2}, f) end f()`:                                                       deep,
		`local t = setmetatable({}, {__tostring = function(t) return tostring(t) end}) tostring(t)`:              deep,
		`local t = setmetatable({}, {}) getmetatable(t).__index = t t.x = t.y`:                                   "too many recursions in gettable",
		`local function f() coroutine.wrap(f)() end f()`:                                                         budget,
		`local function f(...) return select("#", ...) + f(1, ...) end f()`:                                      "",
		// Long strings.
		`local s = "a" while true do s = s .. s end`:                                      text,
		`local s = "a" while true do s = s .. s .. s .. s end`:                            text,
		`string.rep("a", 1e9)`:                                                            text,
		`string.rep("a", 2^62)`:                                                           text,
		`string.rep(("a"):rep(1000), 2^60)`:                                               text,
		`local s = ("a"):rep(65536) .. "b"`:                                               text,
		`local s = string.format("%s%s%s%s", ("a"):rep(60000), ("a"):rep(60000), "", "")`: text,
		`string.format("%999999d", 1)`:                                                    "invalid format (width or precision too long)",
		`string.format("%-#999d", 1)`:                                                     "invalid format (width or precision too long)",
		`string.format("%.999f", 1)`:                                                      "invalid format (width or precision too long)",
		`string.format(("%.[1]999999f"):rep(100), 1)`:                                     "invalid conversion %[",
		`string.format(("%[1]s"):rep(60), ("x"):rep(8000))`:                               "invalid conversion %[",
		`local s, t = ("x"):rep(60000), {} for i = 1, 900 do t[i] = s end setmetatable(t, {__tostring = function() return {t} end}) string.format("%d %x %#v", t, h, t)`: "",
		`string.format("%*d %.*f", 1, 1)`:                                                      "invalid conversion %*",
		`table.remove({1}, -2^62) table.remove({1}, 2^62)`:                                     "",
		`string.format(("%99d"):rep(2000), 1)`:                                                 text,
		`string.gsub(("a"):rep(60000), "a", ("b"):rep(60000))`:                                 text,
		`string.gsub(("a"):rep(60000), ".+", ("%0"):rep(30000))`:                               text,
		`string.gsub("a", ".", ("%1"):rep(40000)) string.gsub(("a"):rep(60000), ".+", "%0%1")`: text,
		`table.concat({("a"):rep(60000), ("a"):rep(60000)})`:                                   text,
		`table.concat({1, 2, 3}, ("a"):rep(60000))`:                                            text,
		`h:base64Escape(("a"):rep(65000))`:                                                     text,
		`local a = ("x"):rep(60000) while true do local b = a .. "y" end`:                      budget,
		`local a = ("x"):rep(60000) while true do local b = a:upper() end`:                     budget,
		`local a = ("1"):rep(60000) while true do local b = tonumber(a) end`:                   budget,
		// Large tables.
		`local t = {} t[60000000] = 1`:         index,
		`local t, i = {}, 1 t[2^25], i = 1, 2`: index,
		`local t = {[60000000] = 1}`:           index,
		`rawset({}, 60000000, 1)`:              index,
		`table.insert({}, 60000000, 1)`:        "position out of bounds",
		`local t = {} setmetatable(t, {__newindex = setmetatable({}, {__newindex = {}})}) t[60000000] = 1`:                          index,
		`local t = {} while true do t[#t + 1] = {} end`:                                                                             budget,
		`local t = {} while true do t[#t + 1] = {a = {b = {}}} end`:                                                                 budget,
		`local t = {} while true do t = {t} end`:                                                                                    budget,
		`local t = {} while true do t[{}] = 1 end`:                                                                                  budget,
		`local t = {} for i = 1, 1e9 do t[#t + 65536] = 1 end`:                                                                      budget,
		`local t = {} for i = 1, 20000 do table.insert(t, i) end for i = 1, 20000 do t[i] = nil end while true do local n = #t end`: budget,
		`local t = {} for i = 1, 900 do table.insert(t, i) end for i = 1, 500 do table.remove(t, 1) end`:                            budget,
		`unpack({}, 1, 1e9)`: "registry overflow",
		`local t = {} for i = 1, 9000 do table.insert(t, i) end while true do table.sort(t) end`:           budget,
		`table.sort({3, 2, 1, 5, 4}, function() while true do end end)`:                                    budget,
		`local t = {} for i = 1, 1000 do table.insert(t, i) end table.sort(t, function() return true end)`: "",
		// What catches the budget's error.
		`while true do pcall(function() while true do end end) end`:                                                              budget,
		`while true do xpcall(function() while true do end end, function() while true do end end) end`:                           budget,
		`while true do pcall(error, {}) end`:                                                                                     budget,
		`pcall(function() while true do end end) h:headers():replace("lane", "blue")`:                                            budget,
		`while true do coroutine.wrap(function() while true do end end)() end`:                                                   budget,
		`local co = coroutine.create(function() while true do coroutine.yield() end end) while true do coroutine.resume(co) end`: budget,
		`while true do coroutine.resume(coroutine.create(function() while true do end end)) end`:                                 budget,
		`local t = {} while true do t[#t + 1] = coroutine.create(function() end) end`:                                            budget,
		// Yields, and other ways to leave.
		`coroutine.yield(1)`:     "can not yield from outside of a coroutine",
		`pcall(coroutine.yield)`: "",
		`coroutine.wrap(function() pcall(coroutine.yield) end)()`:                                                "",
		`coroutine.wrap(function() string.gsub("a", "a", coroutine.yield) end)()`:                                "",
		`local co co = coroutine.wrap(function() co() end) co()`:                                                 "can not resume a running thread",
		`local co = coroutine.create(function() error("x") end) coroutine.resume(co) coroutine.wrap(error)("x")`: "x",
		`error()`:    "value expected",
		`error(nil)`: "nil",
		`error(setmetatable({}, {__tostring = function() while true do end end}))`: "a table was thrown",
		`error(("x"):rep(60000))`: strings.Repeat("x", 900),
		`h:respond(setmetatable({}, {__index = function() while true do end end}))`: "respond: status",
		`h:respond({status = h})`:                      "respond: status",
		`h:respond({status = "DENIED"}, "x", error())`: "value expected",
		// Patterns.
		`string.find(("a"):rep(10000), ".-.-.-.-b$")`:           budget,
		`string.match(("a"):rep(60000), ("a*"):rep(50) .. "b")`: budget,
		// A set that costs 7 steps beside the one of its item, so that the 8th is no item's.
		`string.find(("a"):rep(300) .. "c", "^" .. ("[a" .. ("z"):rep(55) .. "]*"):rep(3) .. "[b" .. ("z"):rep(55) .. "]")`: budget,
		`string.find(("a"):rep(60000), ("(a)"):rep(33))`:                                                                    "too many captures",
		`string.find(("a"):rep(60000), ("a-"):rep(300) .. "b")`:                                                             "",
		`string.find("a", "[a")`:   "malformed pattern",
		`string.find("a", "%")`:    "malformed pattern",
		`string.find("a", "%b")`:   "unbalanced pattern",
		`string.find("a", "%f")`:   "missing '['",
		`string.find("a", "(a")`:   "unfinished capture",
		`string.find("a", "()a)")`: "invalid pattern capture",
		`string.find("a", "%1")`:   "invalid capture index",
		// What they are given.
		`string.lower = nil string = nil pairs = nil tostring = nil`: "",
		`_G["(concat)"] = nil local s = "a" .. "b"`:                  "attempt to call a non-function object",
		`for k in pairs(_G) do _G[k] = nil end`:                      "",
		`getmetatable("").__index = nil local s = ("a"):rep(2)`:      "",
		`getmetatable(h).__index = nil`:                              "attempt to index a non-table object(string)",
		`setmetatable(h, {})`:                                        "cannot change a protected metatable",
		`h:headers().get(h, "a")`:                                    "get is a method",
		`h = nil h:headers()`:                                        "attempt to index a non-table object(nil)",
		`h:headers():replace("", "v")`:                               "a name must not be empty",
		`h:headers():replace("k", {})`:                               "string expected, got table",
		`h:headers():replace(("k"):rep(20000), "v")`:                 "a name or value is longer",
		`h:streamInfo():dynamicMetadata():set("f", "k", print)`:      "want a string, number, boolean, table or nil",
		`h:body()`:          "body is not supported",
		`math.random(2, 1)`: "interval is empty",
		`math.random(0)`:    "interval is empty",
	} {
		t.Run(script[:min(len(script), 60)], func(t *testing.T) {
			b := newBed(t, `"max_instructions": 10000, `+scripted(`function envoy_on_request(h) if h:headers():get("evil") then `+script+` else h:headers():add("lane", "blue") end end`), usualRoutes)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			require.NotEmpty(t, b.ask([2]string{"evil", "1"}).Text())
			runtime.ReadMemStats(&after)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20), "bytes")
			if errs := b.logged(); want != "" {
				require.NotEmpty(t, errs)
				require.Contains(t, errs[len(errs)-1], want)
				require.Less(t, len(errs[len(errs)-1]), 1200)
				require.Zero(t, b.Panics())
			}
			b.ask()
			if !strings.Contains(script, "_G") && !strings.Contains(script, "string = nil") {
				require.Equal(t, "blue", b.at, "%q", b.logged())
			}
		})
	}
}

// TestAScriptThatMindsItsGlobals is asked for no hook that it has not.
func TestAScriptThatMindsItsGlobals(t *testing.T) {
	b := newBed(t, scripted(`setmetatable(_G, {__index = function(t, k) error("undefined " .. k) end})
		function envoy_on_request(h) h:headers():add("lane", pcall(function() return nope end) and "?" or "blue") end`), usualRoutes)
	b.ask()
	require.Equal(t, "blue", b.at, "%q", b.logged())
}

// TestPatterns are those of the library, but for what those cost: both do the same with
// random ones.
func TestPatterns(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	pattern := func() string {
		p := pick("", "", "", "^")
		for range 1 + rng.IntN(4) {
			p += pick("a", "b", ".", "%a", "%d", "%s", "%w", "%p", "%u", "%x", "%D", "[ab]", "[^a]", "[a-c1]", "[%a_]", "[]a]", "%.", "(a)", "(b*)", "(.-)", "([ab]+)", "()", "%b()", "x")
			if p[len(p)-1] != ')' {
				p += pick("", "", "", "*", "+", "-", "?")
			}
		}
		return p + pick("", "", "", "$", "%1")
	}
	text := func() (s string) {
		for range rng.IntN(12) {
			s += pick("a", "b", "c", "A", "1", " ", ".", "(", ")", "_", "x", "é")
		}
		return s
	}
	plain := lua.NewState()
	defer plain.Close()
	sc, err := compile("s", "function envoy_on_request() end")
	require.NoError(t, err)
	ours, err := sc.load(nil)
	require.NoError(t, err)
	result := func(l *lua.LState, code string) string {
		ours.budget.begin(1 << 30)
		if err := l.DoString("result = (function(...) local t = {} for i = 1, select('#', ...) do t[i] = tostring((select(i, ...))) end return table.concat(t, '|') end)(" + code + ")"); err != nil {
			return "error"
		}
		return l.GetGlobal("result").String()
	}
	for range 200 {
		p, s := pattern(), text()
		if strings.Contains(p, "()") && strings.Contains(p, "%1") {
			continue // a position is nothing that could come again: the library finds it
		}
		with := pick("", "<%0>", "z", "%%")
		for _, code := range []string{
			fmt.Sprintf("string.find(%q, %q, %d)", s, p, rng.IntN(5)-2), fmt.Sprintf("string.match(%q, %q)", s, p), fmt.Sprintf("string.gsub(%q, %q, %q)", s, p, with),
			fmt.Sprintf("string.gsub(%q, %q, function(a) return a == 'a' and 'Z' end, %d)", s, p, 1+rng.IntN(4)), fmt.Sprintf("string.sub(%q, %d, %d)", s, rng.IntN(20)-10, rng.IntN(20)-10),
		} {
			code = strings.ReplaceAll(code, `\x`, `\\x`)
			want := result(plain, code)
			got := result(ours.l, code)
			if want == "" && got == "nil" {
				want = got // Lua says so of no match, and the library says nothing
			}
			require.Equal(t, want, got, code)
		}
	}
}
