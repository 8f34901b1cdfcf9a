package check

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	_ "google.golang.org/protobuf/types/known/anypb" // of which golangType has a field

	// Of the golang filter's loopback listener.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"

	"github.com/meltemi-mesh/meltemi/control/loopback"
)

// golangFilter is the configuration of Envoy's golang filter, which is of contrib Envoy.
const golangFilter = "envoy.extensions.filters.network.golang.v3alpha.Config"

// golangType is the message. Its five fields are no reason to link Envoy's contrib.
var golangType = func() protoreflect.MessageType {
	if mt, err := protoregistry.GlobalTypes.FindMessageByName(golangFilter); err == nil {
		return mt
	}
	field := func(number int32, name string, t descriptorpb.FieldDescriptorProto_Type) *descriptorpb.FieldDescriptorProto {
		return &descriptorpb.FieldDescriptorProto{
			Name: &name, Number: &number, Type: &t, Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
		}
	}
	const text = descriptorpb.FieldDescriptorProto_TYPE_STRING
	config := field(5, "plugin_config", descriptorpb.FieldDescriptorProto_TYPE_MESSAGE)
	config.TypeName = proto.String(".google.protobuf.Any")
	fd, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name:       proto.String("contrib/envoy/extensions/filters/network/golang/v3alpha/golang.proto"),
		Package:    proto.String(strings.TrimSuffix(golangFilter, ".Config")),
		Syntax:     proto.String("proto3"),
		Dependency: []string{"google/protobuf/any.proto"},
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("Config"), Field: []*descriptorpb.FieldDescriptorProto{
			field(1, "is_terminal_filter", descriptorpb.FieldDescriptorProto_TYPE_BOOL),
			field(2, "library_id", text), field(3, "library_path", text), field(4, "plugin_name", text),
			config,
		}}},
	}, protoregistry.GlobalFiles)
	if err != nil {
		panic(err)
	}
	mt := dynamicpb.NewMessageType(fd.Messages().Get(0))
	if err := protoregistry.GlobalTypes.RegisterMessage(mt); err != nil {
		panic(err)
	}
	return mt
}()

// golang checks a golang filter, if it is one of Meltemi's. Envoy takes whatever is in it,
// and ends at the first connection if the shared object cannot be loaded.
func (c *checker) golang(p place) {
	name, nameLine := p.at("plugin_name")
	id, idLine := p.at("library_id")
	if p.text("plugin_name") != proxyFilter && p.text("library_id") != moduleName {
		return
	}
	if c.kubernetes {
		c.shape(p, golangType.New().Interface(), "@type", "plugin_config")
	}
	if p.text("plugin_name") != proxyFilter {
		c.finds(p.Line, "plugin %q", p.text("plugin_name"))
		c.refuse(nameLine, name.path, "want %s", proxyFilter)
		return
	}
	if c.golangProxy == nil {
		c.golangProxy = &p
	}
	path, pathLine := p.at("library_path")
	switch library := p.text("library_path"); {
	case library == "":
		c.refuse(pathLine, path.path, "required")
	case library[0] != '/':
		c.refuse(pathLine, path.path, "want an absolute path")
	case p.text("library_id") == "":
		c.refuse(idLine, id.path, "required")
	default:
		if c.libraries == nil {
			c.libraries = map[string]string{}
		}
		switch first, known := c.libraries[p.text("library_id")]; {
		case !known:
			c.libraries[p.text("library_id")] = library
		case first != library:
			c.refuse(pathLine, path.path, "%q is loaded from %s: Envoy takes the first path of a library_id", p.text("library_id"), first)
		}
	}
	if terminal, line := p.at("is_terminal_filter"); terminal.Node == nil || terminal.Value != "true" {
		c.refuse(line, terminal.path, "must be true: the filter ends the chain")
	}
	if cfg, ok := c.filterConfig(p, "plugin_config"); ok {
		c.proxyConfig(cfg)
	} else {
		c.finds(p.Line, proxyFilter)
	}
}

const (
	setFilterState = "envoy.extensions.filters.network.set_filter_state.v3.Config"
	tcpProxy       = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
	clusterKey     = "envoy.tcp_proxy.cluster"

	connectionManager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	originalSource    = "envoy.extensions.filters.listener.original_src.v3.OriginalSrc"
)

// tunnels checks the listener p, if it is the golang filter's loopback listener: one that
// leads connections to the clusters that they name.
func (c *checker) tunnels(p place) {
	chains, _ := p.at("filter_chains")
	fallback, _ := p.at("default_filter_chain")
	for _, chain := range append(chains.elements(), fallback) {
		filters, _ := chain.at("filters")
		for _, f := range filters.elements() {
			typed, _ := f.at("typed_config")
			if leads(typed) {
				c.golangCarrier = true
				c.finds(f.Line, "loopback listener of the golang filter")
				var wanted []tlv
				if _, connect := typed.as(connectionManager); !connect {
					wanted = append(wanted, tlv{loopback.ClusterTLV, "cluster", "connections have no cluster, and are closed"})
				}
				if sources(p) {
					wanted = append(wanted, tlv{loopback.DestinationTLV, "destination", "connections that have their client's address lack the one that it wanted"})
				}
				c.loopback(p, wanted...)
				c.private(p)
				c.stock(filters.elements())
				return
			}
		}
	}
}

// leads tells whether a filter has connections say to which cluster they lead: by filter
// state for tcp_proxy, or by a header of CONNECT.
func leads(typed place) bool {
	if state, is := typed.as(setFilterState); is {
		objects, _ := state.at("on_new_connection")
		for _, o := range objects.elements() {
			if o.text("object_key") == clusterKey {
				return true
			}
		}
	}
	if hcm, is := typed.as(connectionManager); is {
		config, _ := hcm.at("route_config")
		hosts, _ := config.at("virtual_hosts")
		for _, h := range hosts.elements() {
			routes, _ := h.at("routes")
			for _, r := range routes.elements() {
				if route, _ := r.at("route"); route.text("cluster_header") == loopback.ClusterHeader {
					return true
				}
			}
		}
	}
	return false
}

// sources tells whether servers may see the addresses of clients.
func sources(listener place) bool {
	filters, _ := listener.at("listener_filters")
	return slices.ContainsFunc(filters.elements(), func(f place) bool {
		typed, _ := f.at("typed_config")
		_, is := typed.as(originalSource)
		return is
	})
}

// private notes what lets others than the proxy use the listener l.
func (c *checker) private(l place) {
	address, _ := l.at("address")
	pipe, _ := address.at("pipe")
	path, line := pipe.at("path")
	switch socket := pipe.text("path"); {
	case socket == "":
		c.refuse(l.Line, behind(l.path, "address.pipe"), "the loopback listener is not bound to a pipe")
	case socket[0] == '@':
		c.note(line, path.path, "want a path in a folder of Envoy's own: any process can connect to an abstract socket, and has all clusters of Envoy")
	case !pipe.has("mode"):
		c.note(line, behind(pipe.path, "mode"), "want 0600: who can connect has all clusters of Envoy")
	}
}

// stock refuses filters that the loopback listener cannot have, and wants tcp_proxy at
// its end.
func (c *checker) stock(filters []place) {
	for i, f := range filters {
		typed, _ := f.at("typed_config")
		_, module := typed.as(dynamicModule)
		_, golang := typed.as(golangFilter)
		_, tcp := typed.as(tcpProxy)
		_, http := typed.as(connectionManager)
		switch {
		case module, golang:
			c.refuse(f.Line, f.path, "the golang filter's loopback listener is made of Envoy's own filters alone")
		case i == len(filters)-1 && !tcp && !http:
			c.refuse(f.Line, f.path, "want tcp_proxy, which connects to the cluster")
		}
	}
}
