package convert

import (
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	thriftv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/thrift_proxy/v3"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/route"
	tablev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// matches tells whether a message matches one of several.
func matches(t *testing.T, properties map[string]string, any ...[]*routev3.HeaderMatcher) bool {
	table := &tablev1alpha.RouteConfiguration{}
	for _, all := range any {
		table.Routes = append(table.Routes, &tablev1alpha.Route{Match: &tablev1alpha.RouteMatch{Metadata: all}, Route: to("c")})
	}
	compiled, errs := route.Compile(table, route.Env{})
	require.Empty(t, errs)
	md := new(codecs.Metadata)
	for k, v := range properties {
		md.Set(k, v)
	}
	return compiled.Match(md) != nil
}

// TestThriftRoutesMatchWhatThriftProxyMatches: the whole name of a method, or what is
// before its colon.
func TestThriftRoutesMatchWhatThriftProxyMatches(t *testing.T) {
	for _, rule := range []string{"", "add", "sub", "Calculator:add", "Audit:add", "Calculator", "Calculator:", "Audit"} {
		for _, byService := range []bool{false, true} {
			for _, invert := range []bool{false, true} {
				if invert && rule == "" || byService && strings.Contains(rule, ":a") || !byService && strings.HasSuffix(rule, ":") {
					continue // thrift_proxy refuses it, or no name is like that
				}
				m := &thriftv3.RouteMatch{Invert: invert, MatchSpecifier: &thriftv3.RouteMatch_MethodName{MethodName: rule}}
				if byService {
					m.MatchSpecifier = &thriftv3.RouteMatch_ServiceName{ServiceName: rule}
				}
				for _, name := range []string{"add", "sub", "Calculator:add", "Calculator:sub", "Audit:add", "Calculator"} {
					want := rule == "" || name == rule
					if byService {
						want = rule == "" || strings.HasPrefix(name, strings.TrimSuffix(rule, ":")+":")
					}
					properties := map[string]string{"method": name}
					if service, method, ok := strings.Cut(name, ":"); ok {
						properties = map[string]string{"service": service, "method": method}
					}
					require.Equal(t, want != invert, matches(t, properties, thriftMatches(m)...), "%v of %s", m, name)
				}
			}
		}
	}
}

// TestInterfacesMatchWhatDubboProxyMatches: a * is at least one character.
func TestInterfacesMatchWhatDubboProxyMatches(t *testing.T) {
	for pattern, want := range map[string]string{
		"*":       "x.Foo y.Foo Foo xFoo x.Foo2 x.",
		"*Foo":    "x.Foo y.Foo xFoo",
		"*.Foo":   "x.Foo y.Foo",
		"x.*":     "x.Foo x.Foo2",
		"x.Foo*":  "x.Foo2",
		"x.Foo":   "x.Foo",
		"x.*Foo":  "",
		"*x.Foo*": "",
	} {
		var got []string
		for _, name := range []string{"x.Foo", "y.Foo", "Foo", "xFoo", "x.Foo2", "x."} {
			if matches(t, map[string]string{"interface": name}, wildcard("interface", pattern)) {
				got = append(got, name)
			}
		}
		require.Equal(t, want, strings.Join(got, " "), pattern)
	}
}
