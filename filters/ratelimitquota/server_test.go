package ratelimitquota

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	quotav3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// server is a quota service that the test plays.
type server struct {
	quotav3.UnimplementedRateLimitQuotaServiceServer
	grpc    *grpc.Server
	l       *bufconn.Listener
	streams chan *stream
}

// stream is one that a client has opened.
type stream struct {
	quotav3.RateLimitQuotaService_StreamRateLimitQuotasServer
	reports chan *quotav3.RateLimitQuotaUsageReports
	end     chan struct{}
}

func newServer() *server {
	s := &server{grpc: grpc.NewServer(), l: bufconn.Listen(64 << 10), streams: make(chan *stream, 10)}
	quotav3.RegisterRateLimitQuotaServiceServer(s.grpc, s)
	go s.grpc.Serve(s.l)
	return s
}

func (s *server) stop() {
	s.grpc.Stop()
	s.l.Close()
}

func (s *server) StreamRateLimitQuotas(g quotav3.RateLimitQuotaService_StreamRateLimitQuotasServer) error {
	st := &stream{g, make(chan *quotav3.RateLimitQuotaUsageReports, 1000), make(chan struct{})}
	s.streams <- st
	failed := make(chan error, 1)
	go func() {
		for {
			r, err := g.Recv()
			if err != nil {
				failed <- err
				return
			}
			st.reports <- r
		}
	}()
	select {
	case err := <-failed:
		return err
	case <-st.end:
		return errors.New("ended by the test")
	}
}

// servers are those behind a dial function.
type servers struct {
	mu  sync.Mutex
	now *server // nil: nobody listens
}

func (s *servers) dial(ctx context.Context, cluster string) (net.Conn, error) {
	s.mu.Lock()
	now := s.now
	s.mu.Unlock()
	if now == nil {
		return nil, errors.New("nobody listens in " + cluster)
	}
	return now.l.DialContext(ctx)
}

// replace replaces the server, whose streams break.
func (s *servers) replace(by *server) *server {
	s.mu.Lock()
	old := s.now
	s.now = by
	s.mu.Unlock()
	if old != nil {
		old.stop()
	}
	return by
}

func idOf(tenant string) *quotav3.BucketId {
	return &quotav3.BucketId{Bucket: map[string]string{"tenant": tenant}}
}

// usageOf is what reports say in sum, as "allowed/denied" of each tenant.
func usageOf(t *testing.T, reports ...*quotav3.RateLimitQuotaUsageReports) map[string]string {
	t.Helper()
	allowed, denied := map[string]uint64{}, map[string]uint64{}
	for _, r := range reports {
		require.Equal(t, "d", r.GetDomain())
		require.NotEmpty(t, r.GetBucketQuotaUsages())
		for _, u := range r.GetBucketQuotaUsages() {
			require.Positive(t, u.GetTimeElapsed().AsDuration())
			tenant := u.GetBucketId().GetBucket()["tenant"]
			allowed[tenant] += u.GetNumRequestsAllowed()
			denied[tenant] += u.GetNumRequestsDenied()
		}
	}
	said := map[string]string{}
	for tenant := range allowed {
		said[tenant] = fmt.Sprintf("%d/%d", allowed[tenant], denied[tenant])
	}
	return said
}

func assignment(tenant string, s *typev3.RateLimitStrategy, ttl ...time.Duration) *quotav3.RateLimitQuotaResponse {
	a := &quotav3.RateLimitQuotaResponse_BucketAction_QuotaAssignmentAction{RateLimitStrategy: s}
	if len(ttl) > 0 {
		a.AssignmentTimeToLive = durationpb.New(ttl[0])
	}
	return &quotav3.RateLimitQuotaResponse{BucketAction: []*quotav3.RateLimitQuotaResponse_BucketAction{{
		BucketId: idOf(tenant), BucketAction: &quotav3.RateLimitQuotaResponse_BucketAction_QuotaAssignmentAction_{QuotaAssignmentAction: a},
	}}}
}

func abandonment(tenant string) *quotav3.RateLimitQuotaResponse {
	return &quotav3.RateLimitQuotaResponse{BucketAction: []*quotav3.RateLimitQuotaResponse_BucketAction{{
		BucketId:     idOf(tenant),
		BucketAction: &quotav3.RateLimitQuotaResponse_BucketAction_AbandonAction_{AbandonAction: &quotav3.RateLimitQuotaResponse_BucketAction_AbandonAction{}},
	}}}
}

func blanket(r typev3.RateLimitStrategy_BlanketRule) *typev3.RateLimitStrategy {
	return &typev3.RateLimitStrategy{Strategy: &typev3.RateLimitStrategy_BlanketRule_{BlanketRule: r}}
}

func perHour(n uint64) *typev3.RateLimitStrategy {
	return &typev3.RateLimitStrategy{Strategy: &typev3.RateLimitStrategy_RequestsPerTimeUnit_{RequestsPerTimeUnit: &typev3.RateLimitStrategy_RequestsPerTimeUnit{
		RequestsPerTimeUnit: n, TimeUnit: typev3.RateLimitUnit_HOUR,
	}}}
}

func tokens(most, fill uint32, interval time.Duration) *typev3.RateLimitStrategy {
	return &typev3.RateLimitStrategy{Strategy: &typev3.RateLimitStrategy_TokenBucket{TokenBucket: &typev3.TokenBucket{
		MaxTokens: most, TokensPerFill: wrapperspb.UInt32(fill), FillInterval: durationpb.New(interval),
	}}}
}
