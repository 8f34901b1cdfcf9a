package grpcclient

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// maxPending are the calls to a service that may be under way.
	maxPending = 16384
	// maxSilence is how long nothing may come while calls time out, before another
	// connection is made.
	maxSilence = 5 * time.Second
	// quiet is how long nothing is said of failures behind the last time.
	quiet = time.Minute
)

var (
	// ErrPending is why a service is not asked: MaxPending calls are under way.
	ErrPending = errors.New("too many requests wait for it")
	// ErrLate is for who waits no longer.
	ErrLate = errors.New("no answer in time")
)

// Life is as long as a service is used; a filter's *filter.Life is one.
type Life interface {
	Go(f func(ctx context.Context))
	Dial(ctx context.Context, cluster string) (net.Conn, error)
	Logf(level host.Level, format string, args ...any)
}

// Service is one that is asked a question for each request, by all listeners that name
// it, while no worker waits.
type Service struct {
	// MaxPending are the calls that may be under way, 16384 unless it is set before the
	// first.
	MaxPending int64

	name    string // of who asks
	target  Target
	pool    *Pool
	life    Life
	pending atomic.Int64
	// silent is when the first call has timed out since there was an answer, on the
	// clock of workers, and 1 ns; 0 is never.
	silent  atomic.Int64
	failing atomic.Bool  // and that was said
	said    atomic.Int64 // when, on that clock

	mu   sync.Mutex
	conn *Conn
	err  error // why there is none
}

// NewService returns the service at t for the filter of that name. It is connected to as
// long as l lasts.
func NewService(name string, t Target, pool *Pool, l Life) *Service {
	s := &Service{MaxPending: maxPending, name: name, target: t, pool: pool, life: l}
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
func (s *Service) connection() (*Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil && s.err == nil {
		s.conn, s.err = s.pool.Get(&s.target, s.life.Dial)
	}
	return s.conn, s.err
}

// Ask calls the service on another goroutine, and then answered, there, with what came of
// it. The returned function gives the call up; answered is called all the same. The error
// is ErrPending: then nothing is called.
func Ask[R any](s *Service, call func(ctx context.Context, conn grpc.ClientConnInterface) (R, error), answered func(R, error)) (giveUp func(), err error) {
	if s.pending.Add(1) > s.MaxPending {
		s.pending.Add(-1)
		return nil, ErrPending
	}
	its, cancel := context.WithCancel(s.target.Context(context.Background()))
	s.life.Go(func(ctx context.Context) {
		defer s.pending.Add(-1)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		var resp R
		conn, err := s.connection()
		if err == nil {
			resp, err = call(its, conn)
		}
		if err == nil {
			s.heard()
		}
		answered(resp, err)
	})
	return cancel, nil
}

// heard tells that the service answers.
func (s *Service) heard() {
	if s.silent.Load() != 0 {
		s.silent.Store(0)
	}
	if s.failing.Load() && s.failing.CompareAndSwap(true, false) {
		s.life.Logf(host.Info, "meltemi: %s: %s answers again", s.name, &s.target)
	}
}

// Failed logs that there was no answer that can be used: once until there is one, and once
// a minute at most. now is the worker's clock.
func (s *Service) Failed(err error, now time.Duration) {
	if said := s.said.Load(); s.failing.Load() || said != 0 && now-time.Duration(said) < quiet {
		return
	}
	if s.failing.CompareAndSwap(false, true) {
		s.said.Store(int64(now) + 1)
		s.life.Logf(host.Warn, "meltemi: %s: %s: %v", s.name, &s.target, err)
	}
}

// Late tells that there was no answer in time. When none comes for long another connection
// is made, as that behind it may be gone without a word. now is the worker's clock.
func (s *Service) Late(now time.Duration) {
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
