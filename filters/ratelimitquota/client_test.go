package ratelimitquota

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	quotav3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// bed is a client in virtual time, and its service.
type bed struct {
	*testing.T
	*client
	servers
	server   *server
	settings *settings
	started  time.Time
}

// virtually runs f with a client that has settings.
func virtually(t *testing.T, s settings, f func(b *bed)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bed{T: t, settings: &s, started: time.Now()}
		if s.unassigned == nil {
			s.unassigned = b.rule(nil)
		}
		s.interval = 10 * time.Second
		b.server = b.replace(newServer())
		b.client = newClient(grpcclient.Target{Cluster: "quotas"}, "d")
		var p grpcclient.Pool
		conn, err := p.Get(&b.target, b.dial)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan struct{})
		go func() { defer close(over); b.run(ctx, conn) }()
		defer func() {
			cancel()
			<-over
			conn.Release()
			b.replace(nil)
		}()
		f(b)
	})
}

func (b *bed) rule(s *typev3.RateLimitStrategy) *rule {
	r, err := newRule(s)
	require.NoError(b, err)
	return r
}

// now is the clock of workers.
func (b *bed) now() time.Duration { return time.Since(b.started) }

// request is one of a tenant. It reports whether it passes.
func (b *bed) request(tenant string) bool {
	key := keyOf(idOf(tenant))
	bk := b.bucket([]byte(key), b.settings, 4, func() *quotav3.BucketId { return idOf(tenant) })
	ok := bk.allows(b.now())
	synctest.Wait()
	return ok
}

// requests is how many of n pass.
func (b *bed) requests(tenant string, n int) (passed int) {
	for range n {
		if b.request(tenant) {
			passed++
		}
	}
	return passed
}

func (b *bed) stream() *stream {
	b.Helper()
	select {
	case s := <-b.server.streams:
		synctest.Wait()
		return s
	case <-time.After(time.Minute):
		b.Fatal("no stream")
		return nil
	}
}

// reported is the next report, which must come by itself within a minute.
func (b *bed) reported(s *stream) map[string]string {
	b.Helper()
	select {
	case r := <-s.reports:
		return usageOf(b.T, r)
	case <-time.After(time.Minute):
		b.Fatal("no report")
		return nil
	}
}

// allReported is the sum of the reports that were not read yet. Which of them counts the
// first request of a bucket is open: the reporter wakes while it is decided on.
func (b *bed) allReported(s *stream) map[string]string {
	b.Helper()
	synctest.Wait()
	var unread []*quotav3.RateLimitQuotaUsageReports
	for len(s.reports) > 0 {
		unread = append(unread, <-s.reports)
	}
	return usageOf(b.T, unread...)
}

func (b *bed) say(s *stream, r *quotav3.RateLimitQuotaResponse) {
	b.Helper()
	require.NoError(b, s.Send(r))
	synctest.Wait()
}

func (b *bed) buckets() int {
	b.client.mu.Lock()
	defer b.client.mu.Unlock()
	return len(b.client.buckets)
}

// TestTheFirstRequest is reported at once, and from then on all, at each interval.
func TestTheFirstRequest(t *testing.T) {
	virtually(t, settings{}, func(b *bed) {
		s := b.stream()
		require.Empty(t, s.reports, "there is nothing to report")
		require.True(t, b.request("a"))
		b.reported(s) // with or without the request
		at := b.now()
		require.Equal(t, 5, b.requests("a", 5))
		got := b.reported(s)
		require.Equal(t, 10*time.Second, b.now()-at)
		require.Contains(t, []string{"5/0", "6/0"}, got["a"])
		require.Equal(t, map[string]string{"a": "0/0"}, b.reported(s), "also that there were none")
		require.Equal(t, 20*time.Second, b.now()-at)
	})
}

func TestAssignments(t *testing.T) {
	virtually(t, settings{unassigned: must(perHour(1))}, func(b *bed) {
		s := b.stream()
		require.Equal(t, 1, b.requests("a", 3), "no assignment")
		b.say(s, assignment("a", blanket(typev3.RateLimitStrategy_DENY_ALL)))
		require.Equal(t, "1/2", b.allReported(s)["a"], "reported as soon as there is an assignment")
		require.Equal(t, 0, b.requests("a", 3))
		b.say(s, assignment("a", nil))
		require.Equal(t, 3, b.requests("a", 3), "no strategy lets all pass")
		b.say(s, assignment("a", blanket(typev3.RateLimitStrategy_ALLOW_ALL)))
		require.Equal(t, 3, b.requests("a", 3))
		b.say(s, assignment("a", perHour(5)))
		require.Equal(t, 5, b.requests("a", 20))
		b.say(s, assignment("a", perHour(5)))
		require.Equal(t, 0, b.requests("a", 20), "the same again brings no tokens")
		time.Sleep(12 * time.Minute)
		require.Equal(t, 1, b.requests("a", 20))
		b.say(s, assignment("a", tokens(3, 2, time.Second)))
		require.Equal(t, 3, b.requests("a", 20))
		time.Sleep(time.Second)
		require.Equal(t, 2, b.requests("a", 20))

		require.Equal(t, 1, b.requests("b", 3), "another bucket has none")
		b.say(s, assignment("nobody", perHour(5)))
		require.Equal(t, 2, b.buckets())
	})
}

func must(s *typev3.RateLimitStrategy) *rule {
	r, err := newRule(s)
	if err != nil {
		panic(err)
	}
	return r
}

func TestAnAssignmentExpires(t *testing.T) {
	t.Run("and its bucket is forgotten", func(t *testing.T) {
		virtually(t, settings{unassigned: must(perHour(1))}, func(b *bed) {
			s := b.stream()
			b.request("a")
			b.say(s, assignment("a", perHour(5), time.Minute))
			require.Equal(t, 5, b.requests("a", 10))
			time.Sleep(time.Minute + 1)
			synctest.Wait()
			require.Equal(t, 0, b.buckets())
			require.Equal(t, 1, b.requests("a", 3), "all begins anew")
		})
	})
	t.Run("and something else holds for a while", func(t *testing.T) {
		virtually(t, settings{unassigned: must(perHour(1)), expires: true, grace: time.Hour, expired: must(perHour(2))}, func(b *bed) {
			s := b.stream()
			for _, tenant := range []string{"a", "b"} {
				b.request(tenant)
				b.say(s, assignment(tenant, perHour(5), time.Minute))
				require.Equal(t, 5, b.requests(tenant, 10))
			}
			time.Sleep(time.Minute + 1)
			synctest.Wait()
			require.Equal(t, 2, b.requests("a", 10))
			require.Equal(t, 2, b.requests("b", 10))
			b.say(s, assignment("a", perHour(5), time.Minute))
			require.Equal(t, 5, b.requests("a", 10), "an assignment that has expired is none to go on with")
			time.Sleep(time.Hour + time.Minute + 1)
			synctest.Wait()
			require.Equal(t, 0, b.buckets())
		})
	})
	t.Run("and goes on", func(t *testing.T) {
		virtually(t, settings{expires: true, grace: time.Hour}, func(b *bed) {
			s := b.stream()
			b.request("a")
			b.say(s, assignment("a", perHour(5), 0))
			require.Equal(t, 5, b.requests("a", 10))
			time.Sleep(time.Minute)
			require.Equal(t, 0, b.requests("a", 10))
			time.Sleep(time.Hour)
			synctest.Wait()
			require.Equal(t, 0, b.buckets())
		})
	})
	t.Run("unless it is renewed", func(t *testing.T) {
		virtually(t, settings{}, func(b *bed) {
			s := b.stream()
			b.request("a")
			for range 10 {
				b.say(s, assignment("a", perHour(5), time.Minute))
				time.Sleep(50 * time.Second)
			}
			require.Equal(t, 5, b.requests("a", 10))
			require.Equal(t, 1, b.buckets())
		})
	})
}

func TestABucketIsAbandoned(t *testing.T) {
	virtually(t, settings{unassigned: must(perHour(1))}, func(b *bed) {
		s := b.stream()
		require.Equal(t, 1, b.requests("a", 2))
		b.say(s, abandonment("a"))
		require.Equal(t, 0, b.buckets())
		b.allReported(s)
		require.Equal(t, 1, b.requests("a", 2))
		require.Contains(t, b.reported(s), "a", "it is told as a new one")
	})
}

// TestAServiceThatIsLost: what it has said holds until it expires, and when it is back it
// is told of all buckets, and of all requests meanwhile.
func TestAServiceThatIsLost(t *testing.T) {
	virtually(t, settings{unassigned: must(perHour(1))}, func(b *bed) {
		s := b.stream()
		b.requests("a", 1)
		b.say(s, assignment("a", perHour(5), time.Hour))
		b.allReported(s)
		b.replace(nil)
		synctest.Wait()
		require.Equal(t, 5, b.requests("a", 7))
		time.Sleep(10 * time.Minute)
		require.Equal(t, 1, b.requests("b", 1))
		b.server = b.replace(newServer())
		s = b.stream()
		all := map[string]string{}
		for len(all) < 2 {
			for k, v := range b.reported(s) {
				all[k] = v
			}
		}
		require.Equal(t, map[string]string{"a": "5/2", "b": "1/0"}, all)
		close(s.end)
		s = b.stream()
		at := b.now()
		require.Len(t, b.reported(s), 2, "the next stream is one that knows nothing")
		require.Equal(t, at, b.now())
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		require.Equal(t, 0, b.buckets())
	})
}

// TestAServiceThatIsNotThereYet is told when it is.
func TestAServiceThatIsNotThereYet(t *testing.T) {
	virtually(t, settings{unassigned: must(perHour(2))}, func(b *bed) {
		b.stream()
		b.replace(nil)
		synctest.Wait()
		require.Equal(t, 2, b.requests("a", 5))
		time.Sleep(time.Minute)
		b.server = b.replace(newServer())
		require.Equal(t, map[string]string{"a": "2/3"}, b.reported(b.stream()))
	})
}

func TestWhatIsNoAssignment(t *testing.T) {
	virtually(t, settings{unassigned: must(perHour(1))}, func(b *bed) {
		s := b.stream()
		b.request("a")
		b.say(s, assignment("a", blanket(7)))
		b.say(s, assignment("a", &typev3.RateLimitStrategy{}))
		b.say(s, assignment("a", perHour(5), -time.Second))
		b.say(s, assignment("a", tokens(5, 0, time.Second)))
		b.say(s, assignment("a", tokens(5, 1, 0)))
		b.say(s, &quotav3.RateLimitQuotaResponse{BucketAction: []*quotav3.RateLimitQuotaResponse_BucketAction{{}, {BucketId: idOf("a")}}})
		require.Equal(t, 0, b.requests("a", 5), "what held before still does")
		require.Equal(t, 1, b.buckets())
	})
}

// TestBucketsAreBounded in number, and do not stay for ever.
func TestBucketsAreBounded(t *testing.T) {
	virtually(t, settings{}, func(b *bed) {
		b.stream()
		for i := range 4 {
			require.True(t, b.request(fmt.Sprint(i)))
		}
		require.Nil(t, b.bucket([]byte("k"), b.settings, 4, nil))
		for range 20 {
			time.Sleep(time.Minute)
			b.request("0")
		}
		require.Equal(t, 1, b.buckets())
	})
	// What a rule remembers counts.
	virtually(t, settings{unassigned: must(perHour(1))}, func(b *bed) {
		b.stream()
		require.Equal(t, 1, b.requests("a", 5))
		time.Sleep(30 * time.Minute)
		require.Equal(t, 0, b.requests("a", 5))
		time.Sleep(time.Hour + 20*time.Minute)
		synctest.Wait()
		require.Equal(t, 0, b.buckets())
	})
}

// TestAReportThatCannotBeSent is made later.
func TestAReportThatCannotBeSent(t *testing.T) {
	s := settings{unassigned: must(perHour(2)), interval: time.Second}
	c := newClient(grpcclient.Target{}, "d")
	b := c.bucket([]byte("k"), &s, 1, func() *quotav3.BucketId { return idOf("a") })
	for range 3 {
		b.allows(time.Hour)
	}
	now := time.Now()
	_, err := c.report(now, func(*quotav3.RateLimitQuotaUsageReports) error { return errors.New("lost") })
	require.Error(t, err)
	b.allows(time.Hour)
	_, err = c.report(now.Add(time.Second), func(r *quotav3.RateLimitQuotaUsageReports) error {
		require.Equal(t, map[string]string{"a": "2/2"}, usageOf(t, r))
		require.GreaterOrEqual(t, r.GetBucketQuotaUsages()[0].GetTimeElapsed().AsDuration(), time.Second)
		return nil
	})
	require.NoError(t, err)
}

// TestFailuresAreTold once a minute, however often they come and go.
func TestFailuresAreTold(t *testing.T) {
	virtually(t, settings{}, func(b *bed) {
		lines := 0
		b.logf = func(level host.Level, _ string, _ ...any) {
			if level > host.Debug {
				lines++
			}
		}
		for range 10 {
			s := b.stream()
			b.say(s, abandonment("nobody"))
			close(s.end)
		}
		b.stream()
		require.Equal(t, 2, lines, "that it has failed, and that it answers again")
	})
}

// TestSettingsChange with another configuration of the same bucket.
func TestSettingsChange(t *testing.T) {
	virtually(t, settings{unassigned: must(perHour(1))}, func(b *bed) {
		b.stream()
		require.Equal(t, 1, b.requests("a", 5))
		b.settings = &settings{key: "other", unassigned: must(perHour(3)), interval: time.Second}
		require.Equal(t, 3, b.requests("a", 5))
		require.Equal(t, 0, b.requests("a", 5))
	})
}
