// Package convert turns what other proxies are configured with into configurations
// of Meltemi: those of the C++ MetaProtocol Proxy, and of Envoy's filters dubbo_proxy
// and thrift_proxy, in files for Envoy and in EnvoyFilters.
package convert

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/loopback"
	"github.com/meltemi-mesh/meltemi/control/source"
	"github.com/meltemi-mesh/meltemi/filter"
)

// Options say what is made.
type Options struct {
	// Golang: for Envoys that load the shared object by their golang filter. False: by
	// dynamic modules.
	Golang bool
	// Library is where the golang filter finds the shared object. "":
	// /etc/meltemi/libmeltemi.so for Envoy, where "meltemi envoyfilter" has it for Istio.
	Library string
}

// Converted is a filter that is one of Meltemi's now.
type Converted struct {
	Line int
	// What it was, such as `dubbo_proxy, stat_prefix "greeter"`.
	What string
}

// Result is what became of a file.
type Result struct {
	// YAML is the file with the filters converted, and what they need beside them.
	// Comments are gone; all else that the file has is as it was. Nil if there was
	// nothing to convert.
	YAML []byte
	// Converted are the filters, in the order of the file.
	Converted []Converted
	// Notes tell what is carried over and does something else, or need not be.
	Notes source.Errors
	// Lost tell what is not carried over. A route is left out if what it matches cannot
	// be said, for it would match too much; a filter stays as it was if its routes are
	// not here, or if what would be made of it Meltemi's own loader refuses.
	Lost source.Errors
}

// File converts what is in a file of that name. It is read as package check reads
// it: YAML or JSON for Envoy by its name, EnvoyFilters as kubectl does. What the error
// tells of makes it unreadable.
func File(name string, text []byte, o Options) (*Result, *source.Error) {
	r := new(Result)
	var roots []*yaml.Node
	var err *source.Error
	kubernetes := source.IsKubernetes(text)
	switch {
	case kubernetes:
		roots, r.Notes, err = source.Kubernetes(text)
	case source.IsYAML(name), name == "-" && !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")):
		var root *yaml.Node
		if root, r.Notes, err = source.Envoy(text); root != nil {
			roots = []*yaml.Node{root}
		}
	case strings.HasSuffix(name, ".pb") || strings.HasSuffix(name, ".pb_text"):
		err = source.Errorf(0, "", "want YAML or JSON")
	default:
		var root *yaml.Node
		if root, err = source.EnvoyJSON(text); err == nil {
			block(root)
			roots = []*yaml.Node{root}
		}
	}
	if err != nil {
		return nil, err
	}
	shared := &shared{extensions: map[string]bool{}}
	for _, root := range roots {
		shared.find(root)
	}
	for _, root := range roots {
		c := &converter{Options: o, Result: r, kubernetes: kubernetes, shared: shared, prefixes: map[string]int{}}
		c.document(root)
	}
	if shared.thrift {
		for _, o := range shared.options {
			o()
		}
	}
	byLine := func(a, b *source.Error) int { return a.Line - b.Line }
	slices.SortStableFunc(r.Notes, byLine)
	slices.SortStableFunc(r.Lost, byLine)
	if len(r.Converted) == 0 {
		return r, nil
	}
	more, err := shared.loopbacks(o)
	if err != nil {
		return nil, err
	}
	for i, root := range append(roots, more...) {
		doc, wrong := encode(root)
		if wrong != nil {
			return nil, source.Errorf(root.Line, "", "%v", wrong)
		}
		if i > 0 {
			r.YAML = append(r.YAML, "---\n"...)
		}
		r.YAML = append(r.YAML, doc...)
	}
	return r, nil
}

// converter has one document.
type converter struct {
	Options
	*Result
	kubernetes bool
	shared     *shared

	tracer   *yaml.Node     // that of the bootstrap
	clusters []string       // those of the bootstrap
	prefixes map[string]int // stat_prefixes, and the line of each
	// istioStats: there are Istio's metrics, for which the loopback listener tells more.
	istioStats bool
	// direction is the traffic_direction of the listener in which walk is.
	direction string
}

func (c *converter) note(line int, path, format string, args ...any) {
	c.Notes = append(c.Notes, source.Errorf(line, path, format, args...))
}

func (c *converter) lose(line int, path, format string, args ...any) {
	c.Lost = append(c.Lost, source.Errorf(line, path, format, args...))
}

func (c *converter) document(root *yaml.Node) {
	static := at(root, "static_resources")
	if static == nil {
		c.walk(root, "")
		if !c.kubernetes && len(c.Converted) > 0 {
			c.note(0, "", "Envoy needs the loopback listener, once: converting the whole bootstrap adds it")
		}
		return
	}
	c.tracer = at(root, "tracing", "http")
	elements(at(static, "clusters"), "", func(e *yaml.Node, _ string) { c.clusters = append(c.clusters, text(e, "name")) })
	c.walk(root, "")
	if len(c.Converted) > 0 {
		c.loopback(static)
	}
}

const listenerName = "meltemi-loopback"

// loopback adds the loopback listener.
func (c *converter) loopback(static *yaml.Node) {
	listeners := asList(static, "listeners")
	if listeners == nil {
		listeners = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		set(static, "listeners", listeners)
	}
	for _, l := range listeners.Content {
		if text(l, "name") == listenerName {
			return
		}
	}
	l := loopback.Listener{Module: module, Socket: "@meltemi", Workloads: c.istioStats}
	if c.Golang {
		l = loopback.Listener{Socket: "/run/envoy/meltemi.sock", Tunnels: true}
		c.note(0, "", `Envoy's environment must have MELTEMI_PROCESS='{"path": %q}'`, l.Socket)
	}
	listeners.Content = append(listeners.Content, node(l.Config()))
}

// walk looks for filters at n and below.
func (c *converter) walk(n *yaml.Node, path string) {
	if n.Kind == yaml.SequenceNode {
		for i, e := range n.Content {
			c.walk(e, fmt.Sprintf("%s[%d]", path, i))
		}
	}
	if n.Kind != yaml.MappingNode {
		return
	}
	if spec := at(n, "spec"); spec != nil && text(n, "kind") == "EnvoyFilter" {
		c.envoyFilter(n, behind(path, "spec"))
		return
	}
	if at(n, "filter_chains") != nil || at(n, "default_filter_chain") != nil {
		outer := c.direction
		if d := text(n, "traffic_direction"); d != "" {
			c.direction = d
		}
		defer func() { c.direction = outer }()
	}
	if k, typed := field(n, "typed_config"); typed != nil && c.filter(n, k, typed, path) {
		return
	}
	if k, discovery := field(n, "config_discovery"); discovery != nil && c.discovery(n, discovery, fault.Join(path, k.Value)) {
		return
	}
	if at(n, "typed_extension_protocol_options") != nil {
		c.shared.options = append(c.shared.options, func() { c.protocolOptions(n, path) })
	}
	for i := 0; i < len(n.Content); i += 2 {
		c.walk(n.Content[i+1], fault.Join(path, n.Content[i].Value))
	}
}

// typed finds a message in an Any, or in a TypedStruct in one, and its path there.
func typed(a *yaml.Node) (name string, m *yaml.Node, path string) {
	url := text(a, "@type")
	if strings.HasSuffix(url, ".TypedStruct") {
		return typeName(text(a, "type_url")), at(a, "value"), "value"
	}
	return typeName(url), a, ""
}

// typeName is the message's in the URL of a type.
func typeName(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

// other is what a filter was.
type other struct {
	name string // in texts
	// convert makes the filter's configuration; nil if it cannot be.
	convert func(s *subject) *yaml.Node
}

var others = map[string]other{
	"aeraki.meta_protocol_proxy.v1alpha.MetaProtocolProxy":          {"the C++ proxy", (*subject).metaProtocol},
	"envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy":    {"dubbo_proxy", (*subject).dubbo},
	"envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy":  {"thrift_proxy", (*subject).thrift},
	"envoy.config.filter.network.dubbo_proxy.v2alpha1.DubboProxy":   {"dubbo_proxy", (*subject).dubbo},
	"envoy.config.filter.network.thrift_proxy.v2alpha1.ThriftProxy": {"thrift_proxy", (*subject).thrift},
}

// subject is a filter that is to be converted.
type subject struct {
	*converter
	other
	*yaml.Node // its configuration
	path       string
	// from is the path of the route from which each of those that were made comes, if
	// they are not the same.
	from []string
}

// fieldNote and fieldLoss tell of a field, by its path in the configuration.
func (s *subject) fieldNote(path, format string, args ...any) {
	s.note(source.Line(s.Node, path), behind(s.path, path), format, args...)
}

func (s *subject) fieldLoss(path, format string, args ...any) {
	s.lose(source.Line(s.Node, path), behind(s.path, path), format, args...)
}

// filter converts a filter n with such a configuration, if it is one of the others. It keeps
// its name, by which patches and the server of an extension's configuration find it.
func (c *converter) filter(n, key, any *yaml.Node, path string) bool {
	name, m, inside := typed(any)
	o, known := others[name]
	if !known || m == nil || m.Kind != yaml.MappingNode {
		return false
	}
	s := &subject{converter: c, other: o, Node: m, path: behind(fault.Join(path, key.Value), inside)}
	cfg := o.convert(s)
	if cfg == nil || !s.judged(cfg) {
		return true
	}
	s.unique(cfg)
	c.shared.thrift = c.shared.thrift || o.name == "thrift_proxy"
	c.Converted = append(c.Converted, Converted{n.Line, fmt.Sprintf("%s, stat_prefix %q", o.name, text(m, "stat_prefix"))})
	if text(cfg, "request_timeout") == "" {
		c.note(m.Line, s.path, "a request without an answer ends after 15s, the default of request_timeout: %s waits for ever", o.name)
	}
	if c.direction != "" && text(cfg, "traffic_direction") == "" {
		set(cfg, "traffic_direction", node(c.direction))
	}
	set(n, key.Value, c.form(cfg))
	return true
}

// discovery has a filter n whose configuration comes by extension config discovery want
// Meltemi's, if it wants one of the others' that is in the file.
func (c *converter) discovery(n, discovery *yaml.Node, path string) bool {
	k, urls := field(discovery, "type_urls")
	var what string
	elements(urls, "", func(e *yaml.Node, _ string) {
		if o, known := others[typeName(e.Value)]; known {
			what = o.name
		}
	})
	if what == "" {
		return false
	}
	name := text(n, "name")
	if !c.shared.extensions[name] {
		c.lose(k.Line, fault.Join(path, k.Value), "the configuration %q is not here: its server would have to send Meltemi's%s", name, staysAsItIs)
		return true
	}
	already := len(c.Converted)
	if k, first := field(discovery, "default_config"); first != nil && c.filter(discovery, k, first, path) && len(c.Converted) == already {
		return true
	}
	wanted := []any{c.formType()}
	elements(urls, "", func(e *yaml.Node, _ string) {
		if _, known := others[typeName(e.Value)]; !known {
			wanted = append(wanted, e.Value)
		}
	})
	set(discovery, k.Value, node(wanted))
	c.Converted = append(c.Converted, Converted{n.Line, fmt.Sprintf("%s, by the configuration %q", what, name)})
	return true
}

const staysAsItIs = "; the filter stays as it is"

// judged has the filter's loader look at what was made, and leaves out logs and traces
// that it refuses.
func (s *subject) judged(cfg *yaml.Node) bool {
	for {
		b, err := raw(cfg)
		if err != nil {
			s.lose(err.Line, behind(s.path, err.Path), "%s%s", err.Reason, staysAsItIs)
			return false
		}
		faults := filter.Check(b)
		if len(faults) == 0 {
			return true
		}
		var traces, all bool
		logs := map[int]bool{}
		for _, e := range faults {
			var i int
			if name, _, _ := strings.Cut(e.Path, "."); source.SameName(name, "tracing") {
				traces = true
			} else if n, _ := fmt.Sscanf(name, "access_log[%d]", &i); n == 1 {
				logs[i] = true
			} else if n, _ := fmt.Sscanf(name, "accessLog[%d]", &i); n == 1 {
				logs[i] = true
			} else {
				all = true
			}
		}
		stays := ""
		if all {
			stays = staysAsItIs
		}
		for _, e := range faults {
			s.fieldLoss(s.origin(e.Path), "%s%s", e.Reason, stays)
		}
		if all {
			return false
		}
		if traces {
			remove(cfg, "tracing")
		}
		if list := asList(cfg, "access_log"); list != nil {
			var kept []*yaml.Node
			for i, l := range list.Content {
				if !logs[i] {
					kept = append(kept, l)
				}
			}
			list.Content = kept
		}
	}
}

// origin is the path of that from which what is at a path was made.
func (s *subject) origin(path string) string {
	var i int
	if n, _ := fmt.Sscanf(path, "route_config.routes[%d]", &i); n == 1 && i < len(s.from) {
		return s.from[i]
	}
	return path
}

// unique has no two filters of a document have one stat_prefix: Meltemi tells their
// routes apart by it.
func (s *subject) unique(cfg *yaml.Node) {
	if s.kubernetes {
		return
	}
	prefix := text(cfg, "stat_prefix")
	line, taken := s.prefixes[prefix]
	if !taken {
		s.prefixes[prefix] = source.Line(s.Node, "stat_prefix")
		return
	}
	own := prefix
	for i := 2; taken; i++ {
		own = fmt.Sprintf("%s_%d", prefix, i)
		_, taken = s.prefixes[own]
	}
	s.prefixes[own] = source.Line(s.Node, "stat_prefix")
	set(cfg, "stat_prefix", node(own))
	s.fieldNote("stat_prefix", "%q is also that of line %d, and each needs its own: %q", prefix, line, own)
}
