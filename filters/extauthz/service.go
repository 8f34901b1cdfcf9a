package extauthz

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// maxPending are the checks that a service may have under way.
	maxPending = 16384
	// maxSilence is how long nothing may come while checks time out, before another
	// connection is made.
	maxSilence = 5 * time.Second
	// pause is what lies between two lines of the log.
	pause = 10 * time.Second
)

var (
	errPending = errors.New("too many requests wait for it")
	errLate    = errors.New("no answer in time")
)

// service is one that is asked, by all listeners that name it.
type service struct {
	target  grpcclient.Target
	pool    *grpcclient.Pool
	life    *filter.Life
	pending atomic.Int64
	silent  atomic.Int64 // since when checks time out, on the clock of workers, and 1 ns; 0: they do not
	told    atomic.Int64 // when a failure was, on that clock; 0: never

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

// check has answered called with the answer, on another goroutine. The returned function
// gives the check up.
func (s *service) check(r *authv3.CheckRequest, answered func(*authv3.CheckResponse, error)) (cancel func(), err error) {
	if s.pending.Add(1) > maxPending {
		s.pending.Add(-1)
		return nil, errPending
	}
	call, cancel := context.WithCancel(s.target.Context(context.Background()))
	s.life.Go(func(ctx context.Context) {
		defer s.pending.Add(-1)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		conn, err := s.connection()
		var resp *authv3.CheckResponse
		if err == nil {
			resp, err = authv3.NewAuthorizationClient(conn).Check(call, r)
		}
		if err == nil {
			s.silent.Store(0)
		}
		answered(resp, err)
	})
	return cancel, nil
}

// failed tells that there was no answer that can be used, once in a while.
func (s *service) failed(err error, now time.Duration) {
	told := s.told.Load()
	if (told == 0 || int64(now)-told >= int64(pause)) && s.told.CompareAndSwap(told, int64(now)) {
		s.life.Logf(host.Warn, "meltemi: ext_authz: %s: %v", &s.target, err)
	}
}

// late tells that there was none in time.
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
