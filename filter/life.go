package filter

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
)

// Life is how long something lives that filters have beside the traffic: a
// configuration, or what several of them share. It begins when the host has accepted
// the first configuration that has it, and ends with the last one. Any goroutine may
// use it.
type Life struct {
	background host.Background
	ctx        context.Context
	cancel     context.CancelFunc
	mod        *Module
	panics     *atomic.Int64 // of its goroutines, that its listener has not counted

	mu      sync.Mutex
	begun   bool
	waiting []func(ctx context.Context)
}

func (l *listener) newLife() *Life {
	return newLife(l.background, l.mod, &l.panics)
}

func newLife(b host.Background, mod *Module, panics *atomic.Int64) *Life {
	l := &Life{background: b, mod: mod, panics: panics}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Go runs f on a goroutine of its own, from the beginning of the life. f returns soon
// after ctx is done, at the end of the life. A panic of f is logged and counted, and
// ends f alone.
func (l *Life) Go(f func(ctx context.Context)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ctx.Err() != nil:
	case l.begun:
		l.start(f)
	default:
		l.waiting = append(l.waiting, f)
	}
}

func (l *Life) start(f func(ctx context.Context)) {
	l.mod.goroutines.Add(1)
	go func() {
		defer l.mod.goroutines.Done()
		defer func() {
			if r := recover(); r != nil {
				l.panicked("in a goroutine of a filter", r)
			}
		}()
		f(l.ctx)
	}()
}

// panicked counts what was recovered, and logs it.
func (l *Life) panicked(where string, r any) {
	l.panics.Add(1)
	l.mod.panicked(l.background, where, guard.New(r))
}

// Dial connects to one host of a cluster of the host's, as the cluster says: with its
// load balancing, limits and TLS. That there is no such cluster, or no host in it, may
// show only by the connection's end.
func (l *Life) Dial(ctx context.Context, cluster string) (net.Conn, error) {
	return l.background.DialCluster(ctx, cluster)
}

// Logf logs with the host's logger.
func (l *Life) Logf(level host.Level, format string, args ...any) {
	l.background.Logf(level, format, args...)
}

func (l *Life) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.begun || l.ctx.Err() != nil {
		return
	}
	l.begun = true
	for _, f := range l.waiting {
		l.start(f)
	}
	l.waiting = nil
}

func (l *Life) end() {
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = nil
}
