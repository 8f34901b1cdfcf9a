package istio

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// The service's port and the one that its servers listen at.
const (
	port       = 20880
	targetPort = 20881
)

// shop is a namespace with a Dubbo service, greeter, and a client of it. There
// is one server of each version, which answers with the version's name.
type shop struct {
	*mesh.Namespace
	t       *testing.T
	vip     string
	client  *mesh.Pod
	servers map[string]*mesh.Pod
	apps    map[string]*peers.Provider
}

const greeterService = `
apiVersion: v1
kind: Service
metadata: {name: greeter}
spec:
  selector: {app: greeter}
  ports: [{name: tcp-dubbo, port: 20880, targetPort: 20881}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter}
spec:
  host: greeter
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
`

// openShop makes a shop with servers of some versions.
func openShop(t *testing.T, versions ...string) *shop {
	t.Helper()
	return openShopTo(t, mesh.PodSpec{}, versions...)
}

// openShopTo is openShop with a special client.
func openShopTo(t *testing.T, client mesh.PodSpec, versions ...string) *shop {
	t.Helper()
	s := &shop{Namespace: world.Namespace(t), t: t, servers: map[string]*mesh.Pod{}, apps: map[string]*peers.Provider{}}
	client.Name, client.Role = "client", mesh.Sidecar
	specs := []mesh.PodSpec{client}
	for _, v := range versions {
		specs = append(specs, server(v))
	}
	pods := s.Pods(specs...)
	s.client = pods[0]
	for i, v := range versions {
		s.servers[v] = pods[i+1]
		s.serve(v, peers.DubboGo)
	}
	s.Apply(greeterService)
	s.vip = s.VIP("greeter")
	s.endpoints(pods[1:]...)
	// Istiod may have told of the service before it knew of its rule.
	s.clusters("the subsets", func(dump string) bool {
		return strings.Contains(dump, s.cluster("v1")) && strings.Contains(dump, s.cluster("v2"))
	})
	return s
}

// server describes the pod of a version.
func server(version string) mesh.PodSpec {
	return mesh.PodSpec{Name: "greeter-" + version, Role: mesh.Sidecar, Labels: map[string]string{"app": "greeter", "version": version}}
}

// serve starts the server of a version.
func (s *shop) serve(version string, l peers.Library) {
	s.t.Helper()
	s.apps[version] = l.Provider(s.t, peers.ProviderOptions{
		Place: at(s.servers[version], s.servers[version].IP), Name: version, Port: targetPort,
	})
}

// at is a place in a pod.
func at(p *mesh.Pod, host string) peers.Place { return peers.Place{Netns: p.ID, Host: host} }

// consumer starts a client of the service in the client's pod.
func (s *shop) consumer(l peers.Library, o peers.ConsumerOptions) *peers.Consumer {
	s.t.Helper()
	o.Place = at(s.client, s.vip)
	return l.Consumer(s.t, port, o)
}

// host is the name of the service in Istio.
func (s *shop) host() string { return "greeter." + s.Name + ".svc.cluster.local" }

// description is the input of `meltemi envoyfilter` for the service, with some
// routes.
func (s *shop) description(routes string) string {
	return fmt.Sprintf(`
host: %s
addresses: [%s]
ports: [{port: %d, targetPort: %d, protocol: dubbo}]
server: {selector: {app: greeter}}
outbound: {upstream: {max_connection_age: 3s}}
inbound: {upstream: {max_connection_age: 3s}}
%s`, s.host(), s.vip, port, targetPort, routes)
}

// route applies EnvoyFilters for the service with some routes, and waits until
// the client's proxy has accepted them.
func (s *shop) route(routes string) {
	s.t.Helper()
	before := s.reloads(s.client)
	s.steer(s.description(routes))
	s.Eventually("the new routes", func() bool { return s.reloads(s.client) > before && settled(s.client) })
}

// settled tells whether a proxy's listeners have our outbound filters and are in
// use.
func settled(p *mesh.Pod) bool { return serving(p, "meltemi-outbound") }

// serving tells whether a proxy's listeners have a text, such as a filter's name,
// and are in use.
func serving(p *mesh.Pod, text string) bool {
	dump := listeners(p)
	return strings.Contains(dump, text) && !strings.Contains(dump, "warming_state")
}

// inListeners tells whether a proxy's listeners, which are too long to be
// printed, have a text.
func inListeners(p *mesh.Pod, text string) bool { return strings.Contains(listeners(p), text) }

func listeners(p *mesh.Pod) string { return p.Admin("/config_dump?resource=dynamic_listeners") }

// reloads is how many configurations of outbound and gateway filters a proxy has
// accepted.
func (s *shop) reloads(p *mesh.Pod) (n int64) {
	s.t.Helper()
	for _, v := range p.Stats("extension_config_discovery.*meltemi-(outbound|gateway).*config_reload$") {
		n += v
	}
	return n
}

// steer applies what `meltemi envoyfilter` makes of a service's description.
func (s *shop) steer(description string) {
	s.t.Helper()
	require.NoError(s.t, s.Mesh.Apply("", generate(s.t, description)))
}

// generate runs `meltemi envoyfilter`.
func generate(t *testing.T, description string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(peers.Root(), "build", "meltemi"), "envoyfilter", "-")
	cmd.Stdin = strings.NewReader(description)
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	require.NoError(t, err, problem.String())
	return string(out)
}

// TestDubboThroughTwoSidecars is the whole way: client, sidecar, mutual TLS,
// sidecar, server. Who speaks no TLS is not let in, as without Meltemi.
func TestDubboThroughTwoSidecars(t *testing.T) {
	s := openShop(t, "v1", "v2")
	answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 20, "v1", "v2")

	s.route("routes: [{route: {subset: v1}}]")
	answers(t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 100, "v1")

	outside := s.Pods(mesh.PodSpec{Name: "outside"})[0]
	nc, err := outside.Dial(fmt.Sprintf("%s:%d", s.servers["v1"].IP, targetPort))
	require.NoError(t, err)
	defer nc.Close()
	_, err = nc.Write(hello.Bytes())
	require.NoError(t, err)
	require.NoError(t, nc.SetReadDeadline(time.Now().Add(10*time.Second)))
	n, err := nc.Read(make([]byte, 1))
	require.Zero(t, n)
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

// endpoints makes pods the endpoints of the service, and waits until the client's
// proxy knows them.
func (s *shop) endpoints(pods ...*mesh.Pod) {
	s.t.Helper()
	s.Endpoints("greeter", map[string]int{"tcp-dubbo": targetPort}, pods...)
	s.Eventually("the endpoints", func() bool { return s.clusterHas(s.client, pods...) })
}

// clusterHas tells whether the service's cluster in a proxy has just these
// hosts.
func (s *shop) clusterHas(p *mesh.Pod, hosts ...*mesh.Pod) bool {
	s.t.Helper()
	found := map[string]bool{}
	for line := range strings.Lines(p.Admin("/clusters")) {
		f := strings.Split(strings.TrimSpace(line), "::")
		if len(f) > 2 && f[0] == fmt.Sprintf("outbound|%d||%s", port, s.host()) && strings.HasSuffix(f[1], fmt.Sprintf(":%d", targetPort)) {
			found[f[1]] = true
		}
	}
	want := map[string]bool{}
	for _, h := range hosts {
		want[fmt.Sprintf("%s:%d", h.IP, targetPort)] = true
	}
	return maps.Equal(found, want)
}
