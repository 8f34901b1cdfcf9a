package export

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/test/bufconn"

	"github.com/meltemi-mesh/meltemi/filter/export/exporttest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// TestConfigurationsShare the exporter of a provider, whose connection goes with the last
// one, and whose counters stay.
func TestConfigurationsShare(t *testing.T) {
	c, a := served(t)
	b := newLife(a.dial)
	var pool Pool
	p, _ := parse(t, otelGRPC)
	same, _ := parse(t, otelGRPC)
	other, _ := parse(t, otelHTTP)
	one, two := pool.Open(p, a), pool.Open(same, b)
	require.Equal(t, one, two)
	require.NotEqual(t, one, pool.Open(other, a))
	one.Offer(aSpan())
	two.Offer(aSpan())
	a.over()
	require.Len(t, pool.spans, 2)
	two.Offer(aSpan())
	b.over()
	seen := c.Seen()
	require.Len(t, seen.Spans, 3)
	require.Eventually(t, func() bool {
		runtime.GC()
		last := newLife(a.dial)
		defer last.over()
		pool.Open(other, last)
		return len(pool.spans) == 1
	}, time.Minute, time.Millisecond)

	r := prometheus.NewPedanticRegistry()
	r.MustRegister(&pool)
	problems, err := testutil.GatherAndLint(r)
	require.NoError(t, err)
	require.Empty(t, problems)
	n, err := testutil.GatherAndCount(r, "meltemi_export_sent_total")
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.EqualValues(t, 3, pool.counted[countsKey{"traces", "cluster grpc"}].sent.Load())
}

// TestACollectorThatRestarts gets what was kept for it, by gRPC and HTTP: while it is away
// there is nobody, or one who says nothing.
func TestACollectorThatRestarts(t *testing.T) {
	for _, config := range []string{otelGRPC, otelHTTP} {
		for _, silent := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				collector := &exporttest.Collector{}
				var up atomic.Pointer[bufconn.Listener]
				serve := func() (stop func()) {
					l := bufconn.Listen(1 << 20)
					up.Store(l)
					if config == otelGRPC {
						s := collector.Server()
						go s.Serve(l)
						return s.Stop
					}
					s := &http.Server{Handler: collector}
					go s.Serve(l)
					return func() { s.Close() }
				}
				stop := serve()
				l := newLife(func(ctx context.Context, _ string) (net.Conn, error) {
					if l := up.Load(); l != nil {
						return l.DialContext(ctx)
					}
					if !silent {
						return nil, errors.New("nobody")
					}
					here, there := net.Pipe()
					go io.Copy(io.Discard, there)
					return here, nil
				})
				p, _ := parse(t, config)
				var pool Pool
				sink := pool.Open(p, l)
				offer := func(n int) {
					for range n {
						sink.Offer(aSpan())
					}
				}
				offer(10)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				require.Len(t, collector.Seen().Spans, 10)
				up.Store(nil)
				stop()
				offer(5)
				time.Sleep(30 * time.Second)
				offer(2000)
				stop = serve()
				time.Sleep(time.Minute)
				synctest.Wait()
				c := pool.counted[countsKey{"traces", p.String()}]
				require.Len(t, collector.Seen().Spans, 1034, config, silent)
				require.EqualValues(t, 2015, c.sent.Load()+c.lost())
				require.EqualValues(t, 1034, c.sent.Load())
				require.Positive(t, c.failed.Load())
				l.over()
				stop()
			})
		}
	}
}

// TestAWayThatIsGone without a word is found anew.
func TestAWayThatIsGone(t *testing.T) {
	for _, config := range []string{otelGRPC, otelHTTP} {
		synctest.Test(t, func(t *testing.T) {
			collector := &exporttest.Collector{}
			wire := bufconn.Listen(1 << 20)
			s, g := &http.Server{Handler: collector}, collector.Server()
			if config == otelGRPC {
				go g.Serve(wire)
			} else {
				go s.Serve(wire)
			}
			var cut atomic.Bool // what goes over the first connection goes nowhere
			var dialled atomic.Int64
			l := newLife(func(ctx context.Context, _ string) (net.Conn, error) {
				dialled.Add(1)
				c, err := wire.DialContext(ctx)
				return &leaky{Conn: c, gone: &cut, first: dialled.Load() == 1}, err
			})
			p, _ := parse(t, config)
			var pool Pool
			sink := pool.Open(p, l)
			for i := range 2 {
				sink.Offer(aSpan())
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Len(t, collector.Seen().Spans, i+1)
				cut.Store(true)
			}
			require.EqualValues(t, 2, dialled.Load())
			l.over()
			s.Close()
			g.Stop()
		})
	}
}

// leaky is a connection that may lose what is written.
type leaky struct {
	net.Conn
	gone  *atomic.Bool
	first bool
}

func (l *leaky) Write(b []byte) (int, error) {
	if l.first && l.gone.Load() {
		return len(b), nil
	}
	return l.Conn.Write(b)
}

// piped is a collector by HTTP within a bubble, with a life that reaches it.
func piped(t *testing.T) (c *exporttest.Collector, l *life, stop func()) {
	t.Helper()
	c = &exporttest.Collector{}
	wire := bufconn.Listen(1 << 20)
	s := &http.Server{Handler: c}
	go s.Serve(wire)
	return c, newLife(func(ctx context.Context, _ string) (net.Conn, error) { return wire.DialContext(ctx) }), func() { s.Close() }
}

// TestAnOfferAllocatesNothing but what the queue needs to grow, once.
func TestAnOfferAllocatesNothing(t *testing.T) {
	c := newCollector(weight{100, 1000})
	c.waiting = make([]entry[int], 0, 100)
	require.Zero(t, raced.AllocsPerRun(t, 99, func() { c.offer(1, weight{1, 1}) }))
}
