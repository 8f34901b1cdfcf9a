package mesh

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Namespace is a Kubernetes namespace with the pods that one test has in it.
type Namespace struct {
	*Mesh
	// Name of the namespace.
	Name string

	t     testing.TB
	token string
	root  string
	pods  []*Pod
	made  string // the kinds of objects that tests make
}

// Namespace makes one. Its pods end with the test.
func (m *Mesh) Namespace(t testing.TB) *Namespace {
	t.Helper()
	m.number++
	return m.namespace(t, fmt.Sprintf("test-%d", m.number),
		"envoyfilters,destinationrules,virtualservices,gateways,sidecars,peerauthentications,serviceentries,workloadentries,services,endpointslices")
}

// Root is Istio's root namespace, with nothing in it of other tests.
func (m *Mesh) Root(t testing.TB) *Namespace {
	t.Helper()
	return m.namespace(t, RootNamespace, "envoyfilters,gateways,virtualservices,deployments")
}

func (m *Mesh) namespace(t testing.TB, name, made string) *Namespace {
	t.Helper()
	n := &Namespace{Mesh: m, Name: name, t: t, made: made}
	require.NoError(t, os.MkdirAll(m.path(n.Name), 0o755))
	n.Apply(fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: %[1]s}
`, n.Name))
	n.token = n.kubectl("create", "token", "default", "--audience", "istio-ca")
	// istiod puts the certificate of its CA there, for the kubelet to mount.
	n.Eventually("the root certificate", func() bool {
		n.root, _ = m.Kubectl("", "get", "-n", n.Name, "configmap", "istio-ca-root-cert", "--ignore-not-found", "-o", `jsonpath={.data.root-cert\.pem}`)
		return n.root != ""
	})
	t.Cleanup(n.remove)
	return n
}

func (n *Namespace) remove() {
	for _, p := range n.pods {
		p.end()
	}
	if n.t.Failed() {
		log := n.istiod.output()
		n.t.Logf("end of istiod's log:\n%s", log[max(0, len(log)-4000):])
	}
	// No controller empties the namespace. What other tests would see goes.
	n.kubectl("delete", n.made, "--all", "--wait=false")
	n.kubectl("delete", "pods", "--all", "--force")
}

// kubectl runs kubectl for the namespace; it must succeed.
func (n *Namespace) kubectl(args ...string) string {
	n.t.Helper()
	out, err := n.Kubectl("", append(args, "-n", n.Name)...)
	require.NoError(n.t, err)
	return out
}

// Apply has kubectl apply objects; all must be accepted.
func (n *Namespace) Apply(yaml string) {
	n.t.Helper()
	require.NoError(n.t, n.TryApply(yaml))
}

// TryApply is Apply of what may be refused.
func (n *Namespace) TryApply(yaml string) error { return n.Mesh.Apply(n.Name, yaml) }

// Delete deletes an object: its kind and its name.
func (n *Namespace) Delete(kind, name string) {
	n.t.Helper()
	n.kubectl("delete", kind, name)
}

// VIP is the address of a service.
func (n *Namespace) VIP(service string) string {
	n.t.Helper()
	ip := n.kubectl("get", "service", service, "-o", "jsonpath={.spec.clusterIP}")
	require.NotEmpty(n.t, ip)
	return ip
}

// Endpoints makes pods the endpoints of a service's ports, as the endpoints
// controller would. ports are target ports by name.
func (n *Namespace) Endpoints(service string, ports map[string]int, pods ...*Pod) {
	n.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"+
		"metadata: {name: %[1]s-1, labels: {kubernetes.io/service-name: %[1]s}}\nports:\n", service)
	for name, port := range ports {
		fmt.Fprintf(&b, "- {name: %s, port: %d, protocol: TCP}\n", name, port)
	}
	if len(pods) == 0 {
		b.WriteString("endpoints: []\n")
	} else {
		b.WriteString("endpoints:\n")
	}
	for _, p := range pods {
		fmt.Fprintf(&b, "- {addresses: [%s], conditions: {ready: true}, nodeName: node, targetRef: {kind: Pod, name: %s, namespace: %s}}\n",
			p.IP, p.Name, n.Name)
	}
	n.Apply(b.String())
}

// Eventually waits for something that must become true.
func (n *Namespace) Eventually(what string, ok func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("no %s after %v", what, patience)
		}
	}
}
