package consumer

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
	_ "github.com/meltemi-mesh/meltemi/filters/localratelimit"
	_ "github.com/meltemi-mesh/meltemi/filters/router"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func init() {
	filter.Register("spy", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return spy{}, nil }))
}

// spy keeps what was known of the last message.
type spy struct{}

var facts filter.Facts

func (spy) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }
func (spy) OnEnd(m *filter.Message)                  { facts = m.Facts() }

const limit = `{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.local_ratelimit.v1alpha.LocalRateLimit",
	"stat_prefix": "%s", "token_bucket": {"max_tokens": %d, "tokens_per_fill": %d, "fill_interval": "1s"}}`

func listener(config string) string {
	return `{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": "spy"},
			{"name": "` + Name + `", "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.consumer.v1alpha.Consumers", ` + config + `}},
			{"name": "aeraki.meta_protocol.filters.local_ratelimit", "config": ` + fmt.Sprintf(limit, "all", 3, 3) + `},
			{"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"routes": [
			{"match": {"metadata": [{"name": "consumer", "string_match": {"exact": "partner"}}]}, "route": {"cluster": "partners"}},
			{"route": {"cluster": "rest"}}]}}`
}

const three = `"consumers": [
	{"name": "shop", "principals": ["spiffe://shop", "CN=shop"]},
	{"name": "partner", "keys": ["open sesame", "older"]},
	{"name": "batch", "key_sha256": ["%x"]%s}]`

func consumers() string { return fmt.Sprintf(three, sha256.Sum256([]byte("night")), "") }

// env is a listener with the filter and servers that say which cluster they are.
type env struct {
	*filtertest.Host
	cfg *filtertest.Config
	c   *filtertest.Client
	got string // by the server
}

func start(t *testing.T, config string) *env {
	t.Helper()
	e := &env{Host: filtertest.New(t)}
	for _, name := range []string{"partners", "rest"} {
		e.Cluster(name, "h1").Serve = func(s *filtertest.Server, b []byte) int {
			requests, rest := dubbotest.Parse(b)
			e.got = string(b)
			for _, r := range requests {
				s.Send(dubbotest.Response(r.ID, name))
			}
			return len(b) - len(rest)
		}
	}
	e.cfg = e.MustLoad(listener(config))
	e.c = e.Dial(e.cfg)
	return e
}

func (e *env) ask(attachments ...[2]string) string {
	e.Advance(time.Second) // the limit is nobody's concern here
	return e.askNow(attachments...)
}

func (e *env) askNow(attachments ...[2]string) string {
	e.c.Send(dubbotest.Request{ID: 1, Attachments: attachments}.Bytes())
	answers, _ := dubbotest.Parse(e.c.Take())
	return answers[0].Text()
}

func TestWhoCalls(t *testing.T) {
	e := start(t, `"key_names": ["x-key", "other"], `+consumers())
	for _, tt := range []struct {
		tls  *host.TLS
		with [][2]string
		want string
	}{
		{nil, nil, ""},
		{nil, [][2]string{{"x-key", "open sesame"}}, "partner"},
		{nil, [][2]string{{"X-Key", "older"}}, "partner"},
		{nil, [][2]string{{"other", "night"}}, "batch"},
		{nil, [][2]string{{"other", "night"}, {"x-key", "nobody's"}}, ""},
		{nil, [][2]string{{"x-key", ""}}, ""},
		{nil, [][2]string{{"x-key", strings.Repeat("x", maxSecret+1)}}, ""},
		{nil, [][2]string{{"consumer", "partner"}}, ""},
		{&host.TLS{}, nil, ""},
		{&host.TLS{Mutual: true, URISANs: []string{"spiffe://shop"}, DNSSANs: []string{"other"}}, nil, "shop"},
		{&host.TLS{Mutual: true, URISANs: []string{"spiffe://other", "spiffe://shop"}}, nil, ""},
		{&host.TLS{Mutual: true, Subject: "CN=shop"}, nil, "shop"},
		{&host.TLS{Mutual: true, Subject: "CN=shop"}, [][2]string{{"x-key", "older"}}, "partner"},
		{&host.TLS{Mutual: true, Subject: "CN=shop"}, [][2]string{{"x-key", "nobody's"}}, ""},
	} {
		e.c = e.Dial(e.cfg)
		if tt.tls != nil {
			e.c = e.DialTLS(e.cfg, *tt.tls)
		}
		want := map[string]string{"": "unknown consumer", "partner": "partners"}[tt.want]
		if want == "" {
			want = "rest"
		}
		require.Equal(t, want, e.ask(tt.with...), "%v %v", tt.tls, tt.with)
		require.Equal(t, tt.want, facts.Consumer)
		if tt.want == "" {
			require.Equal(t, filter.Unauthorized, facts.Flags)
		}
	}
	e.Advance(50 * time.Millisecond)
	require.EqualValues(t, 6, e.cfg.Counter("dubbo.t.consumer.identified"))
	require.EqualValues(t, 8, e.cfg.Counter("dubbo.t.consumer.unknown"))
}

// TestStrangersMayPass, and are nobody for what comes behind.
func TestStrangersMayPass(t *testing.T) {
	e := start(t, `"key_names": ["x-key"], "unknown": "PASS", `+consumers())
	require.Equal(t, "rest", e.ask([2]string{"consumer", "partner"}))
	require.Empty(t, facts.Consumer)
	require.Equal(t, "partners", e.ask([2]string{"x-key", "older"}))
	require.Contains(t, e.got, "older", "the server may want to see the key")
}

func TestKeysAreHidden(t *testing.T) {
	e := start(t, `"key_names": ["x-key", "x-old-key"], "hide_keys": true, "reply": {"status": "BAD_REQUEST", "body": "who?"}, `+consumers())
	require.Equal(t, "partners", e.ask([2]string{"x-key", "older"}, [2]string{"X-KEY", "open sesame"}, [2]string{"x-old-key", "sesame, too"}, [2]string{"y", "z"}))
	require.NotContains(t, e.got, "older")
	require.NotContains(t, e.got, "sesame")
	require.Contains(t, e.got, "y")
	require.Equal(t, "who?", e.ask())
}

// TestLimitsOfConsumers: one has his own, one has none, others have the common one.
func TestLimitsOfConsumers(t *testing.T) {
	own := `, "typed_per_filter_config": {"aeraki.meta_protocol.filters.local_ratelimit": `
	config := fmt.Sprintf(three, sha256.Sum256([]byte("night")), own+`{"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}`)
	config = strings.Replace(config, `"older"]`, `"older"]`+own+fmt.Sprintf(limit, "partner", 5, 5)+`}`, 1)
	e := start(t, `"key_names": ["k"], "unknown": "PASS", `+config)
	served := func(key string) (n int) {
		for range 10 {
			if answer := e.askNow([2]string{"k", key}); answer == "rest" || answer == "partners" {
				n++
			}
		}
		return n
	}
	require.Equal(t, 5, served("older"))
	require.Equal(t, 10, served("night"))
	require.Equal(t, 3, served("nobody's"))
}

func TestImpossibleConsumersAreRefused(t *testing.T) {
	long := strings.Repeat("x", maxSecret+1)
	for config, want := range map[string]string{
		`"unknown": 7`: "unknown: unknown value 7\nconsumers: required",
		`"key_names": ["", "a","b","c","d","e","f","g","h"], "consumers": [{"name": "a", "keys": ["k"]}]`: "key_names: at most 8, has 9\nkey_names[0]: must have 1 to 256 bytes, has 0",
		`"consumers": [{}]`: "consumers[0].name: must have 1 to 256 bytes, has 0\nconsumers[0]: has neither principals nor keys",
		`"consumers": [{"name": "a", "principals": ["p"]}, {"name": "a", "principals": ["p", ""]}]`: "consumers[1].name: \"a\" occurs twice\nconsumers[1].principals[0]: consumer \"a\" has it, too\nconsumers[1].principals[1]: must have 1 to 4096 bytes, has 0",
		`"consumers": [{"name": "a", "keys": ["k"]}]`:                                               "key_names: required: consumers[0] has keys",
		`"key_names": ["k"], "consumers": [{"name": "a", "keys": ["k", "` + long + `"]}, {"name": "b", "key_sha256": ["` + fmt.Sprintf("%x", sha256.Sum256([]byte("k"))) + `", "12"]}]`: "consumers[0].keys[1]: must have 1 to 4096 bytes, has 4097\nconsumers[1].key_sha256[0]: consumer \"a\" has it, too\nconsumers[1].key_sha256[1]: must be 64 hexadecimal digits",
		`"consumers": [{"name": "a", "principals": ["p"], "typed_per_filter_config": {"nope": {"@type": "type.googleapis.com/google.protobuf.Empty"}}}]`:                                `consumers[0].typed_per_filter_config[nope]: unknown filter "nope"`,
		`"reply": {"status": 99}, "consumers": [{"name": "a", "principals": ["p"]}]`:                                                                                                    "reply.status: unknown value 99",
		`"key_names": ["interface"], "hide_keys": true, "consumers": [{"name": "a", "keys": ["p"]}]`:                                                                                    "hide_keys: key_names[0]: ",
	} {
		var faults []string
		for _, e := range filter.Check([]byte(listener(config))) {
			faults = append(faults, strings.TrimPrefix(e.Path, "meta_protocol_filters[1].config.")+": "+e.Reason)
		}
		require.Contains(t, strings.Join(faults, "\n"), want, config)
	}
	many := strings.Repeat(`{"name": "a"},`, maxConsumers) + `{"name": "b"}`
	errs := filter.Check([]byte(listener(`"consumers": [` + many + `]`)))
	require.Len(t, errs, 1)
	require.ErrorContains(t, errs[0], "consumers: at most 10000, has 10001")
}

func TestFindingConsumersAllocatesNothing(t *testing.T) {
	allocations := map[string]float64{}
	for name, property := range map[string]string{"nothing": "no", "key": "x-key"} {
		e := start(t, `"key_names": ["`+property+`"], "unknown": "PASS", `+consumers())
		e.cfg = e.MustLoad(strings.Replace(listener(`"key_names": ["`+property+`"], "unknown": "PASS", `+consumers()), `"max_tokens": 3`, `"max_tokens": 1000000`, 1))
		e.c = e.Dial(e.cfg)
		request := dubbotest.Request{ID: 1, Attachments: [][2]string{{"x-key", "night"}}}.Bytes()
		require.Equal(t, "rest", e.ask([2]string{"x-key", "night"}))
		require.Equal(t, map[string]string{"key": "batch"}[name], facts.Consumer)
		allocations[name] = raced.AllocsPerRun(t, 2000, func() { e.c.Send(request); e.c.Take() })
	}
	require.InDelta(t, allocations["nothing"], allocations["key"], 0)
}

// TestKeysThatCannotBeHidden refuse the request: the secret would go on to the server.
func TestKeysThatCannotBeHidden(t *testing.T) {
	h := filtertest.New(t)
	up := h.Cluster("partners", "h1")
	cfg := h.MustLoad(strings.Replace(listener(`"key_names": ["x-key"], "hide_keys": true, `+consumers()), `"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}`,
		`"name": "thrift", "codec": {"name": "aeraki.meta_protocol.codec.thrift"}`, 1))
	c := h.Dial(cfg)
	call := func(part string) []byte {
		// THeader, its headers, and a part that may be of an unknown kind.
		b := []byte("\x00\x00\x00\x00\x0f\xff\x00\x00\x00\x00\x00\x07\x00\x06\x00\x00\x01\x01\x05x-key\x0bopen sesame" + part + "\x00\x80\x01\x00\x01\x00\x00\x00\x01m\x00\x00\x00\x07\x00")
		b[3] = byte(len(b) - 4)
		return b
	}
	c.Send(call("\x77"))
	require.Contains(t, string(c.Take()), "the message cannot be changed: its header has parts of an unknown kind")
	require.Empty(t, up.Servers()[0].Take())
	c.Send(call("\x00"))
	got := string(up.Servers()[0].Take())
	require.NotEmpty(t, got)
	require.NotContains(t, got, "sesame")
	h.Advance(time.Second)
	require.EqualValues(t, 1, cfg.Counter("thrift.t.mutation_refused"))
	require.Zero(t, cfg.Counter("thrift.t.mutation_skipped"))
}
