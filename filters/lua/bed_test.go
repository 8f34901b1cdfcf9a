package lua

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
)

const (
	typeURL  = "type.googleapis.com/aeraki.meta_protocol_proxy.filters.lua.v1alpha.Lua"
	perRoute = "type.googleapis.com/aeraki.meta_protocol_proxy.filters.lua.v1alpha.LuaPerRoute"
)

// onPass is called by a filter behind the one that is tested.
var onPass func(m *filter.Message)

func init() {
	filter.Register("passed", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return passed{}, nil }))
}

type passed struct{}

func (passed) OnRequest(m *filter.Message) filter.Verdict {
	if onPass != nil {
		onPass(m)
	}
	return filter.Continue
}

// bed is a client of a listener with the filter, and what servers have got last.
type bed struct {
	*filtertest.Host
	t       testing.TB
	cfg     *filtertest.Config
	c       *filtertest.Client
	at      string // the cluster
	got     [][2]string
	answers [][2]string // attachments of the servers' answers
}

// quoted is a text in JSON.
func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// scripted is the filter's configuration with one script.
func scripted(script string) string {
	return `"default_source_code": {"inline_string": ` + quoted(script) + `}`
}

const usualRoutes = `[
	{"name": "lanes", "match": {"metadata": [{"name": "lane", "string_match": {"exact": "blue"}}]}, "route": {"cluster": "blue"}},
	{"name": "rest", "route": {"cluster": "rest"}}]`

func listener(config, routes string) string {
	return `{"stat_prefix": "t", "traffic_direction": "INBOUND", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": "` + Name + `", "config": {"@type": "` + typeURL + `", ` + config + `}}, {"name": "passed"}, {"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"name": "r", "routes": ` + routes + `}}`
}

func newBed(t testing.TB, config, routes string) *bed {
	t.Helper()
	onPass = nil
	b := &bed{Host: filtertest.New(t), t: t}
	codec, err := dubbo.New(nil, codecs.Limits{})
	require.NoError(t, err)
	for _, name := range []string{"blue", "rest"} {
		b.Cluster(name, "10.0.0.3:20880").Serve = func(s *filtertest.Server, frame []byte) int {
			var m codecs.Metadata
			n, err := codec.NewDecoder(codecs.ClientToServer).Decode(frame, &m)
			require.NoError(t, err)
			b.at, b.got = name, nil
			for _, p := range m.Properties() {
				b.got = append(b.got, [2]string{string(p.Name), string(p.Value)})
			}
			s.Send(dubbotest.Response(m.ID, name, b.answers...))
			return n
		}
	}
	b.cfg = b.MustLoad(listener(config, routes))
	b.c = b.DialAt(b.cfg, "10.0.0.1:20880")
	return b
}

// ask sends a request, and returns the answer to it.
func (b *bed) ask(attachments ...[2]string) dubbotest.Parsed {
	b.t.Helper()
	b.at, b.got = "", nil
	b.c.Send(dubbotest.Request{ID: 1, Attachments: append([][2]string{{"path", "org.example.Greeter"}, {"interface", "org.example.Greeter"}}, attachments...)}.Bytes())
	answers, _ := dubbotest.Parse(b.c.Take())
	require.Len(b.t, answers, 1)
	return answers[0]
}

// value is what the server has got under a name, "" if nothing.
func (b *bed) value(name string) string {
	var all []string
	for _, a := range b.got {
		if strings.EqualFold(a[0], name) {
			all = append(all, a[1])
		}
	}
	return strings.Join(all, "|")
}

// logged are the lines of the log, from scripts on.
func (b *bed) logged() (all []string) {
	for _, line := range b.Log() {
		if _, rest, is := strings.Cut(line, "lua: "); is {
			all = append(all, rest)
		}
	}
	return all
}

// counts asserts what the filter has counted.
func (b *bed) counts(want map[string]int) {
	b.t.Helper()
	b.Advance(10e9)
	got := map[string]int{}
	for _, name := range []string{"errors", "budget_exceeded", "responded", "mutation_skipped", "state_reset"} {
		if n := b.cfg.Counter("p.t.lua." + name); n != 0 {
			got[name] = int(n)
		}
	}
	require.Equal(b.t, want, got)
}
