package istiostats

import (
	"encoding/json"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/telemetry"
)

// Labels by which workloads have what Istio's structures have fields for.
const (
	labelService  = "service.istio.io/canonical-name"
	labelRevision = "service.istio.io/canonical-revision"
)

const (
	// downstreamPeer is the filter state in which Istio's own metadata exchange leaves
	// what it has learnt of a client: a serialized Struct.
	downstreamPeer = "downstream_peer"
	// maxPeer is how much of it is read, in bytes.
	maxPeer = 16 << 10
)

// stateful is a connection of which that is known.
type stateful interface{ FilterState(key string) string }

// peer returns the client's workload as Istio's own exchange knows it, nil if it does
// not. It is asked for once, at the first request: that exchange stands before us and
// holds the connection's first bytes back until it has learnt, or knows that it will not.
func peer(c stateful) *filter.Workload {
	b := c.FilterState(downstreamPeer)
	s := new(structpb.Struct)
	if b == "" || len(b) > maxPeer || proto.Unmarshal([]byte(b), s) != nil {
		return nil
	}
	text := func(name string) string { return s.GetFields()[name].GetStringValue() }
	return &filter.Workload{
		Name: text("name"), Namespace: text("namespace"), WorkloadName: text("workload"), ClusterID: text("cluster"),
		Labels: map[string]string{labelService: text("service"), labelRevision: text("revision"), "app": text("app"), "version": text("version")},
	}
}

// endpoint reads what Istio says of a server in its endpoint's metadata, nil if it says
// nothing.
func endpoint(encoded string) *filter.Workload {
	parts := strings.Split(encoded, ";") // workload, namespace, service, revision, cluster
	if len(parts) < 5 {
		return nil
	}
	return &filter.Workload{
		WorkloadName: parts[0], Namespace: parts[1], ClusterID: parts[4],
		Labels: map[string]string{labelService: parts[2], labelRevision: parts[3]},
	}
}

// found reads what Istio says of services in a cluster's metadata: the first one's. It is
// empty if there is none.
func found(services string) service {
	var all []struct{ Host, Name, Namespace string }
	if services == "" || json.Unmarshal([]byte(services), &all) != nil || len(all) == 0 {
		return service{}
	}
	return service{telemetry.Label(all[0].Host), telemetry.Label(all[0].Name), telemetry.Label(all[0].Namespace)}
}

// named reads the service in the name that Istio gives to a cluster:
// outbound|PORT|SUBSET|HOST. It is empty of other names.
func named(cluster string) service {
	parts := strings.Split(cluster, "|")
	if len(parts) != 4 || parts[3] == "" {
		return service{}
	}
	s := service{host: telemetry.Label(parts[3])}
	s.name = s.host
	// One of Kubernetes is NAME.NAMESPACE.svc.DOMAIN.
	if of := strings.SplitN(s.host, ".", 4); len(of) >= 3 && of[2] == "svc" {
		s.name, s.namespace = of[0], of[1]
	}
	return s
}
