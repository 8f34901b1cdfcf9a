package ratelimit_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

const patience = 5 * time.Second

// limiter is a rate limit service that the test plays.
type limiter struct {
	ratelimitv3.UnimplementedRateLimitServiceServer
	t     *testing.T
	grpc  *grpc.Server
	l     *bufconn.Listener
	calls chan *call
}

// call is one that waits for the test's answer.
type call struct {
	*ratelimitv3.RateLimitRequest
	ctx    context.Context
	answer chan result
}

type result struct {
	*ratelimitv3.RateLimitResponse
	error
}

func newLimiter(t *testing.T) *limiter {
	l := &limiter{t: t, grpc: grpc.NewServer(), l: bufconn.Listen(64 << 10), calls: make(chan *call, 1000)}
	ratelimitv3.RegisterRateLimitServiceServer(l.grpc, l)
	go l.grpc.Serve(l.l)
	return l
}

func (l *limiter) ShouldRateLimit(ctx context.Context, r *ratelimitv3.RateLimitRequest) (*ratelimitv3.RateLimitResponse, error) {
	c := &call{r, ctx, make(chan result, 1)}
	l.calls <- c
	select {
	case a := <-c.answer:
		return a.RateLimitResponse, a.error
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// next is the next call.
func (l *limiter) next() *call {
	l.t.Helper()
	select {
	case c := <-l.calls:
		return c
	case <-time.After(patience):
		l.t.Fatal("nobody asks")
		return nil
	}
}

func (c *call) say(r *ratelimitv3.RateLimitResponse) { c.answer <- result{r, nil} }

func (c *call) code(code ratelimitv3.RateLimitResponse_Code) {
	c.say(&ratelimitv3.RateLimitResponse{OverallCode: code})
}

const (
	unknown = ratelimitv3.RateLimitResponse_UNKNOWN
	ok      = ratelimitv3.RateLimitResponse_OK
	over    = ratelimitv3.RateLimitResponse_OVER_LIMIT
)

// bed is a host with a listener, its cluster and its limiter.
type bed struct {
	*filtertest.Host
	t       *testing.T
	cfg     *filtertest.Config
	greeter *filtertest.Cluster
	client  *filtertest.Client

	mu      sync.Mutex
	limiter *limiter
	dialled int
}

// listener is a configuration with a RateLimit, and what else the listener has.
func listener(rateLimit, routes string) string {
	return `{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": "test.facts"}, {"name": "aeraki.meta_protocol.filters.ratelimit", "config": {
			"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ratelimit.v1alpha.RateLimit", ` + rateLimit + `}},
			{"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"name": "r", "routes": [` + routes + `]}}`
}

const (
	service  = `"domain": "production", "rate_limit_service": {"grpc_service": {"envoy_grpc": {"cluster_name": "limits"}}}`
	byMethod = service + `, "descriptors": [{"property": "method", "descriptor_key": "method"}]`
	toServer = `{"name": "greeter", "route": {"cluster": "greeter"}}`
)

func newBed(t *testing.T, rateLimit, routes string) *bed {
	return newBedWith(t, rateLimit, routes, 1)
}

func newBedWith(t *testing.T, rateLimit, routes string, workers int) *bed {
	mod := filter.NewModule()
	mod.Seed(1)
	b := &bed{Host: filtertest.NewWith(t, mod, workers), t: t, limiter: newLimiter(t)}
	t.Cleanup(func() { b.replace(nil) })
	b.DialCluster = func(ctx context.Context, cluster string) (net.Conn, error) {
		require.Equal(t, "limits", cluster)
		b.mu.Lock()
		l := b.limiter
		b.dialled++
		b.mu.Unlock()
		if l == nil {
			return nil, errors.New("nobody listens")
		}
		return l.l.DialContext(ctx)
	}
	b.greeter = b.Cluster("greeter", "10.0.0.3:20880")
	b.cfg = b.MustLoad(listener(rateLimit, routes))
	b.client = b.Dial(b.cfg)
	return b
}

// replace replaces the limiter, whose connections break.
func (b *bed) replace(l *limiter) {
	b.mu.Lock()
	old := b.limiter
	b.limiter = l
	b.mu.Unlock()
	if old != nil {
		old.grpc.Stop()
		old.l.Close()
	}
}

func (b *bed) request(id uint64, attachments ...[2]string) {
	b.client.Send(dubbotest.Request{ID: id, Attachments: attachments}.Bytes())
}

// asked is a request that the limiter is asked about.
func (b *bed) asked(id uint64, attachments ...[2]string) *call {
	b.t.Helper()
	b.request(id, attachments...)
	return b.limiter.next()
}

// served waits until the server has got a request, and answers it.
func (b *bed) served(id uint64) dubbotest.Parsed {
	b.t.Helper()
	var got []dubbotest.Parsed
	b.WaitUntil(func() bool {
		for _, s := range b.greeter.Servers() {
			frames, _ := dubbotest.Parse(s.Take())
			for _, f := range frames {
				got = append(got, f)
				s.Send(dubbotest.Response(f.ID, "served"))
			}
		}
		return len(got) > 0
	})
	require.Len(b.t, got, 1)
	require.Equal(b.t, "served", b.answer(id))
	return got[0]
}

// answer is what the client has got.
func (b *bed) answer(id uint64) string {
	b.t.Helper()
	var bytes []byte
	b.WaitUntil(func() bool { bytes = append(bytes, b.client.Take()...); return len(bytes) > 0 })
	frames, rest := dubbotest.Parse(bytes)
	require.Empty(b.t, rest)
	require.Len(b.t, frames, 1)
	require.Equal(b.t, id, frames[0].ID)
	return frames[0].Text()
}

// counts asserts what has been counted, of all else nothing.
func (b *bed) counts(want map[string]int64) {
	b.t.Helper()
	b.Advance(time.Second)
	for _, name := range []string{"ok", "over_limit", "shadow_over_limit", "error", "failure_mode_allowed", "header_skipped"} {
		require.Equal(b.t, want[name], b.cfg.Counter("dubbo.t.ratelimit."+name), name)
	}
}

// facts keeps the flags of the last message.
type facts struct{}

var flags filter.Flags

func (facts) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }
func (facts) OnEnd(m *filter.Message)                  { flags = m.Facts().Flags }

func init() {
	filter.Register("test.facts", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return facts{}, nil }))
}

// describe writes descriptors shortly.
func describe(r *ratelimitv3.RateLimitRequest) string {
	var all []string
	for _, d := range r.GetDescriptors() {
		var es []string
		for _, e := range d.GetEntries() {
			es = append(es, e.GetKey()+"="+e.GetValue())
		}
		all = append(all, strings.Join(es, ","))
	}
	return strings.Join(all, " ")
}
