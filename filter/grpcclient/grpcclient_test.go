package grpcclient_test

import (
	"context"
	"net"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
)

func parse(t *testing.T, json string) (grpcclient.Target, error) {
	t.Helper()
	s := &corev3.GrpcService{}
	require.NoError(t, protojson.Unmarshal([]byte(json), s))
	return grpcclient.Parse(s, "s")
}

func TestTargets(t *testing.T) {
	for json, want := range map[string]grpcclient.Target{
		`{"envoyGrpc": {"clusterName": "c"}}`: {Cluster: "c"},
		`{"envoyGrpc": {"clusterName": "c", "authority": "a"}, "timeout": "0.02s", "initialMetadata": [{"key": "K", "value": "v"}]}`: {
			Cluster: "c", Authority: "a", Timeout: 20 * time.Millisecond, Metadata: []string{"k", "v"},
		},
		`{"googleGrpc": {"targetUri": "dns:///[::1]:1", "statPrefix": "s"}}`: {Address: "[::1]:1"},
		`{"googleGrpc": {"targetUri": "unix:/s"}}`:                           {Address: "unix:/s"},
	} {
		got, err := parse(t, json)
		require.NoError(t, err, json)
		require.Equal(t, want, got, json)
	}
	_, err := parse(t, `{"googleGrpc": {"targetUri": "h", "callCredentials": [{}]}, "timeout": "-1s", "initialMetadata": [{"rawValue": "eA=="}]}`)
	var said []string
	fields.Each(err, func(e *fields.Error) { said = append(said, e.Error()) })
	require.Equal(t, []string{
		"s.google_grpc.call_credentials: not supported",
		`s.google_grpc.target_uri: want host:port or unix:PATH, is "h"`,
		"s.timeout: must be at least 0s, is -1s",
		"s.initial_metadata[0].raw_value: not supported",
		"s.initial_metadata[0].key: required",
	}, said)
}

// health serves grpc.health.v1, and says as whom it was asked.
type health struct {
	healthv1.UnimplementedHealthServer
	asked chan metadata.MD
}

func (h health) Check(ctx context.Context, _ *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	h.asked <- md
	return &healthv1.HealthCheckResponse{}, nil
}

// TestConnectionsAreShared: by the users of one service, not of two, and the last one
// closes them.
func TestConnectionsAreShared(t *testing.T) {
	h := health{asked: make(chan metadata.MD, 1)}
	l, s := bufconn.Listen(1<<10), grpc.NewServer()
	healthv1.RegisterHealthServer(s, h)
	go s.Serve(l)
	defer s.Stop()
	var dialled []string
	dial := func(ctx context.Context, cluster string) (net.Conn, error) {
		dialled = append(dialled, cluster)
		return l.DialContext(ctx)
	}

	var p grpcclient.Pool
	target := grpcclient.Target{Cluster: "limits", Metadata: []string{"k", "v"}}
	a, err := p.Get(&target, dial)
	require.NoError(t, err)
	b, err := p.Get(&grpcclient.Target{Cluster: "limits"}, nil)
	require.NoError(t, err)
	require.Same(t, a, b)
	other, err := p.Get(&grpcclient.Target{Cluster: "limits", Authority: "x"}, dial)
	require.NoError(t, err)
	require.NotSame(t, a, other)
	other.Release()

	_, err = healthv1.NewHealthClient(a).Check(target.Context(t.Context()), &healthv1.HealthCheckRequest{})
	require.NoError(t, err)
	md := <-h.asked
	require.Equal(t, []string{"limits"}, md.Get(":authority"))
	require.Equal(t, []string{"v"}, md.Get("k"))
	require.Equal(t, []string{"limits"}, dialled)

	a.Release()
	require.NotEqual(t, connectivity.Shutdown, b.GetState())
	var many []*grpcclient.Conn
	for range 50 {
		c, err := p.Get(&target, dial)
		require.NoError(t, err)
		many = append(many, c)
	}
	require.Same(t, b, many[48])
	require.NotSame(t, b, many[49], "more than that may be more streams than the server allows")
	for _, c := range append(many, b) {
		c.Release()
	}
	require.Equal(t, connectivity.Shutdown, b.GetState())
	require.Equal(t, connectivity.Shutdown, many[49].GetState())
}

// TestAConnectionThatIsReset is made again, without anybody's call.
func TestAConnectionThatIsReset(t *testing.T) {
	l, s := bufconn.Listen(1<<10), grpc.NewServer()
	go s.Serve(l)
	defer s.Stop()
	dialled := make(chan struct{}, 100)
	var p grpcclient.Pool
	c, err := p.Get(&grpcclient.Target{Cluster: "limits"}, func(ctx context.Context, _ string) (net.Conn, error) {
		dialled <- struct{}{}
		return l.DialContext(ctx)
	})
	require.NoError(t, err)
	defer c.Release()
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { defer close(over); c.Hold(ctx) }()
	ready := func() {
		<-dialled
		for s := c.GetState(); s != connectivity.Ready; s = c.GetState() {
			require.True(t, c.WaitForStateChange(t.Context(), s))
		}
	}
	ready()
	c.Reset()
	ready()
	cancel()
	<-over
}
