package adaptiveconcurrency

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// behind is a filter behind this one, that does what a test wants.
type behind struct{}

var onRequest func(m *filter.Message) filter.Verdict

func init() {
	filter.Register("test.behind", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return behind{}, nil }))
}

func (behind) OnRequest(m *filter.Message) filter.Verdict {
	if onRequest == nil {
		return filter.Continue
	}
	return onRequest(m)
}

func typed(fields string) string {
	return `{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.adaptive_concurrency.v1alpha.AdaptiveConcurrency", ` +
		`"gradient_controller_config": {"concurrency_limit_params": {"initial_concurrency_limit": 5}}` + fields + `}`
}

const oneRoute = `[{"route": {"cluster": "up"}}]`

func listener(protocol, config, routes string) string {
	return fmt.Sprintf(`{"stat_prefix": "t", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.%s"}},
	"meta_protocol_filters": [{"name": %q, "config": %s}, {"name": "test.behind"}, {"name": "aeraki.meta_protocol.filters.router"}],
	"route_config": {"routes": %s}, "request_timeout": "10s"}`, protocol, Name, config, routes)
}

// world is a host with a listener, a client and a cluster, whose servers hold requests
// until the test has them answered.
type world struct {
	*filtertest.Host
	t       *testing.T
	cfg     *filtertest.Config
	c       *filtertest.Client
	pending []func(answer func(id uint64) []byte)
	id      uint64
}

func start(t *testing.T, config, routes string) *world {
	onRequest = nil
	b := &world{Host: filtertest.New(t), t: t}
	b.Cluster("up", "h1").Serve = func(s *filtertest.Server, in []byte) int {
		frames, rest := dubbotest.Parse(in)
		for _, f := range frames {
			b.pending = append(b.pending, func(answer func(uint64) []byte) { s.Send(answer(f.ID)) })
		}
		return len(in) - len(rest)
	}
	b.cfg = b.MustLoad(listener("dubbo", config, routes))
	b.c = b.Dial(b.cfg)
	return b
}

// ask sends n requests and returns how many have been refused at once.
func (b *world) ask(n int, attachments ...[2]string) (refused int) {
	b.t.Helper()
	for range n {
		b.id++
		b.c.Send(dubbotest.Request{ID: b.id, Attachments: attachments}.Bytes())
	}
	for _, a := range b.answers() {
		require.EqualValues(b.t, 100, a.Status)
		require.Equal(b.t, "the concurrency limit is reached", a.Text())
		refused++
	}
	return refused
}

func (b *world) answers() []dubbotest.Parsed {
	answers, rest := dubbotest.Parse(b.c.Take())
	require.Empty(b.t, rest)
	return answers
}

// serve has all requests answered that are with the server.
func (b *world) serve(answer func(id uint64) []byte) {
	all := b.pending
	b.pending = nil
	for _, f := range all {
		f(answer)
	}
	b.Settle()
	b.c.Take()
}

func fine(id uint64) []byte      { return dubbotest.Response(id, "hello") }
func thrown(id uint64) []byte    { return dubbotest.Frame(2, 20, id, []byte("\x90\x05sorry")) }
func exhausted(id uint64) []byte { return dubbotest.ErrorResponse(id, 100, "thread pool exhausted") }
func broken(id uint64) []byte    { return dubbotest.ErrorResponse(id, 80, "bug") }

func (b *world) metric(name string) int64 {
	b.Advance(100 * ms)
	return b.cfg.Counter("p.t.adaptive_concurrency.gradient_controller." + name)
}

func TestRequestsBeyondTheLimitAreRefused(t *testing.T) {
	b := start(t, typed(""), oneRoute)
	require.Equal(t, 3, b.ask(8))
	require.Len(t, b.pending, 5)
	b.serve(fine)
	require.Equal(t, 1, b.ask(6))
	b.c.Close() // who leaves takes his requests along
	b.Settle()
	b.c = b.Dial(b.cfg)
	require.Zero(t, b.ask(5))
	b.Advance(11 * time.Second) // they time out
	require.Len(t, b.answers(), 5)
	require.Zero(t, b.ask(5))
	require.EqualValues(t, 4, b.metric("rq_blocked"))
}

// TestWhatCounts: the limit follows times, and what says that there is too much load.
func TestWhatCounts(t *testing.T) {
	raced.Skip(t)
	for name, tt := range map[string]struct {
		answer func(id uint64) []byte
		before func(m *filter.Message) filter.Verdict
		moves  int // of the limit: 1 up, -1 down
	}{
		"answers":            {answer: fine, moves: 1},
		"exceptions":         {answer: thrown, moves: 1},
		"errors for load":    {answer: exhausted, moves: -1},
		"other errors":       {answer: broken},
		"no answers":         {moves: -1},
		"aborts of a filter": {before: func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Timeout, "injected") }},
		"delays of a filter": {answer: fine, before: func(m *filter.Message) filter.Verdict { return m.Delay(400*ms, nil) }},
		"no host":            {before: func(m *filter.Message) filter.Verdict { return m.Forward("nowhere") }},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, typed(""), oneRoute)
			onRequest = tt.before
			for range 100 {
				for range 8 {
					b.id++
					b.c.Send(dubbotest.Request{ID: b.id}.Bytes())
				}
				if tt.answer == nil {
					b.Advance(11 * time.Second)
					b.pending = nil
				} else {
					b.Advance(500 * ms)
					b.serve(tt.answer)
				}
				b.c.Take()
			}
			require.Empty(t, b.pending)
			got := 0
			if l := b.metric("concurrency_limit"); l > 5 {
				got = 1
			} else if l > 0 && l < 5 {
				got = -1
			}
			require.Equal(t, tt.moves, got)
			onRequest = nil
			require.Less(t, b.ask(200), 200, "all places are free again")
		})
	}
}

// TestTheTimeIsThatOfTheServer, not of filters behind this one.
func TestTheTimeIsThatOfTheServer(t *testing.T) {
	b := start(t, typed(""), oneRoute)
	onRequest = func(m *filter.Message) filter.Verdict { return m.Delay(200*ms, nil) }
	for range 100 {
		b.ask(1)
		b.Advance(250 * ms)
		b.Advance(20 * ms)
		b.serve(fine)
	}
	require.InDelta(t, 70, b.metric("min_rtt_msecs"), 5)
	require.EqualValues(t, 1000, b.metric("gradient"))
}

func TestOneways(t *testing.T) {
	b := start(t, typed(""), oneRoute)
	for range 3 { // their places are free once they are sent
		for range 5 {
			b.c.Send(dubbotest.Request{Oneway: true}.Bytes())
		}
	}
	require.Len(t, b.pending, 15)
	require.Zero(t, b.ask(5))
	b.c.Send(dubbotest.Request{Oneway: true}.Bytes())
	require.Len(t, b.pending, 20, "it is dropped")
	require.EqualValues(t, 1, b.metric("rq_blocked"))
	require.EqualValues(t, 1, b.cfg.Counter("p.t.oneway_dropped"))
}

// thriftCall is one without arguments, framed and in the binary protocol; kind is 2 of its
// answer.
func thriftCall(kind byte, method string, id byte) []byte {
	b := append([]byte{0, 0, 0, byte(13 + len(method)), 0x80, 1, 0, kind, 0, 0, 0, byte(len(method))}, method...)
	return append(b, 0, 0, 0, id, 0)
}

// TestOnewaysInDisguise are known after a while, and then have a place until their client
// goes on.
func TestOnewaysInDisguise(t *testing.T) {
	onRequest = nil
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	up.Serve = func(s *filtertest.Server, in []byte) int {
		if strings.Contains(string(in), "ask") {
			answer := slices.Clone(in)
			answer[7] = 2
			s.Send(answer)
		}
		return len(in)
	}
	cfg := h.MustLoad(listener("thrift", typed(""), oneRoute))
	c := h.Dial(cfg)
	ask := func(c *filtertest.Client) []byte {
		c.Send(thriftCall(1, "ask", 9))
		return c.Take()
	}
	for range 2 {
		c.Send(thriftCall(1, "fire", 1))
		require.Equal(t, thriftCall(2, "ask", 9), ask(c))
		h.Advance(11 * time.Second)
	}
	for id := range byte(40) {
		c.Send(thriftCall(1, "fire", id))
		require.Equal(t, thriftCall(2, "ask", 9), ask(c))
	}
	up.Serve = nil
	fill := func(n int) {
		t.Helper()
		clients := []*filtertest.Client{}
		for range n {
			clients = append(clients, h.Dial(cfg))
			require.Empty(t, ask(clients[len(clients)-1]))
		}
		require.Contains(t, string(ask(h.Dial(cfg))), "the concurrency limit is reached")
		for _, c := range clients {
			c.Close()
		}
	}
	c.Send(thriftCall(1, "fire", 1))
	fill(4) // each has given back one place
	c.Close()
	fill(5)
}

// TestStreams take no places, and do not open while none is free.
func TestStreams(t *testing.T) {
	onRequest = nil
	h := filtertest.New(t)
	up := h.Cluster("up", "h1")
	c := h.Dial(h.MustLoad(listener("trpc", typed(""), oneRoute)))
	for id := range uint32(20) {
		c.Send(trpctest.Request{ID: 100 + id}.Init())
	}
	require.Len(t, up.Servers(), 20)
	for id := range uint32(5) {
		c.Send(trpctest.Request{ID: 1 + id}.Bytes())
	}
	require.Empty(t, c.Take())
	c.Send(trpctest.Request{ID: 200}.Init())
	frames, _ := trpctest.Parse(c.Take(), false)
	require.Len(t, frames, 1)
	require.NotZero(t, frames[0].Ret)
}

func TestRoutesAndKeysHaveLimitsOfTheirOwn(t *testing.T) {
	tenant := func(name string) string {
		return fmt.Sprintf(`{"metadata": [{"name": "tenant", "string_match": {"exact": %q}}]}`, name)
	}
	perRoute := func(config string) string { return fmt.Sprintf(`"typed_per_filter_config": {%q: %s}`, Name, config) }
	b := start(t, typed(""), `[
		{"name": "a", "match": `+tenant("a")+`, "route": {"cluster": "up"}},
		{"name": "b", "match": `+tenant("b")+`, "route": {"cluster": "up"}, `+perRoute(strings.Replace(typed(`, "keys": {"names": ["User", "app"], "max_keys": 4}`), "limit\": 5", `limit": 2}, "min_rtt_calc_params": {"min_concurrency": 2`, 1))+`},
		{"name": "c", "match": `+tenant("c")+`, "route": {"cluster": "up"}, `+perRoute(`{"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}`)+`},
		{"route": {"cluster": "up"}}]`)
	require.Equal(t, 2, b.ask(7, [2]string{"tenant", "a"}))
	require.Equal(t, 2, b.ask(7))
	require.Zero(t, b.ask(100, [2]string{"tenant", "c"}))
	for _, of := range [][][2]string{
		{{"user", "x"}, {"app", "y"}},
		{{"user", "xy"}},
		{{"USER", "xy"}, {"app", ""}}, // for which there is no room: what is beyond shares one
	} {
		require.Equal(t, 3, b.ask(5, append(of, [2]string{"tenant", "b"})...), of)
	}
	require.Equal(t, 4, b.ask(4, [2]string{"user", "another"}, [2]string{"tenant", "b"}), "it shares that of the one before")
	require.EqualValues(t, 9, b.metric("keys_overflow"))
	b.serve(fine)
	require.Equal(t, 3, b.ask(5, [2]string{"user", "another"}, [2]string{"tenant", "b"}), "one is forgotten for it")
	require.EqualValues(t, 9, b.metric("keys_overflow"))
}

// TestLimitsOutliveAConfiguration.
func TestLimitsOutliveAConfiguration(t *testing.T) {
	b := start(t, typed(""), oneRoute)
	for range 60 {
		for range 8 {
			b.id++
			b.c.Send(dubbotest.Request{ID: b.id}.Bytes())
		}
		b.Advance(100 * ms)
		b.serve(exhausted)
	}
	limit := b.metric("concurrency_limit")
	require.Less(t, limit, int64(5))
	next := b.MustLoad(listener("dubbo", typed(`, "concurrency_limit_exceeded_status": {"code": 70, "body": "later"}`), oneRoute))
	b.c = b.Dial(next)
	for id := range uint64(5) {
		b.c.Send(dubbotest.Request{ID: id}.Bytes())
	}
	answers := b.answers()
	require.Len(t, answers, 5-int(limit))
	require.EqualValues(t, 70, answers[0].Status)
	require.Equal(t, "later", answers[0].Text())
	b.serve(fine)
}

// TestMessagesAllocateNothing that they would not without the filter.
func TestMessagesAllocateNothing(t *testing.T) {
	allocations := map[bool]float64{}
	for _, disabled := range []bool{false, true} {
		onRequest = nil
		h := filtertest.New(t)
		h.Cluster("up", "h1").Serve = func(s *filtertest.Server, in []byte) int {
			frames, rest := dubbotest.Parse(in)
			for _, f := range frames {
				s.Send(dubbotest.Response(f.ID, "x"))
			}
			return len(in) - len(rest)
		}
		c := h.Dial(h.MustLoad(listener("dubbo", typed(`, "keys": {"names": ["interface", "tenant"]}`), fmt.Sprintf(
			`[{"route": {"cluster": "up"}, "typed_per_filter_config": {%q: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": %v, "config": %s}}}]`,
			Name, disabled, typed(`, "keys": {"names": ["interface", "tenant"]}`)))))
		request := dubbotest.Request{ID: 1, Attachments: [][2]string{{"tenant", "acme"}}}.Bytes()
		round := func() { c.Send(request); c.Take() }
		for range 100 {
			round()
		}
		allocations[disabled] = raced.AllocsPerRun(t, 2000, round)
	}
	require.Equal(t, int(allocations[true]), int(allocations[false]))
}

// TestAMillionKeys cost what max_keys cost.
func TestAMillionKeys(t *testing.T) {
	c := &config{policy: *usualPolicy(t), names: []string{"k"}, id: "k\x00", maxKeys: 100}
	ls, kn := newLimits(), known{}
	for i := range 100_000 {
		md := &codecs.Metadata{}
		md.Set("k", strings.Repeat("x", i%400)+fmt.Sprint(i))
		k, shared := kn.find(ls, c.appendKey(nil, "r", md), c)
		require.False(t, shared)
		again, _ := kn.find(ls, c.appendKey(nil, "r", md), c)
		require.Same(t, k, again)
	}
	require.Len(t, ls.all, 100)
	require.Len(t, ls.byKey, 100)
	require.LessOrEqual(t, len(kn), 100)
	require.EqualValues(t, 100*20, ls.sum.Load())
}

func TestWhatIsRefused(t *testing.T) {
	gradient := func(fields string) string {
		return strings.Replace(typed(""), `"concurrency_limit_params": {"initial_concurrency_limit": 5}`, fields, 1)
	}
	for config, want := range map[string]string{
		`null`: "config: required",
		`{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.router.v1alpha.Router"}`:                            "config.type_url: ",
		strings.Replace(typed(""), "gradient_controller_config", "x", 1):                                                       "config.x: ",
		`{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.adaptive_concurrency.v1alpha.AdaptiveConcurrency"}`: "config.gradient_controller_config: required",
		typed(`, "concurrency_limit_exceeded_status": {"code": 300}`):                                                          "config.concurrency_limit_exceeded_status.code: ",
		typed(`, "keys": {}`): "config.keys.names: must be 1 to 8, are 0",
		typed(`, "keys": {"names": ["a", "A", ""], "max_keys": 0}`):                    "config.keys.max_keys: must be between 1 and 65536, is 0",
		typed(`, "keys": {"names": ["a", "A"]}`):                                       `config.keys.names[1]: "A" is there twice`,
		typed(`, "keys": {"names": [""]}`):                                             "config.keys.names[0]: required",
		gradient(`"sample_aggregate_percentile": {}`):                                  "config.gradient_controller_config.sample_aggregate_percentile: must be more than 0",
		gradient(`"sample_aggregate_percentile": {"value": "NaN"}`):                    "sample_aggregate_percentile: must be between 0 and 100, is NaN",
		gradient(`"concurrency_limit_params": {"max_concurrency_limit": 0}`):           "concurrency_limit_params.max_concurrency_limit: must be between 1 and 1000000, is 0",
		gradient(`"concurrency_limit_params": {"initial_concurrency_limit": 2}`):       "concurrency_limit_params.initial_concurrency_limit: must be between 3 and 1000, is 2",
		gradient(`"concurrency_limit_params": {"concurrency_update_interval": "61s"}`): "concurrency_limit_params.concurrency_update_interval: must be at most 1m0s, is 1m1s",
		gradient(`"min_rtt_calc_params": {"min_concurrency": 1001}`):                   "min_rtt_calc_params.min_concurrency: must be between 1 and 1000, is 1001",
		gradient(`"min_rtt_calc_params": {"interval": "0s"}`):                          "min_rtt_calc_params.fixed_value: required, as interval is 0",
		gradient(`"min_rtt_calc_params": {"interval": "0.5s"}`):                        "min_rtt_calc_params.interval: must be at least 1s, is 500ms",
		gradient(`"min_rtt_calc_params": {"fixed_value": "1s"}`):                       "min_rtt_calc_params.fixed_value: must not be set, as interval is not 0",
		gradient(`"min_rtt_calc_params": {"buffer": {"value": 1001}}`):                 "min_rtt_calc_params.buffer: must be between 0 and 1000, is 1001",
		gradient(`"min_rtt_calc_params": {"jitter": {"value": -1}}`):                   "min_rtt_calc_params.jitter: must be between 0 and 100, is -1",
		gradient(`"min_rtt_calc_params": {"request_count": 0}`):                        "min_rtt_calc_params.request_count: must be between 1 and 10000, is 0",
	} {
		_, err := filtertest.New(t).Load(listener("dubbo", config, oneRoute))
		require.ErrorContains(t, err, want, config)
		require.ErrorContains(t, err, "meta_protocol_filters[0].config", config)
	}
}

func TestTheReadmesConfiguration(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(readme), "```yaml\n")
	require.True(t, ok)
	config, _, _ := strings.Cut(rest, "```")
	var proxy map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(config), &proxy))
	b, err := json.Marshal(proxy)
	require.NoError(t, err)
	filtertest.New(t).MustLoad(string(b))
}
