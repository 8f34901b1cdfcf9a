package rbac

import (
	"fmt"
	"regexp"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/route"
	rbacv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/filters/rbac/v1alpha"
)

// config is what a message RBAC says.
type config struct {
	enforced, shadow *engine // nil: none
	prefix           string
	reply            codecs.LocalError
}

type builder struct{}

// Phase implements filter.PhasedBuilder.
func (builder) Phase() filter.Phase { return filter.Authorization }

// Parse implements filter.Builder.
func (builder) Parse(from *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(rbacv1alpha.RBAC)
	if err := read(from, m); err != nil {
		return nil, err
	}
	return parse(m, "", env)
}

// ParseRoute implements filter.RouteBuilder.
func (builder) ParseRoute(from *anypb.Any, env *filter.Env) (filter.Config, error) {
	m := new(rbacv1alpha.RBACPerRoute)
	if err := read(from, m); err != nil {
		return nil, err
	}
	if m.GetRbac() == nil {
		return &config{}, nil
	}
	c, err := parse(m.GetRbac(), "rbac", env)
	if c.prefix != "" {
		var faults fields.Faults
		faults.AddAll("", err)
		faults.Add("rbac.shadow_rules_stat_prefix", "routes count as the filter does: it is the filter's")
		return nil, faults.Err()
	}
	return c, err
}

func read(from *anypb.Any, m proto.Message) error {
	if from == nil {
		return nil
	}
	if err := from.UnmarshalTo(m); err != nil {
		return fmt.Errorf("want %s: %s", m.ProtoReflect().Descriptor().FullName(), fields.CleanError(err))
	}
	return nil
}

// prefixes are those of metrics.
var prefixes = regexp.MustCompile(`^[A-Za-z0-9_.-]*$`)

func parse(m *rbacv1alpha.RBAC, path string, env *filter.Env) (*config, error) {
	var faults fields.Faults
	c := &config{prefix: m.GetShadowRulesStatPrefix()}
	at := func(field string) string { return fields.Join(path, field) }
	if !prefixes.MatchString(c.prefix) {
		faults.Add(at("shadow_rules_stat_prefix"), "want letters, digits, dots, dashes and underscores")
	}
	var errs []*route.Error
	c.reply, errs = route.Reply(m.GetReply(), codecs.LocalError{Type: codecs.Denied, Message: "RBAC: access denied"}, at("reply"), env.Codecs)
	for _, err := range errs {
		faults.AddAll("", err)
	}
	compiled := func(from *rbacv3.RBAC, path string) *engine {
		if from == nil {
			return nil
		}
		e, err := compile(from)
		faults.AddAll(path, err)
		return e
	}
	c.enforced = compiled(m.GetRules(), at("rules"))
	c.shadow = compiled(m.GetShadowRules(), at("shadow_rules"))
	return c, faults.Err()
}
