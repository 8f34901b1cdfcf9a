package check

import (
	"regexp"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	networking "istio.io/api/networking/v1alpha3"

	// The types of what surrounds Meltemi's filters.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
)

// patched are the messages that patches are parts of, by what they apply to.
var patched = map[string]proto.Message{
	"CLUSTER":          (*clusterv3.Cluster)(nil),
	"EXTENSION_CONFIG": (*corev3.TypedExtensionConfig)(nil),
	"FILTER_CHAIN":     (*listenerv3.FilterChain)(nil),
	"LISTENER":         (*listenerv3.Listener)(nil),
	"LISTENER_FILTER":  (*listenerv3.ListenerFilter)(nil),
	"NETWORK_FILTER":   (*listenerv3.Filter)(nil),
}

// envoyFilter finds in the spec of an EnvoyFilter what Istio's validation, or
// Envoy, would refuse it for.
func (c *checker) envoyFilter(spec place) {
	c.shape(spec, &networking.EnvoyFilter{})
	patches, _ := spec.at("configPatches")
	for _, p := range patches.elements() {
		match, _ := p.at("match")
		proxy, _ := match.at("proxy")
		version, line := proxy.at("proxyVersion")
		if _, err := regexp.Compile(proxy.text("proxyVersion")); err != nil {
			c.refuse(line, version.path, "%v", err)
		}
		patch, _ := p.at("patch")
		if value, _ := patch.at("value"); value.Node != nil {
			if m, ok := patched[p.text("applyTo")]; ok {
				c.shape(value, m)
			}
		}
	}
}

// without replaces the parts of a JSON value whose type is foreign by empty ones.
func without(v any, foreign func(url string) bool) any {
	switch v := v.(type) {
	case map[string]any:
		if url, ok := v["@type"].(string); ok && foreign(url) {
			return map[string]any{"@type": "type.googleapis.com/google.protobuf.Empty", "value": map[string]any{}}
		}
		for k := range v {
			v[k] = without(v[k], foreign)
		}
	case []any:
		for i := range v {
			v[i] = without(v[i], foreign)
		}
	}
	return v
}

// foreign tells whether a type is checked elsewhere, or may be one of Envoy's or
// Istio's that is not linked here.
func foreign(url string) bool {
	name := protoreflect.FullName(typeName(url))
	if _, err := protoregistry.GlobalTypes.FindMessageByName(name); err == nil {
		return name == dynamicModule || name == moduleLB || name == golangFilter
	}
	return mayBeEnvoys(name)
}

// mayBeEnvoys tells whether a type that is not linked here may be one of Envoy's
// or Istio's. In packages that are linked there are no others.
func mayBeEnvoys(name protoreflect.FullName) bool {
	if protoregistry.GlobalFiles.NumFilesByPackage(name.Parent()) > 0 {
		return false
	}
	vendor, _, _ := strings.Cut(string(name), ".")
	switch vendor {
	case "envoy", "google", "io", "istio", "udpa", "xds":
		return true
	}
	return false
}
