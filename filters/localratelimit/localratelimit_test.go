package localratelimit_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filters/localratelimit"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

const (
	limited = "local rate limit: the request has been rate limited"
	passed  = "passed"
	message = "type.googleapis.com/aeraki.meta_protocol_proxy.filters.local_ratelimit.v1alpha.LocalRateLimit"
	// routes have what passes answered at once.
	routes = `{"name": "r", "routes": [{"direct_response": {"body": "passed"}}]}`
	// cxxPrefix is the stat_prefix of the C++ proxy's tests, of listener and filter.
	cxxPrefix = "outbound|9090||thrift-sample-server.thrift.svc.cluster.local"
)

// limit is a LocalRateLimit with these fields.
func limit(fields string) string {
	return fmt.Sprintf(`{"@type": %q, "stat_prefix": "l", %s}`, message, fields)
}

func listener(config, routes string) string {
	return fmt.Sprintf(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
	"meta_protocol_filters": [{"name": %q, "config": %s}, {"name": "aeraki.meta_protocol.filters.router"}],
	"route_config": %s}`, localratelimit.Name, config, routes)
}

// cxx is a listener as the C++ proxy's tests write it, but for its protocol.
func cxx(config string) string {
	return fmt.Sprintf(`{"application_protocol": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"},
	"metaProtocolFilters": [{"name": %q, "config": %s}, {"name": "aeraki.meta_protocol.filters.router"}],
	"routeConfig": {"routes": [{"name": "default", "match": {"metadata": [{"name": "method", "exact_match": "sayHello"}]}, "direct_response": {"body": "passed"}}]},
	"statPrefix": %q}`, localratelimit.Name, strings.Replace(config, `"stat_prefix": "l"`, fmt.Sprintf(`"stat_prefix": %q`, cxxPrefix), 1), cxxPrefix)
}

func bucket(most, perFill int, interval string) string {
	return fmt.Sprintf(`{"max_tokens": %d, "tokens_per_fill": %d, "fill_interval": %q}`, most, perFill, interval)
}

func method(name string, tokens string) string {
	return fmt.Sprintf(`{"match": {"metadata": [{"name": "method", "exact_match": %q}]}, "token_bucket": %s}`, name, tokens)
}

// bed is a host with a listener, and a client on each worker.
type bed struct {
	*filtertest.Host
	t       *testing.T
	cfg     *filtertest.Config
	clients []*filtertest.Client
	id      uint64
}

func newBed(t *testing.T, workers int, listener string) *bed {
	mod := filter.NewModule()
	mod.Seed(1)
	b := &bed{Host: filtertest.NewWith(t, mod, workers), t: t}
	b.cfg = b.MustLoad(listener)
	for w := range workers {
		b.clients = append(b.clients, b.DialOn(b.cfg, w))
	}
	return b
}

// asks has the client of a worker send a request, and reports whether it has passed.
func (b *bed) asks(worker int, r dubbotest.Request) bool {
	b.t.Helper()
	b.id++
	r.ID = b.id
	c := b.clients[worker]
	c.Send(r.Bytes())
	answers, _ := dubbotest.Parse(c.Take())
	require.Len(b.t, answers, 1)
	require.Equal(b.t, b.id, answers[0].ID)
	if answers[0].Text() == passed {
		return true
	}
	require.Equal(b.t, limited, answers[0].Text())
	require.EqualValues(b.t, 100, answers[0].Status)
	return false
}

// passes returns how many of n requests pass.
func (b *bed) passes(n int, r dubbotest.Request) (passed int) {
	b.t.Helper()
	for range n {
		if b.asks(0, r) {
			passed++
		}
	}
	return passed
}

// counts wants these counters, and no other to be above 0.
func (b *bed) counts(want map[string]int) {
	b.t.Helper()
	b.countsOf("t.l", want)
}

// countsOf is counts of other prefixes.
func (b *bed) countsOf(prefixes string, want map[string]int) {
	b.t.Helper()
	b.Advance(100 * time.Millisecond)
	for _, name := range []string{"enabled", "ok", "rate_limited", "enforced", "keys_overflow"} {
		require.EqualValues(b.t, want[name], b.cfg.Counter("dubbo."+prefixes+".local_rate_limit."+name), name)
	}
}

func of(kvs ...string) dubbotest.Request {
	r := dubbotest.Request{}
	for i := 0; i < len(kvs); i += 2 {
		r.Attachments = append(r.Attachments, [2]string{kvs[i], kvs[i+1]})
	}
	return r
}

// TestTheConfigurationsOfTheCxxProxy: its five, in which the first condition that matches
// decides by its own bucket, else that of all others.
func TestTheConfigurationsOfTheCxxProxy(t *testing.T) {
	for _, tt := range []struct {
		name, config string
		want         int // of 10 calls of sayHello
		then         time.Duration
	}{
		{"only global token", limit(`"token_bucket": ` + bucket(2, 2, "30s")), 2, 30 * time.Second},
		{"full match condition", limit(`"token_bucket": ` + bucket(5, 5, "5s") + `, "conditions": [` + method("sayHello", bucket(2, 2, "30s")) + `]`), 2, 30 * time.Second},
		{"full no matched condition", limit(`"token_bucket": ` + bucket(3, 3, "30s") + `, "conditions": [` + method("noneExistingMethod", bucket(2, 2, "10s")) + `]`), 3, 30 * time.Second},
		{"no global bucket match condition", limit(`"conditions": [` + method("sayHello", bucket(2, 2, "10s")) + `]`), 2, 10 * time.Second},
		{"no global bucket no matched condition", limit(`"conditions": [` + method("noneExistingMethod", bucket(2, 2, "60s")) + `]`), 10, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, 1, cxx(tt.config))
			require.Equal(t, tt.want, b.passes(10, of()))
			b.Advance(tt.then)
			require.Equal(t, tt.want, b.passes(10, of()), "again")
			b.countsOf(cxxPrefix+"."+cxxPrefix, map[string]int{"enabled": 20, "ok": 2 * tt.want, "rate_limited": 20 - 2*tt.want, "enforced": 20 - 2*tt.want})
		})
	}
}

// TestTheConditionsBucketIsNotTheOthers: Aeraki's own test of limits.
func TestTheConditionsBucketIsNotTheOthers(t *testing.T) {
	b := newBed(t, 1, listener(limit(`"token_bucket": `+bucket(5, 5, "60s")+`, "conditions": [`+method("sayHello", bucket(2, 2, "60s"))+`,`+method("sayHello", bucket(9, 9, "60s"))+`]`), routes))
	require.Equal(t, 2, b.passes(10, of()))
	require.Equal(t, 5, b.passes(10, dubbotest.Request{Method: "other"}))
}

// TestAnHourOfEightWorkers at 5 requests a second, of 14 that come: exactly so many.
func TestAnHourOfEightWorkers(t *testing.T) {
	raced.Skip(t)
	b := newBed(t, 8, listener(limit(`"token_bucket": `+bucket(5, 5, "1s")), routes))
	rng := rand.New(rand.NewPCG(1, 2))
	granted, step := b.passes(9, of()), 70*time.Millisecond
	for at := step; at < time.Hour; at += step {
		b.Advance(step)
		if b.asks(rng.IntN(8), of()) {
			granted++
		}
	}
	b.Advance(time.Hour % step)
	granted += b.passes(9, of())
	require.Equal(t, 5+5*3600, granted)
	b.Advance(time.Hour)
	require.Equal(t, 5, b.passes(20, of()), "idle time is no credit")
}

func TestNothingPassesABucketForNone(t *testing.T) {
	b := newBed(t, 1, listener(limit(`"token_bucket": `+bucket(0, 5, "1s")), routes))
	require.Zero(t, b.passes(3, of()))
	b.Advance(time.Hour)
	require.Zero(t, b.passes(3, of()))
}

// TestOnewaysCount, and end without a word.
func TestOnewaysCount(t *testing.T) {
	b := newBed(t, 1, listener(limit(`"token_bucket": `+bucket(2, 2, "60s")), `{"name": "r", "routes": [{"route": {"cluster": "up"}}]}`))
	up := b.Cluster("up", "10.0.0.3:20880")
	for id := range uint64(5) {
		b.clients[0].Send(dubbotest.Request{ID: id, Oneway: true}.Bytes())
	}
	require.Empty(t, b.clients[0].Take())
	got, _ := dubbotest.Parse(up.Servers()[0].Take())
	require.Len(t, got, 2)
	b.counts(map[string]int{"enabled": 5, "ok": 2, "rate_limited": 3, "enforced": 3})
}

// TestStreamsCount by the frames that open them; those of an open stream do not.
func TestStreamsCount(t *testing.T) {
	l := strings.NewReplacer(`"name": "dubbo"`, `"name": "trpc"`, "codec.dubbo", "codec.trpc").Replace(
		listener(limit(`"token_bucket": `+bucket(1, 1, "60s")), `{"name": "r", "routes": [{"route": {"cluster": "up"}}]}`))
	b := newBed(t, 1, l)
	up := b.Cluster("up", "10.0.0.3:8000")
	c := b.clients[0]
	c.Send(trpctest.Request{ID: 1}.Init(), trpctest.StreamFrame(trpctest.Data, 1, []byte("a")), trpctest.StreamFrame(trpctest.Data, 1, []byte("b")))
	c.Send(trpctest.Request{ID: 2}.Init())
	got, _ := trpctest.Parse(up.Servers()[0].Take(), true)
	require.Len(t, got, 3)
	told, _ := trpctest.Parse(c.Take(), false)
	require.Len(t, told, 1)
	require.EqualValues(t, 2, told[0].FixedID)
	require.Equal(t, limited, told[0].ErrorMsg)
}

func TestShares(t *testing.T) {
	percent := func(n int) string { return fmt.Sprintf(`{"default_value": {"numerator": %d}}`, n) }
	none := `"token_bucket": ` + bucket(0, 1, "1s")
	t.Run("nothing is refused in shadow mode", func(t *testing.T) {
		b := newBed(t, 1, listener(limit(`"filter_enforced": `+percent(0)+`, "token_bucket": `+bucket(3, 1, "60s")), routes))
		require.Equal(t, 10, b.passes(10, of()))
		b.counts(map[string]int{"enabled": 10, "ok": 3, "rate_limited": 7})
	})
	t.Run("a quarter needs tokens", func(t *testing.T) {
		b := newBed(t, 1, listener(limit(`"filter_enabled": `+percent(25)+`, `+none), routes))
		n := 2000 - b.passes(2000, of())
		require.InDelta(t, 500, n, 100)
		b.counts(map[string]int{"enabled": n, "rate_limited": n, "enforced": n})
	})
	t.Run("a quarter is refused", func(t *testing.T) {
		b := newBed(t, 1, listener(limit(`"filter_enforced": `+percent(25)+`, `+none), routes))
		n := 2000 - b.passes(2000, of())
		require.InDelta(t, 500, n, 100)
		b.counts(map[string]int{"enabled": 2000, "rate_limited": 2000, "enforced": n})
	})
}

const byTenant = `"descriptors": [{"names": ["Tenant"], "max_keys": 4, "token_bucket": {"max_tokens": 2, "fill_interval": "60s"},
	"overrides": [{"values": ["gold"], "token_bucket": {"max_tokens": 5, "fill_interval": "60s"}}]}]`

func TestEachValueHasABucket(t *testing.T) {
	b := newBed(t, 1, listener(limit(byTenant), routes))
	for tenant, want := range map[string]int{"a": 2, "b": 2, "gold": 5, "": 2} {
		require.Equal(t, want, b.passes(10, of("tenant", tenant)), "%q", tenant)
	}
	require.Equal(t, 2, b.passes(10, of()), "none is a value too")
	b.counts(map[string]int{"enabled": 50, "ok": 13, "rate_limited": 37, "enforced": 37})
}

// TestWhoComesByForgetsNobody: only buckets that are full again make room for others, and
// those share one if there is no room. Overrides always have their own.
func TestWhoComesByForgetsNobody(t *testing.T) {
	b := newBed(t, 1, listener(limit(byTenant), routes))
	require.Equal(t, 2, b.passes(3, of("tenant", "a")))
	passed := 0
	for i := range 100 {
		passed += b.passes(1, of("tenant", strconv.Itoa(i)))
	}
	require.Equal(t, 3+2, passed, "three that have room, and two more")
	require.Zero(t, b.passes(1, of("tenant", "a")))
	require.Equal(t, 5, b.passes(9, of("tenant", "gold")))
	b.counts(map[string]int{"enabled": 113, "ok": 12, "rate_limited": 101, "enforced": 101, "keys_overflow": 97})
	b.Advance(2 * time.Minute)
	require.Equal(t, 2, b.passes(3, of("tenant", "new")))
	require.Equal(t, 2, b.passes(3, of("tenant", "a")))
}

// TestWhatIsRefusedTakesNothing: neither of who has spent his own, nor of him what others
// have spent.
func TestWhatIsRefusedTakesNothing(t *testing.T) {
	b := newBed(t, 1, listener(limit(`"token_bucket": `+bucket(3, 1, "60s")+`,
		"descriptors": [{"names": ["zone"], "token_bucket": `+bucket(9, 1, "86400s")+`}, {"names": ["tenant"], "token_bucket": `+bucket(2, 1, "86400s")+`}]`), routes))
	require.Equal(t, 2, b.passes(10, of("tenant", "a")))
	require.Equal(t, 1, b.passes(10, of("tenant", "b")), "the third of all")
	b.Advance(time.Minute)
	require.Equal(t, 1, b.passes(10, of("tenant", "b")), "which has kept its second one")
	b.Advance(time.Hour)
	require.Zero(t, b.passes(10, of("tenant", "b")))
	passed := 0
	for _, tenant := range []string{"c", "d", "e"} {
		passed += b.passes(2, of("tenant", tenant))
	}
	require.Equal(t, 3, passed, "what b was refused is there for others")
	b.Advance(time.Hour)
	require.Equal(t, 2, b.passes(10, of("tenant", "f"))+b.passes(10, of("tenant", "g")), "nine of the zone")
}

// TestARouteHasItsOwn: in place of the filter's, and shared by routes where all is alike.
func TestARouteHasItsOwn(t *testing.T) {
	own := func(fields string) string {
		return fmt.Sprintf(`"typed_per_filter_config": {%q: %s}`, localratelimit.Name, limit(fields))
	}
	route := func(method, more string) string {
		return fmt.Sprintf(`{"match": {"metadata": [{"name": "method", "exact_match": %q}]}, "direct_response": {"body": "passed"}%s}`, method, more)
	}
	three := own(`"token_bucket": ` + bucket(3, 3, "60s"))
	table := `{"name": "r", "routes": [` + strings.Join([]string{
		route("a", ", "+three), route("b", ", "+three), route("c", ", "+own(`"token_bucket": `+bucket(4, 3, "60s"))),
		route("d", ""), route("e", fmt.Sprintf(`, "typed_per_filter_config": {%q: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}`, localratelimit.Name)),
	}, ",") + `]}`
	b := newBed(t, 2, listener(limit(`"token_bucket": `+bucket(1, 1, "60s")), table))
	for _, tt := range []struct {
		method string
		want   int
	}{{"a", 3}, {"b", 0}, {"c", 4}, {"d", 1}, {"e", 10}} {
		require.Equal(t, tt.want, b.passes(10, dubbotest.Request{Method: tt.method}), tt.method)
	}
	require.False(t, b.asks(1, dubbotest.Request{Method: "a"}), "nor over another worker")
	b.counts(map[string]int{"enabled": 41, "ok": 8, "rate_limited": 33, "enforced": 33})
}

// update loads another version of the listener, as the host does: the one before goes
// when its clients have left.
func (b *bed) update(listener string) {
	b.t.Helper()
	cfg := b.MustLoad(listener)
	for i, c := range b.clients {
		c.Close()
		b.Settle()
		b.clients[i] = b.DialOn(cfg, i)
	}
	b.cfg.Destroy()
	b.cfg = cfg
}

// TestTokensSurviveUpdates as long as their bucket is defined in the same way.
func TestTokensSurviveUpdates(t *testing.T) {
	say, other := method("sayHello", bucket(3, 1, "60s")), method("other", bucket(3, 1, "60s"))
	before := listener(limit(byTenant+`, "token_bucket": `+bucket(4, 1, "60s")+`, "conditions": [`+say+`]`), routes)
	b := newBed(t, 1, before)
	require.Equal(t, 1, b.passes(1, of("tenant", "a")))
	require.Equal(t, 1, b.passes(1, of("tenant", "gold")))
	require.Equal(t, 1, b.passes(1, dubbotest.Request{Method: "third"}))

	// Conditions change their places, and there is one more.
	b.update(listener(limit(byTenant+`, "token_bucket": `+bucket(4, 1, "60s")+`, "conditions": [`+other+`, `+say+`]`), routes))
	require.Equal(t, 1, b.passes(1, of("tenant", "a")))
	require.Zero(t, b.passes(1, of("tenant", "a")))
	require.Zero(t, b.passes(1, of("tenant", "b")), "three of the condition are spent")
	require.Equal(t, 3, b.passes(4, dubbotest.Request{Method: "other", Attachments: [][2]string{{"tenant", "gold"}}}))
	require.Equal(t, 1, b.passes(3, dubbotest.Request{Method: "third"}), "and two of those without a tenant")

	b.update(listener(limit(`"token_bucket": `+bucket(5, 1, "60s")), routes))
	require.Equal(t, 5, b.passes(9, of()), "another bucket")
	b.update(listener(limit(`"token_bucket": `+bucket(5, 2, "60s")), routes))

	b.update(before)
	require.Zero(t, b.passes(1, of("tenant", "b")), "what has gone and is not full again")
	b.Advance(3 * time.Minute)
	require.Equal(t, 3, b.passes(3, of("tenant", "gold")))
}

// TestTokensOfRoutesSurvive, in a new table as well.
func TestTokensOfRoutesSurvive(t *testing.T) {
	table := func(body string) string {
		return fmt.Sprintf(`{"name": "r", "routes": [{"match": {"metadata": [{"name": "method", "exact_match": "none"}]}, "direct_response": {"body": %q}}, {"direct_response": {"body": "passed"}}],
		"typed_per_filter_config": {%q: %s}}`, body, localratelimit.Name, limit(`"token_bucket": `+bucket(3, 1, "60s")))
	}
	b := newBed(t, 1, listener(limit(`"token_bucket": `+bucket(100, 1, "60s")), table("x")))
	require.Equal(t, 2, b.passes(2, of()))
	b.update(listener(limit(`"token_bucket": `+bucket(100, 1, "60s")), table("y")))
	require.Equal(t, 1, b.passes(5, of()))
}

// TestListenersAreApart, and filters with other prefixes.
func TestListenersAreApart(t *testing.T) {
	one := listener(limit(`"token_bucket": `+bucket(2, 1, "60s")), routes)
	b := newBed(t, 1, one)
	require.Equal(t, 2, b.passes(5, of()))
	for _, l := range []string{strings.Replace(one, `"stat_prefix": "t"`, `"stat_prefix": "u"`, 1), strings.Replace(one, `"stat_prefix": "l"`, `"stat_prefix": "m"`, 1)} {
		b.clients[0] = b.DialOn(b.MustLoad(l), 0)
		require.Equal(t, 2, b.passes(5, of()))
	}
}

// TestWhatCannotBeToldIsRefused: a value that is too long for a rule to look at.
func TestWhatCannotBeToldIsRefused(t *testing.T) {
	b := newBed(t, 1, listener(limit(`"conditions": [{"match": {"metadata": [{"name": "tenant", "contains_match": "x"}]}, "token_bucket": `+bucket(5, 1, "60s")+`}]`), routes))
	require.Zero(t, b.passes(2, of("tenant", strings.Repeat("y", 10_000))))
	require.Equal(t, 5, b.passes(9, of("tenant", "x")))
	require.Equal(t, 9, b.passes(9, of("tenant", "y")))
}

func TestTheReplyIsConfigurable(t *testing.T) {
	b := newBed(t, 1, listener(limit(`"token_bucket": `+bucket(0, 1, "60s")+`, "status": {"status": "OVER_LIMIT", "body": "later", "code": 80}`), routes))
	b.clients[0].Send(dubbotest.Request{ID: 9}.Bytes())
	answers, _ := dubbotest.Parse(b.clients[0].Take())
	require.Equal(t, "later", answers[0].Text())
	require.EqualValues(t, 80, answers[0].Status)
}

// TestARequestAllocatesNothing that it would not without the filter, known values of
// properties provided.
func TestARequestAllocatesNothing(t *testing.T) {
	const up = `{"name": "r", "routes": [{"route": {"cluster": "up"}}]}`
	of := func(listener string) int {
		b := newBed(t, 1, listener)
		servers := b.Cluster("up", "10.0.0.3:20880")
		r := dubbotest.Request{Oneway: true, Attachments: [][2]string{{"tenant", "a"}}}.Bytes()
		roundTrip := func() {
			b.clients[0].Send(r)
			servers.Servers()[0].Take()
		}
		for range 100 {
			roundTrip()
		}
		return int(raced.AllocsPerRun(t, 1000, roundTrip))
	}
	plenty := bucket(1<<31, 1<<31-1, "1s")
	without := of(strings.Replace(listener(limit(`"token_bucket": `+plenty), up), localratelimit.Name, "test.pass", 1))
	require.Equal(t, without, of(listener(limit(`"token_bucket": `+plenty+`, "conditions": [`+method("none", plenty)+`,`+method("sayHello", plenty)+`],
		"descriptors": [{"names": ["tenant", "zone"], "token_bucket": `+plenty+`}], "filter_enabled": {"default_value": {"numerator": 100}}`), up)))
}

// pass lets everything pass.
type pass struct{}

func (pass) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

func init() {
	filter.Register("test.pass", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return pass{}, nil }))
}

// TestWhatAllConditionsMayCost is what one may: each of a thousand could be told by itself,
// and a request for which they would cost more together finds no token, though none of them
// matches it. That is so whatever the shares are, and told once.
func TestWhatAllConditionsMayCost(t *testing.T) {
	var conditions []string
	for i := range 1000 {
		conditions = append(conditions, fmt.Sprintf(`{"match": {"metadata": [{"name": "tenant", "string_match": {"safe_regex": {"regex": ".*(acme|globex|%d).*"}}}]}, "token_bucket": %s}`, i, bucket(1, 1, "60s")))
	}
	all := `{"default_value": {"numerator": 100}}`
	b := newBed(t, 1, listener(limit(`"filter_enabled": `+all+`, "filter_enforced": `+all+`, "conditions": [`+strings.Join(conditions, ",")+`]`), routes))
	require.Equal(t, 3, b.passes(3, of("tenant", "nobody")))
	require.Zero(t, b.passes(1, of("tenant", strings.Repeat("acm", 8192/3))))
	require.Equal(t, 1, b.passes(2, of("tenant", "999")), "the next request may cost as much")
	b.counts(map[string]int{"enabled": 6, "ok": 4, "rate_limited": 2, "enforced": 2})
	require.EqualValues(t, 1, b.cfg.Counter("dubbo.t.request_unroutable"))
}
