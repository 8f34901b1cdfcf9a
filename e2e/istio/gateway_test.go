package istio

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// framed is what Thrift is spoken in.
var framed = peers.Wire{Transport: "framed", Protocol: "strict"}

// withEchoes adds a gateway, a pod outside of the mesh, and two versions of a Thrift server
// that listen at 9091, with the subsets of their Service echo.
func (s *shop) withEchoes() (gateway, outside *mesh.Pod, echoes []*mesh.Pod) {
	s.t.Helper()
	pods := s.Pods(
		mesh.PodSpec{Name: "gateway", Role: mesh.Gateway, Labels: map[string]string{"istio": "ingressgateway"}},
		mesh.PodSpec{Name: "outside", Role: mesh.Stranger},
		mesh.PodSpec{Name: "echo-v1", Role: mesh.Sidecar, Labels: map[string]string{"app": "echo", "version": "v1"}},
		mesh.PodSpec{Name: "echo-v2", Role: mesh.Sidecar, Labels: map[string]string{"app": "echo", "version": "v2"}},
	)
	echoes = pods[2:]
	for i, p := range echoes {
		peers.ThriftGo.ServerIn(s.t, at(p, p.IP), fmt.Sprintf("echo-v%d", i+1), framed, 9091)
	}
	s.Apply(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
`)
	return pods[0], pods[1], echoes
}

// TestAGatewayOfTwoProtocols: Dubbo and Thrift at two ports of one gateway, for
// clients outside of the mesh. What is routed anew is so on open connections.
func TestAGatewayOfTwoProtocols(t *testing.T) {
	s := openShop(t, "v1", "v2")
	gateway, outside, echoes := s.withEchoes()
	s.Apply(`
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{name: tcp-thrift, port: 9090, targetPort: 9091}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8880, name: tcp-dubbo, protocol: TCP}, hosts: ["*"]}
  - {port: {number: 8890, name: tcp-thrift, protocol: TCP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: gateway}
spec:
  hosts: ["*"]
  gateways: [gateway]
  tcp:
  - match: [{port: 8880}]
    route: [{destination: {host: greeter, port: {number: 20880}}}]
  - match: [{port: 8890}]
    route: [{destination: {host: echo, port: {number: 9090}}}]
`)
	s.Endpoints("echo", map[string]int{"tcp-thrift": 9091}, echoes...)
	echo := "echo." + s.Name + ".svc.cluster.local"
	steer := func(greeterVersion, echoVersion string) {
		before := s.reloads(gateway)
		s.steer(fmt.Sprintf(`
host: %s
addresses: [%s]
ports: [{port: %d, targetPort: %d, protocol: dubbo}]
server: {selector: {app: greeter}}
clients: []
gateways: [{namespace: %s, selector: {istio: ingressgateway}, port: 8880, sniHosts: []}]
routes: [{route: {subset: %s}}]
`, s.host(), s.vip, port, targetPort, s.Name, greeterVersion))
		s.steer(fmt.Sprintf(`
host: %s
addresses: [%s]
ports: [{port: 9090, targetPort: 9091, protocol: thrift}]
server: {selector: {app: echo}}
clients: []
gateways: [{namespace: %s, selector: {istio: ingressgateway}, port: 8890, sniHosts: []}]
routes: [{route: {subset: %s}}]
`, echo, s.VIP("echo"), s.Name, echoVersion))
		s.Eventually("both filters at the gateway", func() bool { return s.reloads(gateway) >= before+2 })
	}
	steer("v1", "v2")
	dubbo := peers.DubboGo.Consumer(t, 8880, peers.ConsumerOptions{Place: at(outside, gateway.IP), Connections: 1})
	thrift := peers.ThriftGo.ClientIn(t, at(outside, gateway.IP), 8890, framed, 0)
	raw := s.dial(outside, gateway.IP+":8880")
	check := func(greeterVersion, echoVersion string) {
		t.Helper()
		for id := range uint64(5) {
			a := dubbo.Call(who)
			require.Empty(t, a.Error)
			require.Equal(t, greeterVersion, a.Value)
			a = thrift.Call(who)
			require.Empty(t, a.Error)
			require.Equal(t, "echo-"+echoVersion, a.Value)
			raw.Ask(id, hello)
			require.Equal(t, greeterVersion+": hello x", raw.Read().Text())
		}
	}
	check("v1", "v2")
	steer("v2", "v1")
	check("v2", "v1")
}
