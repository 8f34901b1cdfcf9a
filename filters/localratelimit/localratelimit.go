// Package localratelimit is the filter that limits requests within one process. See
// README.md.
package localratelimit

import (
	"runtime"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/tokenbucket"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.local_ratelimit"

// text is what a refused request is told.
const text = "local rate limit: the request has been rate limited"

func init() { filter.Register(Name, builder{}) }

type builder struct{}

// Phase implements filter.PhasedBuilder.
func (builder) Phase() filter.Phase { return filter.Traffic }

// Parse implements filter.Builder.
func (builder) Parse(any *anypb.Any, env *filter.Env) (filter.Config, error) { return parse(any, env) }

// ParseRoute implements filter.RouteBuilder.
func (builder) ParseRoute(any *anypb.Any, env *filter.Env) (filter.Config, error) {
	return parse(any, env)
}

// Build implements filter.Builder.
func (builder) Build(c filter.Config, s *filter.Scope) (filter.Filter, error) {
	f := &whole{limiter{config: c.(*config)}}
	f.store = s.Shared("", func(*filter.Life) any { return newStore() }).(*store)
	for _, x := range []struct {
		name string
		to   **filter.Counter
	}{
		{"enabled", &f.enabled}, {"ok", &f.ok}, {"rate_limited", &f.limited}, {"enforced", &f.enforced}, {"keys_overflow", &f.overflow},
	} {
		var err error
		if *x.to, err = s.Counter("{stat_prefix}.local_rate_limit."+x.name, filter.Label{"stat_prefix", f.config.statPrefix}); err != nil {
			return nil, err
		}
	}
	f.limits = f.store.limits(f.config)
	return f, nil
}

// whole is the filter of all workers, which share its limiter.
type whole struct{ limiter }

// ForWorker implements filter.WorkerFilter. It is time to clear up what configurations
// before this one have left.
func (f *whole) ForWorker(w *filter.Worker) filter.Filter {
	f.store.sweep(w.Now())
	return &f.limiter
}

// Close implements filter.Closer.
func (f *whole) Close() { f.store.leave(f.limits) }

// limiter is the filter of requests.
type limiter struct {
	config *config
	limits *limits
	store  *store

	enabled, ok, limited, enforced, overflow *filter.Counter
}

// OnRequest implements filter.Filter.
func (l *limiter) OnRequest(m *filter.Message) filter.Verdict {
	c, limits := l.config, l.limits
	if rc, ok := m.RouteConfig().(*config); ok {
		c, limits = rc, l.ofRoute(rc, m.Now())
	}
	if c.enabled != nil {
		if is, _ := m.Matches(c.enabled); !is {
			return filter.Continue
		}
	}
	m.Count(l.enabled, 1)
	if l.take(m, c, limits) {
		m.Count(l.ok, 1)
		return filter.Continue
	}
	m.Count(l.limited, 1)
	if c.enforced != nil {
		if is, _ := m.Matches(c.enforced); !is {
			return filter.Continue
		}
	}
	m.Count(l.enforced, 1)
	m.AddFlags(filter.RateLimited)
	m.SetDetails("local_rate_limited")
	return m.ReplyWith(c.reply)
}

// ofRoute returns the limits of a route's configuration, in use until nobody knows of it.
func (l *limiter) ofRoute(c *config, now time.Duration) *limits {
	if found := c.limits.Load(); found != nil {
		return found
	}
	found := l.store.limits(c)
	if c.limits.CompareAndSwap(nil, found) {
		runtime.AddCleanup(c, l.store.leave, found)
	} else {
		l.store.leave(found)
	}
	l.store.sweep(now)
	return c.limits.Load()
}

// take reports whether there are all the tokens that m needs, and takes them.
func (l *limiter) take(m *filter.Message, c *config, limits *limits) bool {
	now := m.Now()
	last := limits.rest
	for i := range c.conditions {
		is, err := m.Matches(c.conditions[i].match)
		if err != nil {
			return false
		}
		if is {
			last = limits.conditions[i]
			break
		}
	}
	// What clients share comes last: who has spent his own takes nothing of it, not
	// even for a moment.
	var taken [maxDescriptors]*tokenbucket.Bucket
	for i := range limits.descriptors {
		from, shared := limits.descriptors[i].take(m.Request(), now)
		if shared {
			m.Count(l.overflow, 1)
		}
		if from == nil {
			giveBack(taken[:i])
			return false
		}
		taken[i] = from
	}
	if last != nil && !last.one.Take(now, 1) {
		giveBack(taken[:len(limits.descriptors)])
		return false
	}
	return true
}

func giveBack(taken []*tokenbucket.Bucket) {
	for _, b := range taken {
		b.Return(1)
	}
}
