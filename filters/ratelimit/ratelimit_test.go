package ratelimit_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filters/ratelimit"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func TestAServiceDecides(t *testing.T) {
	b := newBed(t, byMethod, toServer)
	c := b.asked(1)
	require.Equal(t, "production", c.GetDomain())
	require.Equal(t, "method=sayHello", describe(c.RateLimitRequest))
	require.Equal(t, uint32(1), c.GetHitsAddend())
	c.code(ok)
	b.served(1)
	c = b.asked(2)
	c.code(over)
	require.Equal(t, "rate limit exceeded", b.answer(2))
	require.Equal(t, filter.RateLimited, flags)
	// A service that does not know says so: nothing is limited.
	c = b.asked(3)
	c.code(unknown)
	b.served(3)
	b.counts(map[string]int64{"ok": 2, "over_limit": 1})
	require.Len(t, b.greeter.Servers(), 1)
}

// TestWhileTheServiceThinks the worker serves others, and the client's other requests.
func TestWhileTheServiceThinks(t *testing.T) {
	b := newBed(t, byMethod+`, "timeout": "0s"`, toServer)
	first := b.asked(1)
	second := b.asked(2)
	other := b.Dial(b.cfg)
	other.Send(dubbotest.Request{ID: 7}.Bytes())
	third := b.limiter.next()
	third.code(over)
	b.WaitUntil(func() bool { return len(other.Received()) > 0 })
	second.code(over)
	require.Equal(t, "rate limit exceeded", b.answer(2))
	b.Advance(14 * time.Second)
	require.Empty(t, b.client.Take())
	first.code(ok)
	b.served(1)
	b.counts(map[string]int64{"ok": 1, "over_limit": 2})
}

func TestALateService(t *testing.T) {
	for name, tc := range map[string]struct {
		config string
		wait   time.Duration
		denied bool
	}{
		"by default 20 ms":  {byMethod, 20 * time.Millisecond, false},
		"as said":           {byMethod + `, "timeout": "0.5s"`, 500 * time.Millisecond, false},
		"denied":            {byMethod + `, "failure_mode_deny": true`, 20 * time.Millisecond, true},
		"denied to a share": {byMethod + `, "failure_mode_deny_percent": {"default_value": {"numerator": 100}}`, 20 * time.Millisecond, true},
		"and to none":       {byMethod + `, "failure_mode_deny": true, "failure_mode_deny_percent": {"default_value": {}}`, 20 * time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, tc.config, toServer)
			c := b.asked(1)
			b.Advance(tc.wait - 10*time.Millisecond)
			require.Empty(t, b.greeter.Servers())
			require.Empty(t, b.client.Take())
			b.Advance(20 * time.Millisecond)
			<-c.ctx.Done() // the service is told
			c.code(over)   // and says too late what it thinks
			if tc.denied {
				require.Equal(t, "the rate limit service failed", b.answer(1))
				require.Equal(t, filter.RateLimitServiceError, flags)
				b.counts(map[string]int64{"error": 1})
				return
			}
			b.served(1)
			b.counts(map[string]int64{"error": 1, "failure_mode_allowed": 1})
		})
	}
}

// TestADeadService fails at once, and counts again when it is back.
func TestADeadService(t *testing.T) {
	b := newBed(t, byMethod+`, "failure_mode_deny": true, "timeout": "0s", "failure_response": {"status": "NO_HEALTHY_UPSTREAM", "body": "no limits"}`, toServer)
	b.asked(1).code(ok)
	b.served(1)

	c := b.asked(2)
	b.replace(nil)
	require.Equal(t, "no limits", b.answer(2))
	b.request(3)
	require.Equal(t, "no limits", b.answer(3))
	_ = c

	b.replace(newLimiter(t))
	// Connections are made with pauses, and requests meanwhile fail: one is let through
	// when the service is there.
	id := uint64(4)
	for deadline := time.Now().Add(3 * patience); ; id++ {
		require.True(t, time.Now().Before(deadline))
		b.request(id)
		select {
		case c = <-b.limiter.calls:
			c.code(over)
			require.Equal(t, "rate limit exceeded", b.answer(id))
			b.counts(map[string]int64{"ok": 1, "over_limit": 1, "error": int64(id) - 2})
			require.Contains(t, b.Log()[len(b.Log())-1], "cluster limits answers again")
			return
		case <-time.After(50 * time.Millisecond):
			require.Equal(t, "no limits", b.answer(id))
		}
	}
}

// TestAServiceThatSaysAnError fails, too.
func TestAServiceThatSaysAnError(t *testing.T) {
	b := newBed(t, byMethod, toServer)
	b.asked(1).answer <- result{nil, errors.New("no descriptors")}
	b.served(1)
	b.counts(map[string]int64{"error": 1, "failure_mode_allowed": 1})
}

// TestASilentService is behind a connection that looks well: another one is made.
func TestASilentService(t *testing.T) {
	b := newBed(t, byMethod, toServer)
	b.asked(1).code(ok)
	b.served(1)
	for id := uint64(2); b.dials() == 1; id++ {
		require.Less(t, id, uint64(9))
		c := b.asked(id)
		b.Advance(time.Second)
		if id < 8 {
			<-c.ctx.Done()
			b.served(id)
			require.Equal(t, 1, b.dials(), "after %d s", id-1)
			continue
		}
		b.served(id)
		require.Eventually(t, func() bool { return b.dials() > 1 }, patience, time.Millisecond)
	}
}

// TestAServiceThatNeverAnswers is waited for as long as the request has time, where
// nothing else is said, and is one that has failed.
func TestAServiceThatNeverAnswers(t *testing.T) {
	for deny, text := range map[bool]string{
		true: "the rate limit service failed", false: "the deadline of the request has passed before it could be sent",
	} {
		b := newBed(t, fmt.Sprintf(byMethod+`, "timeout": "0s", "failure_mode_deny": %v`, deny), toServer)
		for id := range uint64(2) {
			c := b.asked(id)
			require.Equal(t, 1, b.dials())
			b.Advance(14900 * time.Millisecond)
			require.Empty(t, b.client.Take())
			b.Advance(200 * time.Millisecond)
			<-c.ctx.Done()
			require.Equal(t, text, b.answer(id))
		}
		require.Eventually(t, func() bool { return b.dials() == 2 }, patience, time.Millisecond, "it may be gone without a word")
		b.asked(3).code(ok)
		b.served(3)
		counts := map[string]int64{"error": 2, "ok": 1}
		if !deny {
			counts["failure_mode_allowed"] = 2
		}
		b.counts(counts)
	}
}

func (b *bed) dials() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dialled
}

// TestAClientThatLeaves while the service thinks: the call is given up.
func TestAClientThatLeaves(t *testing.T) {
	b := newBed(t, byMethod+`, "timeout": "0s"`, toServer)
	c := b.asked(1)
	b.client.Close()
	b.Settle()
	select {
	case <-c.ctx.Done():
	case <-time.After(patience):
		t.Fatal("the call goes on")
	}
	require.Empty(t, b.greeter.Servers())
	b.client = b.Dial(b.cfg)
	b.asked(2).code(ok)
	b.served(2)
	b.counts(map[string]int64{"ok": 1})
}

// TestAOneway is counted, and goes no further over the limit.
func TestAOneway(t *testing.T) {
	b := newBed(t, byMethod, toServer)
	b.client.Send(dubbotest.Request{ID: 1, Oneway: true}.Bytes())
	b.limiter.next().code(over)
	b.WaitWake()
	b.asked(2).code(ok)
	b.served(2)
	b.counts(map[string]int64{"ok": 1, "over_limit": 1})
}

// TestWhatIsAsked is what the actions make of a request.
func TestWhatIsAsked(t *testing.T) {
	const limits = `, "rate_limits": [
		{"actions": [{"property": {"name": "Tenant", "descriptor_key": "tenant"}}, {"property": {"name": "method"}}]},
		{"actions": [{"generic_key": {"descriptor_value": "all"}}, {"property": {"name": "region", "skip_if_absent": true}}]},
		{"actions": [{"remote_address": {}}]},
		{"actions": [{"remote_address": {"v4_prefix_mask_len": 24}}, {"property": {"name": "color", "default_value": "none"}}], "hits_addend": {"number": 0}},
		{"actions": [{"match": {"descriptor_value": "gold", "match": {"metadata": [{"name": "tenant", "exact_match": "acme"}]}}}],
		 "hits_addend": {"property": "cost"}, "limit": {"requests_per_unit": 7, "unit": "HOUR", "property": "quota"}},
		{"actions": [{"match": {"descriptor_key": "class", "descriptor_value": "rest", "expect_match": false, "match": {"metadata": [{"name": "tenant", "exact_match": "acme"}]}}}]},
		{"actions": [{"property": {"name": "nobody", "skip_if_absent": true}}]}
	], "hits_addend": {"property": "cost"}`
	b := newBed(t, byMethod+limits, toServer)
	c := b.asked(1, [2]string{"tenant", "acme"}, [2]string{"cost", "3"}, [2]string{"quota", "99"}, [2]string{"region", "eu"})
	require.Equal(t, "method=sayHello tenant=acme,method=sayHello generic_key=all,region=eu remote_address=10.0.0.2 "+
		"masked_remote_address=10.0.0.0/24,color=none header_match=gold", describe(c.RateLimitRequest))
	require.Equal(t, uint32(3), c.GetHitsAddend())
	require.Nil(t, c.GetDescriptors()[3].GetHitsAddend())
	require.Equal(t, uint64(0), c.GetDescriptors()[4].GetHitsAddend().GetValue())
	gold := c.GetDescriptors()[5]
	require.Equal(t, uint64(3), gold.GetHitsAddend().GetValue())
	require.Equal(t, uint32(99), gold.GetLimit().GetRequestsPerUnit())
	require.Equal(t, "HOUR", gold.GetLimit().GetUnit().String())
	require.Nil(t, c.GetDescriptors()[4].GetLimit())
	c.code(ok)
	b.served(1)

	// What a client says is no number, or text, or too long.
	long := string(make([]byte, 2000))
	c = b.asked(2, [2]string{"tenant", long}, [2]string{"cost", "-1"}, [2]string{"quota", "4294967296"})
	require.Equal(t, "method=sayHello tenant="+long[:1024]+",method=sayHello generic_key=all remote_address=10.0.0.2 "+
		"masked_remote_address=10.0.0.0/24,color=none class=rest", describe(c.RateLimitRequest))
	require.Equal(t, uint32(1), c.GetHitsAddend())
	c.code(ok)
	b.served(2)

	// IPv6.
	b.client = b.DialFrom(b.cfg, "2001:db8::7")
	c = b.asked(3)
	require.Equal(t, "remote_address=2001:db8::7", describe(&ratelimitv3.RateLimitRequest{Descriptors: c.GetDescriptors()[2:3]}))
	require.Equal(t, "masked_remote_address=2001:db8::7/128", describe(&ratelimitv3.RateLimitRequest{Descriptors: c.GetDescriptors()[3:4]})[:37])
	c.code(ok)
	b.served(3)
}

// TestWhoIsNotAsked: requests that the filter is not for, or of which nothing is to be
// said.
func TestWhoIsNotAsked(t *testing.T) {
	for name, config := range map[string]string{
		"by match":   byMethod + `, "match": {"metadata": [{"name": "method", "exact_match": "other"}]}`,
		"by share":   byMethod + `, "filter_enabled": {"default_value": {"numerator": 0}}`,
		"no entries": service + `, "rate_limits": [{"actions": [{"property": {"name": "tenant"}}]}]`,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, config, toServer)
			b.request(1)
			b.served(1)
			require.Empty(t, b.limiter.calls)
			b.counts(nil)
		})
	}
}

// TestWhoIsNotAskedAllocatesNothing that it would not without the filter.
func TestWhoIsNotAskedAllocatesNothing(t *testing.T) {
	of := func(config string) float64 {
		b := newBed(t, byMethod, toServer)
		b.client = b.Dial(b.MustLoad(config))
		r := dubbotest.Request{Oneway: true}.Bytes()
		roundTrip := func() {
			b.client.Send(r)
			b.greeter.Servers()[0].Take()
		}
		for range 100 {
			roundTrip()
		}
		return raced.AllocsPerRun(t, 1000, roundTrip)
	}
	with := listener(byMethod+`, "match": {"metadata": [{"name": "method", "exact_match": "other"}]}`, toServer)
	require.LessOrEqual(t, of(with), of(strings.Replace(with, ratelimit.Name, "test.pass", 1)))
}

// pass lets everything pass.
type pass struct{}

func (pass) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

func init() {
	filter.Register("test.pass", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return pass{}, nil }))
}

// TestFailuresAreTold once a minute, however often they come and go.
func TestFailuresAreTold(t *testing.T) {
	b := newBed(t, byMethod, toServer)
	for id := uint64(1); id < 20; id += 2 {
		b.asked(id).answer <- result{nil, errors.New("no descriptors")}
		b.served(id)
		b.asked(id + 1).code(ok)
		b.served(id + 1)
	}
	require.Len(t, b.Log(), 2)
	b.Advance(time.Minute + time.Second)
	b.asked(30).answer <- result{nil, errors.New("no descriptors")}
	b.served(30)
	require.Len(t, b.Log(), 3)
}

// TestShadow: a refusal that is not heeded is counted, and told.
func TestShadow(t *testing.T) {
	b := newBed(t, byMethod+`, "filter_enforced": {"default_value": {"numerator": 0}}`,
		`{"match": {"metadata": [{"name": "ratelimit.code", "exact_match": "over_limit"}]}, "route": {"cluster": "slow"}}, `+toServer)
	slow := b.Cluster("slow", "10.0.0.4:20880")
	b.asked(1).code(over)
	b.WaitUntil(func() bool { return len(slow.Servers()) > 0 })
	b.counts(map[string]int64{"shadow_over_limit": 1})
}

// TestTheSecondDescriptorIsOver: routes know of the nearest limit, the client is told
// the service's text.
func TestTheSecondDescriptorIsOver(t *testing.T) {
	b := newBed(t, byMethod, `{"match": {"metadata": [{"name": "ratelimit.remaining", "exact_match": "0"}]}, "route": {"cluster": "slow"}}, `+toServer)
	slow := b.Cluster("slow", "10.0.0.4:20880")
	status := func(code ratelimitv3.RateLimitResponse_Code, limit, remaining uint32) *ratelimitv3.RateLimitResponse_DescriptorStatus {
		return &ratelimitv3.RateLimitResponse_DescriptorStatus{
			Code: code, LimitRemaining: remaining, DurationUntilReset: durationpb.New(time.Minute),
			CurrentLimit: &ratelimitv3.RateLimitResponse_RateLimit{RequestsPerUnit: limit, Unit: ratelimitv3.RateLimitResponse_RateLimit_MINUTE},
		}
	}
	b.asked(1).say(&ratelimitv3.RateLimitResponse{
		OverallCode: over, Statuses: []*ratelimitv3.RateLimitResponse_DescriptorStatus{status(ok, 10, 3), status(over, 5, 0)}, RawBody: []byte("5 a minute"),
	})
	require.Equal(t, "5 a minute", b.answer(1))
	b.asked(2).say(&ratelimitv3.RateLimitResponse{
		OverallCode: ok, Statuses: []*ratelimitv3.RateLimitResponse_DescriptorStatus{status(ok, 10, 3), status(ok, 5, 0)},
	})
	b.WaitUntil(func() bool { return len(slow.Servers()) > 0 })
	// One that the service has no limit for has none left, and is not exhausted.
	b.asked(3).say(&ratelimitv3.RateLimitResponse{
		OverallCode: ok, Statuses: []*ratelimitv3.RateLimitResponse_DescriptorStatus{{Code: ok}},
	})
	b.served(3)
	b.counts(map[string]int64{"ok": 2, "over_limit": 1})
}

// TestWhatIsTheServices is not the client's to say: neither what the service says nothing
// of, nor when it fails, nor when it is not asked.
func TestWhatIsTheServices(t *testing.T) {
	b := newBed(t, service+`, "rate_limits": [{"actions": [{"property": {"name": "tenant"}}]}]`,
		`{"match": {"metadata": [{"name": "ratelimit.metadata.tier", "exact_match": "gold"}]}, "direct_response": {"body": "forged"}},
		{"match": {"metadata": [{"name": "ratelimit.code", "exact_match": "ok"}, {"name": "ratelimit.remaining", "exact_match": "9"}]}, "direct_response": {"body": "forged"}}, `+toServer)
	forged := [][2]string{{"RateLimit.Metadata.tier", "gold"}, {"ratelimit.remaining", "9"}, {"ratelimit.code", "ok"}}
	tenant := append(slices.Clone(forged), [2]string{"tenant", "t"})
	b.asked(1, tenant...).code(ok)
	b.served(1)
	b.asked(2, tenant...).answer <- result{nil, errors.New("no")}
	b.served(2)
	b.request(3, forged...)
	b.served(3)
}

// TestWhatTheServiceAdds comes with the request and the answer, and as properties.
func TestWhatTheServiceAdds(t *testing.T) {
	b := newBed(t, byMethod, `{"match": {"metadata": [{"name": "ratelimit.metadata.tier", "exact_match": "gold"}, {"name": "ratelimit.metadata.n", "exact_match": "3"}]}, "route": {"cluster": "greeter"}}`)
	dynamic, err := structpb.NewStruct(map[string]any{"tier": "gold", "n": 3, "parts": []any{1}})
	require.NoError(t, err)
	b.asked(1).say(&ratelimitv3.RateLimitResponse{
		OverallCode: ok, DynamicMetadata: dynamic,
		RequestHeadersToAdd:  []*corev3.HeaderValue{{Key: "x-quota", Value: "9"}, {Key: "path", Value: "another service"}, {Key: ""}},
		ResponseHeadersToAdd: []*corev3.HeaderValue{{Key: "x-left", RawValue: []byte("8")}},
	})
	var got []byte
	b.WaitUntil(func() bool {
		for _, s := range b.greeter.Servers() {
			got = append(got, s.Take()...)
		}
		return len(got) > 0
	})
	frames, _ := dubbotest.Parse(got)
	require.Contains(t, string(frames[0].Body), "x-quota")
	require.NotContains(t, string(frames[0].Body), "another service")
	b.greeter.Servers()[0].Send(dubbotest.Response(frames[0].ID, "served"))
	b.Settle()
	require.Contains(t, string(b.client.Take()), "x-left")
	b.counts(map[string]int64{"ok": 1, "header_skipped": 2})
}

// TestARouteHasItsOwn domain and descriptors, or none of the filter.
func TestARouteHasItsOwn(t *testing.T) {
	const url = `"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ratelimit.v1alpha.RateLimitPerRoute"`
	b := newBed(t, byMethod, `
		{"match": {"metadata": [{"name": "tenant", "exact_match": "acme"}]}, "route": {"cluster": "greeter"},
		 "typed_per_filter_config": {"aeraki.meta_protocol.filters.ratelimit": {`+url+`, "domain": "acme", "hits_addend": {"number": 2},
		  "rate_limits": [{"actions": [{"generic_key": {"descriptor_value": "x"}}]}]}}},
		{"match": {"metadata": [{"name": "tenant", "exact_match": "free"}]}, "route": {"cluster": "greeter"},
		 "typed_per_filter_config": {"aeraki.meta_protocol.filters.ratelimit": {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true}}},
		`+toServer)
	c := b.asked(1, [2]string{"tenant", "acme"})
	require.Equal(t, "acme generic_key=x", c.GetDomain()+" "+describe(c.RateLimitRequest))
	require.Equal(t, uint32(2), c.GetHitsAddend())
	c.code(ok)
	b.served(1)
	b.request(2, [2]string{"tenant", "free"})
	b.served(2)
	require.Empty(t, b.limiter.calls)
	c = b.asked(3)
	require.Equal(t, "production method=sayHello", c.GetDomain()+" "+describe(c.RateLimitRequest))
	c.code(ok)
	b.served(3)
}

// TestARouteThatWasKnownBefore is looked up again behind the answer.
func TestARouteThatWasKnownBefore(t *testing.T) {
	b := newBed(t, byMethod, `{"match": {"metadata": [{"name": "ratelimit.code", "exact_match": "unknown"}]}, "route": {"cluster": "slow"}},
		{"route": {"cluster": "greeter"}, "typed_per_filter_config": {"aeraki.meta_protocol.filters.ratelimit": {
		 "@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ratelimit.v1alpha.RateLimitPerRoute", "domain": "d"}}}`)
	slow := b.Cluster("slow", "10.0.0.4:20880")
	c := b.asked(1)
	require.Equal(t, "d", c.GetDomain())
	c.code(unknown)
	b.WaitUntil(func() bool { return len(slow.Servers()) > 0 })
	require.Empty(t, b.greeter.Servers())
}

// TestTooManyCalls at a time: requests beyond are as if the service had failed, and
// those that have ended make room.
func TestTooManyCalls(t *testing.T) {
	const most = 100
	ratelimit.SetMaxPending(t, most)
	b := newBed(t, byMethod+`, "timeout": "0s"`, toServer)
	var many []byte
	for id := range uint64(most) {
		many = append(many, dubbotest.Request{ID: id}.Bytes()...)
	}
	b.client.Send(many)
	b.request(most)
	b.served(most)
	b.counts(map[string]int64{"error": 1, "failure_mode_allowed": 1})
	var calls []*call
	for range most {
		calls = append(calls, b.limiter.next())
	}
	b.client.Close()
	b.Settle()
	for _, c := range calls {
		<-c.ctx.Done()
	}
	b.client = b.Dial(b.cfg)
	require.Eventually(t, func() bool {
		b.request(1)
		select {
		case <-b.limiter.calls:
			return true
		default:
			return false
		}
	}, patience, time.Millisecond)
}

// TestTwoWorkersAndTwoListeners share the connection, and it lives on with the next
// version of a listener.
func TestTwoWorkersAndTwoListeners(t *testing.T) {
	b := newBedWith(t, byMethod, toServer, 2)
	second := b.MustLoad(listener(byMethod+`, "timeout": "1s"`, toServer))
	for i, c := range []func(){
		func() { b.client = b.DialOn(b.cfg, 1) },
		func() { b.client = b.DialOn(second, 0) },
		func() {},
	} {
		c()
		b.asked(uint64(i)).code(over)
		require.Equal(t, "rate limit exceeded", b.answer(uint64(i)))
	}
	require.Equal(t, 1, b.dials())
}

// TestAReplyOfOnesOwn takes the place of the service's text.
func TestAReplyOfOnesOwn(t *testing.T) {
	b := newBed(t, byMethod+`, "rate_limited_response": {"status": "DENIED", "body": "come back tomorrow"}`, toServer)
	b.asked(1).say(&ratelimitv3.RateLimitResponse{OverallCode: over, RawBody: []byte("no")})
	require.Equal(t, "come back tomorrow", b.answer(1))
}

// TestAConfigurationThatIsNotPublished leaves nothing behind.
func TestAConfigurationThatIsNotPublished(t *testing.T) {
	b := newBed(t, byMethod, toServer)
	c, err := b.LoadUnpublished(listener(`"domain": "d", "descriptors": [{"property": "a", "descriptor_key": "a"}],
		"rate_limit_service": {"grpc_service": {"google_grpc": {"target_uri": "127.0.0.1:1"}}}`, toServer))
	require.NoError(t, err)
	c.Destroy()
	b.asked(1).code(ok)
	b.served(1)
}

// TestWhatAllActionsMayCost is what one may: each of 16 times 16 could be told by itself, and
// what cannot be told behind those that have spent all counts as what its entry is for.
func TestWhatAllActionsMayCost(t *testing.T) {
	action := func(i int, more string) string {
		return fmt.Sprintf(`{"match": {"descriptor_key": "k%d", "descriptor_value": "v"%s, "match": {"metadata": [{"name": "tenant", "string_match": {"safe_regex": {"regex": ".*(acme|globex|%[1]d).*"}}}]}}}`, i, more)
	}
	var limits []string
	for i := range 15 {
		var actions []string
		for j := range 16 {
			actions = append(actions, action(16*i+j, `, "expect_match": false`))
		}
		limits = append(limits, `{"actions": [`+strings.Join(actions, ",")+`]}`)
	}
	limits = append(limits, `{"actions": [`+action(999, "")+`]}`)
	b := newBed(t, service+`, "rate_limits": [`+strings.Join(limits, ",")+`]`, toServer)
	c := b.asked(1, [2]string{"tenant", "nobody"})
	require.Len(t, c.GetDescriptors(), 15)
	c.code(ok)
	b.served(1)
	c = b.asked(2, [2]string{"tenant", strings.Repeat("acm", 8192/3)})
	require.Len(t, c.GetDescriptors(), 16)
	require.Equal(t, "k999", c.GetDescriptors()[15].GetEntries()[0].GetKey())
	c.code(ok)
	b.served(2)
}
