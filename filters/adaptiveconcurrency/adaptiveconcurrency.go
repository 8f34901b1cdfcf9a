// Package adaptiveconcurrency is the filter that bounds how many requests are in flight by
// limits that follow how long answers take. See README.md.
package adaptiveconcurrency

import (
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.adaptive_concurrency"

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
	f := &whole{config: c.(*config)}
	f.limits = s.Shared(s.StatPrefix, func(*filter.Life) any { return newLimits() }).(*limits)
	const prefix = "adaptive_concurrency.gradient_controller."
	var err error
	for name, to := range map[string]**filter.Counter{"rq_blocked": &f.blocked, "keys_overflow": &f.overflow} {
		if *to, err = s.Counter(prefix + name); err != nil {
			return nil, err
		}
	}
	for name, to := range map[string]**filter.Gauge{"concurrency_limit": &f.limit, "gradient": &f.gradient, "min_rtt_msecs": &f.base} {
		if *to, err = s.Gauge(prefix + name); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// whole is the filter of all workers.
type whole struct {
	config *config
	limits *limits

	blocked, overflow     *filter.Counter
	limit, gradient, base *filter.Gauge
}

// OnRequest implements filter.Filter. Messages are those of the workers' parts.
func (*whole) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

// workers counts the parts, so that those of a configuration have different numbers.
var workers atomic.Uint32

// ForWorker implements filter.WorkerFilter.
func (f *whole) ForWorker(w *filter.Worker) filter.Filter {
	return &part{whole: f, number: int(workers.Add(1)), random: w.Rand, known: known{}}
}

// part is a worker's.
type part struct {
	*whole
	number int
	random func() uint64
	known  known
	key    []byte
	free   []*taken
}

// taken is a message's place. It is used again.
type taken struct {
	place
	k *keyedLimit
}

// maxFree of them are kept.
const maxFree = 4096

// OnRequest implements filter.Filter.
func (f *part) OnRequest(m *filter.Message) filter.Verdict {
	c := f.config
	if rc, is := m.RouteConfig().(*config); is {
		c = rc
	}
	k := f.limitOf(m, c)
	if m.Request().Type == codecs.StreamInit {
		if k.full(&c.policy) {
			return f.block(m, c)
		}
		return filter.Continue
	}
	t := f.place()
	if !k.take(&t.place, &c.policy, f.number, m.Now()) {
		f.free = append(f.free, t)
		return f.block(m, c)
	}
	t.k = k
	m.SetState(t)
	return filter.Continue
}

func (f *part) limitOf(m *filter.Message, c *config) *keyedLimit {
	route := ""
	if r := m.Route(); r != nil {
		route = r.Name
	}
	f.key = c.appendKey(f.key[:0], route, m.Request())
	k, shared := f.known.find(f.limits, f.key, c)
	if shared {
		m.Count(f.overflow, 1)
	}
	return k
}

func (f *part) block(m *filter.Message, c *config) filter.Verdict {
	m.Count(f.blocked, 1)
	m.AddFlags(filter.UpstreamOverflow)
	m.SetDetails("reached_concurrency_limit")
	return m.ReplyWith(c.reply)
}

func (f *part) place() *taken {
	n := len(f.free)
	if n == 0 {
		return new(taken)
	}
	t := f.free[n-1]
	f.free = f.free[:n-1]
	return t
}

// OnResponse implements filter.ResponseFilter. The answer may have to wait for others;
// its server is free.
func (f *part) OnResponse(m *filter.Message) filter.Verdict {
	f.leave(m)
	return filter.Continue
}

// OnEnd implements filter.EndFilter.
func (f *part) OnEnd(m *filter.Message) { f.leave(m) }

// leave gives back the place of m, if it has one.
func (f *part) leave(m *filter.Message) {
	t, is := m.State().(*taken)
	if !is {
		return
	}
	m.SetState(nil)
	o, took := tells(m)
	if s, ended := t.free(m.Now(), o, took, f.random); ended {
		f.limit.Set(f.limits.tell(t.k, s.limit))
		f.gradient.Set(int64(s.gradient * 1000))
		f.base.Set(s.base.Milliseconds())
	}
	f.keep(t)
}

// OnAside implements filter.AsideFilter: a oneway after all, for which no server is
// waited. When its client goes on tells nothing of servers.
func (f *part) OnAside(m *filter.Message) {
	if t, is := m.State().(*taken); is {
		m.SetState(nil)
		t.drop()
		f.keep(t)
	}
}

// keep has t be used again.
func (f *part) keep(t *taken) {
	*t = taken{}
	if len(f.free) < maxFree {
		f.free = append(f.free, t)
	}
}

// tells is what m says of the load of its server, and how long that has had it.
func tells(m *filter.Message) (o outcome, took time.Duration) {
	f := m.Facts()
	if f.Attempts == 0 {
		return untold, 0
	}
	if f.Sent > 0 {
		took = m.Now() - f.Sent
		if f.Answered > 0 {
			took = f.Answered - f.Sent
		}
	}
	switch r, e := m.Response(), m.LocalError(); {
	case f.Answered > 0 && r == nil: // another filter has taken the answer away
		return answered, took
	case f.Answered > 0:
		return toldBy(r), took
	case e != nil && e.Type == codecs.Timeout:
		return congested, took
	}
	return untold, took
}

// toldBy is what an answer says. Errors that are not the application's come sooner than
// what it would have said, or later.
func toldBy(r *codecs.Metadata) outcome {
	switch {
	case r.Failure == codecs.Overloaded:
		return congested
	case r.Status == codecs.StatusError:
		return untold
	}
	return answered
}
