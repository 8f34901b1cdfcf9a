package ratelimit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// maxSilence is how long nothing may come while calls time out, before another
	// connection is made.
	maxSilence = 5 * time.Second
	// quiet is how long nothing is said of failures behind the last time.
	quiet = time.Minute
)

// maxPending are the calls to a service that may be under way.
var maxPending int64 = 16384

var (
	errPending = errors.New("too many requests wait for it")
	errLate    = errors.New("no answer in time")
)

// service is one that is asked, for all listeners that name it.
type service struct {
	target  grpcclient.Target
	pool    *grpcclient.Pool
	life    *filter.Life
	pending atomic.Int64
	// silent is when the first call has timed out since there was an answer, on the
	// clock of workers, and 1 ns; 0 is never.
	silent  atomic.Int64
	failing atomic.Bool  // and that was said
	said    atomic.Int64 // when, on that clock

	mu   sync.Mutex
	conn *grpcclient.Conn
	err  error // why there is none
}

func newService(t grpcclient.Target, pool *grpcclient.Pool, l *filter.Life) *service {
	s := &service{target: t, pool: pool, life: l}
	l.Go(func(ctx context.Context) {
		if conn, err := s.connection(); err == nil {
			conn.Hold(ctx)
			conn.Release()
		}
	})
	return s
}

// connection is made when it is wanted first: not for a configuration that comes to
// nothing.
func (s *service) connection() (*grpcclient.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil && s.err == nil {
		s.conn, s.err = s.pool.Get(&s.target, s.life.Dial)
	}
	return s.conn, s.err
}

// ask has answered called with the answer, on another goroutine. The returned function
// gives the call up; answered is called all the same.
func (s *service) ask(r *ratelimitv3.RateLimitRequest, answered func(*ratelimitv3.RateLimitResponse, error)) (cancel func(), err error) {
	if s.pending.Add(1) > maxPending {
		s.pending.Add(-1)
		return nil, errPending
	}
	call, cancel := context.WithCancel(s.target.Context(context.Background()))
	s.life.Go(func(context.Context) { // who has asked gives it up before the life ends
		defer s.pending.Add(-1)
		defer cancel()
		conn, err := s.connection()
		var resp *ratelimitv3.RateLimitResponse
		if err == nil {
			resp, err = ratelimitv3.NewRateLimitServiceClient(conn).ShouldRateLimit(call, r)
		}
		if err == nil {
			s.heard()
		}
		answered(resp, err)
	})
	return cancel, nil
}

// heard tells that the service answers.
func (s *service) heard() {
	if s.silent.Load() != 0 {
		s.silent.Store(0)
	}
	if s.failing.Load() && s.failing.CompareAndSwap(true, false) {
		s.life.Logf(host.Info, "meltemi: ratelimit: %s answers again", &s.target)
	}
}

// failed tells that it does not, once until it does, and not as often as that may be.
func (s *service) failed(err error, now time.Duration) {
	if said := s.said.Load(); s.failing.Load() || said != 0 && now-time.Duration(said) < quiet {
		return
	}
	if s.failing.CompareAndSwap(false, true) {
		s.said.Store(int64(now) + 1)
		s.life.Logf(host.Warn, "meltemi: ratelimit: %s: %v", &s.target, err)
	}
}

// late tells that there was no answer in time.
func (s *service) late(now time.Duration) {
	since := s.silent.Load()
	switch {
	case since == 0:
		s.silent.CompareAndSwap(0, int64(now)+1)
	case now+1-time.Duration(since) > maxSilence && s.silent.CompareAndSwap(since, 0):
		if conn, err := s.connection(); err == nil {
			conn.Reset()
		}
	}
}
