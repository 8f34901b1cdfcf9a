// Package lua is the filter that runs scripts of the configuration. See README.md.
package lua

import (
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"

	lua "github.com/yuin/gopher-lua"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.lua"

// maxStates is how many scripts a worker keeps: tables that are updated bring others.
const maxStates = 2 * maxScripts

func init() { filter.Register(Name, builder{}) }

type builder struct{}

// Parse implements filter.Builder.
func (builder) Parse(any *anypb.Any, env *filter.Env) (filter.Config, error) { return judge(any, env) }

// ParseRoute implements filter.RouteBuilder.
func (builder) ParseRoute(any *anypb.Any, _ *filter.Env) (filter.Config, error) {
	return judgeRoute(any)
}

// counters are those of a listener.
type counters struct{ errors, exceeded, responded, skipped, reset *filter.Counter }

// Build implements filter.Builder.
func (builder) Build(cfg filter.Config, s *filter.Scope) (filter.Filter, error) {
	f := &whole{config: cfg.(*config), limits: usual, life: s.Life(), statPrefix: s.StatPrefix}
	for name, c := range map[string]**filter.Counter{
		"errors": &f.errors, "budget_exceeded": &f.exceeded, "responded": &f.responded,
		"mutation_skipped": &f.skipped, "state_reset": &f.reset,
	} {
		var err error
		if *c, err = s.Counter("lua." + name); err != nil {
			return nil, fmt.Errorf("counter lua.%s: %w", name, err)
		}
	}
	return f, nil
}

// whole is the filter of all workers.
type whole struct {
	config *config
	counters
	limits     limits
	life       *filter.Life
	statPrefix string
}

// OnRequest implements filter.Filter. Messages are those of the workers' parts.
func (*whole) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

// ForWorker implements filter.WorkerFilter.
func (f *whole) ForWorker(w *filter.Worker) filter.Filter {
	return &part{whole: f, worker: w, states: map[*script]*state{}, failures: lines{most: 1}}
}

// part is a worker's.
type part struct {
	*whole
	worker   *filter.Worker
	states   map[*script]*state
	last     *state // the one that has run last
	failures lines
}

// OnRequest implements filter.Filter.
func (p *part) OnRequest(m *filter.Message) filter.Verdict {
	sc, err := p.script(m)
	if err != nil {
		return p.fail(m, err)
	}
	return p.run(m, sc, func(s *state) *lua.LFunction { return s.request })
}

// OnResponse implements filter.ResponseFilter.
func (p *part) OnResponse(m *filter.Message) filter.Verdict {
	sc, _ := p.script(m) // OnRequest has told
	return p.run(m, sc, func(s *state) *lua.LFunction { return s.response })
}

// run runs a hook of a script, nil if there is none.
func (p *part) run(m *filter.Message, sc *script, hook func(s *state) *lua.LFunction) filter.Verdict {
	if sc == nil {
		return filter.Continue
	}
	s, err := p.state(m, sc)
	if err != nil {
		return p.fail(m, err)
	}
	f := hook(s)
	if f == nil {
		return filter.Continue
	}
	reply, err := s.run(m, f, p.config.instructions)
	switch {
	case reply != nil:
		return p.answer(m, reply)
	case err != nil:
		if s.budget.err != nil {
			m.Count(p.exceeded, 1)
		}
		return p.fail(m, err)
	}
	return filter.Continue
}

// script is the one of m's route; nil if there is none.
func (p *part) script(m *filter.Message) (*script, error) {
	r, is := m.RouteConfig().(*settings)
	switch {
	case !is:
		return p.config.standard, nil
	case r.disabled:
		return nil, nil
	case r.script != nil:
		return r.script, nil
	case r.name != "":
		if sc := p.config.named[r.name]; sc != nil {
			return sc, nil
		}
		return nil, fmt.Errorf("the route names %q, which is none of source_codes", r.name)
	}
	return p.config.standard, nil
}

// state is that of a script on this worker, which is made if there is none.
func (p *part) state(m *filter.Message, sc *script) (*state, error) {
	s := p.last
	if s == nil || s.script != sc {
		if s = p.states[sc]; s == nil {
			s = p.adopt(sc)
		}
	}
	if s != nil {
		if err := s.fit(); err != nil {
			m.Count(p.reset, 1)
			p.tell(m, fmt.Errorf("%s: %w", sc.name, err))
			p.forget(s)
			s = nil
		}
	}
	if s == nil {
		var err error
		if s, err = sc.load(p); err != nil {
			return nil, err
		}
		p.make(s)
	}
	s.used, p.last = m.Now(), s
	return s, nil
}

// adopt finds the state of a script that reads as sc: a table that has been updated
// brings the same script again.
func (p *part) adopt(sc *script) *state {
	for old, s := range p.states {
		if old.source == sc.source && old.name == sc.name {
			delete(p.states, old)
			s.script = sc
			p.states[sc] = s
			return s
		}
	}
	return nil
}

// make keeps a state, in place of the one that was not used for the longest time if
// there are many.
func (p *part) make(s *state) {
	for len(p.states) >= maxStates {
		var oldest *state
		for _, o := range p.states {
			if oldest == nil || o.used < oldest.used {
				oldest = o
			}
		}
		p.forget(oldest)
	}
	p.states[s.script] = s
}

func (p *part) forget(s *state) {
	delete(p.states, s.script)
	if p.last == s {
		p.last = nil
	}
}

// answer answers m as its script says.
func (p *part) answer(m *filter.Message, e *codecs.LocalError) filter.Verdict {
	m.Count(p.responded, 1)
	m.SetDetails("lua_response")
	switch e.Type {
	case codecs.Denied:
		m.AddFlags(filter.Unauthorized)
	case codecs.OverLimit:
		m.AddFlags(filter.RateLimited)
	default:
	}
	return m.ReplyWith(*e)
}

// fail tells of a script that has failed, and refuses m or lets it go on.
func (p *part) fail(m *filter.Message, err error) filter.Verdict {
	m.Count(p.errors, 1)
	p.tell(m, err)
	if !p.config.deny {
		return filter.Continue
	}
	m.SetDetails("lua_error")
	return m.ReplyWith(p.config.failed)
}

// tell logs what is wrong with a script.
func (p *part) tell(m *filter.Message, err error) {
	if unsaid, ok := p.failures.next(m.Now()); ok {
		p.life.Logf(host.Error, "meltemi: stat_prefix %q: lua: %v%s", p.statPrefix, err, more(unsaid))
	}
}
