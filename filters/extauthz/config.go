package extauthz

import (
	"fmt"
	"slices"
	"strings"
	"time"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
	extauthzv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/ext_authz/v1alpha"
)

const (
	defaultTimeout    = 200 * time.Millisecond
	maxTTL            = time.Hour
	maxExtensions     = 64
	maxExtensionBytes = 4096
)

var (
	usualDenied = codecs.LocalError{Type: codecs.Denied, Message: "denied by the authorization service"}
	usualFailed = codecs.LocalError{Type: codecs.Denied, Message: "the authorization service failed"}
)

// config is a frozen ExtAuthz.
type config struct {
	target            grpcclient.Target
	timeout           time.Duration
	allowFailure      bool
	tellFailure       bool
	failed, denied    codecs.LocalError
	all               bool // properties are sent, but for the disallowed ones
	allowed, withheld []name
	ttl               time.Duration // of answers; 0: they are not kept
	maxEntries        int
}

// settings are those of a route.
type settings struct {
	disabled   bool
	extensions map[string]string
	id         string // of the extensions
}

// sends reports whether the property of this name is sent.
func (c *config) sends(name []byte) bool {
	return (c.all || matches(c.allowed, name)) && !matches(c.withheld, name)
}

// name is a condition on names of properties: they begin with, end with, or contain it,
// or are the same.
type name struct {
	how  func(b, text []byte) bool
	text []byte
}

// matches expects a name in lower case.
func matches(names []name, b []byte) bool {
	return slices.ContainsFunc(names, func(n name) bool { return n.how(b, n.text) })
}

// parser gathers faults.
type parser struct{ fields.Faults }

func parse(any *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(extauthzv1alpha.ExtAuthz)
	if err := fields.Unpack(any, m); err != nil {
		return nil, err
	}
	p := &parser{}
	c := &config{
		allowFailure: m.GetFailureModeAllow(),
		tellFailure:  m.GetFailureModeAllowHeaderAdd(),
		failed:       p.reply(m.GetStatusOnError(), "status_on_error", env, usualFailed),
		denied:       p.reply(m.GetDeniedStatus(), "denied_status", env, usualDenied),
		all:          m.GetAllowedHeaders() == nil,
		allowed:      p.names(m.GetAllowedHeaders(), "allowed_headers"),
		withheld:     p.names(m.GetDisallowedHeaders(), "disallowed_headers"),
	}
	if m.GetGrpcService() == nil {
		p.Add("grpc_service", "required")
	} else {
		var err error
		c.target, err = grpcclient.Parse(m.GetGrpcService(), "grpc_service")
		p.AddAll("", err)
		if c.timeout = c.target.Timeout; m.GetGrpcService().GetTimeout() == nil {
			c.timeout = defaultTimeout
		} else if err == nil && c.timeout < time.Millisecond {
			p.Add("grpc_service.timeout", "must be at least 1ms, is %v", c.timeout)
		}
	}
	if k := m.GetCache(); k != nil {
		if k.GetTtl() == nil {
			p.Add("cache.ttl", "required")
		}
		if c.ttl = p.Duration(k.GetTtl(), "cache.ttl", time.Millisecond, time.Millisecond); c.ttl > maxTTL {
			p.Add("cache.ttl", "must be at most %v, is %v", maxTTL, c.ttl)
		}
		c.maxEntries = p.Number(k.GetMaxEntries(), "cache.max_entries", 1, 1<<20, 4096)
	}
	return c, p.Err()
}

func (p *parser) reply(d *routev1alpha.DirectResponse, path string, env *filter.Env, def codecs.LocalError) codecs.LocalError {
	e, errs := route.Reply(d, def, path, env.Codecs)
	for _, err := range errs {
		p.AddAll("", err)
	}
	return e
}

func (p *parser) names(l *matcherv3.ListStringMatcher, path string) (all []name) {
	for i, s := range l.GetPatterns() {
		n, err := parseName(s)
		if err != nil {
			p.AddAll(fmt.Sprintf("%s.patterns[%d]", path, i), err)
		}
		all = append(all, n)
	}
	return all
}

func parseRoute(any *anypb.Any) (filter.Config, error) {
	m := new(extauthzv1alpha.ExtAuthzPerRoute)
	if err := fields.Unpack(any, m); err != nil {
		return nil, err
	}
	p := &parser{}
	s := &settings{}
	switch m.GetOverride().(type) {
	case *extauthzv1alpha.ExtAuthzPerRoute_Disabled:
		if s.disabled = m.GetDisabled(); !s.disabled {
			p.Add("disabled", "must be true")
		}
	case *extauthzv1alpha.ExtAuthzPerRoute_CheckSettings:
		s.extensions = m.GetCheckSettings().GetContextExtensions()
		if n := len(s.extensions); n > maxExtensions {
			p.Add("check_settings.context_extensions", "must be at most %d, are %d", maxExtensions, n)
		}
		for k, v := range s.extensions {
			if max(len(k), len(v)) > maxExtensionBytes {
				p.Add("check_settings.context_extensions", "%.40q has more than %d bytes", k, maxExtensionBytes)
			}
		}
		s.id = fmt.Sprintf("%q", s.extensions) // in the order of the keys
	default:
		p.Add("check_settings", "required, or disabled")
	}
	return s, p.Err()
}

func lower(s string) []byte { return []byte(strings.ToLower(s)) }
