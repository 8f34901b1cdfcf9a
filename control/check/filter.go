package check

import (
	"fmt"
	"strings"

	modulesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/dynamic_modules/v3"
	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/source"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/config"
)

const (
	proxyFilter   = "meta_protocol_proxy"
	carrierFilter = "carrier"
	moduleName    = "meltemi"

	unknownToEnvoy = "Envoy does not know this type: give it as the value of a google.protobuf.Struct"
)

// module checks a DynamicModuleNetworkFilter, if it is one of Meltemi's.
func (c *checker) module(p place) {
	name := p.text("filter_name")
	_, nameLine := p.at("filter_name")
	dm, _ := p.at("dynamic_module_config")
	terminal, terminalLine := p.at("terminal_filter")
	if c.kubernetes && (name == proxyFilter || name == carrierFilter) {
		c.shape(p, &modulesv3.DynamicModuleNetworkFilter{}, "@type", "filter_config")
	}
	switch name {
	case proxyFilter:
		if c.proxy == nil {
			c.proxy = &p
		}
		if terminal.Node == nil || terminal.Value != "true" {
			c.refuse(terminalLine, terminal.path, "must be true: the filter ends the chain")
		}
		if cfg, ok := c.filterConfig(p, "filter_config"); ok {
			c.proxyConfig(cfg)
		} else {
			c.finds(p.Line, proxyFilter)
		}
	case carrierFilter:
		c.carrier = true
		if c.listener != nil {
			c.listener.carrier = true
		}
		if terminal.Node != nil && terminal.Value != "false" {
			c.refuse(terminalLine, terminal.path, "must not be set: tcp_proxy ends the chain")
		}
		c.finds(p.Line, carrierFilter)
		if cfg, ok := c.filterConfig(p, "filter_config"); ok {
			c.carrierConfig(cfg)
		}
	default:
		if dm.text("name") == moduleName {
			c.finds(p.Line, "filter %q", name)
			c.refuse(nameLine, fault.Join(p.path, "filter_name"), "want %s or %s", proxyFilter, carrierFilter)
		}
	}
}

// loaded is a configuration as the module gets it, and where it is.
type loaded struct {
	raw []byte
	// where it begins; without a node nothing is known of its lines but that.
	where place
	first int // its first line
	shift int // from the lines of where to those of the file
	typed bool
}

// line is that of a field of the configuration.
func (l loaded) line(path string) int {
	if l.where.Node == nil {
		return l.first
	}
	return source.Line(l.where.Node, path) + l.shift
}

// filterConfig finds what the module is given, in that field.
func (c *checker) filterConfig(p place, field string) (loaded, bool) {
	a, line := p.at(field)
	if a.Node == nil {
		c.refuse(line, a.path, "required")
		return loaded{}, false
	}
	_, typeLine := a.at("@type")
	value, _ := a.at("value")
	url := a.text("@type")
	switch name := typeName(url); {
	case name == "google.protobuf.Struct" && value.Node != nil:
		return c.json(value)
	case strings.HasSuffix(name, typedStruct):
		l, ok := c.json(a)
		l.typed = true
		return l, ok
	case name == "google.protobuf.StringValue" && value.Node != nil && value.Kind == yaml.ScalarNode:
		return inString(value), true
	case name == "google.protobuf.BytesValue" && value.Node != nil && value.Kind == yaml.ScalarNode:
		raw, ok := base64Bytes(value.Value)
		if !ok && c.kubernetes {
			c.refuse(value.Line, value.path, "want base64")
		}
		return loaded{raw: raw, where: place{path: value.path}, first: value.Line}, ok
	case isProxy(url) && c.serialized: // the module gets the message as it is
		return c.json(a)
	case isProxy(url):
		if c.kubernetes { // else it has been refused
			c.refuse(typeLine, fault.Join(a.path, "@type"), unknownToEnvoy)
		}
	case name == "":
		c.refuse(typeLine, fault.Join(a.path, "@type"), "required")
	case value.Node == nil:
		c.refuse(typeLine, value.path, "required")
	default:
		c.refuse(typeLine, fault.Join(a.path, "@type"), "want google.protobuf.Struct, google.protobuf.StringValue or a TypedStruct")
	}
	return loaded{}, false
}

func (c *checker) json(p place) (loaded, bool) {
	v, fault := source.Value(p.Node, p.path)
	if fault != nil {
		c.errs = append(c.errs, fault)
		return loaded{}, false
	}
	if o, ok := v.(map[string]any); ok {
		delete(o, "@type") // of an Any that has the message
	}
	raw, ok := c.marshal(doubles(v), p)
	return loaded{raw: raw, where: p, first: p.Line}, ok
}

// doubles has all numbers as a google.protobuf.Struct holds them.
func doubles(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = doubles(v[k])
		}
	case []any:
		for i := range v {
			v[i] = doubles(v[i])
		}
	case int64:
		return float64(v)
	case uint64:
		return float64(v)
	}
	return v
}

// inString is a configuration that is written into a string.
func inString(p place) loaded {
	l := loaded{raw: []byte(p.Value), where: place{path: p.path}, first: p.Line}
	docs, fault := source.Parse(l.raw)
	switch {
	case fault != nil || len(docs) != 1:
	case p.Style&yaml.LiteralStyle != 0:
		l.where.Node, l.shift = docs[0], p.Line
	default: // all on one line, or folded
		if !strings.Contains(p.Value, "\n") {
			l.where.Node, l.shift = docs[0], p.Line-1
		}
	}
	return l
}

// bare is a MetaProtocolProxy that no filter has around it.
func (c *checker) bare(p place) {
	if l, ok := c.json(p); ok {
		l.typed = p.has("type_url")
		c.proxyConfig(l)
	} else {
		c.finds(p.Line, proxyFilter)
	}
}

// proxyConfig has the filter's loader look at a configuration.
func (c *checker) proxyConfig(l loaded) {
	message := l.where
	if value, _ := l.where.at("value"); l.typed && value.Node != nil {
		message = value
	}
	c.finds(l.first, "%s, stat_prefix %q", proxyFilter, message.text("stat_prefix"))
	for _, e := range filter.Check(l.raw) {
		path := e.Path
		if l.typed && path != "type_url" {
			path = behind("value", path)
		}
		c.refuse(l.line(path), behind(l.where.path, path), "%s", e.Reason)
	}
	if p, errs := config.LoadAll(l.raw); len(errs) == 0 {
		if p.RDS != nil {
			path := typedPath(l) + "rds"
			c.note(l.line(path), behind(l.where.path, path), "the routes %q come from %s when Envoy runs: they are not checked here, nor whether it is there", p.RDS.Name, p.RDS.Server())
		}
		if !p.StrictFilterOrder { // else it is a fault
			for _, e := range filter.Disorder(p) {
				path := typedPath(l) + e.Path
				c.note(l.line(path), behind(l.where.path, path), "%s", e.Reason)
			}
		}
	}
	c.shares(l, typedPath(l))
}

// typedPath is that of the configuration in what the module gets.
func typedPath(l loaded) string {
	if l.typed {
		return "value."
	}
	return ""
}

// table is what identifies a route table and the statistics of a listener.
type table struct {
	listener                *listener
	statPrefix, scope, name string
	proxy                   *config.Proxy
	line                    int
	path                    string
}

func (t table) String() string {
	if t.line == 0 {
		return t.path
	}
	return fmt.Sprintf("line %d", t.line)
}

// shares refuses what another listener of the document calls its own.
func (c *checker) shares(l loaded, prefix string) {
	if c.listener == nil || c.kubernetes {
		return
	}
	p, errs := config.LoadAll(l.raw)
	if len(errs) > 0 {
		return
	}
	t := table{c.listener, p.StatPrefix, p.TableScope, p.TableName(), p, l.line(prefix + "stat_prefix"), behind(l.where.path, prefix+"stat_prefix")}
	for _, o := range c.tables {
		same := o.listener == t.listener
		switch {
		case o.statPrefix == t.statPrefix && !same:
			c.refuse(t.line, behind(l.where.path, prefix+"stat_prefix"), "%q is also that of the listener at %v: each needs its own", t.statPrefix, o)
		case o.scope == t.scope && o.name == t.name && (!same || !o.proxy.SameRoutes(t.proxy)):
			name := prefix + "route_config.name"
			if p.RDS != nil {
				name = prefix + "rds.route_config_name"
			}
			c.refuse(l.line(name), behind(l.where.path, name),
				"the route table %q of the scope %q is also that of the configuration at %v: each needs its own", t.name, t.scope, o)
		default:
			continue
		}
		return
	}
	c.tables = append(c.tables, t)
}
