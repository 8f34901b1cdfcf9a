package rds

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// maxDetail bounds what a server is told of a fault.
const maxDetail = 4 << 10

// grpcSource asks a server. Each run is a stream.
type grpcSource struct {
	cfg         *config.RDS
	bg          host.Background
	connections *grpcclient.Pool
}

func (*grpcSource) pause(failures int) time.Duration { return jittered(failures) }

func (g *grpcSource) run(ctx context.Context, held func() (string, bool), answered func(answer) error) error {
	conn, err := g.connections.Get(&g.cfg.Service, g.bg.DialCluster)
	if err != nil {
		return err
	}
	defer conn.Release()
	// What the stream's goroutines hold ends with it.
	ctx, cancel := context.WithCancel(g.cfg.Service.Context(ctx))
	defer cancel()
	client := routeservicev3.NewRouteDiscoveryServiceClient(conn)
	if g.cfg.Delta {
		return g.delta(ctx, client, held, answered)
	}
	return g.stateOfTheWorld(ctx, client, held, answered)
}

// room is for what a server may say at a time.
var room = grpc.MaxCallRecvMsgSize(2 * MaxBytes)

func (g *grpcSource) stateOfTheWorld(ctx context.Context, client routeservicev3.RouteDiscoveryServiceClient,
	held func() (string, bool), answered func(answer) error,
) error {
	stream, err := client.StreamRoutes(ctx, room)
	if err != nil {
		return err
	}
	version, _ := held()
	node := g.node()
	request := &discoveryv3.DiscoveryRequest{
		VersionInfo: version, Node: node, ResourceNames: []string{g.cfg.Name}, TypeUrl: g.cfg.TypeURL,
	}
	for {
		// An error of it is told by Recv, with its reason.
		_ = stream.Send(request)
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		a := answer{version: r.GetVersionInfo(), resources: r.GetResources(), fault: g.checkType(r.GetTypeUrl())}
		refused := detail(answered(a))
		version, _ = held()
		request = &discoveryv3.DiscoveryRequest{
			VersionInfo: version, Node: g.again(node), ResourceNames: []string{g.cfg.Name}, TypeUrl: g.cfg.TypeURL,
			ResponseNonce: r.GetNonce(), ErrorDetail: refused,
		}
	}
}

func (g *grpcSource) delta(ctx context.Context, client routeservicev3.RouteDiscoveryServiceClient,
	held func() (string, bool), answered func(answer) error,
) error {
	stream, err := client.DeltaRoutes(ctx, room)
	if err != nil {
		return err
	}
	node := g.node()
	request := &discoveryv3.DeltaDiscoveryRequest{
		Node: node, TypeUrl: g.cfg.TypeURL, ResourceNamesSubscribe: []string{g.cfg.Name},
	}
	if version, ok := held(); ok {
		request.InitialResourceVersions = map[string]string{g.cfg.Name: version}
	}
	for {
		_ = stream.Send(request)
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		a := answer{version: r.GetSystemVersionInfo(), partial: true, fault: g.checkType(r.GetTypeUrl())}
		for _, res := range r.GetResources() {
			a.version = res.GetVersion()
			a.names = append(a.names, res.GetName())
			a.resources = append(a.resources, res.GetResource())
		}
		request = &discoveryv3.DeltaDiscoveryRequest{
			Node: g.again(node), TypeUrl: g.cfg.TypeURL, ResponseNonce: r.GetNonce(), ErrorDetail: detail(answered(a)),
		}
	}
}

// checkType refuses answers about something else.
func (g *grpcSource) checkType(url string) error {
	if url == config.EnvoyRoutes || url == config.ProxyRoutes {
		return nil
	}
	return fmt.Errorf("type_url: want %s, is %q", g.cfg.TypeURL, url)
}

// node is who asks.
func (g *grpcSource) node() *corev3.Node {
	n := proto.CloneOf(g.cfg.Node)
	if n.GetId() == "" {
		n.Id, _ = os.Hostname()
	}
	if n.GetUserAgentName() == "" {
		n.UserAgentName = "meltemi"
	}
	return n
}

// again is the node of a stream's further requests.
func (g *grpcSource) again(node *corev3.Node) *corev3.Node {
	if g.cfg.NodeOnce {
		return nil
	}
	return node
}

func detail(err error) *rpcstatus.Status {
	if err == nil {
		return nil
	}
	text := err.Error()
	if len(text) > maxDetail {
		text = text[:maxDetail]
	}
	return &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: strings.ToValidUTF8(text, "?")}
}
