// Package check validates, without any Envoy, every configuration of Meltemi in
// a file, with the loader of the filter itself.
package check

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/control/envoyfilter"
	"github.com/meltemi-mesh/meltemi/control/source"
	"github.com/meltemi-mesh/meltemi/filter/config"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// Found is a configuration that a file has.
type Found struct {
	Line int
	// What it is, such as `meta_protocol_proxy, stat_prefix "greeter"`.
	What string
}

// File validates the configurations in a file of YAML or JSON: an Envoy
// bootstrap or any part of one, EnvoyFilters, a MetaProtocolProxy by itself, or
// the input of package envoyfilter. It knows the codecs and filters that the
// program links. Without any configuration found is empty; what is wrong with
// those that are there is in errs.
func File(text []byte) (found []Found, errs source.Errors) {
	docs, fault := source.Parse(text)
	if fault != nil {
		return nil, source.Errors{fault}
	}
	for _, d := range docs {
		c := &checker{root: d}
		c.document()
		slices.SortStableFunc(c.errs, func(a, b *source.Error) int { return a.Line - b.Line })
		found, errs = append(found, c.found...), append(errs, c.errs...)
	}
	return found, errs
}

// checker looks at one document.
type checker struct {
	root  *yaml.Node
	found []Found
	errs  source.Errors

	// socket is the pipe of the listener at which walk is, nil outside of one.
	socket *string
	// What the document has: its first filter of clients, and carriers.
	proxy   *place
	carrier bool
}

// place is a node with its path.
type place struct {
	*yaml.Node
	path string
}

// at is the place of a field's value, and the line of its name; without a node
// if there is no such field.
func (p place) at(name string) (value place, line int) {
	if n := p.resolved(); n != nil && n.Kind == yaml.MappingNode {
		for i := 0; i < len(n.Content); i += 2 {
			if k := n.Content[i]; source.SameName(k.Value, name) {
				return place{n.Content[i+1], source.Join(p.path, k.Value)}, k.Line
			}
		}
	}
	return place{nil, source.Join(p.path, name)}, p.line()
}

// resolved is the node, of an alias the one that it stands for.
func (p place) resolved() *yaml.Node {
	n := p.Node
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// elements are those of a list.
func (p place) elements() (list []place) {
	n := p.resolved()
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	for i, e := range n.Content {
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
	c.errs = append(c.errs, &source.Error{Line: line, Path: path, Reason: fmt.Sprintf(format, args...)})
}

func (c *checker) finds(line int, format string, args ...any) {
	c.found = append(c.found, Found{line, fmt.Sprintf(format, args...)})
}

const (
	dynamicModule = "envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter"
	typedStruct   = ".TypedStruct"
)

// typeName is the last part of a type URL.
func typeName(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

func isProxy(url string) bool {
	return typeName(url) == string((*proxyv1alpha.MetaProtocolProxy)(nil).ProtoReflect().Descriptor().FullName())
}

func (c *checker) document() {
	p := place{Node: c.root}
	switch {
	case p.has("apiVersion"):
		c.walk(p)
	case p.has("static_resources"):
		c.walk(p)
		if c.proxy != nil && !c.carrier && !p.has("dynamic_resources", "lds_config") {
			c.refuse(c.proxy.Line, c.proxy.path, "there is no loopback listener: one with the filter carrier before tcp_proxy")
		}
	case p.has("host") && p.has("ports"):
		c.service()
	case p.has("stat_prefix") && !p.has("@type"), isProxy(p.text("type_url")):
		c.bare(p)
	default:
		c.walk(p)
	}
}

// service is the generator's input.
func (c *checker) service() {
	c.finds(c.root.Line, "service %s", place{Node: c.root}.text("host"))
	s, err := envoyfilter.New(c.root)
	if err == nil {
		_, err = s.Generate()
	}
	var errs source.Errors
	if errors.As(err, &errs) {
		c.errs = append(c.errs, errs...)
	}
}

// walk looks for filters of dynamic modules at p and below.
func (c *checker) walk(p place) {
	switch p.Kind {
	case yaml.AliasNode:
		c.walk(place{p.Alias, p.path})
	case yaml.SequenceNode:
		for _, e := range p.elements() {
			c.walk(e)
		}
	case yaml.MappingNode:
		if spec, _ := p.at("spec"); spec.Node != nil && p.text("kind") == "EnvoyFilter" {
			c.envoyFilter(spec)
		}
		switch url := p.text("@type"); {
		case typeName(url) == dynamicModule:
			c.module(p)
			return
		case strings.HasSuffix(url, typedStruct) && typeName(p.text("type_url")) == dynamicModule:
			if value, _ := p.at("value"); value.Node != nil {
				c.module(value)
			}
			return
		}
		if p.has("filter_chains") {
			defer func(outer *string) { c.socket = outer }(c.socket)
			address, _ := p.at("address")
			pipe, _ := address.at("pipe")
			socket := pipe.text("path")
			c.socket = &socket
		}
		for i := 0; i < len(p.Content); i += 2 {
			c.walk(place{p.Content[i+1], source.Join(p.path, p.Content[i].Value)})
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
