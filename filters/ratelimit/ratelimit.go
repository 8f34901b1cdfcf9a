// Package ratelimit is the filter ratelimit: it asks a rate limit service about each
// request, without a worker waiting for the answer.
package ratelimit

import (
	"cmp"
	"context"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
)

// Name is the filter's config name.
const Name = "aeraki.meta_protocol.filters.ratelimit"

const (
	// maxHeaders of each kind are taken of an answer, as many entries of its metadata.
	maxHeaders = 64
	// maxText is how much of the service's text a client is told.
	maxText = 4096
)

// maxPending are the calls to a service that may be under way: 0 is its default.
var maxPending int64

func init() { filter.Register(Name, builder{}) }

// counters are those of a listener.
type counters struct {
	ok, overLimit, shadow, errors, allowed, skipped *filter.Counter
}

// Build implements filter.Builder.
func (builder) Build(cfg filter.Config, s *filter.Scope) (filter.Filter, error) {
	f := &rateLimit{config: cfg.(*config)}
	for name, c := range map[string]**filter.Counter{
		"ok": &f.counters.ok, "over_limit": &f.counters.overLimit, "shadow_over_limit": &f.counters.shadow,
		"error": &f.counters.errors, "failure_mode_allowed": &f.counters.allowed, "header_skipped": &f.counters.skipped,
	} {
		var err error
		if *c, err = s.Counter("ratelimit." + name); err != nil {
			return nil, err
		}
	}
	pool := s.Shared("connections", func(*filter.Life) any { return new(grpcclient.Pool) }).(*grpcclient.Pool)
	f.service = s.Shared("service "+f.target.Key(), func(l *filter.Life) any {
		svc := grpcclient.NewService("ratelimit", f.target, pool, l)
		svc.MaxPending = cmp.Or(maxPending, svc.MaxPending)
		return svc
	}).(*grpcclient.Service)
	return f, nil
}

// rateLimit is the filter of one configuration.
type rateLimit struct {
	*config
	counters counters
	service  *grpcclient.Service
}

// told is the key of what says that properties which begin with prefix are a service's.
type told struct{}

const prefix = "ratelimit."

// OnRequest implements filter.Filter.
func (f *rateLimit) OnRequest(m *filter.Message) filter.Verdict {
	if m.Value(told{}) == nil {
		m.SetValue(told{}, told{})
		if m.Request().Drop(prefix) {
			m.ClearRoute()
		}
	}
	if f.enabled.Share < f.enabled.Of && !f.enabled.Has(m.Rand()) {
		return filter.Continue
	}
	if f.match != nil {
		// As below: what cannot be told is asked about.
		if holds, err := m.Matches(f.match); !holds && err == nil {
			return filter.Continue
		}
	}
	l := &f.limits
	if own, is := m.RouteConfig().(*limits); is {
		both := own.or(l)
		l = &both
	}
	ds := l.of(m)
	if len(ds) == 0 {
		return filter.Continue
	}
	r := &ratelimitv3.RateLimitRequest{Domain: l.domain, Descriptors: ds, HitsAddend: uint32(max(l.hits.of(m), 1))}
	resumer := m.Resumer()
	cancel, err := grpcclient.Ask(f.service, func(ctx context.Context, conn grpc.ClientConnInterface) (*ratelimitv3.RateLimitResponse, error) {
		return ratelimitv3.NewRateLimitServiceClient(conn).ShouldRateLimit(ctx, r)
	}, func(resp *ratelimitv3.RateLimitResponse, err error) {
		resumer.Do(func(m *filter.Message) filter.Verdict { return f.answered(m, resp, err) })
	})
	if err != nil {
		return f.failure(m, err)
	}
	m.SetState(cancel)
	return m.Delay(f.timeout, f.late)
}

// OnEnd implements filter.EndFilter: nobody waits any more.
func (*rateLimit) OnEnd(m *filter.Message) { giveUp(m) }

// giveUp ends the call of m, if there is one.
func giveUp(m *filter.Message) {
	if cancel, is := m.State().(func()); is {
		cancel()
		m.SetState(nil)
	}
}

// late is called when there was no answer in time.
func (f *rateLimit) late(m *filter.Message) filter.Verdict {
	giveUp(m)
	f.service.Late(m.Now())
	return f.failure(m, grpcclient.ErrLate)
}

func (f *rateLimit) failure(m *filter.Message, err error) filter.Verdict {
	m.Count(f.counters.errors, 1)
	f.service.Failed(err, m.Now())
	m.Request().Set(prefix+"code", "error")
	if !f.deny.Has(m.Rand()) {
		m.Count(f.counters.allowed, 1)
		m.ClearRoute()
		return filter.Continue
	}
	m.AddFlags(filter.RateLimitServiceError)
	m.SetDetails("rate_limiter_error")
	return m.ReplyWith(f.failed)
}

func (f *rateLimit) answered(m *filter.Message, r *ratelimitv3.RateLimitResponse, err error) filter.Verdict {
	m.SetState(nil)
	if err != nil {
		return f.failure(m, err)
	}
	tell(m.Request(), r)
	f.change(m, m.MutateResponse(), codecs.ServerToClient, r.GetResponseHeadersToAdd())
	if r.GetOverallCode() == ratelimitv3.RateLimitResponse_OVER_LIMIT {
		if f.enforced.Has(m.Rand()) {
			m.Count(f.counters.overLimit, 1)
			m.AddFlags(filter.RateLimited)
			m.SetDetails("request_rate_limited")
			return m.ReplyWith(f.refusal(r))
		}
		m.Count(f.counters.shadow, 1)
	} else {
		// A service that does not know says UNKNOWN: that is no refusal.
		m.Count(f.counters.ok, 1)
		f.change(m, m.MutateRequest(), codecs.ClientToServer, r.GetRequestHeadersToAdd())
	}
	m.ClearRoute()
	return filter.Continue
}

// refusal is what the client is told.
func (f *rateLimit) refusal(r *ratelimitv3.RateLimitResponse) codecs.LocalError {
	e := f.limited
	if text := r.GetRawBody(); len(text) > 0 && !f.ownText {
		e.Message = strings.ToValidUTF8(string(text[:min(len(text), maxText)]), "?")
	}
	return e
}

// change makes the service's headers attributes of a message, those that it can have.
func (f *rateLimit) change(m *filter.Message, mu *codecs.Mutation, d codecs.Direction, hs []*corev3.HeaderValue) {
	if len(hs) == 0 {
		return
	}
	mutator, able := m.Connection().Codec().(codecs.Mutator)
	for i, h := range hs {
		value := h.GetValue()
		if value == "" {
			value = string(h.GetRawValue())
		}
		if !able || i >= maxHeaders || mutator.CheckMutation(d, h.GetKey(), value) != nil {
			m.Count(f.counters.skipped, 1)
			continue
		}
		mu.Set(h.GetKey(), value)
	}
}

// codes are those of an answer, for rules and logs.
var codes = map[ratelimitv3.RateLimitResponse_Code]string{
	ratelimitv3.RateLimitResponse_OK: "ok", ratelimitv3.RateLimitResponse_OVER_LIMIT: "over_limit",
}

// tell makes properties of an answer. Of several limits it tells of the one that is
// nearest.
func tell(md *codecs.Metadata, r *ratelimitv3.RateLimitResponse) {
	code, known := codes[r.GetOverallCode()]
	if !known {
		code = "unknown"
	}
	md.Set(prefix+"code", code)
	var nearest *ratelimitv3.RateLimitResponse_DescriptorStatus
	for _, s := range r.GetStatuses() {
		// A descriptor that the service does not know has no limit, and 0 remaining.
		if s.GetCurrentLimit() != nil && (nearest == nil || s.GetLimitRemaining() < nearest.GetLimitRemaining()) {
			nearest = s
		}
	}
	if nearest != nil {
		md.Set(prefix+"limit", strconv.FormatUint(uint64(nearest.GetCurrentLimit().GetRequestsPerUnit()), 10))
		md.Set(prefix+"remaining", strconv.FormatUint(uint64(nearest.GetLimitRemaining()), 10))
		if d := nearest.GetDurationUntilReset(); d != nil {
			md.Set(prefix+"reset", strconv.FormatInt(d.GetSeconds(), 10))
		}
	}
	n := 0
	for k, v := range r.GetDynamicMetadata().GetFields() {
		if text, is := fields.Scalar(v); is && n < maxHeaders {
			md.Set(prefix+"metadata."+k, text)
			n++
		}
	}
}
