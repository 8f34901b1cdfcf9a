// Package setmetadata sets properties of requests.
package setmetadata

import (
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.set_metadata"

func init() { filter.Register(Name, builder{}) }

type builder struct{}

// Parse implements filter.Builder.
func (builder) Parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	return parse(config, env)
}

// Build implements filter.Builder.
func (builder) Build(c filter.Config, scope *filter.Scope) (filter.Filter, error) {
	const name = "set_metadata.refused"
	refused, err := scope.Counter(name)
	if err != nil {
		return nil, fmt.Errorf("counter %s: %w", name, err)
	}
	return &setter{c.([]entry), refused}, nil
}

type setter struct {
	entries []entry
	refused *filter.Counter
}

// OnRequest implements filter.Filter: it is the workers' parts that are asked.
func (s *setter) OnRequest(m *filter.Message) filter.Verdict { return s.ForWorker(nil).OnRequest(m) }

// ForWorker implements filter.WorkerFilter.
func (s *setter) ForWorker(*filter.Worker) filter.Filter { return &part{setter: s} }

// part is a worker's, with memory that is used for each request.
type part struct {
	*setter
	value, source []byte
}

// maxKept is how much of it a part keeps, in bytes.
const maxKept = 4 << 10

// OnRequest implements filter.Filter.
func (s *part) OnRequest(m *filter.Message) filter.Verdict {
	v := s.set(m)
	if cap(s.value)+cap(s.source) > maxKept {
		s.value, s.source = nil, nil
	}
	return v
}

// set sets all entries, one after the other.
func (s *part) set(m *filter.Message) filter.Verdict {
	left := maxSteps
	for i := range s.entries {
		e := &s.entries[i]
		old, there := m.Request().Get(e.name)
		if e.action == addIfAbsent && there || e.action == overwrite && !there {
			continue
		}
		from := e.value
		if e.format != nil {
			s.source = m.AppendFormat(s.source[:0], e.format)
			if from = s.source; len(from) == 0 {
				continue
			}
		}
		value := s.value[:0]
		if e.action == appendOrAdd && there {
			value = append(append(value, old...), ',')
		}
		before, ok := len(value), true
		if e.extract == nil {
			value = append(value, from...)
		} else {
			value, ok = e.extract.append(value, from, &left)
		}
		s.value = value
		if !ok || len(value) > codecs.MaxText {
			return s.refuse(m, e)
		}
		if e.extract != nil && len(value) == before {
			continue
		}
		m.Request().SetBytes(e.name, value)
		if e.upstream {
			m.SetAttribute(e.name, string(value))
		}
		m.ClearRoute()
	}
	return filter.Continue
}

// refuse answers a request of which it cannot be told what is to be set: to leave it out
// would be a way around what goes by it.
func (s *setter) refuse(m *filter.Message, e *entry) filter.Verdict {
	m.Count(s.refused, 1)
	return m.Reply(codecs.BadRequest, fmt.Sprintf("what %.80q is made of is too long", e.name))
}
