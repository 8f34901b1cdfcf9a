package lua

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestGuardsChangeNothing of what a script means: what is evaluated, how often, in which
// order, and of how many values.
func TestGuardsChangeNothing(t *testing.T) {
	for _, script := range []string{
		// Concatenation.
		`assert("x" .. 1 .. 2.5 .. "y" == "x12.5y")`,
		`local function two() return "a", "b" end assert("x" .. two() == "xa") assert(("x" .. two() .. two()) == "xaa")`,
		`local function f(...) return "x" .. ... end assert(f("a", "b") == "xa")`,
		`assert(select("#", ("a" .. "b")) == 1) local function f() return "a" .. "b" end assert(f() == "ab")`,
		`local m = {} m.__concat = function(a, b) return setmetatable({(type(a) == "table" and a[1] or a) .. (type(b) == "table" and b[1] or b)}, m) end
			local v = setmetatable({"v"}, m) local r = "a" .. "b" .. v .. 1 .. 2 assert(getmetatable(r) == m and r[1] == "abv12")`,
		`local ok, err = pcall(function() return "a" .. {} end) assert(not ok and err == "s:1: cannot perform concat operation between string and table", err)`,
		`local ok, err = pcall(function() return nil .. "a" end) assert(err:find("between nil and string"), err)`,
		// Tables.
		`local t = {1, 2, (function() return 3, 4 end)()} assert(#t == 4)`,
		`local t = {(function() return 3, 4 end)(), 5} assert(#t == 2 and t[2] == 5)`,
		`local function f(...) return {...} end assert(#f(1, 2, 3) == 3)`,
		`local k = "a" local t = {[k] = 1, [1 + 1] = 2, b = 3, [true] = 4, 5} assert(t.a == 1 and t[2] == 2 and t.b == 3 and t[true] == 4 and t[1] == 5)`,
		`local t = {[100] = 1, [200.5] = 2, [1e9] = 3, [-5] = 4} assert(t[100] == 1 and t[200.5] == 2 and t[1e9] == 3 and t[-5] == 4)`,
		// Assignments.
		`local i, t = 3, {} i, t[i] = i + 1, 20 assert(i == 4 and t[3] == 20 and t[4] == nil)`,
		`local t = {1, 2} local i, j = 1, 2 t[i], t[j] = t[j], t[i] assert(t[1] == 2 and t[2] == 1)`,
		`local t, n = {}, 0 local function at() n = n + 1 return t end at()[n] = "v" assert(n == 1 and t[1] == "v")`,
		`local function two() return "a", "b" end local t = {} t[two()], t.b = two() assert(t.a == "a" and t.b == "b")`,
		`local t = {} local k = "k" t[k], t.x = 1 assert(t.k == 1 and t.x == nil)`,
		`local t = {} local k = "k" t[k] = 1, error assert(t.k == 1)`,
		`local t = {} local k = "k" t[k], x = (function() return 1, 2, 3 end)() assert(t.k == 1 and x == 2)`,
		`local log = {} local p = setmetatable({}, {__newindex = function(t, k, v) log[#log + 1] = k .. v end}) local k = "k" p[k] = "v" p[k], p.z = 1, 2
			assert(table.concat(log, " ") == "kv k1 z2", table.concat(log, " "))`,
		`local to = {} local p = setmetatable({}, {__newindex = to}) local k = "k" p[k] = 1 assert(to.k == 1 and rawget(p, "k") == nil)`,
		`local p = setmetatable({k = 1}, {__newindex = error}) local k = "k" p[k] = 2 assert(p.k == 2)`,
		`local ok, err = pcall(function() local t, k = nil, "k" t[k] = 1 end) assert(err:find("^s:1: attempt to index a non%-table object%(nil%) with key 'k'"), err)`,
		`local ok, err = pcall(function() local t, k = {} t[k] = 1 end) assert(err:find("table index is nil"), err)`,
		`local t = {} for i = 1, 1000 do t[i] = i end assert(#t == 1000) for i = 1000, 1, -1 do t[i] = nil end assert(#t == 0)`,
		// Statements, and where values are made in them.
		`local n = 0 while n .. "" ~= "3" do n = n + 1 end assert(n == 3)`,
		`local n = 0 repeat local s = "" .. n n = n + 1 until s == "2" assert(n == 3)`,
		`local s = "" for i = #"a", #("ab" .. "c"), #{1} do s = s .. i end assert(s == "123")`,
		`local s = "" for k, v in pairs({a = "b" .. "c"}) do s = k .. v end assert(s == "abc")`,
		`if ("a" .. "b") == "ab" and not (("a" .. "b") ~= "ab") then else error("no") end assert(-#{1, 2} == -2)`,
		`local o = {n = ""} function o:add(x) self.n = self.n .. x return self end o:add("a" .. "b"):add(({"c"})[1]) assert(o.n == "abc")`,
		`local f = {g = {}} function f.g.h(...) return select("#", ...) .. "" end assert(f.g.h({}, {}) == "2")`,
		`do goto over end error("no") ::over::`,
		`local function count(n, a) if n == 0 then return a end return count(n - 1, "x" .. a:sub(1, 3)) end assert(count(500, "") == "xxxx")`,
		// Errors and coroutines.
		`local ok, a, b = pcall(function(...) return ... end, 1, 2) assert(ok and a == 1 and b == 2)`,
		`local ok, e = pcall(error, {code = 5}) assert(not ok and e.code == 5)`,
		`local ok, e = xpcall(function() error("x", 0) end, function(e) return e .. "!" end) assert(not ok and e == "x!")`,
		`local co = coroutine.wrap(function(a) local b = coroutine.yield(a .. 1) return b .. 2 end) assert(co("x") == "x1" and co("y") == "y2")`,
		`local co = coroutine.create(function() coroutine.yield(1, 2) error("e", 0) end) local _, a, b = coroutine.resume(co) assert(a == 1 and b == 2)
			local ok, e = coroutine.resume(co) assert(not ok and e == "e" and coroutine.status(co) == "dead")`,
		`local ok, e = pcall(coroutine.wrap(function() error("e", 0) end)) assert(not ok and e == "e") assert(coroutine.running() == nil)`,
		`local g = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end) local s = "" for i in g do s = s .. i end assert(s == "123")`,
		// What is put in place of the library's.
		`assert(string.format("%5.2f|%-3d|%s|%q|%%|%x", 3.14159, 7, "s", 'a"b', 255) == [[ 3.14|7  |s|"a\"b"|%|ff]])`,
		`assert(("abc"):rep(2) == "abcabc" and ("abc"):rep(0) == "" and ("abc"):sub(-2) == "bc" and ("abc"):upper() == "ABC" and ("abc"):byte(2) == 98)`,
		`assert(table.concat({1, 2, 3}, ",", 2) == "2,3" and table.concat({}) == "" and table.concat({"a"}, "x", 2) == "")`,
		`local t = {1, 2, 3} table.insert(t, 4) table.insert(t, 1, 0) table.insert(t, 6, 5) assert(table.concat(t) == "012345")`,
		`assert(tostring(nil) == "nil" and tostring(1) == "1" and tonumber("0x10") == 16 and tonumber("z", 36) == 35 and tonumber("x") == nil)`,
		`assert(rawset({}, "a", 1).a == 1) local n = 0 for _ in pairs({1, 2, a = 3}) do n = n + 1 end assert(n == 3)`,
		`local r = math.random(5) assert(r >= 1 and r <= 5 and math.random() < 1) math.randomseed(1)`,
	} {
		_, err := compile("s", script+"\nfunction envoy_on_request() end")
		require.NoError(t, err, script)
	}
}
