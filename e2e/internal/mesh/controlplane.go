// Package mesh runs Istio without a cluster: a real API server with etcd, the
// stock istiod, and pods that are network namespaces in which the stock
// pilot-agent runs the stock Envoy behind Istio's own iptables rules.
package mesh

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// patience bounds every wait: far longer than anything takes on a busy machine.
const patience = 60 * time.Second

// RootNamespace is that of istiod and of what holds for the whole mesh.
const RootNamespace = "istio-system"

//go:embed controlplane.yaml
var controlPlaneObjects string

//go:embed policies.yaml
var policyObjects string

// Options say what to run.
type Options struct {
	// ControlPlane is the folder that tools/istio.sh fills, Helm what tools/helm.sh builds.
	ControlPlane, Helm string
	// Envoy is the path of the binary, Module that of libmeltemi.so.
	Envoy, Module string
}

// Mesh is a running control plane with its pods.
type Mesh struct {
	dir, bin string
	helm     string
	fabric   *fabric
	etcd     *process
	api      *process
	istiod   *process
	number   int
}

// Unavailable tells why this machine cannot run a mesh, or nil.
func Unavailable() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	for _, tool := range []string{"ip", "iptables"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w (Debian: apt-get install iproute2 iptables)", err)
		}
	}
	probe := Netns{ID: fmt.Sprintf("%s%d-probe", netnsPrefix, os.Getpid())}
	if err := ip("netns add " + probe.ID); err != nil {
		return fmt.Errorf("no network namespaces: %w", err)
	}
	defer ip("netns delete " + probe.ID)
	return probe.Run("iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "1")
}

// Start runs a control plane. Stop ends it, also after an error.
func Start(o Options) (m *Mesh, err error) {
	m = &Mesh{bin: o.ControlPlane, helm: o.Helm}
	// Not t.TempDir: the sidecars' user has to get there.
	if m.dir, err = os.MkdirTemp("", fmt.Sprintf("%s%d-", dirPrefix, os.Getpid())); err != nil {
		return m, err
	}
	if err := os.Chmod(m.dir, 0o755); err != nil {
		return m, err
	}
	for name, from := range map[string]string{
		"pilot-agent": filepath.Join(o.ControlPlane, "pilot-agent"), "envoy": o.Envoy, "libmeltemi.so": o.Module,
		"bootstrap.json": filepath.Join(o.ControlPlane, "bootstrap.json"),
	} {
		if err := link(from, filepath.Join(m.dir, name)); err != nil {
			return m, err
		}
	}
	if m.fabric, err = newFabric(); err != nil {
		return m, err
	}
	if err := m.startAPI(); err != nil {
		return m, err
	}
	if err := m.install(); err != nil {
		return m, err
	}
	if err := m.StartIstiod(); err != nil {
		return m, err
	}
	if err := m.waitForWebhook(); err != nil {
		return m, err
	}
	return m, m.Apply(RootNamespace, policyObjects)
}

func (m *Mesh) waitForWebhook() error {
	return m.istiod.until("the webhook is in force", func() bool {
		out, err := m.Kubectl("", "get", "validatingwebhookconfiguration", "-o", "jsonpath={..failurePolicy}")
		return err == nil && out == "Fail"
	})
}

// WithoutWebhook does something while Istio's validation webhook is gone, as in
// installations that have none.
func (m *Mesh) WithoutWebhook(do func()) (err error) {
	if _, err := m.Kubectl("", "delete", "validatingwebhookconfiguration", "--all"); err != nil {
		return err
	}
	defer func() {
		if e := m.Apply("", controlPlaneObjects); e != nil {
			err = e
			return
		}
		err = m.waitForWebhook()
	}()
	do()
	return nil
}

// link makes a file available at another path without a copy, if it can.
func link(from, to string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}

// Programs are what a proxy's container runs.
func (m *Mesh) Programs() (agent, envoy string) { return m.path("pilot-agent"), m.path("envoy") }

func (m *Mesh) path(name string) string { return filepath.Join(m.dir, name) }

// program is one of the control plane, on the node.
func (m *Mesh) program(name string, args ...string) program {
	return program{
		name: name, netns: m.fabric.node, dir: m.dir, log: m.path(name + ".log"),
		argv: append([]string{filepath.Join(m.bin, name)}, args...),
	}
}

const token = "admin-token"

// auditPolicy has the API server keep what service accounts ask for.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts"]}
- {level: None}
`

func (m *Mesh) startAPI() (err error) {
	etcd := m.program("etcd", "--data-dir", m.path("etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380")
	if m.etcd, err = etcd.start(); err != nil {
		return err
	}
	if err := m.etcd.until("ready", func() bool { return m.ok("http://127.0.0.1:2379/health") }); err != nil {
		return err
	}
	if err := writePKI(m.dir, m.fabric.node.IP); err != nil {
		return err
	}
	if err := os.WriteFile(m.path("tokens.csv"), []byte(token+",admin,admin,system:masters\n"), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(m.path("audit.yaml"), []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	kubeconfig := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "https://%s:6443", certificate-authority: %s}}]
users: [{name: test, user: {token: %s}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
`, m.fabric.node.IP, m.path("ca.crt"), token)
	if err := os.WriteFile(m.path("kubeconfig"), []byte(kubeconfig), 0o600); err != nil {
		return err
	}
	return m.StartAPIServer()
}

// StartAPIServer starts the API server and returns when it is ready.
func (m *Mesh) StartAPIServer() (err error) {
	api := m.program("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--advertise-address="+m.fabric.node.IP, "--secure-port=6443", "--endpoint-reconciler-type=none",
		"--tls-cert-file="+m.path("api.crt"), "--tls-private-key-file="+m.path("api.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+m.path("sa.pub"), "--service-account-signing-key-file="+m.path("sa.key"),
		"--service-cluster-ip-range=10.96.0.0/16", "--token-auth-file="+m.path("tokens.csv"),
		// The administrator may do everything, service accounts what roles say.
		"--authorization-mode=RBAC", "--audit-policy-file="+m.path("audit.yaml"), "--audit-log-path="+m.path("audit.log"),
		// Nobody fills in service accounts' defaults, as no controller runs.
		"--disable-admission-plugins=ServiceAccount")
	if m.api, err = api.start(); err != nil {
		return err
	}
	return m.api.until("ready", func() bool {
		_, err := m.Kubectl("", "get", "--raw", "/readyz")
		return err == nil
	})
}

// Request is one that the API server was asked.
type Request struct {
	User   struct{ Username string }
	Verb   string
	URI    string            `json:"requestURI"`
	Object RequestObject     `json:"objectRef"`
	Notes  map[string]string `json:"annotations"`
}

// RequestObject is what a request is about.
type RequestObject struct{ APIGroup, Resource, Subresource, Namespace, Name string }

// Allowed tells whether who asked may do so.
func (r *Request) Allowed() bool { return r.Notes["authorization.k8s.io/decision"] == "allow" }

// Requests are those of a service account, of all that there was of its name.
func (m *Mesh) Requests(namespace, account string) (requests []Request, err error) {
	log, err := os.ReadFile(m.path("audit.log"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(log)) {
		var r Request
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, err
		}
		if r.User.Username == "system:serviceaccount:"+namespace+":"+account {
			requests = append(requests, r)
		}
	}
	return requests, nil
}

// KillAPIServer ends it at once.
func (m *Mesh) KillAPIServer() { m.api.kill() }

// install applies what Istio's charts do.
func (m *Mesh) install() error {
	if _, err := m.Kubectl("", "apply", "--server-side", "-f", filepath.Join(m.bin, "crds.yaml")); err != nil {
		return err
	}
	// kubectl wait fails at once on those that have no conditions yet.
	if err := m.api.until("the CRDs are established", func() bool {
		_, err := m.Kubectl("", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
		return err == nil
	}); err != nil {
		return err
	}
	return m.Apply("", controlPlaneObjects)
}

// StartIstiod starts istiod and returns when it is ready.
func (m *Mesh) StartIstiod() (err error) {
	p := m.program("pilot-discovery", "discovery", "--kubeconfig", m.path("kubeconfig"), "--monitoringAddr=:15014",
		"--log_output_level=default:info", "--domain", "cluster.local")
	p.env = []string{
		"REVISION=default", "PILOT_CERT_PROVIDER=istiod", "POD_NAME=istiod-0", "POD_NAMESPACE=" + RootNamespace,
		"SERVICE_ACCOUNT=istiod", "CLUSTER_ID=Kubernetes", "ENABLE_CA_SERVER=true",
		// Only Istio's own build of Envoy has those filters.
		"PILOT_ENABLE_METADATA_EXCHANGE=false", "PILOT_ENABLE_ALPN_FILTER=false",
	}
	if m.istiod, err = p.start(); err != nil {
		return err
	}
	return m.istiod.until("ready", func() bool { return m.ok("http://127.0.0.1:8080/ready") })
}

// KillIstiod ends it at once.
func (m *Mesh) KillIstiod() { m.istiod.kill() }

// IstiodLog is what istiod has logged so far.
func (m *Mesh) IstiodLog() string { return m.istiod.output() }

// ok tells whether the node gets a good answer from url.
func (m *Mesh) ok(url string) bool {
	_, err := m.fabric.node.Get(url)
	return err == nil
}

// Get makes a request from within the namespace. Any status but 200 is an
// error.
func (n Netns) Get(url string) (body string, err error) { return n.request(http.MethodGet, url) }

// Post is Get with another method and without a body.
func (n Netns) Post(url string) (body string, err error) { return n.request(http.MethodPost, url) }

func (n Netns) request(method, url string) (string, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: n.dialContext,
	}}
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		return "", err
	}
	r, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, r.Status, b)
	}
	return string(b), err
}

// Kubectl runs kubectl with input, as an administrator, on the node.
func (m *Mesh) Kubectl(input string, args ...string) (string, error) {
	return m.tool(input, filepath.Join(m.bin, "kubectl"), args...)
}

// Helm is Kubectl of Helm.
func (m *Mesh) Helm(args ...string) (string, error) { return m.tool("", m.helm, args...) }

// Tool runs a program that finds kubectl, as an administrator, on the node.
func (m *Mesh) Tool(program string, args ...string) (string, error) {
	return m.tool("", program, args...)
}

func (m *Mesh) tool(input, program string, args ...string) (string, error) {
	var out, problem strings.Builder
	err := m.fabric.node.do(func() error {
		cmd := exec.Command(program, args...)
		cmd.Env = []string{"HOME=" + m.dir, "KUBECONFIG=" + m.path("kubeconfig"), "PATH=" + m.bin + ":" + os.Getenv("PATH")}
		cmd.Stdin = strings.NewReader(input)
		cmd.Stdout, cmd.Stderr = &out, &problem
		return cmd.Run()
	})
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(args, " "), err, problem.String())
	}
	return out.String(), err
}

// Apply has kubectl apply objects to a namespace, if they name none.
func (m *Mesh) Apply(namespace, yaml string) error {
	args := []string{"apply", "-f", "-"}
	if namespace != "" {
		args = append(args, "-n", namespace)
	}
	_, err := m.Kubectl(yaml, args...)
	return err
}

// Stop ends everything.
func (m *Mesh) Stop() (err error) {
	for _, p := range []*process{m.istiod, m.api, m.etcd} {
		if p == nil {
			continue
		}
		if p.died() {
			err = errors.Join(err, fmt.Errorf("%s died: %v\n%s", p.name, p.cmd.ProcessState, p.tail()))
		}
		// Nothing is kept: the graceful way would take long.
		p.kill()
	}
	if m.fabric != nil {
		err = errors.Join(err, m.fabric.remove(m.fabric.node))
	}
	return errors.Join(err, os.RemoveAll(m.dir))
}
