package istio

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestClientsAndGatewaysOfOtherNamespaces: a client of another namespace and a
// gateway in Istio's root namespace are routed. What is in the root namespace,
// where EnvoyFilters count for the whole mesh, reaches no other proxies.
func TestClientsAndGatewaysOfOtherNamespaces(t *testing.T) {
	s := openShop(t, "v1", "v2")
	abroad, root := world.Namespace(t), world.Root(t)
	abroad.Apply(fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default}
spec: {egress: [{hosts: ["./*", "%s/*"]}]}
`, s.Name))
	foreign := abroad.Pods(mesh.PodSpec{Name: "foreign", Role: mesh.Sidecar})[0]
	gateway := root.Pods(mesh.PodSpec{Name: "far-gateway", Role: mesh.Gateway, Labels: map[string]string{"istio": "far"}})[0]
	outside := s.Pods(mesh.PodSpec{Name: "outside"})[0]
	s.Apply(fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway}
spec:
  selector: {istio: far}
  servers: [{port: {number: 8880, name: tcp-dubbo, protocol: TCP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: gateway}
spec:
  hosts: ["*"]
  gateways: [gateway]
  tcp:
  - match: [{port: 8880}]
    route: [{destination: {host: %s, port: {number: %d}}}]
`, s.host(), port))
	s.steer(fmt.Sprintf(`
host: %s
addresses: [%s]
ports: [{port: %d, targetPort: %d, protocol: dubbo}]
clients: [{namespace: %s}, {namespace: %s}]
gateways: [{namespace: %[6]s, selector: {istio: far}, port: 8880, sniHosts: []}]
routes: [{route: {subset: v1}}]
`, s.host(), s.vip, port, targetPort, abroad.Name, mesh.RootNamespace))
	s.Eventually("the filters", func() bool { return settled(foreign) && serving(gateway, "meltemi-gateway") })
	foreign.WaitConfig("ecds_filters", "meltemi-outbound")
	gateway.WaitConfig("ecds_filters", "meltemi-gateway")

	answers(t, peers.DubboGo.Consumer(t, port, peers.ConsumerOptions{Place: at(foreign, s.vip)}), 100, "v1")
	answers(t, peers.DubboGo.Consumer(t, 8880, peers.ConsumerOptions{Place: at(outside, gateway.IP)}), 100, "v1")

	// The service's own namespace is neither a client's nor the root.
	s.unrouted(s.client)
	for _, p := range []*mesh.Pod{s.client, s.servers["v1"], s.servers["v2"]} {
		require.False(t, inListeners(p, "meltemi"), p.Name)
	}
}

// TestOnlySelectedPodsAreTouched: of a namespace whose proxies all have the shared
// object.
func TestOnlySelectedPodsAreTouched(t *testing.T) {
	s := openShopTo(t, mesh.PodSpec{Labels: map[string]string{"app": "web"}}, "v1", "v2")
	other := s.Pods(mesh.PodSpec{Name: "other", Role: mesh.Sidecar, Labels: map[string]string{"app": "other"}})[0]
	s.steer(s.description("clients: [{selector: {app: web}}]\nroutes: [{route: {subset: v1}}]"))
	s.Eventually("our filter", func() bool { return settled(s.client) && serving(s.servers["v1"], "meltemi-inbound") })
	s.client.WaitConfig("ecds_filters", "meltemi-outbound")
	answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 100, "v1")
	s.unrouted(other)
	for p, filters := range map[*mesh.Pod][]string{
		other:           {"meltemi-outbound", "meltemi-inbound"},
		s.client:        {"meltemi-inbound"},
		s.servers["v1"]: {"meltemi-outbound"},
	} {
		for _, f := range filters {
			require.False(t, inListeners(p, f), "%s of %s", f, p.Name)
		}
	}
}
