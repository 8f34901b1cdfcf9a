// Package setmetadata sets properties of requests.
package setmetadata

import (
	"fmt"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/route"
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
	said          []bool // whether the request itself says what an entry has the server told
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
	s.said = s.said[:0]
	for i := range s.entries {
		said := s.entries[i].upstream
		if said {
			_, said = m.Request().Get(s.entries[i].name)
		}
		s.said = append(s.said, said)
	}
	left := maxSteps
	for i := range s.entries {
		e := &s.entries[i]
		value := e.value
		if e.format != nil {
			s.source = m.AppendFormat(s.source[:0], e.format)
			if value = s.source; len(value) == 0 {
				continue
			}
		}
		if e.extract != nil || e.action != overwriteOrAdd {
			sets, ok := s.make(e, value, m.Request(), &left)
			switch {
			case !ok:
				return s.refuse(m, e)
			case !sets:
				continue
			}
			value = s.value
		}
		if len(value) > codecs.MaxText {
			return s.refuse(m, e)
		}
		m.Request().SetBytes(e.name, value)
		if e.upstream {
			if s.said[i] { // which the server must not take for what is set
				m.RemoveAttribute(e.name)
				m.MutateRequest().Require(e.name)
			}
			m.SetAttribute(e.name, string(value))
		}
		m.ClearRoute()
	}
	return filter.Continue
}

// make has value be what e sets in md, of what it comes from. It reports whether e sets
// anything, and ok false if to tell would cost too much.
func (s *part) make(e *entry, from []byte, md *codecs.Metadata, left *int) (sets, ok bool) {
	old, there := md.Get(e.name)
	if e.action == addIfAbsent && there || e.action == overwrite && !there {
		return false, true
	}
	s.value = s.value[:0]
	if e.action == appendOrAdd && there {
		s.value = append(append(s.value, route.Enough(old)...), ',')
	}
	if e.extract == nil {
		s.value = append(s.value, from...)
		return true, true
	}
	before := len(s.value)
	s.value, ok = e.extract.append(s.value, from, left)
	return len(s.value) > before, ok
}

// refuse answers a request of which it cannot be told what is to be set: to leave it out
// would be a way around what goes by it.
func (s *setter) refuse(m *filter.Message, e *entry) filter.Verdict {
	m.Count(s.refused, 1)
	return m.Reply(codecs.BadRequest, fmt.Sprintf("what %.80q is made of is too long", e.name))
}
