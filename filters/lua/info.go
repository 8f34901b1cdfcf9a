package lua

import (
	lua "github.com/yuin/gopher-lua"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// statuses are the names of how a call has ended.
var statuses = map[codecs.Status]string{
	codecs.StatusOK: "ok", codecs.StatusBusinessException: "exception", codecs.StatusError: "error",
}

func (s *state) makeInfo() {
	s.info = s.object("streamInfo", map[string]method{
		"protocol":                     text(func(m *filter.Message) string { return m.Facts().Protocol }),
		"kind":                         text(func(m *filter.Message) string { return m.Facts().Kind.String() }),
		"service":                      text(func(m *filter.Message) string { return string(m.Request().Service()) }),
		"method":                       text(func(m *filter.Message) string { return string(m.Request().Method()) }),
		"routeName":                    text(s.routeName),
		"virtualClusterName":           text(func(*filter.Message) string { return "" }),
		"upstreamCluster":              text(func(m *filter.Message) string { return m.Facts().Cluster }),
		"upstreamHost":                 text(func(m *filter.Message) string { return m.Facts().Host }),
		"attempts":                     returning(func(m *filter.Message) lua.LValue { return lua.LNumber(m.Facts().Attempts) }),
		"responseStatus":               returning(responseStatus),
		"responseCode":                 returning(responseCode),
		"downstreamLocalAddress":       text(func(m *filter.Message) string { return m.Connection().LocalAddress() }),
		"downstreamDirectLocalAddress": text(func(m *filter.Message) string { return m.Connection().LocalAddress() }),
		"downstreamRemoteAddress":      text(func(m *filter.Message) string { return m.Connection().RemoteAddress() }),
		"downstreamDirectRemoteAddress": text(func(m *filter.Message) string {
			if ip := m.Connection().DirectRemoteIP(); ip.IsValid() {
				return ip.String()
			}
			return ""
		}),
		"requestedServerName": text(func(m *filter.Message) string {
			if t := tls(m); t != nil {
				return t.ServerName
			}
			return ""
		}),
		"principal":               text(func(m *filter.Message) string { return tls(m).Principal() }),
		"downstreamSslConnection": returning(s.sslOf),
		"dynamicMetadata":         returning(func(*filter.Message) lua.LValue { return s.dynamic }),
	}, nil)
	s.dynamic = s.object("dynamicMetadata", map[string]method{"get": s.dynamicGet, "set": s.dynamicSet}, s.dynamicPairs)
	s.connection = s.object("connection", map[string]method{"ssl": returning(s.sslOf)}, nil)
	s.ssl = s.object("ssl", map[string]method{
		"peerCertificatePresented": returning(func(m *filter.Message) lua.LValue { return lua.LBool(tls(m) != nil && tls(m).Mutual) }),
		"subjectPeerCertificate": text(func(m *filter.Message) string {
			if t := tls(m); t != nil {
				return t.Subject
			}
			return ""
		}),
		"uriSanPeerCertificate":  s.names(func(t *host.TLS) []string { return t.URISANs }),
		"dnsSansPeerCertificate": s.names(func(t *host.TLS) []string { return t.DNSSANs }),
	}, nil)
}

// tls is the client's, nil if it has none, or has gone.
func tls(m *filter.Message) *host.TLS {
	if m.Connection().ID() == 0 {
		return nil
	}
	return m.Connection().TLS()
}

func (s *state) sslOf(m *filter.Message) lua.LValue {
	if tls(m) == nil {
		return lua.LNil
	}
	return s.ssl
}

func (s *state) names(of func(t *host.TLS) []string) method {
	return func(l *lua.LState, m *filter.Message) int {
		t := tls(m)
		if t == nil {
			t = new(host.TLS)
		}
		s.budget.charge(l, sizeTable)
		names := l.CreateTable(len(of(t)), 0)
		for _, n := range of(t) {
			names.Append(lua.LString(n))
		}
		l.Push(names)
		return 1
	}
}

// routeName looks the route up: that of the answer is what it was.
func (s *state) routeName(m *filter.Message) string {
	if s.answering {
		return m.Facts().Route
	}
	if r := m.Route(); r != nil {
		return r.Name
	}
	return ""
}

func responseStatus(m *filter.Message) lua.LValue {
	if m.Response() == nil {
		return lua.LNil
	}
	return lua.LString(statuses[m.Response().Status])
}

func responseCode(m *filter.Message) lua.LValue {
	if m.Response() == nil {
		return lua.LNil
	}
	return lua.LNumber(m.Response().Code)
}

// entry is a value that scripts keep with a message.
type entry struct {
	of, key string // the filter, and the name
	value   lua.LValue
}

// entries are those of a message.
func entries(m *filter.Message) []entry {
	e, _ := m.State().(*[]entry)
	if e == nil {
		return nil
	}
	return *e
}

// dynamicOf makes a table of what is kept under the name of a filter; nil if nothing is.
func (s *state) dynamicOf(l *lua.LState, m *filter.Message, of string) lua.LValue {
	var t *lua.LTable
	for _, e := range entries(m) {
		if e.of != of {
			continue
		}
		if t == nil {
			s.budget.charge(l, sizeTable)
			t = l.CreateTable(0, 1)
		}
		t.RawSetString(e.key, e.value)
	}
	if t == nil {
		return lua.LNil
	}
	return t
}

func (s *state) dynamicGet(l *lua.LState, m *filter.Message) int {
	l.Push(s.dynamicOf(l, m, l.CheckString(2)))
	return 1
}

// dynamicSet keeps a value for the hooks of the message. Rules see it as a property.
func (s *state) dynamicSet(l *lua.LState, m *filter.Message) int {
	of, key, value := l.CheckString(2), l.CheckString(3), l.CheckAny(4)
	scalar := value.Type() == lua.LTBool || lua.LVCanConvToString(value)
	if _, is := value.(*lua.LTable); !is && !scalar && value != lua.LNil {
		l.ArgError(4, "want a string, number, boolean, table or nil")
	}
	text := ""
	if scalar {
		text = value.String()
	}
	if key == "" || max(len(of), len(key), len(text)) > codecs.MaxText {
		l.RaiseError("%.40q: a name must not be empty, nor that or a value longer than %d bytes", key, codecs.MaxText)
	}
	s.budget.charge(l, sizeKey+len(key)+len(text))
	s.keep(l, m, entry{of, key, value})
	if scalar {
		m.Request().Set(key, text)
	} else {
		m.Request().Remove(key)
	}
	s.changed(m)
	return 0
}

// maxEntries of a message.
const maxEntries = 100

func (s *state) keep(l *lua.LState, m *filter.Message, e entry) {
	all, is := m.State().(*[]entry)
	if !is {
		all = new([]entry)
		m.SetState(all)
	}
	for i := range *all {
		if o := &(*all)[i]; o.of == e.of && o.key == e.key {
			o.value = e.value
			return
		}
	}
	if len(*all) >= maxEntries {
		l.RaiseError("dynamic metadata has %d entries already", maxEntries)
	}
	*all = append(*all, e)
}

func (s *state) dynamicPairs(l *lua.LState, m *filter.Message) int {
	t := l.NewTable()
	for _, e := range entries(m) {
		if t.RawGetString(e.of) == lua.LNil {
			t.RawSetString(e.of, s.dynamicOf(l, m, e.of))
		}
	}
	l.Push(l.G.Global.RawGetString("next"))
	l.Push(t)
	l.Push(lua.LNil)
	return 3
}
