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

const proxy = "istio-proxy"

// TestAProxyGetsTheImage: by the patch image.yaml, with what asks for the
// statistics.
func TestAProxyGetsTheImage(t *testing.T) {
	pod := injected(t, "image.yaml")
	c := container(t, pod.InitContainers, proxy) // a native sidecar
	if c.Image != "example/proxyv2-meltemi:1.31.0" {
		t.Error(c.Image)
	}
	if config := variable(c, "PROXY_CONFIG"); !strings.Contains(config, `"inclusionPrefixes":["meta_protocol"]`) {
		t.Error(config)
	}
}

// TestAProxyGetsTheVolume: by the patch init-container.yaml, filled before the
// proxy starts even where native sidecars are the rule.
func TestAProxyGetsTheVolume(t *testing.T) {
	pod := injected(t, "init-container.yaml")
	copier := container(t, pod.InitContainers, "meltemi")
	c := container(t, pod.Containers, proxy)
	volume := copier.VolumeMounts[0].Name
	if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == volume && v.EmptyDir != nil }) {
		t.Error(pod.Volumes)
	}
	folder := variable(c, "ENVOY_DYNAMIC_MODULES_SEARCH_PATH")
	if !slices.Contains(c.VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: folder, ReadOnly: true}) {
		t.Error(folder, c.VolumeMounts)
	}
	if v := variable(c, "ISTIO_META_MELTEMI"); v != "true" {
		t.Error(v)
	}
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

// injected is what Istio's own injector, with its chart's values and native
// sidecars, makes of the example's last Deployment after a patch.
func injected(t *testing.T, patch string) corev1.PodSpec {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	read := func(path ...string) []byte {
		b, err := os.ReadFile(filepath.Join(path...))
		must(err)
		return b
	}
	object := func(text []byte) []byte {
		b, err := yaml.YAMLToJSON(text)
		must(err)
		return b
	}
	const examples = "../../../examples/istio"
	docs := bytes.Split(read(examples, "demo.yaml"), []byte("\n---\n"))
	deployment, err := strategicpatch.StrategicMergePatch(object(docs[len(docs)-1]), object(read(examples, patch)), &appsv1.Deployment{})
	must(err)

	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "istio.io/istio").Output()
	must(err)
	chart := filepath.Join(strings.TrimSpace(string(dir)), "manifests/charts/istio-control/istio-discovery")
	templates, err := inject.ParseTemplates(inject.RawTemplates{"sidecar": string(read(chart, "files/injection-template.yaml"))})
	must(err)
	var values struct {
		Defaults map[string]any `json:"_internal_defaults_do_not_set"`
	}
	must(yaml.Unmarshal(read(chart, "values.yaml"), &values))
	text, err := yaml.Marshal(values.Defaults)
	must(err)
	config, err := inject.NewValuesConfig(string(text))
	must(err)

	before := features.EnableNativeSidecars
	features.EnableNativeSidecars = features.NativeSidecarModeEnabled
	defer func() { features.EnableNativeSidecars = before }()
	var out bytes.Buffer
	must(inject.IntoResourceFile(nil, templates, config, "default", mesh.DefaultMeshConfig(), bytes.NewReader(deployment), &out,
		func(warning string) { t.Error(warning) }))
	var d appsv1.Deployment
	must(yaml.Unmarshal(out.Bytes(), &d))
	return d.Spec.Template.Spec
}
