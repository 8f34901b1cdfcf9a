package rds_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/test/bufconn"

	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/host"
	client "github.com/meltemi-mesh/meltemi/filter/rds"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// bed is a server in virtual time, what it serves, and its clients.
type bed struct {
	*testing.T
	store  *rds.Store
	server *rds.Server

	mu       sync.Mutex
	listener *bufconn.Listener // nil: nobody listens
	stop     func()
}

func virtually(t *testing.T, o rds.Options, f func(b *bed)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bed{T: t, store: rds.NewStore()}
		t.Cleanup(func() { b.down() })
		b.up(o)
		f(b)
	})
}

// up starts a server of the store.
func (b *bed) up(o rds.Options) {
	o.Log = logr.Discard()
	s, l := rds.NewServer(b.store, o), bufconn.Listen(64<<10)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.server, b.listener = s, l
	b.stop = func() {
		cancel()
		require.NoError(b, <-done)
	}
}

// down ends the server.
func (b *bed) down() {
	b.mu.Lock()
	stop := b.stop
	b.listener, b.stop = nil, func() {}
	b.mu.Unlock()
	stop()
}

// DialCluster implements host.Background.
func (b *bed) DialCluster(ctx context.Context, _ string) (net.Conn, error) {
	b.mu.Lock()
	l := b.listener
	b.mu.Unlock()
	if l == nil {
		return nil, errors.New("nobody listens")
	}
	return l.DialContext(ctx)
}

// Logf implements host.Background.
func (b *bed) Logf(host.Level, string, ...any) {}

// put has a name's requests go to a cluster.
func (b *bed) put(name, cluster string, namespaces ...string) {
	b.Helper()
	require.NoError(b, b.store.Put(name, []rds.Resource{{Routes: table(name, cluster), Namespaces: namespaces}}))
	synctest.Wait()
}

func table(name, cluster string) *routev1alpha.RouteConfiguration {
	return &routev1alpha.RouteConfiguration{Name: name, Routes: []*routev1alpha.Route{{
		Route: &routev1alpha.RouteAction{ClusterSpecifier: &routev1alpha.RouteAction_Cluster{Cluster: cluster}},
	}}}
}

// user is one who wants routes.
type user struct {
	mu      sync.Mutex
	routes  *routev1alpha.RouteConfiguration
	events  []client.Event
	refuses string // a cluster
}

// Compile implements client.User.
func (u *user) Compile(rc *routev1alpha.RouteConfiguration) (func(), []*route.Error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.refuses != "" && rc.GetRoutes()[0].GetRoute().GetCluster() == u.refuses {
		return nil, []*route.Error{{Path: "routes[0].route.cluster", Reason: "not that one"}}
	}
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.routes = rc
	}, nil
}

// Heard implements client.User.
func (u *user) Heard(e client.Event) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.events = append(u.events, e)
}

// refuse has it take no routes to a cluster from now on.
func (u *user) refuse(cluster string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.refuses = cluster
}

// to is where requests go, "" for nowhere.
func (u *user) to() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if rs := u.routes.GetRoutes(); len(rs) > 0 {
		return rs[0].GetRoute().GetCluster()
	}
	return ""
}

// heard is what there was to hear.
func (u *user) heard() []client.Event {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]client.Event(nil), u.events...)
}

// form is a way to ask, and a type to ask for.
type form struct{ api, typeURL string }

var forms = map[string]form{
	"world own": {"GRPC", config.ProxyRoutes}, "world http": {"GRPC", config.EnvoyRoutes},
	"delta own": {"DELTA_GRPC", config.ProxyRoutes}, "delta http": {"DELTA_GRPC", config.EnvoyRoutes},
}

var deltaOwn = forms["delta own"]

func source(t *testing.T, name, node string, f form) *config.RDS {
	t.Helper()
	p, err := config.Load([]byte(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "c"}}, "rds": {
		"route_config_name": "` + name + `", "type_url": "` + f.typeURL + `", "node": {"id": "` + node + `"},
		"config_source": {"api_config_source": {"api_type": "` + f.api + `", "transport_api_version": "V3",
			"grpc_services": [{"envoy_grpc": {"cluster_name": "rds"}}]}}}}`))
	require.NoError(t, err)
	return p.RDS
}

// proxy is a process of its own that wants a name.
func (b *bed) proxy(name, node string, f form, bg host.Background) *user {
	b.Helper()
	u := &user{}
	b.Cleanup(client.NewRegistry().Subscribe(source(b.T, name, node, f), bg, u))
	return u
}

// settle lets what fails be tried again.
func settle() {
	time.Sleep(time.Minute)
	synctest.Wait()
}
