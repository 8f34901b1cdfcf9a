package filter_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// caller is a filter with routes of its own, and a consumer, which has what its
// configuration says of filters.
type caller struct {
	hooks
	routes   []*route.Route
	consumer *filter.Consumer
}

type callerBuilder struct{}

var calling *caller

func init() { filter.Register("probe.caller", callerBuilder{}) }

func (callerBuilder) Phase() filter.Phase { return filter.Authentication }

func (callerBuilder) Parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(routev1alpha.RouteConfiguration)
	if err := fields.Unpack(config, m); err != nil {
		return nil, err
	}
	c := &caller{}
	var faults fields.Faults
	for i, from := range m.GetRoutes() {
		r, err := env.Route(from)
		faults.AddAll(fmt.Sprintf("routes[%d]", i), err)
		c.routes = append(c.routes, r)
	}
	var err error
	c.consumer, err = env.Consumer("acme", m.GetTypedPerFilterConfig())
	faults.AddAll("", err)
	return c, faults.Err()
}

func (callerBuilder) Build(c filter.Config, _ *filter.Scope) (filter.Filter, error) {
	calling = c.(*caller)
	return calling, nil
}

func calls(config string) string {
	return strings.Replace(probed, `{"name": "probe.a"}`, `{"name": "probe.caller", "config": {
		"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.config.route.v1alpha.RouteConfiguration", `+config+`}}, {"name": "probe.a"}`, 1)
}

func TestARouteThatAFilterHasMade(t *testing.T) {
	e := newOverridden(t, calls(`"routes": [{"name": "own", "route": {"cluster": "other", "timeout": "2s", "retry_policy": {"num_retries": 1, `+quick+`}},
		"request_mutation": [{"key": "r", "value": "own"}], "typed_per_filter_config": {"probe.a": `+text("own")+`, "probe.b": `+disabled+`}}]`),
		`{"typed_per_filter_config": {"probe.a": `+text("table")+`}, "routes": [{"route": {"cluster": "up"}}]}`)
	other := e.Cluster("other", "h1")
	calling.request = func(m *filter.Message) filter.Verdict {
		require.Equal(t, "up", m.Route().Clusters()[0])
		m.SetRoute(calling.routes[0])
		require.Equal(t, "own", m.Route().Name)
		return filter.Continue
	}
	var facts filter.Facts
	calling.end = func(m *filter.Message) { facts = m.Facts() }
	e.say("req 1 m -")
	require.Equal(t, []string{"a request own"}, e.log)
	s := other.Servers()[0]
	require.Contains(t, string(s.Take()), " m t=2000;r=own;-", "with its own changes and deadline")
	e.Advance(2100 * time.Millisecond)
	require.Equal(t, "err 1 - upstream request timeout\n", e.got())
	require.Equal(t, "own", facts.Route)
	require.Equal(t, "other", facts.Cluster)

	e.log = nil
	calling.request = func(m *filter.Message) filter.Verdict {
		m.SetRoute(calling.routes[0])
		m.ClearRoute()
		return filter.Continue
	}
	e.say("req 2 m -")
	require.Equal(t, "a request table", e.log[0])
	require.Equal(t, "res 2 m x\n", e.got())
}

func TestRoutesAndConsumersOfFiltersAreJudged(t *testing.T) {
	for config, want := range map[string]string{
		`"routes": [{}]`: "routes[0].route: required",
		`"routes": [{"match": {}, "route": {"cluster": "up", "retry_policy": {"retry_on": "often"}}}]`:                         "routes[0].route.retry_policy.retry_on: \"often\" is no condition\nroutes[0].match: does not go with a route that is not looked up",
		`"routes": [{"route": {"cluster": "up"}, "typed_per_filter_config": {"probe.c": ` + text("x") + `}}]`:                  `routes[0].typed_per_filter_config[probe.c]: unknown filter: there is no "probe.c" among meta_protocol_filters`,
		`"typed_per_filter_config": {"probe.c": ` + text("x") + `}`:                                                            `typed_per_filter_config[probe.c]: unknown filter: there is no "probe.c" among meta_protocol_filters`,
		`"typed_per_filter_config": {"probe.b": {"@type": "type.googleapis.com/google.protobuf.Empty"}}`:                       "typed_per_filter_config[probe.b]: ",
		`"typed_per_filter_config": {"aeraki.meta_protocol.filters.router": ` + text("x") + `}`:                                "typed_per_filter_config[aeraki.meta_protocol.filters.router]: the router",
		`"typed_per_filter_config": {"nope": ` + text("x") + `}`:                                                               "typed_per_filter_config[nope]: unknown filter",
		`"typed_per_filter_config": {"probe.a": ` + text("x") + `, "probe.b": ` + enabledWith(text("y")) + `}`:                 "",
		`"routes": [{"route": {"cluster": "up", "hash_policy": ["method"]}, "request_mutation": [{"key": "", "value": "v"}]}]`: "routes[0].request_mutation[0].key: ",
	} {
		setProbe(t, "probe.a", &probe{parseRoute: parseText})
		setProbe(t, "probe.b", &probe{parseRoute: parseText})
		errs := filter.Check([]byte(toyByID(calls(config))))
		var all error
		for _, e := range errs {
			all = errors.Join(all, errors.New(strings.TrimPrefix(e.Path, "meta_protocol_filters[0].config.")+": "+e.Reason))
		}
		if want == "" {
			require.NoError(t, all)
		} else {
			require.ErrorContains(t, all, want, config)
		}
	}
}

func TestConsumersHaveConfigurationsOfTheirOwn(t *testing.T) {
	chain := strings.Replace(calls(`"typed_per_filter_config": {"probe.a": `+text("acme a")+`, "probe.merging": `+text("acme b")+`}`), `"probe.b"`, `"probe.merging"`, 1)
	e := newOverridden(t, chain, `{"typed_per_filter_config": {"probe.a": `+text("table a")+`, "probe.merging": `+text("table b")+`}, "routes": [
		{"match": {"metadata": [{"name": "consumer", "exact_match": "acme"}, {"name": "method", "exact_match": "m1"}]}, "route": {"cluster": "up"}, "typed_per_filter_config": {"probe.merging": `+text("route b")+`}},
		{"match": {"metadata": [{"name": "consumer", "present_match": true}, {"name": "method", "exact_match": "m2"}]}, "route": {"cluster": "up"}},
		{"match": {"metadata": [{"name": "method", "exact_match": "m3"}]}, "route": {"cluster": "up"}, "typed_per_filter_config": {"probe.a": `+disabled+`, "probe.merging": `+disabled+`}}]}`)
	known := true
	calling.request = func(m *filter.Message) filter.Verdict {
		m.Request().Set("consumer", "mallory") // as if the client had said so
		if known {
			m.SetConsumer(calling.consumer)
			require.Equal(t, "acme", m.Consumer().Name())
			name, _ := m.Request().Get(filter.ConsumerProperty)
			require.Equal(t, "acme", string(name))
		} else {
			m.SetConsumer(nil)
		}
		return filter.Continue
	}
	var facts filter.Facts
	calling.end = func(m *filter.Message) { facts = m.Facts() }
	for range 2 { // merged once, and remembered
		e.log = nil
		e.say("req 1 m1 -")
		e.says("a request acme a", "b request table b and route b and acme b", "b response table b and route b and acme b", "a response acme a", "b end table b and route b and acme b", "a end acme a")
		require.Equal(t, "acme", facts.Consumer)
	}
	e.say("req 2 m2 -")
	require.Equal(t, []string{"a request acme a", "b request table b and acme b"}, e.log[:2])
	e.log = nil
	e.say("req 3 m3 -")
	require.Equal(t, []string{"a request acme a", "b request acme b"}, e.log[:2], "what is said of a consumer enables what its route does not")
	e.log, known = nil, false
	e.say("req 4 m3 -")
	require.Empty(t, e.log)
	require.Empty(t, facts.Consumer)
	e.got()
	e.say("req 5 m2 -")
	require.Equal(t, "err 5 - no route matches m2\n", e.got(), "nobody is called so by himself")
}

// TestConsumersWithoutRoutes: where tables say nothing, and filters are disabled.
func TestConsumersWithoutRoutes(t *testing.T) {
	chain := strings.NewReplacer(`{"name": "probe.a"}`, `{"name": "probe.a", "disabled": true}`).
		Replace(calls(`"typed_per_filter_config": {"probe.a": ` + text("acme a") + `, "probe.b": ` + disabled + `}`))
	e := newOverridden(t, chain, `{"routes": [{"route": {"cluster": "up"}}]}`)
	e.say("req 1 m -")
	e.says("b request <nil>", "b response <nil>", "b end <nil>")
	calling.request = func(m *filter.Message) filter.Verdict { m.SetConsumer(calling.consumer); return filter.Continue }
	e.say("req 2 m -")
	e.says("a request acme a", "a response acme a", "a end acme a")
}

func TestWeightedClustersConfigureFilters(t *testing.T) {
	e := newOverridden(t, probed, `{"typed_per_filter_config": {"probe.b": `+text("table")+`}, "routes": [{"route": {"weighted_clusters": {"clusters": [
		{"name": "up", "weight": 50, "typed_per_filter_config": {"probe.a": `+text("up a")+`, "probe.b": `+disabled+`}},
		{"name": "other", "weight": 50}]}}, "typed_per_filter_config": {"probe.a": `+text("route a")+`}}]}`)
	other := e.Cluster("other", "h1")
	other.Serve = e.up.Serve
	clusters := map[string]int{}
	e.f["a"].end = func(m *filter.Message) {
		at := m.Facts().Cluster
		clusters[at]++
		require.Equal(t, map[string]string{"up": "up a", "other": "route a"}[at], m.RouteConfig(), "the cluster is the one that the filters were told")
		require.Equal(t, at == "other", slices.Contains(e.log, "b request table"), e.log)
		e.log = nil
	}
	for i := range 100 {
		e.say(fmt.Sprintf("req %d m -", i))
	}
	require.Len(t, clusters, 2)
	errs := filter.Check([]byte(strings.Replace(toyByID(probed), toyRoutes, `, "route_config": {"routes": [{"route": {"weighted_clusters": {"clusters": [
		{"name": "up", "weight": 1, "typed_per_filter_config": {"probe.c": `+text("x")+`}}]}}}]}`, 1)))
	require.Len(t, errs, 1)
	require.Equal(t, "route_config.routes[0].route.weighted_clusters.clusters[0].typed_per_filter_config[probe.c]", errs[0].Path)
	require.InDelta(t, 50, clusters["up"], 25, "the draw is the weights'")
}

func TestTheOrderOfPhases(t *testing.T) {
	inOrder, not := calls(`"name": "x"`), strings.Replace(calls(`"name": "x"`), `[{"name"`, `[{"name": "aeraki.meta_protocol.filters.fault", "config": {
		"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.fault.v1alpha.Fault", "abort": {"reply": {"status": "DENIED"}, "percentage": {"numerator": 1}}}}, {"name"`, 1)
	const strict = `, "strict_filter_order": true`
	require.Empty(t, filter.Check([]byte(toyByID(inOrder+strict))))
	require.Empty(t, filter.Check([]byte(toyByID(not))))
	errs := filter.Check([]byte(toyByID(not + strict)))
	require.Len(t, errs, 1)
	require.EqualError(t, errs[0], `stat_prefix "t": meta_protocol_filters[1]: probe.caller is for authentication, and comes behind aeraki.meta_protocol.filters.fault, which is for traffic`)
}
