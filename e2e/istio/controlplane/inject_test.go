package controlplane

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"istio.io/istio/pilot/pkg/features"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/kube/inject"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

const (
	proxy = "istio-proxy"
	// What a proxy with the golang filter is told by its environment.
	socket  = "/etc/istio/proxy/meltemi.sock"
	process = `{"admin_address":"127.0.0.1:15880","path":"` + socket + `"}`
)

// gateway is the Deployment of a gateway as Istio's chart makes it, as far as it
// matters to the injector.
const gateway = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  template:
    metadata:
      annotations: {inject.istio.io/templates: gateway}
      labels: {istio: ingressgateway, sidecar.istio.io/inject: "true"}
    spec:
      containers:
      - name: istio-proxy
        image: auto
        env: [{name: ISTIO_META_UNPRIVILEGED_POD, value: "true"}]
`

// TestAProxyGetsTheImage: by the patch image.yaml, with what asks for the
// statistics.
func TestAProxyGetsTheImage(t *testing.T) {
	for name, c := range map[string]corev1.Container{
		"a native sidecar": container(t, injected(t, web(t), "image.yaml").InitContainers, proxy),
		"a gateway":        container(t, injected(t, gateway, "image.yaml").Containers, proxy),
	} {
		if c.Image != "example/proxyv2-meltemi:1.31.0" {
			t.Error(name, c.Image)
		}
		asksForStatistics(t, c)
		hasMetricsGathered(t, c)
	}
}

// TestAProxyGetsTheVolume: by the patches init-container.yaml and
// gateway-init-container.yaml, filled before the proxy starts even where native
// sidecars are the rule.
func TestAProxyGetsTheVolume(t *testing.T) {
	for name, pod := range map[string]corev1.PodSpec{
		"a sidecar": injected(t, web(t), "init-container.yaml"),
		"a gateway": injected(t, gateway, "gateway-init-container.yaml"),
	} {
		copier := container(t, pod.InitContainers, "meltemi")
		c := container(t, pod.Containers, proxy)
		volume := copier.VolumeMounts[0].Name
		if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == volume && v.EmptyDir != nil }) {
			t.Error(name, pod.Volumes)
		}
		folder := variable(c, "ENVOY_DYNAMIC_MODULES_SEARCH_PATH")
		if folder == "" || !slices.Contains(c.VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: folder, ReadOnly: true}) {
			t.Error(name, folder, c.VolumeMounts)
		}
		if v := variable(c, "ISTIO_META_MELTEMI"); v != "true" {
			t.Error(name, v)
		}
		if v := variable(c, "MELTEMI_PROCESS"); v != process {
			t.Error(name, v)
		}
		if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == filepath.Dir(socket) && !m.ReadOnly }) {
			t.Error(name, "the loopback listener's folder is none of the proxy's own:", c.VolumeMounts)
		}
		asksForStatistics(t, c)
	}
}

// TestTheOperatorGetsCertificates: by what docs/control-plane.md says that its pods have.
// The proxy writes them where the operator reads, and leaves its traffic alone.
func TestTheOperatorGetsCertificates(t *testing.T) {
	_, page, ok := strings.Cut(read(t, "../../../docs/control-plane.md"), "```yaml\nmetadata:\n  labels: {app.kubernetes.io/name: meltemi-operator")
	template, _, closed := strings.Cut(page, "\n```")
	if !ok || !closed {
		t.Fatal("no such example")
	}
	template = "metadata:\n  labels: {app.kubernetes.io/name: meltemi-operator" + template
	pod := injectedAs(t, []byte(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: meltemi-operator, namespace: meltemi-system}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: meltemi-operator}}
  template:
`+strings.ReplaceAll("\n"+template, "\n", "\n    ")))
	sidecar, operator := container(t, pod.InitContainers, proxy), container(t, pod.Containers, "operator")
	folder := variable(sidecar, "OUTPUT_CERTS")
	mount := corev1.VolumeMount{Name: "istio-certs", MountPath: folder}
	if !slices.Contains(sidecar.VolumeMounts, mount) {
		t.Error(folder, sidecar.VolumeMounts)
	}
	mount.ReadOnly = true
	if !slices.Contains(operator.VolumeMounts, mount) || !slices.Contains(operator.Args, "-rds-key="+folder+"/key.pem") {
		t.Error(folder, operator.VolumeMounts, operator.Args)
	}
	rules := container(t, pod.InitContainers, "istio-init").Args
	for _, flag := range []string{"-i", "-b"} {
		if i := slices.Index(rules, flag); i < 0 || rules[i+1] != "" {
			t.Error(flag, rules)
		}
	}
}

// hasMetricsGathered: this is what a gateway's agent does not look at.
func hasMetricsGathered(t *testing.T, c corev1.Container) {
	t.Helper()
	const want = `{"scrape":"","path":"/metrics","port":"15880","targets":[{"port":"15880","path":"/metrics"}]}`
	if got := variable(c, "ISTIO_PROMETHEUS_ANNOTATIONS"); got != want {
		t.Error(got)
	}
}

func asksForStatistics(t *testing.T, c corev1.Container) {
	t.Helper()
	if config := variable(c, "PROXY_CONFIG"); !strings.Contains(config, `"inclusionPrefixes":["meta_protocol"]`) {
		t.Error(config)
	}
}

func container(t *testing.T, cs []corev1.Container, name string) corev1.Container {
	t.Helper()
	i := slices.IndexFunc(cs, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		t.Fatal("no container ", name)
	}
	return cs[i]
}

func variable(c corev1.Container, name string) string {
	for _, v := range c.Env {
		if v.Name == name {
			return v.Value
		}
	}
	return ""
}

const examples = "../../../examples/istio"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	must(t, err)
	return string(b)
}

// web is the example's last Deployment.
func web(t *testing.T) string {
	t.Helper()
	docs := strings.Split(read(t, examples, "demo.yaml"), "\n---\n")
	return docs[len(docs)-1]
}

// injected is what Istio's own injector, with its chart's templates and values
// and native sidecars, makes of a Deployment after a patch.
func injected(t *testing.T, deployment, patch string) corev1.PodSpec {
	t.Helper()
	object := func(text string) []byte {
		b, err := yaml.YAMLToJSON([]byte(text))
		must(t, err)
		return b
	}
	patched, err := strategicpatch.StrategicMergePatch(object(deployment), object(read(t, examples, patch)), &appsv1.Deployment{})
	must(t, err)
	return injectedAs(t, patched)
}

// injectedAs is injected without a patch.
func injectedAs(t *testing.T, deployment []byte) corev1.PodSpec {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "istio.io/istio").Output()
	must(t, err)
	chart := filepath.Join(strings.TrimSpace(string(dir)), "manifests/charts/istio-control/istio-discovery")
	templates, err := inject.ParseTemplates(inject.RawTemplates{
		"sidecar": read(t, chart, "files/injection-template.yaml"),
		"gateway": read(t, chart, "files/gateway-injection-template.yaml"),
	})
	must(t, err)
	var values struct {
		Defaults map[string]any `json:"_internal_defaults_do_not_set"`
	}
	must(t, yaml.Unmarshal([]byte(read(t, chart, "values.yaml")), &values))
	text, err := yaml.Marshal(values.Defaults)
	must(t, err)
	config, err := inject.NewValuesConfig(string(text))
	must(t, err)

	before := features.EnableNativeSidecars
	features.EnableNativeSidecars = features.NativeSidecarModeEnabled
	defer func() { features.EnableNativeSidecars = before }()
	var out bytes.Buffer
	must(t, inject.IntoResourceFile(nil, templates, config, "default", mesh.DefaultMeshConfig(), bytes.NewReader(deployment), &out,
		func(warning string) { t.Error(warning) }))
	var d appsv1.Deployment
	must(t, yaml.Unmarshal(out.Bytes(), &d))
	return d.Spec.Template.Spec
}
