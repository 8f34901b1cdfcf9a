package istio

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

// TestTheGuide does what docs/istio.md tells its reader to do, in a namespace of
// another name, sees what it promises, and makes calls in between.
func TestTheGuide(t *testing.T) {
	s := &shop{Namespace: world.Namespace(t), t: t, servers: map[string]*mesh.Pod{}, apps: map[string]*peers.Provider{}}
	web := mesh.PodSpec{Name: "web", Role: mesh.Sidecar, Labels: map[string]string{"app": "web"}, ScrapeTarget: "15880:/metrics"}
	newWeb := web
	newWeb.Name, newWeb.Env = "web-v2", []string{"ISTIO_META_MELTEMI=v2"}
	pods := s.Pods(web, server("v1"), server("v2"), newWeb, mesh.PodSpec{Name: "outside"})
	s.client, s.servers["v1"], s.servers["v2"] = pods[0], pods[1], pods[2]
	root := world.Root(t)
	root.Apply(gatewayDeployment)
	ingress := root.Pods(mesh.PodSpec{Name: "ingress", Role: mesh.Gateway, Labels: map[string]string{"istio": "ingressgateway"}})[0]
	s.serve("v1", peers.DubboGo)
	s.serve("v2", peers.DubboGo)
	r := newReader(t, s.Namespace, "demo", "docs/istio.md", s.client.AgentCommand())

	steps := r.follow(func(section string, step int) { s.after(section, step, guests{ingress, pods[4], pods[3]}) })
	require.Equal(t, map[string]int{"Install": 4, "Verify": 2, "Metrics": 1, "Change a route": 3, "Who may call what": 1, "Gateway": 2, "Upgrade": 2, "Remove": 1}, steps)
}

// gatewayDeployment is what an installation of Istio brings along.
const gatewayDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: istio-ingressgateway}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  template:
    metadata: {labels: {istio: ingressgateway}}
    spec: {containers: [{name: istio-proxy, image: auto}]}
`

// guests are pods that not every step needs: the gateway, a client outside of the
// mesh, and one whose proxy has a newer shared object.
type guests struct{ gateway, outside, newer *mesh.Pod }

// after looks what has become of calls after a step of the guide.
func (s *shop) after(section string, step int, g guests) {
	tenant := who
	tenant.Attachments = map[string]any{"tenant": "acme"}
	switch {
	case section == "Install" && step == 1:
		s.vip = s.VIP("greeter")
		s.endpoints(s.servers["v1"], s.servers["v2"])
		answers(s.t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 20, "v1", "v2")
	case section == "Install" && step == 4:
		s.Eventually("the routes", func() bool { return s.reloads(s.client) > 0 })
		answers(s.t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 100, "v1")
	case section == "Change a route" && step == 2:
		s.Eventually("the new routes", func() bool { return s.reloads(s.client) > 1 })
		c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
		for range 20 {
			require.Equal(s.t, "v2", c.Call(tenant).Value)
		}
		require.Len(s.t, answers(s.t, c, 200, "v1", "v2"), 2)
	case section == "Who may call what":
		c := s.consumer(peers.DubboGo, peers.ConsumerOptions{})
		refused := func(method string) bool {
			a := c.Call(peers.Command{Method: method, Args: []any{"x"}})
			return strings.Contains(a.Error, "RBAC: access denied")
		}
		// A connection that is open has the policies that it began with, until it is replaced.
		s.Eventually("the policies at both servers", func() bool {
			for _, p := range s.servers {
				for _, n := range p.Stats("extension_config_discovery.*meltemi-inbound.*config_reload$") {
					if n < 2 {
						return false
					}
				}
			}
			for range 50 {
				if !refused("fail") {
					return false
				}
			}
			return true
		})
		require.Equal(s.t, "v2", c.Call(tenant).Value)
		require.False(s.t, refused("sayHello"))
		require.True(s.t, refused("sayNothing"))
	case section == "Gateway" && step == 2:
		s.Eventually("the routes at the gateway", func() bool { return s.reloads(g.gateway) > 0 })
		c := peers.DubboGo.Consumer(s.t, 31400, peers.ConsumerOptions{Place: at(g.outside, g.gateway.IP)})
		require.Equal(s.t, "v2", c.Call(tenant).Value)
	case section == "Upgrade" && step == 2:
		s.Eventually("the routes at the new proxy", func() bool { return s.reloads(g.newer) > 0 && settled(g.newer) })
		for _, p := range []*mesh.Pod{s.client, g.newer} {
			c := peers.DubboGo.Consumer(s.t, port, peers.ConsumerOptions{Place: at(p, s.vip)})
			for range 20 {
				require.Equal(s.t, "v2", c.Call(tenant).Value)
			}
			require.Equal(s.t, p == g.newer, inListeners(p, "-v2-20880"), p.Name)
			require.Equal(s.t, p != g.newer, inListeners(p, "greeter."+s.Name+"-20880"), p.Name)
		}
	case section == "Remove":
		s.Eventually("plain TCP", func() bool {
			return !inListeners(s.client, "meltemi") && !inListeners(g.newer, "meltemi")
		})
		answers(s.t, s.consumer(peers.DubboGo, peers.ConsumerOptions{}), 20, "v1", "v2")
	}
}

// reader is somebody who follows a guide.
type reader struct {
	t           *testing.T
	guide       string
	dir, bin    string
	there, back *strings.Replacer // from the guide's namespaces to the test's
}

const kubectl = `#!/bin/sh
if [ "$1" = exec ]; then
  [ "$2" = deploy/web ] || exit 1
  while [ "$1" != pilot-agent ]; do shift; done
  shift
  exec AGENT "$@" 2>/dev/null # it misses its cgroup
fi
exec KUBECTL "$@"
`

// newReader: said is the guide's name of the namespace, agent how a shell calls pilot-agent
// in the pod to which the guide turns.
func newReader(t *testing.T, n *mesh.Namespace, said, guide string, agent []string) *reader {
	t.Helper()
	r := &reader{t: t, guide: guide, dir: t.TempDir(), bin: t.TempDir()}
	var there, back []string
	for _, form := range []string{"greeter.NS", "orders.NS", "-n NS", "namespace: NS", "name: NS\n", "ns/NS/"} {
		said, is := strings.ReplaceAll(form, "NS", said), strings.ReplaceAll(form, "NS", n.Name)
		there, back = append(there, said, is), append(back, is, said)
	}
	r.there = strings.NewReplacer(there...)
	r.back = strings.NewReplacer(back...)
	meltemi, err := filepath.Abs(filepath.Join(peers.Root(), "build", "meltemi"))
	require.NoError(t, err)
	require.NoError(t, os.Symlink(meltemi, filepath.Join(r.bin, "meltemi")))
	script := strings.NewReplacer(
		"AGENT", strings.Join(agent, " "), "KUBECTL", strings.Join(n.KubectlCommand(), " "),
	).Replace(kubectl)
	require.NoError(t, os.WriteFile(filepath.Join(r.bin, "kubectl"), []byte(script), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(r.bin, "helm"), []byte("#!/bin/sh\nexec "+strings.Join(n.HelmCommand(), " ")+" \"$@\"\n"), 0o755))
	charts, err := filepath.Abs(chart(""))
	require.NoError(t, err)
	require.NoError(t, os.Symlink(charts, filepath.Join(r.dir, "charts")))
	require.NoError(t, os.MkdirAll(filepath.Join(r.dir, "examples/istio"), 0o755))
	for _, f := range regexp.MustCompile(`examples/istio/[\w-]+\.yaml`).FindAllString(r.file(guide), -1) {
		require.NoError(t, os.WriteFile(filepath.Join(r.dir, f), []byte(r.there.Replace(r.file(f))), 0o600))
	}
	return r
}

func (r *reader) file(path string) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(peers.Root(), path))
	require.NoError(r.t, err)
	return string(b)
}

// follow does what the guide says, and tells of each step after which it shows what is to be
// seen: the section, and the step's number there. It returns how many there were.
func (r *reader) follow(after func(section string, step int)) map[string]int {
	r.t.Helper()
	steps, printed := map[string]int{}, ""
	for _, b := range docs.Blocks(r.file(r.guide)) {
		switch b.Kind {
		case "sh":
			require.Empty(r.t, printed, "the guide does not show what the block before prints:\n%s", b.Text)
			printed = r.run(b.Text)
		case "text":
			require.Regexp(r.t, b.Sample(), printed, "want:\n%s", b.Text)
			printed = ""
			steps[b.Section]++
			after(b.Section, steps[b.Section])
		}
	}
	require.Empty(r.t, printed)
	return steps
}

// run executes a block, which must succeed, and returns what it prints.
func (r *reader) run(block string) string {
	r.t.Helper()
	cmd := exec.Command("sh", "-e", "-c", r.there.Replace(block))
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "PATH="+r.bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	require.NoError(r.t, err, "%s\n%s", block, out)
	return r.back.Replace(strings.TrimRight(string(out), "\n") + "\n")
}
