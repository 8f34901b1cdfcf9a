package istio

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/stretchr/testify/require"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

const (
	rdsPort = 15010
	rdsType = "type.googleapis.com/aeraki.meta_protocol_proxy.config.route.v1alpha.RouteConfiguration"
)

// served is a shop whose routes come from replicas of the operator that are workloads of
// the mesh, as docs/control-plane.md has it.
type served struct {
	*operated
	ns       *mesh.Namespace // the operator's
	pods     []*mesh.Pod
	replicas []*mesh.Operator
}

func openServed(t *testing.T) *served {
	t.Helper()
	s := &served{ns: world.Namespace(t)}
	var specs []mesh.PodSpec
	for _, name := range []string{"meltemi-operator-1", "meltemi-operator-2"} {
		specs = append(specs, mesh.PodSpec{Name: name, Role: mesh.Sidecar, Labels: map[string]string{"app": "meltemi-operator"}, CertificatesOnly: true})
	}
	s.pods = s.ns.Pods(specs...)
	s.ns.Apply(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: meltemi-operator}
spec:
  selector: {app: meltemi-operator}
  ports: [{name: grpc-rds, port: %d}, {name: http-metrics, port: 8080}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: meltemi-operator}
spec:
  host: meltemi-operator
  trafficPolicy: {portLevelSettings: [{port: {number: %[1]d}, tls: {mode: ISTIO_MUTUAL}}]}
`, rdsPort))
	s.ns.Endpoints("meltemi-operator", map[string]int{"grpc-rds": rdsPort, "http-metrics": 8080}, s.pods...)
	// The API server's proxy to Services looks at the older form of endpoints.
	s.ns.Apply(fmt.Sprintf(`
apiVersion: v1
kind: Endpoints
metadata: {name: meltemi-operator}
subsets:
- addresses:
  - {ip: %[1]s, targetRef: {kind: Pod, namespace: %[3]s, name: meltemi-operator-1}}
  - {ip: %[2]s, targetRef: {kind: Pod, namespace: %[3]s, name: meltemi-operator-2}}
  ports: [{name: grpc-rds, port: %[4]d}, {name: http-metrics, port: 8080}]
`, s.pods[0].IP, s.pods[1].IP, s.ns.Name, rdsPort))
	root := peers.Root()
	for _, p := range s.pods {
		s.replicas = append(s.replicas, p.Operator(filepath.Join(root, "build", "meltemi-operator"), mesh.CRDs(root),
			"-rds-address", fmt.Sprintf(":%d", rdsPort), "-rds-trust-domain", "cluster.local",
			"-rds-service", fmt.Sprintf("meltemi-operator.%s.svc.cluster.local:%d", s.ns.Name, rdsPort),
			"-rds-certificate", filepath.Join(p.Certificates(), "cert-chain.pem"),
			"-rds-key", filepath.Join(p.Certificates(), "key.pem"),
			"-rds-roots", filepath.Join(p.Certificates(), "root-cert.pem")))
	}
	s.operated = &operated{operator: s.replicas[0], shop: openShop(t, "v1", "v2")}
	t.Cleanup(func() { s.Kubectl("", "delete", "metarouters", "--all", "-n", s.Name) })
	// Proxies of the mesh see the services of their own namespaces only.
	s.Apply(fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default}
spec: {egress: [{hosts: ["./*", "%s/*"]}]}
`, s.ns.Name))
	s.Apply(strings.ReplaceAll(greeterService, "tcp-dubbo", "tcp-metaprotocol-dubbo"))
	pods := []*mesh.Pod{s.servers["v1"], s.servers["v2"]}
	s.Endpoints("greeter", map[string]int{"tcp-metaprotocol-dubbo": targetPort}, pods...)
	s.Eventually("the endpoints", func() bool { return s.clusterHas(s.client, pods...) })
	return s
}

// byRDS has all calls go to a version, and routes come by RDS.
func (s *served) byRDS(version string) {
	s.t.Helper()
	s.Apply(router("greeter", s.host(), "  routeDelivery: RDS\n  routes: [{name: "+version+", route: [{"+s.to(version)+"}]}]\n"))
}

// acknowledged waits until all proxies have accepted the last version, the client's among
// them.
func (s *served) acknowledged(version string) {
	s.t.Helper()
	s.has(version)
	s.conditions("greeter", "Accepted=True Programmed=True Acknowledged=True")
}

// has waits until the client's proxy has accepted the routes to a version, by RDS.
func (s *served) has(version string) {
	s.t.Helper()
	s.Eventually("the routes to "+version, func() bool {
		page, err := s.client.Get("http://127.0.0.1:15880/routes")
		_, dynamic, ok := strings.Cut(page, "dynamic_route_configs")
		return err == nil && ok && strings.Contains(dynamic, s.cluster(version)) && strings.Contains(dynamic, `"ACKED"`)
	})
}

// steady has a client call until it is told to stop, and then requires that no call has
// failed.
func steady(t *testing.T, c *peers.Consumer) (stop func()) {
	ended, outcome := make(chan struct{}), make(chan peers.Summary, 1)
	go func() {
		all := peers.Summary{Values: map[string]int{}, Errors: map[string]int{}}
		defer func() { outcome <- all }()
		for {
			s := load(c, 500*time.Millisecond).Summary()
			all.Calls += s.Calls
			maps.Copy(all.Errors, s.Errors)
			maps.Copy(all.Values, s.Values)
			select {
			case <-ended:
				return
			default:
			}
		}
	}()
	return func() {
		t.Helper()
		close(ended)
		all := <-outcome
		require.Empty(t, all.Errors)
		require.NotZero(t, all.Values["v1"])
		require.NotZero(t, all.Values["v2"])
		t.Logf("%d calls", all.Calls)
	}
}

// TestRoutesByRDS come to open connections by the mesh's own mutual TLS, from whichever
// replica there is, and are held while there is none. No call fails, while a router
// turns to RDS and back either.
func TestRoutesByRDS(t *testing.T) {
	s := openServed(t)
	s.metaRouter("  routes: [{route: [{" + s.to("v1") + "}]}]\n")
	calm, open := s.consumer(peers.DubboGo, peers.ConsumerOptions{}), s.dial(s.client, fmt.Sprintf("%s:%d", s.vip, port))
	stop := steady(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}))
	id := uint64(0)
	goes := func(version string) {
		t.Helper()
		answers(t, calm, 100, version)
		for range 10 {
			id++
			open.Ask(id, hello)
			require.Equal(t, version+": hello x", open.Read().Text())
		}
	}
	goes("v1")
	s.byRDS("v1")
	s.acknowledged("v1")
	goes("v1")
	for _, version := range []string{"v2", "v1", "v2"} {
		s.byRDS(version)
		s.acknowledged(version)
		goes(version)
	}
	connected := func(i int) int {
		return strings.Count(s.replicas[i].Get("/rds?name="+s.host()+"_"+fmt.Sprint(port)), `"node"`)
	}
	require.GreaterOrEqual(t, connected(0)+connected(1), 3, "sidecars of the client and of both servers")

	// The first one leads. Routes need nobody who does.
	s.replicas[0].Kill()
	s.byRDS("v1")
	s.has("v1")
	goes("v1")
	s.replicas[1].Kill()
	goes("v1")
	answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 20, "v1")
	s.byRDS("v2")
	goes("v1")
	s.replicas[1].Start()
	s.replicas[0].Start()
	s.acknowledged("v2")
	goes("v2")

	s.metaRouter("  routes: [{route: [{" + s.to("v1") + "}]}]\n")
	goes("v1")
	s.byRDS("v2")
	s.acknowledged("v2")
	goes("v2")
	stop()
}

// TestRoutesByRDSWithoutTheAPIServer: while it is away for so long that nobody leads, no
// replica ends and no stream, and who asks for the first time is answered. What is said
// afterwards arrives by all of these.
func TestRoutesByRDSWithoutTheAPIServer(t *testing.T) {
	s := openServed(t)
	s.byRDS("v1")
	s.acknowledged("v1")
	asker := s.Pods(mesh.PodSpec{Name: "asks", Role: mesh.Sidecar, CertificatesOnly: true})[0]
	name := fmt.Sprintf("%s_%d", s.host(), port)
	var proxies []*proxy
	ask := func() {
		t.Helper()
		for i := range s.replicas {
			p := s.ask(t, i, asker).wants(name)
			require.Equal(t, []string{name}, p.names())
			proxies = append(proxies, p)
		}
	}
	ask()
	calm, stop := s.consumer(peers.DubboGo, peers.ConsumerOptions{}), steady(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}))
	world.KillAPIServer()
	s.Eventually("the end of a lease", func() bool {
		return slices.ContainsFunc(s.replicas, func(o *mesh.Operator) bool { return strings.Contains(o.Log(), "Failed to renew lease") })
	})
	answers(t, calm, 100, "v1")
	ask()
	require.NoError(t, world.StartAPIServer())
	s.byRDS("v2")
	for _, p := range proxies {
		require.Equal(t, []string{name}, p.names())
	}
	s.acknowledged("v2")
	answers(t, calm, 100, "v2")
	stop()
}

// TestRoutesByRDSAreForTheirNamespaces: whoever is in the mesh may ask, and is told of what
// is for its namespace. Who is not in the mesh is not heard.
func TestRoutesByRDSAreForTheirNamespaces(t *testing.T) {
	s := openServed(t)
	elsewhere := world.Namespace(t)
	certified := func(n *mesh.Namespace) *mesh.Pod {
		return n.Pods(mesh.PodSpec{Name: "asks", Role: mesh.Sidecar, CertificatesOnly: true})[0]
	}
	asker, stranger := certified(s.Namespace), certified(elsewhere)
	s.Apply(strings.NewReplacer("name: greeter", "name: open", "tcp-dubbo", "tcp-metaprotocol-dubbo").Replace(strings.Split(greeterService, "---")[0]))
	openHost := "open." + s.Name + ".svc.cluster.local"
	s.Apply(router("open", openHost, "  routeDelivery: RDS\n  routes: [{route: [{destination: {host: "+openHost+"}}]}]\n"))
	s.Apply(router("greeter", s.host(), "  routeDelivery: RDS\n  exportTo: [.]\n  routes: [{route: [{"+s.to("v1")+"}]}]\n"))
	s.acknowledged("v1")
	s.conditions("open", "Accepted=True Programmed=True Acknowledged=True")
	names := []string{openHost + "_20880", s.host() + "_20880"}
	for i := range s.replicas {
		require.Equal(t, names, s.ask(t, i, asker).wants(names...).names())
		require.Equal(t, names[:1], s.ask(t, i, stranger).wants(names...).names())
	}
	for _, config := range []*tls.Config{{InsecureSkipVerify: true}, nil} {
		_, err := asks(t, s.pods[0], stranger, config)
		require.Error(t, err)
	}
}

// proxy asks as one does, and says what the test wants.
type proxy struct {
	t  *testing.T
	st routeservicev3.RouteDiscoveryService_DeltaRoutesClient
}

// ask is a proxy with the identity of a pod.
func (s *served) ask(t *testing.T, replica int, p *mesh.Pod) *proxy {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(p.Certificates(), "cert-chain.pem"), filepath.Join(p.Certificates(), "key.pem"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(p.Certificates(), "root-cert.pem"))
	require.NoError(t, err)
	require.True(t, roots.AppendCertsFromPEM(pem))
	st, err := asks(t, s.pods[replica], p, &tls.Config{
		Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, NextProtos: []string{"h2"},
		// Who the server is: the mesh has no host names.
		VerifyConnection: func(c tls.ConnectionState) error {
			inter := x509.NewCertPool()
			for _, c := range c.PeerCertificates[1:] {
				inter.AddCert(c)
			}
			if _, err := c.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter}); err != nil {
				return err
			}
			if want := "spiffe://cluster.local/ns/" + s.ns.Name + "/sa/default"; c.PeerCertificates[0].URIs[0].String() != want {
				return fmt.Errorf("want %s, is %s", want, c.PeerCertificates[0].URIs[0])
			}
			return nil
		},
	})
	require.NoError(t, err)
	return &proxy{t, st}
}

// asks opens a stream to a replica from within a pod; no configuration of TLS is none. A
// server that answers nothing has not refused.
func asks(t *testing.T, to, from *mesh.Pod, config *tls.Config) (routeservicev3.RouteDiscoveryService_DeltaRoutesClient, error) {
	t.Helper()
	creds := grpc.WithTransportCredentials(credentials.NewTLS(config))
	if config == nil {
		creds = grpc.WithTransportCredentials(insecure.NewCredentials())
	}
	conn, err := grpc.NewClient(fmt.Sprintf("passthrough:///%s:%d", to.IP, rdsPort), creds,
		grpc.WithContextDialer(func(_ context.Context, addr string) (net.Conn, error) { return from.Dial(addr) }))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 2*peers.Patience) // an outage may be in between
	t.Cleanup(cancel)
	st, err := routeservicev3.NewRouteDiscoveryServiceClient(conn).DeltaRoutes(ctx)
	if err != nil {
		return nil, err
	}
	if config != nil && len(config.Certificates) > 0 {
		return st, nil
	}
	// TLS 1.3 tells a client only when it reads.
	if err := st.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: rdsType, ResourceNamesSubscribe: []string{"x"}}); err != nil {
		return nil, err
	}
	_, err = st.Recv()
	return nil, err
}

func (p *proxy) wants(names ...string) *proxy {
	p.t.Helper()
	require.NoError(p.t, p.st.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: "picky"}, TypeUrl: rdsType, ResourceNamesSubscribe: names,
	}))
	return p
}

// names are those that it is told of at a time.
func (p *proxy) names() (names []string) {
	p.t.Helper()
	for _, r := range p.next("").GetResources() {
		names = append(names, r.GetName())
	}
	slices.Sort(names)
	slices.Reverse(names)
	return names
}

// next is the next answer, which it accepts or refuses.
func (p *proxy) next(reason string) *discoveryv3.DeltaDiscoveryResponse {
	p.t.Helper()
	r, err := p.st.Recv()
	require.NoError(p.t, err)
	q := &discoveryv3.DeltaDiscoveryRequest{ResponseNonce: r.GetNonce()}
	if reason != "" {
		q.ErrorDetail = &rpcstatus.Status{Code: 3, Message: reason}
	}
	require.NoError(p.t, p.st.Send(q))
	return r
}
