// Package rdsserver is an RDS server that says what a test wants, and knows what its
// clients think of it.
package rdsserver

import (
	"crypto/tls"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

const patience = 30 * time.Second

// Server is a running server. Its streams get each answer that it is told to give, and
// new ones the last.
type Server struct {
	routeservicev3.UnimplementedRouteDiscoveryServiceServer
	Port int

	t    testing.TB
	grpc *grpc.Server

	mu      sync.Mutex
	version int
	last    map[string]*anypb.Any // by the name of the resource
	streams map[*stream]struct{}
	opened  int
}

type stream struct {
	s      *Server
	name   string
	send   func(version string, a *anypb.Any) error
	held   string // the version that the client told first
	judged int    // the version that the client spoke of last
	fault  string // what it said
}

// Start runs a server on 127.0.0.1, at port if that is not 0, with TLS if it has a
// configuration, until the end of the test or Kill.
func Start(t testing.TB, port int, secure *tls.Config) *Server {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	require.NoError(t, err)
	s := &Server{t: t, Port: l.Addr().(*net.TCPAddr).Port, last: map[string]*anypb.Any{}, streams: map[*stream]struct{}{}}
	var options []grpc.ServerOption
	if secure != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(secure)))
	}
	s.grpc = grpc.NewServer(options...)
	routeservicev3.RegisterRouteDiscoveryServiceServer(s.grpc, s)
	go s.grpc.Serve(l)
	t.Cleanup(s.Kill)
	return s
}

// Kill ends the server, and its connections with it.
func (s *Server) Kill() { s.grpc.Stop() }

// From has versions begin behind that one.
func (s *Server) From(version int) *Server {
	s.version = version
	return s
}

// Streams is how many are open, and how many were.
func (s *Server) Streams() (open, ever int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams), s.opened
}

// Held is the version that the first client told that it has.
func (s *Server) Held() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		return st.held
	}
	return ""
}

// To has a name's requests go to a cluster, and waits until all streams that want it
// have accepted that.
func (s *Server) To(name, cluster string) {
	s.t.Helper()
	require.Empty(s.t, s.Say(name, &routev1alpha.RouteConfiguration{Name: name, Routes: []*routev1alpha.Route{{
		Route: &routev1alpha.RouteAction{ClusterSpecifier: &routev1alpha.RouteAction_Cluster{Cluster: cluster}},
	}}}))
}

// Say has a resource be m, and waits for what those say of it who want it: "" for
// yes.
func (s *Server) Say(name string, m proto.Message) string {
	s.t.Helper()
	a, err := anypb.New(m)
	require.NoError(s.t, err)
	return s.SayAny(name, a)
}

// SayAny is Say of what may be none.
func (s *Server) SayAny(name string, a *anypb.Any) (fault string) {
	s.t.Helper()
	s.mu.Lock()
	s.version++
	version := s.version
	s.last[name] = a
	for st := range s.streams {
		if st.name == name {
			_ = st.send(strconv.Itoa(version), a) // a stream that has broken goes
		}
	}
	s.mu.Unlock()
	judged := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		for st := range s.streams {
			if st.name != name {
				continue
			}
			if n++; st.judged < version {
				return false
			}
			fault = st.fault
		}
		return n > 0
	}
	for deadline := time.Now().Add(patience); !judged(); time.Sleep(time.Millisecond) {
		require.True(s.t, time.Now().Before(deadline), "nobody has judged version %d of %s", version, name)
	}
	return fault
}

// open takes a stream on.
func (s *Server) open(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	s.streams[st] = struct{}{}
	if a := s.last[st.name]; a != nil {
		_ = st.send(strconv.Itoa(s.version), a)
	}
}

func (s *Server) close(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
}

// hear notes what a client says of a version.
func (st *stream) hear(nonce, fault string) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.judged, _ = strconv.Atoi(nonce)
	st.fault = fault
}

// StreamRoutes implements the service.
func (s *Server) StreamRoutes(g routeservicev3.RouteDiscoveryService_StreamRoutesServer) error {
	r, err := g.Recv()
	if err != nil {
		return err
	}
	st := &stream{s: s, name: r.GetResourceNames()[0], held: r.GetVersionInfo()}
	st.send = func(version string, a *anypb.Any) error {
		return g.Send(&discoveryv3.DiscoveryResponse{VersionInfo: version, Nonce: version, TypeUrl: r.GetTypeUrl(), Resources: []*anypb.Any{a}})
	}
	s.open(st)
	defer s.close(st)
	for {
		r, err := g.Recv()
		if err != nil {
			return err
		}
		st.hear(r.GetResponseNonce(), r.GetErrorDetail().GetMessage())
	}
}

// DeltaRoutes implements the service.
func (s *Server) DeltaRoutes(g routeservicev3.RouteDiscoveryService_DeltaRoutesServer) error {
	r, err := g.Recv()
	if err != nil {
		return err
	}
	st := &stream{s: s, name: r.GetResourceNamesSubscribe()[0]}
	st.held = r.GetInitialResourceVersions()[st.name]
	st.send = func(version string, a *anypb.Any) error {
		return g.Send(&discoveryv3.DeltaDiscoveryResponse{Nonce: version, TypeUrl: r.GetTypeUrl(), Resources: []*discoveryv3.Resource{
			{Name: st.name, Version: version, Resource: a},
		}})
	}
	s.open(st)
	defer s.close(st)
	for {
		r, err := g.Recv()
		if err != nil {
			return err
		}
		st.hear(r.GetResponseNonce(), r.GetErrorDetail().GetMessage())
	}
}

// Port is one at which a server can be started again.
func Port(t testing.TB) int { return peers.RestartPort(t) }
