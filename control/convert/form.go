package convert

import (
	"cmp"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/meltemi-mesh/meltemi/control/fault"
	"github.com/meltemi-mesh/meltemi/control/ir"
	"github.com/meltemi-mesh/meltemi/control/source"
	"github.com/meltemi-mesh/meltemi/control/translate/envoyfilter"
)

const (
	module     = "meltemi"
	network    = "type.googleapis.com/envoy.extensions.filters.network."
	structType = "type.googleapis.com/google.protobuf.Struct"
)

type object = map[string]any

// form is the filter's typed_config, for a configuration.
func (c *converter) form(cfg *yaml.Node) *yaml.Node {
	filter := func(of object, name string) *yaml.Node {
		n := node(of)
		config := node(object{"@type": structType})
		set(config, "value", cfg)
		set(n, name, config)
		return n
	}
	if c.Golang {
		library := "/etc/meltemi/libmeltemi.so"
		if c.kubernetes {
			library = golangLibrary
		}
		return filter(object{
			"@type":              c.formType(),
			"library_id":         module,
			"library_path":       cmp.Or(c.Library, library),
			"plugin_name":        "meta_protocol_proxy",
			"is_terminal_filter": true,
		}, "plugin_config")
	}
	return filter(object{
		"@type":                 c.formType(),
		"dynamic_module_config": object{"name": module, "do_not_close": true, "metrics_namespace": "meta_protocol"},
		"filter_name":           "meta_protocol_proxy",
		"terminal_filter":       true,
	}, "filter_config")
}

// formType is the type of the filter's typed_config.
func (o Options) formType() string {
	if o.Golang {
		return network + "golang.v3alpha.Config"
	}
	return network + "dynamic_modules.v3.DynamicModuleNetworkFilter"
}

// golangLibrary and golangSocket are what "meltemi envoyfilter" has without being told.
const (
	golangLibrary = "/usr/local/lib/meltemi/libmeltemi.so"
	golangSocket  = "/etc/istio/proxy/meltemi.sock"
)

// service is what the EnvoyFilters of loopback listeners are made of: that of a
// description that says nothing of proxies.
func (o Options) service() *ir.Service {
	s := &ir.Service{
		ProxyMetadata: ir.DefaultProxyMetadata(), ProxyVersion: ir.DefaultProxyVersion,
		Golang: ir.Golang{ProxyVersion: ir.NoProxies, LibraryPath: golangLibrary, Socket: golangSocket},
		Module: module, Socket: "@meltemi", Admin: ir.DefaultAdmin,
	}
	if o.Golang {
		s.ProxyVersion, s.Golang.ProxyVersion = ir.NoProxies, ir.DefaultGolangVersion
	}
	return s
}

// version is that of the proxies that have the form.
func (o Options) version() string {
	if o.Golang {
		return ir.DefaultGolangVersion
	}
	return ir.DefaultProxyVersion
}

// rootNamespace is Istio's, unless somebody has chosen another.
const rootNamespace = "istio-system"

// shared is what all documents of a file make known.
type shared struct {
	// The namespaces that need a loopback listener, and whether all of the mesh does.
	namespaces []string
	mesh       bool
	// thrift: a thrift_proxy was converted. options are what is done then to clusters.
	thrift  bool
	options []func()
	// extensions are the names of the others' configurations that come by extension config
	// discovery, and are in the file.
	extensions map[string]bool
}

// find looks for extensions at n and below.
func (s *shared) find(n *yaml.Node) {
	e := n
	if text(n, "applyTo") == "EXTENSION_CONFIG" {
		e = at(n, "patch", "value")
	} else if typeName(text(n, "@type")) != "envoy.config.core.v3.TypedExtensionConfig" {
		e = nil
	}
	if name, _, _ := typed(at(e, "typed_config")); others[name].convert != nil {
		s.extensions[text(e, "name")] = true
	}
	for _, below := range n.Content {
		s.find(below)
	}
}

// loopbacks are the EnvoyFilters that add it, those of "meltemi envoyfilter".
func (s *shared) loopbacks(o Options) ([]*yaml.Node, *source.Error) {
	of := o.service()
	if s.mesh {
		of.RootNamespace = rootNamespace
	}
	slices.Sort(s.namespaces)
	for _, name := range slices.Compact(s.namespaces) {
		of.Clients = append(of.Clients, ir.Workloads{Namespace: name})
	}
	if len(of.Clients) == 0 && !s.mesh {
		return nil, nil
	}
	filters, faults := envoyfilter.Generate(of)
	if len(faults) > 0 {
		return nil, source.Errorf(0, faults[0].Path, "%s", faults[0].Reason)
	}
	text, err := envoyfilter.YAML(filters)
	if err != nil {
		return nil, source.Errorf(0, "", "%v", err)
	}
	return source.Parse(text)
}

// envoyFilter converts the patches of an EnvoyFilter, and has them be for proxies only
// that have the shared object.
func (c *converter) envoyFilter(n *yaml.Node, path string) {
	spec := at(n, "spec")
	before := len(c.Converted)
	k, patches := field(spec, "configPatches")
	if patches == nil {
		return
	}
	elements(patches, fault.Join(path, k.Value), func(p *yaml.Node, path string) {
		value := at(p, "patch", "value")
		if value == nil {
			return
		}
		if op := text(at(p, "patch"), "operation"); op == "MERGE" && text(p, "applyTo") == "NETWORK_FILTER" {
			// What it is merged with is another's, of which a whole is made.
			if name, _, _ := typed(at(value, "typed_config")); others[name].convert != nil {
				key, _ := field(at(p, "patch"), "operation")
				c.lose(key.Line, behind(path, "patch.operation"), "a part of a filter cannot be converted: want all of it in one patch%s", staysAsItIs)
				return
			}
		}
		already := len(c.Converted)
		c.direction = directions[text(at(p, "match"), "context")]
		c.walk(value, fault.Join(fault.Join(path, "patch"), "value"))
		c.direction = ""
		if len(c.Converted) > already {
			c.proxies(p, path)
		}
	})
	if len(c.Converted) == before {
		return
	}
	ns := text(at(n, "metadata"), "namespace")
	switch ns {
	case rootNamespace: // also with a selector it is for all namespaces
		c.shared.mesh = true
	case "":
		c.note(n.Line, "metadata.namespace", "not given: the EnvoyFilter of the loopback listener, which its proxies need, is not here; \"meltemi envoyfilter\" writes it")
	default:
		c.shared.namespaces = append(c.shared.namespaces, ns)
	}
	c.note(n.Line, "", "proxies get it that have the shared object: see what \"meltemi envoyfilter -pods\" gives their pods")
}

// directions are those of the listeners that a patch is for, by its context.
var directions = map[string]string{"SIDECAR_INBOUND": "INBOUND", "SIDECAR_OUTBOUND": "OUTBOUND", "GATEWAY": "OUTBOUND"}

// proxies has a patch be for those that have the shared object.
func (c *converter) proxies(p *yaml.Node, path string) {
	get := func(n *yaml.Node, name string) *yaml.Node {
		_, v := field(n, name)
		if v == nil {
			v = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
			set(n, name, v)
		}
		return v
	}
	proxy := get(get(p, "match"), "proxy")
	if k, version := field(proxy, "proxyVersion"); version != nil && version.Value != c.version() {
		c.note(k.Line, behind(path, "match.proxy.proxyVersion"), "replaced by that of the proxies that have the filter's form")
	}
	set(proxy, "proxyVersion", node(c.version()))
	metadata := get(proxy, "metadata")
	for name, value := range ir.DefaultProxyMetadata() {
		if text(metadata, name) == "" {
			set(metadata, name, node(value))
		}
	}
}
