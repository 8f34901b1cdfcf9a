// Package consumer finds out who calls, and what is configured for them.
package consumer

import (
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.consumer"

func init() { filter.Register(Name, builder{}) }

type builder struct{}

// Phase implements filter.PhasedBuilder.
func (builder) Phase() filter.Phase { return filter.Authentication }

// Parse implements filter.Builder.
func (builder) Parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	return parse(config, env)
}

// Build implements filter.Builder.
func (builder) Build(c filter.Config, s *filter.Scope) (filter.Filter, error) {
	f := &finder{config: c.(*config)}
	var err error
	if f.identified, err = s.Counter("consumer.identified"); err != nil {
		return nil, err
	}
	f.unknown, err = s.Counter("consumer.unknown")
	return f, err
}

// finder is the filter.
type finder struct {
	*config
	identified, unknown *filter.Counter
}

// OnRequest implements filter.Filter.
func (f *finder) OnRequest(m *filter.Message) filter.Verdict {
	c := f.find(m)
	if c == nil {
		m.Count(f.unknown, 1)
		if f.refuses {
			m.AddFlags(filter.Unauthorized)
			m.SetDetails("consumer_unknown")
			return m.ReplyWith(f.reply)
		}
	} else {
		m.Count(f.identified, 1)
	}
	if f.hides {
		// All of them: who has two names a key in each.
		for _, name := range f.keyNames {
			if _, has := m.Request().Get(name); has {
				mu := m.MutateRequest()
				mu.Remove(name)
				mu.Require(name)
			}
		}
	}
	m.SetConsumer(c)
	return filter.Continue
}

// find returns who calls, nil if that is nobody who is known.
func (f *finder) find(m *filter.Message) *filter.Consumer {
	for _, name := range f.keyNames {
		if key, has := m.Request().Get(name); has {
			return f.byKey[digest(key)]
		}
	}
	if len(f.byPrincipal) > 0 {
		if p := m.Connection().TLS().Principal(); p != "" {
			return f.byPrincipal[p]
		}
	}
	return nil
}
