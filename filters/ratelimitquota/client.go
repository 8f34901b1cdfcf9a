package ratelimitquota

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	quotav3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// idleTime is how long a bucket without requests is kept beyond what its rule
	// remembers.
	idleTime = 10 * time.Minute
	// maxUsages of one message.
	maxUsages = 1000
	// lookInterval is how often buckets are looked at for which nothing is due.
	lookInterval = time.Minute
	// quiet is how long nothing is said of failures behind the last time.
	quiet = time.Minute
	// The pause behind a stream that has ended is between half of this and all of it,
	// doubled with each further one up to the longest.
	firstPause = 200 * time.Millisecond
	maxPause   = 5 * time.Second
)

// client is the stream to a service for a domain, and the buckets of its requests.
type client struct {
	domain string
	target grpcclient.Target
	logf   func(level host.Level, format string, args ...any)
	// Something has changed: for those who look at states, and who reports.
	states, reports chan struct{}

	mu        sync.Mutex
	buckets   map[string]*bucket
	listeners []*counters
	silent    bool      // the service, and that was said
	said      time.Time // when
}

func newClient(target grpcclient.Target, domain string) *client {
	return &client{
		target: target, domain: domain, logf: func(host.Level, string, ...any) {},
		states: make(chan struct{}, 1), reports: make(chan struct{}, 1), buckets: map[string]*bucket{},
	}
}

// bucket returns that of a key, with its settings. There is none if most are there
// already and it is not among them.
func (c *client) bucket(key []byte, s *settings, most int, id func() *quotav3.BucketId) *bucket {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.buckets[string(key)]; b != nil {
		b.configure(s)
		return b
	}
	if len(c.buckets) >= most {
		return nil
	}
	now := time.Now()
	b := &bucket{id: id(), key: string(key), settings: s, reported: now, due: now, used: now}
	b.rule.Store(s.unassigned.fresh())
	c.buckets[b.key] = b
	c.kick()
	return b
}

func (c *client) kick() {
	for _, ch := range []chan struct{}{c.states, c.reports} {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// run keeps a stream open until ctx is done, and buckets in their states.
func (c *client) run(ctx context.Context, conn grpc.ClientConnInterface) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		attend(ctx, c.states, func(now time.Time) (time.Time, error) { return c.pass(now), nil })
	})
	service := quotav3.NewRateLimitQuotaServiceClient(conn)
	for failures := 0; ; failures++ {
		answered, err := c.stream(ctx, service)
		if ctx.Err() != nil {
			return
		}
		c.failed(err)
		if answered {
			failures = 0
		}
		d := min(firstPause<<min(failures, 10), maxPause)
		pause := time.NewTimer(d/2 + rand.N(d/2))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

// stream is one stream. It reports whether the service has said anything.
func (c *client) stream(ctx context.Context, service quotav3.RateLimitQuotaServiceClient) (answered bool, err error) {
	ctx, cancel := context.WithCancel(c.target.Context(ctx))
	defer cancel()
	s, err := service.StreamRateLimitQuotas(ctx)
	if err != nil {
		return false, err
	}
	var reporting sync.WaitGroup
	defer reporting.Wait()
	defer cancel()
	c.subscribe()
	reporting.Go(func() {
		// Why sending fails says Recv.
		attend(ctx, c.reports, func(now time.Time) (time.Time, error) { return c.report(now, s.Send) })
	})
	for {
		r, err := s.Recv()
		if err != nil {
			return answered, err
		}
		if !answered {
			answered = true
			c.answered()
		}
		c.follow(r)
	}
}

// subscribe has all buckets reported at once, to a service that does not know of them.
func (c *client) subscribe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, b := range c.buckets {
		b.due = now
	}
}

// attend calls look now, when something has changed, and when it says, until ctx is done
// or it fails.
func attend(ctx context.Context, changed <-chan struct{}, look func(now time.Time) (next time.Time, err error)) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-changed:
		}
		next, err := look(time.Now())
		if err != nil {
			return
		}
		t.Reset(time.Until(next))
	}
}

// pass lets time pass for all buckets. It returns when to look again.
func (c *client) pass(now time.Time) (next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next = now.Add(lookInterval)
	for key, b := range c.buckets {
		if b.allowed.Load()+b.denied.Load() > 0 {
			b.used = now
		}
		if b.pass(now) {
			c.forget(key, b)
		} else if !b.until.IsZero() && b.until.Before(next) {
			next = b.until
		}
	}
	return next
}

// forget forgets a bucket. c.mu is held.
func (c *client) forget(key string, b *bucket) {
	delete(c.buckets, key)
	b.gone.Store(true)
}

// usage is what a bucket has to report.
type usage struct {
	b               *bucket
	elapsed         time.Duration
	allowed, denied uint64
}

// report tells the service what is due by send. It returns when to look again.
func (c *client) report(now time.Time, send func(*quotav3.RateLimitQuotaUsageReports) error) (next time.Time, err error) {
	usages, next := c.due(now)
	for len(usages) > 0 {
		part := usages[:min(len(usages), maxUsages)]
		if err := send(c.message(part)); err != nil {
			c.restore(usages)
			return next, err
		}
		usages = usages[len(part):]
	}
	return next, nil
}

// due is what is to be reported now, and when to look again.
func (c *client) due(now time.Time) (usages []usage, next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next = now.Add(lookInterval)
	for _, b := range c.buckets {
		if !b.due.After(now) {
			u := usage{b, max(now.Sub(b.reported), 1), b.allowed.Swap(0), b.denied.Swap(0)}
			if u.allowed+u.denied > 0 {
				b.used = now
			}
			usages = append(usages, u)
			b.reported, b.due = now, now.Add(b.settings.interval)
		}
		if b.due.Before(next) {
			next = b.due
		}
	}
	return usages, next
}

// restore takes back what could not be reported.
func (c *client) restore(usages []usage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, u := range usages {
		u.b.allowed.Add(u.allowed)
		u.b.denied.Add(u.denied)
		u.b.reported = u.b.reported.Add(-u.elapsed)
	}
}

func (c *client) message(usages []usage) *quotav3.RateLimitQuotaUsageReports {
	r := &quotav3.RateLimitQuotaUsageReports{Domain: c.domain}
	for _, u := range usages {
		r.BucketQuotaUsages = append(r.BucketQuotaUsages, &quotav3.RateLimitQuotaUsageReports_BucketQuotaUsage{
			BucketId: u.b.id, TimeElapsed: durationpb.New(u.elapsed), NumRequestsAllowed: u.allowed, NumRequestsDenied: u.denied,
		})
	}
	return r
}

// follow does what the service says.
func (c *client) follow(r *quotav3.RateLimitQuotaResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, a := range r.GetBucketAction() {
		key := keyOf(a.GetBucketId())
		b := c.buckets[key]
		if b == nil {
			continue // forgotten meanwhile
		}
		if a.GetAbandonAction() != nil {
			c.forget(key, b)
			continue
		}
		q := a.GetQuotaAssignmentAction()
		if q == nil {
			continue
		}
		rule, err := newRule(q.GetRateLimitStrategy())
		ttl := q.GetAssignmentTimeToLive()
		if err == nil && ttl != nil && (ttl.CheckValid() != nil || ttl.AsDuration() < 0) {
			err = errors.New("assignment_time_to_live: must be at least 0s")
		}
		if err != nil {
			c.told(b.id, err)
			continue
		}
		b.assign(rule, ttl.AsDuration(), ttl == nil, now)
		c.told(b.id, nil)
	}
	c.kick()
}

// join has what the client does counted in cs, until leave.
func (c *client) join(cs *counters) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listeners = append(c.listeners, cs)
}

func (c *client) leave(cs *counters) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, o := range c.listeners {
		if o == cs {
			c.listeners = append(c.listeners[:i], c.listeners[i+1:]...)
			return
		}
	}
}

// failed tells of a stream that has ended.
func (c *client) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cs := range c.listeners {
		cs.lost.Add(1)
	}
	level := host.Debug
	if now := time.Now(); !c.silent && now.Sub(c.said) >= quiet {
		c.silent, c.said, level = true, now, host.Warn
	}
	c.logf(level, "meltemi: rate_limit_quota: %s: %v", &c.target, err)
}

// answered tells that the service says something.
func (c *client) answered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.silent {
		c.silent = false
		c.logf(host.Info, "meltemi: rate_limit_quota: %s answers again", &c.target)
	}
}

// told counts an assignment. c.mu is held.
func (c *client) told(id *quotav3.BucketId, err error) {
	for _, cs := range c.listeners {
		if err != nil {
			cs.refused.Add(1)
		} else {
			cs.assignments.Add(1)
		}
	}
	if err != nil {
		c.logf(host.Debug, "meltemi: rate_limit_quota: %s: an assignment for %v is refused: %v", &c.target, id.GetBucket(), err)
	}
}

// keyOf is the key of an id: its parts in the order of their names.
func keyOf(id *quotav3.BucketId) string {
	names := make([]string, 0, len(id.GetBucket()))
	for name := range id.GetBucket() {
		names = append(names, name)
	}
	slices.SortFunc(names, strings.Compare)
	var key []byte
	for _, name := range names {
		key = appendPart(key, name)
		key = appendPart(key, id.GetBucket()[name])
	}
	return string(key)
}

// appendPart appends a part of a key so that no other parts look the same.
func appendPart[T string | []byte](key []byte, part T) []byte {
	return append(binary.BigEndian.AppendUint32(key, uint32(len(part))), part...)
}
