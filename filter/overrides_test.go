package filter_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// text is a filter's configuration in a table: a text.
func text(s string) string {
	return `{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "` + s + `"}`
}

func parseText(c *anypb.Any) (filter.Config, error) {
	var v wrapperspb.StringValue
	if err := c.UnmarshalTo(&v); err != nil {
		return nil, err
	}
	return v.GetValue(), nil
}

// seen is a filter that notes what routes have for it, in each hook.
func seen(log *[]string, name string) *hooks {
	note := func(hook string, m *filter.Message) {
		*log = append(*log, fmt.Sprintf("%s %s %v", name, hook, m.RouteConfig()))
	}
	return &hooks{
		request:  func(m *filter.Message) filter.Verdict { note("request", m); return filter.Continue },
		response: func(m *filter.Message) filter.Verdict { note("response", m); return filter.Continue },
		local:    func(m *filter.Message, _ *codecs.LocalError) { note("local", m) },
		frame: func(m *filter.Message, _ codecs.Direction, _ *codecs.Metadata) filter.Verdict {
			note("frame", m)
			return filter.Continue
		},
		end: func(m *filter.Message) { note("end", m) },
	}
}

type overridden struct {
	*toyEnv
	log []string
	f   map[string]*hooks
}

// newOverridden has probes a and b note what routes have for them.
func newOverridden(t *testing.T, filters, routes string) *overridden {
	t.Helper()
	o := &overridden{f: map[string]*hooks{}}
	for _, name := range []string{"a", "b"} {
		o.f[name] = seen(&o.log, name)
		p := built(func(*filter.Scope) filter.Filter { return o.f[name] })
		p.parseRoute = parseText
		setProbe(t, "probe."+name, p)
	}
	h := filtertest.New(t)
	o.toyEnv = &toyEnv{Host: h, t: t, up: h.Cluster("up", "h1")}
	o.up.Serve = func(s *filtertest.Server, b []byte) int {
		for _, l := range lines(b) {
			s.Send([]byte("res " + strings.Fields(l)[1] + " m x\n"))
		}
		return len(b)
	}
	o.cfg = h.MustLoad(strings.Replace(toyByID(filters), toyRoutes, `, "route_config": `+routes, 1))
	o.c = h.Dial(o.cfg)
	return o
}

func (o *overridden) says(want ...string) {
	o.t.Helper()
	require.Equal(o.t, want, o.log)
	o.log = nil
}

const disabled = `{"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}`

func enabledWith(config string) string {
	return `{"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": ` + config + `}`
}

func byMethod(method, overrides string) string {
	return `{"match": {"metadata": [{"name": "method", "exact_match": "` + method + `"}]}, "route": {"cluster": "up"}, "typed_per_filter_config": {` + overrides + `}}`
}

func TestRoutesConfigureFilters(t *testing.T) {
	e := newOverridden(t, probed, `{"typed_per_filter_config": {"probe.a": `+text("table a")+`, "probe.b": `+text("table b")+`}, "routes": [`+
		byMethod("m1", `"probe.a": `+text("route a"))+","+
		byMethod("m2", `"probe.a": `+disabled)+","+
		byMethod("m3", `"probe.b": `+enabledWith(text("wrapped b")))+","+
		byMethod("m4", `"probe.a": `+disabled+`, "probe.b": `+disabled)+`]}`)
	e.say("req 1 m1 -")
	e.says("a request route a", "b request table b", "b response table b", "a response route a", "b end table b", "a end route a")
	e.say("req 2 m2 -")
	e.says("b request table b", "b response table b", "b end table b")
	e.say("req 3 m3 -")
	e.says("a request table a", "b request wrapped b", "b response wrapped b", "a response table a", "b end wrapped b", "a end table a")
	e.say("req 4 m4 -")
	e.says()
	require.Equal(t, 4, strings.Count(e.got(), "res "))
	e.say("req 5 m5 -") // no route, and so nothing of the table's
	e.says("a request <nil>", "b request <nil>", "b local <nil>", "a local <nil>", "b end <nil>", "a end <nil>")
	e.say("init 6 m2 -", "data 6 - x")
	require.Equal(t, []string{"b request table b", "b frame table b"}, e.log[:2])
}

func TestFiltersThatRoutesEnable(t *testing.T) {
	off := strings.ReplaceAll(probed, `{"name": "probe.a"}`, `{"name": "probe.a", "disabled": true}`)
	e := newOverridden(t, off, `{"routes": [`+byMethod("m1", "")+","+byMethod("m2", `"probe.a": `+text("on"))+","+
		byMethod("m3", `"probe.a": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig"}`)+`]}`)
	e.f["b"] = &hooks{}
	e.cfg = e.MustLoad(strings.Replace(toyByID(off), toyRoutes, `, "route_config": {"routes": [`+byMethod("m1", "")+","+byMethod("m2", `"probe.a": `+text("on"))+","+
		byMethod("m3", `"probe.a": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig"}`)+`]}`, 1))
	e.c = e.Dial(e.cfg)
	e.say("req 1 m1 -")
	e.says()
	e.say("req 2 m2 -")
	e.says("a request on", "a response on", "a end on")
	e.say("req 3 m3 -")
	e.says("a request <nil>", "a response <nil>", "a end <nil>")
}

// merging is a builder whose routes add to their table.
type merging struct{ builder }

func (merging) Merge(table, route filter.Config) filter.Config {
	return table.(string) + " and " + route.(string)
}

func init() { filter.Register("probe.merging", merging{"probe.b"}) }

func TestConfigurationsOfTablesAndRoutesAreMerged(t *testing.T) {
	chain := strings.Replace(probed, `"probe.b"`, `"probe.merging"`, 1)
	e := newOverridden(t, chain, `{"typed_per_filter_config": {"probe.a": `+text("table a")+`, "probe.merging": `+text("table")+`}, "routes": [`+
		byMethod("m1", `"probe.a": `+text("route a")+`, "probe.merging": `+text("route"))+","+
		byMethod("m2", `"probe.merging": `+disabled)+","+byMethod("m3", "")+","+
		byMethod("m4", `"probe.merging": `+text("another"))+`]}`)
	for method, want := range map[string]string{"m1": "table and route", "m3": "table", "m4": "table and another"} {
		e.log = nil
		e.say("req 1 " + method + " -")
		require.Equal(t, "b request "+want, e.log[1])
	}
	e.log = nil
	e.say("req 1 m2 -")
	e.says("a request table a", "a response table a", "a end table a")
}

// TestAChainWithoutTheRouter: its filters are configured all the same.
func TestAChainWithoutTheRouter(t *testing.T) {
	e := newOverridden(t, `, "meta_protocol_filters": [{"name": "probe.a"}]`, `{"routes": [`+byMethod("m1", `"probe.a": `+text("one"))+","+byMethod("m2", `"probe.a": `+disabled)+`]}`)
	e.f["a"].request = func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, m.RouteConfig().(string)) }
	e.say("req 1 m1 -", "req 2 m2 -")
	require.Equal(t, "err 1 - one\nerr 2 - no filter forwarded the request\n", e.got())
}

// TestAChangedRequestIsRoutedAgain: what routes say of the filters behind is the new
// route's.
func TestAChangedRequestIsRoutedAgain(t *testing.T) {
	e := newOverridden(t, probed, `{"routes": [`+
		byMethod("m1", `"probe.a": `+text("first a")+`, "probe.b": `+text("first b"))+","+
		byMethod("m2", `"probe.a": `+disabled+`, "probe.b": `+text("second b"))+`]}`)
	noted := e.f["a"].request
	e.f["a"].request = func(m *filter.Message) filter.Verdict {
		noted(m)
		m.Request().Set("method", "m2")
		m.ClearRoute()
		return filter.Continue
	}
	e.say("req 1 m1 -")
	e.says("a request first a", "b request second b", "b response second b", "a response <nil>", "b end second b", "a end <nil>")

	e.f["a"].response = func(m *filter.Message) filter.Verdict {
		m.Request().Set("method", "m1")
		m.ClearRoute() // which is too late
		return filter.Continue
	}
	e.say("req 1 m1 -")
	require.Contains(t, e.log, "b end second b")
}

// TestATableThatComesBetweenTheHooks says nothing of requests that are on their way.
func TestATableThatComesBetweenTheHooks(t *testing.T) {
	e := newOverridden(t, probed, `{"name": "r", "routes": [`+byMethod("m1", "")+`]}`)
	e.up.Serve = nil
	e.f["a"].request = func(m *filter.Message) filter.Verdict {
		require.Nil(t, m.RouteConfig())
		return m.Forward("up")
	}
	e.say("req 1 m1 -")
	e.MustLoad(strings.Replace(toyByID(probed), toyRoutes, `, "route_config": {"name": "r", "routes": [`+byMethod("m1", `"probe.a": `+text("new"))+`]}`, 1))
	s := e.server(0)
	e.answer(s, "res "+ids(s)[0]+" m x")
	e.says("a response <nil>", "a end <nil>")
	e.f["a"].request = func(m *filter.Message) filter.Verdict {
		require.Equal(t, "new", m.RouteConfig())
		return m.Forward("up")
	}
	e.say("req 2 m1 -")
	require.NotEmpty(t, s.Take())
}

func TestOverridesThatAreRefused(t *testing.T) {
	setProbe(t, "probe.a", &probe{parseRoute: parseText})
	optional := func(name, more string) string {
		return `"` + name + `": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "is_optional": true` + more + `}`
	}
	for _, tc := range []struct{ overrides, says string }{
		{`"nope": ` + text("x"), `typed_per_filter_config[nope]: unknown filter "nope" (built in: `},
		{`"nope": ` + disabled, `typed_per_filter_config[nope].config: unknown filter "nope"`},
		{`"probe.c": ` + text("x"), `typed_per_filter_config[probe.c]: unknown filter: there is no "probe.c" among meta_protocol_filters`},
		{optional("nope", ""), ""},
		{optional("probe.c", `, "config": `+text("x")), ""},
		{optional("probe.a", `, "config": {"@type": "type.googleapis.com/google.protobuf.Empty"}`), `typed_per_filter_config[probe.a].config: `},
		{`"test": ` + text("x"), `typed_per_filter_config[test]: filter "test" has nothing that routes could configure; envoy.config.route.v3.FilterConfig can disable it`},
		{`"test": ` + disabled, ""},
		{`"aeraki.meta_protocol.filters.router": ` + disabled, `typed_per_filter_config[aeraki.meta_protocol.filters.router].config: the router has nothing that routes could configure, and cannot be disabled`},
	} {
		t.Run(tc.overrides, func(t *testing.T) {
			current = &testFilter{}
			chain := `, "meta_protocol_filters": [{"name": "probe.a"}, {"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`
			for path, routes := range map[string]string{
				"route_config.routes[0].": `{"routes": [` + byMethod("m", tc.overrides) + `]}`,
				"route_config.":           `{"typed_per_filter_config": {` + tc.overrides + `}}`,
			} {
				errs := filter.Check([]byte(strings.Replace(toyByID(chain), toyRoutes, `, "route_config": `+routes, 1)))
				if tc.says == "" {
					require.Empty(t, errs)
					continue
				}
				require.Len(t, errs, 1)
				require.Contains(t, errs[0].Error(), path+tc.says)
			}
		})
	}
}

func TestAFilterSeesWhatItsMatchSays(t *testing.T) {
	e := newOverridden(t, strings.Replace(probed, `{"name": "probe.a"}`,
		`{"name": "probe.a", "match": {"metadata": [{"name": "method", "prefix_match": "ma"}]}}`, 1),
		`{"routes": [{"route": {"cluster": "up"}}]}`)
	e.say("req 1 mb -")
	e.says("b request <nil>", "b response <nil>", "b end <nil>")
	e.say("req 2 ma -")
	require.Len(t, e.log, 6)
	e.log = nil
	// What filters before have set counts.
	e.cfg = e.MustLoad(strings.Replace(strings.Replace(toyByID(probed), `{"name": "probe.b"}`,
		`{"name": "probe.b", "match": {"metadata": [{"name": "tenant", "exact_match": "acme"}]}}`, 1), toyRoutes, `, "route_config": {"routes": [{"route": {"cluster": "up"}}]}`, 1))
	e.c = e.Dial(e.cfg)
	e.f["a"].request = func(m *filter.Message) filter.Verdict {
		if m.Request().ID == 4 {
			m.Request().Set("tenant", "acme")
		}
		return filter.Continue
	}
	e.log = nil
	e.say("req 3 m -")
	e.says("a response <nil>", "a end <nil>")
	e.say("req 4 m -")
	require.Len(t, e.log, 5)
}

// TestAFilterSeesItsShare of what matches otherwise, as the worker's random numbers say:
// one draw for each message that could be seen.
func TestAFilterSeesItsShare(t *testing.T) {
	const of = 4000
	share := func() (n int) {
		e := newOverridden(t, strings.Replace(probed, `{"name": "probe.a"}`, `{"name": "probe.a", "match": {
			"metadata": [{"name": "method", "exact_match": "m1"}], "runtime_fraction": {"default_value": {"numerator": 25}}}}`, 1),
			`{"routes": [{"route": {"cluster": "up"}}]}`)
		hooksOf := map[string]int{}
		e.f["a"].request = func(*filter.Message) filter.Verdict { n++; hooksOf["request"]++; return filter.Continue }
		e.f["a"].response = func(*filter.Message) filter.Verdict { hooksOf["response"]++; return filter.Continue }
		e.f["a"].end = func(*filter.Message) { hooksOf["end"]++ }
		*e.f["b"] = hooks{}
		for i := range of {
			e.say(fmt.Sprintf("req %d m%d -", i+1, i%2+1))
			e.c.Take()
		}
		require.Equal(t, map[string]int{"request": n, "response": n, "end": n}, hooksOf)
		return n
	}
	n := share()
	require.InDelta(t, of/8, n, 70)
	require.Equal(t, n, share(), "the same numbers, the same messages")
}

// TestAConditionThatCannotBeTold leaves the message to the filter: it may be there to
// refuse it.
func TestAConditionThatCannotBeTold(t *testing.T) {
	e := newOverridden(t, strings.Replace(probed, `{"name": "probe.a"}`,
		`{"name": "probe.a", "match": {"metadata": [{"name": "method", "contains_match": "zz"}]}}`, 1), `{"routes": [{"route": {"cluster": "up"}}]}`)
	e.say("req 1 m -")
	e.says("b request <nil>", "b response <nil>", "b end <nil>")
	e.say("req 2 m" + strings.Repeat("y", 10_000) + " -")
	require.Equal(t, "a request <nil>", e.log[0])
	e.counts(map[string]int64{"request_unroutable": 1})
}

// TestAPanicOverACondition ends the message, and the filter has not seen it.
func TestAPanicOverACondition(t *testing.T) {
	e := newOverridden(t, strings.Replace(probed, `{"name": "probe.b"}`,
		`{"name": "probe.b", "match": {"metadata": [{"name": "unheard", "exact_match": "x"}]}}`, 1), `{"routes": [{"route": {"cluster": "up"}}]}`)
	e.MayPanic()
	e.say("req 1 m boom-load", "req 2 m -")
	require.Equal(t, "err 1 - internal error\nres 2 m x\n", e.got())
	require.Equal(t, []string{"a request <nil>", "a local <nil>", "a end <nil>"}, e.log[:3])
	require.Zero(t, e.Panics())
	require.False(t, e.c.Closed())
}

// TestRoutesByRDSConfigureFilters in either of their types: of Envoy's, the route wins
// over the virtual host, and that over the whole.
func TestRoutesByRDSConfigureFilters(t *testing.T) {
	texts := func(of ...string) string {
		all := make([]string, len(of)/2)
		for i := range all {
			all[i] = `"` + of[2*i] + `": ` + text(of[2*i+1])
		}
		return `"typed_per_filter_config": {` + strings.Join(all, ", ") + `}`
	}
	var log []string
	for _, name := range []string{"probe.a", "probe.b", "probe.c"} {
		p := built(func(*filter.Scope) filter.Filter {
			return &hooks{request: func(m *filter.Message) filter.Verdict {
				log = append(log, fmt.Sprint(m.RouteConfig()))
				return filter.Continue
			}}
		})
		p.parseRoute = parseText
		setProbe(t, name, p)
	}
	d := discover(t, "", strings.Replace(probed, `{"name": "probe.b"}`, `{"name": "probe.b"}, {"name": "probe.c"}`, 1))
	route := `"name": "the route", "route": {"cluster": "v1"}, ` + texts("probe.a", "route a")
	d.write(`{"version_info": "1", "resources": [{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.config.route.v1alpha.RouteConfiguration",
		"name": "r", ` + texts("probe.a", "all a", "probe.b", "all b") + `, "routes": [{` + route + `}]}]}`)
	d.become(d.c, "h1")
	require.Equal(t, []string{"route a", "all b", "<nil>"}, log)
	log = nil
	d.write(`{"version_info": "2", "resources": [{"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
		"name": "r", ` + texts("probe.a", "all a", "probe.b", "all b", "probe.c", "all c") + `, "virtual_hosts": [{"name": "v", "domains": ["*"],
		` + texts("probe.a", "host a", "probe.b", "host b") + `, "routes": [{"match": {"prefix": "/"}, ` + strings.Replace(route, "v1", "v2", 1) + `}]}]}]}`)
	d.become(d.c, "h2")
	require.Equal(t, []string{"route a", "host b", "all c"}, log[len(log)-3:])

	// What is wrong is refused, and what is held stays.
	d.write(`{"version_info": "3", "resources": [{"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
		"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "v1"},
		"typed_per_filter_config": {"probe.a": {"@type": "type.googleapis.com/google.protobuf.Empty"}}}]}]}]}`)
	d.heard("rds_update_rejected", 1)
	require.Contains(t, strings.Join(d.Log(), "\n"), "routes[0].typed_per_filter_config[probe.a]: ")
	require.Equal(t, "h2", served(t, d.c))
}

// TestARouteThatIsLookedUpAgainIsTheSame: filters that clear it in between are told of the
// one route and cluster that the request goes to. Shares and weights are independent, and
// as large as they are configured.
func TestARouteThatIsLookedUpAgainIsTheSame(t *testing.T) {
	const of = 4000
	toClusters := func(names ...string) (all string) {
		for i, name := range names {
			all += strings.Repeat(", ", min(i, 1)) + fmt.Sprintf(`{"name": %q, "weight": 50, "typed_per_filter_config": {"probe.a": %s, "probe.b": %[2]s}}`, name, text(name))
		}
		return `"route": {"weighted_clusters": {"clusters": [` + all + `]}}`
	}
	e := newOverridden(t, probed, `{"routes": [
		{"match": {"runtime_fraction": {"default_value": {"numerator": 40}}}, `+toClusters("v1", "v2")+`}, {`+toClusters("v3", "v4")+`}]}`)
	got := map[string]int{}
	for _, name := range []string{"v1", "v2", "v3", "v4"} {
		e.Cluster(name, "h-"+name).Serve = func(s *filtertest.Server, b []byte) int {
			got[name]++
			require.Equal(t, []string{name, name}, e.log)
			s.Send([]byte("res " + strings.Fields(string(b))[1] + " m x\n"))
			return len(b)
		}
	}
	for _, f := range e.f {
		*f = hooks{request: func(m *filter.Message) filter.Verdict {
			e.log = append(e.log, m.RouteConfig().(string))
			m.ClearRoute()
			return filter.Continue
		}}
	}
	for i := range of {
		e.log = nil
		e.say(fmt.Sprintf("req %d m -", i+1))
		require.Equal(t, fmt.Sprintf("res %d m x\n", i+1), e.got())
	}
	for name, want := range map[string]int{"v1": of / 5, "v2": of / 5, "v3": of * 3 / 10, "v4": of * 3 / 10} {
		require.InDelta(t, want, got[name], of/40, name)
	}
}
