package rds

import (
	"fmt"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

const (
	// where is the path of the one resource of an answer.
	where = "resources[0]."
	// maxDepth bounds the nesting of what servers send.
	maxDepth = 100
)

// paths turns a field's path in a routev1alpha.RouteConfiguration into that in what
// the server has sent.
type paths struct {
	prefix string
	// http are the fields of a table in Envoy's own type, nil if it was not that.
	http map[string]string
}

// parse reads a resource of either type, alone or in a Resource of package discovery.
func parse(a *anypb.Any) (*routev1alpha.RouteConfiguration, paths, error) {
	ps := paths{prefix: where}
	if n := len(a.GetValue()); n > MaxBytes {
		return nil, ps, fmt.Errorf("resources[0]: has %d bytes, at most %d are allowed", n, MaxBytes)
	}
	if a.MessageIs((*discoveryv3.Resource)(nil)) {
		var r discoveryv3.Resource
		if err := unmarshal(a, &r, "resources[0]"); err != nil {
			return nil, ps, err
		}
		ps.prefix += "resource."
		a = r.GetResource()
	}
	at := strings.TrimSuffix(ps.prefix, ".")
	switch {
	case a.MessageIs((*routev1alpha.RouteConfiguration)(nil)):
		rc := new(routev1alpha.RouteConfiguration)
		return rc, ps, unmarshal(a, rc, at)
	case a.MessageIs((*routev3.RouteConfiguration)(nil)):
		from := new(routev3.RouteConfiguration)
		if err := unmarshal(a, from, at); err != nil {
			return nil, ps, err
		}
		rc, origins, err := fromHTTP(from, ps.prefix)
		ps.http = origins
		return rc, ps, err
	}
	return nil, ps, fmt.Errorf("%s: want %s or %s, is %q", at, config.EnvoyRoutes, config.ProxyRoutes, a.GetTypeUrl())
}

func unmarshal(a *anypb.Any, m proto.Message, at string) error {
	if err := (proto.UnmarshalOptions{RecursionLimit: maxDepth}).Unmarshal(a.GetValue(), m); err != nil {
		return fmt.Errorf("%s: the bytes are no serialized %s", at, m.ProtoReflect().Descriptor().FullName())
	}
	if err := config.UnknownFields(m.ProtoReflect(), at); err != nil {
		return err
	}
	return nil
}

// faults is what a server is told.
func (p paths) faults(faults []*route.Error) error {
	texts := make([]string, len(faults))
	for i, f := range faults {
		texts[i] = p.prefix + p.of(f.Path) + ": " + f.Reason
	}
	return faultsError(texts)
}

// httpNames are what fields within routes and policies are called in Envoy's own type.
var httpNames = strings.NewReplacer(
	".match.metadata", ".match.headers",
	".request_mutation", ".request_headers_to_add", ".response_mutation", ".response_headers_to_add",
	".request_keys_to_remove", ".request_headers_to_remove", ".response_keys_to_remove", ".response_headers_to_remove",
	"].key", "].header.key", "].value", "].header.value", "].format", "].header.value",
	".hash_policies", ".hash_policy", "].metadata.name", "].header.header_name", "].source_ip", "].connection_properties.source_ip",
	".direct_response.body", ".direct_response.body.inline_string",
)

func (p paths) of(path string) string {
	if p.http == nil {
		return path
	}
	first := path
	if i := strings.IndexAny(path, ".["); i >= 0 {
		first = path[:i]
	}
	if theirs, ok := p.http[first]; ok {
		path = theirs + path[len(first):]
	}
	return httpNames.Replace(path)
}
