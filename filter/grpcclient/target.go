// Package grpcclient reaches the gRPC services that configurations name: what of
// Envoy's GrpcService is supported, and the connections, which all that talk to a
// service share.
package grpcclient

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/metadata"

	"github.com/meltemi-mesh/meltemi/filter/fields"
)

// Target is a service: a cluster of the host's or an address.
type Target struct {
	// Cluster is set, or Address is, as "host:port" or "unix:path".
	Cluster, Address string
	// Authority of a Cluster; "": its name.
	Authority string
	// Metadata of each call: keys and values in turn.
	Metadata []string
	// Timeout of a call, 0 if the configuration has none: what that means, its user
	// says.
	Timeout time.Duration
}

// String is the target for people.
func (t *Target) String() string {
	if t.Cluster != "" {
		return "cluster " + t.Cluster
	}
	return t.Address
}

// Key is the same for targets that are.
func (t *Target) Key() string {
	return fmt.Sprintf("%q", append([]string{t.Cluster, t.Address, t.Authority}, t.Metadata...))
}

// Context is that of calls, with the target's metadata.
func (t *Target) Context(ctx context.Context) context.Context {
	if len(t.Metadata) == 0 {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, t.Metadata...)
}

// Parse judges a service that stands at path. Faults are [fields.Error]s.
func Parse(s *corev3.GrpcService, path string) (Target, error) {
	c := checker{}
	c.Only(s, path, "envoy_grpc", "google_grpc", "timeout", "initial_metadata")
	t := Target{}
	switch {
	case s.GetEnvoyGrpc() != nil:
		c.Only(s.GetEnvoyGrpc(), path+".envoy_grpc", "cluster_name", "authority")
		t.Cluster = c.required(s.GetEnvoyGrpc().GetClusterName(), path+".envoy_grpc.cluster_name")
		t.Authority = s.GetEnvoyGrpc().GetAuthority()
	case s.GetGoogleGrpc() != nil:
		// stat_prefix Envoy requires, and nothing here uses.
		c.Only(s.GetGoogleGrpc(), path+".google_grpc", "target_uri", "stat_prefix")
		t.Address = c.address(s.GetGoogleGrpc().GetTargetUri(), path+".google_grpc.target_uri")
	default:
		c.Add(path, "want envoy_grpc or google_grpc")
	}
	t.Timeout = c.Duration(s.GetTimeout(), path+".timeout", 0, 0)
	for i, h := range s.GetInitialMetadata() {
		at := fmt.Sprintf("%s.initial_metadata[%d]", path, i)
		c.Only(h, at, "key", "value")
		t.Metadata = append(t.Metadata, strings.ToLower(c.required(h.GetKey(), at+".key")), h.GetValue())
	}
	return t, c.Err()
}

// checker gathers faults.
type checker struct{ fields.Faults }

func (c *checker) required(s, path string) string {
	if s == "" {
		c.Add(path, "required")
	}
	return s
}

// address takes what gRPC calls a target.
func (c *checker) address(target, path string) string {
	if c.required(target, path) == "" {
		return ""
	}
	if socket, ok := strings.CutPrefix(target, "unix:"); ok && socket != "" {
		return target
	}
	hostPort := strings.TrimPrefix(strings.TrimPrefix(target, "dns:"), "///")
	if _, port, err := net.SplitHostPort(hostPort); err != nil || port == "" {
		c.Add(path, "want host:port or unix:PATH, is %q", target)
	}
	return hostPort
}
