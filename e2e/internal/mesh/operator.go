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
	// bin is the program, name and number tell several of a test apart.
	bin, name string
	number    int
	port      int
}

// operatorPort is where the first one tells about its health; metrics are behind it.
const operatorPort = 8090

// Operator runs one, from its binary and the folder of its CRDs, until the test has ended
// and all that it has made is gone.
func (m *Mesh) Operator(t testing.TB, bin, crds string) *Operator {
	t.Helper()
	_, err := m.Kubectl("", "apply", "--server-side", "-f", crds)
	require.NoError(t, err)
	require.NoError(t, m.api.until("the CRDs are established", func() bool {
		_, err := m.Kubectl("", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
		return err == nil
	}))
	o := &Operator{m: m, t: t, bin: bin, name: "meltemi-operator", port: operatorPort}
	o.Start()
	t.Cleanup(func() {
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
	return o
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
	p := program{
		name: o.name, netns: o.m.fabric.node, dir: o.m.dir, log: o.m.path(fmt.Sprintf("%s-%d.log", o.name, o.number)),
		argv: []string{
			o.bin, "-kubeconfig", o.m.path("kubeconfig"), "-leader-election-namespace", RootNamespace,
			"-health-address", fmt.Sprintf("127.0.0.1:%d", o.port), "-metrics-address", fmt.Sprintf("127.0.0.1:%d", o.port+1),
		},
	}
	var err error
	o.p, err = p.start()
	require.NoError(o.t, err)
	require.NoError(o.t, o.p.until("ready", func() bool { return o.m.ok(fmt.Sprintf("http://127.0.0.1:%d/readyz", o.port)) }))
}

// Replica starts another one beside it.
func (o *Operator) Replica() *Operator {
	o.t.Helper()
	r := &Operator{m: o.m, t: o.t, bin: o.bin, name: o.name + "-replica", port: o.port + 2}
	r.Start()
	return r
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
	body, err := o.m.fabric.node.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", o.port+1))
	require.NoError(o.t, err)
	return body
}

// CRDs is the folder of the operator's.
func CRDs(root string) string { return filepath.Join(root, "charts", "meltemi-crds", "templates") }
