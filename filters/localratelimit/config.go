package localratelimit

import (
	"fmt"
	"strings"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/keyed"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/filter/tokenbucket"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
	localratelimitv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/local_ratelimit/v1alpha"
)

const (
	maxConditions  = 1000
	maxDescriptors = 8
	maxNames       = 8
	maxOverrides   = 1000
	mostKeys       = 1 << 20
	defaultKeys    = 4096
)

// config is a LocalRateLimit, of a filter or a route.
type config struct {
	statPrefix        string
	enabled, enforced *route.Match // nil: all
	conditions        []condition
	descriptors       []descriptor
	rest              *bucket // of what no condition matches; nil: needs no token
	reply             codecs.LocalError

	limits atomic.Pointer[limits] // of a route's, once it was used
}

// bucket is the definition of a bucket. Those with the same id are the same.
type bucket struct {
	id   string
	rate *tokenbucket.Rate
}

type condition struct {
	match *route.Match
	bucket
}

type descriptor struct {
	names keyed.Names
	most  int
	bucket
	overrides map[string]bucket // by key
}

// parser gathers what is wrong, and tells buckets apart.
type parser struct {
	fields.Faults
	scope string
}

func parse(any *anypb.Any, env *filter.Env) (*config, error) {
	m := new(localratelimitv1alpha.LocalRateLimit)
	if err := fields.Unpack(any, m); err != nil {
		return nil, err
	}
	p := &parser{scope: fmt.Sprintf("%q %q", env.StatPrefix, m.GetStatPrefix())}
	c := &config{statPrefix: m.GetStatPrefix()}
	if c.statPrefix == "" {
		p.Add("stat_prefix", "required")
	}
	if tb := m.GetTokenBucket(); tb != nil {
		b := p.bucket("rest", tokenbucket.Parse(tb, "token_bucket", &p.Faults))
		c.rest = &b
	}
	p.few(len(m.GetConditions()), maxConditions, "conditions")
	for i, x := range m.GetConditions() {
		c.conditions = append(c.conditions, p.condition(x, fmt.Sprintf("conditions[%d]", i)))
	}
	p.few(len(m.GetDescriptors()), maxDescriptors, "descriptors")
	for i, x := range m.GetDescriptors() {
		c.descriptors = append(c.descriptors, p.descriptor(x, fmt.Sprintf("descriptors[%d]", i)))
	}
	c.enabled = p.share(m.GetFilterEnabled(), "filter_enabled")
	c.enforced = p.share(m.GetFilterEnforced(), "filter_enforced")
	var errs []*fields.Error
	c.reply, errs = route.Reply(m.GetStatus(), codecs.LocalError{Type: codecs.OverLimit, Message: text}, "status", env.Codecs)
	p.all("", "", errs)
	if err := p.Err(); err != nil {
		return nil, err
	}
	return c, nil
}

// all adds faults, of which the beginning of the path is another one here.
func (p *parser) all(was, is string, errs []*fields.Error) {
	for _, e := range errs {
		p.Add(fields.Join(is, strings.TrimPrefix(strings.TrimPrefix(e.Path, was), ".")), "%s", e.Reason)
	}
}

func (p *parser) few(n, most int, path string) {
	if n > most {
		p.Add(path, "must be at most %d, are %d", most, n)
	}
}

// bucket defines a bucket of what tells it from others of the same limit.
func (p *parser) bucket(of string, l tokenbucket.Limit) bucket {
	return bucket{fmt.Sprintf("%s %s %+v", p.scope, of, l), tokenbucket.NewRate(l)}
}

func (p *parser) condition(m *localratelimitv1alpha.LocalRateLimitCondition, path string) (c condition) {
	if m.GetMatch() == nil {
		p.Add(path+".match", "required")
	}
	var errs []*fields.Error
	c.match, errs = route.CompileMatch(m.GetMatch())
	p.all("", path+".match", errs)
	if m.GetTokenBucket() == nil {
		p.Add(path+".token_bucket", "required")
		return c
	}
	match, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.GetMatch())
	if err != nil {
		p.Add(path+".match", "%s", fields.CleanError(err))
	}
	c.bucket = p.bucket(fmt.Sprintf("condition %x", match), tokenbucket.Parse(m.GetTokenBucket(), path+".token_bucket", &p.Faults))
	return c
}

func (p *parser) descriptor(m *localratelimitv1alpha.LocalRateLimitDescriptor, path string) descriptor {
	d := descriptor{overrides: map[string]bucket{}}
	if n := len(m.GetNames()); n == 0 || n > maxNames {
		p.Add(path+".names", "must be 1 to %d, are %d", maxNames, n)
	}
	seen := map[string]bool{}
	for i, name := range m.GetNames() {
		lower := strings.ToLower(name)
		switch at := fmt.Sprintf("%s.names[%d]", path, i); {
		case name == "":
			p.Add(at, "required")
		case seen[lower]:
			p.Add(at, "%q is there twice", name)
		}
		seen[lower] = true
		d.names = append(d.names, lower)
	}
	d.most = p.Number(m.GetMaxKeys(), path+".max_keys", 1, mostKeys, defaultKeys)
	if m.GetTokenBucket() == nil {
		p.Add(path+".token_bucket", "required")
	} else {
		d.bucket = p.bucket(fmt.Sprintf("%d of %q", d.most, d.names), tokenbucket.Parse(m.GetTokenBucket(), path+".token_bucket", &p.Faults))
	}
	p.few(len(m.GetOverrides()), maxOverrides, path+".overrides")
	for i, o := range m.GetOverrides() {
		at := fmt.Sprintf("%s.overrides[%d]", path, i)
		if n := len(o.GetValues()); n != len(d.names) {
			p.Add(at+".values", "must be %d, as names, are %d", len(d.names), n)
		}
		key := keyed.Key(o.GetValues()...)
		if _, twice := d.overrides[key]; twice {
			p.Add(at+".values", "are there twice")
		}
		if o.GetTokenBucket() == nil {
			p.Add(at+".token_bucket", "required")
			continue
		}
		d.overrides[key] = p.bucket(fmt.Sprintf("%q of %q", o.GetValues(), d.names), tokenbucket.Parse(o.GetTokenBucket(), at+".token_bucket", &p.Faults))
	}
	return d
}

// share is a condition that holds for a share of the requests.
func (p *parser) share(f *corev3.RuntimeFractionalPercent, path string) *route.Match {
	if f == nil {
		return nil
	}
	m, errs := route.CompileMatch(&routev1alpha.RouteMatch{RuntimeFraction: f})
	p.all("runtime_fraction", path, errs)
	return m
}
