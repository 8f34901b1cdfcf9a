package extauthz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"

	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

const patience = 5 * time.Second

// authorizer is an authorization service that the test plays.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	t     *testing.T
	grpc  *grpc.Server
	l     *bufconn.Listener
	calls chan *call
}

// call is one that waits for the test's answer.
type call struct {
	*authv3.CheckRequest
	ctx    context.Context
	answer chan result
}

type result struct {
	*authv3.CheckResponse
	error
}

func newAuthorizer(t *testing.T) *authorizer {
	a := &authorizer{t: t, grpc: grpc.NewServer(), l: bufconn.Listen(64 << 10), calls: make(chan *call, 100)}
	authv3.RegisterAuthorizationServer(a.grpc, a)
	go a.grpc.Serve(a.l)
	return a
}

func (a *authorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	c := &call{r, ctx, make(chan result, 1)}
	a.calls <- c
	select {
	case r := <-c.answer:
		return r.CheckResponse, r.error
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// next is the next call.
func (a *authorizer) next() *call {
	a.t.Helper()
	select {
	case c := <-a.calls:
		return c
	case <-time.After(patience):
		a.t.Fatal("nobody asks")
		return nil
	}
}

func (c *call) say(r *authv3.CheckResponse) { c.answer <- result{r, nil} }

func (c *call) allow(r *authv3.OkHttpResponse) {
	c.say(&authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: r}})
}

func (c *call) deny(r *authv3.DeniedHttpResponse) {
	c.say(&authv3.CheckResponse{Status: &status.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: r}})
}

// behind is a filter behind this one, that sees what passes.
type behind struct{}

var onPass func(m *filter.Message)

func (behind) OnRequest(m *filter.Message) filter.Verdict {
	if onPass != nil {
		onPass(m)
	}
	return filter.Continue
}

func init() {
	filter.Register("test.behind", filter.Factory(func(*anypb.Any, *filter.Env) (filter.Filter, error) { return behind{}, nil }))
}

const routes = `[{"route": {"cluster": "greeter"}}]`

func listener(config, routes string) string {
	return fmt.Sprintf(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [{"name": %q, "config": {
			"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ext_authz.v1alpha.ExtAuthz", %s}},
			{"name": "test.behind"}, {"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {"name": "r", "routes": %s}}`, Name, config, routes)
}

const byCluster = `"grpc_service": {"envoy_grpc": {"cluster_name": "authz"}}`

// bed is a host with a listener, its cluster and its authorization service.
type bed struct {
	*filtertest.Host
	t       *testing.T
	cfg     *filtertest.Config
	greeter *filtertest.Cluster
	c       *filtertest.Client
	got     []dubbotest.Parsed // by the cluster

	mu         sync.Mutex
	authorizer *authorizer
}

func newBed(t *testing.T, config, routes string) *bed {
	onPass = nil
	b := &bed{Host: filtertest.New(t), t: t, authorizer: newAuthorizer(t)}
	b.DialCluster = func(ctx context.Context, cluster string) (net.Conn, error) {
		b.mu.Lock()
		a := b.authorizer
		b.mu.Unlock()
		if a == nil || cluster != "authz" {
			return nil, errors.New("nobody is there")
		}
		return a.l.DialContext(ctx)
	}
	t.Cleanup(func() { b.serve(nil) })
	b.greeter = b.Cluster("greeter", "h1")
	b.greeter.Serve = func(s *filtertest.Server, in []byte) int {
		frames, rest := dubbotest.Parse(in)
		for _, f := range frames {
			b.got = append(b.got, f)
			s.Send(dubbotest.Response(f.ID, "hello"))
		}
		return len(in) - len(rest)
	}
	b.cfg = b.MustLoad(listener(config, routes))
	b.c = b.Dial(b.cfg)
	return b
}

// serve has another authorizer in place of the one that is, or none.
func (b *bed) serve(a *authorizer) {
	b.mu.Lock()
	old := b.authorizer
	b.authorizer = a
	b.mu.Unlock()
	if old != nil {
		old.grpc.Stop()
	}
}

func (b *bed) ask(attachments ...[2]string) { b.askBy(b.c, attachments...) }

func (b *bed) askBy(c *filtertest.Client, attachments ...[2]string) {
	c.Send(dubbotest.Request{ID: 77, Attachments: attachments}.Bytes())
}

// answered waits for the answer to the client.
func (b *bed) answered() (status byte, text string) {
	b.t.Helper()
	var frames []dubbotest.Parsed
	b.WaitUntil(func() bool {
		more, _ := dubbotest.Parse(b.c.Take())
		frames = append(frames, more...)
		return len(frames) > 0
	})
	require.Len(b.t, frames, 1)
	require.EqualValues(b.t, 77, frames[0].ID)
	return frames[0].Status, frames[0].Text()
}

// passes wants the request to have passed.
func (b *bed) passes() {
	b.t.Helper()
	status, text := b.answered()
	require.EqualValues(b.t, 20, status, text)
}

// refused wants it to have been answered with an error.
func (b *bed) refused(status byte, text string) {
	b.t.Helper()
	s, got := b.answered()
	require.Equal(b.t, text, got)
	require.Equal(b.t, status, s)
}

// counts wants these counters, and no other to be above 0.
func (b *bed) counts(want map[string]int) {
	b.t.Helper()
	b.Advance(100 * time.Millisecond)
	for _, name := range []string{"ok", "denied", "error", "failure_mode_allowed", "timeout", "invalid", "disabled", "cached"} {
		require.EqualValues(b.t, want[name], b.cfg.Counter("dubbo.t.ext_authz."+name), name)
	}
}
