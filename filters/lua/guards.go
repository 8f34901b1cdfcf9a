package lua

import (
	"strconv"

	lua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/ast"
)

// Most instructions of Lua cost a little time and memory. Those that need not are
// compiled as calls of functions, which count what it is. No script can name these.
const (
	guardConcat = "(concat)" // a .. b makes a string of any length
	guardSet    = "(set)"    // t[i] = v makes as many elements as i says
	guardKey    = "(key)"    // {[i] = v} does so, too
	guardTable  = "(table)"  // {} is large
)

// smallKey is an index that may be as it is.
const smallKey = 64

// guarder puts guards into a script.
type guarder struct {
	refuse func(line int, format string, args ...any)
}

// unsupported are methods of Envoy's handles that there are not here.
var unsupported = map[string]string{
	"httpCall":                "the filter ext_authz asks services",
	"bodyChunks":              "arguments and results are not for scripts",
	"trailers":                "messages have none",
	"connectionStreamInfo":    "streamInfo tells of the connection, too",
	"setUpstreamOverrideHost": "a route's hash_policy chooses hosts by properties",
	"importPublicKey":         "there is no cryptography",
	"verifySignature":         "there is no cryptography",
}

func (g *guarder) block(stmts []ast.Stmt) {
	for i, s := range stmts {
		stmts[i] = g.stmt(s)
	}
}

func (g *guarder) stmt(s ast.Stmt) ast.Stmt {
	switch s := s.(type) {
	case *ast.AssignStmt:
		g.exprs(s.Lhs)
		g.exprs(s.Rhs)
		return assignment(s)
	case *ast.LocalAssignStmt:
		g.exprs(s.Exprs)
	case *ast.FuncCallStmt:
		s.Expr = g.expr(s.Expr)
	case *ast.DoBlockStmt:
		g.block(s.Stmts)
	case *ast.WhileStmt:
		s.Condition = g.expr(s.Condition)
		g.block(s.Stmts)
	case *ast.RepeatStmt:
		s.Condition = g.expr(s.Condition)
		g.block(s.Stmts)
	case *ast.IfStmt:
		s.Condition = g.expr(s.Condition)
		g.block(s.Then)
		g.block(s.Else)
	case *ast.NumberForStmt:
		s.Init, s.Limit = g.expr(s.Init), g.expr(s.Limit)
		if s.Step != nil {
			s.Step = g.expr(s.Step)
		}
		g.block(s.Stmts)
	case *ast.GenericForStmt:
		g.exprs(s.Exprs)
		g.block(s.Stmts)
	case *ast.FuncDefStmt:
		g.block(s.Func.Stmts)
	case *ast.ReturnStmt:
		g.exprs(s.Exprs)
	}
	return s
}

func (g *guarder) exprs(es []ast.Expr) {
	for i, e := range es {
		es[i] = g.expr(e)
	}
}

func (g *guarder) expr(e ast.Expr) ast.Expr {
	switch e := e.(type) {
	case *ast.AttrGetExpr:
		e.Object, e.Key = g.expr(e.Object), g.expr(e.Key)
	case *ast.TableExpr:
		for _, f := range e.Fields {
			f.Value = g.expr(f.Value)
			if f.Key == nil {
				continue
			}
			if f.Key = g.expr(f.Key); large(f.Key) {
				f.Key = call(e, guardKey, f.Key)
			}
		}
		return call(e, guardTable, e)
	case *ast.FuncCallExpr:
		if why, is := unsupported[e.Method]; is {
			g.refuse(e.Line(), "%s is not supported: %s", e.Method, why)
		}
		if e.Func != nil {
			e.Func = g.expr(e.Func)
		}
		if e.Receiver != nil {
			e.Receiver = g.expr(e.Receiver)
		}
		g.exprs(e.Args)
	case *ast.LogicalOpExpr:
		e.Lhs, e.Rhs = g.expr(e.Lhs), g.expr(e.Rhs)
	case *ast.RelationalOpExpr:
		e.Lhs, e.Rhs = g.expr(e.Lhs), g.expr(e.Rhs)
	case *ast.ArithmeticOpExpr:
		e.Lhs, e.Rhs = g.expr(e.Lhs), g.expr(e.Rhs)
	case *ast.StringConcatOpExpr:
		all := []ast.Expr{g.expr(e.Lhs)}
		rest := e.Rhs
		for more, is := rest.(*ast.StringConcatOpExpr); is; more, is = rest.(*ast.StringConcatOpExpr) {
			all, rest = append(all, g.expr(more.Lhs)), more.Rhs
		}
		return call(e, guardConcat, append(all, single(g.expr(rest)))...)
	case *ast.UnaryMinusOpExpr:
		e.Expr = g.expr(e.Expr)
	case *ast.UnaryNotOpExpr:
		e.Expr = g.expr(e.Expr)
	case *ast.UnaryLenOpExpr:
		e.Expr = g.expr(e.Expr)
	case *ast.FunctionExpr:
		g.block(e.Stmts)
	}
	return e
}

// single has an operand that is a call, or ..., be one value as the last argument of a
// guard.
func single(e ast.Expr) ast.Expr {
	switch e := e.(type) {
	case *ast.FuncCallExpr:
		e.AdjustRet = true
	case *ast.Comma3Expr:
		e.AdjustRet = true
	}
	return e
}

// large reports whether an index may be a large number.
func large(key ast.Expr) bool {
	switch k := key.(type) {
	case *ast.StringExpr, *ast.TrueExpr, *ast.FalseExpr, *ast.NilExpr:
		return false
	case *ast.NumberExpr:
		n, err := strconv.Atoi(k.Value)
		return err != nil || n > smallKey
	}
	return true
}

// assignment has elements of tables set by the guard where their index may be large.
func assignment(s *ast.AssignStmt) ast.Stmt {
	guarded := false
	for _, e := range s.Lhs {
		at, is := e.(*ast.AttrGetExpr)
		guarded = guarded || is && large(at.Key)
	}
	switch {
	case !guarded:
		return s
	case len(s.Lhs) == 1 && len(s.Rhs) == 1:
		at := s.Lhs[0].(*ast.AttrGetExpr)
		return statement(s, call(s, guardSet, at.Object, at.Key, s.Rhs[0]))
	}
	// Of several all is evaluated before the first is set.
	block := &ast.DoBlockStmt{}
	values := &ast.LocalAssignStmt{Exprs: s.Rhs}
	names := &ast.LocalAssignStmt{}
	var sets []ast.Stmt
	local := func(l *ast.LocalAssignStmt, kind string) ast.Expr {
		name := "(" + kind + strconv.Itoa(len(l.Names)) + ")"
		l.Names = append(l.Names, name)
		return positioned(&ast.IdentExpr{Value: name}, s)
	}
	for _, e := range s.Lhs {
		value := local(values, "v")
		if at, is := e.(*ast.AttrGetExpr); is {
			object, key := local(names, "t"), local(names, "t")
			names.Exprs = append(names.Exprs, single(at.Object), single(at.Key))
			sets = append(sets, statement(s, call(s, guardSet, object, key, value)))
			continue
		}
		one := &ast.AssignStmt{Lhs: []ast.Expr{e}, Rhs: []ast.Expr{value}}
		sets = append(sets, positioned(one, s))
	}
	block.Stmts = append([]ast.Stmt{positioned(names, s), positioned(values, s)}, sets...)
	return positioned(block, s)
}

func positioned[N ast.PositionHolder](n N, at ast.PositionHolder) N {
	n.SetLine(at.Line())
	n.SetLastLine(at.LastLine())
	return n
}

func statement(at ast.PositionHolder, e ast.Expr) ast.Stmt {
	return positioned(&ast.FuncCallStmt{Expr: e}, at)
}

// call calls a guard, for one value.
func call(at ast.PositionHolder, guard string, args ...ast.Expr) ast.Expr {
	name := positioned(&ast.IdentExpr{Value: guard}, at)
	return positioned(&ast.FuncCallExpr{Func: name, Args: args, AdjustRet: true}, at)
}

// guards are what scripts with guards call.
func (s *state) guards() map[string]lua.LGFunction {
	return map[string]lua.LGFunction{guardConcat: s.concat, guardSet: s.set, guardKey: s.key, guardTable: s.table}
}

func (s *state) concat(l *lua.LState) int {
	n := l.GetTop()
	length, texts := 0, true
	for i := 1; i <= n; i++ {
		switch v := l.Get(i).(type) {
		case lua.LString:
			length += len(v)
		case lua.LNumber:
		default:
			texts = false
		}
	}
	if !texts {
		return s.concatPairs(l, n)
	}
	s.long(l, length)
	b := make([]byte, 0, length+16)
	for i := 1; i <= n; i++ {
		b = append(b, lua.LVAsString(l.Get(i))...)
	}
	l.Push(lua.LString(b))
	return 1
}

// concatPairs joins two at a time, from the right, as metatables may say how.
func (s *state) concatPairs(l *lua.LState, n int) int {
	right := l.Get(n)
	for i := n - 1; i > 0; i-- {
		left := l.Get(i)
		if lua.LVCanConvToString(left) && lua.LVCanConvToString(right) {
			a, b := lua.LVAsString(left), lua.LVAsString(right)
			s.long(l, len(a)+len(b))
			right = lua.LString(a + b)
			continue
		}
		f := l.GetMetaField(left, "__concat")
		if f == lua.LNil {
			f = l.GetMetaField(right, "__concat")
		}
		if f == lua.LNil {
			l.RaiseError("cannot perform concat operation between %s and %s", left.Type(), right.Type())
		}
		l.Push(f)
		l.Push(left)
		l.Push(right)
		l.Call(2, 1)
		right = l.Get(-1)
		l.Pop(1)
	}
	l.Push(right)
	return 1
}

// long pays for a string of n bytes that is to be made.
func (s *state) long(l *lua.LState, n int) {
	if n < 0 || n > maxString {
		l.RaiseError("a string would be longer than %d bytes", maxString)
	}
	s.budget.charge(l, n)
}

func (s *state) set(l *lua.LState) int {
	object, key, value := l.Get(1), l.Get(2), l.Get(3)
	// The table that it comes to is at the end of those that metatables name.
	to := object
	for range lua.MaxTableGetLoop {
		t, is := to.(*lua.LTable)
		if !is {
			break
		}
		if t.Metatable == lua.LNil || t.RawGet(key) != lua.LNil {
			s.room(l, t, key, value)
			break
		}
		if to = l.GetMetaField(t, "__newindex"); to == lua.LNil {
			s.room(l, t, key, value)
		}
	}
	l.SetTable(object, key, value)
	return 0
}

// room pays for what t needs to have value under key.
func (s *state) room(l *lua.LState, t *lua.LTable, key, value lua.LValue) {
	switch k := key.(type) {
	case lua.LNumber:
		if i, is := element(k); is {
			if gap := i - t.Len(); gap > 1 {
				s.fill(l, gap)
			}
		}
	case lua.LString:
		if value == lua.LNil {
			s.stale += len(k) + sizeKey // the table keeps what it had as a key
		}
	default:
		if value == lua.LNil {
			s.stale += sizeKey
		}
	}
}

// element reports whether a key is the index of an element that makes all before it.
func element(key lua.LValue) (index int, is bool) {
	k, is := key.(lua.LNumber)
	index = int(k)
	return index, is && lua.LNumber(index) == k && index > smallKey && index < lua.MaxArrayIndex
}

// fill pays for n elements that are nil.
func (s *state) fill(l *lua.LState, n int) {
	if n > maxGap {
		l.RaiseError("an index is larger by %d than the length of the table", n)
	}
	s.budget.charge(l, n*sizeValue)
}

func (s *state) key(l *lua.LState) int {
	if i, is := element(l.Get(1)); is {
		s.fill(l, i)
	}
	l.SetTop(1)
	return 1
}

func (s *state) table(l *lua.LState) int {
	s.budget.charge(l, sizeTable)
	return 1
}
