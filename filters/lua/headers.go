package lua

import (
	"fmt"

	lua "github.com/yuin/gopher-lua"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Names under which scripts that were written for HTTP find what is called.
const (
	pathName   = ":path"
	methodName = ":method"
)

func (s *state) makeHeaders() {
	s.headers = s.object("headers", map[string]method{
		"get": s.headersGet, "getAtIndex": s.headersGetAtIndex, "getNumValues": s.headersGetNumValues,
		"add": s.headersAdd, "replace": s.headersReplace, "remove": s.headersRemove,
	}, s.headersPairs)
}

// message is the one whose properties headers() has, and where it travels.
func (s *state) message(m *filter.Message) (*codecs.Metadata, codecs.Direction) {
	if s.answering {
		return m.Response(), codecs.ServerToClient
	}
	return m.Request(), codecs.ClientToServer
}

func (s *state) headersGet(l *lua.LState, m *filter.Message) int {
	name := l.CheckString(2)
	v, is := s.joined(l, m, name)
	switch {
	case is:
		l.Push(lua.LString(v))
	case s.answering:
		l.Push(lua.LNil)
	case name == pathName:
		l.Push(lua.LString(m.Request().AppendOperation([]byte("/"))))
	case name == methodName:
		l.Push(lua.LString("POST"))
	default:
		l.Push(lua.LNil)
	}
	return 1
}

// joined are the values of a property, with commas between them.
func (s *state) joined(l *lua.LState, m *filter.Message, name string) (string, bool) {
	md, _ := s.message(m)
	first, is := md.Get(name)
	if !is {
		return "", false
	}
	s.budget.charge(l, len(first))
	v, found := string(first), false
	for _, p := range md.Properties() {
		if !codecs.EqualFold(p.Name, name) {
			continue
		}
		if found {
			s.budget.charge(l, len(v)+len(p.Value))
			v += "," + string(p.Value)
		}
		found = true
	}
	return v, true
}

func (s *state) headersGetAtIndex(l *lua.LState, m *filter.Message) int {
	md, _ := s.message(m)
	name, i := l.CheckString(2), l.CheckInt(3)
	for _, p := range md.Properties() {
		if !codecs.EqualFold(p.Name, name) {
			continue
		}
		if i == 0 {
			s.budget.charge(l, len(p.Value))
			l.Push(lua.LString(p.Value))
			return 1
		}
		i--
	}
	l.Push(lua.LNil)
	return 1
}

func (s *state) headersGetNumValues(l *lua.LState, m *filter.Message) int {
	md, _ := s.message(m)
	name, n := l.CheckString(2), 0
	for _, p := range md.Properties() {
		if codecs.EqualFold(p.Name, name) {
			n++
		}
	}
	l.Push(lua.LNumber(n))
	return 1
}

// headersPairs iterates over the properties, by their places: what is changed meanwhile
// may be met or not.
func (s *state) headersPairs(l *lua.LState, _ *filter.Message) int {
	i := 0
	l.Push(l.NewFunction(func(l *lua.LState) int {
		if s.m == nil {
			l.RaiseError("pairs is used outside of a hook")
		}
		md, _ := s.message(s.m)
		props := md.Properties()
		if i >= len(props) {
			l.Push(lua.LNil)
			return 1
		}
		p := props[i]
		i++
		s.budget.charge(l, len(p.Name)+len(p.Value))
		l.Push(lua.LString(p.Name))
		l.Push(lua.LString(p.Value))
		return 2
	}))
	return 1
}

func (s *state) headersAdd(l *lua.LState, m *filter.Message) int {
	name, value := l.CheckString(2), l.CheckString(3)
	if old, is := s.joined(l, m, name); is {
		value = old + "," + value
	}
	s.replace(l, m, name, value)
	return 0
}

func (s *state) headersReplace(l *lua.LState, m *filter.Message) int {
	s.replace(l, m, l.CheckString(2), l.CheckString(3))
	return 0
}

func (s *state) replace(l *lua.LState, m *filter.Message, name, value string) {
	s.budget.charge(l, len(name)+len(value))
	for _, t := range []string{name, value} {
		if len(t) > codecs.MaxText {
			l.RaiseError("%.40q: a name or value is longer than %d bytes", name, codecs.MaxText)
		}
	}
	if name == "" {
		l.RaiseError("a name must not be empty")
	}
	md, d := s.message(m)
	if _, said := md.Get(name); said {
		s.require(m, name)
	}
	md.Set(name, value)
	if mutator, is := m.Connection().Codec().(codecs.Mutator); !is {
		s.skipped(l, m, fmt.Errorf("the codec cannot change messages"))
	} else if err := mutator.CheckMutation(d, name, value); err != nil {
		s.skipped(l, m, err)
	} else {
		m.SetAttribute(name, value)
	}
	s.changed(m)
}

func (s *state) headersRemove(l *lua.LState, m *filter.Message) int {
	name := l.CheckString(2)
	md, d := s.message(m)
	if !md.Remove(name) {
		return 0
	}
	if remover, is := m.Connection().Codec().(codecs.Remover); !is {
		s.skipped(l, m, fmt.Errorf("the codec cannot remove %.40q", name))
	} else if err := remover.CheckRemoval(d, name); err != nil {
		s.skipped(l, m, err)
	} else {
		m.RemoveAttribute(name)
	}
	s.require(m, name)
	s.changed(m)
	return 0
}

// require has the message not go out with what it says itself under name, which a script
// that may not fail takes from it: a client could make one that cannot be changed.
func (s *state) require(m *filter.Message, name string) {
	if !s.part.config.deny {
		return
	}
	mu := m.MutateRequest()
	if s.answering {
		mu = m.MutateResponse()
	}
	if mu.Find([]byte(name)) < 0 { // else it is a filter's word, and whether it is required is known
		m.RemoveAttribute(name)
		mu.Require(name)
	}
}

// changed has the route looked up again, as rules may see what has changed.
func (s *state) changed(m *filter.Message) {
	if !s.answering {
		m.ClearRoute()
	}
}

// skipped tells of a change that rules see, and the other side does not get.
func (s *state) skipped(l *lua.LState, m *filter.Message, err error) {
	m.Count(s.part.skipped, 1)
	if unsaid, ok := s.skips.next(m.Now()); ok {
		s.part.life.Logf(host.Error, "meltemi: stat_prefix %q: lua: %s the %s goes out unchanged: %v%s",
			s.part.statPrefix, l.Where(1), map[bool]string{false: "request", true: "answer"}[s.answering], err, more(unsaid))
	}
}
