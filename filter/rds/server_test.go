package rds_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/rds"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// bed is a registry in virtual time, and the servers of one cluster.
type bed struct {
	*testing.T
	*rds.Registry
	mu      sync.Mutex
	server  *server // nil: nobody listens
	dialled []time.Duration
	started time.Time
	log     []string
}

// virtually runs f with a registry in virtual time. All that is left then must end by
// itself.
func virtually(t *testing.T, f func(b *bed)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bed{T: t, Registry: rds.NewRegistry(), started: time.Now()}
		t.Cleanup(func() { b.serve(nil) })
		f(b)
	})
}

// DialCluster implements host.Background.
func (b *bed) DialCluster(ctx context.Context, cluster string) (net.Conn, error) {
	b.mu.Lock()
	b.dialled = append(b.dialled, time.Since(b.started))
	s := b.server
	b.mu.Unlock()
	if s == nil {
		return nil, errors.New("nobody listens in " + cluster)
	}
	return s.listener.DialContext(ctx)
}

// Logf implements host.Background.
func (b *bed) Logf(level host.Level, format string, args ...any) {
	if level == host.Debug {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(b.log, fmt.Sprintf(format, args...))
}

// dials are when somebody was dialled.
func (b *bed) dials() []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.dialled)
}

// said counts the lines of the log that have a text.
func (b *bed) said(text string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.log {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}

// serve replaces the server, whose streams break.
func (b *bed) serve(s *server) {
	b.mu.Lock()
	old := b.server
	b.server = s
	b.mu.Unlock()
	if old != nil {
		old.grpc.Stop()
	}
	synctest.Wait()
}

// server is an RDS server that does what the test says.
type server struct {
	listener *bufconn.Listener
	grpc     *grpc.Server
	streams  chan *stream
}

func newServer() *server {
	s := &server{listener: bufconn.Listen(64 << 10), grpc: grpc.NewServer(grpc.MaxSendMsgSize(1 << 30)), streams: make(chan *stream, 100)}
	routeservicev3.RegisterRouteDiscoveryServiceServer(s.grpc, service{server: s})
	go s.grpc.Serve(s.listener)
	return s
}

// stream is one that a client has opened.
type stream struct {
	metadata metadata.MD
	world    chan *discoveryv3.DiscoveryRequest
	delta    chan *discoveryv3.DeltaDiscoveryRequest
	send     func(proto.Message) error
}

type service struct {
	routeservicev3.UnimplementedRouteDiscoveryServiceServer
	*server
}

func (s service) StreamRoutes(g routeservicev3.RouteDiscoveryService_StreamRoutesServer) error {
	st := &stream{world: make(chan *discoveryv3.DiscoveryRequest, 100)}
	return s.run(g, st, func() error {
		r, err := g.Recv()
		if err == nil {
			st.world <- r
		}
		return err
	})
}

func (s service) DeltaRoutes(g routeservicev3.RouteDiscoveryService_DeltaRoutesServer) error {
	st := &stream{delta: make(chan *discoveryv3.DeltaDiscoveryRequest, 100)}
	return s.run(g, st, func() error {
		r, err := g.Recv()
		if err == nil {
			st.delta <- r
		}
		return err
	})
}

func (s service) run(g grpc.ServerStream, st *stream, receive func() error) error {
	st.metadata, _ = metadata.FromIncomingContext(g.Context())
	st.send = func(m proto.Message) error { return g.SendMsg(m) }
	s.streams <- st
	for {
		if err := receive(); err != nil {
			return err
		}
	}
}

// stream is the next one, which must have been opened by now or be so within a minute.
func (b *bed) stream() *stream {
	b.Helper()
	select {
	case st := <-b.server.streams:
		return st
	case <-time.After(time.Minute):
		b.Fatal("no stream")
		return nil
	}
}

// asks is the next one, which must be of the state of the world, when it has asked.
func (b *bed) asks() *stream {
	b.Helper()
	st := b.stream()
	next(b, st.world)
	return st
}

// asked is one who wants routes, and its stream.
func (b *bed) asked(cfg *config.RDS) (*user, *stream) {
	b.Helper()
	u, _ := b.subscribe(cfg)
	return u, b.asks()
}

// answer is sent, and how it is acknowledged returned.
func (b *bed) answer(st *stream, r *discoveryv3.DiscoveryResponse) *discoveryv3.DiscoveryRequest {
	b.Helper()
	require.NoError(b, st.send(r))
	return next(b, st.world)
}

// noStream asserts that no further one has been opened.
func (b *bed) noStream() {
	b.Helper()
	synctest.Wait()
	require.Empty(b, b.server.streams)
}

func next[R any](b *bed, requests chan R) R {
	b.Helper()
	select {
	case r := <-requests:
		return r
	case <-time.After(time.Minute):
		b.Fatal("no request")
		panic("not reached")
	}
}

// user is one who wants routes.
type user struct {
	routes  *routev1alpha.RouteConfiguration
	events  []rds.Event
	compile func(rc *routev1alpha.RouteConfiguration) []*route.Error
}

// Compile implements rds.User.
func (u *user) Compile(rc *routev1alpha.RouteConfiguration) (func(), []*route.Error) {
	compile := u.compile
	if compile == nil {
		compile = func(rc *routev1alpha.RouteConfiguration) []*route.Error {
			_, faults := route.Compile(rc, route.Env{})
			return faults
		}
	}
	return func() { u.routes = rc }, compile(rc)
}

// Heard implements rds.User.
func (u *user) Heard(e rds.Event) { u.events = append(u.events, e) }

// to is where requests go, "" for nowhere.
func (u *user) to() string {
	synctest.Wait()
	if rs := u.routes.GetRoutes(); len(rs) > 0 {
		return rs[0].GetRoute().GetCluster()
	}
	return ""
}

const name = "greeter"

// source is that of the cluster, as a configuration has it.
func source(t *testing.T, fields string) *config.RDS {
	t.Helper()
	p, err := config.Load([]byte(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "c"}}, "rds": {"route_config_name": "greeter", ` + fields + `}}`))
	require.NoError(t, err)
	return p.RDS
}

const (
	world = `"config_source": {"api_config_source": {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]}}`
	delta = `"config_source": {"api_config_source": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]}}`
)

// subscribe wants routes until the end of the test.
func (b *bed) subscribe(cfg *config.RDS) (u *user, cancel func()) {
	u = &user{}
	cancel = sync.OnceFunc(b.Subscribe(cfg, b, u))
	b.Cleanup(cancel)
	return u, cancel
}

func packed(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return a
}

// http is a resource as Aeraki sends it.
func http(name, cluster string) *anypb.Any {
	return packed(&routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{
		Name: "dummy", Domains: []string{"*"}, Routes: []*routev3.Route{{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}}},
		}},
	}}})
}

// own is a resource of our own type.
func own(name, cluster string) *anypb.Any {
	return packed(&routev1alpha.RouteConfiguration{Name: name, Routes: []*routev1alpha.Route{{
		Route: &routev1alpha.RouteAction{ClusterSpecifier: &routev1alpha.RouteAction_Cluster{Cluster: cluster}},
	}}})
}

func response(version string, resources ...*anypb.Any) *discoveryv3.DiscoveryResponse {
	return &discoveryv3.DiscoveryResponse{VersionInfo: version, TypeUrl: config.EnvoyRoutes, Nonce: "n" + version, Resources: resources}
}

func deltaResponse(version string, resource *anypb.Any) *discoveryv3.DeltaDiscoveryResponse {
	return &discoveryv3.DeltaDiscoveryResponse{
		SystemVersionInfo: "s" + version, TypeUrl: config.EnvoyRoutes, Nonce: "n" + version,
		Resources: []*discoveryv3.Resource{{Name: name, Version: version, Resource: resource}},
	}
}
