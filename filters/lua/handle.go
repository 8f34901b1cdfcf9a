package lua

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	lua "github.com/yuin/gopher-lua"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// objects are what a script has of Meltemi. There is one of each, made with the state:
// they are those of the message whose hook runs.
type objects struct {
	handle, headers, metadata, info, dynamic, connection, ssl *lua.LUserData
}

// method is one of an object's. Its arguments begin at 2.
type method func(l *lua.LState, m *filter.Message) int

// object makes an object with methods. pairs, which may be nil, iterates over it.
func (s *state) object(name string, methods map[string]method, pairs method) *lua.LUserData {
	u := s.l.NewUserData()
	guarded := func(what string, f method) *lua.LFunction {
		return s.l.NewFunction(func(l *lua.LState) int {
			switch {
			case l.Get(1) != lua.LValue(u):
				l.RaiseError("%s is a method: it is called with a colon", what)
			case s.m == nil:
				l.RaiseError("%s is called outside of a hook", what)
			}
			return f(l, s.m)
		})
	}
	index := s.l.CreateTable(0, len(methods))
	for what, f := range methods {
		index.RawSetString(what, guarded(what, f))
	}
	meta := s.l.CreateTable(0, 3)
	meta.RawSetString("__index", index)
	meta.RawSetString("__metatable", lua.LString(name))
	if pairs != nil {
		meta.RawSetString("__pairs", guarded("pairs", pairs))
	}
	u.Metatable = meta
	return u
}

// returning is a method that returns what f does.
func returning(f func(m *filter.Message) lua.LValue) method {
	return func(l *lua.LState, m *filter.Message) int {
		l.Push(f(m))
		return 1
	}
}

// text is returning for texts.
func text(f func(m *filter.Message) string) method {
	return returning(func(m *filter.Message) lua.LValue { return lua.LString(f(m)) })
}

func (s *state) makeObjects() {
	the := func(u **lua.LUserData) method {
		return returning(func(*filter.Message) lua.LValue { return *u })
	}
	s.handle = s.object("handle", map[string]method{
		"headers": the(&s.headers), "metadata": the(&s.metadata), "streamInfo": the(&s.info), "connection": the(&s.connection),
		"filterContext": s.filterContext, "respond": s.respond, "clearRouteCache": clearRouteCache,
		"logTrace": s.log(host.Debug), "logDebug": s.log(host.Debug), "logInfo": s.log(host.Info), "logWarn": s.log(host.Warn),
		"logErr": s.log(host.Error), "logCritical": s.log(host.Error),
		"base64Escape": s.base64Escape, "timestamp": timestamp, "timestampString": timestampString, "body": noBody,
	}, nil)
	s.makeHeaders()
	s.makeInfo()
	s.metadata = s.object("metadata", map[string]method{"get": s.metadataGet}, s.metadataPairs)
	r := s.l.CreateTable(0, 2)
	r.RawSetString("MILLISECOND", lua.LNumber(millisecond))
	r.RawSetString("MICROSECOND", lua.LNumber(microsecond))
	s.l.SetGlobal("EnvoyTimestampResolution", r)
}

// Resolutions of times.
const (
	millisecond = iota
	microsecond
)

func timestamp(l *lua.LState, _ *filter.Message) int {
	if l.OptInt(2, millisecond) == microsecond {
		l.Push(lua.LNumber(time.Now().UnixMicro()))
	} else {
		l.Push(lua.LNumber(time.Now().UnixMilli()))
	}
	return 1
}

func timestampString(l *lua.LState, m *filter.Message) int {
	timestamp(l, m)
	l.Push(lua.LString(strconv.FormatInt(int64(l.Get(-1).(lua.LNumber)), 10)))
	return 1
}

func noBody(l *lua.LState, _ *filter.Message) int {
	l.RaiseError("body is not supported: arguments and results are not for scripts")
	return 0
}

func clearRouteCache(_ *lua.LState, m *filter.Message) int {
	m.ClearRoute()
	return 0
}

func (s *state) base64Escape(l *lua.LState, _ *filter.Message) int {
	t := l.CheckString(2)
	s.long(l, base64.StdEncoding.EncodedLen(len(t)))
	l.Push(lua.LString(base64.StdEncoding.EncodeToString([]byte(t))))
	return 1
}

func (s *state) log(level host.Level) method {
	return func(l *lua.LState, _ *filter.Message) int {
		s.say(level, l.CheckString(2))
		return 0
	}
}

// print is a log line, as there is no standard output to write to.
func (s *state) print(l *lua.LState) int {
	line := ""
	for i := range l.GetTop() {
		if i > 0 {
			line += "\t"
		}
		line += l.ToStringMeta(l.Get(i + 1)).String()
		s.long(l, len(line))
	}
	s.say(host.Info, line)
	return 0
}

// say logs a line of the script.
func (s *state) say(level host.Level, line string) {
	if s.part == nil {
		return // it is only judged
	}
	if unsaid, ok := s.lines.next(s.part.worker.Now()); ok {
		s.part.life.Logf(level, "meltemi: stat_prefix %q: lua: %s: %s%s", s.part.statPrefix, s.script.name, printable(line), more(unsaid))
	}
}

// maxTold is how much of what scripts say, or give to error, is told, in bytes.
const maxTold = 1000

// printable is a text as log lines have it: one line, of what can be printed.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s[:min(len(s), maxTold)])
}

func more(unsaid int) string {
	if unsaid == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d more lines left out)", unsaid)
}

// maxLines is how many lines of a kind are logged in a second.
const maxLines = 100

// lines counts log lines of a kind: there may be one for each request.
type lines struct {
	most         int
	second       time.Duration
	said, unsaid int
}

// next reports whether a line may be said, and how many were not since the last.
func (n *lines) next(now time.Duration) (unsaid int, ok bool) {
	if second := now / time.Second; second != n.second {
		n.second, n.said = second, 0
	}
	if n.said >= n.most {
		n.unsaid++
		return 0, false
	}
	n.said++
	unsaid, n.unsaid = n.unsaid, 0
	return unsaid, true
}

// statusNames are the ways to say what kind of error a script answers with.
const statusNames = "the name of a status such as \"DENIED\", or HTTP's number of one"

// respond answers the message, and ends the hook.
func (s *state) respond(l *lua.LState, m *filter.Message) int {
	t := l.CheckTable(2)
	d := &routev1alpha.DirectResponse{Body: l.OptString(3, "")}
	def := codecs.LocalError{Type: codecs.Unspecified}
	status := t.RawGetString("status")
	if status == lua.LNil {
		status = t.RawGetString(":status")
	}
	switch v, known := routev1alpha.DirectResponse_Status_value[lua.LVAsString(status)]; {
	case known:
		d.Status = routev1alpha.DirectResponse_Status(v)
	default:
		n, err := strconv.Atoi(lua.LVAsString(status))
		if err != nil || n < 400 || n > 599 {
			l.RaiseError("respond: status %q: want %s", lua.LVAsString(status), statusNames)
		}
		def.Type = route.TypeOfHTTP(n)
	}
	if code := t.RawGetString("code"); code != lua.LNil {
		n, is := code.(lua.LNumber)
		if is = is && lua.LNumber(int32(n)) == n; !is {
			l.RaiseError("respond: code %s is no number of 32 bits", code)
		}
		d.Code = int32(n)
	}
	e, errs := route.Reply(d, def, "respond", []codecs.Codec{m.Connection().Codec()})
	for _, err := range errs {
		l.RaiseError("%v", err)
	}
	if e.Message == "" {
		e.Message = e.Type.String()
	}
	s.reply = &e
	s.budget.end(errAnswered)
	l.RaiseError("%v", errAnswered)
	return 0
}

// context is what the configuration tells the script.
func (s *state) context(m *filter.Message) *structpb.Struct {
	if r, is := m.RouteConfig().(*settings); is && r.context != nil {
		return r.context
	}
	return s.part.config.context
}

func (s *state) filterContext(l *lua.LState, m *filter.Message) int {
	l.Push(s.structure(l, s.context(m)))
	return 1
}

func (s *state) metadataGet(l *lua.LState, m *filter.Message) int {
	l.Push(s.value(l, s.context(m).GetFields()[l.CheckString(2)]))
	return 1
}

func (s *state) metadataPairs(l *lua.LState, m *filter.Message) int {
	l.Push(l.G.Global.RawGetString("next"))
	l.Push(s.structure(l, s.context(m)))
	l.Push(lua.LNil)
	return 3
}

// structure makes a table of x.
func (s *state) structure(l *lua.LState, x *structpb.Struct) *lua.LTable {
	s.budget.charge(l, sizeTable)
	t := l.CreateTable(0, len(x.GetFields()))
	for k, v := range x.GetFields() {
		t.RawSetString(k, s.value(l, v))
	}
	return t
}

func (s *state) value(l *lua.LState, v *structpb.Value) lua.LValue {
	switch k := v.GetKind().(type) {
	case *structpb.Value_BoolValue:
		return lua.LBool(k.BoolValue)
	case *structpb.Value_NumberValue:
		return lua.LNumber(k.NumberValue)
	case *structpb.Value_StringValue:
		s.budget.charge(l, len(k.StringValue))
		return lua.LString(k.StringValue)
	case *structpb.Value_StructValue:
		return s.structure(l, k.StructValue)
	case *structpb.Value_ListValue:
		s.budget.charge(l, sizeTable)
		t := l.CreateTable(len(k.ListValue.GetValues()), 0)
		for _, v := range k.ListValue.GetValues() {
			t.Append(s.value(l, v))
		}
		return t
	}
	return lua.LNil
}
