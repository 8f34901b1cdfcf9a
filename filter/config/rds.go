package config

import (
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// The types of route configurations that RDS brings.
var (
	// EnvoyRoutes is Envoy's own, as Aeraki uses it.
	EnvoyRoutes = urlOf((*routev3.RouteConfiguration)(nil))
	// ProxyRoutes is that of route_config.
	ProxyRoutes = urlOf((*routev1alpha.RouteConfiguration)(nil))
)

func urlOf(m proto.Message) string {
	return "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
}

// RDS says where routes are discovered; see the proto's Rds.
type RDS struct {
	// Name of the route configuration.
	Name string
	// TypeURL is EnvoyRoutes or ProxyRoutes.
	TypeURL string
	// File is set, or the Service is.
	File    string
	Service grpcclient.Target
	Delta   bool
	// Node is told with each request, or with a stream's first. Never nil.
	Node     *corev3.Node
	NodeOnce bool
	// FetchTimeout is 0 when there is none.
	FetchTimeout time.Duration
	// Key is the same for all that can share a subscription.
	Key string
}

// Server is where the routes come from, for people.
func (r *RDS) Server() string {
	if r.File != "" {
		return "file " + r.File
	}
	return r.Service.String()
}

func (c *checker) rds(m *proxyv1alpha.Rds) *RDS {
	const path = "rds.config_source"
	r := &RDS{
		Name: m.GetRouteConfigName(), TypeURL: m.GetTypeUrl(), Node: m.GetNode(),
		FetchTimeout: c.duration(m.GetConfigSource().GetInitialFetchTimeout(), path+".initial_fetch_timeout", 0, 15*time.Second),
	}
	if r.Name == "" {
		c.refuse("rds.route_config_name", "required")
	}
	switch r.TypeURL {
	case "":
		r.TypeURL = EnvoyRoutes
	case EnvoyRoutes, ProxyRoutes:
	default:
		c.refuse("rds.type_url", "want %s or %s", EnvoyRoutes, ProxyRoutes)
	}
	if r.Node == nil {
		r.Node = &corev3.Node{}
	}
	src := m.GetConfigSource()
	switch s := src.GetConfigSourceSpecifier().(type) {
	case *corev3.ConfigSource_Path:
		r.File = c.required(s.Path, path+".path")
	case *corev3.ConfigSource_PathConfigSource:
		// Without watched_directory files that links name are noticed, too.
		c.only(s.PathConfigSource, path+".path_config_source", "path", "watched_directory")
		r.File = c.required(s.PathConfigSource.GetPath(), path+".path_config_source.path")
	case *corev3.ConfigSource_ApiConfigSource:
		c.apiSource(s.ApiConfigSource, r, path+".api_config_source")
	case nil:
		c.refuse(path, "required: api_config_source or path_config_source")
	case *corev3.ConfigSource_Ads:
		c.refuse(path+".ads", "not supported: Envoy's own stream is closed to modules; use api_config_source")
	default:
		c.refuse(path+".self", "not supported: use api_config_source or path_config_source")
	}
	c.version(src.GetResourceApiVersion(), path+".resource_api_version")
	if len(src.GetAuthorities()) > 0 {
		c.refuse(path+".authorities", "not supported")
	}
	if len(c.errs) == 0 {
		r.Key = rdsKey(m)
	}
	return r
}

// rdsKey is all of m but how long requests wait, which is each listener's own.
func rdsKey(m *proxyv1alpha.Rds) string {
	m = proto.CloneOf(m)
	m.ConfigSource.InitialFetchTimeout = nil
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil { // it cannot be shared
		return fmt.Sprintf("%p", m)
	}
	return string(b)
}

func (c *checker) apiSource(a *corev3.ApiConfigSource, r *RDS, path string) {
	c.only(a, path, "api_type", "transport_api_version", "grpc_services", "set_node_on_first_message_only", "request_timeout")
	switch a.GetApiType() {
	case corev3.ApiConfigSource_GRPC:
	case corev3.ApiConfigSource_DELTA_GRPC:
		r.Delta = true
	default:
		c.refuse(path+".api_type", "want GRPC or DELTA_GRPC, is %v", a.GetApiType())
	}
	r.NodeOnce = a.GetSetNodeOnFirstMessageOnly()
	c.version(a.GetTransportApiVersion(), path+".transport_api_version")
	if n := len(a.GetGrpcServices()); n != 1 {
		c.refuse(path+".grpc_services", "want one, has %d", n)
		return
	}
	service, err := grpcclient.Parse(a.GetGrpcServices()[0], path+".grpc_services[0]")
	fields.Each(err, func(e *fields.Error) { c.refuse(e.Path, "%s", e.Reason) })
	r.Service = service
}

func (c *checker) required(s, path string) string {
	if s == "" {
		c.refuse(path, "required")
	}
	return s
}

func (c *checker) version(v corev3.ApiVersion, path string) {
	if v != corev3.ApiVersion_V3 && v != corev3.ApiVersion_AUTO {
		c.refuse(path, "want V3, is %v", v)
	}
}

// only refuses the fields of m that are set and not named.
func (c *checker) only(m proto.Message, path string, names ...protoreflect.Name) {
	for f := range fields.Others(m.ProtoReflect(), names...) {
		c.refuse(path+"."+string(f), "not supported")
	}
}
