package istio

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestAHeadlessService: clients connect to an endpoint and get that one, unless a
// route names another service.
func TestAHeadlessService(t *testing.T) {
	s := openShop(t, "elsewhere")
	headless := func(name string) mesh.PodSpec {
		return mesh.PodSpec{Name: name, Role: mesh.Sidecar, Labels: map[string]string{"app": "headless"}}
	}
	pods := s.Pods(headless("e1"), headless("e2"))
	for _, p := range pods {
		peers.DubboGo.Provider(t, peers.ProviderOptions{Place: at(p, p.IP), Name: p.Name, Port: 20890})
	}
	s.Apply(`
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: headless}, ports: [{name: tcp-dubbo, port: 20890}]}
`)
	s.Endpoints("headless", map[string]int{"tcp-dubbo": 20890}, pods...)
	s.steer(fmt.Sprintf(`
host: headless.%[1]s.svc.cluster.local
headless: true
ports: [{port: 20890, protocol: dubbo}]
server: {selector: {app: headless}}
routes:
- match: {metadata: [{name: tenant, string_match: {exact: acme}}]}
  route: {host: greeter.%[1]s.svc.cluster.local, port: 20880}
- route: {host: headless.%[1]s.svc.cluster.local}
`, s.Name))
	s.client.WaitConfig("ecds_filters", "outbound-headless")
	for _, p := range pods {
		p.WaitConfig("ecds_filters", "inbound-headless")
	}
	consumers := make([]*peers.Consumer, len(pods))
	for i, p := range pods {
		consumers[i] = peers.DubboGo.Consumer(t, 20890, peers.ConsumerOptions{Place: at(s.client, p.IP)})
	}
	for i, p := range pods {
		answers(t, consumers[i], 100, p.Name)
		tenant := who
		tenant.Attachments = map[string]any{"tenant": "acme"}
		a := consumers[i].Call(tenant)
		require.Empty(t, a.Error)
		require.Equal(t, "elsewhere", a.Value)
	}
	require.NotZero(t, s.client.Stats("headless.*request_twoway$"))
}

// TestAHostOfAServiceEntry: a service that Kubernetes does not know, with an
// address of its own, and without one, where its clients connect to any.
func TestAHostOfAServiceEntry(t *testing.T) {
	t.Run("with an address", func(t *testing.T) {
		serviceEntry(t, "addresses: [240.240.0.10]", "240.240.0.10", "240.240.0.10")
	})
	t.Run("without", func(t *testing.T) { serviceEntry(t, "", "240.240.0.0/16", "240.240.0.77") })
}

func serviceEntry(t *testing.T, addresses, listener, called string) {
	s := openShop(t)
	pods := s.Pods(server("v1"), server("v2"))
	for _, p := range pods {
		peers.DubboGo.Provider(t, peers.ProviderOptions{Place: at(p, p.IP), Name: p.Labels["version"], Port: targetPort})
	}
	s.Apply(fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: orders}
spec:
  hosts: [orders.example.com]
  %s
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 20880, targetPort: 20881, name: tcp-dubbo, protocol: TCP}]
  endpoints:
  - {address: %s, labels: {app: greeter, version: v1, security.istio.io/tlsMode: istio}, serviceAccount: default}
  - {address: %s, labels: {app: greeter, version: v2, security.istio.io/tlsMode: istio}, serviceAccount: default}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orders}
spec:
  host: orders.example.com
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
`, addresses, pods[0].IP, pods[1].IP))
	c := func() *peers.Consumer {
		return peers.DubboGo.Consumer(t, port, peers.ConsumerOptions{Place: at(s.client, called)})
	}
	for _, version := range []string{"v1", "v2"} {
		before := s.reloads(s.client)
		s.steer(fmt.Sprintf(`
host: orders.example.com
namespace: %s
addresses: [%s]
ports: [{port: 20880, targetPort: 20881, protocol: dubbo}]
server: {selector: {app: greeter}}
routes: [{route: {subset: %s}}]
`, s.Name, listener, version))
		s.Eventually("the routes", func() bool { return s.reloads(s.client) > before })
		answers(t, c(), 100, version)
	}
}

// TestSeveralPortsOfAService: each with its protocol and routes, one of them
// leading to another port of the workload.
func TestSeveralPortsOfAService(t *testing.T) {
	s := openShop(t)
	pods := s.Pods(
		mesh.PodSpec{Name: "many-v1", Role: mesh.Sidecar, Labels: map[string]string{"app": "many", "version": "v1"}},
		mesh.PodSpec{Name: "many-v2", Role: mesh.Sidecar, Labels: map[string]string{"app": "many", "version": "v2"}},
	)
	for _, p := range pods {
		name := p.Labels["version"]
		peers.DubboGo.Provider(t, peers.ProviderOptions{Place: at(p, p.IP), Name: name, Port: 7001})
		peers.ThriftGo.ServerIn(t, at(p, p.IP), name, framed, 9090)
		peers.TRPCServer(t, peers.TRPCServerOptions{Place: at(p, p.IP), Name: name, Port: 8000})
	}
	s.Apply(`
apiVersion: v1
kind: Service
metadata: {name: many}
spec:
  selector: {app: many}
  ports:
  - {name: tcp-dubbo, port: 7000, targetPort: 7001}
  - {name: tcp-thrift, port: 9090}
  - {name: tcp-trpc, port: 8001, targetPort: 8000}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: many}
spec:
  host: many
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
`)
	s.Endpoints("many", map[string]int{"tcp-dubbo": 7001, "tcp-thrift": 9090, "tcp-trpc": 8000}, pods...)
	vip := s.VIP("many")
	s.steer(fmt.Sprintf(`
host: many.%s.svc.cluster.local
addresses: [%s]
server: {selector: {app: many}}
ports:
- {port: 7000, targetPort: 7001, protocol: dubbo, routes: [{route: {subset: v1}}]}
- {port: 9090, protocol: thrift, routes: [{route: {subset: v2}}]}
- {port: 8001, targetPort: 8000, protocol: trpc, routes: [{route: {subset: v1}}]}
`, s.Name, vip))
	for _, p := range []string{"7000", "9090", "8001"} {
		s.client.WaitConfig("ecds_filters", "outbound-many[^\"]*-"+p)
	}
	place := at(s.client, vip)
	answers(t, peers.DubboGo.Consumer(t, 7000, peers.ConsumerOptions{Place: place}), 100, "v1")
	answers(t, peers.ThriftGo.ClientIn(t, place, 9090, framed, 0), 100, "v2")
	c := peers.TRPCClient(t, 8001, peers.TRPCClientOptions{Place: place})
	for range 20 {
		a := c.Call(peers.Command{Method: "Who"})
		require.Empty(t, a.Error)
		require.Equal(t, "v1", a.Value)
	}
}
