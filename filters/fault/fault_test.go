package fault

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
	"github.com/meltemi-mesh/meltemi/internal/raced"
	faultv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/fault/v1alpha"
)

const typeURL = "type.googleapis.com/aeraki.meta_protocol_proxy.filters.fault.v1alpha.Fault"

// seer is behind the filter, and tells how messages have ended.
type seer struct{ flags []string }

var seen *seer

func (s *seer) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }
func (s *seer) OnEnd(m *filter.Message)                  { s.flags = append(s.flags, m.Facts().Flags.String()) }

func init() {
	filter.Register("seer", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return seen, nil }))
}

func typed(config string) string { return `{"@type": "` + typeURL + `", ` + config + `}` }

func listener(protocol, config, route, more string) string {
	return `{"stat_prefix": "t", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.` + protocol + `"}},
		"meta_protocol_filters": [{"name": "seer"}, {"name": "` + Name + `", "config": ` + typed(config) + `}, {"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"routes": [{"route": {"cluster": "up"` + route + `}}]}` + more + `}`
}

// env is a client of a Dubbo listener with the filter, and its servers.
type env struct {
	*filtertest.Host
	t   *testing.T
	up  *filtertest.Cluster
	cfg *filtertest.Config
	c   *filtertest.Client
	got int // requests that servers have got
}

func start(t *testing.T, config, route, more string) *env {
	t.Helper()
	seen = new(seer)
	mod := filter.NewModule()
	mod.Seed(1)
	h := filtertest.NewWith(t, mod, 2)
	e := &env{Host: h, t: t, up: h.Cluster("up", "h1")}
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		frames, rest := dubbotest.Parse(b)
		for _, f := range frames {
			if e.got++; f.Flags&0x40 != 0 {
				s.Send(dubbotest.Response(f.ID, "served"))
			}
		}
		return len(b) - len(rest)
	}
	e.cfg = h.MustLoad(listener("dubbo", config, route, more))
	e.c = h.Dial(e.cfg)
	return e
}

// ask sends a request with attachments.
func (e *env) ask(c *filtertest.Client, attachments ...[2]string) {
	c.Send(dubbotest.Request{ID: 1, Attachments: attachments}.Bytes())
}

// answer is what the client has got: status and text.
func (e *env) answer(c *filtertest.Client) string {
	e.t.Helper()
	frames, rest := dubbotest.Parse(c.Take())
	require.Empty(e.t, rest)
	if len(frames) == 0 {
		return ""
	}
	require.Len(e.t, frames, 1)
	return fmt.Sprintf("%d %s", frames[0].Status, frames[0].Text())
}

// counts holds the filter's metrics against what they should be.
func (e *env) counts(delays, aborts, overflow, active int64) {
	e.t.Helper()
	e.Advance(time.Second)
	for name, want := range map[string]int64{
		"delays_injected": delays, "aborts_injected": aborts, "faults_overflow": overflow, "active_faults": active,
	} {
		require.Equal(e.t, want, e.cfg.Counter("p.t.fault."+name), name)
	}
}

const always = `"percentage": {"numerator": 100}`

func TestADelay(t *testing.T) {
	e := start(t, `"delay": {"fixed_delay": "2s", `+always+`}`, "", "")
	e.ask(e.c)
	e.Advance(1900 * time.Millisecond)
	require.Empty(t, e.up.Servers())
	require.Empty(t, e.answer(e.c))
	require.EqualValues(t, 1, e.cfg.Counter("p.t.fault.active_faults"))
	e.Advance(200 * time.Millisecond)
	require.Equal(t, "20 served", e.answer(e.c))
	require.Equal(t, []string{"DI"}, seen.flags)
	e.counts(1, 0, 0, 0)
}

func TestAnAbortBehindADelay(t *testing.T) {
	e := start(t, `"delay": {"fixed_delay": "2s", `+always+`}, "abort": {"reply": {"status": "OVER_LIMIT", "body": "chaos", "code": 99}, `+always+`}`, "", "")
	e.ask(e.c)
	e.Advance(1900 * time.Millisecond)
	require.Empty(t, e.answer(e.c))
	e.Advance(200 * time.Millisecond)
	require.Equal(t, "99 chaos", e.answer(e.c))
	require.Equal(t, []string{"DI,FI"}, seen.flags)
	require.Empty(t, e.up.Servers())
	e.counts(1, 1, 0, 0)
}

// TestAClientThatLeaves ends its delay.
func TestAClientThatLeaves(t *testing.T) {
	e := start(t, `"delay": {"fixed_delay": "2s", `+always+`}, "max_active_faults": 1`, "", "")
	other := e.Dial(e.cfg)
	e.ask(e.c)
	e.counts(1, 0, 0, 1)
	e.c.Close()
	e.counts(1, 0, 0, 0)
	e.Advance(time.Minute)
	require.Empty(t, e.up.Servers())
	e.ask(other)
	e.Advance(2100 * time.Millisecond)
	require.Equal(t, "20 served", e.answer(other), "what the first one had is free")
	e.counts(2, 0, 0, 0)
}

// TestTheMostFaults are over all workers, and of those that wait: an abort takes no time.
func TestTheMostFaults(t *testing.T) {
	e := start(t, `"delay": {"header_delay": {"max_delay": "10s"}, `+always+`}, "abort": {"reply": {}, "percentage": {"numerator": 0}}, "max_active_faults": 2`, "", "")
	wait := [2]string{"x-envoy-fault-delay-request", "5000"}
	one, two, three := e.DialOn(e.cfg, 0), e.DialOn(e.cfg, 1), e.DialOn(e.cfg, 1)
	e.ask(one, wait)
	e.ask(two, wait)
	e.ask(three, wait)
	require.Equal(t, "20 served", e.answer(three))
	e.ask(three)
	require.Equal(t, "20 served", e.answer(three))
	e.counts(2, 0, 1, 2)
	e.Advance(5 * time.Second)
	require.Equal(t, "20 served", e.answer(one))
	require.Equal(t, "20 served", e.answer(two))
	e.counts(2, 0, 1, 0)

	none := start(t, `"abort": {"reply": {}, `+always+`}, "max_active_faults": 0`, "", "")
	none.ask(none.c)
	require.Equal(t, "20 served", none.answer(none.c))
	none.counts(0, 0, 1, 0)
}

// TestFaultsThatRequestsAskFor are bounded by the configuration.
func TestFaultsThatRequestsAskFor(t *testing.T) {
	const delay, abort = "x-envoy-fault-delay-request", "x-envoy-fault-abort-request"
	e := start(t, `"delay": {"header_delay": {"max_delay": "3s"}, `+always+`}, "abort": {"header_abort": {"reply": {"body": "as asked"}}, `+always+`}`, "", "")
	for _, tt := range []struct {
		attachments [][2]string
		wait        time.Duration
		want        string
	}{
		{nil, 0, "20 served"},
		{[][2]string{{delay, "1500"}}, 1500 * time.Millisecond, "20 served"},
		{[][2]string{{"X-Envoy-Fault-Delay-Request", "1500"}}, 1500 * time.Millisecond, "20 served"},
		{[][2]string{{delay, "4294967295"}}, 3 * time.Second, "20 served"},
		{[][2]string{{delay, "4294967296"}}, 0, "20 served"},
		{[][2]string{{delay, "0"}}, 0, "20 served"},
		{[][2]string{{delay, "-1"}}, 0, "20 served"},
		{[][2]string{{delay, "1.5"}}, 0, "20 served"},
		{[][2]string{{delay, ""}}, 0, "20 served"},
		{[][2]string{{delay, "1500"}, {delay + "-percentage", "0"}}, 0, "20 served"},
		{[][2]string{{delay, "1500"}, {delay + "-percentage", "150"}}, 1500 * time.Millisecond, "20 served"},
		{[][2]string{{delay, "1500"}, {delay + "-percentage", "few"}}, 1500 * time.Millisecond, "20 served"},
		{[][2]string{{abort, "31"}}, 0, "31 as asked"},
		{[][2]string{{abort, "31"}, {delay, "1500"}}, 1500 * time.Millisecond, "31 as asked"},
		{[][2]string{{abort, "20"}}, 0, "20 served"},
		{[][2]string{{abort, "256"}}, 0, "20 served"},
		{[][2]string{{abort, "0"}}, 0, "20 served"},
		{[][2]string{{abort, "31"}, {abort + "-percentage", "0"}}, 0, "20 served"},
	} {
		e.ask(e.c, tt.attachments...)
		if tt.wait > 0 {
			e.Advance(tt.wait - 100*time.Millisecond)
			require.Empty(t, e.answer(e.c), tt.attachments)
			e.Advance(200 * time.Millisecond)
		}
		require.Equal(t, tt.want, e.answer(e.c), tt.attachments)
	}
}

// TestShares are drawn for each fault by itself.
func TestShares(t *testing.T) {
	e := start(t, `"delay": {"fixed_delay": "1s", "percentage": {"numerator": 300000, "denominator": "MILLION"}}, "abort": {"reply": {"code": 99}, "percentage": {"numerator": 40}}`, "", "")
	const n = 4000
	for range n {
		e.ask(e.c)
		e.Advance(1100 * time.Millisecond)
		require.NotEmpty(t, e.answer(e.c))
	}
	got := map[string]float64{}
	for _, f := range seen.flags {
		got[f]++
	}
	for flags, share := range map[string]float64{"-": .7 * .6, "DI": .3 * .6, "FI": .7 * .4, "DI,FI": .3 * .4} {
		require.InDelta(t, share, got[flags]/n, 0.03, flags)
	}
}

// TestTheDeadlineCounts while a request is delayed: it is not sent when it is over.
func TestTheDeadlineCounts(t *testing.T) {
	e := start(t, `"delay": {"fixed_delay": "2s", `+always+`}`, `, "timeout": "1s"`, "")
	e.ask(e.c)
	e.Advance(2100 * time.Millisecond)
	require.Equal(t, "31 the deadline of the request has passed before it could be sent", e.answer(e.c))
	require.Zero(t, e.got)
	require.Equal(t, []string{"UT,DI"}, seen.flags)
	e.counts(1, 0, 0, 0)

	e = start(t, `"delay": {"fixed_delay": "60s", `+always+`}`, "", "")
	e.ask(e.c)
	e.Advance(14900 * time.Millisecond)
	require.Empty(t, e.answer(e.c))
	e.Advance(200 * time.Millisecond)
	require.Equal(t, "31 the deadline of the request has passed before it could be sent", e.answer(e.c), "the listener's, and no delay is longer")
	require.Zero(t, e.got)
	e.counts(1, 0, 0, 0)
}

// TestOneways are delayed too, and dropped where others are answered.
func TestOneways(t *testing.T) {
	e := start(t, `"delay": {"fixed_delay": "2s", `+always+`}, "abort": {"header_abort": {}, `+always+`}`, "", "")
	e.c.Send(dubbotest.Request{ID: 1, Oneway: true}.Bytes())
	e.Advance(1900 * time.Millisecond)
	require.Zero(t, e.got)
	e.Advance(200 * time.Millisecond)
	require.Equal(t, 1, e.got)
	e.c.Send(dubbotest.Request{ID: 1, Oneway: true, Attachments: [][2]string{{"x-envoy-fault-abort-request", "31"}}}.Bytes())
	e.Advance(3 * time.Second)
	require.Equal(t, 1, e.got)
	require.Empty(t, e.c.Take())
	e.counts(2, 1, 0, 0)
}

// TestStreams open late, or not at all.
func TestStreams(t *testing.T) {
	for config, aborts := range map[string]bool{
		`"delay": {"fixed_delay": "2s", ` + always + `}`: false, `"abort": {"reply": {"code": 141}, ` + always + `}`: true,
	} {
		seen = new(seer)
		h := filtertest.New(t)
		up := h.Cluster("up", "h1")
		c := h.Dial(h.MustLoad(listener("trpc", config, "", "")))
		c.Send(trpctest.Request{ID: 100}.Init())
		h.Advance(1900 * time.Millisecond)
		require.Empty(t, up.Servers())
		if aborts {
			frames, rest := trpctest.Parse(c.Take(), false)
			require.Empty(t, rest)
			require.Len(t, frames, 1)
			require.EqualValues(t, 141, frames[0].Ret)
			continue
		}
		h.Advance(200 * time.Millisecond)
		require.Len(t, up.Servers(), 1)
		frames, _ := trpctest.Parse(up.Servers()[0].Take(), true)
		require.Len(t, frames, 1)
		require.True(t, frames[0].Stream)
	}
}

// TestRoutesHaveFaultsOfTheirOwn, and matches leave requests alone.
func TestRoutesHaveFaultsOfTheirOwn(t *testing.T) {
	seen = new(seer)
	h := filtertest.New(t)
	e := &env{Host: h, t: t, up: h.Cluster("up", "h1")}
	e.cfg = h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": "` + Name + `", "config": ` + typed(`"abort": {"reply": {"body": "all"}, `+always+`}`) + `,
			"match": {"metadata": [{"name": "tenant", "present_match": true}]}}, {"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"routes": [
			{"match": {"metadata": [{"name": "tenant", "string_match": {"exact": "acme"}}]}, "route": {"cluster": "up"},
			 "typed_per_filter_config": {"` + Name + `": ` + typed(`"abort": {"reply": {"body": "of the route"}, `+always+`}`) + `}},
			{"route": {"cluster": "up"}}]}}`)
	e.up.Serve = func(s *filtertest.Server, b []byte) int {
		frames, rest := dubbotest.Parse(b)
		for _, f := range frames {
			s.Send(dubbotest.Response(f.ID, "served"))
		}
		return len(b) - len(rest)
	}
	e.c = h.Dial(e.cfg)
	for tenant, want := range map[string]string{"acme": "80 of the route", "umbrella": "80 all"} {
		e.ask(e.c, [2]string{"tenant", tenant})
		require.Equal(t, want, e.answer(e.c))
	}
	e.ask(e.c)
	require.Equal(t, "20 served", e.answer(e.c))
	_, err := h.LoadUnpublished(`{"stat_prefix": "t", "protocol": {"name": "p", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": "` + Name + `", "config": ` + typed(`"abort": {"reply": {}, `+always+`}`) + `}, {"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"routes": [{"route": {"cluster": "up"}, "typed_per_filter_config": {"` + Name + `": ` + typed(`"abort": {"reply": {"code": 20}, `+always+`}`) + `}}]}}`)
	require.ErrorContains(t, err, "abort.reply.code: must be between 1 and 255, and not 20, which is a success, is 20")
}

// TestAbortsInEachProtocol say their code.
func TestAbortsInEachProtocol(t *testing.T) {
	for protocol, request := range map[string][]byte{
		"dubbo":  dubbotest.Request{ID: 7}.Bytes(),
		"trpc":   trpctest.Request{ID: 7}.Bytes(),
		"brpc":   brpctest.Request{ID: 7}.Bytes(),
		"thrift": []byte("\x00\x00\x00\x10\x80\x01\x00\x01\x00\x00\x00\x03add\x00\x00\x00\x07\x00"),
	} {
		for reply, want := range map[string]map[string]int32{
			`{}`:                       {"dubbo": 80, "trpc": 31, "brpc": 2001, "thrift": 6},
			`{"code": 7}`:              {"dubbo": 7, "trpc": 7, "brpc": 7, "thrift": 7},
			`{"status": "OVER_LIMIT"}`: {"dubbo": 100, "trpc": 23, "brpc": 2004, "thrift": 6},
		} {
			seen = new(seer)
			h := filtertest.New(t)
			c := h.Dial(h.MustLoad(listener(protocol, `"abort": {"reply": `+reply+`, `+always+`}`, "", "")))
			c.Send(request)
			newCodec, _ := codecs.Lookup("aeraki.meta_protocol.codec." + protocol)
			codec, err := newCodec(nil, codecs.Limits{})
			require.NoError(t, err)
			var m codecs.Metadata
			_, err = codec.NewDecoder(codecs.ServerToClient).Decode(c.Take(), &m)
			require.NoError(t, err)
			require.NotEqual(t, codecs.StatusOK, m.Status)
			require.Equal(t, want[protocol], m.Code, protocol)
			require.Equal(t, []string{"FI"}, seen.flags)
		}
	}
}

func TestImpossibleFaultsAreRefused(t *testing.T) {
	codec, err := dubbo.New(nil, codecs.Limits{})
	require.NoError(t, err)
	one, none := &filter.Env{Codecs: []codecs.Codec{codec}}, &filter.Env{Codecs: []codecs.Codec{struct{ codecs.Codec }{}}}
	for config, want := range map[string]string{
		`{}`:            "delay: required, or abort",
		`{"delay": {}}`: "delay.fixed_delay: required, or header_delay\ndelay.percentage: required",
		`{"delay": {"fixed_delay": "0.0001s", "percentage": {}}}`:                                                 "delay.fixed_delay: must be at least 1ms, is 100µs",
		`{"delay": {"header_delay": {}, "percentage": {}}}`:                                                       "delay.header_delay.max_delay: required",
		`{"delay": {"fixed_delay": "1s", "percentage": {"numerator": 101}}}`:                                      "delay.percentage.numerator: must be at most 100, is 101",
		`{"abort": {"percentage": {"denominator": 9}}}`:                                                           "abort.reply: required, or header_abort\nabort.percentage.denominator: unknown value 9",
		`{"abort": {"reply": {"status": 99, "code": 256}, "percentage": {}}}`:                                     "abort.reply.status: unknown value 99\nabort.reply.code: must be between 1 and 255, and not 20, which is a success, is 256",
		`{"abort": {"header_abort": {"reply": {"code": 1}}, "percentage": {}}}`:                                   "abort.header_abort.reply.code: is for the requests to say",
		`{"abort": {"header_abort": {"reply": {"body": "` + strings.Repeat("x", 4097) + `"}}, "percentage": {}}}`: "abort.header_abort.reply.body: must have at most 4096 bytes, has 4097",
	} {
		_, err := parse(packed(t, config), one)
		require.EqualError(t, err, want, config)
		fields.Each(err, func(e *fields.Error) { require.NotEmpty(t, e.Path) })
	}
	_, err = parse(packed(t, `{"abort": {"header_abort": {}, "percentage": {}}}`), none)
	require.EqualError(t, err, "abort.header_abort: a codec of the listener has no codes that requests could name")
	_, err = parse(nil, one)
	require.EqualError(t, err, "required")
	_, err = parse(new(anypb.Any), one)
	require.ErrorContains(t, err, "type_url: ")
}

func packed(t *testing.T, config string) *anypb.Any {
	t.Helper()
	m := new(faultv1alpha.Fault)
	require.NoError(t, protojson.Unmarshal([]byte(config), m))
	a, err := anypb.New(m)
	require.NoError(t, err)
	return a
}

// TestRequestsWithoutAFaultAllocateNothing, whichever kinds are configured.
func TestRequestsWithoutAFaultAllocateNothing(t *testing.T) {
	md := new(codecs.Metadata)
	md.Put([]byte("x-envoy-fault-delay-request"), []byte("100"))
	s := &settings{
		delay: delay{share: fields.Fraction{Of: 100}, length: time.Second},
		abort: abort{share: fields.Fraction{Share: 100, Of: 100}, byRequest: true},
	}
	codec, err := dubbo.New(nil, codecs.Limits{})
	require.NoError(t, err)
	require.Zero(t, raced.AllocsPerRun(t, 100, func() {
		s.delay.of(md)
		s.abort.of(md, codec)
	}))
}
