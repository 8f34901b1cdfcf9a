package rds

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Bounds of what proxies can cost.
const (
	// MaxStreams of all proxies; further ones are turned away.
	MaxStreams = 100_000
	// maxStreams of a connection; further ones wait.
	maxStreams = 1000
	// MaxNames that a stream may want.
	MaxNames = 1000
	// maxName bounds the names of resources and of nodes.
	maxName = 512
	// maxRequest is for the names, and for what was refused and why.
	maxRequest = 4 << 20
	// maxText is kept of why something was refused.
	maxText = 4 << 10
)

const (
	// Proxies that have gone without a word are noticed within the two together.
	probeTime   = 30 * time.Second
	probeAnswer = 10 * time.Second
	// maxAge of connections, as istiod has it: who a proxy is gets asked again, and
	// the proxies spread over the replicas that there are by then.
	maxAge      = 30 * time.Minute
	maxAgeGrace = 10 * time.Second
	// lingering is how long connections may take to end at a shutdown.
	lingering = 5 * time.Second
)

// readBuffer is of each connection, on which little comes:
// with gRPC's own a thousand idle proxies take 64 MiB.
const readBuffer = 4 << 10

// Options of a server.
type Options struct {
	// Credentials of the replica; nil: it has no TLS, and serves everybody everything.
	Credentials *Credentials
	// TrustDomain that proxies must be of; "": any that the credentials' roots vouch
	// for.
	TrustDomain string
	Log         logr.Logger
}

// Server serves what a store holds.
type Server struct {
	routeservicev3.UnimplementedRouteDiscoveryServiceServer
	Options
	name    string // which nobody else has
	store   *Store
	grpc    *grpc.Server
	closing chan struct{}

	mu      sync.Mutex
	streams map[*stream]struct{}
	proxies map[proxy]int // how many streams each has
}

// proxy is one at the other end of streams.
type proxy struct {
	identity Identity
	node     string
}

// NewServer returns one that serves what store holds, once it is told to.
func NewServer(store *Store, o Options) *Server {
	s := &Server{Options: o, name: rand.Text(), store: store, closing: make(chan struct{}), streams: map[*stream]struct{}{}, proxies: map[proxy]int{}}
	creds := insecure.NewCredentials()
	if o.Credentials != nil {
		creds = o.Credentials.server()
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(creds), grpc.MaxConcurrentStreams(maxStreams), grpc.MaxRecvMsgSize(maxRequest),
		grpc.ReadBufferSize(readBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: probeTime, Timeout: probeAnswer, MaxConnectionAge: maxAge, MaxConnectionAgeGrace: maxAgeGrace}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: probeTime / 3, PermitWithoutStream: true}),
	)
	routeservicev3.RegisterRouteDiscoveryServiceServer(s.grpc, s)
	s.grpc.RegisterService(&reportService, s)
	return s
}

// Serve serves at l, which it closes, until ctx is done. Proxies are then told to go to
// another replica. It can be called once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- s.grpc.Serve(l) }()
	select {
	case err := <-failed:
		s.grpc.Stop()
		return err
	case <-ctx.Done():
	}
	close(s.closing)
	t := time.AfterFunc(lingering, s.grpc.Stop)
	defer t.Stop()
	s.grpc.GracefulStop()
	if err := <-failed; !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// StreamRoutes serves the state of the world.
func (s *Server) StreamRoutes(g routeservicev3.RouteDiscoveryService_StreamRoutesServer) error {
	return s.run(g.Context(), world{g})
}

// DeltaRoutes serves changes.
func (s *Server) DeltaRoutes(g routeservicev3.RouteDiscoveryService_DeltaRoutesServer) error {
	return s.run(g.Context(), delta{g})
}

func (s *Server) run(ctx context.Context, d dialect) error {
	who, err := identify(ctx, s.TrustDomain)
	if err != nil {
		return err
	}
	st := &stream{Server: s, dialect: d, who: who, wake: make(chan struct{}, 1), wants: map[string]*want{}}
	s.mu.Lock()
	full := len(s.streams) >= MaxStreams
	if !full {
		s.streams[st] = struct{}{}
	}
	s.mu.Unlock()
	if full {
		return status.Errorf(codes.ResourceExhausted, "there are %d streams", MaxStreams)
	}
	streams.Inc()
	defer s.ended(st)
	return st.run(ctx)
}

// named has a stream's proxy be known.
func (s *Server) named(st *stream, node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.node = node
	p := proxy{st.who, node}
	if s.proxies[p]++; s.proxies[p] == 1 {
		proxies.Inc()
	}
}

func (s *Server) ended(st *stream) {
	streams.Dec()
	for name := range st.wants {
		s.store.unwatch(name, st)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	if st.typeURL == "" {
		return // it was never named
	}
	p := proxy{st.who, st.node}
	if s.proxies[p]--; s.proxies[p] == 0 {
		delete(s.proxies, p)
		proxies.Dec()
	}
}

// State is what a proxy has said of a resource.
type State struct {
	// Node is the proxy's name for itself, and Identity what its certificate says it
	// is, "" without TLS.
	Node     string `json:"node"`
	Identity string `json:"identity,omitempty"`
	Type     string `json:"type"`
	// Accepted is the version that it took last, "" for none, and Current whether that
	// is the one that is served.
	Accepted string `json:"accepted,omitempty"`
	Current  bool   `json:"current"`
	// Refused is the version that it has refused since, and Reason its text.
	Refused string `json:"refused,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// States are what the proxies that are connected now have said of a resource, in order.
// Each has streams to one replica only, and each replica knows of its own.
func (s *Server) States(name string) []State {
	var all []State
	s.mu.Lock()
	for st := range s.streams {
		if state, ok := st.state(name); ok {
			all = append(all, state)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b State) int {
		if c := strings.Compare(a.Identity, b.Identity); c != 0 {
			return c
		}
		return strings.Compare(a.Node, b.Node)
	})
	return all
}
