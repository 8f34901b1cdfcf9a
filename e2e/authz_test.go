package e2e

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
)

// authorizer is an authorization service. It lets all pass that it has not been told to
// deny, and says who they are.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	Port int

	mu     sync.Mutex
	denies map[string]bool // by the context of the route
	asked  map[string]*authv3.AttributeContext
}

func startAuthorizer(t *testing.T) *authorizer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a := &authorizer{Port: l.Addr().(*net.TCPAddr).Port, denies: map[string]bool{}, asked: map[string]*authv3.AttributeContext{}}
	g := grpc.NewServer()
	authv3.RegisterAuthorizationServer(g, a)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	return a
}

func (a *authorizer) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	protocol := r.GetAttributes().GetContextExtensions()["protocol"]
	a.asked[protocol] = r.GetAttributes()
	if a.denies[protocol] {
		return &authv3.CheckResponse{Status: &status.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{
			DeniedResponse: &authv3.DeniedHttpResponse{Body: "not you, " + protocol},
		}}, nil
	}
	ok := &authv3.OkHttpResponse{}
	if protocol != "thrift" { // whose plain messages have no room for it
		ok.Headers = []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-user", Value: "alice"}}}
	}
	return &authv3.CheckResponse{
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: &structpb.Struct{Fields: map[string]*structpb.Value{"user": structpb.NewStringValue("alice")}},
	}, nil
}

func (a *authorizer) deny(protocol string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.denies[protocol] = true
}

// TestExtAuthz: real clients of all protocols are let through by a real service, to where
// its answer leads, and denied.
func TestExtAuthz(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		service := startAuthorizer(t)
		e, clients := fourProtocols(t, v, func(protocol string, config envoytest.M) envoytest.M {
			config["route_config"] = envoytest.M{"routes": []any{
				envoytest.M{
					"match": envoytest.M{"metadata": []any{envoytest.M{"name": "ext_authz.metadata.user", "string_match": envoytest.M{"exact": "alice"}}}},
					"route": envoytest.M{"cluster": protocol},
				},
				envoytest.M{"direct_response": envoytest.M{"body": "not checked"}},
			}, "typed_per_filter_config": envoytest.M{"aeraki.meta_protocol.filters.ext_authz": envoytest.M{
				"@type":          filterTypes + "ext_authz.v1alpha.ExtAuthzPerRoute",
				"check_settings": envoytest.M{"context_extensions": envoytest.M{"protocol": protocol}},
			}}}
			return limited(config, "ext_authz", "ext_authz.v1alpha.ExtAuthz", envoytest.M{
				"grpc_service": envoytest.M{"envoy_grpc": envoytest.M{"cluster_name": "authz"}, "timeout": "10s"},
			})
		}, envoytest.Cluster("authz", envoytest.At(service.Port)...))
		for protocol, c := range clients {
			stats := "meta_protocol." + protocol + "." + protocol + ".ext_authz."
			load := refusers[protocol].who
			load.Count, load.Concurrency, load.Summary = 100, 8, true
			s := c.Load(load)
			require.Equal(t, map[string]int{"s1": 100}, s.Values, "%s: %v", protocol, s.Errors)
			e.WaitStat(stats+"ok", envoytest.AtLeast(100))

			service.mu.Lock()
			asked := service.asked[protocol]
			service.mu.Unlock()
			require.NotNil(t, asked, protocol)
			path := asked.GetRequest().GetHttp().GetPath()
			require.True(t, strings.HasPrefix(path, "/") && strings.HasSuffix(strings.ToLower(path), "/who"), "%s: %s", protocol, path)
			require.Equal(t, "127.0.0.1", asked.GetSource().GetAddress().GetSocketAddress().GetAddress(), protocol)
			require.EqualValues(t, e.Port(protocol), asked.GetDestination().GetAddress().GetSocketAddress().GetPortValue(), protocol)

			service.deny(protocol)
			require.Contains(t, c.Call(refusers[protocol].who).Error, "not you, "+protocol)
			e.WaitStat(stats+"denied", envoytest.AtLeast(1))
			require.Zero(t, e.Stat(stats+"error")+e.Stat(stats+"invalid"), protocol)
		}
	})
}
