package ratelimitquota

import (
	"fmt"
	"strings"
	"testing"
	"time"

	quotav3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

const patience = 5 * time.Second

// listener is a configuration with a RateLimitQuota and routes.
func listener(quota, routes string) string {
	return `{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": "test.facts"}, {"name": "` + Name + `", "config": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.rate_limit_quota.v1alpha.RateLimitQuota", ` + quota + `}},
			{"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"name": "r", "routes": [` + routes + `]}}`
}

// direct is a route that answers itself.
const direct = `{"direct_response": {"body": "passed"}}`

const service = `"domain": "d", "rlqs_server": {"envoy_grpc": {"cluster_name": "quotas"}}`

// buckets is a configuration with buckets of tenants, and fields of theirs.
func buckets(fields string) string {
	return service + `, "buckets": [` + bucketOf(fields) + `]`
}

func bucketOf(fields string) string {
	return `{"bucket_id_builder": {"tenant": {"property": "tenant"}}, "reporting_interval": "3600s"` + fields + `}`
}

func fallback(n int) string {
	return fmt.Sprintf(`, "no_assignment_behavior": {"fallback_rate_limit": {"requests_per_time_unit": {"requests_per_time_unit": %d, "time_unit": "HOUR"}}}`, n)
}

// filterBed is a host with a listener and a quota service.
type filterBed struct {
	*filtertest.Host
	servers
	t       *testing.T
	cfg     *filtertest.Config
	server  *server
	workers int
	clients []*filtertest.Client // one a worker
}

func newFilterBed(t *testing.T, config string, workers int) *filterBed {
	mod := filter.NewModule()
	mod.Seed(1)
	b := &filterBed{Host: filtertest.NewWith(t, mod, workers), t: t, workers: workers}
	t.Cleanup(func() { b.replace(nil) })
	b.DialCluster = b.dial
	b.server = b.replace(newServer())
	b.update(config)
	return b
}

// update loads a configuration, and its clients replace those before.
func (b *filterBed) update(config string) {
	b.cfg = b.MustLoad(config)
	b.clients = nil
	for w := range b.workers {
		b.clients = append(b.clients, b.DialOn(b.cfg, w))
	}
}

// passes is how many of n requests pass, over all workers.
func (b *filterBed) passes(n int, attachments ...[2]string) (passed int) {
	b.t.Helper()
	for i := range n {
		c := b.clients[i%len(b.clients)]
		c.Send(dubbotest.Request{ID: uint64(i), Attachments: attachments}.Bytes())
		answers, _ := dubbotest.Parse(c.Take())
		require.Len(b.t, answers, 1)
		switch answers[0].Text() {
		case "passed":
			passed++
		case "rate limit exceeded":
		default:
			b.t.Fatalf("answered %q", answers[0].Text())
		}
	}
	return passed
}

func of(tenant string) [2]string { return [2]string{"tenant", tenant} }

func (b *filterBed) counts(want map[string]int64) {
	b.t.Helper()
	b.Advance(time.Second)
	for _, name := range []string{"allowed", "denied", "shadow_denied", "overflow", "assignment", "assignment_refused"} {
		require.Equal(b.t, want[name], b.cfg.Counter("dubbo.t.rate_limit_quota."+name), name)
	}
}

// stream is the next one.
func (b *filterBed) stream() *stream {
	b.t.Helper()
	select {
	case s := <-b.server.streams:
		return s
	case <-time.After(patience):
		b.t.Fatal("no stream")
		return nil
	}
}

// TestFiveAnHour are five, over two workers, by the service's word.
func TestFiveAnHour(t *testing.T) {
	b := newFilterBed(t, listener(buckets(fallback(2)), direct), 2)
	s := b.stream()
	require.Equal(t, 2, b.passes(10, of("acme")), "the service has said nothing yet")
	require.Equal(t, filter.RateLimited, flags)
	require.Equal(t, 2, b.passes(10, of("other")), "another bucket")
	require.Equal(t, 2, b.passes(10), "that of those without a tenant")
	seen := map[string]bool{}
	for len(seen) < 3 {
		for tenant := range usageOf(t, next(t, s)) {
			seen[tenant] = true
		}
	}
	require.Equal(t, map[string]bool{"acme": true, "other": true, "": true}, seen)

	b.assign(s, "acme", perHour(5))
	require.Equal(t, 5, b.passes(20, of("acme")))
	b.Advance(12 * time.Minute)
	require.Equal(t, 1, b.passes(20, of("acme")))
	require.Equal(t, 0, b.passes(20, of("other")))
	b.counts(map[string]int64{"allowed": 12, "denied": 78, "assignment": 1})
}

// assign has the service say something, and waits until it is heard: that is when the
// bucket is reported, which is not due.
func (b *filterBed) assign(s *stream, tenant string, r *typev3.RateLimitStrategy) {
	b.t.Helper()
	require.NoError(b.t, s.Send(assignment(tenant, r)))
	require.Contains(b.t, usageOf(b.t, next(b.t, s)), tenant)
}

func next(t *testing.T, s *stream) *quotav3.RateLimitQuotaUsageReports {
	t.Helper()
	select {
	case r := <-s.reports:
		return r
	case <-time.After(patience):
		t.Fatal("no report")
		return nil
	}
}

// TestWhichBucket is the first that matches; the route may have others.
func TestWhichBucket(t *testing.T) {
	const url = `"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.rate_limit_quota.v1alpha.RateLimitQuotaPerRoute"`
	b := newFilterBed(t, listener(service+`, "buckets": [
		{"match": {"metadata": [{"name": "tenant", "exact_match": "acme"}]}, "bucket_id_builder": {"k": {"string_value": "gold"}}, "reporting_interval": "1s"`+fallback(3)+`},
		{"match": {"metadata": [{"name": "tenant", "prefix_match": "a"}]}, "bucket_id_builder": {"k": {"string_value": "a"}, "tenant": {"property": "tenant"}}, "reporting_interval": "1s"`+fallback(1)+`}]`,
		`{"match": {"metadata": [{"name": "tenant", "exact_match": "vip"}]}, "direct_response": {"body": "passed"}, "typed_per_filter_config": {"`+Name+`": {`+url+`,
		  "buckets": [{"bucket_id_builder": {"k": {"string_value": "route"}}, "reporting_interval": "1s", "deny_response": {"body": "rate limit exceeded"}`+fallback(4)+`}]}}},`+direct), 1)
	require.Equal(t, 3, b.passes(9, of("acme")))
	require.Equal(t, 1, b.passes(9, of("ab")))
	require.Equal(t, 1, b.passes(9, of("ac")))
	require.Equal(t, 9, b.passes(9, of("other")), "none matches")
	require.Equal(t, 4, b.passes(9, of("vip")))
	s := b.stream()
	seen := map[string]bool{}
	for len(seen) < 4 {
		for _, u := range next(t, s).GetBucketQuotaUsages() {
			seen[fmt.Sprint(u.GetBucketId().GetBucket())] = true
		}
	}
	require.Equal(t, map[string]bool{"map[k:gold]": true, "map[k:a tenant:ab]": true, "map[k:a tenant:ac]": true, "map[k:route]": true}, seen)
}

// TestValuesThatAreNoText would end the stream.
func TestValuesThatAreNoText(t *testing.T) {
	md := &codecs.Metadata{}
	md.Set("tenant", "a\xffb")
	d := definition{parts: []part{{name: "tenant", property: "tenant"}}}
	require.Equal(t, map[string]string{"tenant": "a?b"}, d.id(md).GetBucket())
	md.Set("tenant", strings.Repeat("x", maxValue-1)+"ü")
	require.Equal(t, strings.Repeat("x", maxValue-1)+"?", d.id(md).GetBucket()["tenant"])
	d.parts[0].head = appendPart(nil, "tenant")
	require.Equal(t, keyOf(d.id(md)), string(d.appendKey(nil, md)))
}

// TestMoreIDsThanAllowed share what holds without an assignment.
func TestMoreIDsThanAllowed(t *testing.T) {
	b := newFilterBed(t, listener(buckets(fallback(2))+`, "max_buckets": 3`, direct), 1)
	s := b.stream()
	require.Equal(t, 2, b.passes(3, of(strings.Repeat("x", 10_000)+"1")))
	require.Equal(t, 0, b.passes(3, of(strings.Repeat("x", 10_000)+"2")), "what is behind the bound does not count")
	require.Equal(t, 2, b.passes(3, of("a")))
	require.Equal(t, 2, b.passes(3, of("b")))
	require.Equal(t, 1, b.passes(1, of("c")))
	require.Equal(t, 1, b.passes(3, of("d")))
	require.Equal(t, 0, b.passes(3, of("e")))
	b.counts(map[string]int64{"allowed": 8, "denied": 11, "overflow": 7})
	seen := map[string]bool{}
	for len(seen) < 3 {
		for tenant := range usageOf(t, next(t, s)) {
			seen[tenant] = true
		}
	}
	require.Equal(t, map[string]bool{strings.Repeat("x", 256): true, "a": true, "b": true}, seen)
}

// TestShares: who is looked at, and whose refusal is heeded.
func TestShares(t *testing.T) {
	b := newFilterBed(t, listener(buckets(fallback(0))+`, "filter_enforced": {"default_value": {"numerator": 0}}`, direct), 1)
	require.Equal(t, 5, b.passes(5))
	b.counts(map[string]int64{"shadow_denied": 5})
	b.update(listener(buckets(fallback(0))+`, "filter_enabled": {"default_value": {"numerator": 0}}`, direct))
	require.Equal(t, 5, b.passes(5))
	b.counts(nil)
}

// TestBucketsSurviveAnUpdate, as does the stream.
func TestBucketsSurviveAnUpdate(t *testing.T) {
	b := newFilterBed(t, listener(buckets(""), direct), 2)
	s := b.stream()
	b.passes(1, of("acme"))
	next(t, s)
	b.assign(s, "acme", perHour(5))
	require.Equal(t, 3, b.passes(3, of("acme")))
	old, clients := b.cfg, b.clients
	b.update(listener(buckets(", \"deny_response\": {\"body\": \"rate limit exceeded\"}"), direct))
	for _, c := range clients {
		c.Close()
	}
	b.Settle()
	old.Destroy()
	require.Equal(t, 2, b.passes(9, of("acme")))
	require.Empty(t, b.server.streams)
}

// TestABucketThatIsAbandoned begins anew, on all workers that have used it.
func TestABucketThatIsAbandoned(t *testing.T) {
	b := newFilterBed(t, listener(buckets(""), direct), 2)
	s := b.stream()
	b.passes(2, of("acme"))
	next(t, s)
	b.assign(s, "acme", blanket(typev3.RateLimitStrategy_DENY_ALL))
	require.Equal(t, 0, b.passes(2, of("acme")))
	require.NoError(t, s.Send(abandonment("acme")))
	require.Eventually(t, func() bool { return b.passes(2, of("acme")) == 2 }, patience, time.Millisecond)
	require.Contains(t, usageOf(t, next(t, s)), "acme", "it is told as a new one")
}

// TestAServiceThatIsDead holds nobody up.
func TestAServiceThatIsDead(t *testing.T) {
	b := newFilterBed(t, listener(buckets(fallback(2)), direct), 2)
	b.stream()
	b.replace(nil)
	require.Equal(t, 2, b.passes(9, of("acme")))
	require.Eventually(t, func() bool {
		return strings.Contains(strings.Join(b.Log(), "\n"), "rate_limit_quota: cluster quotas: ")
	},
		patience, time.Millisecond)
	b.passes(1, of("acme"))
	b.Advance(time.Second)
	require.Positive(t, b.cfg.Counter("dubbo.t.rate_limit_quota.stream_failure"))
	b.server = b.replace(newServer())
	s := b.stream()
	require.Contains(t, usageOf(t, next(t, s)), "acme")
	b.assign(s, "acme", blanket(typev3.RateLimitStrategy_ALLOW_ALL))
	require.Equal(t, 9, b.passes(9, of("acme")))
}

// TestARequestAllocatesNothing that it would not without the filter.
func TestARequestAllocatesNothing(t *testing.T) {
	const up = `{"route": {"cluster": "up"}}`
	of := func(listener string) float64 {
		b := newFilterBed(t, listener, 1)
		servers := b.Cluster("up", "10.0.0.3:20880")
		r := dubbotest.Request{Oneway: true, Attachments: [][2]string{{"tenant", "a"}}}.Bytes()
		roundTrip := func() {
			b.clients[0].Send(r)
			servers.Servers()[0].Take()
		}
		for range 100 {
			roundTrip()
		}
		return raced.AllocsPerRun(t, 1000, roundTrip)
	}
	with := listener(buckets(fallback(1_000_000))+`, "filter_enabled": {"default_value": {"numerator": 100}}`, up)
	require.LessOrEqual(t, of(with), of(strings.Replace(with, Name, "test.pass", 1)))
}

// pass lets everything pass.
type pass struct{}

func (pass) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

// facts keeps the flags of the last message besides.
type facts struct{ pass }

var flags filter.Flags

func (facts) OnEnd(m *filter.Message) { flags = m.Facts().Flags }

func init() {
	filter.Register("test.pass", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return pass{}, nil }))
	filter.Register("test.facts", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return facts{}, nil }))
}

func TestWhatIsRefused(t *testing.T) {
	const first = "buckets[0]."
	for config, want := range map[string]string{
		`"rlqs_server": {"envoy_grpc": {"cluster_name": "c"}}, "buckets": [` + bucketOf("") + `]`: "domain: required",
		`"domain": "d", "buckets": [` + bucketOf("") + `]`:                                        "rlqs_server: required",
		`"domain": "d", "rlqs_server": {"envoy_grpc": {}}, "buckets": [` + bucketOf("") + `]`:     "rlqs_server.envoy_grpc.cluster_name: required",
		service: "buckets: must be between 1 and 1000, are 0",
		service + `, "buckets": [{"bucket_id_builder": {"k": {"string_value": "v"}}}]`:                                first + "reporting_interval: required",
		service + `, "buckets": [{"reporting_interval": "1s"}]`:                                                       first + "bucket_id_builder: must be between 1 and 16, are 0",
		service + `, "buckets": [{"bucket_id_builder": {"k": {}}, "reporting_interval": "1s"}]`:                       first + "bucket_id_builder[k]: want string_value or property",
		service + `, "buckets": [{"bucket_id_builder": {"k": {"string_value": "v"}}, "reporting_interval": "0.01s"}]`: first + "reporting_interval: must be at least 100ms, is 10ms",
		buckets(`, "match": {"metadata": [{"name": "m", "safe_regex_match": {"regex": "("}}]}`):                       first + "match.metadata[0]",
		buckets(`, "deny_response": {"code": 20}`):                                                                    first + "deny_response.code",
		buckets(`, "no_assignment_behavior": {"fallback_rate_limit": {}}`):                                            first + "no_assignment_behavior.fallback_rate_limit: want blanket_rule, requests_per_time_unit or token_bucket",
		buckets(`, "no_assignment_behavior": {"fallback_rate_limit": {"requests_per_time_unit": {}}}`):                first + "no_assignment_behavior.fallback_rate_limit.requests_per_time_unit.time_unit: want SECOND to YEAR, is UNKNOWN",
		buckets(`, "no_assignment_behavior": {"fallback_rate_limit": {"token_bucket": {"max_tokens": 1}}}`):           first + "no_assignment_behavior.fallback_rate_limit.token_bucket.fill_interval: must be at least 1µs",
		buckets(`, "expired_assignment_behavior": {"reuse_last_assignment": {}}`):                                     first + "expired_assignment_behavior.expired_assignment_behavior_timeout: required",
		buckets(`, "expired_assignment_behavior": {"expired_assignment_behavior_timeout": "1s"}`):                     first + "expired_assignment_behavior: want fallback_rate_limit or reuse_last_assignment",
		buckets("") + `, "max_buckets": 0`:                                                                            "max_buckets: must be between 1 and 65536, is 0",
		buckets("") + `, "filter_enabled": {}`:                                                                        "filter_enabled.default_value: required",
	} {
		errs := filter.Check([]byte(listener(config, direct)))
		require.NotEmpty(t, errs, config)
		require.Contains(t, errs[0].Error(), "meta_protocol_filters[1].config."+want, config)
	}
}

// TestWhatAllDefinitionsMayCost is what one may: each of a thousand could be told by itself,
// and a request for which they would cost more together is limited, though none of them
// takes it.
func TestWhatAllDefinitionsMayCost(t *testing.T) {
	var all []string
	for i := range 1000 {
		all = append(all, bucketOf(fmt.Sprintf(`, "match": {"metadata": [{"name": "tenant", "string_match": {"safe_regex": {"regex": ".*(acme|globex|%d).*"}}}]}`, i)+fallback(1)))
	}
	b := newFilterBed(t, listener(service+`, "buckets": [`+strings.Join(all, ",")+`]`, direct), 1)
	require.Equal(t, 3, b.passes(3, of("nobody")))
	require.Equal(t, 1, b.passes(3, of(strings.Repeat("acm", 8192/3))))
	require.Equal(t, 1, b.passes(2, of("999")))
	b.counts(map[string]int64{"allowed": 2, "denied": 3})
	require.EqualValues(t, 3, b.cfg.Counter("dubbo.t.request_unroutable"))
}
