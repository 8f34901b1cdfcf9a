package mesh

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/stretchr/testify/require"
)

// proxyUID is the user that Istio's rules let through to the outside.
const proxyUID = 1337

// Role is what a pod's proxy is.
type Role string

// The roles.
const (
	// Sidecar has all of the pod's traffic redirected to its proxy.
	Sidecar Role = "sidecar"
	// Gateway is a proxy alone.
	Gateway Role = "router"
	// Stranger has no proxy.
	Stranger Role = ""
)

// PodSpec describes a pod.
type PodSpec struct {
	Name string
	Role Role
	// Labels besides those that Istio's injection adds.
	Labels map[string]string
	// ProxyConfig is what the annotation proxy.istio.io/config would say.
	ProxyConfig map[string]any
	// ScrapeTarget is what the annotation prometheus.istio.io/scrape-targets would say.
	ScrapeTarget string
	// Env of the proxy's container.
	Env []string
	// TPROXY is how connections to the pod are intercepted, as by the annotation
	// sidecar.istio.io/interceptionMode; the default is REDIRECT.
	TPROXY bool
	// CertificatesOnly is a sidecar that keeps out of the pod's traffic, by the annotations
	// traffic.sidecar.istio.io/includeInboundPorts and includeOutboundIPRanges, and puts
	// its certificates where Pod.Certificates says, by OUTPUT_CERTS.
	CertificatesOnly bool
	// Image is what the proxy's container is made of; nil: the mesh's programs as they
	// are on this machine.
	Image *Image
}

// Image is a container's, with Istio's proxy where Istio's images have it.
type Image struct {
	// Root is its file system. Where a kubelet mounts something folders are made.
	Root       string
	Env        []string
	Entrypoint []string
}

// interception is Istio's name of the mode, and the user that the proxy runs as
// in it.
func (p *Pod) interception() (mode string, uid uint32) {
	if p.TPROXY {
		return "TPROXY", 0
	}
	return "REDIRECT", proxyUID
}

// Pod is a network namespace that Kubernetes knows as a pod.
type Pod struct {
	Netns
	PodSpec

	n     *Namespace
	proxy *process
}

// Pods makes pods and starts their proxies, which are ready when it returns.
func (n *Namespace) Pods(specs ...PodSpec) []*Pod {
	n.t.Helper()
	pods := make([]*Pod, len(specs))
	var objects []string
	for i, s := range specs {
		netns, err := n.fabric.add()
		require.NoError(n.t, err)
		p := &Pod{Netns: netns, PodSpec: s, n: n}
		pods[i] = p
		n.pods = append(n.pods, p)
		objects = append(objects, p.object())
	}
	all := strings.Join(objects, "\n---\n")
	n.Apply(all)
	// The kubelet would report that they run.
	_, err := n.Kubectl(all, "apply", "-n", n.Name, "--server-side", "--subresource=status", "-f", "-")
	require.NoError(n.t, err)
	for _, p := range pods {
		if p.Role == Sidecar && !p.CertificatesOnly {
			require.NoError(n.t, p.redirect())
		}
		if p.Role != Stranger {
			p.StartProxy()
		}
	}
	for _, p := range pods {
		if p.Role != Stranger {
			p.WaitReady()
		}
	}
	return pods
}

// labels are those that the pod has after injection.
func (p *Pod) labels() map[string]string {
	labels := maps.Clone(p.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	if p.Role != Stranger {
		labels["service.istio.io/canonical-name"] = p.Name
	}
	if p.Role == Sidecar {
		labels["security.istio.io/tlsMode"] = "istio"
	}
	return labels
}

func (p *Pod) object() string {
	b, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": p.Name, "namespace": p.n.Name, "labels": p.labels()},
		"spec": map[string]any{
			"nodeName": "node", "serviceAccountName": "default",
			"containers": []any{map[string]any{"name": "app", "image": "none"}},
		},
		"status": map[string]any{
			"phase": "Running", "podIP": p.IP, "podIPs": []any{map[string]any{"ip": p.IP}},
			"conditions": []any{map[string]any{"type": "Ready", "status": "True"}},
		},
	})
	require.NoError(p.n.t, err)
	return string(b)
}

// redirect runs Istio's init container.
func (p *Pod) redirect() error {
	mode, _ := p.interception()
	program := program{
		name: "istio-iptables", netns: p.Netns, dir: p.n.dir, log: p.log("init"),
		argv: []string{
			p.n.path("pilot-agent"), "istio-iptables", "-p", "15001", "-z", "15006", "-u", strconv.Itoa(proxyUID), "-g", strconv.Itoa(proxyUID), "-m", mode,
			"-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020",
		},
	}
	run, err := program.start()
	if err != nil {
		return err
	}
	<-run.exited
	if !run.cmd.ProcessState.Success() {
		return fmt.Errorf("istio-iptables: %v\n%s", run.cmd.ProcessState, run.tail())
	}
	return nil
}

func (p *Pod) dir() string { return filepath.Join(p.n.dir, p.n.Name, p.Name) }

// Certificates is the folder in which a sidecar with CertificatesOnly keeps cert-chain.pem,
// key.pem and root-cert.pem.
func (p *Pod) Certificates() string { return filepath.Join(p.dir(), "certificates") }

func (p *Pod) log(name string) string { return p.dir() + "." + name + ".log" }

// StartProxy starts the agent, which starts Envoy.
func (p *Pod) StartProxy() {
	t := p.n.t
	t.Helper()
	labels := ""
	for _, k := range slices.Sorted(maps.Keys(p.labels())) {
		labels += fmt.Sprintf("%s=%q\n", k, p.labels()[k])
	}
	// What a kubelet would mount.
	for file, text := range map[string]string{
		"var/run/secrets/tokens/istio-token":  p.n.token,
		"var/run/secrets/istio/root-cert.pem": p.n.root,
		"etc/istio/pod/labels":                labels,
	} {
		file = filepath.Join(p.dir(), file)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(p.dir(), "etc/istio/proxy"), 0o755))
	env := p.Env
	if p.CertificatesOnly {
		require.NoError(t, os.MkdirAll(p.Certificates(), 0o755))
		env = append(slices.Clone(env), "OUTPUT_CERTS="+p.Certificates())
	}
	require.NoError(t, filepath.WalkDir(p.dir(), func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, proxyUID, proxyUID)
	}))
	config := map[string]any{
		"discoveryAddress": p.n.fabric.node.IP + ":15012", "concurrency": 2, "terminationDrainDuration": "2s",
		"proxyStatsMatcher": map[string]any{"inclusionPrefixes": []string{"meta_protocol", "extension_config_discovery", "cluster.", "listener."}},
	}
	programs := Image{
		Entrypoint: []string{p.n.path("pilot-agent")},
		Env:        []string{"ENVOY_DYNAMIC_MODULES_SEARCH_PATH=" + p.n.dir, "ISTIO_META_MELTEMI=true"},
	}
	template := "" // that of the image
	if p.Image != nil {
		programs = *p.Image
	} else {
		config["binaryPath"], config["configPath"] = p.n.path("envoy"), "./etc/istio/proxy"
		template = p.n.path("bootstrap.json")
	}
	maps.Copy(config, p.ProxyConfig)
	b, err := json.Marshal(config)
	require.NoError(t, err)
	scraped := []string{}
	if port, path, ok := strings.Cut(p.ScrapeTarget, ":"); ok {
		// What the injection makes of it, see the tests of controlplane.
		scraped = append(scraped, fmt.Sprintf(`ISTIO_PROMETHEUS_ANNOTATIONS={"path":%[2]q,"port":%[1]q,"targets":[{"port":%[1]q,"path":%[2]q}]}`, port, path))
	}
	mode, uid := p.interception()
	program := program{
		name: p.Name + "'s pilot-agent", netns: p.Netns, hostname: p.Name, dir: p.dir(), log: p.log("proxy"), uid: uid, gid: proxyUID, init: true,
		argv: append(slices.Clone(programs.Entrypoint),
			"proxy", string(p.Role), "--domain", p.n.Name+".svc.cluster.local",
			"--proxyLogLevel=info", "--proxyComponentLogLevel=misc:error", "--log_output_level=default:info",
			"--templateFile", template,
		),
		env: append([]string{
			"POD_NAME=" + p.Name, "POD_NAMESPACE=" + p.n.Name, "INSTANCE_IP=" + p.IP, "SERVICE_ACCOUNT=default",
			"HOST_IP=" + p.n.fabric.node.IP, "PROXY_CONFIG=" + string(b), "PILOT_CERT_PROVIDER=istiod",
			"ISTIO_META_CLUSTER_ID=Kubernetes", "ISTIO_META_NODE_NAME=node", "ISTIO_META_WORKLOAD_NAME=" + p.Name,
			"ISTIO_META_INTERCEPTION_MODE=" + mode, "TRUST_DOMAIN=cluster.local", "ISTIO_META_MESH_ID=cluster.local",
			// No DNS here: istiod is dialed by its address.
			"ISTIOD_SAN=istiod." + RootNamespace + ".svc",
			// As the limits of the container would be.
			"GOMEMLIMIT=1GiB", "GOMAXPROCS=2",
		}, slices.Concat(programs.Env, scraped, env)...),
	}
	if p.Image != nil {
		program.contain(p.Image.Root, uid, proxyUID, "etc/istio/proxy", "etc/istio/pod", "var/run/secrets", "var/lib/istio/data", "tmp")
	}
	p.proxy, err = program.start()
	require.NoError(t, err)
}

// contain has a program run as user uid in the file system of a container, which it may
// only read, but for the folders of its own that a kubelet mounts there. It has them at the
// same places below the folder in which it would run otherwise.
func (p *program) contain(root string, uid, gid uint32, folders ...string) {
	p.env = append(p.env, "ROOT="+root, "OWN="+p.dir, fmt.Sprintf("USER=%d:%d", uid, gid), "FOLDERS="+strings.Join(folders, " "))
	p.argv = append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-ec", `
mkdir -p "$ROOT/proc" "$ROOT/dev"
mount --bind "$ROOT" "$ROOT"
for d in $FOLDERS; do
  [ -d "$OWN/$d" ] || { mkdir -p "$OWN/$d"; chown "$USER" "$OWN/$d"; }
  mkdir -p "$ROOT/$d"
  mount --bind "$OWN/$d" "$ROOT/$d"
done
mount --rbind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc"
mount -o remount,bind,ro "$ROOT"
exec setpriv --no-new-privs chroot --userspec "$USER" --groups= "$ROOT" "$@"
`, "sh"}, p.argv...)
	p.uid, p.gid = 0, 0
}

// Pid is the process of the proxy's agent.
func (p *Pod) Pid() int { return p.proxy.cmd.Process.Pid }

// WaitReady waits until the kubelet would send traffic.
func (p *Pod) WaitReady() {
	p.n.t.Helper()
	require.NoError(p.n.t, p.proxy.until("ready", p.Ready))
}

// Ready tells whether the kubelet would send traffic.
func (p *Pod) Ready() bool {
	_, err := p.Get("http://127.0.0.1:15021/healthz/ready")
	return err == nil
}

// StopProxy ends the proxy as a kubelet does, and returns when it has ended.
func (p *Pod) StopProxy() {
	p.n.t.Helper()
	require.NoError(p.n.t, p.proxy.terminate())
}

// Log is what the agent and Envoy have logged so far.
func (p *Pod) Log() string { return p.proxy.output() }

// Admin asks Envoy's admin interface.
func (p *Pod) Admin(path string) string {
	p.n.t.Helper()
	body, err := p.Get("http://127.0.0.1:15000" + path)
	require.NoError(p.n.t, err)
	return body
}

// Stats are Envoy's counters and gauges whose names match a regular expression.
func (p *Pod) Stats(pattern string) map[string]int64 {
	p.n.t.Helper()
	stats := map[string]int64{}
	for line := range strings.Lines(p.Admin("/stats?filter=" + url.QueryEscape(pattern))) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if v, err := strconv.ParseInt(value, 10, 64); ok && err == nil {
			stats[name] = v
		}
	}
	return stats
}

// WaitConfig waits until some kind of Envoy's configuration, such as
// dynamic_listeners, matches a regular expression.
func (p *Pod) WaitConfig(resource, pattern string) {
	p.n.t.Helper()
	re := regexp.MustCompile(pattern)
	p.n.Eventually(resource+" with "+pattern+" in "+p.Name, func() bool {
		// Envoy has no page for what there is none of.
		dump, err := p.Get("http://127.0.0.1:15000/config_dump?resource=" + resource)
		return err == nil && re.MatchString(dump)
	})
}

// WaitPolicy waits until a cluster has a load balancing policy of Envoy's.
func (p *Pod) WaitPolicy(cluster, policy string) {
	p.n.t.Helper()
	var dump struct {
		Configs []struct {
			Cluster struct {
				Name   string
				Policy string `json:"lb_policy"`
			}
		}
	}
	p.n.Eventually(policy+" for "+cluster, func() bool {
		dump.Configs = nil
		text := p.Admin("/config_dump?resource=dynamic_active_clusters")
		require.NoError(p.n.t, json.Unmarshal([]byte(text), &dump))
		for _, c := range dump.Configs {
			if c.Cluster.Name == cluster {
				// The default is not shown.
				return c.Cluster.Policy == policy || c.Cluster.Policy == "" && policy == "ROUND_ROBIN"
			}
		}
		return false
	})
}

// crashes are words of Envoy's log that must not occur.
var crashes = []string{"panic", "[critical]", "assert failure", "Caught Segmentation", "fatal error:"}

// end stops what runs in the pod and proves that nothing went wrong.
func (p *Pod) end() {
	t := p.n.t
	t.Helper()
	if p.proxy != nil {
		if p.proxy.died() {
			t.Errorf("%s died: %v", p.proxy.name, p.proxy.cmd.ProcessState)
		}
		p.proxy.kill()
		log := p.Log()
		for _, bad := range crashes {
			if i := strings.Index(log, bad); i >= 0 {
				t.Errorf("the proxy of %s logged %q:\n%s", p.Name, bad, log[i:min(len(log), i+4000)])
			}
		}
		if t.Failed() {
			t.Logf("end of the log of %s's proxy:\n%s", p.Name, p.proxy.tail())
		}
	}
	if err := p.n.fabric.remove(p.Netns); err != nil {
		t.Error(err)
	}
}
