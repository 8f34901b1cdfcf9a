package export

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// life is that of a configuration in a test.
type life struct {
	dial    func(ctx context.Context, cluster string) (net.Conn, error)
	ctx     context.Context
	end     context.CancelFunc
	running sync.WaitGroup

	mu  sync.Mutex
	log []string
}

func newLife(dial func(ctx context.Context, cluster string) (net.Conn, error)) *life {
	l := &life{dial: dial}
	l.ctx, l.end = context.WithCancel(context.Background())
	return l
}

func (l *life) Go(f func(ctx context.Context)) { l.running.Go(func() { f(l.ctx) }) }

func (l *life) Dial(ctx context.Context, cluster string) (net.Conn, error) {
	return l.dial(ctx, cluster)
}

func (l *life) Logf(_ host.Level, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log = append(l.log, fmt.Sprintf(format, args...))
}

// over ends the life, and returns when nothing of it runs.
func (l *life) over() {
	l.end()
	l.running.Wait()
}

func (l *life) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := strings.Join(l.log, "\n")
	l.log = nil
	return s
}

// collector is the far side of an exporter of numbers.
type collector struct {
	*exporter[int]
	answer func(ctx context.Context, n int) (int, error) // nil: takes all
	got    [][]int
	closes int
}

func newCollector(most weight) *collector {
	c := &collector{}
	c.exporter = newExporter(&exporter[int]{
		limits: limits{most, weight{10, 1000}, time.Second}, state: state{what: "numbers to c"}, items: "numbers", counts: &counts{},
		closed: func() { c.closes++ },
		upload: func(ctx context.Context, items []int) (refused int, err error) {
			if c.answer != nil {
				refused, err = c.answer(ctx, len(items))
			}
			if f := (*failure)(nil); !errors.As(err, &f) {
				c.got = append(c.got, items)
			}
			return refused, err
		},
	})
	return c
}

func (c *collector) use(l *life) *collector {
	if c.logf == nil {
		c.logf = l.Logf
	}
	c.exporter.use(l)
	return c
}

// tell is what was counted: sent, waiting, and dropped by reason.
func (c *collector) tell() string {
	s := fmt.Sprintf("sent %d waiting %d", c.counts.sent.Load(), c.counts.waiting.Load())
	for r := range c.counts.dropped {
		if n := c.counts.dropped[r].Load(); n > 0 {
			s += fmt.Sprintf(" %s %d", reasonNames[r], n)
		}
	}
	return s
}

func (c *collector) offerMany(n int) {
	for range n {
		c.offer(1, weight{1, 10})
	}
}

var (
	errAgain = &failure{err: errors.New("away\nfor lunch"), again: true}
	errNever = &failure{err: errors.New("what is this?")}
)

// TestWhatIsDueIsSent: a second after the first one, or when it is much.
func TestWhatIsDueIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(nil)
		c := newCollector(weight{100, 1000}).use(l)
		c.offerMany(3)
		time.Sleep(time.Second - 1)
		synctest.Wait()
		require.Empty(t, c.got)
		c.offerMany(1)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.Len(t, c.got, 1)
		require.Len(t, c.got[0], 4)
		c.offerMany(10)
		synctest.Wait()
		require.Len(t, c.got, 2)
		require.Equal(t, "sent 14 waiting 0", c.tell())
		l.over()
		require.Equal(t, 1, c.closes)
	})
}

// TestASlowCollector costs what does not fit, and nobody waits for it.
func TestASlowCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(nil)
		c := newCollector(weight{100, 2000})
		c.answer = func(context.Context, int) (int, error) { time.Sleep(time.Hour); return 0, nil }
		c.use(l)
		c.offerMany(10)
		synctest.Wait()
		begun := time.Now()
		c.offerMany(1000)
		require.Equal(t, begun, time.Now())
		require.Equal(t, "sent 0 waiting 100 queue_full 910", c.tell())
		c.offer(1, weight{1, 1001}) // bytes count as numbers do
		require.Equal(t, "sent 0 waiting 100 queue_full 911", c.tell())
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, "sent 10 waiting 90 queue_full 911", c.tell())
		require.Equal(t, `meltemi: numbers to c: it takes too little: numbers wait, and are dropped beyond 100`, l.said())
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, "sent 100 waiting 0 queue_full 911", c.tell())
		require.Equal(t, `meltemi: numbers to c: takes numbers again, 911 were dropped so far`, l.said())
		require.False(t, c.offer(1, weight{1, 2001}))
		l.over()
		require.Equal(t, "sent 100 waiting 0 queue_full 912", c.tell())
	})
}

// TestACollectorThatIsGone is tried again ever more seldom. What has waited for it for a
// minute is dropped, and so are the batches behind that until it is back.
func TestACollectorThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(nil)
		c := newCollector(weight{100, 1000})
		tried := make(chan time.Time, 1000)
		var gone atomic.Bool
		gone.Store(true)
		c.answer = func(context.Context, int) (int, error) {
			tried <- time.Now()
			if gone.Load() {
				return 0, errAgain
			}
			return 0, nil
		}
		c.use(l)
		c.offerMany(10)
		time.Sleep(59 * time.Second)
		synctest.Wait()
		require.Equal(t, "sent 0 waiting 10", c.tell())
		most, last := minPause, <-tried
		for len(tried) > 0 {
			now := <-tried
			pause := now.Sub(last)
			last = now
			require.GreaterOrEqual(t, pause, most/2)
			require.LessOrEqual(t, pause, most)
			most = min(2*most, maxPause)
		}
		require.Equal(t, maxPause, most)
		c.offerMany(200)
		time.Sleep(2 * maxPause)
		synctest.Wait()
		require.Equal(t, "sent 0 waiting 90 queue_full 110 unavailable 10", c.tell())
		require.Equal(t, `meltemi: numbers to c: away\nfor lunch: numbers wait, and are dropped beyond 100`, l.said())
		gone.Store(false)
		time.Sleep(maxPause)
		synctest.Wait()
		require.Equal(t, "sent 90 waiting 0 queue_full 110 unavailable 10", c.tell())
		require.Empty(t, l.said(), "some were lost before that")
		c.offerMany(1)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, `meltemi: numbers to c: takes numbers again, 120 were dropped so far`, l.said())
		l.over()
	})
}

// TestACollectorSaysWhen it may be asked again.
func TestACollectorSaysWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(nil)
		c := newCollector(weight{100, 1000})
		begun := time.Now()
		var tried []time.Duration
		c.answer = func(context.Context, int) (int, error) {
			if tried = append(tried, time.Since(begun)); len(tried) == 1 {
				return 0, &failure{err: errors.New("busy"), again: true, after: 7 * time.Second}
			}
			return 0, nil
		}
		c.use(l).offerMany(10)
		time.Sleep(8 * time.Second)
		synctest.Wait()
		require.Equal(t, []time.Duration{0, 7 * time.Second}, tried)
		l.over()
	})
}

// TestWhatIsRefused is dropped: all, or as many as the collector says, however it counts.
func TestWhatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(nil)
		c := newCollector(weight{100, 1000})
		answers := []struct {
			n   int
			err error
		}{{0, errNever}, {3, errors.New("3 refused")}, {-5, nil}, {99, errors.New("99 refused")}}
		c.answer = func(context.Context, int) (int, error) {
			a := answers[0]
			answers = answers[1:]
			return a.n, a.err
		}
		c.use(l)
		for _, want := range []string{"sent 0 waiting 0 refused 10", "sent 7 waiting 0 refused 13", "sent 17 waiting 0 refused 13", "sent 17 waiting 0 refused 23"} {
			c.offerMany(10)
			synctest.Wait()
			require.Equal(t, want, c.tell())
		}
		require.Equal(t, "meltemi: numbers to c: what is this?: numbers wait, and are dropped beyond 100\n"+
			"meltemi: numbers to c: takes numbers again, 13 were dropped so far", l.said(), "one behind the other is not told at once")
		l.over()
	})
}

// TestUsersTakeTurns: the work goes on in the life of another one, with the batch that
// waits to be tried again, and the last one has the rest sent.
func TestUsersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newLife(nil), newLife(nil)
		c := newCollector(weight{100, 1000})
		var gone atomic.Bool
		gone.Store(true)
		c.answer = func(context.Context, int) (int, error) {
			if gone.Load() {
				return 0, errAgain
			}
			return 0, nil
		}
		c.use(a)
		c.use(b)
		c.offerMany(10)
		synctest.Wait()
		a.over()
		c.offerMany(5)
		synctest.Wait()
		require.Zero(t, c.closes)
		gone.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, "sent 15 waiting 0", c.tell())
		c.offerMany(5)
		b.over()
		require.Equal(t, "sent 20 waiting 0", c.tell())
		require.Equal(t, 1, c.closes)
		c.offerMany(5)
		require.Equal(t, "sent 20 waiting 0 shutdown 5", c.tell())
		again := newLife(nil)
		c.use(again).offerMany(1)
		again.over()
		require.Equal(t, "sent 21 waiting 0 shutdown 5", c.tell())
	})
}

// TestAUserLeavesWhileThereIsMuchToDo: another one goes on with it.
func TestAUserLeavesWhileThereIsMuchToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newLife(nil), newLife(nil)
		c := newCollector(weight{100, 1000})
		c.answer = func(context.Context, int) (int, error) {
			c.offerMany(50)
			time.Sleep(time.Second)
			return 0, nil
		}
		c.use(a).offerMany(10)
		synctest.Wait()
		c.use(b)
		begun := time.Now()
		a.over()
		require.LessOrEqual(t, time.Since(begun), time.Second)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.GreaterOrEqual(t, c.counts.sent.Load(), int64(400))
		c.answer = func(context.Context, int) (int, error) { return 0, nil }
		b.over()
		require.Zero(t, c.counts.waiting.Load())
	})
}

// TestTheEndIsBounded, whatever the collector does, and exact.
func TestTheEndIsBounded(t *testing.T) {
	hang := func(ctx context.Context, _ int) (int, error) {
		<-ctx.Done()
		return 0, &failure{err: ctx.Err(), again: true}
	}
	for name, tt := range map[string]struct {
		answer func(ctx context.Context, n int) (int, error)
		want   string
		most   time.Duration
	}{
		"hangs":   {hang, "sent 0 waiting 0 shutdown 30", 2 * flushTime},
		"gone":    {func(context.Context, int) (int, error) { return 0, errAgain }, "sent 0 waiting 0 shutdown 30", 0},
		"refuses": {func(context.Context, int) (int, error) { return 0, errNever }, "sent 0 waiting 0 refused 30", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLife(nil)
			c := newCollector(weight{100, 1000})
			c.answer = tt.answer
			c.use(l)
			c.offerMany(10)
			synctest.Wait()
			c.offerMany(20)
			begun := time.Now()
			l.over()
			require.Equal(t, tt.want, c.tell(), name)
			require.LessOrEqual(t, time.Since(begun), tt.most, name)
		})
	}
}

// TestNothingIsLostUntold: many offer while the collector does what it wants, and users
// come and go.
func TestNothingIsLostUntold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCollector(weight{500, 1 << 20})
		rnd := rand.New(rand.NewPCG(1, 2))
		var received atomic.Int64
		c.answer = func(_ context.Context, n int) (int, error) {
			time.Sleep(rand.N(time.Second))
			switch rnd.IntN(6) {
			case 0:
				return 0, errAgain
			case 1:
				return 0, errNever
			case 2:
				refused := rnd.IntN(n + 1)
				received.Add(int64(n - refused))
				return refused, errors.New("some")
			default:
				received.Add(int64(n))
				return 0, nil
			}
		}
		c.logf = func(host.Level, string, ...any) {}
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range 20 {
					l := newLife(nil)
					c.exporter.use(l)
					for range 100 {
						c.offerMany(1)
						time.Sleep(rand.N(20 * time.Millisecond))
					}
					l.over()
				}
			})
		}
		all.Wait()
		require.Zero(t, c.counts.waiting.Load())
		require.Equal(t, received.Load(), c.counts.sent.Load())
		require.EqualValues(t, 4*20*100, c.counts.sent.Load()+c.counts.lost())
		require.Positive(t, c.counts.sent.Load())
	})
}

// TestBatchesAreBounded by their number and bytes; what is larger goes alone.
func TestBatchesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(nil)
		c := newCollector(weight{1 << 20, 1 << 30})
		release := make(chan struct{})
		c.answer = func(context.Context, int) (int, error) { <-release; return 0, nil }
		c.use(l)
		c.offerMany(10)
		synctest.Wait()
		c.offerMany(maxBatch + 10)
		c.offer(1, weight{1, maxBatchBytes - 50})
		c.offer(1, weight{1, maxBatchBytes + 1})
		close(release)
		synctest.Wait()
		var sizes []int
		for _, b := range c.got {
			sizes = append(sizes, len(b))
		}
		require.Equal(t, []int{10, maxBatch, 10, 1, 1}, sizes)
		l.over()
	})
}
