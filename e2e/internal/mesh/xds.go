package mesh

import (
	"context"
	"fmt"
	"net"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
)

// Ask is what istiod has for a proxy of another version of Istio in the pod, of those
// resources of a type: all, if none is named. It is for versions that cannot be run here.
func (p *Pod) Ask(version, typeURL string, names ...string) *discoveryv3.DiscoveryResponse {
	t := p.n.t
	t.Helper()
	labels := map[string]any{}
	for k, v := range p.labels() {
		labels[k] = v
	}
	mode, _ := p.interception()
	metadata, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": p.n.Name, "NAME": p.Name, "CLUSTER_ID": "Kubernetes", "INTERCEPTION_MODE": mode,
		"INSTANCE_IPS": p.IP, "LABELS": labels, "ISTIO_VERSION": version, "MELTEMI": "true",
	})
	require.NoError(t, err)
	// Istiod's port for those without certificates.
	conn, err := grpc.NewClient("passthrough:///"+p.n.fabric.node.IP+":15010",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return p.n.fabric.node.dialContext(ctx, "tcp", addr)
		}))
	require.NoError(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&discoveryv3.DiscoveryRequest{
		Node: &corev3.Node{
			Id:       fmt.Sprintf("%s~%s~%s.%s~%s.svc.cluster.local", p.Role, p.IP, p.Name, p.n.Name, p.n.Name),
			Metadata: metadata,
		},
		TypeUrl: typeURL, ResourceNames: names,
	}))
	r, err := stream.Recv()
	require.NoError(t, err)
	require.Equal(t, typeURL, r.TypeUrl)
	return r
}
