package ratelimitquota

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/route"
	quotav1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/rate_limit_quota/v1alpha"
)

const (
	maxDefinitions = 1000
	maxParts       = 16
	leastReporting = 100 * time.Millisecond
)

// config is a RateLimitQuota.
type config struct {
	target            grpcclient.Target
	domain            string
	enabled, enforced fields.Fraction
	most              int // buckets
	definitions       []definition
}

// definition is a Bucket of a configuration: which requests, and what identifies theirs.
type definition struct {
	match *route.Match // nil: all
	parts []part
	reply codecs.LocalError
	settings
}

// part is one of a bucket id: a constant or a property.
type part struct {
	name, property, value string
	head                  []byte // of the key: the name, and a constant
}

// builder implements filter.RouteBuilder.
type builder struct{}

// Phase implements filter.PhasedBuilder.
func (builder) Phase() filter.Phase { return filter.Traffic }

// Parse implements filter.Builder.
func (builder) Parse(any *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(quotav1alpha.RateLimitQuota)
	if err := unpack(any, m); err != nil {
		return nil, err
	}
	p := parser{env: env}
	c := &config{
		domain: m.GetDomain(), enabled: p.share(m.GetFilterEnabled(), "filter_enabled"), enforced: p.share(m.GetFilterEnforced(), "filter_enforced"),
		most: p.Number(m.GetMaxBuckets(), "max_buckets", 1, 65536, 4096), definitions: p.definitions(m.GetBuckets()),
	}
	if c.domain == "" {
		p.Add("domain", "required")
	}
	if m.GetRlqsServer() == nil {
		p.Add("rlqs_server", "required")
	} else {
		var err error
		c.target, err = grpcclient.Parse(m.GetRlqsServer(), "rlqs_server")
		p.AddAll("", err)
	}
	return c, p.Err()
}

// ParseRoute implements filter.RouteBuilder.
func (builder) ParseRoute(any *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(quotav1alpha.RateLimitQuotaPerRoute)
	if err := unpack(any, m); err != nil {
		return nil, err
	}
	p := parser{env: env}
	return p.definitions(m.GetBuckets()), p.Err()
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
type parser struct {
	fields.Faults
	env *filter.Env
}

func (p *parser) share(f *corev3.RuntimeFractionalPercent, path string) fields.Fraction {
	if f == nil {
		return fields.Fraction{Share: 1, Of: 1}
	}
	share, err := fields.ParseFraction(f.GetDefaultValue())
	p.AddAll(path+".default_value", err)
	return share
}

func (p *parser) definitions(from []*quotav1alpha.Bucket) []definition {
	if n := len(from); n < 1 || n > maxDefinitions {
		p.Add("buckets", "must be between 1 and %d, are %d", maxDefinitions, n)
		return nil
	}
	ds := make([]definition, len(from))
	for i, b := range from {
		p.definition(&ds[i], b, fmt.Sprintf("buckets[%d]", i))
	}
	return ds
}

func (p *parser) definition(d *definition, b *quotav1alpha.Bucket, path string) {
	if b.GetMatch() != nil {
		var errs []*fields.Error
		d.match, errs = route.CompileMatch(b.GetMatch())
		for _, err := range errs {
			p.AddAll(path+".match", err)
		}
	}
	if n := len(b.GetBucketIdBuilder()); n < 1 || n > maxParts {
		p.Add(path+".bucket_id_builder", "must be between 1 and %d, are %d", maxParts, n)
	}
	for _, name := range slices.SortedFunc(maps.Keys(b.GetBucketIdBuilder()), strings.Compare) {
		at := fmt.Sprintf("%s.bucket_id_builder[%s]", path, name)
		one := part{name: name, head: appendPart(nil, name)}
		switch v := b.GetBucketIdBuilder()[name].GetValueSpecifier().(type) {
		case *quotav1alpha.Bucket_Value_StringValue:
			one.value = v.StringValue
			one.head = appendPart(one.head, one.value)
		case *quotav1alpha.Bucket_Value_Property:
			if one.property = v.Property; one.property == "" {
				p.Add(at+".property", "required")
			}
		default:
			p.Add(at, "want string_value or property")
		}
		if name == "" {
			p.Add(at, "the key is empty")
		}
		d.parts = append(d.parts, one)
	}
	if b.GetReportingInterval() == nil {
		p.Add(path+".reporting_interval", "required")
	}
	d.interval = p.Duration(b.GetReportingInterval(), path+".reporting_interval", leastReporting, leastReporting)
	var errs []*fields.Error
	d.reply, errs = route.Reply(b.GetDenyResponse(), codecs.LocalError{Type: codecs.OverLimit, Message: "rate limit exceeded"},
		path+".deny_response", p.env.Codecs)
	for _, err := range errs {
		p.AddAll("", err)
	}
	d.unassigned = p.rule(b.GetNoAssignmentBehavior().GetFallbackRateLimit(), path+".no_assignment_behavior.fallback_rate_limit")
	if e := b.GetExpiredAssignmentBehavior(); e != nil {
		at := path + ".expired_assignment_behavior"
		d.expires = true
		if e.GetExpiredAssignmentBehaviorTimeout() == nil {
			p.Add(at+".expired_assignment_behavior_timeout", "required")
		}
		d.grace = p.Duration(e.GetExpiredAssignmentBehaviorTimeout(), at+".expired_assignment_behavior_timeout", 1, 1)
		switch e.GetExpiredAssignmentBehavior().(type) {
		case *quotav1alpha.Bucket_ExpiredAssignment_FallbackRateLimit:
			d.expired = p.rule(e.GetFallbackRateLimit(), at+".fallback_rate_limit")
		case *quotav1alpha.Bucket_ExpiredAssignment_ReuseLastAssignment:
		default:
			p.Add(at, "want fallback_rate_limit or reuse_last_assignment")
		}
	}
	b = proto.CloneOf(b)
	b.Match, b.BucketIdBuilder, b.DenyResponse = nil, nil, nil
	key, err := proto.MarshalOptions{Deterministic: true}.Marshal(b)
	if err != nil {
		p.Add(path, "%v", err)
	}
	d.key = string(key)
}

func (p *parser) rule(s *typev3.RateLimitStrategy, path string) *rule {
	r, err := newRule(s)
	p.AddAll(path, err)
	return r
}
