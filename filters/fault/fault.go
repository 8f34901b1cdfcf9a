// Package fault delays requests, or answers them with an error.
package fault

import (
	"fmt"
	"sync/atomic"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.fault"

func init() { filter.Register(Name, builder{}) }

type builder struct{}

// Phase implements filter.PhasedBuilder.
func (builder) Phase() filter.Phase { return filter.Traffic }

// Parse implements filter.Builder.
func (builder) Parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	return parse(config, env)
}

// ParseRoute implements filter.RouteBuilder.
func (builder) ParseRoute(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	return parse(config, env)
}

// Build implements filter.Builder.
func (builder) Build(c filter.Config, scope *filter.Scope) (filter.Filter, error) {
	f := &fault{settings: c.(*settings)}
	f.active = scope.Shared(scope.StatPrefix, func(*filter.Life) any { return new(atomic.Int64) }).(*atomic.Int64)
	for name, to := range map[string]**filter.Counter{
		"fault.delays_injected": &f.delays, "fault.aborts_injected": &f.aborts, "fault.faults_overflow": &f.overflow,
	} {
		var err error
		if *to, err = scope.Counter(name); err != nil {
			return nil, fmt.Errorf("counter %s: %w", name, err)
		}
	}
	var err error
	f.gauge, err = scope.Gauge("fault.active_faults")
	return f, err
}

type fault struct {
	settings *settings
	active   *atomic.Int64 // requests that are delayed now, of all versions of the listener

	delays, aborts, overflow *filter.Counter
	gauge                    *filter.Gauge
}

// delayed is the state of a message that waits.
type delayed struct{}

// ForgetsRequest implements filter.ForgetfulFilter.
func (*fault) ForgetsRequest() {}

// OnRequest implements filter.Filter. Both faults are drawn at once: properties tell of
// them, and the abort of one that is delayed comes behind that.
func (f *fault) OnRequest(m *filter.Message) filter.Verdict {
	s := f.settings
	if of, is := m.RouteConfig().(*settings); is {
		s = of
	}
	length, share := s.delay.of(m.Request())
	delays := length > 0 && share.Share > 0 && share.Has(m.Rand())
	reply, share := s.abort.of(m.Request(), m.Connection().Codec())
	aborts := share.Share > 0 && share.Has(m.Rand())
	switch {
	case !delays && !aborts:
		return filter.Continue
	case !f.enter(s.max):
		m.Count(f.overflow, 1)
		return filter.Continue
	case !delays:
		f.leave()
		return f.abort(m, reply)
	}
	m.Count(f.delays, 1)
	m.AddFlags(filter.DelayInjected)
	m.SetState(delayed{})
	return m.Delay(length, func(m *filter.Message) filter.Verdict {
		f.over(m)
		if aborts {
			return f.abort(m, reply)
		}
		return filter.Continue
	})
}

func (f *fault) abort(m *filter.Message, e codecs.LocalError) filter.Verdict {
	m.Count(f.aborts, 1)
	m.AddFlags(filter.FaultInjected)
	m.SetDetails("fault_filter_abort")
	return m.ReplyWith(e)
}

// enter counts a request that gets a fault, unless there are as many as may be.
func (f *fault) enter(most int64) bool {
	if f.active.Add(1) > most {
		f.active.Add(-1)
		return false
	}
	f.gauge.Add(1)
	return true
}

func (f *fault) leave() {
	f.active.Add(-1)
	f.gauge.Add(-1)
}

// over ends the delay of m, if it is delayed.
func (f *fault) over(m *filter.Message) {
	if m.State() != nil {
		m.SetState(nil)
		f.leave()
	}
}

// OnEnd implements filter.EndFilter: the client may leave while it waits.
func (f *fault) OnEnd(m *filter.Message) { f.over(m) }
