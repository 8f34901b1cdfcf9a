package setmetadata

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
	"github.com/meltemi-mesh/meltemi/internal/raced"
	setmetadatav1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/set_metadata/v1alpha"
)

const typeURL = "type.googleapis.com/aeraki.meta_protocol_proxy.filters.set_metadata.v1alpha.SetMetadata"

// seer is behind the filter, and keeps the properties that it sees.
type seer struct {
	before func(m *filter.Message)
	props  []string
}

var seen *seer

func (s *seer) OnRequest(m *filter.Message) filter.Verdict {
	if s.before != nil {
		s.before(m)
		return filter.Continue
	}
	for _, p := range m.Request().Properties() {
		if p.Name[0] == 'x' || p.Name[0] == 'X' {
			s.props = append(s.props, string(p.Name)+"="+string(p.Value))
		}
	}
	return filter.Continue
}

func init() {
	filter.Register("seer", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return seen, nil }))
	filter.Register("earlier", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) {
		return &seer{before: func(m *filter.Message) { m.Route() }}, nil
	}))
}

func listener(entries string) string {
	return `{"stat_prefix": "t", "traffic_direction": "INBOUND", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": "earlier"}, {"name": "` + Name + `", "config": {"@type": "` + typeURL + `", "entries": [` + entries + `]}}, {"name": "seer"}, {"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"routes": [
			{"match": {"metadata": [{"name": "x-lane", "string_match": {"exact": "blue"}}]}, "route": {"cluster": "blue"}},
			{"route": {"cluster": "rest"}}]}}`
}

// env is a client of a listener with the filter, and what servers have got last.
type env struct {
	*filtertest.Host
	cfg *filtertest.Config
	c   *filtertest.Client
	at  string   // the cluster
	got []string // attachments of a name with x
}

func start(t *testing.T, entries string) *env {
	t.Helper()
	seen = new(seer)
	h := filtertest.New(t)
	e := &env{Host: h}
	codec, err := dubbo.New(nil, codecs.Limits{})
	require.NoError(t, err)
	for _, name := range []string{"blue", "rest"} {
		h.Cluster(name, "h1").Serve = func(s *filtertest.Server, b []byte) int {
			var m codecs.Metadata
			n, err := codec.NewDecoder(codecs.ClientToServer).Decode(b, &m)
			require.NoError(t, err)
			e.at, e.got = name, nil
			s.Send(dubbotest.Response(m.ID, name))
			for _, p := range m.Properties() {
				if p.Name[0] == 'x' || p.Name[0] == 'X' {
					e.got = append(e.got, string(p.Name)+"="+string(p.Value))
				}
			}
			return n
		}
	}
	e.cfg = h.MustLoad(listener(entries))
	e.c = h.DialAt(e.cfg, "10.0.0.1:20880")
	return e
}

func (e *env) ask(attachments ...[2]string) {
	e.at, e.got, seen.props = "", nil, nil
	e.c.Send(dubbotest.Request{ID: 1, Attachments: append([][2]string{{"path", "org.example.Greeter"}, {"interface", "org.example.Greeter"}}, attachments...)}.Bytes())
}

// TestWhatIsSet by each kind of source and action.
func TestWhatIsSet(t *testing.T) {
	for _, tt := range []struct {
		entry       string
		attachments [][2]string
		want        string
	}{
		{`"value": "100%"`, nil, "x=100%"},
		{`"value": ""`, nil, "x="},
		{`"value": "new"`, [][2]string{{"X", "old"}, {"x", "older"}}, "x=new"},
		{`"value": "v", "append_action": "APPEND_IF_EXISTS_OR_ADD"`, nil, "x=v"},
		{`"value": "v", "append_action": "APPEND_IF_EXISTS_OR_ADD"`, [][2]string{{"X", "old"}}, "x=old,v"},
		{`"value": "v", "append_action": "ADD_IF_ABSENT"`, nil, "x=v"},
		{`"value": "v", "append_action": "ADD_IF_ABSENT"`, [][2]string{{"X", "old"}}, "X=old"},
		{`"value": "v", "append_action": "OVERWRITE_IF_EXISTS"`, nil, ""},
		{`"value": "v", "append_action": "OVERWRITE_IF_EXISTS"`, [][2]string{{"x", "old"}}, "x=v"},
		{`"format": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% at %DOWNSTREAM_LOCAL_PORT%, %TRAFFIC_DIRECTION%"`, nil, "x=10.0.0.2 at 20880, INBOUND"},
		{`"format": "%OPERATION% %SERVICE% %METHOD%"`, nil, "x=org.example.Greeter/sayHello org.example.Greeter sayHello"},
		{`"format": "%REQ(none)%"`, [][2]string{{"x", "old"}}, "x=old"},
		{`"format": "%REQ(x)%", "extract": {"pattern": "(a+)-(?:b)-(c)?", "substitution": "\\2|\\1|\\0|\\\\"}`, [][2]string{{"x", "aa-b-"}}, `x=|aa|aa-b-|\`},
		{`"format": "%REQ(x)%", "extract": {"pattern": "a", "substitution": "found"}`, [][2]string{{"x", "ab"}}, "x=ab"},
		{`"format": "%REQ(x)%", "extract": {"pattern": "a|b", "substitution": "found"}`, [][2]string{{"x", "b"}}, "x=found"},
		{`"format": "%REQ(x)%", "extract": {"pattern": "a|b", "substitution": "found"}`, [][2]string{{"x", "ab"}}, "x=ab"},
		{`"format": "%REQ(x)%", "extract": {"pattern": "(a)?b", "substitution": "\\1"}`, [][2]string{{"x", "b"}}, "x=b"},
		{`"format": "%SERVICE%", "extract": {"pattern": ".*\\.(\\w+)", "substitution": "\\1"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"`, [][2]string{{"x", "old"}}, "x=old,Greeter"},
		{`"value": "abc", "extract": {"pattern": ".(.).", "substitution": "\\1"}`, nil, "x=b"},
	} {
		e := start(t, `{"name": "x", `+tt.entry+`}`)
		e.ask(tt.attachments...)
		require.Equal(t, tt.want, strings.Join(seen.props, " "), tt.entry)
		var sent []string
		for _, a := range tt.attachments {
			sent = append(sent, a[0]+"="+a[1])
		}
		require.Equal(t, sent, e.got, "the server gets what was sent")
	}
}

// TestEntriesSeeThoseBefore, and routes see all, also one that has been chosen before.
func TestEntriesSeeThoseBefore(t *testing.T) {
	e := start(t, `{"name": "x-lane", "value": "bl"}, {"name": "X-LANE", "format": "%REQ(x-lane)%ue"}`)
	e.ask([2]string{"x-lane", "forged"})
	require.Equal(t, []string{"X-LANE=blue"}, seen.props)
	require.Equal(t, "blue", e.at)
}

// TestWhatGoesUpstream is what rules see.
func TestWhatGoesUpstream(t *testing.T) {
	e := start(t, `{"name": "x-client", "format": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "upstream": true}, {"name": "x-bad", "format": "%REQ(raw)%", "upstream": true}`)
	e.ask([2]string{"X-Client", "forged"}, [2]string{"x-client", "forged too"}, [2]string{"x", "y"})
	require.Equal(t, []string{"x-client=10.0.0.2", "x=y"}, e.got)
	require.Equal(t, []string{"x-client=10.0.0.2", "x=y"}, seen.props)
}

// TestWhatIsTooLong is not left out.
func TestWhatIsTooLong(t *testing.T) {
	pattern := `"extract": {"pattern": "(a|b|c|d|e|f|g|h)*x?", "substitution": "\\1"}`
	cost := parseExtraction(&setmetadatav1alpha.Extraction{Pattern: "(a|b|c|d|e|f|g|h)*x?", Substitution: "x"}, "", new(fields.Faults)).cost
	for _, tt := range []struct {
		entries string
		n       int
		ok      bool
	}{
		{`{"name": "x-1", "format": "%REQ(x)%"}`, codecs.MaxText, true},
		{`{"name": "x-1", "format": "%REQ(x)%"}`, codecs.MaxText + 1, false},
		{`{"name": "x-1", "format": "%REQ(x)%"}, {"name": "x-1", "format": "%REQ(x-1)%%REQ(x-1)%"}`, codecs.MaxText/2 + 1, false},
		{`{"name": "x-1", "format": "%REQ(x)%", "extract": {"pattern": "a*", "substitution": "s"}}`, maxValue, true},
		{`{"name": "x-1", "format": "%REQ(x)%", "extract": {"pattern": "a*", "substitution": "s"}}`, maxValue + 1, false},
		{`{"name": "x-1", "format": "%REQ(x)%", "extract": {"pattern": "(a*)", "substitution": "\\1\\1\\1"}}`, codecs.MaxText/3 + 1, false},
		{strings.Repeat(`{"name": "x-1", "format": "%REQ(x)%", `+pattern+`}, `, 19) + `{"name": "x-1", "format": "%REQ(x)%", ` + pattern + `}`, maxSteps/20/cost - 1, true},
		{strings.Repeat(`{"name": "x-1", "format": "%REQ(x)%", `+pattern+`}, `, 19) + `{"name": "x-1", "format": "%REQ(x)%", ` + pattern + `}`, maxSteps/20/cost + 1, false},
	} {
		e := start(t, tt.entries)
		e.ask([2]string{"x", strings.Repeat("a", tt.n)})
		frames, _ := dubbotest.Parse(e.c.Take())
		e.Advance(1e9)
		if tt.ok {
			require.Equal(t, "rest", frames[0].Text())
			require.Equal(t, "rest", e.at)
			require.Zero(t, e.cfg.Counter("p.t.set_metadata.refused"))
			continue
		}
		require.Len(t, frames, 1, tt.entries)
		require.EqualValues(t, 40, frames[0].Status)
		require.Equal(t, `what "x-1" is made of is too long`, frames[0].Text())
		require.EqualValues(t, 1, e.cfg.Counter("p.t.set_metadata.refused"))
	}
}

// TestAnExpressionCostsWhatItIsTakenFor at the worst: its steps are bounded by those that
// are counted, whatever the value.
func TestTheProgramIsBounded(t *testing.T) {
	x := parseExtraction(&setmetadatav1alpha.Extraction{Pattern: "a{400}", Substitution: "x"}, "extract", new(fields.Faults))
	require.Greater(t, x.cost, 400)
	var faults fields.Faults
	parseExtraction(&setmetadatav1alpha.Extraction{Pattern: "(a{25}b){25}", Substitution: "x"}, "extract", &faults)
	require.ErrorContains(t, faults.Err(), "extract.pattern: its program has ")
}

func TestImpossibleEntriesAreRefused(t *testing.T) {
	codec, err := dubbo.New(nil, codecs.Limits{})
	require.NoError(t, err)
	env := &filter.Env{Codecs: []codecs.Codec{codec}}
	long := strings.Repeat("x", codecs.MaxText+1)
	for config, want := range map[string]string{
		`{}`: "entries: required",
		`{"entries": [` + strings.Repeat(`{"name": "a", "value": "b"},`, 100) + `{"name": "a", "value": "b"}]}`: "entries: at most 100, has 101",
		`{"entries": [{}]}`: "entries[0].name: must have 1 to 16384 bytes, has 0\nentries[0].format: required, or value",
		`{"entries": [{"name": "` + long + `", "value": "b"}]}`:                                            "entries[0].name: must have 1 to 16384 bytes, has 16385",
		`{"entries": [{"name": "a", "value": "` + long + `"}]}`:                                            "entries[0].value: must have 0 to 16384 bytes, has 16385",
		`{"entries": [{"name": "a", "format": ""}]}`:                                                       "entries[0].format: must have 1 to 16384 bytes, has 0",
		`{"entries": [{"name": "a", "format": "%NO%"}]}`:                                                   "entries[0].format: %NO%: unknown operator",
		`{"entries": [{"name": "a", "format": "%ROUTE_NAME%"}]}`:                                           "entries[0].format: no route has been chosen yet",
		`{"entries": [{"name": "a", "format": "%RESP(x)%"}]}`:                                              "entries[0].format: %RESP%: there is no answer yet",
		`{"entries": [{"name": "a", "value": "b", "append_action": 7}]}`:                                   "entries[0].append_action: unknown value 7",
		`{"entries": [{"name": "a", "value": "b", "extract": {}}]}`:                                        "entries[0].extract.pattern: required\nentries[0].extract.substitution: must have 1 to 16384 bytes, has 0",
		`{"entries": [{"name": "a", "value": "b", "extract": {"pattern": "a)|(b", "substitution": "x"}}]}`: "entries[0].extract.pattern: error parsing regexp: unexpected ): `a)|(b`",
		`{"entries": [{"name": "a", "value": "b", "extract": {"pattern": "(a)", "substitution": "\\2"}}]}`: `entries[0].extract.substitution: \2 is no group: the pattern has 1`,
		`{"entries": [{"name": "a", "value": "b", "extract": {"pattern": "(a)", "substitution": "\\n"}}]}`: `entries[0].extract.substitution: \n is neither a group nor \\`,
		`{"entries": [{"name": "a", "value": "b", "extract": {"pattern": "(a)", "substitution": "x\\"}}]}`: `entries[0].extract.substitution: ends with a single \`,
		`{"entries": [{"name": "Interface", "value": "b", "upstream": true}]}`:                             `entries[0].upstream: key: "Interface" belongs to the call itself and cannot be changed`,
	} {
		m := new(setmetadatav1alpha.SetMetadata)
		require.NoError(t, protojson.Unmarshal([]byte(config), m))
		packed, err := anypb.New(m)
		require.NoError(t, err)
		_, err = parse(packed, env)
		require.EqualError(t, err, want)
	}
	_, err = parse(nil, env)
	require.EqualError(t, err, "required")
	_, err = parse(new(anypb.Any), env)
	require.ErrorContains(t, err, "type_url: ")
}

// TestSettingAllocatesNothing, but for what goes upstream and groups.
func TestSettingAllocatesNothing(t *testing.T) {
	allocations := map[string]float64{}
	for name, entries := range map[string]string{
		"nothing": `{"name": "x", "value": "v", "append_action": "OVERWRITE_IF_EXISTS"}`,
		"all": `{"name": "x-1", "value": "v"}, {"name": "x-1", "format": "%REQ(x-1)%/%DOWNSTREAM_LOCAL_ADDRESS%/%OPERATION%", "append_action": "APPEND_IF_EXISTS_OR_ADD"},
			{"name": "x-2", "format": "%SERVICE%", "extract": {"pattern": "no.*", "substitution": "s"}}`,
	} {
		e := start(t, entries)
		seen.before = func(*filter.Message) {}
		request := dubbotest.Request{ID: 1, Attachments: [][2]string{{"interface", "org.example.Greeter"}}}.Bytes()
		allocations[name] = raced.AllocsPerRun(t, 2000, func() { e.c.Send(request); e.c.Take() })
	}
	require.InDelta(t, allocations["nothing"], allocations["all"], 0)
}

// TestWhatTheClientSaysOfIt does not go upstream in the place of what is set: a message
// that says something and cannot be changed is refused. One that says nothing passes.
func TestWhatTheClientSaysOfIt(t *testing.T) {
	const limit = 2000
	for _, tt := range []struct {
		entries      string
		said         [][2]string
		full         bool
		ok           bool
		skipped, got string
	}{
		{`{"name": "x-client", "value": "10.0.0.2", "upstream": true}`, [][2]string{{"X-Client", "f"}}, true, false, "0", ""},
		{`{"name": "x-client", "value": "10.0.0.2", "upstream": true}`, [][2]string{{"X-Client", "f"}}, false, true, "0", "x-client=10.0.0.2"},
		{`{"name": "x-client", "value": "10.0.0.2", "upstream": true}`, nil, true, true, "1", ""},
		{`{"name": "x-client", "value": "10.0.0.2", "upstream": true}, {"name": "x-client", "value": "10.0.0.3", "upstream": true}`, nil, true, true, "1", ""},
		{`{"name": "x-client", "value": "10.0.0.2"}`, [][2]string{{"X-Client", "f"}}, true, true, "0", "X-Client=f"},
		{`{"name": "x-client", "value": "10.0.0.2", "append_action": "ADD_IF_ABSENT", "upstream": true}`, [][2]string{{"X-Client", "f"}}, true, true, "0", "X-Client=f"},
	} {
		e := start(t, tt.entries)
		e.cfg = e.MustLoad(strings.Replace(listener(tt.entries), `{"stat_prefix"`, `{"limits": {"max_frame_bytes": 2000}, "stat_prefix"`, 1))
		e.c = e.Dial(e.cfg)
		r := dubbotest.Request{ID: 1, Attachments: append([][2]string{{"path", "org.example.Greeter"}}, tt.said...)}
		for tt.full && len(r.Bytes()) < limit {
			r.Argument += "a"
		}
		e.c.Send(r.Bytes())
		frames, _ := dubbotest.Parse(e.c.Take())
		require.Len(t, frames, 1, tt)
		require.Equal(t, tt.ok, frames[0].Status == 20, tt)
		require.Equal(t, tt.got, strings.Join(e.got, " "), tt)
		e.Advance(1e9)
		require.Equal(t, tt.skipped, fmt.Sprint(e.cfg.Counter("p.t.mutation_skipped")), tt)
		require.Equal(t, !tt.ok, e.cfg.Counter("p.t.mutation_refused") == 1, tt)
		if !tt.ok {
			require.EqualValues(t, 40, frames[0].Status)
			require.Equal(t, "the message cannot be changed: it would become larger than the limits", frames[0].Text())
			e.ask(tt.said...)
			require.Equal(t, []string{"x-client=10.0.0.2"}, e.got)
		}
	}
}

// TestAValueThatCannotBeSet: the server gets nothing in its place, and not what the client
// says of it.
func TestAValueThatCannotBeSet(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("rest", "h1")
	cfg := h.MustLoad(strings.Replace(listener(`{"name": "x-client", "format": "%REQ(raw)%", "upstream": true}`), "codec.dubbo", "codec.brpc", 1))
	h.Dial(cfg).Send(brpctest.Request{ID: 7, UserFields: [][2]string{{"x-client", "forged"}, {"raw", "\xff"}}}.Bytes())
	frames, _ := brpctest.Parse(up.Servers()[0].Take())
	require.Len(t, frames, 1)
	require.Equal(t, map[string]string{"raw": "\xff"}, frames[0].UserFields)
	h.Advance(1e9)
	require.EqualValues(t, 1, cfg.Counter("p.t.mutation_skipped"))
}
