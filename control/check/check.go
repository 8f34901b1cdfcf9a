// Package check validates, without any Envoy, every configuration of Meltemi in
// a file, with the loader of the filter itself.
package check

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/input"
	"github.com/meltemi-mesh/meltemi/control/loopback"
	"github.com/meltemi-mesh/meltemi/control/source"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
	"github.com/meltemi-mesh/meltemi/filter/config"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// Found is a configuration that a file has.
type Found struct {
	Line int
	// What it is, such as `meta_protocol_proxy, stat_prefix "greeter"`.
	What string
}

// Report is what a file is, has, and is refused for.
type Report struct {
	// Kind is what the file was judged as, and by whose rules it was read; "" for
	// the input of package input, which its own line in Found names.
	Kind  string
	Found []Found
	// Notes tell of what those who read the file ignore, or do without, and say
	// nothing.
	Notes, Faults source.Errors
}

// File validates the configurations in a file of that name: an Envoy bootstrap
// or any part of one, EnvoyFilters, a MetaProtocolProxy by itself, or the input
// of package input. What is for Envoy is read as Envoy reads it, which goes
// by the name: YAML if it ends in .yaml or .yml, protobuf's binary form or text if
// in .pb or .pb_text, else JSON; "-" may be YAML or JSON.
// Kubernetes objects are read as kubectl and istiod do. It knows the codecs and
// filters that the program links.
func File(name string, text []byte) *Report {
	r := new(Report)
	lower := strings.ToLower(name)
	if binary := strings.HasSuffix(lower, ".pb"); binary || strings.HasSuffix(lower, ".pb_text") {
		r.serialized(text, binary)
		return r
	}
	docs, fault := source.Parse(text)
	switch {
	case source.IsKubernetes(text):
		r.Kind = "Kubernetes objects, as kubectl and istiod read them"
		r.kubernetes(text)
	case fault == nil && len(docs) > 0 && isService(place{Node: docs[0]}):
		if fault := input.One(docs); fault != nil {
			r.Faults = source.Errors{fault}
			break
		}
		c := &checker{root: docs[0]}
		c.service()
		r.add(c)
	default:
		r.envoy(name, text)
	}
	slices.SortStableFunc(r.Notes, func(a, b *source.Error) int { return a.Line - b.Line })
	return r
}

func isService(p place) bool { return p.has("host") && (p.has("ports") || p.has("observed")) }

func (r *Report) add(c *checker) {
	slices.SortStableFunc(c.errs, func(a, b *source.Error) int { return a.Line - b.Line })
	// What a message and the filter's loader are refused for is one fault.
	c.errs = slices.CompactFunc(c.errs, func(a, b *source.Error) bool { return *a == *b })
	r.Found, r.Faults, r.Notes = append(r.Found, c.found...), append(r.Faults, c.errs...), append(r.Notes, c.notes...)
}

func (r *Report) kubernetes(text []byte) {
	docs, notes, fault := source.Kubernetes(text)
	r.Notes = notes
	if fault != nil {
		r.Faults = source.Errors{fault}
		return
	}
	for _, d := range docs {
		c := &checker{root: d, kubernetes: true}
		c.walk(place{Node: d})
		r.add(c)
	}
}

func (r *Report) envoy(name string, text []byte) {
	var root *yaml.Node
	var fault *source.Error
	form := "JSON"
	if isYAML := source.IsYAML(name); isYAML || name == "-" && !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		form = "YAML"
		root, r.Notes, fault = source.Envoy(text)
	} else if root, fault = source.EnvoyJSON(text); fault != nil && !strings.HasSuffix(strings.ToLower(name), ".json") {
		fault.Reason += "; Envoy reads a file as YAML only if its name ends in .yaml or .yml"
	}
	r.Kind = "for Envoy, read as its " + form
	if fault != nil {
		r.Faults = source.Errors{fault}
		return
	}
	if root == nil {
		return
	}
	c := &checker{root: root}
	what := c.document(form == "YAML")
	r.Kind = what + ", as Envoy reads " + form
	r.add(c)
}

// checker looks at one document.
type checker struct {
	root        *yaml.Node
	found       []Found
	errs, notes source.Errors
	// kubernetes: Envoy gets what is here from istiod. serialized: it does not need
	// to know each type.
	kubernetes, serialized bool

	// listener is where walk is, nil outside of one.
	listener *listener
	// What the document has: its first filter of clients, and carriers.
	proxy   *place
	carrier bool
	tables  []table
	// The same of the golang filter, and from where its libraries come.
	golangProxy   *place
	golangCarrier bool
	libraries     map[string]string
}

// listener is one of a document.
type listener struct {
	socket  string // the pipe to which it is bound
	carrier bool   // there is one among its filters
}

// place is a node with its path.
type place struct {
	*yaml.Node
	path string
}

// at is the place of a field's value, and the line of its name; without a node
// if there is no such field, or null in it. Of several the last counts.
func (p place) at(name string) (value place, line int) {
	if p.Node != nil && p.Kind == yaml.MappingNode {
		for i := len(p.Content) - 2; i >= 0; i -= 2 {
			if k := p.Content[i]; source.SameName(k.Value, name) && p.Content[i+1].ShortTag() != "!!null" {
				return place{p.Content[i+1], fault.Join(p.path, k.Value)}, k.Line
			}
		}
	}
	return place{nil, fault.Join(p.path, name)}, p.line()
}

// elements are those of a list.
func (p place) elements() (list []place) {
	if p.Node == nil || p.Kind != yaml.SequenceNode {
		return nil
	}
	for i, e := range p.Content {
		list = append(list, place{e, fmt.Sprintf("%s[%d]", p.path, i)})
	}
	return list
}

func (p place) line() int {
	if p.Node == nil {
		return 0
	}
	return p.Line
}

func (p place) has(names ...string) bool {
	for _, name := range names {
		v, _ := p.at(name)
		if p = v; p.Node == nil {
			return false
		}
	}
	return true
}

// text is what a scalar field says, "" if there is none.
func (p place) text(name string) string {
	if v, _ := p.at(name); v.Node != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

func (c *checker) refuse(line int, path, format string, args ...any) {
	c.errs = append(c.errs, source.Errorf(line, path, format, args...))
}

func (c *checker) note(line int, path, format string, args ...any) {
	c.notes = append(c.notes, source.Errorf(line, path, format, args...))
}

func (c *checker) finds(line int, format string, args ...any) {
	c.found = append(c.found, Found{line, fmt.Sprintf(format, args...)})
}

const (
	dynamicModule = "envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter"
	moduleLB      = "envoy.extensions.load_balancing_policies.dynamic_modules.v3.DynamicModulesLoadBalancerConfig"
	typedStruct   = ".TypedStruct"
)

// typeName is the last part of a type URL.
func typeName(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

func isProxy(url string) bool {
	return typeName(url) == string((*proxyv1alpha.MetaProtocolProxy)(nil).ProtoReflect().Descriptor().FullName())
}

// document judges what is for Envoy, and tells what it is. Of YAML the order of
// fields does not reach the parser of messages.
func (c *checker) document(unordered bool) (what string) {
	p := place{Node: c.root}
	r := &libprotobuf{checker: c, unordered: unordered}
	switch {
	case p.has("static_resources") || p.has("dynamic_resources") || p.has("admin") || p.has("node"):
		r.root(p, new(bootstrapv3.Bootstrap).ProtoReflect())
		c.walk(p)
		if c.proxy != nil && !c.carrier && !p.has("dynamic_resources", "lds_config") {
			c.refuse(c.proxy.Line, c.proxy.path, "there is no loopback listener: one with the filter carrier before tcp_proxy")
		}
		if c.golangProxy != nil && !c.golangCarrier && !p.has("dynamic_resources", "lds_config") {
			c.refuse(c.golangProxy.Line, c.golangProxy.path, "there is no loopback listener: one with the filter set_filter_state, for %s, before tcp_proxy", clusterKey)
		}
		return "an Envoy bootstrap"
	case p.has("resources"):
		r.lax = true
		r.parts(p)
		c.walk(p)
		return "an Envoy discovery response"
	case p.has("stat_prefix") && !p.has("@type"), isProxy(p.text("type_url")):
		c.bare(p)
		return "a MetaProtocolProxy by itself"
	case isListener(p) && !p.has("@type"):
		r.root(p, new(listenerv3.Listener).ProtoReflect())
	default:
		r.parts(p)
	}
	c.walk(p)
	return "a part of an Envoy configuration"
}

// parts reads the messages at p and below that say what they are.
func (r *libprotobuf) parts(p place) {
	switch {
	case p.Kind == yaml.MappingNode && p.has("@type"):
		r.any(p, new(anypb.Any).ProtoReflect())
	case p.Kind == yaml.MappingNode:
		p.fields(func(_ *yaml.Node, v place) { r.parts(v) })
	default:
		for _, e := range p.elements() {
			r.parts(e)
		}
	}
}

// service is the generator's input.
func (c *checker) service() {
	c.finds(c.root.Line, "service %s", place{Node: c.root}.text("host"))
	s, places, errs := input.New(c.root)
	if len(errs) == 0 {
		_, faults := envoyfilter.Generate(s)
		errs = places.Locate(faults)
	}
	c.errs = append(c.errs, errs...)
}

// walk looks for filters of ours at p and below.
func (c *checker) walk(p place) {
	for _, e := range p.elements() {
		c.walk(e)
	}
	if p.Kind != yaml.MappingNode {
		return
	}
	if spec, _ := p.at("spec"); spec.Node != nil && p.text("kind") == "EnvoyFilter" {
		c.envoyFilter(spec)
	}
	if p.has("load_balancing_policy") {
		c.cluster(p)
	}
	if lb, ok := p.as(moduleLB); ok {
		c.balancer(lb)
		return
	}
	if m, ok := p.as(golangFilter); ok {
		c.golang(m)
		return
	}
	switch m, isModule := p.as(dynamicModule); {
	case isModule:
		c.module(m)
		return
	case strings.HasSuffix(p.text("@type"), typedStruct) && isProxy(p.text("type_url")), c.kubernetes && isProxy(p.text("@type")):
		c.refuse(p.Line, p.path, "Envoy has no filter of this type: put it into the filter_config of a %s, or the plugin_config of a %s", dynamicModule, golangFilter)
		return
	}
	if isListener(p) {
		address, _ := p.at("address")
		pipe, _ := address.at("pipe")
		outer := c.listener
		c.listener = &listener{socket: pipe.text("path")}
		defer func() {
			if c.listener.carrier {
				c.loopback(p, tlv{loopback.TokenTLV, "token", "each connection is taken for a stranger's"})
			} else {
				c.tunnels(p)
			}
			c.listener = outer
		}()
	}
	if filters, _ := p.at("filters"); filters.Node != nil {
		c.order(filters.elements())
	}
	p.fields(func(_ *yaml.Node, v place) { c.walk(v) })
}

// isListener: one has filter chains, or only that for connections of which none is.
func isListener(p place) bool { return p.has("filter_chains") || p.has("default_filter_chain") }

// as finds a message of a type in an Any, or in a TypedStruct in one.
func (p place) as(name string) (m place, ok bool) {
	switch url := p.text("@type"); {
	case p.messageType() != name:
		return p, false
	case strings.HasSuffix(url, typedStruct):
		m, _ = p.at("value")
		return m, m.Node != nil
	}
	return p, true
}

// messageType is the type of the message in an Any, or in a TypedStruct in one.
func (p place) messageType() string {
	url := p.text("@type")
	if strings.HasSuffix(url, typedStruct) {
		url = p.text("type_url")
	}
	return typeName(url)
}

// terminals are filters of Envoy's that end a chain.
var terminals = map[string]bool{
	"envoy.extensions.filters.network.direct_response.v3.Config":                        true,
	"envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy":                        true,
	"envoy.extensions.filters.network.echo.v3.Echo":                                     true,
	"envoy.extensions.filters.network.generic_proxy.v3.GenericProxy":                    true,
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager": true,
	"envoy.extensions.filters.network.redis_proxy.v3.RedisProxy":                        true,
	tcpProxy: true,
	"envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy": true,
}

// order holds the filters of a chain against the places where they can be.
func (c *checker) order(filters []place) {
	for i, f := range filters {
		typed, _ := f.at("typed_config")
		m, isModule := typed.as(dynamicModule)
		name := ""
		if isModule {
			name = m.text("filter_name")
		} else if m, is := typed.as(golangFilter); is {
			name = m.text("plugin_name")
		}
		switch last := i == len(filters)-1; {
		case (name == proxyFilter || terminals[typed.messageType()]) && !last:
			c.refuse(f.Line, f.path, "must be the last filter: it ends the chain")
		case name == carrierFilter && last:
			c.refuse(f.Line, f.path, "tcp_proxy must follow, which ends the chain")
		}
	}
}

// shape holds what is at p against a message, but for some fields.
func (c *checker) shape(p place, m proto.Message, but ...string) {
	v, fault := source.Value(p.Node, p.path)
	if fault != nil {
		c.errs = append(c.errs, fault)
		return
	}
	if o, ok := v.(map[string]any); ok {
		for k := range o {
			for _, b := range but {
				if source.SameName(k, b) {
					delete(o, k)
				}
			}
		}
	}
	v = without(v, foreign)
	raw, ok := c.marshal(v, p)
	if !ok {
		return
	}
	for _, e := range config.Shape(raw, m) {
		c.refuse(source.Line(p.Node, e.Path), behind(p.path, e.Path), "%s", e.Reason)
	}
}

func (c *checker) marshal(v any, p place) ([]byte, bool) {
	raw, err := json.Marshal(v)
	if err != nil { // a number that JSON has not
		c.refuse(p.Line, p.path, "%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return raw, err == nil
}

// behind puts a path behind another.
func behind(path, rest string) string {
	if path == "" || rest == "" || rest[0] == '[' {
		return path + rest
	}
	return path + "." + rest
}
