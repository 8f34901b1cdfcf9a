package lua

import (
	"errors"
	"math/rand/v2"
	"strings"

	lua "github.com/yuin/gopher-lua"
)

// maxString is the longest string that a script can make, in bytes.
const maxString = 64 << 10

// withheld are functions of Lua that scripts do not have: what reads files, compiles,
// leaves the sandbox, or is the process's.
var withheld = []string{
	"collectgarbage", "dofile", "getfenv", "load", "loadfile", "loadstring", "module", "newproxy", "require", "setfenv",
	"_printregs", "_GOPHER_LUA_VERSION",
}

// libraries opens what scripts have of Lua's libraries: without io, os, package, debug and
// channel, and with other functions in place of those whose cost has no bound.
func (s *state) libraries() {
	l := s.l
	for _, lib := range []struct {
		name string
		open lua.LGFunction
	}{{lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}, {lua.StringLibName, lua.OpenString}, {lua.MathLibName, lua.OpenMath}, {lua.CoroutineLibName, lua.OpenCoroutine}} {
		l.Push(l.NewFunction(lib.open))
		l.Push(lua.LString(lib.name))
		l.Call(1, 0)
	}
	g := l.G.Global
	for _, name := range withheld {
		g.RawSetString(name, lua.LNil)
	}
	l.SetFuncs(g, s.guards())
	g.RawSetString("pairs", l.NewClosure(pairs, g.RawGetString("next")))
	l.SetFuncs(g, map[string]lua.LGFunction{
		"print": s.print, "pcall": s.pcall, "xpcall": s.xpcall, "rawset": s.rawset,
		"tostring": s.paid(g, "tostring"), "tonumber": s.paid(g, "tonumber"),
	})

	t := g.RawGetString(lua.TabLibName).(*lua.LTable)
	l.SetFuncs(t, map[string]lua.LGFunction{
		"concat": s.tableConcat, "insert": s.tableInsert, "remove": s.tableRemove(t.RawGetString("remove").(*lua.LFunction).GFunction),
	})

	str := g.RawGetString(lua.StringLibName).(*lua.LTable)
	str.RawSetString("dump", lua.LNil)
	for _, name := range []string{"byte", "lower", "reverse", "upper"} {
		str.RawSetString(name, l.NewFunction(s.paid(str, name)))
	}
	l.SetFuncs(str, map[string]lua.LGFunction{
		"find": s.find, "match": s.matchString, "gmatch": s.gmatch, "gfind": s.gmatch, "gsub": s.gsub,
		"rep": s.rep, "sub": s.sub, "format": s.formatter(str.RawGetString("format").(*lua.LFunction).GFunction),
	})

	m := g.RawGetString(lua.MathLibName).(*lua.LTable)
	l.SetFuncs(m, map[string]lua.LGFunction{"random": random, "randomseed": func(*lua.LState) int { return 0 }})

	co := g.RawGetString(lua.CoroutineLibName).(*lua.LTable)
	l.SetFuncs(co, map[string]lua.LGFunction{"create": s.creator(co.RawGetString("create").(*lua.LFunction).GFunction), "wrap": s.wrap})
}

// paid is the function name of a library, which takes time by the length of its first
// argument.
func (s *state) paid(lib *lua.LTable, name string) lua.LGFunction {
	f := lib.RawGetString(name).(*lua.LFunction).GFunction
	return func(l *lua.LState) int {
		if t, is := l.Get(1).(lua.LString); is {
			s.budget.charge(l, len(t))
		}
		return f(l)
	}
}

// pairs heeds __pairs, as LuaJIT does; the handles' objects have it.
func pairs(l *lua.LState) int {
	v := l.CheckAny(1)
	f := l.GetMetaField(v, "__pairs")
	if f == lua.LNil {
		l.Push(l.Get(lua.UpvalueIndex(1)))
		l.Push(l.CheckTable(1))
		l.Push(lua.LNil)
		return 3
	}
	l.Push(f)
	l.Push(v)
	l.Call(1, 3)
	return 3
}

func (s *state) rawset(l *lua.LState) int {
	t := l.CheckTable(1)
	s.room(l, t, l.CheckAny(2), l.CheckAny(3))
	l.RawSet(t, l.Get(2), l.Get(3))
	l.SetTop(1)
	return 1
}

// perError is what an error counts that a script catches, in bytes: its stack is walked.
const perError = 500 * perUnit

func (s *state) pcall(l *lua.LState) int {
	l.CheckAny(1)
	return s.protected(l, l.PCall(l.GetTop()-1, lua.MultRet, nil))
}

func (s *state) xpcall(l *lua.LState) int {
	f, handler := l.CheckAny(1), l.CheckFunction(2)
	l.SetTop(0)
	l.Push(f)
	return s.protected(l, l.PCall(0, lua.MultRet, handler))
}

// protected returns how a protected call has ended.
func (s *state) protected(l *lua.LState, err error) int {
	if err != nil {
		s.failed(err)
		s.budget.charge(l, perError)
		l.Push(lua.LFalse)
		l.Push(thrown(err))
		return 2
	}
	l.Insert(lua.LTrue, 1)
	return l.GetTop()
}

// thrown is what a script has given to error.
func thrown(err error) lua.LValue {
	var e *lua.ApiError
	if errors.As(err, &e) && e.Object != nil {
		return e.Object
	}
	return lua.LString(err.Error())
}

func random(l *lua.LState) int {
	var least, most int
	switch l.GetTop() {
	case 0:
		l.Push(lua.LNumber(rand.Float64()))
		return 1
	case 1:
		least, most = 1, l.CheckInt(1)
	default:
		least, most = l.CheckInt(1), l.CheckInt(2)
	}
	if n := most - least + 1; n > 0 {
		l.Push(lua.LNumber(least + rand.IntN(n)))
		return 1
	}
	l.ArgError(l.GetTop(), "interval is empty")
	return 0
}

func (s *state) tableConcat(l *lua.LState) int {
	t, sep := l.CheckTable(1), l.OptString(2, "")
	from, to := l.OptInt(3, 1), l.OptInt(4, t.Len())
	var b strings.Builder
	for i := from; i <= to; i++ {
		v := t.RawGetInt(i)
		if !lua.LVCanConvToString(v) {
			l.RaiseError("invalid value (%s) at index %d in table for concat", v.Type(), i)
		}
		piece := lua.LVAsString(v)
		if i < to {
			piece += sep
		}
		if b.Len()+len(piece) > maxString {
			s.long(l, b.Len()+len(piece))
		}
		s.budget.charge(l, len(piece))
		b.WriteString(piece)
	}
	l.Push(lua.LString(b.String()))
	return 1
}

func (s *state) tableInsert(l *lua.LState) int {
	t := l.CheckTable(1)
	switch l.GetTop() {
	case 2:
		t.Append(l.Get(2))
	case 3:
		at, n := l.CheckInt(2), t.Len()
		if at < 1 || at > n+1 {
			l.ArgError(2, "position out of bounds")
		}
		s.budget.charge(l, n-at+1)
		t.Insert(at, l.Get(3))
	default:
		l.RaiseError("wrong number of arguments to 'insert'")
	}
	return 0
}

// tableRemove pays for the elements that move.
func (s *state) tableRemove(remove lua.LGFunction) lua.LGFunction {
	return func(l *lua.LState) int {
		if l.GetTop() > 1 {
			s.budget.charge(l, max(0, l.CheckTable(1).Len()-max(1, l.CheckInt(2))))
		}
		return remove(l)
	}
}

func (s *state) rep(l *lua.LState) int {
	t, n := l.CheckString(1), l.CheckInt(2)
	if n <= 0 || t == "" {
		l.Push(lua.LString(""))
		return 1
	}
	if n > maxString {
		n = maxString + 1 // of whatever, it is too long
	}
	s.long(l, n*len(t))
	l.Push(lua.LString(strings.Repeat(t, n)))
	return 1
}

func (s *state) sub(l *lua.LState) int {
	t := l.CheckString(1)
	from, to := begin(l.CheckInt(2), len(t)), l.OptInt(3, -1)
	if to < 0 {
		to += len(t) + 1
	}
	if to = min(to, len(t)); from >= to {
		l.Push(lua.LString(""))
		return 1
	}
	l.Push(s.piece(l, t, from, to))
	return 1
}

// begin is where a string of n bytes is looked at from, for i that counts from 1, or from
// its end if it is negative.
func begin(i, n int) int {
	if i < 0 {
		i += n + 1
	}
	return max(i, 1) - 1
}

// piece is part of a string that does not keep the whole one.
func (s *state) piece(l *lua.LState, t string, from, to int) lua.LString {
	s.budget.charge(l, to-from)
	if to-from == len(t) {
		return lua.LString(t)
	}
	return lua.LString(strings.Clone(t[from:to]))
}

func (s *state) formatter(format lua.LGFunction) lua.LGFunction {
	return func(l *lua.LState) int {
		f := l.CheckString(1)
		length := len(f)
		for i := 0; i < len(f); i++ {
			if f[i] != '%' {
				continue
			}
			length += maxVerb
			for i++; i < len(f) && strings.IndexByte("-+ #0", f[i]) >= 0; i++ {
			}
			for range 2 {
				n := i
				for i < len(f) && digit(f[i]) {
					i++
				}
				if i-n > 2 {
					l.RaiseError("invalid format (width or precision too long)")
				}
				if i < len(f) && f[i] == '.' {
					i++
				}
			}
			if i < len(f) && (f[i] == '[' || f[i] == '*') { // Go's own: arguments again, or as widths
				l.RaiseError("invalid conversion %%%c", f[i])
			}
		}
		for i := 2; i <= l.GetTop(); i++ {
			v := l.Get(i)
			if v.Type() != lua.LTString && v.Type() != lua.LTNumber { // else Go shows what it is made of
				v = lua.LString(l.ToStringMeta(v).String())
				l.Replace(i, v)
			}
			if t, is := v.(lua.LString); is {
				length += 5 * len(t) // in hexadecimal digits
			}
		}
		s.long(l, length)
		return format(l)
	}
}

// maxVerb is what a number takes at most where string.format writes it, in bytes.
const maxVerb = 512

func (s *state) matcher(l *lua.LState, text, pattern string) *matcher {
	return &matcher{
		text: text, pattern: pattern, spend: s.budget.spend, cost: s.budget.Err,
		fail: func(format string, args ...any) { l.RaiseError(format, args...) },
	}
}

// capture is the capture i of a match from start to end; without any, 0 is all of it.
func (s *state) capture(l *lua.LState, m *matcher, i, start, end int) lua.LValue {
	if i >= m.level {
		if i > 0 {
			l.RaiseError("invalid capture index")
		}
		return s.piece(l, m.text, start, end)
	}
	c := m.captures[i]
	switch c.length {
	case position:
		return lua.LNumber(c.start + 1)
	case unclosed:
		l.RaiseError("unfinished capture")
	}
	return s.piece(l, m.text, c.start, c.start+c.length)
}

// pushCaptures pushes all captures, or the whole match if there are none and whole.
func (s *state) pushCaptures(l *lua.LState, m *matcher, start, end int, whole bool) int {
	n := m.level
	if n == 0 && whole {
		n = 1
	}
	for i := range n {
		l.Push(s.capture(l, m, i, start, end))
	}
	return n
}

func (s *state) find(l *lua.LState) int {
	text, pattern := l.CheckString(1), l.CheckString(2)
	from := begin(l.OptInt(3, 1), len(text))
	if from > len(text) {
		l.Push(lua.LNil)
		return 1
	}
	if l.ToBool(4) || !strings.ContainsAny(pattern, "^$*+?.([%-") {
		s.budget.charge(l, len(text)-from)
		at := strings.Index(text[from:], pattern)
		if at < 0 {
			l.Push(lua.LNil)
			return 1
		}
		l.Push(lua.LNumber(from + at + 1))
		l.Push(lua.LNumber(from + at + len(pattern)))
		return 2
	}
	m := s.matcher(l, text, pattern)
	start, end := m.find(from)
	if start < 0 {
		l.Push(lua.LNil)
		return 1
	}
	l.Push(lua.LNumber(start + 1))
	l.Push(lua.LNumber(end))
	return 2 + s.pushCaptures(l, m, start, end, false)
}

func (s *state) matchString(l *lua.LState) int {
	text, pattern := l.CheckString(1), l.CheckString(2)
	from := begin(l.OptInt(3, 1), len(text))
	m := s.matcher(l, text, pattern)
	if start, end := m.find(from); start >= 0 {
		return s.pushCaptures(l, m, start, end, true)
	}
	l.Push(lua.LNil)
	return 1
}

func (s *state) gmatch(l *lua.LState) int {
	text, pattern, from := l.CheckString(1), l.CheckString(2), 0
	l.Push(l.NewClosure(func(l *lua.LState) int {
		m := s.matcher(l, text, pattern)
		start, end := m.find(from)
		if start < 0 {
			from = len(text) + 1
			l.Push(lua.LNil)
			return 1
		}
		if from = end; start == end {
			from++
		}
		return s.pushCaptures(l, m, start, end, true)
	}, lua.LString(text))) // whose size is seen so
	return 1
}

func (s *state) gsub(l *lua.LState) int {
	text, pattern, with := l.CheckString(1), l.CheckString(2), l.Get(3)
	switch with.(type) {
	case lua.LString, lua.LNumber, *lua.LTable, *lua.LFunction:
	default:
		l.ArgError(3, "string/function/table expected")
	}
	most, n, from := l.OptInt(4, len(text)+1), 0, 0
	m := s.matcher(l, text, pattern)
	var b []byte
	add := func(t string) {
		if len(b)+len(t) > maxString {
			s.long(l, len(b)+len(t))
		}
		s.budget.charge(l, len(t))
		b = append(b, t...)
	}
	anchored := strings.HasPrefix(pattern, "^")
	for n < most && from <= len(text) {
		start, end := m.find(from)
		if start < 0 {
			break
		}
		n++
		add(text[from:start])
		add(s.replacement(l, m, with, start, end))
		if from = end; start == end {
			if end < len(text) {
				add(text[end : end+1])
			}
			from++
		}
		if anchored {
			break
		}
	}
	if from < len(text) {
		add(text[from:])
	}
	l.Push(lua.LString(b))
	l.Push(lua.LNumber(n))
	return 2
}

// replacement is what gsub puts in place of a match.
func (s *state) replacement(l *lua.LState, m *matcher, with lua.LValue, start, end int) string {
	var v lua.LValue
	switch w := with.(type) {
	case *lua.LTable:
		v = l.GetTable(w, s.capture(l, m, 0, start, end))
	case *lua.LFunction:
		l.Push(w)
		n := s.pushCaptures(l, m, start, end, true)
		l.Call(n, 1)
		v = l.Get(-1)
		l.Pop(1)
	default:
		return s.expand(l, m, lua.LVAsString(with), start, end)
	}
	switch {
	case lua.LVIsFalse(v):
		return m.text[start:end]
	case !lua.LVCanConvToString(v):
		l.RaiseError("invalid replacement value (a %s)", v.Type())
	}
	return lua.LVAsString(v)
}

// expand puts captures in place of %0 to %9.
func (s *state) expand(l *lua.LState, m *matcher, with string, start, end int) string {
	if !strings.Contains(with, "%") {
		return with
	}
	var b strings.Builder
	for i := 0; i < len(with); i++ {
		switch c := with[i]; {
		case c != '%' || i+1 == len(with):
			b.WriteByte(c)
			continue
		case with[i+1] == '0':
			b.WriteString(m.text[start:end])
		case digit(with[i+1]):
			b.WriteString(lua.LVAsString(s.capture(l, m, int(with[i+1]-'1'), start, end)))
		default:
			b.WriteByte(with[i+1])
		}
		i++
		if b.Len() > maxString {
			s.long(l, b.Len())
		}
	}
	return b.String()
}

// perCoroutine is what a coroutine counts, in bytes: it has a stack of its own.
const perCoroutine = 24 << 10

// creator has coroutines run on the hook's budget.
func (s *state) creator(create lua.LGFunction) lua.LGFunction {
	return func(l *lua.LState) int {
		s.budget.charge(l, perCoroutine)
		n := create(l)
		l.Get(-1).(*lua.LState).SetContext(&s.budget)
		return n
	}
}

func (s *state) wrap(l *lua.LState) int {
	f := l.CheckFunction(1)
	s.budget.charge(l, perCoroutine)
	co, _ := l.NewThread()
	co.SetContext(&s.budget)
	l.Push(l.NewClosure(func(l *lua.LState) int {
		args := make([]lua.LValue, l.GetTop())
		for i := range args {
			args[i] = l.Get(i + 1)
		}
		state, err, values := l.Resume(co, f, args...)
		if state == lua.ResumeError {
			l.Error(thrown(err), 0)
		}
		for _, v := range values {
			l.Push(v)
		}
		return len(values)
	}, co)) // whose size is seen so
	return 1
}
