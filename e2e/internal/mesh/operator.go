package mesh

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Operator is Meltemi's control plane.
type Operator struct {
	m *Mesh
	t testing.TB
	p *process
	// bin is the program, number tells several of a test apart.
	bin    string
	number int
	// pod is where it runs, nil for the node, and args are further ones.
	pod  *Pod
	args []string
}

// operatorPort is where the first one tells about its health; metrics are behind it.
const operatorPort = 8090

// Operator runs one, from its binary and the folder of its CRDs, until the test has ended
// and all that it has made is gone.
func (m *Mesh) Operator(t testing.TB, bin, crds string) *Operator {
	t.Helper()
	m.crds(t, crds)
	o := &Operator{m: m, t: t, bin: bin}
	o.run()
	return o
}

// Operator runs one in the pod, as Mesh.Operator does on the node, and with further
// arguments. Its metrics are at port 8080 of the pod.
func (p *Pod) Operator(bin, crds string, args ...string) *Operator {
	p.n.t.Helper()
	p.n.crds(p.n.t, crds)
	o := &Operator{m: p.n.Mesh, t: p.n.t, bin: bin, pod: p, args: args}
	o.run()
	return o
}

func (m *Mesh) crds(t testing.TB, dir string) {
	t.Helper()
	_, err := m.Kubectl("", "apply", "--server-side", "-f", dir)
	require.NoError(t, err)
	require.NoError(t, m.api.until("the CRDs are established", func() bool {
		_, err := m.Kubectl("", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
		return err == nil
	}))
}

// run starts it, until the test has ended and all that it has made is gone.
func (o *Operator) run() {
	t, m := o.t, o.m
	t.Helper()
	o.Start()
	t.Cleanup(func() {
		if o.p.ending.Load() {
			return // the test has ended it
		}
		// The tests' services have gone before.
		if !t.Failed() {
			require.NoError(t, o.p.until("everything is removed", func() bool { return o.Made() == "" }))
		} else {
			log := o.Log()
			t.Logf("end of the operator's log:\n%s", log[max(0, len(log)-6000):])
		}
		o.Stop()
		if left := o.Made(); left != "" {
			m.Kubectl("", "delete", "envoyfilters,virtualservices", "-A", "-l", madeByOperator)
		}
	})
}

const madeByOperator = "app.kubernetes.io/managed-by=meltemi-operator"

// Made are the names of all objects that it has made.
func (o *Operator) Made() string {
	out, err := o.m.Kubectl("", "get", "envoyfilters,virtualservices", "-A", "-l", madeByOperator, "-o",
		`jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{"\n"}{end}`)
	require.NoError(o.t, err)
	return strings.TrimSpace(out)
}

// Start starts it, and returns when it is ready.
func (o *Operator) Start() {
	o.t.Helper()
	o.number++
	const name = "meltemi-operator"
	p := program{
		name: name, netns: o.netns(), dir: o.m.dir, log: o.m.path(fmt.Sprintf("%s-%s-%d.log", name, o.netns().ID, o.number)),
		argv: append([]string{
			o.bin, "-kubeconfig", o.m.path("kubeconfig"), "-leader-election-namespace", RootNamespace,
			"-health-address", fmt.Sprintf("127.0.0.1:%d", operatorPort), "-metrics-address", o.metrics(),
		}, o.args...),
	}
	if o.pod != nil {
		p.hostname = o.pod.Name
	}
	var err error
	o.p, err = p.start()
	require.NoError(o.t, err)
	require.NoError(o.t, o.p.until("ready", func() bool {
		_, err := o.netns().Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", operatorPort))
		return err == nil
	}))
}

func (o *Operator) netns() Netns {
	if o.pod != nil {
		return o.pod.Netns
	}
	return o.m.fabric.node
}

// metrics is where metrics are served: for the node itself, or for all who reach the pod.
func (o *Operator) metrics() string {
	if o.pod != nil {
		return o.pod.IP + ":8080"
	}
	return fmt.Sprintf("127.0.0.1:%d", operatorPort+1)
}

// Stop asks it to end. It ends well.
func (o *Operator) Stop() {
	o.t.Helper()
	if o.p.died() {
		o.t.Errorf("the operator died: %v", o.p.cmd.ProcessState)
		return
	}
	require.NoError(o.t, o.p.terminate())
	require.Zero(o.t, o.p.cmd.ProcessState.ExitCode(), o.p.tail())
}

// Kill ends it at once.
func (o *Operator) Kill() { o.p.kill() }

// Log is what it has logged since it was started.
func (o *Operator) Log() string { return o.p.output() }

// Metrics are what Prometheus would be told.
func (o *Operator) Metrics() string {
	o.t.Helper()
	return o.Get("/metrics")
}

// Get is a page of those at the metrics' address.
func (o *Operator) Get(path string) string {
	o.t.Helper()
	body, err := o.netns().Get("http://" + o.metrics() + path)
	require.NoError(o.t, err)
	return body
}

// CRDs is the folder of the operator's.
func CRDs(root string) string { return filepath.Join(root, "charts", "meltemi-crds", "templates") }
