package filter_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// attachments are what a server, or a client, finds in a frame.
func attachments(t *testing.T, d codecs.Direction, frame []byte) map[string]string {
	t.Helper()
	c, err := dubbo.New(nil, codecs.Limits{})
	require.NoError(t, err)
	var m codecs.Metadata
	n, err := c.NewDecoder(d).Decode(frame, &m)
	require.NoError(t, err)
	require.Len(t, frame, n)
	all := map[string]string{}
	for _, p := range m.Properties() {
		all[string(p.Name)] = string(p.Value)
	}
	return all
}

// routedEnv is a client of a listener with routes, and what servers have got last.
func routedEnv(t *testing.T, routes, more string) (e *env, got *map[string]string) {
	t.Helper()
	h := filtertest.New(t)
	e = &env{Host: h, t: t, v1: h.Cluster("v1", "h1"), v2: h.Cluster("v2", "h2")}
	got = new(map[string]string)
	serve := func(s *filtertest.Server, b []byte) int {
		fs, rest := dubbotest.Parse(b)
		for _, f := range fs {
			*got = attachments(t, codecs.ClientToServer, b[:len(b)-len(rest)])
			s.Send(dubbotest.Response(f.ID, s.Host, [2]string{"secret", "x"}, [2]string{"host", s.Host}))
		}
		return len(b) - len(rest)
	}
	e.v1.Serve, e.v2.Serve = serve, serve
	e.cfg = h.MustLoad(listener(routes, more))
	e.c = h.Dial(e.cfg)
	return e, got
}

func TestRoutesRemoveAppendAndFormat(t *testing.T) {
	e, got := routedEnv(t, `{"name": "r", "response_keys_to_remove": ["Secret"], "request_mutation": [{"key": "table", "value": "yes"}],
		"routes": [{"name": "greet", "route": {"cluster": "v1"}, "request_keys_to_remove": ["INTERNAL"],
		"request_mutation": [
			{"key": "hops", "value": "meltemi", "append_action": "APPEND_IF_EXISTS_OR_ADD"},
			{"key": "lane", "value": "main", "append_action": "ADD_IF_ABSENT"},
			{"key": "debug", "value": "off", "append_action": "OVERWRITE_IF_EXISTS"},
			{"key": "client", "format": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% of %REQ(tenant?none)% to %DOWNSTREAM_LOCAL_ADDRESS% by %ROUTE_NAME%@%UPSTREAM_CLUSTER%"},
			{"key": "nothing", "format": "%REQ(none)%"}],
		"response_mutation": [{"key": "by", "format": "%UPSTREAM_CLUSTER%/%RESP(host)%"}]}]}`, "")
	c := e.DialAt(e.cfg, "10.0.0.1:20880")
	c.Send(req(1, acme, [2]string{"internal", "user=root"}, [2]string{"hops", "edge"}, [2]string{"debug", "on"}))
	f := one(t, c)
	require.Equal(t, "h1", f.Text())
	remote := strings.Split((*got)["client"], " ")[0]
	require.NotEmpty(t, remote)
	require.Equal(t, remote+" of acme to 10.0.0.1:20880 by greet@v1", (*got)["client"])
	require.Equal(t, "edge,meltemi", (*got)["hops"])
	require.Equal(t, "main", (*got)["lane"])
	require.Equal(t, "off", (*got)["debug"])
	require.Equal(t, "yes", (*got)["table"])
	require.NotContains(t, *got, "internal")
	require.NotContains(t, *got, "nothing")
	require.Contains(t, string(f.Body), "\x02by\x05v1/h1")
	require.Contains(t, string(f.Body), "\x04host\x02h1")
	require.NotContains(t, string(f.Body), "secret")

	c.Send(req(2, [2]string{"lane", "beta"}))
	require.Equal(t, "h1", one(t, c).Text())
	require.Equal(t, "meltemi", (*got)["hops"])
	require.Equal(t, "beta", (*got)["lane"])
	require.NotContains(t, *got, "debug")
	require.Zero(t, e.count("mutation_skipped"))
}

// TestChangesOfFiltersComeBeforeThoseOfRoutes, which see them.
func TestChangesOfFiltersComeBeforeThoseOfRoutes(t *testing.T) {
	current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		m.MutateRequest().Set("hops", "filter")
		m.MutateRequest().Remove("gone")
		m.Request().Set("seen", "by rules")
		return filter.Continue
	}}
	e, got := routedEnv(t, `{"name": "r", "routes": [{"route": {"cluster": "v1"}, "request_mutation": [
		{"key": "hops", "value": "route", "append_action": "APPEND_IF_EXISTS_OR_ADD"},
		{"key": "gone", "value": "added", "append_action": "ADD_IF_ABSENT"},
		{"key": "seen", "format": "%REQ(seen)%"}]}]}`,
		`, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
	e.c.Send(req(1, [2]string{"hops", "client"}, [2]string{"gone", "client"}))
	require.Equal(t, "h1", one(t, e.c).Text())
	require.Equal(t, "filter,route", (*got)["hops"])
	require.Equal(t, "added", (*got)["gone"])
	require.Equal(t, "by rules", (*got)["seen"])
}

// TestAFilterThatForwardsByItself gets the changes of answers that the route makes,
// and none of the requests.
func TestAFilterThatForwardsByItself(t *testing.T) {
	current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
		m.Route()
		return m.Forward("v2")
	}}
	e, got := routedEnv(t, `{"name": "r", "routes": [{"route": {"cluster": "v1"}, "request_mutation": [{"key": "q", "value": "1"}], "response_mutation": [{"key": "by", "format": "%UPSTREAM_CLUSTER%"}]}]}`,
		`, "meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}]`)
	e.c.Send(req(1))
	require.Contains(t, string(one(t, e.c).Body), "\x02by\x02v2")
	require.NotContains(t, *got, "q")
}

// TestAValueThatNoMessageCanHave is left out and counted, the rest is set.
func TestAValueThatNoMessageCanHave(t *testing.T) {
	e, got := routedEnv(t, `{"name": "r", "routes": [{"route": {"cluster": "v1"}, "request_mutation": [
		{"key": "a", "format": "%REQ(long)%%REQ(long)%"}, {"key": "b", "value": "2"}]}]}`, "")
	e.c.Send(req(1, [2]string{"long", strings.Repeat("x", codecs.MaxText)}))
	require.Equal(t, "h1", one(t, e.c).Text())
	require.NotContains(t, *got, "a")
	require.Equal(t, "2", (*got)["b"])
	require.EqualValues(t, 1, e.count("mutation_skipped"))
	require.Contains(t, strings.Join(e.Log(), "\n"), `request mutated in part: value: that of key "a" is longer than 16384 bytes`)
}

func TestDirectResponsesOfRoutes(t *testing.T) {
	e, got := routedEnv(t, `{"name": "r", "routes": [
		{"name": "closed", "match": {"metadata": [{"name": "tenant", "string_match": {"exact": "acme"}}]}, "direct_response": {"status": "OVER_LIMIT", "body": "closed for today"}},
		{"route": {"cluster": "v1"}}]}`, "")
	e.c.Send(req(1, acme))
	f := one(t, e.c)
	require.Equal(t, byte(100), f.Status)
	require.Equal(t, "closed for today", f.Text())
	require.Nil(t, *got)
	e.c.Send(dubbotest.Request{ID: 2, Oneway: true, Attachments: [][2]string{acme}}.Bytes())
	require.Empty(t, e.c.Take())
	e.c.Send(req(3))
	require.Equal(t, "h1", one(t, e.c).Text())
	require.EqualValues(t, 2, e.count("request_direct_response"))
	require.EqualValues(t, 1, e.count("oneway_dropped"))
	require.EqualValues(t, 1, e.count("local_response_business_exception"))
	require.Contains(t, strings.Join(e.Log(), "\n"), `route "closed" answers itself: over limit: closed for today`)
}

func TestRequestsNameTheirCluster(t *testing.T) {
	e, _ := routedEnv(t, `{"name": "r", "routes": [{"name": "lanes", "route": {"cluster_from_metadata": {"name": "lane", "allowed_clusters": ["v1", "v2"]}}}]}`, "")
	for _, lane := range []string{"v1", "v2"} {
		e.c.Send(req(1, [2]string{"lane", lane}))
		require.Equal(t, strings.Replace(lane, "v", "h", 1), one(t, e.c).Text())
	}
	require.Zero(t, e.count("request_no_cluster"))
	for want, att := range map[string][2]string{
		"the request names no cluster by its lane":                   {"k", "v"},
		"the request may not name the cluster \"v3\" by its lane":    {"lane", "v3"},
		"the request may not name the cluster \"v1 v2\" by its lane": {"lane", "v1 v2"},
	} {
		e.c.Send(req(1, att))
		f := one(t, e.c)
		require.Equal(t, byte(60), f.Status)
		require.Equal(t, want, f.Text())
	}
	require.EqualValues(t, 3, e.count("request_no_cluster"))
	require.Contains(t, strings.Join(e.Log(), "\n"), `route "lanes" leads to no cluster: the request`)
}

// TestWeightedClustersChangeMessages that go to them, and their answers.
func TestWeightedClustersChangeMessages(t *testing.T) {
	e, got := routedEnv(t, `{"name": "r", "routes": [{"request_mutation": [{"key": "q", "value": "route"}], "route": {"weighted_clusters": {"clusters": [
		{"name": "v1", "weight": 50},
		{"name": "v2", "weight": 50, "request_headers_to_add": [{"header": {"key": "canary", "value": "%UPSTREAM_CLUSTER%"}}], "request_headers_to_remove": ["legacy"],
		 "response_headers_to_add": [{"header": {"key": "served-by", "value": "canary"}}], "response_headers_to_remove": ["secret"]}]}}}]}`, "")
	seen := map[string]int{}
	for i := range 100 {
		e.c.Send(req(uint64(i), [2]string{"legacy", "1"}))
		f := one(t, e.c)
		host := f.Text()
		seen[host]++
		require.Equal(t, "route", (*got)["q"])
		require.Equal(t, host == "h2", (*got)["canary"] == "v2")
		require.Equal(t, host == "h1", (*got)["legacy"] == "1")
		require.Equal(t, host == "h2", strings.Contains(string(f.Body), "\x09served-by\x06canary"))
		require.Equal(t, host == "h1", strings.Contains(string(f.Body), "secret"))
	}
	require.Greater(t, seen["h1"], 20)
	require.Greater(t, seen["h2"], 20)
}

// TestRoutesOfAShareAndADirection: the listener says its direction, and each request
// has one number.
func TestRoutesOfAShareAndADirection(t *testing.T) {
	const routes = `{"name": "r", "routes": [
		{"match": {"direction": "INBOUND"}, "route": {"cluster": "v2"}},
		{"match": {"runtime_fraction": {"default_value": {"numerator": 30}}}, "route": {"cluster": "v2"}},
		{"route": {"cluster": "v1"}}]}`
	e, _ := routedEnv(t, routes, `, "traffic_direction": "OUTBOUND"`)
	seen := map[string]int{}
	for i := range 1000 {
		e.c.Send(req(uint64(i)))
		seen[one(t, e.c).Text()]++
	}
	require.InDelta(t, 300, seen["h2"], 60)
	require.Equal(t, 1000, seen["h1"]+seen["h2"])
	in, _ := routedEnv(t, routes, `, "traffic_direction": "INBOUND"`)
	for i := range 20 {
		in.c.Send(req(uint64(i)))
		require.Equal(t, "h2", one(t, in.c).Text())
	}
	_, err := in.LoadUnpublished(listener(routes, ""))
	require.ErrorContains(t, err, "route_config.routes[0].match.direction: matches nothing without a traffic_direction")
	_, err = in.LoadUnpublished(listener(routes, `, "traffic_direction": 9`))
	require.ErrorContains(t, err, "traffic_direction: unknown value 9")
}

// TestACodecThatCannotRemove is refused routes that do; where another codec of the
// listener can, or a filter asks, messages pass as they are.
func TestACodecThatCannotRemove(t *testing.T) {
	routes := `, "route_config": {"name": "r", "routes": [{"route": {"cluster": "up"}, "request_keys_to_remove": ["q"], "request_mutation": [{"key": "a", "value": "1"}]}]}`
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	_, err := h.LoadUnpublished(`{"stat_prefix": "t", "protocol": {"name": "toy", "codec": {"name": "toy.byid"}}` + routes + `}`)
	require.ErrorContains(t, err, "route_config.routes[0].request_keys_to_remove[0]: codec toy.byid cannot remove anything from messages")

	cfg := h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "any", "codecs": [{"name": "toy.byid"}, {"name": "aeraki.meta_protocol.codec.dubbo"}]}` + routes + `}`)
	c := h.Dial(cfg)
	c.Send([]byte("req 1 m x\n"))
	s := up.Servers()[0]
	require.Contains(t, string(s.Take()), " m x", "without any of the changes")
	s.Send([]byte("res 1 m ok\n"))
	h.Advance(50 * time.Millisecond)
	require.EqualValues(t, 1, cfg.Counter("any.t.mutation_skipped"))
	require.Contains(t, strings.Join(h.Log(), "\n"), "its codec cannot remove anything")
}

// TestStreamsAreChangedWhenTheyOpen, in both directions.
func TestStreamsAreChangedWhenTheyOpen(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	cfg := h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "toy", "codec": {"name": "toy.byid"}}, "route_config": {"name": "r", "routes": [{"name": "r1", "route": {"cluster": "up"},
		"request_mutation": [{"key": "q", "format": "%REQ(method)%"}], "response_mutation": [{"key": "a", "format": "%RESP(method)%-%ROUTE_NAME%"}]}]}}`)
	c := h.Dial(cfg)
	c.Send([]byte("init 1 m x\n"))
	s := up.Servers()[0]
	require.Contains(t, string(s.Take()), "q=m;x")
	s.Send([]byte("init 1 m x\n"))
	h.Settle()
	require.Contains(t, string(c.Take()), "a=m-r1;x")
}
