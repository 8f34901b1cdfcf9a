// Package extauthz is the filter that asks a service whether a request may pass. See
// README.md.
package extauthz

import (
	"context"
	"crypto/sha256"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.ext_authz"

// passed is the property of requests that have passed without an answer.
const passed = "x-envoy-auth-failure-mode-allowed"

func init() { filter.Register(Name, builder{}) }

type builder struct{}

// Phase implements filter.PhasedBuilder.
func (builder) Phase() filter.Phase { return filter.Authorization }

// Parse implements filter.Builder.
func (builder) Parse(any *anypb.Any, env *filter.Env) (filter.Config, error) { return parse(any, env) }

// ParseRoute implements filter.RouteBuilder.
func (builder) ParseRoute(any *anypb.Any, _ *filter.Env) (filter.Config, error) {
	return parseRoute(any)
}

// counters are those of a listener.
type counters struct {
	ok, denied, failed, allowed, timeout, invalid, disabled, cached *filter.Counter
}

// Build implements filter.Builder.
func (builder) Build(cfg filter.Config, s *filter.Scope) (filter.Filter, error) {
	f := &whole{config: cfg.(*config)}
	for name, c := range map[string]**filter.Counter{
		"ok": &f.ok, "denied": &f.denied, "error": &f.failed, "failure_mode_allowed": &f.allowed,
		"timeout": &f.timeout, "invalid": &f.invalid, "disabled": &f.disabled, "cached": &f.cached,
	} {
		var err error
		if *c, err = s.Counter("ext_authz." + name); err != nil {
			return nil, err
		}
	}
	pool := s.Shared("connections", func(*filter.Life) any { return new(grpcclient.Pool) }).(*grpcclient.Pool)
	f.service = s.Shared("service "+f.config.target.Key(), func(l *filter.Life) any {
		return grpcclient.NewService("ext_authz", f.config.target, pool, l)
	}).(*grpcclient.Service)
	return f, nil
}

// whole is the filter of all workers.
type whole struct {
	config *config
	counters
	service *grpcclient.Service
}

// OnRequest implements filter.Filter. Messages are those of the workers' parts.
func (*whole) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

// ForWorker implements filter.WorkerFilter.
func (f *whole) ForWorker(*filter.Worker) filter.Filter {
	p := &part{whole: f}
	if f.config.ttl > 0 {
		p.cache = newCache(f.config)
	}
	return p
}

// part is a worker's.
type part struct {
	*whole
	subject subject
	cache   *cache // nil: there is none
}

// noSettings are those of a route that has none.
var noSettings settings

// told is the key of what says that properties of the answers' metadata are a service's.
type told struct{}

// OnRequest implements filter.Filter.
func (f *part) OnRequest(m *filter.Message) filter.Verdict {
	if m.Value(told{}) == nil {
		m.SetValue(told{}, told{})
		if m.Request().Drop(prefix) {
			m.ClearRoute()
		}
	}
	s, is := m.RouteConfig().(*settings)
	if !is {
		s = &noSettings
	}
	if s.disabled {
		m.Count(f.disabled, 1)
		return filter.Continue
	}
	if err := f.subject.of(m, f.config, s.id); err != nil {
		// Whatever the mode: clients must not get by with more than can be checked.
		m.Count(f.invalid, 1)
		return f.refuse(m, "ext_authz_invalid", codecs.LocalError{Type: codecs.BadRequest, Message: err.Error()})
	}
	var k key
	if f.cache != nil {
		k = sha256.Sum256(f.subject.bytes)
		if d := f.cache.get(k, m.Now()); d != nil {
			m.Count(f.cached, 1)
			return f.carryOut(m, d)
		}
	}
	return f.ask(m, s, k)
}

// ask asks the service about m.
func (f *part) ask(m *filter.Message, s *settings, k key) filter.Verdict {
	r := f.subject.request(m, s.extensions)
	resumer := m.Resumer()
	cancel, err := grpcclient.Ask(f.service, func(ctx context.Context, conn grpc.ClientConnInterface) (*authv3.CheckResponse, error) {
		return authv3.NewAuthorizationClient(conn).Check(ctx, r)
	}, func(resp *authv3.CheckResponse, err error) {
		resumer.Do(func(m *filter.Message) filter.Verdict { return f.answered(m, k, resp, err) })
	})
	if err != nil {
		return f.failure(m, err)
	}
	m.SetState(cancel)
	return m.Delay(f.config.timeout, f.late)
}

// OnEnd implements filter.EndFilter: nobody waits any more.
func (f *part) OnEnd(m *filter.Message) { giveUp(m) }

// giveUp ends the check of m, if there is one.
func giveUp(m *filter.Message) {
	if cancel, is := m.State().(func()); is {
		cancel()
		m.SetState(nil)
	}
}

func (f *part) late(m *filter.Message) filter.Verdict {
	giveUp(m)
	f.service.Late(m.Now())
	m.Count(f.timeout, 1)
	return f.failure(m, grpcclient.ErrLate)
}

func (f *part) answered(m *filter.Message, k key, resp *authv3.CheckResponse, err error) filter.Verdict {
	m.SetState(nil)
	if err != nil {
		return f.failure(m, err)
	}
	d, err := f.config.decide(resp)
	if err != nil {
		return f.failure(m, err)
	}
	if f.cache != nil {
		f.cache.put(k, d, m.Now())
	}
	return f.carryOut(m, d)
}

// failure lets m pass, or refuses it, as there is no answer.
func (f *part) failure(m *filter.Message, err error) filter.Verdict {
	m.Count(f.failed, 1)
	f.service.Failed(err, m.Now())
	if !f.config.allowFailure {
		return f.refuse(m, "ext_authz_error", f.config.failed)
	}
	m.Count(f.allowed, 1)
	if f.config.tellFailure {
		m.SetAttribute(passed, "true")
		m.MutateRequest().Require(passed)
		m.Request().Set(passed, "true")
		m.ClearRoute()
	}
	return filter.Continue
}

// refuse answers m, with the details that Envoy's filter gives.
func (f *part) refuse(m *filter.Message, details string, e codecs.LocalError) filter.Verdict {
	m.AddFlags(filter.Unauthorized)
	m.SetDetails(details)
	return m.ReplyWith(e)
}

// carryOut does what the service says.
func (f *part) carryOut(m *filter.Message, d *decision) filter.Verdict {
	for _, p := range d.properties {
		m.Request().Set(p.Key, p.Value)
	}
	if !d.allowed {
		m.Count(f.denied, 1)
		return f.refuse(m, "ext_authz_denied", d.reply)
	}
	err := d.check(m.Connection().Codec())
	if err == nil {
		err = d.apply(m)
	}
	if err != nil {
		// A server may rely on what it would not be told.
		m.Count(f.invalid, 1)
		f.service.Failed(err, m.Now())
		return f.refuse(m, "ext_authz_invalid", f.config.failed)
	}
	m.Count(f.ok, 1)
	return filter.Continue
}
