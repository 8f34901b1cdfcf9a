package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
	ratelimitv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/ratelimit/v1alpha"
)

const defaultTimeout = 20 * time.Millisecond

// config is a RateLimit.
type config struct {
	target            grpcclient.Target
	timeout           time.Duration // math.MaxInt64: as long as the request's time lasts
	match             *route.Match  // nil: all
	enabled, enforced fields.Fraction
	deny              fields.Fraction // of the requests for which the service fails
	limited, failed   codecs.LocalError
	ownText           bool // of limited: the service's does not count
	limits
}

// limits are what a filter asks about, or a route's.
type limits struct {
	domain      string
	descriptors []descriptor
	hits        hits
}

// builder implements filter.RouteBuilder.
type builder struct{}

// Phase implements filter.PhasedBuilder.
func (builder) Phase() filter.Phase { return filter.Traffic }

// Parse implements filter.Builder.
func (builder) Parse(any *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(ratelimitv1alpha.RateLimit)
	if err := unpack(any, m); err != nil {
		return nil, err
	}
	p := &parser{}
	deny := fields.Fraction{Of: 1}
	if m.GetFailureModeDeny() {
		deny.Share = 1
	}
	c := &config{
		timeout:  p.Duration(m.GetTimeout(), "timeout", 0, defaultTimeout),
		match:    p.match(m.GetMatch(), "match"),
		enabled:  p.share(m.GetFilterEnabled(), "filter_enabled", fields.Fraction{Share: 1, Of: 1}),
		enforced: p.share(m.GetFilterEnforced(), "filter_enforced", fields.Fraction{Share: 1, Of: 1}),
		deny:     p.share(m.GetFailureModeDenyPercent(), "failure_mode_deny_percent", deny),
		limited: p.reply(m.GetRateLimitedResponse(), "rate_limited_response", env,
			codecs.LocalError{Type: codecs.OverLimit, Message: "rate limit exceeded"}),
		failed: p.reply(m.GetFailureResponse(), "failure_response", env,
			codecs.LocalError{Type: codecs.Unspecified, Message: "the rate limit service failed"}),
		ownText: m.GetRateLimitedResponse().GetBody() != "",
	}
	if c.timeout == 0 {
		c.timeout = math.MaxInt64
	}
	if c.domain = m.GetDomain(); c.domain == "" {
		p.Add("domain", "required")
	}
	for i, d := range m.GetDescriptors() {
		c.descriptors = append(c.descriptors, p.single(d, fmt.Sprintf("descriptors[%d]", i)))
	}
	c.descriptors = append(c.descriptors, p.several(m.GetRateLimits())...)
	if n := len(c.descriptors); n < 1 || n > maxDescriptors {
		p.Add("descriptors", "must be between 1 and %d, together with rate_limits, are %d", maxDescriptors, n)
	}
	c.hits = p.hits(m.GetHitsAddend(), "hits_addend", 1)
	p.service(c, m)
	return c, p.Err()
}

// ParseRoute implements filter.RouteBuilder.
func (builder) ParseRoute(any *anypb.Any, _ *filter.Env) (filter.Config, error) {
	m := new(ratelimitv1alpha.RateLimitPerRoute)
	if err := unpack(any, m); err != nil {
		return nil, err
	}
	p := &parser{}
	l := &limits{domain: m.GetDomain(), descriptors: p.several(m.GetRateLimits()), hits: p.hits(m.GetHitsAddend(), "hits_addend", 1)}
	if n := len(l.descriptors); n > maxDescriptors {
		p.Add("rate_limits", "must be at most %d, are %d", maxDescriptors, n)
	}
	return l, p.Err()
}

// or is what l says, and what the filter says where l says nothing.
func (l *limits) or(f *limits) limits {
	all := *f
	if l.domain != "" {
		all.domain = l.domain
	}
	if len(l.descriptors) > 0 {
		all.descriptors = l.descriptors
	}
	if l.hits != (hits{}) {
		all.hits = l.hits
	}
	return all
}

func unpack(any *anypb.Any, m proto.Message) error {
	name := m.ProtoReflect().Descriptor().FullName()
	if any == nil {
		return fmt.Errorf("required: a %s", name)
	}
	if !any.MessageIs(m) {
		return &fields.Error{Path: "type_url", Reason: fmt.Sprintf("want %s, got %s", name, any.MessageName())}
	}
	if err := any.UnmarshalTo(m); err != nil {
		return errors.New(fields.CleanError(err))
	}
	return nil
}

// parser gathers faults.
type parser struct{ fields.Faults }

func (p *parser) service(c *config, m *ratelimitv1alpha.RateLimit) {
	const path = "rate_limit_service"
	s := m.GetRateLimitService()
	switch {
	case s == nil:
		p.Add(path, "required")
		return
	case s.GetGrpcService() == nil:
		p.Add(path+".grpc_service", "required")
		return
	}
	// Envoy takes AUTO for V3, as there is no other.
	if v := s.GetTransportApiVersion(); v != corev3.ApiVersion_V3 && v != corev3.ApiVersion_AUTO {
		p.Add(path+".transport_api_version", "want V3, is %v", v)
	}
	var err error
	c.target, err = grpcclient.Parse(s.GetGrpcService(), path+".grpc_service")
	p.AddAll("", err)
}

func (p *parser) match(m *routev1alpha.RouteMatch, path string) *route.Match {
	if m == nil {
		return nil
	}
	x, errs := route.CompileMatch(m)
	for _, err := range errs {
		p.AddAll(path, err)
	}
	return x
}

func (p *parser) share(f *corev3.RuntimeFractionalPercent, path string, def fields.Fraction) fields.Fraction {
	if f == nil {
		return def
	}
	share, err := fields.ParseFraction(f.GetDefaultValue())
	p.AddAll(path+".default_value", err)
	return share
}

func (p *parser) reply(d *routev1alpha.DirectResponse, path string, env *filter.Env, def codecs.LocalError) codecs.LocalError {
	e, errs := route.Reply(d, def, path, env.Codecs)
	for _, err := range errs {
		p.AddAll("", err)
	}
	return e
}
